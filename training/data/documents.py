# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Documents of text files of any size, read from any byte range.

Ranges that split a file also split its documents: each document belongs to the range in which it begins. Nothing has to
be indexed or read in advance. `datasets` streams text, too, but cannot start in the middle of a file.
"""

import codecs
import hashlib
import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..errors import TrainingError, decode_line, parse_json_line
from .patterns import check_format, find_paths
from .rewriting import JSON_FORMATS, readable_anywhere, text_of_row
from .tables import READERS


DOCUMENT_FORMATS = (".txt", *READERS)

MOST_BYTES = 64_000_000
"""Maximum size of a document, which is held in memory, more than once while it is tokenized."""

DIGEST = "text of the files"
# Parts of the text that are looked at to identify it, and the bytes of each.
_PARTS, _PART_BYTES = 512, 512


@dataclass(frozen=True)
class DocumentFile:
    """A file of documents, in UTF-8.

    Attributes:
        path: as it was given; its extension tells the format.
        size: of its content, in bytes.
        column: of JSON lines and tables, the one with the text.
        document_per_line: of text files; otherwise blank lines separate documents.
        rewritten: the file that has the content, if it is packed or a table.
    """

    path: Path
    size: int
    column: str = "text"
    document_per_line: bool = False
    rewritten: Path | None = None

    @property
    def content(self) -> Path:
        """Text or JSON lines, to be read from any byte."""
        return self.path if self.rewritten is None else self.rewritten

    @property
    def has_columns(self) -> bool:
        """Whether a document is a column of a row."""
        return self.content.suffix.lower() in JSON_FORMATS

    def read(self, start: int, stop: int) -> Iterator[str]:
        """Documents that begin at the bytes from `start` to `stop`; those without text are left out.

        Raises:
            TrainingError: the file does not have the format of its extension, or a document is larger than
                [`MOST_BYTES`].
        """
        if start >= stop:
            return
        with self.content.open("rb") as file:
            lines = _lines_from(file, start, self.path)
            if self.has_columns:
                documents = (self._column_of(place, line) for place, line in _within(lines, stop))
            elif self.document_per_line:
                documents = (self._decode(place, line) for place, line in _within(lines, stop))
            else:
                documents = (self._decode(place, part) for place, part in _paragraphs(lines, start, stop, self.path))
            for document in documents:
                if text := document.strip():
                    yield text

    def _decode(self, place: int, encoded: bytes) -> str:
        if place == 0:
            encoded = encoded.removeprefix(codecs.BOM_UTF8)
        return decode_line(encoded, f"{self.path}, text from byte {place} on")

    def _column_of(self, place: int, line: bytes) -> str:
        where = f"{self.path}, line at byte {place}"
        # Python limits the digits of integers, and the numbers are not used.
        return text_of_row(parse_json_line(self._decode(place, line), where, parse_int=float), self.column, where)


def _lines_from(file: BinaryIO, start: int, path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines that begin at `start` or later, with their positions; `path` is the file's name in messages."""
    place = max(start - 1, 0)
    file.seek(place)
    if start > 0:
        place += _skip_line(file)  # the rest of the previous line
    while line := file.readline(MOST_BYTES + 1):
        if len(line) > MOST_BYTES:
            raise TrainingError(
                f"{path} has a line of more than {MOST_BYTES / 1e6:g} MB at byte {place}, which is too long for a "
                "document: split it with line breaks."
            )
        yield place, line
        place += len(line)


def _skip_line(file: BinaryIO) -> int:
    """Reads to the end of a line without holding it in memory; returns the number of bytes."""
    count = 0
    while part := file.readline(2**20):
        count += len(part)
        if part.endswith(b"\n"):
            break
    return count


def _within(lines: Iterator[tuple[int, bytes]], stop: int) -> Iterator[tuple[int, bytes]]:
    for place, line in lines:
        if place >= stop:
            return
        if line.strip():
            yield place, line


def _paragraphs(
    numbered: Iterator[tuple[int, bytes]], start: int, stop: int, path: Path
) -> Iterator[tuple[int, bytes]]:
    """Runs of lines that are not blank, with their positions.

    A run belongs to the range of the blank line before it, or of the file's first byte, so that no range has to look
    back.
    """
    begins_here, first, lines = start == 0, 0, list[bytes]()
    for place, line in numbered:
        if not line.strip():
            if lines:
                yield first, b"".join(lines)
            begins_here, lines = True, []
            if place >= stop:
                return
        elif begins_here:
            first = first if lines else place
            lines.append(line)
            if place + len(line) - first > MOST_BYTES:
                raise TrainingError(
                    f"{path} has more than {MOST_BYTES / 1e6:g} MB from byte {first} on without a blank line, "
                    "which separates documents: give --document_per_line if every line is one."
                )
        elif place >= stop:
            return
    if lines:
        yield first, b"".join(lines)


def find_files(option: str, patterns: Sequence[str], column: str, document_per_line: bool) -> list[DocumentFile]:
    """Files and folders of names and glob patterns, each once (also if links lead to it), sorted by name.

    Raises:
        TrainingError: a pattern matches nothing, an extension is unknown, or files are empty; or one that has to be
            rewritten, see [`~t5_experimental.training.data.rewriting`], cannot be read to its end.
    """
    paths = find_paths(option, patterns)
    for path in paths:
        check_format(option, path, DOCUMENT_FORMATS)
    files = []
    for path in paths:
        content = readable_anywhere(path, column)
        size = content.stat().st_size
        files.append(DocumentFile(path, size, column, document_per_line, None if content == path else content))
    for file in files:
        _check_line_ends(option, file)
        if next(file.read(0, file.size), None) is None:
            raise TrainingError(f"--{option} {file.path} has no text: give files with at least one document each.")
    return files


def _check_line_ends(option: str, file: DocumentFile) -> None:
    """Refuses files in which everything would be one line."""
    with file.content.open("rb") as content:
        start = content.read(2**20)
    if b"\r" in start and b"\n" not in start and not file.has_columns:
        raise TrainingError(
            f"--{option} {file.path}: its lines end with carriage returns alone, which do not separate documents: "
            "convert them to line feeds."
        )


class Windows:
    """The documents of several files, split into ranges of about equal size as if the files were one.

    Args:
        files: at least one, not all empty.
        size: maximum bytes of a range.
        least: minimum number of ranges.
    """

    def __init__(self, files: Sequence[DocumentFile], size: int, least: int):
        self._files = files
        self.total = sum(file.size for file in files)
        self.count = max(-(-self.total // size), least)

    @cached_property
    def digest(self) -> str:
        """Twelve digits that identify the text. Only evenly spaced parts are read, since there may be any amount of it:
        a change of a few lines of many may go unnoticed."""
        ends = list(accumulate(file.size for file in self._files))
        places = np.unique(np.linspace(0, self.total - 1, _PARTS, dtype=np.int64)).tolist()
        digest = hashlib.sha256()
        for index, inside in groupby(places, lambda place: bisect_right(ends, place)):
            file = self._files[index]
            with file.content.open("rb") as content:
                for place in inside:
                    content.seek(place - ends[index] + file.size)
                    digest.update(content.read(_PART_BYTES))
        return digest.hexdigest()[:12]

    def settings(self) -> dict[str, Any]:
        """What the documents depend on, JSON-serializable: names and sizes of the files, with names relative to their
        common folder, which may be moved, and parts of their content."""
        names = [os.path.abspath(file.path) for file in self._files]
        folder = os.path.commonpath([os.path.dirname(name) for name in names])
        kinds = {file.has_columns for file in self._files}
        return {
            "bytes of text": self.total,
            "windows": self.count,
            "files": [
                [os.path.relpath(name, folder), file.size] for name, file in zip(names, self._files, strict=True)
            ],
            DIGEST: self.digest,
            "--text_column": self._files[0].column if True in kinds else None,
            "--document_per_line": self._files[0].document_per_line if False in kinds else None,
        }

    def documents(self, index: int) -> Iterator[str]:
        """The documents of a range; there may be none."""
        start, stop = (place * self.total // self.count for place in (index, index + 1))
        for file in self._files:
            if start < min(file.size, stop) and stop > 0:
                yield from file.read(max(start, 0), min(stop, file.size))
            start, stop = start - file.size, stop - file.size
