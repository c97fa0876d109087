# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""`conversion.json`, which says how a folder was made: the options, and where every tensor is from."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import ConversionError
from ..mesh.rules import FAMILY_SECTIONS
from ..plan.plan import Plan
from .format import FORMATS
from .json_files import check_plain_name, read_json
from .safetensors_format import file_checksum


RECORD_FILENAME = "conversion.json"


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
        source: the checkpoint's name, without the path above it, which would show the disk of the user.
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
    record = {
        "source": source,
        "step": step,
        "options": dict(options),
        "tensors": tensors,
        # Of whole files; those of all others are added when the folder is complete.
        "crc32c": {shard.filename: f"{file_checksum(shard, checksums):08x}" for shard in plan.files},
    }
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
