# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""`history.jsonl` and `trainer_state.json` in the output folder."""

import json
from pathlib import Path
from types import SimpleNamespace

from transformers import TrainerState

from t5_experimental.training.trainer.history import HISTORY, HistoryCallback


DATA = Path(__file__).parents[1] / "data"

# Ends the process without a word after the log of step 3.
KILLED = """
import os
from t5_experimental.training.trainer.trainer import T5Trainer

step = T5Trainer.training_step


def training_step(self, *args, **kwargs):
    if self.state.global_step == 3:
        os._exit(9)
    return step(self, *args, **kwargs)


T5Trainer.training_step = training_step
"""


def rows_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / HISTORY).read_text().splitlines()]


def test_history_is_that_of_one_run_however_often_it_was_resumed(tiny_models, forked, tmp_path):
    options = {
        "model_name_or_path": tiny_models["t5_v1_1"],
        "output_dir": tmp_path / "output",
        "validation_file": DATA / "restaurants_validation.jsonl",
        "max_steps": 5,
        "logging_steps": 1,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_steps": 2,
        "save_total_limit": 1,
    }
    assert forked(hook=KILLED, **options).returncode == 9
    assert [row["step"] for row in rows_of(tmp_path / "output") if "loss" in row] == [1, 2, 3]
    with (tmp_path / "output" / HISTORY).open("a") as file:
        file.write('{"loss": 1.5, "st')  # torn
    result = forked(**options)
    assert result.returncode == 0, result.stderr
    rows = rows_of(tmp_path / "output")
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4, 5]
    # transformers evaluates in the last step, too; then comes the saved model.
    assert [row["step"] for row in rows if "eval_loss" in row] == [2, 4, 5, 5]
    assert sum("train_runtime" in row for row in rows) == 1
    state = json.loads((tmp_path / "output" / "trainer_state.json").read_text())
    assert state["log_history"] == rows
    assert state["global_step"] == 5
    assert [path.name for path in (tmp_path / "output").glob("checkpoint-*")] == ["checkpoint-5"]
    assert not list((tmp_path / "output").glob(".*"))


def test_a_run_that_starts_over_has_a_history_of_its_own(tmp_path):
    (tmp_path / HISTORY).write_text('{"loss": 1}\n')
    args, state = SimpleNamespace(output_dir=tmp_path), TrainerState(is_world_process_zero=True)
    alone = HistoryCallback()
    state.log_history = [{"eval_loss": 2.0, "step": 0}]
    alone.on_log(args, state, None)  # an evaluation alone leaves it
    assert rows_of(tmp_path) == [{"loss": 1}]
    callback, state.log_history = HistoryCallback(), []
    callback.on_train_begin(args, state, None)
    assert rows_of(tmp_path) == []
    state.log_history.append({"loss": 2.5, "grad_norm": float("nan"), "step": 1})
    callback.on_log(args, state, None)
    state.is_world_process_zero = False
    callback.on_log(args, state, None)
    assert rows_of(tmp_path) == [{"loss": 2.5, "grad_norm": None, "step": 1}]
