# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""CRC-32C of files, also from the checksums of their parts, so that what was just written is not read once more.

A checksum is the remainder of a polynomial over bits, divided by that of CRC-32C. The highest bit of a number here is
the constant term, as in zlib's crc32.c, which combines checksums in the same way.
"""

import time
from collections.abc import Iterable
from functools import cache, lru_cache
from pathlib import Path

import google_crc32c


_POLYNOMIAL = 0x82F63B78
_ONE, _X = 1 << 31, 1 << 30

_BLOCK_BYTES = 2**22

# A file that was changed this long ago gets another time if it is changed again: some disks have steps of 2 seconds.
_SETTLED_SECONDS = 3


def of_file(path: Path) -> int:
    """Checksum of a file's bytes, which are not read again as long as the system says that they are the same.

    Raises:
        OSError: it cannot be read.
    """
    status = path.stat()
    if time.time() - max(status.st_mtime, status.st_ctime) < _SETTLED_SECONDS:
        return _read(path)
    return _of_settled(path, (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns))


@lru_cache(maxsize=2**14)
def _of_settled(path: Path, identity: tuple[int, ...]) -> int:
    return _read(path)


def _read(path: Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            checksum = google_crc32c.extend(checksum, block)
    return checksum


def joined(parts: Iterable[tuple[int, int]]) -> int:
    """Checksum of bytes from those of their parts.

    Args:
        parts: checksum and count of bytes of every part, in the order of the bytes.
    """
    checksum = 0
    for part, size in parts:
        checksum = _product(_power(8 * size), checksum) ^ part
    return checksum


def _product(a: int, b: int) -> int:
    """Product of two remainders."""
    product = 0
    for shift in range(31, -1, -1):
        if a >> shift & 1:
            product ^= b
        b = b >> 1 ^ (_POLYNOMIAL if b & 1 else 0)
    return product


@cache
def _power_of_two(exponent: int) -> int:
    """Remainder of x to the power 2**exponent."""
    if exponent == 0:
        return _X
    root = _power_of_two(exponent - 1)
    return _product(root, root)


@lru_cache(maxsize=2**10)
def _power(exponent: int) -> int:
    """Remainder of x to a power."""
    power = _ONE
    for bit in range(exponent.bit_length()):
        if exponent >> bit & 1:
            power = _product(_power_of_two(bit), power)
    return power
