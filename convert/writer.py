# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Writing safetensors files in place: headers first, then every tensor at its offset, block by block.

Format: eight bytes with the header's length, the header (JSON: dtype, shape and byte range of every tensor), the bytes
of the tensors without gaps. Source: https://github.com/huggingface/safetensors.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import google_crc32c

from .arrays import SAFETENSORS_DTYPES
from .checkpoint import CheckpointReader
from .plan import Plan, Shard
from .transfer import output_blocks


INDEX_FILENAME = "model.safetensors.index.json"


def write_tensors(
    plan: Plan,
    reader: CheckpointReader,
    folder: Path,
    progress: Callable[[int], Any] = lambda _: None,
    allow_nonfinite: bool = False,
) -> dict[str, int]:
    """Writes all tensors of a plan, reading each once and in the source's order.

    Args:
        plan: what goes where.
        reader: the source.
        folder: existing folder for the files.
        progress: called with the number of bytes written since the last call.
        allow_nonfinite: write infinities and what is not a number, too.

    Returns:
        Checksum (CRC-32C) of every tensor's bytes, by our name.

    Raises:
        ConversionError: a tensor cannot be read, is not what the plan says, or holds a number that does not fit its
            dtype.
    """
    checksums: dict[str, int] = {}
    files: dict[str, BinaryIO] = {}
    places: dict[str, tuple[str, int]] = {}
    try:
        for shard in plan.files:
            header, offsets = _header(shard)
            file: BinaryIO = (folder / shard.filename).open("wb")
            files[shard.filename] = file
            file.write(header)
            file.truncate(len(header) + shard.nbytes)
            places |= {name: (shard.filename, len(header) + offset) for name, offset in offsets.items()}
        for entry in plan.reads:
            filename, offset = places[entry.name]
            files[filename].seek(offset)
            checksum = 0
            for block in output_blocks(entry, reader.read(entry.source.name), allow_nonfinite):
                files[filename].write(block.data)
                checksum = google_crc32c.extend(checksum, block)
                progress(block.nbytes)
            checksums[entry.name] = checksum
        for written in files.values():
            written.flush()
            os.fsync(written.fileno())
    finally:
        for opened in files.values():
            opened.close()
    if len(plan.shards) > 1:
        (folder / INDEX_FILENAME).write_text(json.dumps(_index(plan), indent=2) + "\n", encoding="utf-8")
    return checksums


def _header(shard: Shard) -> tuple[bytes, dict[str, int]]:
    """First bytes of a file, and the offset of every tensor behind them."""
    table: dict[str, Any] = {"__metadata__": dict(shard.metadata)}
    offsets = {}
    end = 0
    for entry in shard.entries:
        offsets[entry.name] = end
        table[entry.name] = {
            "dtype": SAFETENSORS_DTYPES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [end, end + entry.nbytes],
        }
        end += entry.nbytes
    text = json.dumps(table, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)  # so that the first tensor is aligned
    return len(text).to_bytes(8, "little") + text, offsets


def _index(plan: Plan) -> dict[str, Any]:
    """The index that transformers reads: which tensor is in which file."""
    weight_map = {entry.name: shard.filename for shard in plan.shards for entry in shard.entries}
    return {
        "metadata": {"total_parameters": plan.parameter_count, "total_size": plan.nbytes},
        "weight_map": weight_map,
    }
