# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Holding a converted folder against its source: both sides read again, every tensor compared bit for bit.

`conversion.json` in the folder says how it was made: the options, and of every tensor where it came from.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..plan.plan import Plan
from ..tensors import CheckpointReader
from .blocks import Transfer
from .safetensors_reader import SafetensorsReader


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
