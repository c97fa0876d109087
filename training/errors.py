# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""What stops a run with a sentence instead of a traceback, and checks that two readers share."""

import json
from typing import Any


class TrainingError(Exception):
    """A problem that the user can solve; its message is one sentence or two that say what is wrong and what to do."""


class ProcessError(TrainingError):
    """A problem that this process alone has, so that it has to speak itself."""


def check_unicode(text: str, where: str) -> str:
    """The text, unless it has half of a surrogate pair, which JSON can spell and no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TrainingError(f"{where}: not text in Unicode ({error}); write the character as one.") from error
    return text


def parse_json_line(line: str, where: str, **options: Any) -> dict[str, Any]:
    """The object that a line of JSON spells.

    Args:
        line: of a file.
        where: it stands there.
        options: of `json.loads`.

    Raises:
        TrainingError: it is no JSON, or no object.
    """
    try:
        row = json.loads(line, **options)
    except json.JSONDecodeError as error:
        raise TrainingError(f"{where}: not JSON ({error}); write one object per line.") from error
    if not isinstance(row, dict):
        raise TrainingError(f"{where}: not a JSON object; write one object per line.")
    return row
