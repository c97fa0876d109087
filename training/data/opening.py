# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Data files as bytes, unpacked while they are read: neither a large file nor one that unpacks to very much fills the
memory.

gzip is Python's own; Zstandard comes with pyarrow, as `datasets` does.
"""

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import IO, Any, cast

import pyarrow

from ..errors import TrainingError, in_a_line


PACKED = (".gz", ".zst")
"""Extensions of packed files, after that of the format."""

_BUFFER = 2**16


def format_of(path: Path) -> str:
    """The extension that tells a file's format, in lower case: `.jsonl` for `a.jsonl` and for `a.JSONL.gz`."""
    return (path.with_suffix("") if is_packed(path) else path).suffix.lower()


def stem_of(path: Path) -> str:
    """A file's name without extensions of format and packing: `a` for `a.jsonl.gz`."""
    return (path.with_suffix("") if is_packed(path) else path).stem


def is_packed(path: Path) -> bool:
    """Whether a file's name says that it is packed."""
    return path.suffix.lower() in PACKED


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """Opens a file for reading; a packed one is unpacked as it is read.

    Raises:
        TrainingError: the packed file is damaged or truncated, also if that shows later, while the file is read, or it
            cannot be unpacked here.
    """
    if not is_packed(path):
        with path.open("rb") as file:
            yield file
        return
    try:
        with path.open("rb") as packed, _unpacked(path, packed) as file:
            yield file
    # gzip's errors, and pyarrow's; a gzip file that ends early is an EOFError.
    except (EOFError, zlib.error, OSError) as error:
        kind = {".gz": "gzip", ".zst": "Zstandard"}[path.suffix.lower()]
        raise TrainingError(
            f"{path} cannot be unpacked ({in_a_line(error)}): it is damaged, truncated or no {kind} file; get it again."
        ) from error


def _unpacked(path: Path, packed: IO[bytes]) -> IO[bytes]:
    if path.suffix.lower() == ".gz":
        return BufferedReader(cast(Any, gzip.GzipFile(fileobj=packed, mode="rb")), _BUFFER)
    if not pyarrow.Codec.is_available("zstd"):
        raise TrainingError(
            f"{path} needs a pyarrow with Zstandard, as from `pip install pyarrow`; or unpack the file."
        )
    return BufferedReader(cast(Any, pyarrow.CompressedInputStream(packed, "zstd")), _BUFFER)
