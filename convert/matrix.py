# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""A tensor as a matrix some of whose columns are looked at at a time, so that its transpose streams through memory."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from .local_files import LocalFiles


class Matrix(Protocol):
    """A matrix somewhere."""

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
class FileMatrix:
    """A matrix in a file of this disk.

    Attributes:
        files: to read it with.
        path: of the file.
        offset: of its first byte.
        row_bytes: bytes of a row.
    """

    files: LocalFiles
    path: Path
    offset: int
    row_bytes: int

    def copy_columns(self, left: int, target: np.ndarray) -> None:
        """See `Matrix.copy_columns`."""
        start = self.offset + left * target.itemsize
        self.files.fill_rows(self.path, start, self.row_bytes, target.view(np.uint8))
