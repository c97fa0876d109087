# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Packages that one kind of source alone needs: imported where it is read, and named where they are missing."""

import importlib
from typing import Any

from ..errors import ConversionError


def import_extra(package: str, extra: str, what: str) -> Any:
    """A package of one of the extras.

    Args:
        package: its name.
        extra: the extra that brings it.
        what: place and kind of what it reads, as "DIR is a checkpoint of T5X".

    Raises:
        ConversionError: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ConversionError(
            f'{what}, and {package}, which reads it, is not installed: pip install "t5-experimental[{extra}]".'
        ) from error
