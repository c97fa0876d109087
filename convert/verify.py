# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Holding a converted folder against its source: both sides read again, every tensor compared bit for bit.

`conversion.json` in the folder says how it was made: the options, and of every tensor where it came from.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .arrays import SAFETENSORS_DTYPES
from .checkpoint import CheckpointReader
from .errors import ConversionError
from .plan import Plan
from .transfer import Transfer


RECORD_FILENAME = "conversion.json"


def write_record(
    plan: Plan,
    source: str,
    step: int | None,
    options: Mapping[str, Any],
    checksums: Mapping[str, int],
    folder: Path,
) -> None:
    """Writes `conversion.json`.

    Args:
        plan: what was written.
        source: the checkpoint's name, without what is above it on anybody's disk.
        step: training step, if known.
        options: arguments of `pipeline.inspect` with which it can be planned again.
        checksums: CRC-32C of every tensor's bytes, by our name.
        folder: where to.
    """
    tensors = {
        entry.name: {
            "file": shard.filename,
            "shape": list(entry.shape),
            "dtype": entry.dtype,
            "crc32c": f"{checksums[entry.name]:08x}",
            "source": entry.source.name,
            "source_shape": list(entry.source.shape),
            "source_dtype": entry.source.dtype,
            "transform": entry.transform,
        }
        for shard in plan.files
        for entry in shard.entries
    }
    record = {"source": source, "step": step, "options": dict(options), "tensors": tensors}
    (folder / RECORD_FILENAME).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def read_options(folder: Path) -> dict[str, Any]:
    """The options that a folder was converted with.

    Raises:
        ConversionError: it is none that the converter wrote.
    """
    path = folder / RECORD_FILENAME
    try:
        options = json.loads(path.read_text(encoding="utf-8"))["options"]
    except FileNotFoundError as error:
        raise ConversionError(f"{folder} has no {RECORD_FILENAME}: give a folder that the converter wrote.") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConversionError(f"{path} cannot be read ({error}): convert again.") from error
    if not isinstance(options, dict):
        raise ConversionError(f"{path} has no options: convert again.")
    return options


def compare(
    plan: Plan, reader: CheckpointReader, folder: Path, progress: Callable[[int], Any] = lambda _: None
) -> dict[str, str]:
    """Compares every tensor of a folder with its source, cast and rearranged once more.

    Args:
        plan: how the folder was, or should have been, made.
        reader: the source; its checksums are checked on the way.
        folder: the output.
        progress: called with the number of bytes compared since the last call.

    Returns:
        What is wrong, by our name; empty if nothing is.

    Raises:
        ConversionError: a file of either side cannot be read.
    """
    wrong: dict[str, str] = {}
    files = {shard.filename: _SafetensorsFile(folder / shard.filename) for shard in plan.files}
    places = {entry.name: shard.filename for shard in plan.files for entry in shard.entries}
    for shard in plan.files:
        names = {entry.name for entry in shard.entries}
        wrong |= dict.fromkeys(files[shard.filename].table.keys() - names, "is not in the plan")
    reader.expect([entry.source.name for entry in plan.reads])
    transfer = Transfer(reader, allow_nonfinite=True)
    for entry in plan.reads:
        file = files[places[entry.name]]
        expected = {"dtype": SAFETENSORS_DTYPES[entry.dtype], "shape": list(entry.shape)}
        row = file.table.get(entry.name)
        if row is None:
            wrong[entry.name] = "is missing"
            continue
        if {key: row.get(key) for key in expected} != expected:
            wrong[entry.name] = f"is {row.get('dtype')} {row.get('shape')}, not {expected['dtype']} {expected['shape']}"
            continue
        at = 0
        for block in transfer.blocks(entry):
            if not file.holds(row, at, block):
                wrong[entry.name] = f"differs from {entry.source.name}"
                break
            at += block.nbytes
            progress(block.nbytes)
    return wrong


class _SafetensorsFile:
    """A safetensors file.

    Attributes:
        table: its header: dtype, shape and byte range of every tensor.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            with path.open("rb") as file:
                size = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(min(size, path.stat().st_size)))
            self.table = {name: row for name, row in header.items() if name != "__metadata__"}
        except (OSError, ValueError, AttributeError) as error:
            raise ConversionError(f"{path} cannot be read ({error}): convert again.") from error
        self._start = 8 + size

    def holds(self, row: Mapping[str, Any], at: int, block: np.ndarray) -> bool:
        """Whether a tensor has these bytes (uint8 [bytes]) from its byte `at` on."""
        begin, end = row["data_offsets"]
        if at + block.nbytes > end - begin:
            return False
        return np.array_equal(np.fromfile(self._path, np.uint8, block.nbytes, offset=self._start + begin + at), block)
