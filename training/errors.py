# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Errors that end a run with a sentence instead of a traceback, and checks that several readers share."""

import json
from collections.abc import Callable, Iterable
from typing import Any


class TrainingError(Exception):
    """A problem that the user can solve; its message says in one or two sentences what is wrong and what to do."""


class ProcessError(TrainingError):
    """A problem of this process alone, so this process must report it."""


_LONGEST = 300


def in_a_line(error: object) -> str:
    """An error or a value as part of a sentence: one line, no control characters, limited length."""
    # Python's own words name its stack, in other words on each version.
    said = "nested too deeply" if isinstance(error, RecursionError) else str(error)
    text = " ".join("".join(letter if letter.isprintable() else " " for letter in said).split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def shown(value: Any) -> str:
    """The repr of a value, truncated if it is long."""
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def check_at_least(options: Any, lowest: float, *names: str) -> None:
    """Refuses options, given by name, that are lower than `lowest`; None means that an option was not given."""
    for name in names:
        if (value := getattr(options, name)) is not None and not value >= lowest:
            given = f"{value:g}" if isinstance(value, float) else value
            raise TrainingError(f"--{name} is {given}: it must be at least {lowest:g}.")


def check_unicode(text: str, where: str) -> str:
    """The text, unless it has an unpaired surrogate, which JSON can encode but no tokenizer accepts."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TrainingError(f"{where}: not Unicode text ({error}); write the character as one.") from error
    return text


def decode_line(line: bytes, where: str) -> str:
    """Decodes UTF-8.

    Args:
        line: of the file, or several lines.
        where: position of the line, for messages.

    Raises:
        TrainingError: the encoding is different. In UTF-16 and UTF-32, Latin letters have zero bytes between them.
    """
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise TrainingError(
            f"{where}: byte {error.start + 1} is not UTF-8 text ({error.reason}); convert the file to UTF-8."
        ) from error
    if "\0" in text:
        raise TrainingError(f"{where}: there is a NUL byte, as in UTF-16; convert the file to UTF-8.")
    return text


def check_names(names: Iterable[str], where: str) -> None:
    """Refuses columns with the same name, of which a reader would take one; unnamed columns are unused anyway."""
    seen = set()
    for name in names:
        if name in seen and name.strip():
            raise TrainingError(f"{where}: the column {shown(name)} is there twice; rename or remove one of the two.")
        seen.add(name)


def unique_names(where: str) -> Callable[[list[tuple[str, Any]]], dict[str, Any]]:
    """A hook for `json.loads` that refuses objects with a duplicate name, of which Python would take the last."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in pairs:
            if name in found:
                raise TrainingError(
                    f"{where}: {shown(name)} is there twice in one object; rename or remove one of the two."
                )
            found[name] = value
        return found

    return unique


def parse_json_line(line: str, where: str, **options: Any) -> dict[str, Any]:
    """Parses a JSON object from a line.

    Args:
        line: of a file.
        where: position of the line, for messages.
        options: of `json.loads`.

    Raises:
        TrainingError: the line is not a JSON object, or has a duplicate name.
    """
    try:
        row = json.loads(line, object_pairs_hook=unique_names(where), **options)
    except (ValueError, RecursionError) as error:
        raise TrainingError(f"{where}: not JSON ({in_a_line(error)}); write one object per line.") from error
    if not isinstance(row, dict):
        raise TrainingError(f"{where}: not a JSON object; write one object per line.")
    return row
