# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Converter from Mesh TensorFlow T5 checkpoints to folders that `from_pretrained` loads (command `t5-experimental`)."""

from .errors import ConversionError
from .pipeline import Inspection, Summary, convert, inspect, verify


__all__ = ["ConversionError", "Inspection", "Summary", "convert", "inspect", "verify"]
