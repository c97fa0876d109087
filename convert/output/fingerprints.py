# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Whether the weights of a finished folder are still those that were written: what trains a model saves it under the
same names. Some of the bytes tell, so that files of any size take no time."""

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any


_BLOCK, _BLOCKS = 4096, 256

_WEIGHTS = re.compile(r".*\.(safetensors|onnx|onnx_data|data-\d+-of-\d+)", re.DOTALL)

FIELD = "weights"
"""Key of the fingerprints, by the file's name, in the record of a folder."""


def fingerprints(folder: Path) -> dict[str, str]:
    """Of every file of weights in a folder, by name."""
    return {name: _fingerprint(folder / name) for name in sorted(os.listdir(folder)) if _WEIGHTS.fullmatch(name)}


def changed_files(folder: Path, record: Mapping[str, Any]) -> list[str]:
    """Names of the files of weights that are not those of which a record has fingerprints; one of an earlier version
    has none."""
    known = record.get(FIELD)
    if not isinstance(known, dict):
        return []
    return [name for name, fingerprint in fingerprints(folder).items() if known.get(name) != fingerprint]


def _fingerprint(path: Path) -> str:
    """Of a file's size and of blocks from its first byte, where safetensors has the header, to its last."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        digest = hashlib.sha256(str(size).encode())
        last = max(0, size - _BLOCK)
        for at in sorted({last * block // (_BLOCKS - 1) for block in range(_BLOCKS)}):
            file.seek(at)
            digest.update(file.read(_BLOCK))
    return digest.hexdigest()
