# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Data files that options name, also by patterns: which there are, and whether their names tell a format."""

import glob
from collections.abc import Collection, Sequence
from pathlib import Path

from ..errors import TrainingError
from .folders import check_folder
from .opening import PACKED, format_of, is_packed


PARQUET = ".parquet"
"""The format that is never packed: it packs its own columns, and is not read from the beginning."""


def find_paths(option: str, patterns: Sequence[str]) -> list[Path]:
    """Files and folders of names and glob patterns, each once (also if links lead to it), sorted by name.

    Raises:
        TrainingError: a pattern matches nothing.
    """
    paths: dict[Path, Path] = {}
    for pattern in patterns:
        matches = [pattern] if Path(pattern).exists() else glob.glob(pattern, recursive=True)
        if not matches:
            raise TrainingError(f"--{option} {pattern} does not exist: give paths of data files, or patterns of them.")
        for path in map(Path, sorted(matches)):
            paths.setdefault(path.resolve(), path)
    return sorted(paths.values())


def check_format(option: str, path: Path, formats: Collection[str]) -> None:
    """Refuses files whose extension is not one of `formats`, and folders that are no data set."""
    if path.is_dir():
        check_folder(option, path)
    elif not path.is_file():
        raise TrainingError(f"--{option} {path} is neither a file nor a folder: give the path of a data file.")
    elif format_of(path) not in formats:
        raise TrainingError(
            f"--{option} {path} has the unknown extension {format_of(path) or path.suffix!r}, which must tell the "
            f"format: use one of {', '.join(formats)}, also with {' or '.join(PACKED)} after it."
        )
    elif is_packed(path) and format_of(path) == PARQUET:
        raise TrainingError(f"--{option} {path}: Parquet packs its columns itself; unpack the file.")
