# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Reading the safetensors files of a folder, one tensor at a time; a header is checked before it is believed.

Format: see `writer`.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConversionError
from ..source.local_files import LocalFiles
from ..source.matrix import FileMatrix
from ..tensors import SAFETENSORS_DTYPES, Matrix, Memory, Variable, numpy_dtype
from .json_files import MAX_BYTES, check_plain_name, parse_json, read_json


WEIGHTS_FILENAME = "model.safetensors"

# The names that safetensors has for what NumPy can hold.
_DTYPES = {name: dtype for dtype, name in SAFETENSORS_DTYPES.items()}

# Of NumPy.
_MOST_AXES = 64

_BLOCK_BYTES = 2**24


@dataclass(frozen=True)
class _Place:
    """Where a tensor's bytes are."""

    path: Path
    offset: int


class SafetensorsReader:
    """`CheckpointReader` of safetensors files, which have no checksums; they must stay as they are while they are read.

    Attributes:
        variables: all tensors by name, in the order of their bytes in the files.
        metadata: texts in the headers.
        transposed: names of matrices whose shape in `variables` is that of the transpose of ours.
    """

    _kind = "safetensors file"

    def __init__(self, paths: Iterable[Path]) -> None:
        """Reads and checks the headers.

        Raises:
            ConversionError: a file is missing, damaged or holds a dtype that weights do not have, or two files hold the
                same tensor.
        """
        self.variables: dict[str, Variable] = {}
        self.metadata: dict[str, str] = {}
        self.transposed: set[str] = set()
        self._places: dict[str, _Place] = {}
        self._files = LocalFiles()
        self._memory = np.empty(0, np.uint8)
        for path in paths:
            try:
                self._add(path)
            except FileNotFoundError as error:
                raise ConversionError(f"{path} is missing: copy all files of the folder.") from error
            except (OSError, ValueError) as error:
                raise ConversionError(f"{path} is no complete {self._kind} ({error}): save it again.") from error

    def our_name(self, name: str) -> str:
        """What transformers' classes of PyTorch call a tensor; the name itself if they have none like it."""
        return name

    def nbytes(self, name: str) -> int:
        """Bytes of a tensor."""
        variable = self.variables[name]
        return math.prod(variable.shape) * numpy_dtype(variable.dtype).itemsize

    def read(self, name: str) -> np.ndarray:
        """See `TensorReader.read`."""
        variable = self.variables[name]
        result = np.empty(variable.shape, numpy_dtype(variable.dtype))
        target, at = result.reshape(-1).view(np.uint8), 0
        for block in self.blocks(name, _BLOCK_BYTES):
            target[at : at + len(block)] = block
            at += len(block)
        return result

    def blocks(self, name: str, max_bytes: int, memory: Memory | None = None) -> Iterator[np.ndarray]:
        """See `TensorReader.blocks`."""
        variable, place = self.variables[name], self._places[name]
        itemsize = numpy_dtype(variable.dtype).itemsize
        size = self.nbytes(name)
        step = max(1, max_bytes // itemsize) * itemsize
        for start in range(0, size, step):
            block = (memory or self._memory_for)(min(step, size - start))
            self.fill(name, start, block)
            self._files.will_need(place.path, place.offset + start + step, min(step, size - start - step))
            yield block

    def holds(self, name: str, at: int, block: np.ndarray) -> bool:
        """Whether a tensor has these bytes (uint8 [bytes]) from its byte `at` on."""
        found = self._memory_for(block.nbytes)
        self.fill(name, at, found)
        return np.array_equal(found, block)

    def fill(self, name: str, at: int, target: np.ndarray) -> None:
        """Fills an array (uint8 [bytes]) with the bytes of a tensor from its byte `at` on."""
        place = self._places[name]
        self._files.fill(place.path, place.offset + at, target)

    def open_matrix(self, name: str, rows: int) -> Matrix:
        """See `TensorReader.open_matrix`."""
        place = self._places[name]
        return FileMatrix(self._files, place.path, place.offset, self.nbytes(name) // rows)

    def is_same_place(self, name: str, other: str) -> bool:
        """Whether two names are of the same bytes of a file."""
        return self.variables[name].shape == self.variables[other].shape and self._places[name] == self._places[other]

    def is_copy(self, name: str, other: str) -> bool:
        """Whether two tensors are equal bit for bit as matrices of ours; reads them until they are not."""
        if (name in self.transposed) != (other in self.transposed):
            mine, theirs = self.read(name), self.read(other).T
            return (mine.dtype, mine.shape) == (theirs.dtype, theirs.shape) and mine.tobytes() == theirs.tobytes()
        if self.is_same_place(name, other):
            return True
        one, two = self.variables[name], self.variables[other]
        if (one.dtype, one.shape) != (two.dtype, two.shape):
            return False
        at, memory = 0, np.empty(_BLOCK_BYTES, np.uint8)
        for block in self.blocks(name, _BLOCK_BYTES, lambda size: memory[:size]):
            if not self.holds(other, at, block):
                return False
            at += block.nbytes
        return True

    def check(self, name: str) -> None:
        """There is no checksum."""

    def checksums(self, name: str) -> tuple[int, ...]:
        """What changes if the tensor's file is written to or replaced, instead of the checksums that it lacks."""
        identity = self._files.identity(self._places[name].path)
        return identity.device, identity.inode, identity.size, identity.modified

    def expect(self, names: Iterable[str]) -> None:
        """A disk need not be told."""

    def _memory_for(self, size: int) -> np.ndarray:
        """uint8 [size]; what was there before is lost."""
        if len(self._memory) < size:
            self._memory = np.empty(size, np.uint8)
        return self._memory[:size]

    def _bytes(self, path: Path, offset: int, length: int) -> bytes:
        data = np.empty(length, np.uint8)
        self._files.fill(path, offset, data)
        return data.tobytes()

    def _add(self, path: Path) -> None:
        size = self._files.size(path)
        if size < 8:
            raise ValueError(f"it has {size} bytes")
        length = int.from_bytes(self._bytes(path, 0, 8), "little")
        if length > min(size - 8, MAX_BYTES):
            raise ValueError(f"it has {size} bytes, but its header {length}")
        table = parse_json(self._bytes(path, 8, length))
        start = 8 + length
        self._add_metadata(path, table.pop("__metadata__", {}))
        rows = [_Row.of(name, row) for name, row in table.items()]
        covered = 0
        for row in sorted(rows, key=lambda row: row.begin):
            # As safetensors demands: no byte belongs to two tensors, or to none.
            if row.begin != covered:
                raise ValueError(f"{row.name!r:.200} begins at byte {row.begin} of the data, but {covered} is expected")
            covered = row.end
            if start + covered > size:
                raise ValueError(f"{row.name!r:.200} is outside of it")
            if row.name in self.variables:
                raise ValueError(f"{row.name!r:.200} is in {self._places[row.name].path.name}, too")
            self.variables[row.name] = Variable(row.name, row.shape, row.dtype)
            self._places[row.name] = _Place(path, start + row.begin)
        if start + covered != size:
            raise ValueError(f"it has {size} bytes, but its tensors end at {start + covered}")

    def _add_metadata(self, path: Path, metadata: Any) -> None:
        if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
            raise ValueError("its metadata are not texts")
        self.metadata |= metadata


@dataclass(frozen=True)
class _Row:
    """What a header says of a tensor, which fits itself."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @classmethod
    def of(cls, name: str, row: Any) -> "_Row":
        """Checks a row of the header; raises a ValueError."""
        if not isinstance(row, dict) or row.keys() != {"dtype", "shape", "data_offsets"}:
            raise ValueError(f"the header does not say of {name!r:.200} its dtype, shape and data_offsets alone")
        shape, offsets = row["shape"], row["data_offsets"]
        for numbers in (shape, offsets):
            if not isinstance(numbers, list) or not all(type(n) is int and 0 <= n < 2**63 for n in numbers):
                raise ValueError(f"shape or data_offsets of {name!r:.200} are no lists of integers from 0 on")
        if len(offsets) != 2:
            raise ValueError(f"{name!r:.200} has {len(offsets)} data_offsets instead of two")
        if len(shape) > _MOST_AXES:
            raise ValueError(f"{name!r:.200} has {len(shape)} axes, but no tensor has more than {_MOST_AXES}")
        if not isinstance(row["dtype"], str) or row["dtype"] not in _DTYPES:
            raise ValueError(f"{name!r:.200} has the dtype {row['dtype']!r:.80}, but weights are {', '.join(_DTYPES)}")
        dtype, (begin, end) = _DTYPES[row["dtype"]], offsets
        if end - begin != math.prod(shape) * numpy_dtype(dtype).itemsize:
            raise ValueError(f"{name!r:.200} has {end - begin} bytes, which {dtype} {shape} has not")
        return cls(name, dtype, tuple(shape), begin, end)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model.

    Raises:
        ConversionError: there are none, or their index is damaged.
    """
    files = files_of(folder, WEIGHTS_FILENAME)
    if not files:
        raise ConversionError(
            f"{folder} has no {WEIGHTS_FILENAME}: save the model with `save_pretrained`, which writes it."
        )
    return files


def files_of(folder: Path, name: str) -> list[Path]:
    """The files of a model in one form: the one of this name, or else those of its index, since transformers reads the
    one where a folder has both. Empty if there is neither.

    Raises:
        ConversionError: the index is damaged.
    """
    index = folder / f"{name}.index.json"
    if (folder / name).is_file():
        return [folder / name]
    return indexed_files(index) if index.is_file() else []


def indexed_files(index: Path) -> list[Path]:
    """The files of a model that is in several, of any format.

    Raises:
        ConversionError: the index is damaged.
    """
    try:
        names = read_json(index).get("weight_map")
        if not names or not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
            raise ValueError("its weight_map does not say which tensor is in which file")
        for name in set(names.values()):
            check_plain_name(name)
    except (OSError, ValueError) as error:
        raise ConversionError(f"{index} cannot be read ({error}): save the model again.") from error
    return [index.parent / name for name in sorted(set(names.values()))]
