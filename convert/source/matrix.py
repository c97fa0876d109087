# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""A tensor in a file as a matrix, read some columns at a time: its transpose streams through memory."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .local_files import LocalFiles


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
