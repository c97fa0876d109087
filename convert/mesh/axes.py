# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Rearranging arrays between the axes of a Mesh variable and those of our parameter, and exact casts.

Axes are written as t5_experimental/original.py describes; one table of sizes gives both shapes.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from t5_experimental.original import labels_of, shape_of

from ..errors import ConversionError


def fits(axes: str, other: str, sizes: Mapping[str, int]) -> bool:
    """Whether labels that only one of the two has are of size 1: an array can only then go from one to the other."""
    return all(sizes[label] == 1 for label in set(labels_of(axes)) ^ set(labels_of(other)))


def rearrange(array: np.ndarray, source: str, target: str, sizes: Mapping[str, int]) -> np.ndarray:
    """Same numbers with the axes of the target. The inverse is the same call with source and target exchanged.

    Args:
        array: shape `shape_of(source, sizes)`.
        source: axes of the array.
        target: axes of the result; they have the source's labels, save for labels of size 1.
        sizes: size of every label.

    Returns:
        A view of shape `shape_of(target, sizes)`; no number is copied as long as merged labels are neighbors in
        memory, which they are in every rule.
    """
    have, want = labels_of(source), labels_of(target)
    for label in want:
        if label not in have:
            have.append(label)
    split = array.reshape([sizes[label] for label in have])
    order = [have.index(label) for label in want] + [k for k, label in enumerate(have) if label not in want]
    return split.transpose(order).reshape(shape_of(target, sizes))


def describe(source: str, target: str) -> str:
    """What `rearrange` does, in words for a report."""
    if labels_of(source) == labels_of(target):
        return "copy" if source == target else "reshape"
    return "transpose" if len(source.split()) == len(target.split()) else "merge heads, transpose"


def cast(block: np.ndarray, dtype: np.dtype[Any], name: str) -> np.ndarray:
    """Casts with rounding to nearest even.

    Args:
        block: any shape.
        dtype: target dtype.
        name: variable that the block is part of, for the error.

    Raises:
        ConversionError: a finite number is too large for the target.
    """
    if block.dtype == dtype:
        return block
    with np.errstate(over="ignore"):
        result = block.astype(dtype)
    if dtype.itemsize <= block.dtype.itemsize and not np.isfinite(result).all():
        lost = np.isfinite(block) & ~np.isfinite(result)
        if lost.any():
            worst = float(np.abs(block[lost]).max())
            raise ConversionError(
                f"{name} holds {worst:.6g}, which does not fit {dtype.name}: convert with --dtype bfloat16 or float32."
            )
    return result
