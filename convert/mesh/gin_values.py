# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Values of a gin file by type and range: everything that an architecture takes from one comes through here."""

import math
from typing import Any

from ..errors import ConversionError
from ..readable import shown
from .gin_syntax import GinFile, Reference


# What a dimension of a tensor can be at most; the variables have the last word on it.
MAX_SIZE = 2**31 - 1


def names(value: Any) -> Any:
    """The value with references replaced by their names."""
    if isinstance(value, Reference):
        return value.name
    if isinstance(value, list | tuple):
        return type(value)(names(item) for item in value)
    if isinstance(value, dict):
        return {key: names(item) for key, item in value.items()}
    return value


def integer(gin: GinFile, what: str, value: Any, least: int = 1, most: int = MAX_SIZE) -> int:
    """A size or a count.

    Args:
        gin: the file, for messages.
        what: the parameter, for messages.
        value: what the file says.
        least: smallest that makes sense.
        most: greatest that makes sense.

    Raises:
        ConversionError: it is something else.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        _refuse(gin, what, value, f"it must be an integer from {least} to {most}")
    return int(value)


def number(gin: GinFile, what: str, value: Any, below: float = math.inf) -> float:
    """A rate or another finite number from 0 on, less than `below`. Arguments and errors are those of `integer`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < below:
        limit = "finite number from 0 on" if below == math.inf else f"number from 0 to less than {below:g}"
        _refuse(gin, what, value, f"it must be a {limit}")
    return float(value)


def flag(gin: GinFile, what: str, value: Any) -> bool:
    """True or False. Arguments and errors are those of `integer`."""
    if not isinstance(value, bool):
        _refuse(gin, what, value, "it must be True or False")
    return bool(value)


def items(gin: GinFile, what: str, value: Any) -> list[Any]:
    """Entries of a list. Arguments and errors are those of `integer`."""
    if not isinstance(value, list | tuple):
        _refuse(gin, what, value, "it must be a list")
    return list(value)


def _refuse(gin: GinFile, what: str, value: Any, wanted: str) -> None:
    raise ConversionError(f"{gin.name} sets {what} = {shown(names(value))}: {wanted}.")
