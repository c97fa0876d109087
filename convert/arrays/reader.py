# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Reading a checkpoint of T5X or Orbax, one array at a time; of arrays that hold all layers, one layer after the
other."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from ..errors import ConversionError
from ..readable import shown
from ..source.array_folders import INDEX, ArrayFolder
from ..source.local_files import LocalFiles
from ..source.msgpack_tree import StoredArray
from ..tensors import ArrayMatrix, Matrix, Memory, Variable, numpy_dtype
from .store import ArrayStore
from .tree import read_index


# Layers of one stack; the largest released model has 24.
_MOST_LAYERS = 1024


class _Slice(NamedTuple):
    """A variable as a part of an array; the whole of it without a layer."""

    array: str
    axis: int = 0
    layer: int | None = None


class ArraysReader:
    """`CheckpointReader` that holds the array that is being read.

    Attributes:
        variables: all arrays by their path, as "target/encoder/encoder_norm/scale", and layers of those that are
            stacked, as "target/encoder/encoder/mlp/wo/kernel[:, 3]".
        numbers: leaves that are Python's numbers, by their path.
    """

    def __init__(self, place: ArrayFolder) -> None:
        """Reads the index and what every array is.

        Raises:
            ConversionError: a package is missing, or the folder is damaged, not complete, or leads out of itself.
        """
        self._files = LocalFiles()
        self._place = place
        self._store = ArrayStore(place)
        self._leaves: dict[str, StoredArray | str] = {}
        self.numbers: dict[str, int | float] = {}
        self.variables: dict[str, Variable] = {}
        for path, leaf in read_index(place, self._files, self._store.variables).items():
            if not isinstance(leaf, StoredArray | str):
                self.numbers[path] = leaf
                continue
            said = self._store.variables[leaf] if isinstance(leaf, str) else leaf
            self._leaves[path] = leaf
            self.variables[path] = Variable(path, said.shape, said.dtype)
        self._slices = {path: _Slice(path) for path in self.variables}
        self._held: tuple[str, np.ndarray] | None = None

    def unstack(
        self, axes: Mapping[str, int], advice: str = "the checkpoint is not one of a T5 with scanned layers"
    ) -> None:
        """Replaces arrays by their layers.

        Args:
            axes: axis of the layers, by the path of an array.
            advice: how the message ends if an array has no such axis.

        Raises:
            ConversionError: an array has no such axis, or another one is named as a layer of it.
        """
        variables, slices = {}, {}
        for path, variable in self.variables.items():
            if path not in axes:
                variables[path], slices[path] = variable, self._slices[path]
                continue
            axis, shape = axes[path], variable.shape
            if len(shape) <= axis or not 0 < shape[axis] <= _MOST_LAYERS:
                raise ConversionError(
                    f"{path} has the shape {list(shape)}, but its axis {axis} should be that of the layers: {advice}."
                )
            for i in range(shape[axis]):
                name = f"{path}[{':, ' * axis}{i}]"
                if name in self.variables:
                    raise ConversionError(f"{name} is an array and a layer of {path}: the checkpoint mixes two models.")
                variables[name] = Variable(name, (*shape[:axis], *shape[axis + 1 :]), variable.dtype)
                slices[name] = _Slice(path, axis, i)
        self.variables, self._slices = variables, slices

    def check_complete(self, names: Iterable[str]) -> None:
        """Raises if numbers of some variables are missing from the folder."""
        for path in dict.fromkeys(self._slices[name].array for name in names):
            leaf = self._leaves[path]
            if isinstance(leaf, str):
                self._store.check(leaf)

    def is_copy(self, name: str, other: str) -> bool:
        """Whether two variables are equal bit for bit."""
        one, two = self.read(name), self.read(other)
        return (one.dtype, one.shape) == (two.dtype, two.shape) and one.tobytes() == two.tobytes()

    def read(self, name: str) -> np.ndarray:
        """See `TensorReader.read`."""
        path, axis, layer = self._slices[name]
        array = self._whole(path)
        if layer is None:
            return array
        return np.ascontiguousarray(array[(slice(None),) * axis + (layer,)])

    def blocks(self, name: str, max_bytes: int, memory: Memory | None = None) -> Iterator[np.ndarray]:
        """See `TensorReader.blocks`."""
        data = self.read(name).reshape(-1).view(np.uint8)
        itemsize = numpy_dtype(self.variables[name].dtype).itemsize
        step = max(1, max_bytes // itemsize) * itemsize
        for start in range(0, len(data), step):
            block = data[start : start + step]
            if memory is not None:
                target = memory(len(block))
                target[...] = block
                block = target
            yield block

    def open_matrix(self, name: str, rows: int) -> Matrix:
        """See `TensorReader.open_matrix`."""
        return ArrayMatrix(self.read(name).reshape(rows, -1))

    def check(self, name: str) -> None:
        """There is no checksum that is not checked on reading."""

    def checksums(self, name: str) -> tuple[int, ...]:
        """What changes if the array's files are written to or replaced, instead of the checksums that it lacks."""
        leaf = self._leaves[self._slices[name].array]
        if isinstance(leaf, str):
            return self._store.identity(leaf)
        identity = self._files.identity(self._place.folder / INDEX)
        return identity.device, identity.inode, identity.size, identity.modified

    def expect(self, names: Iterable[str]) -> None:
        """A disk need not be told."""

    def number(self, path: str) -> Any:
        """A number, or the only one of an array; None if it is not there. Raises unless it is one integer."""
        if path in self.numbers:
            value: Any = self.numbers[path]
        elif path not in self.variables:
            return None
        elif self.variables[path].shape not in ((), (1,)):
            raise ConversionError(f"{path} is of shape {list(self.variables[path].shape)}, but should be one number.")
        else:
            value = self.read(path).reshape(-1)[0].item()
        if type(value) is not int or value < 0:
            raise ConversionError(f"{path} is {shown(value)}, but should be an integer from 0 on.")
        return value

    def _whole(self, path: str) -> np.ndarray:
        if self._held is None or self._held[0] != path:
            self._held = None  # before the next one takes memory
            leaf = self._leaves[path]
            self._held = (path, self._store.read(leaf) if isinstance(leaf, str) else self._read_stored(leaf))
        return self._held[1]

    def _read_stored(self, leaf: StoredArray) -> np.ndarray:
        array = np.empty(leaf.shape, numpy_dtype(leaf.dtype))
        target, at = array.reshape(-1).view(np.uint8), 0
        for offset, count in leaf.pieces:
            self._files.fill(self._place.folder / INDEX, offset, target[at : at + count])
            at += count
        return array
