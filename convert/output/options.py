# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""What a caller, or the record of an earlier conversion, may ask of a plan."""

from collections.abc import Mapping
from typing import Any

from ..errors import ConversionError
from ..mesh.rules import FAMILY_SECTIONS
from ..readable import shown
from .format import FORMATS


DTYPES = ("source", "float32", "bfloat16", "float16")

_CHOICES: Mapping[str, tuple[str, ...]] = {
    "family": ("auto", *FAMILY_SECTIONS),
    "dtype": DTYPES,
    "output_format": FORMATS,
}
_FLAGS = ("encoder_only", "optimizer")
_COUNTS = ("max_shard_size", "d_kv")
_OPTIONAL = ("d_kv", "feed_forward_proj")


def check_options(options: Mapping[str, Any]) -> None:
    """Raises a ConversionError for a value that an option of `pipeline.inspect` cannot have.

    Args:
        options: value by name.
    """
    for name, value in options.items():
        if name in _CHOICES:
            fits, wanted = value in list(_CHOICES[name]), f"one of {', '.join(_CHOICES[name])}"
        elif name in _FLAGS:
            fits, wanted = isinstance(value, bool), "True or False"
        elif name in _COUNTS:
            fits, wanted = isinstance(value, int) and not isinstance(value, bool) and value >= 1, "a positive integer"
        else:
            fits, wanted = isinstance(value, str), "text"
        if not fits and not (name in _OPTIONAL and value is None):
            raise ConversionError(f"the option {name} is {shown(value)}: it must be {wanted}.")
