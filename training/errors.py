# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""What stops a run with a sentence instead of a traceback, and checks that several readers share."""

import json
from collections.abc import Callable, Iterable
from typing import Any


class TrainingError(Exception):
    """A problem that the user can solve; its message is one sentence or two that say what is wrong and what to do."""


class ProcessError(TrainingError):
    """A problem that this process alone has, so that it has to speak itself."""


_LONGEST = 300


def in_a_line(error: object) -> str:
    """What an error or a value says, as part of a sentence: on one line, without control characters, not endless."""
    text = " ".join("".join(letter if letter.isprintable() else " " for letter in str(error)).split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def shown(value: Any) -> str:
    """A value as Python writes it, cut off where it is long."""
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def check_at_least(options: Any, lowest: float, *names: str) -> None:
    """Refuses options, given by name, that are lower; None was not given."""
    for name in names:
        if (value := getattr(options, name)) is not None and not value >= lowest:
            given = f"{value:g}" if isinstance(value, float) else value
            raise TrainingError(f"--{name} is {given}: it must be at least {lowest:g}.")


def check_unicode(text: str, where: str) -> str:
    """The text, unless it has half of a surrogate pair, which JSON can spell and no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TrainingError(f"{where}: not text in Unicode ({error}); write the character as one.") from error
    return text


def decode_line(line: bytes, where: str) -> str:
    """Text of a file in UTF-8.

    Args:
        line: of the file, or several.
        where: it stands there.

    Raises:
        TrainingError: it is in another encoding. Of UTF-16 and UTF-32, what Latin letters look like in UTF-8 is told by
            the zeros between them.
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
    """Refuses columns of one name, of which a reader would take one; those without a name cannot be asked for."""
    seen = set()
    for name in names:
        if name in seen and name.strip():
            raise TrainingError(f"{where}: the column {shown(name)} is there twice; rename or remove one of the two.")
        seen.add(name)


def unique_names(where: str) -> Callable[[list[tuple[str, Any]]], dict[str, Any]]:
    """A hook of `json.loads` that refuses objects with a name twice, of which Python would take the last."""

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
    """The object that a line of JSON spells.

    Args:
        line: of a file.
        where: it stands there.
        options: of `json.loads`.

    Raises:
        TrainingError: it is no JSON, or no object, or it has a name twice.
    """
    try:
        row = json.loads(line, object_pairs_hook=unique_names(where), **options)
    except (ValueError, RecursionError) as error:
        raise TrainingError(f"{where}: not JSON ({in_a_line(error)}); write one object per line.") from error
    if not isinstance(row, dict):
        raise TrainingError(f"{where}: not a JSON object; write one object per line.")
    return row
