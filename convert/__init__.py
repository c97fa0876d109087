# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Converter from Mesh TensorFlow T5 checkpoints to folders that `from_pretrained` loads (command `t5-experimental`)."""

from typing import TYPE_CHECKING, Any

from .errors import ConversionError


if TYPE_CHECKING:
    from .pipeline import Inspection, Summary, convert, inspect, verify


__all__ = ["ConversionError", "Inspection", "Summary", "convert", "inspect", "verify"]


def __getattr__(name: str) -> Any:
    """Imports what works with checkpoints, and torch with it, when it is used: the command's help needs neither."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import pipeline

    return getattr(pipeline, name)
