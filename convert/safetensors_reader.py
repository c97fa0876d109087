# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Reading the safetensors files of a folder, one tensor at a time; a header is checked before it is believed.

Format: see `writer`.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .arrays import SAFETENSORS_DTYPES, numpy_dtype
from .checkpoint import Variable
from .errors import ConversionError
from .local_files import LocalFiles
from .matrix import FileMatrix, Matrix
from .writer import INDEX_FILENAME


WEIGHTS_FILENAME = "model.safetensors"

# The names that safetensors has for what NumPy can hold.
_DTYPES = {name: dtype for dtype, name in SAFETENSORS_DTYPES.items()}

# That of a model of a hundred thousand tensors has some 20 MB.
_MAX_HEADER_BYTES = 10**8

_BLOCK_BYTES = 2**24


@dataclass(frozen=True)
class _Place:
    """Where a tensor's bytes are."""

    path: Path
    offset: int


class SafetensorsReader:
    """`TensorReader` of safetensors files, which have no checksums; they must stay as they are while they are read.

    Attributes:
        variables: all tensors by name, in the order of their bytes in the files.
        metadata: texts in the headers.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        """Reads and checks the headers.

        Raises:
            ConversionError: a file is missing, damaged or holds a dtype that weights do not have, or two files hold the
                same tensor.
        """
        self.variables: dict[str, Variable] = {}
        self.metadata: dict[str, str] = {}
        self._places: dict[str, _Place] = {}
        self._files = LocalFiles()
        self._memory = np.empty(0, np.uint8)
        for path in paths:
            try:
                self._add(path)
            except FileNotFoundError as error:
                raise ConversionError(f"{path} is missing: copy all files of the folder.") from error
            except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise ConversionError(f"{path} is no complete safetensors file ({error}): save it again.") from error

    def read(self, name: str) -> np.ndarray:
        """See `TensorReader.read`."""
        variable = self.variables[name]
        result = np.empty(variable.shape, numpy_dtype(variable.dtype))
        target, at = result.reshape(-1).view(np.uint8), 0
        for block in self.blocks(name, _BLOCK_BYTES):
            target[at : at + len(block)] = block
            at += len(block)
        return result

    def blocks(self, name: str, max_bytes: int) -> Iterator[np.ndarray]:
        """See `TensorReader.blocks`."""
        variable, place = self.variables[name], self._places[name]
        itemsize = numpy_dtype(variable.dtype).itemsize
        size = math.prod(variable.shape) * itemsize
        step = max(1, max_bytes // itemsize) * itemsize
        for start in range(0, size, step):
            block = self._memory_for(min(step, size - start))
            self._files.fill(place.path, place.offset + start, block)
            self._files.will_need(place.path, place.offset + start + step, min(step, size - start - step))
            yield block

    def holds(self, name: str, at: int, block: np.ndarray) -> bool:
        """Whether a tensor has these bytes (uint8 [bytes]) from its byte `at` on."""
        place = self._places[name]
        found = self._memory_for(block.nbytes)
        self._files.fill(place.path, place.offset + at, found)
        return np.array_equal(found, block)

    def open_matrix(self, name: str, rows: int) -> Matrix:
        """See `TensorReader.open_matrix`."""
        variable, place = self.variables[name], self._places[name]
        size = math.prod(variable.shape) * numpy_dtype(variable.dtype).itemsize
        return FileMatrix(self._files, place.path, place.offset, size // rows)

    def check(self, name: str) -> None:
        """There is no checksum."""

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
        if length > min(size - 8, _MAX_HEADER_BYTES):
            raise ValueError(f"it has {size} bytes, but its header {length}")
        table: Mapping[str, Any] = json.loads(self._bytes(path, 8, length))
        start = 8 + length
        self.metadata |= table.get("__metadata__", {})
        rows = {name: row for name, row in table.items() if name != "__metadata__"}
        covered = 0
        for name, row in sorted(rows.items(), key=lambda item: item[1]["data_offsets"]):
            begin, end = row["data_offsets"]
            # As safetensors demands: no byte belongs to two tensors, or to none.
            if begin != covered:
                raise ValueError(f"{name} begins at byte {begin} of the data, but {covered} is expected")
            covered = end
            shape = tuple(int(number) for number in row["shape"])
            if row["dtype"] not in _DTYPES:
                raise ValueError(f"{name} has the dtype {row['dtype']}, but weights are {', '.join(_DTYPES)}")
            dtype = _DTYPES[row["dtype"]]
            if min(shape, default=0) < 0 or end - begin != math.prod(shape) * numpy_dtype(dtype).itemsize:
                raise ValueError(f"{name} has {end - begin} bytes, which {dtype} {list(shape)} has not")
            if begin < 0 or start + end > size:
                raise ValueError(f"{name} lies outside of it")
            if name in self.variables:
                raise ValueError(f"{name} is in {self._places[name].path.name}, too")
            self.variables[name] = Variable(name, shape, dtype)
            self._places[name] = _Place(path, start + begin)
        if start + covered != size:
            raise ValueError(f"it has {size} bytes, but its tensors end at {start + covered}")


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model, whether it is in one or in several.

    Raises:
        ConversionError: there are none, or their index is damaged.
    """
    index = folder / INDEX_FILENAME
    if not index.is_file():
        if not (folder / WEIGHTS_FILENAME).is_file():
            raise ConversionError(
                f"{folder} has no {WEIGHTS_FILENAME}: save the model with `save_pretrained`, which writes it."
            )
        return [folder / WEIGHTS_FILENAME]
    try:
        names = {str(name) for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConversionError(f"{index} cannot be read ({error}): save the model again.") from error
    # The names are the file's: none may lead out of the folder.
    return [folder / Path(name).name for name in sorted(names)]
