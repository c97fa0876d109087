# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Holding a converted folder against its source: both sides read again, every tensor compared bit for bit.

`conversion.json` in the folder says how it was made: the options, and of every tensor where it came from.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..mesh.rules import FAMILY_SECTIONS
from ..plan.plan import Plan
from ..tensors import CheckpointReader
from .blocks import Transfer
from .format import FORMATS
from .json_files import check_plain_name
from .safetensors_reader import SafetensorsReader


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 < value < 2**63


# What a recorded option of `pipeline.inspect` may be.
_OPTIONS: Mapping[str, Callable[[Any], bool]] = {
    "family": lambda value: value in ("auto", *FAMILY_SECTIONS),
    "dtype": lambda value: value in ("source", "float32", "bfloat16", "float16"),
    "max_shard_size": _is_count,
    "d_kv": lambda value: value is None or _is_count(value),
    "feed_forward_proj": lambda value: value is None or (isinstance(value, str) and value.isprintable()),
    "encoder_only": lambda value: isinstance(value, bool),
    "output_format": lambda value: value in FORMATS,
    "optimizer": lambda value: isinstance(value, bool),
}


def _check_record(record: Mapping[str, Any]) -> None:
    """Raises a ValueError for a record that `write_record` does not write."""
    options, tensors = record.get("options"), record.get("tensors")
    if not isinstance(options, dict):
        raise ValueError("it has no table of options")
    for name, value in options.items():
        if name not in _OPTIONS:
            raise ValueError(f"another version of this command, with an option {name!r:.80}, wrote it")
        if not _OPTIONS[name](value):
            raise ValueError(f"its option {name} is {value!r:.80}")
    if not isinstance(record.get("source"), str):
        raise ValueError("it names no source")
    if (step := record.get("step")) is not None and type(step) is not int:
        raise ValueError(f"its step is {step!r:.80}")
    if not isinstance(tensors, dict) or not all(isinstance(row, dict) for row in tensors.values()):
        raise ValueError("it has no table of tensors")
    for name, row in tensors.items():
        for key in ("file", "source"):
            if not isinstance(row.get(key), str):
                raise ValueError(f"it does not say the {key} of {name!r:.80}")
        check_plain_name(row["file"])


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
