# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Results of earlier weights in the folder of a run that goes on."""

import json
from collections.abc import Collection
from pathlib import Path

from ..data.predictions import predictions_file


_ALL = "all"


def remove_stale(folder: Path, splits: Collection[str]) -> None:
    """Removes figures and texts that an earlier run here, which this one goes on from, left: they are not of the
    weights that are there now. What `all_results.json` does not have word for word is not that run's.

    Args:
        folder: the output folder.
        splits: whose figures are written next.
    """
    together = _read_figures(folder / _results_file(_ALL))
    for path in sorted(folder.glob(_results_file("*"))):
        split, figures = path.name.removesuffix(_results_file("")), _read_figures(path)
        figures.pop("epoch", None)
        is_ours = figures.items() <= together.items() and all(name.startswith(f"{split}_") for name in figures)
        if split == _ALL or not figures or not is_ours:
            continue
        texts = predictions_file(folder, split)
        if _has_predictions(texts):
            texts.unlink()
        if split not in splits:
            path.unlink()


def _has_predictions(path: Path) -> bool:
    try:
        with path.open(encoding="utf-8") as file:
            row = json.loads(file.readline())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(row, dict) and {"input", "prediction", "references", "sequence_score"} <= row.keys()


def _results_file(split: str) -> str:
    """As transformers names it."""
    return f"{split}_results.json"


def _read_figures(path: Path) -> dict[str, str]:
    """The figures of a file as they are written there; none if it is not a file of figures."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"), parse_float=str, parse_int=str, parse_constant=str)
    except (OSError, ValueError, RecursionError):
        return {}
    return {name: str(value) for name, value in found.items()} if isinstance(found, dict) else {}
