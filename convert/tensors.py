# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Tensors by name, as every reader of files gives them: what they are before they are read, and how to read them."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np


class Matrix(Protocol):
    """A matrix in a file or in memory."""

    def copy_columns(self, left: int, target: np.ndarray) -> None:
        """Copies columns.

        Args:
            left: the first of them.
            target: [rows, columns], of the matrix's dtype; the numbers of a row must be neighbors.

        Raises:
            ConversionError: they cannot be read.
        """


@dataclass(frozen=True)
class ArrayMatrix:
    """A matrix in memory.

    Attributes:
        array: [rows, columns].
    """

    array: np.ndarray

    def copy_columns(self, left: int, target: np.ndarray) -> None:
        """See `Matrix.copy_columns`."""
        target[...] = self.array[:, left : left + target.shape[1]]


@dataclass(frozen=True)
class Variable:
    """A variable of a checkpoint, known before any of its numbers is read.

    Attributes:
        name: Mesh name.
        shape: its dimensions.
        dtype: as TensorFlow and NumPy call it, such as "bfloat16".
    """

    name: str
    shape: tuple[int, ...]
    dtype: str


Memory = Callable[[int], np.ndarray]
"""Gives memory, uint8, of a count of bytes."""


class TensorReader(Protocol):
    """Names, shapes and dtypes first, then one tensor at a time; bfloat16 comes as `ml_dtypes.bfloat16`.

    All that reads raises a ConversionError if the bytes cannot be read or fail their checksum.
    """

    @property
    def variables(self) -> Mapping[str, Variable]:
        """All tensors by name, in the order in which reading them is fastest."""

    def read(self, name: str) -> np.ndarray:
        """The whole tensor, as a new array."""

    def blocks(self, name: str, max_bytes: int, memory: Memory | None = None) -> Iterator[np.ndarray]:
        """The bytes of a tensor in order, uint8 [at most max_bytes], each valid until the next one.

        They are complete elements each, and in memory that was asked of `memory`, if it is given. The last block comes
        only if the tensor's checksum is right.
        """

    def open_matrix(self, name: str, rows: int) -> Matrix:
        """The tensor, which is not empty, as a matrix with this count of rows; its checksum is checked first."""

    def check(self, name: str) -> None:
        """Reads a tensor for its checksum alone."""


class CheckpointReader(TensorReader, Protocol):
    """Reads a checkpoint, which may be far away."""

    def checksums(self, name: str) -> tuple[int, ...]:
        """What changes if a variable's bytes change, without reading a number: their CRC-32C, slice by slice if it is
        partitioned, as the index has it; where there is none, what tells one state of the file from another."""

    def expect(self, names: Iterable[str]) -> None:
        """Announces which variables will be read, in this order, so that a storage far away can send them ahead."""


# Names as TensorFlow, NumPy and transformers spell them -> as safetensors does. Every floating dtype that is converted.
SAFETENSORS_DTYPES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def numpy_dtype(name: str) -> np.dtype[Any]:
    """NumPy's dtype of that name; bfloat16 is `ml_dtypes`' one, which casts with rounding to nearest even."""
    if name == "bfloat16":
        import ml_dtypes

        brain: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return brain
    return np.dtype(name)
