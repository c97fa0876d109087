# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Folders that `save_to_disk` of `datasets` wrote."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, load_from_disk
from pyarrow import ArrowException

from ..errors import TrainingError, check_names, in_a_line


# What `save_to_disk` writes into the folder of a data set, and of several splits.
_ONE, _SPLITS = "state.json", "dataset_dict.json"

_ROWS_AT_ONCE = 1000


def is_saved(path: Path) -> bool:
    """Whether a folder is a data set, or the splits of one, as `save_to_disk` writes them."""
    return any((path / name).is_file() for name in (_ONE, _SPLITS))


def load_saved(path: Path) -> Dataset | DatasetDict:
    """What a folder has.

    Raises:
        TrainingError: it is damaged.
    """
    try:
        return load_from_disk(path)
    # Of JSON that lacks a name or has another type, and of damaged Arrow files.
    except (ArrowException, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise TrainingError(
            f"{path} cannot be read as a data set that save_to_disk wrote ({in_a_line(error)}): save it again."
        ) from error


def check_folder(option: str, path: Path) -> None:
    """Refuses folders that are not one data set."""
    if (path / _SPLITS).is_file():
        inside = ", ".join(sorted(str(state.parent) for state in path.glob(f"*/{_ONE}")))
        raise TrainingError(f"--{option} {path} has several splits: name the folder of one ({inside}).")
    if not (path / _ONE).is_file():
        raise TrainingError(
            f"--{option} {path} is a folder without a data set of save_to_disk: give files, patterns such as "
            f"'{path}/*.jsonl', or --dataset_name."
        )


def rows_of_folder(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of a folder with their positions, as Arrow has them: images and sounds stay undecoded."""
    rows = load_saved(path)
    assert isinstance(rows, Dataset)
    check_names(rows.column_names, str(path))
    number = 0
    try:
        for batch in rows.with_format("arrow").iter(batch_size=_ROWS_AT_ONCE):
            for row in batch.to_pylist():
                number += 1
                yield f"{path}, row {number}", row
    except (ArrowException, OSError, ValueError) as error:
        raise TrainingError(f"{path} cannot be read after row {number} ({in_a_line(error)}): save it again.") from error


CACHE_FORMAT = 1
"""Of what is cached of a file. To raise with every change of what readers and tasks make of it."""


def stamp_of(path: Path) -> tuple[tuple[str, int, int], ...]:
    """Names, sizes and times of a file, or of all files of a folder, by which what is cached of them is known."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    # No list: `datasets` would take its items for shards.
    found = tuple((file.name, status.st_size, status.st_mtime_ns) for file in files for status in [file.stat()])
    return (*found, ("", CACHE_FORMAT, 0))
