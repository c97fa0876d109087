# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""JSON from an unknown source: bounded in size and depth, and nothing in it is overlooked."""

import json
import re
import stat
from collections import Counter
from pathlib import Path
from typing import Any, NoReturn


# Of the largest file, the record or the header of a model of a hundred thousand tensors.
MAX_BYTES = 2**25


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file.

    Raises:
        OSError: it is no file, or cannot be read.
        ValueError: it is not the JSON of an object in UTF-8, is too large, has a name twice, or values that JSON has
            not.
    """
    if not stat.S_ISREG(path.stat().st_mode):  # reading a pipe would wait for ever
        raise ValueError("it is not a file")
    with path.open("rb") as file:
        return parse_json(file.read(MAX_BYTES + 1))


def parse_json(data: bytes) -> dict[str, Any]:
    """The object that bytes spell; see `read_json`."""
    if len(data) > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES:,} bytes")
    try:
        value = json.loads(data.decode(), object_pairs_hook=_object, parse_constant=_refuse_constant)
        json.dumps(value, ensure_ascii=False).encode()  # JSON can spell halves of characters, which are no text
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError("it is no JSON object")
    return value


def check_plain_name(name: str) -> None:
    """Raises a ValueError unless it is the name of a file in the folder that says it, and of none elsewhere."""
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,250}", name):
        raise ValueError(f"{name!r:.80} is no name of a file in its folder")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"{twice!r:.80} is in it twice")
    return result


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")
