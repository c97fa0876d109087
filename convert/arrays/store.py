# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""The zarr arrays of one folder, each in files of its own or all of them in an OCDBT database, through tensorstore.

What tensorstore opens is decided here, by the folder and the array's name alone: nothing that a file says chooses a
driver or a path. Links are not followed, and tensorstore itself refuses keys that lead out of a folder.
"""

import math
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConversionError
from ..source.array_folders import ArrayFolder
from ..source.extras import import_extra
from ..source.local_files import Identity
from ..tensors import Variable, numpy_dtype


# File that says what an array is -> tensorstore's driver for it.
_METADATA = {".zarray": "zarr", "zarr.json": "zarr3"}
_DATABASE = "manifest.ocdbt"

# No part is needed twice.
_CONTEXT = {"cache_pool": {"total_bytes_limit": 0}}

# Of an array that are read at a time, or one row of its parts: they are in memory compressed, too, and twice.
_READ_BYTES = 2**26


class ArrayStore:
    """Arrays by name.

    Attributes:
        variables: name, shape and dtype of every array.
        what: place and kind of the checkpoint, for messages.
    """

    def __init__(self, place: ArrayFolder) -> None:
        """Lists the arrays.

        Raises:
            ConversionError: tensorstore is missing, or something in the folder is damaged or leads out of it.
        """
        self.what = place.what
        self._folder = place.folder
        self._identities = dict(_walk(place.folder))
        self._tensorstore = import_extra("tensorstore", "t5x", self.what)
        base = {"driver": "file", "path": f"{place.folder}/"}
        self._is_database = (place.folder / _DATABASE).is_file()
        self._root = {"driver": "ocdbt", "base": base} if self._is_database else base
        self._context = self._tensorstore.Context(_CONTEXT)
        self._drivers: dict[str, str] = {}
        self._parts: dict[str, int] = {}
        for key in self._keys():
            name, _, file = key.partition("/")
            if file in _METADATA:
                self._drivers[name] = _METADATA[file]
            else:
                self._parts[name] = self._parts.get(name, 0) + (file not in ("", ".zattrs", ".zgroup"))
        self._open = {name: self._opened(name) for name in sorted(self._drivers)}
        self.variables = {
            name: Variable(name, tuple(array.shape), array.dtype.name) for name, array in self._open.items()
        }

    def check(self, name: str) -> None:
        """Raises if a part of an array is missing, for which zarr has zeros."""
        shape, parts = self.variables[name].shape, self._open[name].chunk_layout.write_chunk.shape or ()
        expected = math.prod(-(-size // max(1, part)) for size, part in zip(shape, parts, strict=True))
        found = self._parts.get(name, 0)
        if found != expected:
            raise ConversionError(
                f"{name} in {self._folder} has {found} of the {expected} files that its numbers are in: copy "
                "all of the folder again."
            )

    def read(self, name: str) -> np.ndarray:
        """A whole array. Raises a ConversionError if it cannot be read, or is not what it was."""
        array, source = np.empty(self.variables[name].shape, numpy_dtype(self.variables[name].dtype)), self._open[name]
        try:
            for window in _windows(array, source.chunk_layout.read_chunk.shape or ()):
                array[window] = source[window].read().result()
        except Exception as error:  # of any kind, by what is damaged
            raise ConversionError(
                f"{name} in {self._folder} cannot be read ({_reason(error)}): copy the folder again."
            ) from error
        self._check_unchanged(name)
        return array

    def identity(self, name: str) -> tuple[int, ...]:
        """What changes if the files of an array are written to or replaced."""
        return tuple(
            number
            for path, identity in sorted(self._files_of(name))
            for number in (identity.device, identity.inode, identity.size, identity.modified)
        )

    def _keys(self) -> list[str]:
        if not self._is_database:
            return [path for path in self._identities if "/" in path]
        try:
            found = self._tensorstore.KvStore.open(self._root, context=self._context).result().list().result()
            return sorted(key.decode() for key in found)
        except Exception as error:  # of any kind, by what is damaged
            raise ConversionError(
                f"{self._folder} has no complete database of arrays ({_reason(error)}): copy all of the folder again."
            ) from error

    def _opened(self, name: str) -> Any:
        spec = {
            "driver": self._drivers[name],
            "kvstore": {**self._root, "path": f"{name}/"}
            if self._is_database
            else {"driver": "file", "path": f"{self._folder}/{name}/"},
            "fill_missing_data_reads": False,
        }
        try:
            array = self._tensorstore.open(spec, open=True, read=True, context=self._context).result()
        except Exception as error:  # of any kind, by what is damaged
            raise ConversionError(
                f"{name} in {self._folder} is no complete zarr array ({_reason(error)}): copy the folder again."
            ) from error
        if array.dtype.name in ("string", "json", "ustring", "byte"):
            raise ConversionError(f"{name} in {self._folder} holds {array.dtype.name} instead of numbers.")
        parts = array.chunk_layout.read_chunk.shape or ()
        if any(part > max(1, size) for size, part in zip(array.shape, parts, strict=True)):
            raise ConversionError(
                f"{name} in {self._folder} is of shape {[*array.shape]}, but a part of it is {[*parts]}: "
                "neither T5X nor Orbax writes larger parts than arrays."
            )
        return array

    def _files_of(self, name: str) -> Iterator[tuple[str, Identity]]:
        for path, identity in self._identities.items():
            if self._is_database or path.startswith(f"{name}/"):
                yield path, identity

    def _check_unchanged(self, name: str) -> None:
        for path, identity in self._files_of(name):
            try:
                is_same = Identity.of(os.lstat(self._folder / path)) == identity
            except OSError:
                is_same = False
            if not is_same:
                raise ConversionError(
                    f"{self._folder / path} changed while it was read: run the command again when nothing writes to it."
                )


def _windows(array: np.ndarray, parts: tuple[int, ...]) -> Iterator[tuple[slice, ...]]:
    """Cuts an array across the axis on which it has the most parts, between them."""
    counts = [-(-size // max(1, part)) for size, part in zip(array.shape, parts, strict=True)]
    if not counts or array.nbytes <= _READ_BYTES:
        yield (slice(None),) * array.ndim
        return
    axis = counts.index(max(counts))
    rows = max(1, _READ_BYTES // max(1, array.nbytes // counts[axis])) * parts[axis]
    for start in range(0, array.shape[axis], rows):
        yield (*[slice(None)] * axis, slice(start, min(start + rows, array.shape[axis])))


def _walk(folder: Path, prefix: str = "") -> Iterator[tuple[str, Identity]]:
    """All files below a folder, by their path in it.

    Raises:
        ConversionError: something is neither a file nor a folder.
    """
    try:
        with os.scandir(folder / prefix) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        for entry in found:
            path, status = f"{prefix}{entry.name}", entry.stat(follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                yield from _walk(folder, f"{path}/")
            elif stat.S_ISREG(status.st_mode):
                yield path, Identity.of(status)
            else:
                raise ConversionError(
                    f"{folder / path} is {'a link' if stat.S_ISLNK(status.st_mode) else 'no file'}, which is not "
                    "followed, as it may lead out of the checkpoint: put the file or folder itself there."
                )
    except OSError as error:
        raise ConversionError(f"{folder / prefix} cannot be read: {error.strerror or error}.") from error


def _reason(error: Exception) -> str:
    """What tensorstore says, without the specification that it appends."""
    return f"{str(error).partition(' [')[0]:.300}"
