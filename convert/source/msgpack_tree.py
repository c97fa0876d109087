# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Where the arrays are in a file of `flax.serialization`: it is indexed, and no array is loaded.

Format: nested maps of MessagePack, whose arrays are extensions of type 1 that hold shape, dtype and bytes. An array of
more than 1 GiB is a map with its shape and the arrays that its flat numbers were cut into.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..tensors import numpy_dtype
from .extras import import_extra
from .local_files import LocalFiles


_CHUNKED = "__msgpack_chunked_array__"
_NDARRAY, _SCALAR = 1, 3

# First byte of an extension -> bytes of its length, or its length itself; the length is followed by the type.
_EXTENSIONS = {0xC7: 1, 0xC8: 2, 0xC9: 4}
_FIXED_EXTENSIONS = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}
_BINARIES = {0xC4: 1, 0xC5: 2, 0xC6: 4}

# What is neither map nor array is small; so is what an array says before its bytes.
_WINDOWS = (2**10, 2**16)
_DEEPEST = 32


@dataclass(frozen=True)
class StoredArray:
    """An array in a file.

    Attributes:
        shape: its dimensions.
        dtype: as NumPy calls it, or "bfloat16".
        pieces: offset and count of bytes of the parts that its numbers are in, in their order.
    """

    shape: tuple[int, ...]
    dtype: str
    pieces: tuple[tuple[int, int], ...]


def read_tree(path: Path, files: LocalFiles, extra: str, what: str) -> dict[str, Any]:
    """The nested maps of a file, with a `StoredArray` where an array is.

    Args:
        path: of the file.
        files: to read it with; from now on the file must stay as it is.
        extra: see `import_extra`.
        what: see `import_extra`.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged, cut off, or holds something that flax does not write.
        ConversionError: the package msgpack is missing.
    """
    cursor = _Cursor(path, files, import_extra("msgpack", extra, what))
    tree = cursor.value(0)
    if not isinstance(tree, dict):
        raise ValueError("it holds no map of arrays by name")
    if cursor.at != cursor.size:
        raise ValueError(f"it has {cursor.size} bytes, but its map ends at {cursor.at}")
    return tree


def leaves(tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """All that is no map in nested maps, with the names that lead to it."""
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, (*path, name))
        else:
            yield (*path, name), value


class _Cursor:
    """Reads one value after the other."""

    def __init__(self, path: Path, files: LocalFiles, msgpack: Any) -> None:
        self.at = 0
        self.size = files.size(path)
        self._path = path
        self._files = files
        self._msgpack = msgpack

    def value(self, depth: int) -> Any:
        """What is next."""
        if depth > _DEEPEST:
            raise ValueError("its maps are nested too deeply")
        first = self._peek(1)
        if not first:
            raise ValueError("it ends too early")
        if first[0] in _EXTENSIONS or first[0] in _FIXED_EXTENSIONS:
            return self._array()
        if 0x80 <= first[0] <= 0x8F or first[0] in (0xDE, 0xDF):
            return self._map(depth)
        return self._small(lambda unpacker: unpacker.unpack())

    def _map(self, depth: int) -> Any:
        result: dict[str, Any] = {}
        for _ in range(self._small(lambda unpacker: unpacker.read_map_header())):
            name = self._small(lambda unpacker: unpacker.unpack())
            if not isinstance(name, str) or name in result:
                raise ValueError(f"the name {name!r:.80} is no text, or is there twice")
            result[name] = self.value(depth + 1)
        return _joined(result) if _CHUNKED in result else result

    def _array(self) -> StoredArray:
        first = self._number(1)
        length = _FIXED_EXTENSIONS.get(first) or self._number(_EXTENSIONS[first])
        kind, end = self._number(1), 0
        end = self.at + length
        if kind not in (_NDARRAY, _SCALAR):
            raise ValueError(f"it holds an extension of type {kind}, which is no array")
        said = self._small(lambda unpacker: (unpacker.read_array_header(), unpacker.unpack(), unpacker.unpack()))
        marker = self._number(1)
        if said[0] != 3 or marker not in _BINARIES:
            raise ValueError("an array does not say its shape and dtype before its bytes")
        count = self._number(_BINARIES[marker])
        if self.at + count != end or end > self.size:
            raise ValueError("it ends too early, or an array in it does")
        array = StoredArray(_shape(said[1]), said[2], ((self.at, count),))
        if not isinstance(array.dtype, str) or math.prod(array.shape) * _itemsize(array.dtype) != count:
            raise ValueError(f"an array of {count} bytes is said to be {array.dtype!r:.40} of shape {[*array.shape]}")
        self.at = end
        return array

    def _small(self, read: Any) -> Any:
        """What a function reads with an unpacker of msgpack."""
        for window in _WINDOWS:
            unpacker = self._msgpack.Unpacker(raw=False, strict_map_key=False, max_buffer_size=_WINDOWS[-1])
            unpacker.feed(self._peek(window))
            try:
                result = read(unpacker)
            except self._msgpack.OutOfData:
                continue
            except Exception as error:  # of any kind, by what is damaged
                raise ValueError(f"msgpack cannot read it, {type(error).__name__}") from error
            self.at += unpacker.tell()
            return result
        raise ValueError("it ends too early")

    def _number(self, size: int) -> int:
        """The next bytes as an integer."""
        data = self._peek(size)
        if len(data) < size:
            raise ValueError("it ends too early")
        self.at += size
        return int.from_bytes(data, "big")

    def _peek(self, size: int) -> bytes:
        data = np.empty(max(0, min(size, self.size - self.at)), np.uint8)
        self._files.fill(self._path, self.at, data)
        return data.tobytes()


def _joined(parts: Mapping[str, Any]) -> StoredArray:
    """The array that was cut into chunks."""
    chunks, sizes = parts.get("chunks"), parts.get("shape")
    if not isinstance(chunks, dict) or not isinstance(sizes, dict):
        raise ValueError("an array in chunks does not say its shape or its chunks")
    arrays = [chunk for k in range(len(chunks)) if isinstance(chunk := chunks.get(str(k)), StoredArray)]
    shape = _shape([sizes.get(str(k)) for k in range(len(sizes))])
    dtypes = {array.dtype for array in arrays}
    found = sum(math.prod(array.shape) for array in arrays)
    if len(arrays) != len(chunks) or len(dtypes) != 1 or found != math.prod(shape):
        raise ValueError(f"the chunks of an array of shape {[*shape]} are not all there, or not of one dtype")
    return StoredArray(shape, dtypes.pop(), tuple(piece for array in arrays for piece in array.pieces))


def _shape(sizes: Any) -> tuple[int, ...]:
    if not isinstance(sizes, list) or not all(type(size) is int and 0 <= size < 2**63 for size in sizes):
        raise ValueError(f"the shape of an array is {sizes!r:.80}")
    if len(sizes) > 32:
        raise ValueError(f"an array has {len(sizes)} axes")
    return tuple(sizes)


def _itemsize(dtype: Any) -> int:
    try:
        return numpy_dtype(dtype).itemsize
    except TypeError as error:
        raise ValueError(f"an array has the dtype {dtype!r:.80}, which is unknown") from error
