# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Reading and writing an SSTable, LevelDB's file of sorted keys and values: the index of a TensorFlow checkpoint.

    file:   data block ... data block, metaindex block, index block, footer of 48 bytes
    footer: handle of the metaindex, handle of the index, zeros, magic number of 8 bytes
    handle: offset and size of a block, both varints; the size is without the trailer
    block:  entries, offsets of the restarts (4 bytes each), count of the restarts (4 bytes)
            and a trailer: compression (1 byte), masked crc32c of block and compression (4 bytes)
    entry:  bytes shared with the key before, further bytes of the key, bytes of the value (varints); those bytes
    restart: an entry that shares nothing
    index:  for each data block a key from its last key up to, but not with, the next block's first; value: its handle

All of it is checked, also what reading from front to back does not need, such as the restarts: a search that uses them
has to find the same. What is written is what TensorFlow's `table_builder.cc` writes, byte for byte.
Source: https://github.com/google/leveldb/blob/main/doc/table_format.md.
"""

import struct
from collections.abc import Iterable, Iterator

import google_crc32c


_FOOTER_BYTES = 48
_MAGIC = 0xDB4775248B80FB57
_TRAILER_BYTES = 5
_UNCOMPRESSED, _SNAPPY = 0, 1
_CRC_DELTA = 0xA282EAD8

# Three bytes of snappy stand for at most 64, so that nothing grows by more than this factor. The other limit is for one
# block; TensorFlow begins a new one after 256 kB.
_SNAPPY_FACTOR = 22
_SNAPPY_BLOCK_BYTES = 2**24

# Bytes at which a written block is closed, and entries between restarts; TensorFlow's.
_BLOCK_BYTES = 2**18
_RESTART_INTERVAL = 16

# Every 16th key is written in full, so that all of them together cannot be longer than 16 times the file.
_KEY_FACTOR = 16
_KEY_SLACK = 2**16


class Malformed(ValueError):
    """Bytes that their format does not allow.

    The message is a clause ("it is cut off"); code that knows the file makes it a sentence and a `ConversionError`.
    """


def varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    """Decodes an unsigned number of up to 64 bits.

    Args:
        data: where it is.
        at: its first byte.
        end: where the bytes that it may use end.

    Returns:
        The number, and where the next thing begins.

    Raises:
        Malformed: it does not end before `end` or has more than 64 bits.
    """
    value = shift = 0
    while at < end:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80 and not value >> 64:
            return value, at
        shift += 7
        if shift >= 70:
            raise Malformed("a number in it has more than 64 bits")
    raise Malformed("a number in it is cut off")


def unmask(stored: int) -> int:
    """The crc32c that a stored ("masked") one stands for; both are 32 bits, unsigned."""
    rotated = (stored - _CRC_DELTA) & 0xFFFFFFFF
    return (rotated >> 17 | rotated << 15) & 0xFFFFFFFF


def mask(crc: int) -> int:
    """The inverse of `unmask`: how a crc32c is stored."""
    return ((crc >> 15 | crc << 17) + _CRC_DELTA) & 0xFFFFFFFF


def encode_varint(number: int) -> bytes:
    """The inverse of `varint`, for numbers from 0 to 2**64 - 1."""
    result = bytearray()
    while number >= 0x80:
        result.append(number & 0x7F | 0x80)
        number >>= 7
    result.append(number)
    return bytes(result)


def read_table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of a table, in the order of the keys, of which no two are equal.

    Time and memory are proportional to the size of the file, for any content.

    Args:
        data: the whole file.

    Raises:
        Malformed: it is no table, or is damaged; possibly only after some of its keys were given.
    """
    end = len(data) - _FOOTER_BYTES
    if end < 0:
        raise Malformed(f"it has only {len(data)} bytes")
    if int.from_bytes(data[-8:], "little") != _MAGIC:
        raise Malformed("it does not end as a checkpoint's index does")
    metaindex, at = _handle(data, end, len(data) - 8)
    index, _ = _handle(data, at, len(data) - 8)
    # Nothing in it is needed, but a damaged one says that the file is not as it was written.
    _block(data, *metaindex, end)
    budget = _KEY_FACTOR * len(data) + _KEY_SLACK
    last: bytes | None = None
    used = 0
    for separator, value in _entries(_block(data, *index, end)):
        offset, size = _whole_handle(value)
        if offset < used:
            # Blocks that share bytes could make a small file endless.
            raise Malformed("its blocks overlap or are out of order")
        used = offset + size + _TRAILER_BYTES
        empty = True
        for key, item in _entries(_block(data, offset, size, end)):
            if last is not None and key <= last:
                raise Malformed("its keys are not sorted")
            budget -= len(key)
            if budget < 0:
                raise Malformed("its keys are far longer than the file")
            last, empty = key, False
            yield key, item
        if empty or last is None or separator < last:
            raise Malformed("its list of blocks does not agree with the blocks")
        last = separator if separator > last else last


def _handle(data: bytes, at: int, end: int) -> tuple[tuple[int, int], int]:
    offset, at = varint(data, at, end)
    size, at = varint(data, at, end)
    return (offset, size), at


def _whole_handle(data: bytes) -> tuple[int, int]:
    handle, at = _handle(data, 0, len(data))
    if at != len(data):
        raise Malformed("the place of a block has more bytes than it needs")
    return handle


def _block(data: bytes, offset: int, size: int, end: int) -> bytes:
    """A block without its trailer, checked and uncompressed; `end` is where the footer begins."""
    if offset + size + _TRAILER_BYTES > end:
        raise Malformed("a block is outside of the file")
    checked = data[offset : offset + size + 1]
    (stored,) = struct.unpack_from("<I", data, offset + size + 1)
    if google_crc32c.value(checked) != unmask(stored):
        raise Malformed(f"the block at byte {offset} fails its checksum")
    compression = checked[-1]
    if compression == _UNCOMPRESSED:
        return checked[:-1]
    if compression == _SNAPPY:
        return _unsnap(checked[:-1])
    raise Malformed(f"the block at byte {offset} is compressed by a method ({compression}) that is not known")


def _unsnap(data: bytes) -> bytes:
    """Uncompresses snappy's raw format, which begins with the size of the result."""
    import cramjam

    size, _ = varint(data, 0, min(len(data), 5))
    if size > min(_SNAPPY_FACTOR * len(data), _SNAPPY_BLOCK_BYTES):
        raise Malformed(f"{len(data)} compressed bytes claim to be {size} bytes")
    result = bytearray(size)
    try:
        written = cramjam.snappy.decompress_raw_into(data, result) if size else 0
    except cramjam.DecompressionError as error:
        raise Malformed("a compressed block does not uncompress") from error
    if written != size:
        raise Malformed(f"a compressed block has {written} bytes and not the {size} that it claims")
    return bytes(result)


def _entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of a block, whose order is not checked here."""
    end = len(block) - 4 * (int.from_bytes(block[-4:], "little") + 1)
    if end < 0:
        raise Malformed("a block is too short for its restarts")
    restarts = (offset for (offset,) in struct.iter_unpack("<I", block[end:-4]))
    restart = next(restarts, None)
    if restart != 0:
        raise Malformed("the first entry of a block is not a restart")
    key = b""
    at = 0
    while at < end:
        start = at
        if at + 3 <= end and block[at] | block[at + 1] | block[at + 2] < 0x80:
            # Nearly always each of the three is one byte.
            shared, unshared, size = block[at], block[at + 1], block[at + 2]
            at += 3
        else:
            shared, at = varint(block, at, end)
            unshared, at = varint(block, at, end)
            size, at = varint(block, at, end)
        if shared > len(key):
            raise Malformed("a key shares more with the one before than that has")
        if unshared + size > end - at:
            raise Malformed("an entry is longer than its block")
        if start == restart:
            if shared:
                raise Malformed("a restart shares bytes with the key before")
            restart = next(restarts, None)
        key = key[:shared] + block[at : at + unshared]
        at += unshared
        yield key, block[at : at + size]
        at += size
    # Also the only restart of a block without entries is left over; what needs entries notices their absence.
    if restart is not None and end:
        raise Malformed("a restart is not where its block says")


def write_table(items: Iterable[tuple[bytes, bytes]]) -> bytes:
    """A whole table, uncompressed; the inverse of `read_table`.

    Args:
        items: keys and values, in the order of the keys, of which no two are equal.
    """
    result = bytearray()

    def put(block: "_Block") -> bytes:
        """Appends a block; returns its handle."""
        content = block.finish() + bytes([_UNCOMPRESSED])
        handle = encode_varint(len(result)) + encode_varint(len(content) - 1)
        result.extend(content + struct.pack("<I", mask(google_crc32c.value(content))))
        return handle

    # Keys of the index are not shortened.
    index = _Block(restart_interval=1)
    block = _Block(_RESTART_INTERVAL)
    last: tuple[bytes, bytes] | None = None  # the last key and the handle of a block that is not in the index yet
    for key, value in items:
        if last is not None:
            index.add(_separator(last[0], key), last[1])
            last = None
        block.add(key, value)
        if block.size >= _BLOCK_BYTES:
            last = (key, put(block))
            block = _Block(_RESTART_INTERVAL)
    if block.size:
        last = (block.last_key, put(block))
    if last is not None:
        index.add(_successor(last[0]), last[1])
    footer = put(_Block(_RESTART_INTERVAL)) + put(index)
    return bytes(result) + footer.ljust(_FOOTER_BYTES - 8, b"\0") + struct.pack("<Q", _MAGIC)


class _Block:
    """A block that is being filled.

    Attributes:
        last_key: of its entries.
    """

    def __init__(self, restart_interval: int) -> None:
        self.last_key = b""
        self._interval = restart_interval
        self._entries = bytearray()
        self._restarts = [0]
        self._since_restart = 0

    @property
    def size(self) -> int:
        """Bytes of the finished block without its trailer; 0 if there is nothing in it."""
        return len(self._entries) + 4 * len(self._restarts) + 4 if self._entries else 0

    def add(self, key: bytes, value: bytes) -> None:
        """Appends an entry."""
        shared = 0
        if self._since_restart < self._interval:
            shared = _common_prefix(self.last_key, key)
        else:
            self._restarts.append(len(self._entries))
            self._since_restart = 0
        for number in (shared, len(key) - shared, len(value)):
            self._entries += encode_varint(number)
        self._entries += key[shared:] + value
        self._since_restart += 1
        self.last_key = key

    def finish(self) -> bytes:
        """The block without its trailer."""
        return bytes(self._entries) + struct.pack(f"<{len(self._restarts) + 1}I", *self._restarts, len(self._restarts))


def _common_prefix(a: bytes, b: bytes) -> int:
    """Count of the first bytes that two keys share."""
    return next((k for k, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _separator(last: bytes, following: bytes) -> bytes:
    """A short key from `last` up to, but not with, `following`."""
    at = _common_prefix(last, following)
    if at < min(len(last), len(following)) and last[at] + 1 < following[at]:
        return last[:at] + bytes([last[at] + 1])
    return last


def _successor(last: bytes) -> bytes:
    """A short key from `last` on."""
    at = next((k for k, byte in enumerate(last) if byte != 0xFF), None)
    return last if at is None else last[:at] + bytes([last[at] + 1])
