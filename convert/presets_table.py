# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""The table of `t5-experimental presets`: what converting each released checkpoint takes."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from t5_experimental.original import FACTORED_FROM, factored_dimensions
from t5_experimental.presets import PRESETS, preset_architecture

from .mesh.parameters import parameters
from .released import BUCKET, VOCABULARY, resolve_released
from .tensors import numpy_dtype


# dtypes that the table gives the output's size for.
OUTPUT_DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class Sizes:
    """What converting a released checkpoint takes; computed from its configuration.

    Attributes:
        parameters: count of numbers in the model.
        weight_bytes: bytes of the weights in the checkpoint, in float32: what is downloaded when it is streamed.
        slot_bytes: bytes of Adafactor's statistics in it, which only `--cache-dir` and `--with-optimizer` download.
        output_bytes: bytes of the tensors in the output, by dtype.
    """

    parameters: int
    weight_bytes: int
    slot_bytes: int
    output_bytes: dict[str, int]


def sizes(name: str) -> Sizes:
    """What converting a released checkpoint takes.

    Raises:
        ValueError: no checkpoint of that name was released.
    """
    found = parameters(preset_architecture(name)).values()
    count = sum(math.prod(parameter.shape) for parameter in found)
    slots = sum(slot_size(parameter.mesh_shape) for parameter in found)
    itemsize = numpy_dtype("float32").itemsize
    output = {dtype: count * numpy_dtype(dtype).itemsize for dtype in OUTPUT_DTYPES}
    return Sizes(count, count * itemsize, slots * itemsize, output)


def presets_table(names: Iterable[str] = PRESETS) -> str:
    """The text that `t5-experimental presets` prints."""
    rows: list[Sequence[str]] = [
        ("name", "family", "parameters", "download", "with slots", *(f"disk, {dtype}" for dtype in OUTPUT_DTYPES))
    ]
    for name in names:
        found = sizes(name)
        amounts = (found.weight_bytes, found.weight_bytes + found.slot_bytes, *found.output_bytes.values())
        rows.append((name, resolve_released(name).family, f"{found.parameters:,}", *map(_gigabytes, amounts)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            text.ljust(width) if column < 2 else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    notes = (
        "",
        f"They are in {BUCKET}/pretrained_models/, their vocabulary is {VOCABULARY}.",
        "download: the weights in float32, which is all that a conversion reads;",
        "with slots: the optimizer's statistics too, which --cache-dir keeps; disk: the tensors of the output.",
    )
    return "\n".join((*lines, *notes))


def slot_size(shape: tuple[int, ...], factored_from: int = FACTORED_FROM) -> int:
    """Count of numbers that Adafactor keeps for a variable of the original's shape."""
    size, factored = math.prod(shape), factored_dimensions(shape, factored_from)
    return size if factored is None else sum(size // shape[k] for k in factored)


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
