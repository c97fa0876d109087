# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""What a caller, or the record of an earlier conversion, may ask of a plan."""

import re
from collections.abc import Mapping
from typing import Any

from ..errors import ConversionError
from ..mesh.rules import FAMILY_SECTIONS
from ..readable import shown
from .format import FORMATS


DTYPES = ("source", "float32", "bfloat16", "float16")
# Of the weights in ONNX graphs.
ONNX_DTYPES = ("float32", "float16")
# Versions of their operators; the default is the first that has GELU as one operator.
OPSETS = range(18, 24)
OPSET = 20
# Of matrices in a GGUF file.
GGUF_DTYPES = ("float32", "float16", "bfloat16", "q8_0")

# Bytes of the units of a size.
_UNITS = {"B": 1}
_UNITS |= {f"{letter}B": 1000**power for power, letter in enumerate("KMGT", 1)}
_UNITS |= {f"{letter}IB": 1024**power for power, letter in enumerate("KMGT", 1)}

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


def parse_size(text: str) -> int:
    """Bytes in a size such as "5GB", "500MB" (powers of ten) or "2GiB" (powers of two).

    Raises:
        ValueError: it is none.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Z]*)", text.strip().upper())
    unit = _UNITS.get(match[2] or "B") if match else None
    if match is None or unit is None or not 1 <= float(match[1]) * unit < 2**63:
        raise ValueError(f"{text!r} is not a size: write it as 5GB, 500MB or 2GiB")
    return int(float(match[1]) * unit)
