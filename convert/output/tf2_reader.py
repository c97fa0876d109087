# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Reading `tf_model.h5`, one tensor at a time: h5py says what is where, and bytes are read by position."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..plan.stock_names import tf2_name
from ..source.extras import import_extra
from ..tensors import SAFETENSORS_DTYPES, Variable
from .safetensors_reader import SafetensorsReader, _Place


_DEEPEST = 32


class Tf2Reader(SafetensorsReader):
    """`CheckpointReader` of HDF5 files that Keras wrote; names are the paths of datasets."""

    _kind = "file of weights that TensorFlow 2 wrote"

    def our_name(self, name: str) -> str:
        """See `SafetensorsReader.our_name`."""
        known = tf2_name(name)
        return known.ours if known else name

    def _add(self, path: Path) -> None:
        size = self._files.size(path)
        h5py = import_extra("h5py", "tf2", f"{path} has weights of TensorFlow 2")
        try:
            with h5py.File(path, "r") as file:
                found = sorted(
                    (_offset(name, dataset), name, tuple(dataset.shape), dataset.dtype.name)
                    for name, dataset in _datasets(h5py, file, "", set(), 0)
                )
        except (RuntimeError, KeyError, TypeError) as error:  # as h5py says that a file is damaged
            raise ValueError(f"h5py cannot read it, {type(error).__name__}") from error
        for offset, name, shape, dtype in found:
            if name in self.variables:
                raise ValueError(f"{name!r:.200} is in {self._places[name].path.name}, too")
            variable = Variable(name, shape, dtype)
            self.variables[name] = variable
            self._places[name] = _Place(path, offset)
            if offset + self.nbytes(name) > size:
                raise ValueError(f"{name!r:.200} is outside of it")
            known = tf2_name(name)
            if known and known.transposed:
                self.transposed.add(name)


def _datasets(h5py: Any, group: Any, prefix: str, seen: set[int], depth: int) -> Iterator[tuple[str, Any]]:
    """All datasets with their paths. Raises a ValueError for what leads out of the file, or in circles."""
    address = h5py.h5o.get_info(group.id).addr
    if address in seen or depth > _DEEPEST:
        raise ValueError(f"its group {prefix!r:.200} is in it twice, or too deep")
    seen.add(address)
    for name in group:
        path = f"{prefix}{name}"
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise ValueError(f"{path!r:.200} is a link to somewhere else, which is not followed")
        item = group[name]
        if isinstance(item, h5py.Group):
            yield from _datasets(h5py, item, f"{path}/", seen, depth + 1)
        elif isinstance(item, h5py.Dataset):
            yield path, item
        else:
            raise ValueError(f"{path!r:.200} is neither a group nor numbers")


def _offset(name: str, dataset: Any) -> int:
    """Place in the file of a dataset's first number; raises a ValueError unless they are all there, one after the
    other."""
    dtype = dataset.dtype
    if dtype.name not in SAFETENSORS_DTYPES or not dtype.newbyteorder("<") == dtype:
        raise ValueError(f"{name!r:.200} has the dtype {dtype}, but weights are {', '.join(SAFETENSORS_DTYPES)}")
    if dataset.external or dataset.is_virtual:
        raise ValueError(f"the numbers of {name!r:.200} are in another file, which is not opened")
    if dataset.chunks is not None:
        raise ValueError(f"the numbers of {name!r:.200} are in chunks, as Keras does not write them")
    offset = dataset.id.get_offset()
    if offset is None or dataset.id.get_storage_size() != math.prod(dataset.shape) * dtype.itemsize:
        raise ValueError(f"the numbers of {name!r:.200} are not in it")
    return int(offset)
