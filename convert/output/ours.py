# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Which finished folders this program wrote and nobody has changed since: no others are replaced or removed."""

import json
from collections.abc import Iterable
from pathlib import Path

from t5_experimental import own_folders

from .record import RECORD_FILENAME
from .unchanged import changed_files


# The record of a finished folder, by what the folder is called.
RECORDS = {"converted": RECORD_FILENAME, "exported": "export.json"}


def is_ours(folder: Path) -> bool:
    """Whether it is a finished folder, of any kind."""
    return why_not_ours(folder, RECORDS.values()) is None


def why_not_ours(folder: Path, records: Iterable[str]) -> str | None:
    """As `own_folders.why_not_finished`; weights that were trained since are the user's."""
    records = list(records)
    why = own_folders.why_not_finished(folder, records)
    if why is not None:
        return why
    for path in (folder / name for name in records if (folder / name).exists()):
        changed = changed_files(folder, json.loads(path.read_bytes()))
        if changed:
            return f"{changed[0]} is not the one that this program wrote"
    return None
