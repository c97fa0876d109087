# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Text files for pre-training that cannot be read from any byte: packed ones, and tables.

They are rewritten once, piece by piece, into the cache of `datasets`, as `datasets` itself does with packed files; a
file that has changed since is rewritten.
"""

import json
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import datasets
from datasets.utils import tqdm
from filelock import FileLock

from ..errors import TrainingError, check_unicode, shown
from .folders import stamp_of
from .json_arrays import begins_array
from .opening import format_of, is_packed, opened
from .tables import read_table


JSON_FORMATS = (".jsonl", ".json")

_PIECE = 2**20


def text_of_row(row: dict[str, object], column: str, where: str) -> str:
    """The text of a row, whose position is `where`."""
    if column not in row:
        columns = shown(sorted(row))
        raise TrainingError(f"{where}: no column {column!r} among {columns}; name it with --text_column.")
    if not isinstance(text := row[column], str):
        raise TrainingError(f"{where}: column {column!r} holds {shown(text)}, which is not text; make it a string.")
    return check_unicode(text, where)


def readable_anywhere(path: Path, column: str) -> Path:
    """The file itself, if it is plain text or JSON lines; otherwise one with the same text that is.

    Args:
        path: the file, or a folder of `save_to_disk`.
        column: of tables, the one with the text; the others are left out.

    Raises:
        TrainingError: the file cannot be read to its end, a row has no text in the column, or the disk is full.
    """
    kind = format_of(path)
    is_table = path.is_dir() or kind not in (".txt", *JSON_FORMATS) or (kind == ".json" and begins_array(path))
    if not is_table and not is_packed(path):
        return path
    identity = repr((str(path.resolve()), stamp_of(path), column if is_table else None))
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "t5_experimental"
    target = folder / f"{sha256(identity.encode()).hexdigest()[:32]}{'.jsonl' if is_table else kind}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):  # of several processes, the first writes
            if not target.exists():
                _write(path, _lines_of_column(path, column) if is_table else _bytes_of(path), target)
    except OSError as error:
        raise TrainingError(
            f"{path} cannot be unpacked to {folder} ({error.strerror or error}): make room there, or set "
            "HF_DATASETS_CACHE to another folder."
        ) from error
    return target


def _write(path: Path, pieces: Iterator[bytes], target: Path) -> None:
    part = target.with_name(f"{target.name}.part")
    try:
        with part.open("wb") as file, tqdm(desc=f"Unpacking {path.name}", unit="B", unit_scale=True) as bar:
            for piece in pieces:
                file.write(piece)
                bar.update(len(piece))
        part.rename(target)
    finally:
        part.unlink(missing_ok=True)


def _bytes_of(path: Path) -> Iterator[bytes]:
    with opened(path) as file:
        while piece := file.read(_PIECE):
            yield piece


def _lines_of_column(path: Path, column: str) -> Iterator[bytes]:
    for where, row in read_table(path):
        yield json.dumps({column: text_of_row(row, column, where)}, ensure_ascii=False).encode() + b"\n"
