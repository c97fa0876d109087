# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""`conversion.json`, which says how a folder was made: the options, and where every tensor is from."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ConversionError
from ..plan.plan import Plan
from .json_files import read_json
from .verify import _check_record


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
        ConversionError: it is no folder that the converter wrote, or its record is damaged.
    """
    try:
        return load_record(folder)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ConversionError(f"{folder} has no {RECORD_FILENAME}: give a folder that the converter wrote.") from error
    except (OSError, ValueError) as error:
        raise ConversionError(f"{folder / RECORD_FILENAME} cannot be read ({error}): convert again.") from error


def load_record(folder: Path) -> dict[str, Any]:
    """What `write_record` wrote.

    Raises:
        OSError: there is no such file, or it cannot be read.
        ValueError: it is no record.
    """
    record = read_json(folder / RECORD_FILENAME)
    _check_record(record)
    return record
