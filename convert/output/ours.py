# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Which finished folders are as this program wrote them: no others are replaced or removed.

The record of a folder lists its files (`files`) and the checksums of all but itself (`crc32c`). Earlier versions wrote
no such checksums: of their folders, only the weights of converted ones are compared.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from t5_experimental import own_folders

from . import crc32c
from .record import RECORD_FILENAME
from .unchanged import changed_files


# The record of a finished folder, by what the folder is called.
RECORDS = {"converted": RECORD_FILENAME, "exported": "export.json"}


def is_ours(folder: Path) -> bool:
    """Whether it is a finished folder, of any kind."""
    return why_not_ours(folder, RECORDS.values()) is None


def why_not_ours(folder: Path, records: Iterable[str]) -> str | None:
    """As `own_folders.why_not_finished`; what is not as it was written is the user's. Every file is read, small ones
    first."""
    records = list(records)
    why = own_folders.why_not_finished(folder, records)
    if why is not None:
        return why
    for path in (folder / name for name in records if (folder / name).exists()):
        changed = _first_changed(folder, json.loads(path.read_bytes()))
        if changed is not None:
            return f"{changed} is not the one that this program wrote"
    return None


def _first_changed(folder: Path, record: Mapping[str, Any]) -> str | None:
    written = record.get("crc32c")
    if not isinstance(written, dict):
        return next(iter(changed_files(folder, record)), None)
    present = [path for path in folder.iterdir() if path.name not in RECORDS.values() and path.name != own_folders.MARK]
    for path in sorted(present, key=lambda path: (path.stat().st_size, path.name)):
        if path.name not in written or f"{crc32c.of_file(path):08x}" != written[path.name]:
            return path.name
    return None
