# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Reading the weights of `torch.save`, one tensor at a time. PyTorch says what is where, without running what a pickle
asks for (`weights_only`); the bytes are then read by position, as those of every other file.
"""

import math
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..tensors import SAFETENSORS_DTYPES, ArrayMatrix, Matrix, Memory, Variable, numpy_dtype
from .safetensors_reader import SafetensorsReader, _Place


if TYPE_CHECKING:
    import torch


class TorchReader(SafetensorsReader):
    """`CheckpointReader` of files of `torch.save`.

    Attributes:
        transposed: here, matrices that are stored column by column, as those that were made of TensorFlow's are: the
            rows of the transpose are stored one after the other.
        loaded: names of files of PyTorch before 1.6, which have to be held in memory.
    """

    _kind = "file of weights that torch.save wrote"

    def __init__(self, paths: list[Path]) -> None:
        self.loaded: list[str] = []
        self._arrays: dict[str, np.ndarray] = {}
        super().__init__(paths)

    def blocks(self, name: str, max_bytes: int, memory: Memory | None = None) -> Iterator[np.ndarray]:
        """See `TensorReader.blocks`."""
        if name not in self._arrays:
            yield from super().blocks(name, max_bytes, memory)
            return
        data = self._arrays[name]
        itemsize = numpy_dtype(self.variables[name].dtype).itemsize
        step = max(1, max_bytes // itemsize) * itemsize
        for start in range(0, len(data), step):
            block = (memory or self._memory_for)(min(step, len(data) - start))
            block[...] = data[start : start + step]
            yield block

    def holds(self, name: str, at: int, block: np.ndarray) -> bool:
        """See `SafetensorsReader.holds`."""
        if name not in self._arrays:
            return super().holds(name, at, block)
        return np.array_equal(self._arrays[name][at : at + block.nbytes], block)

    def open_matrix(self, name: str, rows: int) -> Matrix:
        """See `TensorReader.open_matrix`."""
        if name not in self._arrays:
            return super().open_matrix(name, rows)
        return ArrayMatrix(self._arrays[name].view(numpy_dtype(self.variables[name].dtype)).reshape(rows, -1))

    def _add(self, path: Path) -> None:
        size = self._files.size(path)  # from here on the file must stay what it is
        in_place = zipfile.is_zipfile(path)
        if in_place:
            _check_archive(path)
        else:
            self.loaded.append(path.name)
        tensors = _load(path, in_place)
        for name, tensor in sorted(tensors.items(), key=lambda item: _offset(item[1]) if in_place else 0):
            if name in self.variables:
                raise ValueError(f"{name!r:.200} is in {self._places[name].path.name}, too")
            shape = self._checked_shape(name, tensor)
            dtype = str(tensor.dtype).removeprefix("torch.")
            nbytes = math.prod(shape) * numpy_dtype(dtype).itemsize
            offset = 0
            if in_place:
                offset = _offset(tensor)
                end = offset - tensor.storage_offset() * tensor.element_size() + tensor.untyped_storage().nbytes()
                if offset + nbytes > min(size, end):
                    raise ValueError(f"{name!r:.200} is outside of it")
            else:
                self._arrays[name] = _bytes_of(tensor.t() if name in self.transposed else tensor)
            self.variables[name] = Variable(name, shape, dtype)
            # Of what is held in memory, every tensor has a place of its own.
            self._places[name] = _Place(path, offset if in_place else -1 - len(self._places))

    def _checked_shape(self, name: str, tensor: "torch.Tensor") -> tuple[int, ...]:
        """Shape in which the tensor's numbers are stored one after the other; raises a ValueError if there is none."""
        dtype = str(tensor.dtype).removeprefix("torch.")
        if dtype not in SAFETENSORS_DTYPES:
            raise ValueError(f"{name!r:.200} has the dtype {dtype}, but weights are {', '.join(SAFETENSORS_DTYPES)}")
        if tensor.is_contiguous():
            return tuple(tensor.shape)
        if tensor.ndim == 2 and tensor.t().is_contiguous():
            self.transposed.add(name)
            return tuple(tensor.t().shape)
        raise ValueError(f"the numbers of {name!r:.200} are not stored one after the other")


def _load(path: Path, in_place: bool) -> Mapping[str, "torch.Tensor"]:
    """Tensors by name: without numbers if they stay in the file. Raises a ValueError if there is anything else."""
    import torch

    options: dict[str, Any] = {"map_location": "meta", "mmap": True} if in_place else {"map_location": "cpu"}
    try:
        content = torch.load(path, weights_only=True, **options)
    except Exception as error:  # of any kind, by what is damaged
        raise ValueError(_why_not(error)) from error
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__} instead of tensors by name")
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise ValueError(f"its {name!r:.200} is a {type(tensor).__name__}, not a tensor with a name")
        if tensor.layout != torch.strided or tensor.is_quantized:
            raise ValueError(f"{name!r:.200} is sparse or quantized")
        if tensor.is_neg() or tensor.is_conj():
            raise ValueError(f"{name!r:.200} is stored with the opposite sign, which resolve_neg() undoes")
        if in_place and tensor.untyped_storage()._checkpoint_offset is None:
            raise ValueError(f"the numbers of {name!r:.200} are not in it: the tensor was on the device 'meta'")
    return content


def _why_not(error: Exception) -> str:
    """What `torch.load` met. Its own message proposes to load the file without `weights_only`."""
    found = re.search(r"GLOBAL (\S{1,200})", str(error)) or re.search(r"Unsupported class (\S{1,200})", str(error))
    if found:
        return f"it asks for {found[1]}, but only tensors are read: no other objects are loaded"
    return f"torch.load cannot read it, {type(error).__name__}"


def _check_archive(path: Path) -> None:
    """Raises a ValueError unless the bytes of tensors are in the file as they are in memory."""
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                if info.compress_type != zipfile.ZIP_STORED:
                    raise ValueError(f"{info.filename!r:.200} in it is compressed")
                if info.filename.endswith("/byteorder") and archive.read(info)[:6] == b"big":
                    raise ValueError("a machine of the other byte order wrote it")
    except (zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        raise ValueError(str(error)) from error


def _offset(tensor: "torch.Tensor") -> int:
    """Place in the file of a tensor's first number."""
    storage = tensor.untyped_storage()
    return int(storage._checkpoint_offset or 0) + int(tensor.storage_offset()) * tensor.element_size()


def _bytes_of(tensor: "torch.Tensor") -> np.ndarray:
    """uint8 [bytes] of a tensor in memory, which it shares."""
    import torch

    array: np.ndarray = tensor.detach().reshape(-1).view(torch.uint8).numpy()
    return array
