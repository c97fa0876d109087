# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Finding the checkpoint of T5X or Orbax that a folder is, or that is one or two levels below it."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from ..errors import ConversionError
from ..readable import joined


# Files of an Orbax checkpoint of a tree of arrays.
ORBAX_FILES = ("_METADATA", "manifest.ocdbt")

# T5X's index, which TensorFlow has a text of this name for.
INDEX = "checkpoint"

# A map of MessagePack; no text begins so.
_MAP = re.compile(rb"[\x80-\x8f\xde\xdf]")

# Folders that say which step of a run, or which item of a step, is in them.
_STEPS = re.compile(r"(?:checkpoint_)?\d{1,18}|default|state|items?|train_state")
_DEEPEST = 2


@dataclass(frozen=True)
class ArrayFolder:
    """A checkpoint.

    Attributes:
        folder: its absolute path.
        is_t5x: it has T5X's index; otherwise it is Orbax's own.
    """

    folder: Path
    is_t5x: bool

    @property
    def what(self) -> str:
        """Place and kind, for messages."""
        kind = "a checkpoint of T5X" if self.is_t5x else "an Orbax checkpoint, as T5X and other JAX programs write it"
        return f"{self.folder} is {kind}"

    @property
    def run(self) -> Path:
        """The folder of the run, above those of step and item."""
        folder = self.folder
        while _STEPS.fullmatch(folder.name) and folder.parent != folder:
            folder = folder.parent
        return folder

    @property
    def name(self) -> str:
        """Folder of the run, and which of its checkpoints it is."""
        return "/".join(filter(None, (self.run.name, *self.folder.relative_to(self.run).parts)))

    @property
    def step(self) -> int | None:
        """Training step in the name."""
        found = re.findall(r"(?:\A|[/_])(\d{1,18})(?=/|\Z)", "/".join(self.folder.relative_to(self.run).parts))
        return int(found[-1]) if found else None


def is_map(head: bytes) -> bool:
    """Whether a file that begins so may be an index in MessagePack."""
    return _MAP.match(head) is not None


def find_arrays(folder: Path) -> ArrayFolder | None:
    """The checkpoint that a folder is, or the only one in it; None if there is none.

    Raises:
        ConversionError: there are several.
    """
    found = _search(Path(os.path.abspath(folder)), 0)
    if len(found) > 1:
        raise ConversionError(
            f"{folder} holds {len(found)} checkpoints of T5X or Orbax: give the folder of one of them, "
            f"{joined(each.folder.relative_to(os.path.abspath(folder)) for each in found)}."
        )
    return found[0] if found else None


def _search(folder: Path, depth: int) -> list[ArrayFolder]:
    names = _names(folder)
    if INDEX in names and is_map(_head(folder / INDEX)):
        return [ArrayFolder(folder, is_t5x=not any(name in names for name in ORBAX_FILES))]
    if any(name in names for name in ORBAX_FILES):
        return [ArrayFolder(folder, is_t5x=False)]
    inner = (folder / name for name in names if depth < _DEEPEST and _is_folder(folder / name))
    return [found for path in inner for found in _search(path, depth + 1)]


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def _head(path: Path) -> bytes:
    try:
        if not path.is_file():
            return b""
        with path.open("rb") as file:
            return file.read(1)
    except OSError:
        return b""
