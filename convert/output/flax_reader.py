# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Reading `flax_model.msgpack`, one tensor at a time: the file is indexed, and bytes are read by position."""

from pathlib import Path

import numpy as np

from ..plan.stock_names import flax_name
from ..source.msgpack_tree import StoredArray, leaves, read_tree
from ..tensors import SAFETENSORS_DTYPES, Matrix, Variable
from .safetensors_reader import SafetensorsReader, _Place


class FlaxReader(SafetensorsReader):
    """`CheckpointReader` of files of `flax.serialization`; names of maps are joined by slashes."""

    _kind = "file of weights that Flax wrote"

    def __init__(self, paths: list[Path]) -> None:
        # Where the parts are of an array that is in several.
        self._pieces: dict[str, tuple[tuple[int, int], ...]] = {}
        super().__init__(paths)

    def our_name(self, name: str) -> str:
        """See `SafetensorsReader.our_name`."""
        known = flax_name(name)
        return known.ours if known else name

    def open_matrix(self, name: str, rows: int) -> Matrix:
        """See `TensorReader.open_matrix`."""
        if name not in self._pieces:
            return super().open_matrix(name, rows)
        return _PieceMatrix(self, name, self.nbytes(name) // rows)

    def fill(self, name: str, at: int, target: np.ndarray) -> None:
        """See `SafetensorsReader.fill`."""
        path, done = self._places[name].path, 0
        for offset, count in self._pieces.get(name, ()):
            part = target[done : done + max(0, count - at)]
            if len(part):
                self._files.fill(path, offset + at, part)
            done, at = done + len(part), max(0, at - count)
        if name not in self._pieces:
            super().fill(name, at, target)

    def _add(self, path: Path) -> None:
        what = f"{path} has weights of Flax"
        for parts, leaf in leaves(read_tree(path, self._files, "flax", what)):
            name = "/".join(parts)
            if not isinstance(leaf, StoredArray):
                raise ValueError(f"its {name!r:.200} is {leaf!r:.80}, not an array")
            if leaf.dtype not in SAFETENSORS_DTYPES:
                raise ValueError(
                    f"{name!r:.200} has the dtype {leaf.dtype}, but weights are {', '.join(SAFETENSORS_DTYPES)}"
                )
            if name in self.variables:
                raise ValueError(f"{name!r:.200} is in {self._places[name].path.name}, too")
            self.variables[name] = Variable(name, leaf.shape, leaf.dtype)
            self._places[name] = _Place(path, leaf.pieces[0][0] if leaf.pieces else 0)
            if len(leaf.pieces) > 1:
                self._pieces[name] = leaf.pieces
            known = flax_name(name)
            if known and known.transposed:
                self.transposed.add(name)


class _PieceMatrix:
    """A matrix whose rows are in several parts of a file."""

    def __init__(self, reader: FlaxReader, name: str, row_bytes: int) -> None:
        self._reader, self._name, self._row_bytes = reader, name, row_bytes

    def copy_columns(self, left: int, target: np.ndarray) -> None:
        """See `Matrix.copy_columns`."""
        for k, row in enumerate(target.view(np.uint8)):
            self._reader.fill(self._name, k * self._row_bytes + left * target.itemsize, row)
