# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""What a conversion that was cut off has finished: which files, and the checksum of every tensor in them."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..plan.plan import Plan
from ..plan.tensors import Entry
from ..tensors import CheckpointReader


FILENAME = "unfinished.json"


class FinishedFiles:
    """The list of finished files in a folder that is not finished itself.

    Args:
        folder: the folder.
        key: says which conversion it is, see `conversion_key`; a list of another one counts as empty.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self._path = folder / FILENAME
        self._key = key
        self._files: dict[str, dict[str, int]] = {}
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return
        if isinstance(found, dict) and found.get("key") == key:
            self._files = found["files"]

    def checksums(self, filename: str) -> Mapping[str, int] | None:
        """CRC-32C of every tensor of a finished file by our name; None if the file is not finished."""
        return self._files.get(filename)

    def add(self, filename: str, checksums: Mapping[str, int]) -> None:
        """Notes that a file is on the disk; a list that was cut off in the middle never replaces a whole one."""
        self._files[filename] = dict(checksums)
        draft = self._path.with_suffix(".draft")
        with draft.open("w", encoding="utf-8") as file:
            json.dump({"key": self._key, "files": self._files}, file)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self._path)


def conversion_key(plan: Plan, reader: CheckpointReader, **options: Any) -> str:
    """Tells conversions apart: two with the same key write the same bytes.

    Args:
        plan: what is written, and where.
        reader: the source, whose checksums are part of the key.
        options: all else that decides what is written.
    """
    files = [
        (shard.filename, sorted(shard.metadata.items()), [_identity(entry, reader) for entry in shard.entries])
        for shard in plan.files
    ]
    return hashlib.sha256(json.dumps([files, options], sort_keys=True).encode("utf-8")).hexdigest()


def _identity(entry: Entry, reader: CheckpointReader) -> list[Any]:
    source = entry.source
    ours = [entry.name, entry.dtype, entry.shape, entry.our_axes]
    return [*ours, entry.mesh_axes, source.name, source.dtype, source.shape, reader.checksums(source.name)]
