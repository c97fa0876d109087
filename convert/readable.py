# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Text from files, made fit for a terminal, for one sentence and for Markdown: it may hold anything."""

import re
import reprlib
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TextIO


# No message needs more; what it says at its beginning and what to do, at its end, are kept.
_LONGEST_MESSAGE = 2000
_KEPT_END = 500

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 100
_SHORT.maxlevel = 4


def readable(text: str) -> str:
    """The text with everything escaped that no letter, sign or blank is: what steers a terminal, turns the direction of
    writing, begins a line, or cannot be encoded."""
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii") for letter in text
    )


def message(text: str) -> str:
    """One line that is not too long to be read."""
    text = readable(text)
    if len(text) > _LONGEST_MESSAGE:
        text = f"{text[: _LONGEST_MESSAGE - _KEPT_END]} … {text[-_KEPT_END:]}"
    return text


def in_a_line(error: Exception) -> str:
    """What an exception says, on one line."""
    return " ".join(str(error).split())


def shown(value: object) -> str:
    """A value of a file as Python writes it, shortened."""
    try:
        return _SHORT.repr(value)
    except (ValueError, RecursionError):  # Python does not write integers of more than some thousand digits.
        return f"a {type(value).__name__} that is too long to be shown"


class OutputError(Exception):
    """Where the command prints takes no more; the message is the system's."""


def say(*lines: str, to: TextIO | None = None) -> None:
    """Prints lines: everything that the command prints goes through here.

    Args:
        lines: texts without line ends.
        to: stdout unless given.
    """
    stream = to or sys.stdout
    if stream is None:  # closed before the command began
        return
    encoding = stream.encoding or "utf-8"
    with writing():
        for line in lines:
            # A terminal that knows fewer letters gets the others escaped, too.
            print(readable(line).encode(encoding, "backslashreplace").decode(encoding), file=stream)


@contextmanager
def writing() -> Iterator[None]:
    """Tells output that cannot be written from other errors; a reader that is gone stays a `BrokenPipeError`."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(error.strerror or str(error)) from error


_ACTIVE = re.compile(
    r"[\\`*\[\]<>&|~$#!]"  # marks, links, HTML, tables, formulas
    r"|(?<![^\W_])_|_(?![^\W_])"  # at the edge of a word; within words it is a letter
    r"|(?<=\w):(?=//)"  # addresses become links by themselves
    r"|^[-+=:](?!\w)|(?<=^\d)[.)]"  # what begins another kind of paragraph
)


def markdown(text: str) -> str:
    """The text as a piece of a Markdown paragraph, heading, list or table that shows it and does nothing else."""
    return _ACTIVE.sub(lambda match: "\\" + match[0], readable(text))


def markdown_code(text: str) -> str:
    """The text as code in Markdown, also within a table."""
    text = readable(text).replace("|", "\\|")
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    blank = " " if "`" in text else ""
    return f"{fence}{blank}{text}{blank}{fence}"


def joined(items: Iterable[object], most: int = 10) -> str:
    """A list in words, cut where it gets long."""
    listed = [str(item) for item in items]
    rest = len(listed) - most
    return ", ".join(listed[:most]) + (f" and {rest} more" if rest > 0 else "")
