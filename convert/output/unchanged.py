# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Whether the weights of a converted folder are still those that were written: a model that is trained is saved under
the same names."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ConversionError
from .safetensors_reader import SafetensorsReader


_BLOCK_BYTES = 2**22


def changed_files(folder: Path, record: Mapping[str, Any]) -> list[str]:
    """Names of the safetensors files whose tensors are not those that a record has checksums of. All bytes are read.

    Args:
        folder: finished.
        record: of its conversion; those of other kinds of folders have no checksums.
    """
    written: dict[str, dict[str, Any]] = {}
    tensors = record.get("tensors")
    for name, row in tensors.items() if isinstance(tensors, dict) else ():
        if isinstance(row, dict) and "crc32c" in row:
            written.setdefault(str(row.get("file")), {})[name] = row["crc32c"]
    present = {path.name for path in folder.iterdir()}
    return [file for file, checksums in written.items() if file in present and not _holds(folder / file, checksums)]


def _holds(path: Path, checksums: Mapping[str, Any]) -> bool:
    import google_crc32c

    try:
        reader = SafetensorsReader([path])
        if reader.variables.keys() != checksums.keys():
            return False
        for name, checksum in checksums.items():
            found = 0
            for block in reader.blocks(name, _BLOCK_BYTES):
                found = google_crc32c.extend(found, block.tobytes())
            if f"{found:08x}" != checksum:
                return False
    except ConversionError:  # damaged, which nothing of the converter leaves
        return False
    return True
