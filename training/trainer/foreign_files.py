# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Files in an output folder that no run wrote, and that one would replace."""

import json
from fnmatch import fnmatch
from pathlib import Path

from t5_experimental import own_folders

from .checkpoint_folders import ASIDE, EVALUATION, STATE, find_checkpoints
from .history import HISTORY


# What a run writes into its output folder besides checkpoints. `config.json` is checked by itself.
_WRITTEN = (
    *("README.md", "report.html", HISTORY, STATE, "*_results.json", "predictions_*.jsonl"),
    *("*.safetensors", "*.safetensors.index.json", "generation_config.json", "*_t5_experimental.py"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "spiece.model"),
)


def find_foreign_file(folder: Path) -> str | None:
    """Name of a file that a run in this output folder would replace, though no run has been there.

    A run leaves a log, a checkpoint, the record of an evaluation, or its temporary folder before it puts other files in
    place.
    """
    if not folder.is_dir() or _has_been_used(folder):
        return None
    names = sorted(path.name for path in folder.iterdir())
    return next((name for name in names if any(fnmatch(name, pattern) for pattern in _WRITTEN)), None)


def _has_been_used(folder: Path) -> bool:
    aside = folder / ASIDE
    is_interrupted = aside.is_dir() and own_folders.why_not_unfinished(aside) is None
    return is_interrupted or bool(find_checkpoints(folder)) or (folder / EVALUATION).exists() or _has_log(folder)


def _has_log(folder: Path) -> bool:
    """Whether the first line of the log, if there is one, is of a trainer."""
    try:
        with (folder / HISTORY).open(encoding="utf-8") as file:
            line = json.loads(file.readline())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(line, dict) and "step" in line
