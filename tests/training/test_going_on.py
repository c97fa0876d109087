# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Finished runs go on in place, with more steps or epochs."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from t5_experimental.training.trainer.checkpoint_folders import finished_step, goes_beyond


def weights(folder: Path) -> dict[str, bytes]:
    return {name: weight.numpy().tobytes() for name, weight in load_file(folder / "model.safetensors").items()}


@pytest.mark.slow
def test_a_finished_run_goes_on_as_if_it_had_been_asked_for_more_at_once(tiny_models, forked, tmp_path):
    common = {"model_name_or_path": tiny_models["t5_v1_1"], "logging_steps": 1, "per_device_train_batch_size": 2}
    common |= {"report_to": "none", "save_total_limit": 1}
    output, whole = tmp_path / "output", tmp_path / "whole"
    first = {**common, "output_dir": output}
    assert forked(**first, max_steps=3).returncode == 0
    for same in ({}, {"resume_from_checkpoint": False}):
        refused = forked(**first, max_steps=3, **same)
        assert refused.returncode == 1
        said = "already holds a model, and its run is finished: give more --max_steps or --num_train_epochs to go on"
        assert said in refused.stderr
    refused = forked(**first, max_steps=6, resume_from_checkpoint=False)
    assert "already holds a model, and its run is finished" in refused.stderr
    before = weights(output)
    # It is killed after its first checkpoint; the same command goes on once more.
    kill = """
import os
from t5_experimental.training.trainer.trainer import T5Trainer
whole = T5Trainer.training_step
def step(self, *args, **kwargs):
    if self.state.global_step == 5:
        os.kill(os.getpid(), 9)
    return whole(self, *args, **kwargs)
T5Trainer.training_step = step
"""
    killed = forked(**first, max_steps=6, save_steps=4, hook=kill)
    assert killed.returncode == -9
    assert (output / "checkpoint-4").is_dir()  # by the options of this run, not those of the checkpoint
    assert weights(output) == before
    gone_on = forked(**first, max_steps=6, save_steps=4)
    assert gone_on.returncode == 0, gone_on.stderr
    assert "resumes from" in gone_on.stdout
    assert [path.name for path in output.glob("checkpoint-*")] == ["checkpoint-6"]
    assert forked(**common, output_dir=whole, max_steps=6).returncode == 0
    assert weights(output) == weights(whole) != before


def test_a_run_that_ends_before_its_first_log_has_a_curve(tiny_models, forked, tmp_path):
    result = forked(
        model_name_or_path=tiny_models["t5_v1_1"], output_dir=tmp_path, max_steps=3, per_device_train_batch_size=2
    )
    assert result.returncode == 0, result.stderr
    logs = json.loads((tmp_path / "checkpoint-3" / "trainer_state.json").read_text())["log_history"]
    assert [log["step"] for log in logs if "loss" in log] == [1, 2, 3]


@pytest.mark.parametrize(
    ("state", "max_steps", "epochs", "expected"),
    [
        ({"max_steps": 100, "global_step": 100, "num_train_epochs": 1, "epoch": 0.3}, 100, 3.0, False),
        ({"max_steps": 100, "global_step": 100, "num_train_epochs": 1, "epoch": 0.3}, 101, 3.0, True),
        ({"max_steps": 100, "global_step": 100, "num_train_epochs": 1, "epoch": 0.3}, -1, 1.0, True),
        ({"max_steps": 150, "global_step": 150, "num_train_epochs": 3, "epoch": 3.0}, -1, 3.0, False),
        ({"max_steps": 150, "global_step": 150, "num_train_epochs": 3, "epoch": 3.0}, -1, 4.0, True),
        ({"max_steps": 25, "global_step": 25, "num_train_epochs": 1, "epoch": 0.5}, -1, 0.5, False),
        ({"max_steps": 25, "global_step": 25, "num_train_epochs": 1, "epoch": 0.5}, -1, 0.75, True),
        # It ended before its last step.
        ({"max_steps": 150, "global_step": 90, "num_train_epochs": 3, "epoch": 1.8}, -1, 3.0, False),
        ({"global_step": 90}, 100, 3.0, False),
    ],
)
def test_a_run_is_longer_than_another(state, max_steps, epochs, expected, tmp_path):
    (tmp_path / "trainer_state.json").write_text(json.dumps(state))
    assert goes_beyond(tmp_path, max_steps, epochs) == expected
    assert not goes_beyond(tmp_path / "nowhere", max_steps, epochs)


def test_the_last_step_of_a_finished_run(tmp_path):
    assert finished_step(tmp_path) == float("inf")
    (tmp_path / "trainer_state.json").write_text('{"global_step": 3}')
    assert finished_step(tmp_path) == 3
