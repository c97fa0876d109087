# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""From a Mesh variable to the bytes of our tensor, block by block: what is written, and what verification expects."""

from collections.abc import Iterator

import numpy as np

from .arrays import cast, numpy_dtype
from .entries import Entry
from .errors import ConversionError


# Memory that a tensor needs besides itself: a block with our axes and the same block cast. Small enough for the caches
# of a processor, which is what makes transposing fast.
BLOCK_BYTES = 4 * 2**20

# Columns of a transposed block that are filled at a time: one cache line of each of the source's rows, several times.
_TILE = 64

# Bits of an exponent that is all ones, which only infinities and what is not a number have, for dtypes of two bytes.
_EXPONENTS = {"bfloat16": 0x7F80, "float16": 0x7C00}


def output_blocks(entry: Entry, array: np.ndarray, allow_nonfinite: bool = False) -> Iterator[np.ndarray]:
    """The bytes of a tensor of the output, in order.

    Args:
        entry: its plan.
        array: the Mesh variable, of the shape and dtype that the plan says.
        allow_nonfinite: let infinities and what is not a number pass.

    Yields:
        uint8 [bytes], valid until the next block is asked for.

    Raises:
        ConversionError: the array is not what the plan says, holds an infinity or something that is not a number, or a
            number too large for its dtype.
    """
    if array.shape != entry.source.shape or array.dtype.name != entry.source.dtype:
        raise ConversionError(
            f"{entry.source.name} was read as {array.dtype.name} {list(array.shape)}, but the index says "
            f"{entry.source.dtype} {list(entry.source.shape)}: copy the checkpoint again."
        )
    dtype = numpy_dtype(entry.dtype)
    view = entry.to_ours(array)
    if view.ndim == 0:
        view = view[None]
    row_bytes = max(array.dtype.itemsize, dtype.itemsize) * (view[:1].size or 1)
    rows = max(1, BLOCK_BYTES // row_bytes)
    for start in range(0, view.shape[0], rows):
        block = _contiguous(view[start : start + rows])
        if not allow_nonfinite and not is_finite(block):
            raise ConversionError(
                f"{entry.source.name} holds infinities or values that are not numbers: the run that wrote it had gone "
                "wrong; take an earlier checkpoint, or pass --allow-nonfinite."
            )
        yield cast(block, dtype, entry.source.name).reshape(-1).view(np.uint8)


def _contiguous(view: np.ndarray) -> np.ndarray:
    """A copy in C order, unless the view has that already; a transposed one is copied tile by tile."""
    if view.flags.c_contiguous or view.ndim != 2 or view.strides[0] >= view.strides[1]:
        return np.ascontiguousarray(view)
    result = np.empty(view.shape, view.dtype)
    for start in range(0, view.shape[1], _TILE):
        result[:, start : start + _TILE] = view[:, start : start + _TILE]
    return result


def is_finite(block: np.ndarray) -> bool:
    """Whether all numbers are finite.

    Args:
        block: floats, any shape, C order.
    """
    if not block.size:
        return True
    exponent = _EXPONENTS.get(block.dtype.name)
    if exponent is not None:
        return bool(((block.view(np.uint16) & exponent) != exponent).all())
    # The extremes tell, without a truth value for every number in memory: what is not a number passes through both.
    return bool(np.isfinite(block.min()) and np.isfinite(block.max()))
