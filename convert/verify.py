# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Holding a converted folder against its source: both sides read again, every tensor compared bit for bit.

`conversion.json` in the folder says how it was made: the options, and of every tensor where it came from.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .checkpoint import CheckpointReader
from .errors import ConversionError
from .plan import Plan
from .safetensors_reader import SafetensorsReader
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


def read_record(folder: Path) -> dict[str, Any]:
    """What `write_record` wrote.

    Raises:
        ConversionError: it is no folder that the converter wrote.
    """
    path = folder / RECORD_FILENAME
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(record["options"], dict):
            raise ValueError("its options are no table")
    except FileNotFoundError as error:
        raise ConversionError(f"{folder} has no {RECORD_FILENAME}: give a folder that the converter wrote.") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConversionError(f"{path} cannot be read ({error}): convert again.") from error
    return record


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
    files = {shard.filename: SafetensorsReader([folder / shard.filename]) for shard in plan.files}
    places = {entry.name: shard.filename for shard in plan.files for entry in shard.entries}
    for shard in plan.files:
        names = {entry.name for entry in shard.entries}
        wrong |= dict.fromkeys(files[shard.filename].variables.keys() - names, "is not in the plan")
    reader.expect([entry.source.name for entry in plan.reads])
    transfer = Transfer(reader, allow_nonfinite=True)
    for entry in plan.reads:
        file = files[places[entry.name]]
        found = file.variables.get(entry.name)
        if found is None:
            wrong[entry.name] = "is missing"
            continue
        if (found.dtype, found.shape) != (entry.dtype, entry.shape):
            wrong[entry.name] = f"is {found.dtype} {list(found.shape)}, not {entry.dtype} {list(entry.shape)}"
            continue
        at = 0
        for block in transfer.blocks(entry):
            if not file.holds(entry.name, at, block):
                wrong[entry.name] = f"differs from {entry.source.name}"
                break
            at += block.nbytes
            progress(block.nbytes)
    return wrong
