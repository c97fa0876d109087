# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""The trainer's log as `history.jsonl` in the output folder: one JSON object per line, for a whole run.

Checkpoints are pruned, and a run may end before its report; the file has every log up to then. A resumed run first
removes what was logged after its checkpoint, and will be logged again.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .checkpoint_folders import write_aside


HISTORY = "history.jsonl"


class HistoryCallback(TrainerCallback):
    """Writes the log of a run that trains; an evaluation alone has none."""

    def __init__(self) -> None:
        self._begun = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **unused: Any
    ) -> None:
        self._begun = True
        if state.is_world_process_zero:
            _begin(Path(str(args.output_dir)) / HISTORY, state.log_history)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **unused: Any) -> None:
        if self._begun and state.is_world_process_zero:
            path = Path(str(args.output_dir)) / HISTORY
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as file:
                file.write(_as_lines(state.log_history[-1:]))


def _begin(path: Path, logs: Iterable[Mapping[str, Any]]) -> None:
    """Makes a file have just these logs. It is there from the beginning of the training, and tells that a run has been
    in the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_aside(path.parent, path.name, _as_lines(logs))


def _as_lines(logs: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(finite(log)) + "\n" for log in logs)


def finite(value: Any) -> Any:
    """The same for JSON, which has neither NaN nor infinity: both are null."""
    if isinstance(value, Mapping):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_state(state: TrainerState, path: Path) -> None:
    """Writes a trainer's state as [`restore_logs`] expects it."""
    path.write_text(json.dumps(finite(asdict(state)), indent=2, sort_keys=True) + "\n", encoding="utf-8")


def restore_logs(state: TrainerState) -> None:
    """Makes null in the log of a state that was read a NaN again."""
    state.log_history = [
        {name: math.nan if value is None else value for name, value in log.items()} for log in state.log_history
    ]
