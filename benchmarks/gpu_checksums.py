# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""The checksums that the converter takes from `google-crc32c`, in Python, for machines with GPUs that lack the package.

A few megabytes per second suffice for the goldens.
"""

import importlib.util
import sys


_POLYNOMIAL = 0x82F63B78  # Castagnoli's, with reversed bits


def _table() -> list[int]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (_POLYNOMIAL if byte & 1 else 0)
        table.append(byte)
    return table


_TABLE = _table()


def extend(crc: int, data: bytes) -> int:
    """The CRC-32C of what `crc` is of, followed by `data`."""
    crc ^= 0xFFFFFFFF
    for byte in memoryview(data).cast("B"):
        crc = crc >> 8 ^ _TABLE[(crc ^ byte) & 255]
    return crc ^ 0xFFFFFFFF


def value(data: bytes) -> int:
    """The CRC-32C of `data`."""
    return extend(0, data)


def stand_in() -> None:
    """Lets the converter import this instead of a package that is missing."""
    if "google_crc32c" not in sys.modules and importlib.util.find_spec("google_crc32c") is None:
        sys.modules["google_crc32c"] = sys.modules[__name__]
