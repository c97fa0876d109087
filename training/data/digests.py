# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Identifies the pairs of a run, so that a checkpoint is not resumed on others."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Dataset

from .packed_rows import PackedRows


# Pairs that are looked at: in all, and at least of each part of a mixture.
_SAMPLED, _LEAST = 1024, 16


def digest_of_pairs(pairs: Any, sizes: Sequence[int] = ()) -> str | None:
    """Twelve digits that identify pairs by their token ids, wherever their files are; None for data sets of other
    kinds.

    It must be cheap for any amount of data, since every checkpoint has it: only evenly spaced pairs are looked at,
    about a thousand, so a change of a few rows of many may go unnoticed.

    Args:
        pairs: with `input_ids` and `labels`.
        sizes: of the parts of a mixture, in the order of their pairs; of each, some are looked at.
    """
    if isinstance(pairs, PackedRows):
        pairs = pairs.pairs
    if not isinstance(pairs, (Dataset, list)) or not len(pairs) or not {"input_ids", "labels"} <= set(pairs[0]):
        return None
    sizes = sizes or [len(pairs)]
    most, first, digest = max(_SAMPLED // len(sizes), _LEAST), 0, hashlib.sha256()
    for size in sizes:
        for place in np.unique(np.linspace(0, size - 1, min(size, most)).astype(int)):
            row = pairs[first + int(place)]
            for name in ("input_ids", "labels"):
                ids = np.asarray(row[name], np.int64).reshape(-1)
                digest.update(len(ids).to_bytes(8, "little") + ids.astype("<i8").tobytes())
        first += size
    return digest.hexdigest()[:12]
