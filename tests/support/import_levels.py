"""Counts the levels of imports in the code: `python -m tests.support.import_levels` prints them, highest first.

A room is a folder or file directly below `convert/`, `training/` or `t5_experimental/`. Its level is one more than the
highest level of any room that it imports from, wherever in a file the import stands. The faces of a package
(`__init__.py`, `__main__.py`) are not rooms.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


ROOT = Path(__file__).parents[2]

LIBRARY = "t5_experimental"
TOPS = (LIBRARY, "convert", "training")


@dataclass(frozen=True)
class Import:
    """One import of a module of the project.

    Attributes:
        importer: path of the file, relative to the root.
        line: where it stands.
        imported: path of the file that is imported, relative to the root.
        top_level: it runs when the file is imported; others stand in functions or are for type checkers.
    """

    importer: Path
    line: int
    imported: Path
    top_level: bool


def source_files(top: str) -> list[Path]:
    """All Python files below a top folder, relative to the root."""
    return sorted(path.relative_to(ROOT) for path in (ROOT / top).rglob("*.py"))


def module_name(path: Path) -> str:
    """Dotted name under which a file is imported, as `t5_experimental.convert.cli` for convert/cli.py."""
    parts = path.with_suffix("").parts
    parts = parts[:-1] if parts[-1] == "__init__" else parts
    return ".".join(parts if parts[0] == LIBRARY else (LIBRARY, *parts))


_FILES = {module_name(path): path for top in TOPS for path in source_files(top)}


def imports_of(path: Path) -> Iterator[Import]:
    """The imports of the project's own modules in a file."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    top_level = {id(node) for node in tree.body}
    package = module_name(path) if path.name == "__init__.py" else module_name(path).rpartition(".")[0]
    for node in ast.walk(tree):
        for name in _imported_names(node, package):
            if (target := _file_of(name)) is not None:
                yield Import(path, getattr(node, "lineno", 0), target, id(node) in top_level)


def _imported_names(node: ast.AST, package: str) -> list[str]:
    """What an import statement may name: a module, or something in it."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    parents = package.split(".")
    base = ".".join(parents[: len(parents) - node.level + 1]) if node.level else ""
    module = ".".join(filter(None, (base, node.module)))
    return [f"{module}.{alias.name}" for alias in node.names]


def _file_of(name: str) -> Path | None:
    """File of the longest part of a dotted name that is a module of the project."""
    while name:
        if name in _FILES:
            return _FILES[name]
        name = name.rpartition(".")[0]
    return None


def room_of(path: Path) -> str:
    """Folder or file directly below the top folder, as "convert/bundle" or "convert/cli.py"."""
    return "/".join(path.parts[:2])


def dependencies(top: str) -> dict[str, set[str]]:
    """For every room of a top folder the other rooms of it that it imports from."""
    rooms: dict[str, set[str]] = {}
    for path in source_files(top):
        if path.name in ("__init__.py", "__main__.py") and len(path.parts) == 2:
            continue
        targets = rooms.setdefault(room_of(path), set())
        for found in imports_of(path):
            if found.imported.parts[0] == top and found.imported.name != "__init__.py":
                targets.add(room_of(found.imported))
    return {room: targets - {room} for room, targets in rooms.items()}


def levels(rooms: dict[str, set[str]]) -> dict[str, int]:
    """Level of every room; 1 imports from none.

    Raises:
        ValueError: rooms import from each other in a circle, which the message names.
    """
    known: dict[str, int] = {}

    def level(room: str, above: tuple[str, ...]) -> int:
        if room in above:
            raise ValueError(" -> ".join((*above[above.index(room) :], room)))
        if room not in known:
            known[room] = 1 + max((level(target, (*above, room)) for target in sorted(rooms[room])), default=0)
        return known[room]

    for room in rooms:
        level(room, ())
    return known


def main() -> None:
    for top in TOPS:
        rooms = dependencies(top)
        found = levels(rooms)
        print(f"{top}/: {len(rooms)} rooms, {sum(map(len, rooms.values()))} arrows, {max(found.values())} levels")
        for room in sorted(found, key=lambda room: (-found[room], room)):
            print(f"  {found[room]}  {room}  ->  {', '.join(sorted(rooms[room]))}")


if __name__ == "__main__":
    main()
