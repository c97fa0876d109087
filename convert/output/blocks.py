# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""From a Mesh variable to the bytes of our tensor, block by block: what is written, and what verification expects."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..errors import ConversionError
from ..mesh.axes import cast
from ..plan.tensors import Entry
from ..tensors import Memory, TensorReader, numpy_dtype


# Bytes of a block with our axes. All blocks that are valid at a time, and the next one, should fit into the caches of a
# processor: with blocks of 4 MB, conversions of base took 1.3 to 2 times as long on two cores of a Xeon.
BLOCK_BYTES = 2 * 2**20

# A variable of at most WHOLE_BYTES is transposed in memory as a whole, so that it is read once; of a larger one,
# BAND_BYTES of neighboring columns are read at a time.
WHOLE_BYTES = 48 * 2**20
BAND_BYTES = 32 * 2**20

# Read at a time into a matrix in memory: what was read is still in the processor's cache when it is copied there.
_READ_BYTES = 2**19

# Blocks that are valid at the same time, so that one can be written while the next is made.
VALID_BLOCKS = 3

# Columns of a transposed block that are filled at a time: as many of the source's rows stay in the cache.
_TILE = 64

_CACHE_LINE = 64

# Bits of an exponent that is all ones, which only infinities and NaNs have, for dtypes of two bytes.
_EXPONENTS = {"bfloat16": 0x7F80, "float16": 0x7C00}


class Transfer:
    """Reads variables and turns them into the bytes of our tensors.

    Args:
        reader: the source; its checksums are checked before, or while, a variable is used.
        allow_nonfinite: let infinities and NaNs pass.
    """

    def __init__(self, reader: TensorReader, allow_nonfinite: bool = False) -> None:
        self._reader = reader
        self._allow_nonfinite = allow_nonfinite
        # Fresh memory for every block would cost more than all copying: the system hands it out zeroed, page by page.
        self._memory = [np.empty(0, np.uint8)] * (VALID_BLOCKS + 1)
        self._band_memory = np.empty(0, np.uint8)

    def blocks(self, entry: Entry) -> Iterator[np.ndarray]:
        """The bytes of a tensor of the output, in order.

        Args:
            entry: its plan.

        Yields:
            uint8 [bytes], read-only; it, and the `VALID_BLOCKS - 1` before it, stay as they are until the next one.

        Raises:
            ConversionError: the variable cannot be read or is not what the plan says; it holds an infinity, a NaN or
                a number too large for its dtype.
        """
        for block in self._rearranged(entry):
            try:
                yield self._converted(entry, block)
            except ConversionError:
                # Damaged bytes make impossible numbers, too, and then they are to blame.
                self._reader.check(entry.source.name)
                raise

    def _converted(self, entry: Entry, block: np.ndarray) -> np.ndarray:
        """uint8 [bytes], read-only, of numbers with our axes."""
        if not self._allow_nonfinite and not is_finite(block):
            raise ConversionError(
                f"{entry.source.name} holds infinities or NaNs: the run that wrote it had gone wrong; take "
                "an earlier checkpoint, or pass --allow-nonfinite."
            )
        result = cast(block, numpy_dtype(entry.dtype), entry.source.name).reshape(-1).view(np.uint8)
        result.flags.writeable = False
        return result

    def _rearranged(self, entry: Entry) -> Iterator[np.ndarray]:
        """Blocks in C order of what the variable is with our axes."""
        dtype = numpy_dtype(entry.source.dtype)
        if entry.is_copied:
            for data in self._source_blocks(entry, BLOCK_BYTES, lambda size: self._borrow((size,), np.dtype(np.uint8))):
                yield data.view(dtype)
            return
        for view in self._bands(entry):
            rows = max(1, BLOCK_BYTES // (dtype.itemsize * (view[:1].size or 1)))
            for start in range(0, view.shape[0], rows):
                part = view[start : start + rows]
                block = self._borrow(part.shape, dtype)
                _copy(part, block)
                yield block

    def _source_blocks(self, entry: Entry, max_bytes: int, memory: Memory | None = None) -> Iterator[np.ndarray]:
        """The variable's bytes, as many as the index says."""
        expected = entry.size * numpy_dtype(entry.source.dtype).itemsize
        total = 0
        for data in self._reader.blocks(entry.source.name, max_bytes, memory):
            total += len(data)
            if total <= expected:
                yield data
        if total != expected:
            raise ConversionError(
                f"{entry.source.name} was read as {total} bytes, but the index says {entry.source.dtype} "
                f"{list(entry.source.shape)}: copy the checkpoint again."
            )

    def _bands(self, entry: Entry) -> Iterator[np.ndarray]:
        """Views in memory that are, one below the other, what the variable is with our axes."""
        name, dtype = entry.source.name, numpy_dtype(entry.source.dtype)
        if entry.matrix is None:
            yield entry.to_ours(self._reader.read(name))
            return
        rows, columns = entry.matrix
        row_bytes = columns * dtype.itemsize
        if rows * row_bytes <= WHOLE_BYTES:
            band = self._band(rows, columns, dtype)
            top = 0
            for data in self._source_blocks(entry, max(1, _READ_BYTES // row_bytes) * row_bytes):
                part = data.view(dtype).reshape(-1, columns)
                band[top : top + len(part)] = part
                top += len(part)
            yield band.T
            return
        matrix = self._reader.open_matrix(name, rows)
        width = max(1, BAND_BYTES // (rows * dtype.itemsize))
        for left in range(0, columns, width):
            band = self._band(rows, min(width, columns - left), dtype)
            matrix.copy_columns(left, band)
            yield band.T

    def _band(self, rows: int, columns: int, dtype: np.dtype[Any]) -> np.ndarray:
        """Memory for a matrix that is going to be transposed; the one before is lost.

        A row takes an odd number of cache lines: at a distance that is a power of two, all numbers of a column would
        compete for the same few places of the cache.
        """
        lines = -(-columns * dtype.itemsize // _CACHE_LINE) | 1
        needed = rows * lines * _CACHE_LINE
        if self._band_memory.nbytes < needed:
            self._band_memory = np.empty(needed, np.uint8)
        padded = self._band_memory[:needed].reshape(rows, lines * _CACHE_LINE)
        return padded.view(dtype)[:, :columns]

    def _borrow(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        """Memory for a block; that of `VALID_BLOCKS` blocks ago is lost."""
        needed = math.prod(shape) * dtype.itemsize
        memory = self._memory.pop(0)
        if memory.nbytes < needed:
            memory = np.empty(needed, np.uint8)
        self._memory.append(memory)
        return memory[:needed].view(dtype).reshape(shape)


def _copy(view: np.ndarray, target: np.ndarray) -> None:
    """Copies into an array in C order; a transposed view is copied tile by tile."""
    if view.ndim != 2 or view.strides[0] >= view.strides[1]:
        target[...] = view
        return
    for start in range(0, view.shape[1], _TILE):
        target[:, start : start + _TILE] = view[:, start : start + _TILE]


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
    # The extremes tell, without a truth value for every number in memory: a NaN passes through both.
    return bool(np.isfinite(block.min()) and np.isfinite(block.max()))
