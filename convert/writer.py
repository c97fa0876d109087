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

import numpy as np

from .arrays import SAFETENSORS_DTYPES, cast, numpy_dtype
from .checkpoint import CheckpointReader
from .errors import ConversionError
from .plan import Entry, Plan, Shard


INDEX_FILENAME = "model.safetensors.index.json"

# Memory that a tensor needs besides itself: a block with our axes and the same block cast.
BLOCK_BYTES = 16 * 2**20


def write_tensors(
    plan: Plan, reader: CheckpointReader, folder: Path, progress: Callable[[int], None] = lambda _: None
) -> None:
    """Writes all tensors of a plan, reading each once and in the source's order.

    Args:
        plan: what goes where.
        reader: the source.
        folder: existing folder for the files.
        progress: called with the number of bytes written since the last call.

    Raises:
        ConversionError: a tensor cannot be read, is not what the plan says, or holds a number too large for its dtype.
    """
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
            _write_tensor(entry, reader.read(entry.source.name), files[filename], progress)
        for written in files.values():
            written.flush()
            os.fsync(written.fileno())
    finally:
        for opened in files.values():
            opened.close()
    if len(plan.shards) > 1:
        (folder / INDEX_FILENAME).write_text(json.dumps(_index(plan), indent=2) + "\n", encoding="utf-8")


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


def _write_tensor(entry: Entry, array: np.ndarray, file: BinaryIO, progress: Callable[[int], None]) -> None:
    """Writes one tensor at the file's position.

    Args:
        entry: its plan.
        array: the Mesh variable.
        file: open for writing.
        progress: as above.
    """
    if array.shape != entry.source.shape or array.dtype.name != entry.source.dtype:
        raise ConversionError(
            f"{entry.source.name} was read as {array.dtype.name} {list(array.shape)}, but the index says "
            f"{entry.source.dtype} {list(entry.source.shape)}: copy the checkpoint again."
        )
    dtype = numpy_dtype(entry.dtype)
    view = entry.to_ours(array)
    row_bytes = max(array.dtype.itemsize, dtype.itemsize) * (view[:1].size or 1)
    rows = max(1, BLOCK_BYTES // row_bytes)
    for start in range(0, view.shape[0], rows):
        block = np.ascontiguousarray(view[start : start + rows])
        data = cast(block, dtype, entry.source.name).reshape(-1).view(np.uint8)
        file.write(data.data)
        progress(data.nbytes)
