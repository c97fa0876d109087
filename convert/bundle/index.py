# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""The index of a TensorFlow checkpoint: where every variable's bytes are, known and checked before any is read.

The index is a table (see `sstable`) of protocol buffer messages, whose wire format is decoded and encoded here. The
empty key holds a BundleHeaderProto, every other key is a variable's name or stands for one slice of a partitioned
variable, and holds a BundleEntryProto.
Sources: https://protobuf.dev/programming-guides/encoding; the field numbers are those of tensor_bundle.proto,
tensor_shape.proto, tensor_slice.proto and versions.proto of TensorFlow; its ordered_code.h for the keys of slices.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np

from ..tensors import Variable, numpy_dtype
from .sstable import Malformed, encode_varint, mask, read_table, unmask, varint, write_table


# t5.1.1.xxl with optimizer slots has 1,700 entries in 0.1 MB. The limits keep hostile files from taking our memory.
MAX_INDEX_BYTES = 16 * 2**20
MAX_ENTRIES = 2**18
MAX_NAME_BYTES = 4096
MAX_SLICES = 1024
MAX_RANK = 32

# The version of the format that this module knows, the only one so far.
_VERSION = 1

# TensorFlow's enumeration `DataType`: first what NumPy can hold, then what is only listed.
NUMERIC_DTYPES = {
    1: "float32", 2: "float64", 3: "int32", 4: "uint8", 5: "int16", 6: "int8", 8: "complex64", 9: "int64", 10: "bool",
    14: "bfloat16", 17: "uint16", 18: "complex128", 19: "float16", 22: "uint32", 23: "uint64",
}  # fmt: skip
_LISTED = {
    7: "string", 11: "qint8", 12: "quint8", 13: "qint32", 15: "qint16", 16: "quint16", 20: "resource", 21: "variant",
    24: "float8_e5m2", 25: "float8_e4m3fn", 26: "float8_e4m3fnuz", 27: "float8_e4m3b11fnuz", 28: "float8_e5m2fnuz",
    29: "int4", 30: "uint4", 31: "int2", 32: "uint2",
}  # fmt: skip

_DTYPE_NUMBERS = {name: number for number, name in NUMERIC_DTYPES.items()}

_VARINT, _FIXED64, _DELIMITED, _FIXED32 = 0, 1, 2, 5
_FIXED_BYTES = {_FIXED64: 8, _FIXED32: 4}

# Fields of the messages by their tags, each 8 * its number + wire type.
_NUM_SHARDS, _ENDIANNESS, _VERSIONS = 8, 16, 26
_PRODUCER, _MIN_CONSUMER, _BAD_CONSUMER, _BAD_CONSUMERS_PACKED = 8, 16, 24, 26
_DTYPE, _SHAPE, _SHARD_ID, _OFFSET, _SIZE, _CRC32C, _SLICES = 8, 18, 24, 32, 40, 53, 58
_DIM, _DIM_SIZE, _UNKNOWN_RANK = 18, 8, 24
_EXTENT, _START, _LENGTH = 10, 8, 16


@dataclass(frozen=True, slots=True)
class _Entry:
    """BundleEntryProto: one tensor, or one slice of a partitioned one.

    Attributes:
        dtype: a number of TensorFlow's enumeration `DataType`.
        shape: sizes of the axes as stored, so that they can be negative; None where not even their count is known.
        shard: number of the data file.
        offset: first byte in it.
        size: count of bytes.
        masked_crc: checksum as stored.
        slices: of a partitioned tensor, (start, length) along each axis of every slice; length -1 is the whole axis.
    """

    dtype: int
    shape: tuple[int, ...] | None
    shard: int
    offset: int
    size: int
    masked_crc: int
    slices: tuple[tuple[tuple[int, int], ...], ...]


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes of a data file: all of a variable, or one slice of it.

    Attributes:
        shard: number of the data file.
        offset: first byte in it.
        size: count of bytes.
        crc32c: checksum of them, not masked.
        region: of a slice, (start, end) along each axis of the variable; None for all of it.
    """

    shard: int
    offset: int
    size: int
    crc32c: int
    region: tuple[tuple[int, int], ...] | None = None


@dataclass(frozen=True, slots=True)
class Tensor:
    """A variable and where its bytes are.

    Attributes:
        variable: name, shape and dtype.
        parts: one for all of it, or one for each slice, in the order of their first elements.
    """

    variable: Variable
    parts: tuple[Part, ...]


def _fields(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Splits a message into its fields.

    Yields:
        The tag (field number * 8 + wire type), the number of a varint or else 0, the bytes of any other or else b"".

    Raises:
        Malformed: it is not a message.
    """
    at, end = 0, len(data)
    while at < end:
        tag, at = (data[at], at + 1) if data[at] < 0x80 else varint(data, at, end)
        wire_type = tag & 7
        if not 8 <= tag < 2**32:
            raise Malformed("a field in it has an impossible number")
        if wire_type == _VARINT:
            number, at = varint(data, at, end)
            yield tag, number, b""
            continue
        if wire_type == _DELIMITED:
            size, at = varint(data, at, end)
        elif wire_type in _FIXED_BYTES:
            size = _FIXED_BYTES[wire_type]
        else:
            raise Malformed(f"a field in it has the unknown wire type {wire_type}")
        if size > end - at:
            raise Malformed("a field in it is cut off")
        yield tag, 0, data[at : at + size]
        at += size


def _parse_header(data: bytes) -> int:
    """Count of data files that a BundleHeaderProto tells."""
    num_shards = 0
    pieces = []
    for tag, number, chunk in _fields(data):
        if tag == _NUM_SHARDS:
            num_shards = _signed(number)
        elif tag == _ENDIANNESS and number:
            raise Malformed("its numbers are big-endian, which is not supported, so save it on a little-endian machine")
        elif tag == _VERSIONS:
            pieces.append(chunk)  # a message that comes in pieces is their concatenation
    min_consumer = 0
    bad_consumers: list[int] = []
    for tag, number, chunk in _fields(b"".join(pieces)):
        if tag == _MIN_CONSUMER:
            min_consumer = _signed(number)
        elif tag == _BAD_CONSUMER:
            bad_consumers.append(number)
        elif tag == _BAD_CONSUMERS_PACKED:
            bad_consumers += _packed(chunk)
    if min_consumer > _VERSION or _VERSION in bad_consumers:
        raise Malformed(f"it needs a reader of a newer version of the format than {_VERSION}, the one that is known")
    return num_shards


def _parse_entry(data: bytes) -> _Entry:
    """Decodes a BundleEntryProto; whether it makes sense is not judged here."""
    dtype = shard = offset = size = crc = 0
    shapes = []
    slices = []
    for tag, number, chunk in _fields(data):
        if tag == _DTYPE:
            dtype = _signed(number)
        elif tag == _SHAPE:
            shapes.append(chunk)
        elif tag == _SHARD_ID:
            shard = _signed(number)
        elif tag == _OFFSET:
            offset = _signed(number)
        elif tag == _SIZE:
            size = _signed(number)
        elif tag == _CRC32C:
            crc = int.from_bytes(chunk, "little")
        elif tag == _SLICES:
            slices.append(tuple(_extent(extent) for tag, _, extent in _fields(chunk) if tag == _EXTENT))
    return _Entry(dtype, _shape(b"".join(shapes)), shard, offset, size, crc, tuple(slices))


def _shape(data: bytes) -> tuple[int, ...] | None:
    """Sizes in a TensorShapeProto; None if it says that the rank is unknown."""
    sizes = []
    unknown = False
    for tag, number, chunk in _fields(data):
        if tag == _DIM:
            sizes.append(_last(chunk, _DIM_SIZE, 0))
        elif tag == _UNKNOWN_RANK:
            unknown = number != 0
    return None if unknown else tuple(sizes)


def _extent(data: bytes) -> tuple[int, int]:
    """(start, length) in a TensorSliceProto.Extent; without a length it is the whole axis; its start does not count."""
    length = _last(data, _LENGTH, -1)
    return (0, -1) if length == -1 else (_last(data, _START, 0), length)


def _last(data: bytes, wanted: int, default: int) -> int:
    """The number in a field; of several the last counts."""
    value = default
    for tag, number, _ in _fields(data):
        if tag == wanted:
            value = _signed(number)
    return value


def _packed(data: bytes) -> Iterator[int]:
    at = 0
    while at < len(data):
        number, at = varint(data, at, len(data))
        yield number


def _signed(number: int) -> int:
    """An int64, whose varint is its two's complement."""
    return number - 2**64 if number >> 63 else number


def read_index(data: bytes) -> tuple[int, list[Tensor]]:
    """Decodes and checks an index.

    Args:
        data: the whole file.

    Returns:
        Count of data files, and all variables in the order of their bytes in these files.

    Raises:
        Malformed: it is damaged, or of a kind that is not known.
    """
    entries: dict[str | bytes, _Entry] = {}
    table = read_table(data)
    key, value = next(table, (None, b""))
    if key != b"":
        raise Malformed("its header is missing")
    num_shards = _parse_header(value)
    for key, value in table:
        if len(entries) == MAX_ENTRIES:
            raise Malformed(f"it has more than {MAX_ENTRIES} entries")
        if len(key) > MAX_NAME_BYTES:
            raise Malformed(f"a name in it has {len(key)} bytes, and at most {MAX_NAME_BYTES} are supported")
        name = key if key.startswith(b"\0") else _decode(key)
        entry = _parse_entry(value)
        if not 0 <= entry.shard < num_shards:
            raise Malformed(f"{_shown(name)} is said to be in data file {entry.shard} of {num_shards}")
        _check_entry(_shown(name), entry)
        entries[name] = entry
    tensors = [_tensor(name, entry, entries) for name, entry in entries.items() if isinstance(name, str)]
    tensors.sort(key=lambda tensor: (*_place(tensor.parts[0]), tensor.variable.name))
    parts = sorted((part for tensor in tensors for part in tensor.parts), key=_place)
    if len(parts) != sum(not entry.slices for entry in entries.values()):
        raise Malformed("a slice in it belongs to no variable or to two")
    if any(a.shard == b.shard and a.offset + a.size > b.offset for a, b in pairwise(parts)):
        raise Malformed("two variables in it share bytes")
    return num_shards, tensors


def _place(part: Part) -> tuple[int, int, int]:
    return part.shard, part.offset, part.size


def _decode(key: bytes) -> str:
    try:
        name = key.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Malformed("a name in it is not text") from error
    # It goes to terminals and into file names of reports.
    if not name.isprintable():
        raise Malformed(f"the name {name!r} in it has characters that cannot be printed")
    return name


def _shown(name: str | bytes) -> str:
    return name if isinstance(name, str) else f"slice {name!r}"


def _check_entry(name: str, entry: _Entry) -> None:
    """The entry makes sense by itself."""
    if entry.dtype <= 0 or entry.shape is None:
        raise Malformed(f"{name} has no {'shape' if entry.shape is None else 'dtype'}")
    if len(entry.shape) > MAX_RANK:
        raise Malformed(f"{name} has {len(entry.shape)} axes, and at most {MAX_RANK} are supported")
    if min(entry.shape, default=0) < 0 or entry.offset < 0 or entry.size < 0:
        raise Malformed(f"{name} has a negative size or place")
    dtype = NUMERIC_DTYPES.get(entry.dtype)
    itemsize = _itemsize(dtype) if dtype else 1
    # NumPy multiplies the sizes other than zero even where one is zero.
    if math.prod(size for size in entry.shape if size) * itemsize >= 2**63:
        raise Malformed(f"{name} has the impossible shape {list(entry.shape)}")
    if dtype and not entry.slices and entry.size != math.prod(entry.shape) * itemsize:
        raise Malformed(f"{name} has {entry.size} bytes, which {dtype} {list(entry.shape)} has not")


def variable_nbytes(variable: Variable) -> int:
    """Bytes of a variable of numbers."""
    return math.prod(variable.shape) * _itemsize(variable.dtype)


@cache
def _itemsize(dtype: str) -> int:
    return numpy_dtype(dtype).itemsize


def _tensor(name: str, entry: _Entry, entries: dict[str | bytes, _Entry]) -> Tensor:
    """The variable of an entry, with the slices that are entries of their own."""
    assert entry.shape is not None
    dtype = NUMERIC_DTYPES.get(entry.dtype) or _LISTED.get(entry.dtype) or f"unknown type {entry.dtype}"
    variable = Variable(name, entry.shape, dtype)
    if not entry.slices:
        return Tensor(variable, (Part(entry.shard, entry.offset, entry.size, unmask(entry.masked_crc)),))
    if entry.dtype not in NUMERIC_DTYPES:
        raise Malformed(f"{name} is partitioned, but not of numbers")
    if len(entry.slices) > MAX_SLICES:
        raise Malformed(f"{name} has {len(entry.slices)} slices, and at most {MAX_SLICES} are supported")
    parts = []
    for extents in entry.slices:
        if len(extents) != len(entry.shape):
            raise Malformed(f"a slice of {name} has {len(extents)} axes")
        region = tuple(
            (start, start + length if length >= 0 else size)
            for (start, length), size in zip(extents, entry.shape, strict=True)
        )
        found = entries.get(_slice_key(name, extents))
        if found is None or found.slices or found.dtype != entry.dtype:
            raise Malformed(f"a slice of {name} is missing")
        if found.shape != tuple(end - start for start, end in region):
            raise Malformed(f"a slice of {name} has another shape than it should")
        parts.append(Part(found.shard, found.offset, found.size, unmask(found.masked_crc), region))
    _check_tiling(name, entry.shape, parts)
    return Tensor(variable, tuple(sorted(parts, key=lambda part: part.region or ())))


def _check_tiling(name: str, shape: tuple[int, ...], parts: list[Part]) -> None:
    """Every number of a variable is in exactly one of its slices."""
    regions = [part.region for part in parts if part.region is not None]
    if any(
        not 0 <= start <= end <= size for region in regions for (start, end), size in zip(region, shape, strict=True)
    ):
        raise Malformed(f"a slice of {name} is outside of it")
    # Disjoint boxes inside of a box fill it if their volumes add up to its volume.
    if sum(math.prod(end - start for start, end in region) for region in regions) != math.prod(shape):
        raise Malformed(f"the slices of {name} do not add up to it")
    bounds = np.array(regions, np.int64).reshape(len(regions), len(shape), 2)
    starts, ends = bounds[..., 0], bounds[..., 1]
    for i in range(len(regions) - 1):
        common = np.minimum(ends[i], ends[i + 1 :]) > np.maximum(starts[i], starts[i + 1 :])
        if common.all(axis=1).any():
            raise Malformed(f"two slices of {name} overlap")


def _slice_key(name: str, extents: tuple[tuple[int, int], ...]) -> bytes:
    """Key of a slice: 0, name, count of axes, start and length along each, in TensorFlow's "ordered code"."""
    escaped = name.encode().replace(b"\0", b"\0\xff").replace(b"\xff", b"\xff\0")
    numbers = b"".join(_ordered(number) for extent in extents for number in extent)
    # A count is its bytes behind the number of them, so that 0 is one byte and any other rank here is two.
    rank = bytes([1, len(extents)]) if extents else b"\0"
    return b"\0" + escaped + b"\0\1" + rank + numbers


def _ordered(number: int) -> bytes:
    """An int64 as bytes that sort as the numbers do.

    As in UTF-8, the first bits tell the count n of bytes: n ones and a zero before 7 n - 1 bits of the number; of a
    negative number all bits are inverted.
    """
    magnitude = number if number >= 0 else ~number
    count = magnitude.bit_length() // 7 + 1
    code = ((1 << count) - 1) << (7 * count) | magnitude
    return (code if number >= 0 else ~code & (1 << 8 * count) - 1).to_bytes(count, "big")


def write_index(num_shards: int, tensors: Iterable[Tensor]) -> bytes:
    """The whole file; the inverse of `read_index`.

    Args:
        num_shards: count of data files.
        tensors: all variables, none of them partitioned or of a dtype that is only listed.
    """
    # Messages as TensorFlow writes them: fields in order, those that are zero left out.
    header = _field(_NUM_SHARDS, num_shards) + _field(_VERSIONS, _field(_PRODUCER, _VERSION))
    items = {tensor.variable.name.encode(): _encode_entry(tensor) for tensor in tensors}
    return write_table([(b"", header), *sorted(items.items())])


def _encode_entry(tensor: Tensor) -> bytes:
    """A BundleEntryProto."""
    (part,) = tensor.parts
    dims = b"".join(_field(_DIM, _field(_DIM_SIZE, size)) for size in tensor.variable.shape)
    return (
        _field(_DTYPE, _DTYPE_NUMBERS[tensor.variable.dtype])
        + _field(_SHAPE, dims)
        + _field(_SHARD_ID, part.shard)
        + _field(_OFFSET, part.offset)
        + _field(_SIZE, part.size)
        + encode_varint(_CRC32C)
        + mask(part.crc32c).to_bytes(4, "little")
    )


def _field(tag: int, value: int | bytes) -> bytes:
    """A field that is a number, or a message, which stands there even if it is empty."""
    if isinstance(value, bytes):
        return encode_varint(tag) + encode_varint(len(value)) + value
    return encode_varint(tag) + encode_varint(value) if value else b""
