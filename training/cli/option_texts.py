# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Names, defaults and help of the options, read from the source of the dataclasses: importing these takes seven
seconds, for torch and transformers."""

import ast
import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, cast


TRAINING = Path(__file__).parents[1]

# What transformers defines in another file than the one that it is imported from.
_BASE = ("transformers", "training_args_seq2seq.py")
_OWN = "t5_experimental.training."


@dataclass(frozen=True)
class OptionText:
    """An option as its source describes it.

    Attributes:
        name: of the option.
        default: as written; None if it is required.
        help: the text, or empty.
        group: beginning of the docstring of the class that defines it.
        is_ours: whether one of our classes defines it.
    """

    name: str
    default: str | None
    help: str
    group: str
    is_ours: bool


def options_of(path: Path, name: str) -> dict[str, OptionText]:
    """The options of a dataclass and its bases by name, in the order of the parser.

    Args:
        path: file that defines the class.
        name: of the class.

    Raises:
        LookupError: the source is not written as this reader expects.
    """
    source, node = _find_class(path, name)
    found: dict[str, OptionText] = {}
    for base in reversed(node.bases):
        found.update(options_of(*_origin(source, ast.unparse(base))))
    if not any(ast.unparse(decorator).startswith("dataclass") for decorator in node.decorator_list):
        return found
    group = re.split("[.:;]", ast.get_docstring(node) or "")[0]
    without_option = _without_option(node)
    for option in _fields(source, node, group):
        if option.name in without_option:  # what a base has, and this one decides itself
            found.pop(option.name, None)
        else:
            found[option.name] = option
    return found


@dataclass(frozen=True)
class ProgramText:
    """An entry point as its source describes it, see [`~t5_experimental.training.cli.entry_point.EntryPoint`]."""

    name: str
    description: str
    usage: str
    options: dict[str, OptionText]


@lru_cache  # every start asks twice: before its imports, and when it parses
def program_of(name: str) -> ProgramText:
    """The entry point that a module of `training/` assigns to `ENTRY_POINT`."""
    source = _read(TRAINING / f"{name}.py")
    for node in source.tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "ENTRY_POINT":
            words = {word.arg: word.value for word in cast(ast.Call, node.value).keywords}
            options: dict[str, OptionText] = {}
            for item in cast(ast.Tuple, words.pop("options")).elts:
                options.update(options_of(*_origin(source, ast.unparse(item))))
            texts = {str(key): _value(source, value) for key, value in words.items()}
            return ProgramText(**texts, options=options)
    raise LookupError(f"{source.path} has no ENTRY_POINT")


@dataclass(frozen=True)
class _Source:
    path: Path
    tree: ast.Module

    @property
    def is_ours(self) -> bool:
        return TRAINING in self.path.parents


@lru_cache
def _read(path: Path) -> _Source:
    return _Source(path, ast.parse(path.read_bytes()))


def _find_class(path: Path, name: str) -> tuple[_Source, ast.ClassDef]:
    source = _read(path)
    for node in source.tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return source, node
    raise LookupError(f"{path} has no class {name}")


def _origin(source: _Source, name: str) -> tuple[Path, str]:
    """The file that defines a name of a module, and the name there."""
    for node in source.tree.body:
        if not isinstance(node, ast.ImportFrom):
            continue
        for alias in node.names:
            if (alias.asname or alias.name) == name:
                return _file_of(source.path, node.module or "", node.level), alias.name
    return source.path, name


def _file_of(path: Path, module: str, level: int) -> Path:
    if level:
        return path.parents[level - 1].joinpath(*module.split(".")).with_suffix(".py")
    if module.startswith(_OWN):
        return TRAINING.joinpath(*module.removeprefix(_OWN).split(".")).with_suffix(".py")
    spec = importlib.util.find_spec(module) if module == _BASE[0] else None
    if spec is None or not spec.submodule_search_locations:
        raise LookupError(f"{path} imports a dataclass from {module}")
    return Path(spec.submodule_search_locations[0]) / _BASE[1]


def _fields(source: _Source, node: ast.ClassDef, group: str) -> Iterator[OptionText]:
    for line in node.body:
        if not isinstance(line, ast.AnnAssign) or not isinstance(line.target, ast.Name):
            continue
        if "ClassVar" in ast.unparse(line.annotation):
            continue
        name, value = line.target.id, line.value
        if not isinstance(value, ast.Call):
            default, metadata = (None if value is None else ast.unparse(value)), None
        else:
            words = {keyword.arg: keyword.value for keyword in value.keywords}
            default, metadata = _default(words), words.get("metadata")
        text = "" if metadata is None else str(_value(source, metadata).get("help", ""))
        yield OptionText(name, default, text, group, source.is_ours)


def _without_option(node: ast.ClassDef) -> set[str]:
    """Fields that the constructor does not take."""
    return {
        ast.unparse(line.target)
        for line in node.body
        if isinstance(line, ast.AnnAssign) and isinstance(line.value, ast.Call)
        if any(word.arg == "init" and ast.unparse(word.value) == "False" for word in line.value.keywords)
    }


def _default(words: dict[str | None, ast.expr]) -> str | None:
    if "default" in words:
        return ast.unparse(words["default"])
    return "[]" if "default_factory" in words else None


def _value(source: _Source, node: ast.expr) -> Any:
    """What a constant is, or the part of a dictionary that is constant."""
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Dict(keys=keys, values=values):
            pairs = zip(keys, values, strict=True)
            return {key.value: _value(source, value) for key, value in pairs if isinstance(key, ast.Constant)}
        case ast.Name(id=name):
            return _assigned(*_origin(source, name))
    return ast.unparse(node)


def _assigned(path: Path, name: str) -> Any:
    source = _read(path)
    for node in source.tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return _value(source, node.value)
    raise LookupError(f"{path} does not assign {name}")
