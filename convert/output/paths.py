# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""What paths of an output must be, before the first byte is written."""

import os
from pathlib import Path

from ..errors import ConversionError


def check_encodable(output: Path) -> None:
    """Raises if files below a path could not be written or loaded: the libraries of both take UTF-8 names alone."""
    try:
        fits = "\0" not in os.fspath(output) and bool(os.fspath(output).encode())
    except UnicodeEncodeError:
        fits = False
    if not fits:
        raise ConversionError(f"the name {output} is not UTF-8 text, without which nothing loads it: choose another.")
