# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Generated texts as JSON lines, one for every distinct input: `predictions_SPLIT.jsonl`."""

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import TrainingError, parse_json_line
from .metrics import score_example


@dataclass(frozen=True)
class Sample:
    """An input, the model's output, and the references.

    Attributes:
        source: the input as in the file, without `--source_prefix`.
        prediction: the text.
        references: of the input.
        sequence_score: log-probability of the text's tokens, with the one that ends it, under the model alone: search,
            temperature and penalties of `generate` do not count. NaN if unknown.
    """

    source: str
    prediction: str
    references: Sequence[str]
    sequence_score: float = math.nan

    def row(self, metrics: Sequence[str]) -> dict[str, Any]:
        """What is written about it: also the values of those metrics that are defined for one example."""
        return {
            "input": self.source,
            "prediction": self.prediction,
            "references": list(self.references),
            "sequence_score": self.sequence_score if math.isfinite(self.sequence_score) else None,
            **score_example(metrics, self.prediction, self.references),
        }


# Those that JSON need not escape.
_CONTROLS = re.compile("[\x7f-\x9f\u2028\u2029]")


def predictions_file(folder: Path, split: str) -> Path:
    """Where the texts of a split are written."""
    return folder / f"predictions_{split}.jsonl"


def as_lines(samples: Sequence[Sample], metrics: Sequence[str]) -> str:
    """The lines of a file; control characters are escaped, so that none reaches a terminal."""
    lines = "".join(json.dumps(sample.row(metrics), ensure_ascii=False) + "\n" for sample in samples)
    return _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", lines)


def append(path: Path, samples: Sequence[Sample], metrics: Sequence[str]) -> None:
    """Adds lines to a file, and waits until they are on disk."""
    with path.open("ab") as file:
        file.write(as_lines(samples, metrics).encode())
        file.flush()
        os.fsync(file.fileno())


def repair(path: Path) -> None:
    """Removes the torn last line of a file that an interrupted run was writing."""
    if path.is_file():
        with path.open("r+b") as file:
            file.truncate(file.read().rfind(b"\n") + 1)


def read_predictions(path: Path, references: Mapping[str, Sequence[str]]) -> list[Sample]:
    """What a run has written so far.

    Args:
        path: the file, which need not exist.
        references: of every input, in the order of the file.

    Raises:
        TrainingError: the file has a line that is not of this split.
    """
    if not path.is_file():
        return []
    samples, inputs = [], list(references)
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
    for number, line in enumerate(lines, start=1):
        where = f"{path}, line {number}"
        row = parse_json_line(line, where)
        expected = inputs[number - 1 : number]
        score = row.get("sequence_score")
        is_score = score is None or (isinstance(score, (int, float)) and not isinstance(score, bool))
        if [row.get("input")] != expected or not isinstance(row.get("prediction"), str) or not is_score:
            raise TrainingError(f"{where}: this is not the prediction of an example of this evaluation; remove it.")
        score = math.nan if score is None else float(score)
        samples.append(Sample(expected[0], row["prediction"], references[expected[0]], score))
    return samples
