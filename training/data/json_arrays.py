# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""JSON files that are one array of objects, read object by object: the file need not fit into memory."""

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from ..errors import TrainingError, decode_line, in_a_line, unique_names
from .opening import opened


_PIECE = 2**20
# Longest object, in characters: the file has no lines that would limit what is held in memory.
_MOST = 2**28
_SPACE = re.compile(r"[ \t\r\n]*")


# An escape or a literal that is cut is no longer than this.
_LONGEST_TOKEN = 16


def begins_array(path: Path) -> bool:
    """Whether the first character of a JSON file opens an array; otherwise it has one object in every line."""
    with opened(path) as file:
        start = file.read(_PIECE).removeprefix(codecs.BOM_UTF8)
    return start.lstrip(b" \t\r\n").startswith(b"[")


def rows_of_array(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of an array with their positions; numbers as they are written.

    Raises:
        TrainingError: the file is not one array of objects, or an object has a name twice.
    """
    with opened(path) as file:
        text = _Text(path, file)
        text.take("[", "begin with [")
        separator, expected = "", "{ or ]"
        while (mark := text.next_mark()) != "]":
            if separator and mark == separator:
                text.take(separator, "")
                mark = text.next_mark()
            elif separator:
                text.refuse("a comma or ] has to follow an object")
            if mark != "{":
                text.refuse(f"{expected} is expected, since the array has objects alone")
            yield text.take_object()
            separator, expected = ",", "{"
        text.take("]", "")
        if text.next_mark():
            text.refuse("the array has ended, and nothing may follow")


class _Text:
    """A file's text from a place on, which moves forward."""

    def __init__(self, path: Path, file: IO[bytes]):
        self._path, self._file = path, file
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._text, self._place, self._line = "", 0, 1
        self._line_read = 1
        self._ended = False

    def next_mark(self) -> str:
        """The next character that is not white space; empty at the end of the file."""
        while True:
            self._move(_SPACE.match(self._text, self._place).end())  # type: ignore[union-attr]  # matches always
            if self._place < len(self._text):
                return self._text[self._place]
            if not self._read():
                return ""

    def take(self, mark: str, rule: str) -> None:
        """Moves behind a character that has to come next."""
        if self.next_mark() != mark:
            self.refuse(f"it has to {rule}")
        self._move(self._place + 1)

    def take_object(self) -> tuple[str, dict[str, Any]]:
        """The object that begins here, and its position."""
        where = f"{self._path}, line {self._line}"
        decoder = json.JSONDecoder(object_pairs_hook=unique_names(where), parse_int=str, parse_float=str)
        while True:
            try:
                row, end = decoder.raw_decode(self._text, self._place)
            except (ValueError, RecursionError) as error:
                if isinstance(error, json.JSONDecodeError) and not self._may_go_on(error):
                    self._refuse_object(error)
                held = len(self._text) - self._place
                if held > _MOST:
                    self.refuse(f"an object of more than {_MOST / 1e6:.0f} MB")
                # The object may end in what is not read yet; twice as much of it, so that little is parsed again.
                if isinstance(error, RecursionError) or not self._read(max(held, _PIECE)):
                    self._refuse_object(error)
                continue
            self._move(end)
            return where, row

    def _may_go_on(self, error: json.JSONDecodeError) -> bool:
        """Whether what is wrong may be that the rest has not been read yet."""
        return error.msg.startswith("Unterminated string") or error.pos > len(self._text) - _LONGEST_TOKEN

    def refuse(self, problem: str) -> None:
        """Raises an error for what comes next."""
        if not self.next_mark():
            problem = "the file ends within the array, and is truncated or lacks a ]"
        raise TrainingError(f"{self._path}, line {self._line}: {problem}; write one array of objects.")

    def _refuse_object(self, error: ValueError | RecursionError) -> None:
        line, problem = self._line, in_a_line(error)
        if isinstance(error, json.JSONDecodeError):
            line, problem = line + self._text.count("\n", self._place, error.pos), error.msg
        begun = f" in the object of line {self._line}" if line > self._line else ""
        raise TrainingError(
            f"{self._path}, line {line}: not JSON{begun} ({problem}); write one array of objects."
        ) from error

    def _move(self, place: int) -> None:
        self._line += self._text.count("\n", self._place, place)
        self._place = place

    def _read(self, size: int = _PIECE) -> bool:
        """Reads more; whether there was anything."""
        if self._ended:
            return False
        piece = self._file.read(size)
        self._ended = not piece
        try:
            new = self._decoder.decode(piece, final=self._ended)
        except UnicodeDecodeError as error:
            before = error.object[: error.start]
            number = self._line_read + before.count(b"\n")
            decode_line(error.object.split(b"\n")[before.count(b"\n")], f"{self._path}, line {number}")
            raise
        if "\0" in new:
            number = self._line_read + new[: new.index("\0")].count("\n")
            decode_line(b"\0", f"{self._path}, line {number}")
        self._line_read += new.count("\n")
        self._text, self._place = self._text[self._place :] + new, 0
        return not self._ended
