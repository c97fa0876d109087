# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Headers and index of safetensors files, as they are written."""

import json
from collections.abc import Mapping
from typing import Any

import google_crc32c

from ..plan.plan import Plan
from ..plan.tensors import Shard
from ..tensors import SAFETENSORS_DTYPES
from . import crc32c


INDEX_FILENAME = "model.safetensors.index.json"


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


def file_checksum(shard: Shard, checksums: Mapping[str, int]) -> int:
    """Checksum (CRC-32C) of a whole file.

    Args:
        shard: what is in it.
        checksums: of every tensor's bytes, by our name.
    """
    header, _ = _header(shard)
    tensors = ((checksums[entry.name], entry.nbytes) for entry in shard.entries)
    return crc32c.joined([(google_crc32c.value(header), len(header)), *tensors])


def _index(plan: Plan) -> dict[str, Any]:
    """The index that transformers reads: which tensor is in which file."""
    weight_map = {entry.name: shard.filename for shard in plan.shards for entry in shard.entries}
    return {
        "metadata": {"total_parameters": plan.parameter_count, "total_size": plan.nbytes},
        "weight_map": weight_map,
    }
