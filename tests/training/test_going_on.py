# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Runs go on: in place with more steps or epochs, from adapters and prompts, until they no longer improve."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerControl, TrainerState, TrainingArguments

from t5_experimental.training import finetune, prompt_tune
from t5_experimental.training.trainer.checkpoint_folders import finished_step, goes_beyond
from t5_experimental.training.trainer.saving import _UseOwnIntervals


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


def test_a_damaged_checkpoint_is_passed_over_where_a_finished_run_goes_on(tiny_models, forked, tmp_path):
    common = {"model_name_or_path": tiny_models["t5_v1_1"], "report_to": "none", "per_device_train_batch_size": 2}
    options = {**common, "output_dir": tmp_path, "save_steps": 2}
    assert forked(**options, max_steps=4).returncode == 0
    (tmp_path / "checkpoint-4" / "trainer_state.json").write_text("{")
    same = forked(**options, max_steps=4)
    assert same.returncode == 1
    assert "already holds a model, and its run is finished" in same.stderr
    more = forked(**options, max_steps=6)
    assert more.returncode == 0, more.stderr
    assert f"resumes from {tmp_path / 'checkpoint-2'}, since checkpoint-4" in more.stdout
    assert "do not match the ones in the `trainer_state.json`" not in more.stderr  # logging_steps, in so short a run
    for checkpoint in tmp_path.glob("checkpoint-*"):
        (checkpoint / "trainer_state.json").write_text("{")
    refused = forked(**options, max_steps=8)
    assert refused.returncode == 1
    assert (
        "checkpoint-6 to go on from is damaged (its trainer_state.json cannot be read): give another" in refused.stderr
    )


@pytest.mark.slow
def test_workers_that_persist_change_nothing(tiny_models, forked, tmp_path):
    """Dropout draws the same in a run that goes on, which makes another number of iterators over the data."""
    common = {"model_name_or_path": tiny_models["t5_v1_1"], "report_to": "none", "per_device_train_batch_size": 100}
    common |= {"dataloader_num_workers": 1, "dataloader_persistent_workers": True, "dropout_rate": 0.1}
    for steps, output in ((10, "whole"), (6, "parts"), (10, "parts")):
        assert forked(**common, output_dir=tmp_path / output, max_steps=steps, save_steps=20).returncode == 0
    assert weights(tmp_path / "whole") == weights(tmp_path / "parts")


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


DATA = Path(__file__).parents[1] / "data"


def words(**options: object) -> list[str]:
    common = {"train_file": DATA / "restaurants_train.jsonl", "per_device_train_batch_size": 2, "report_to": "none"}
    chosen = {**common, "save_strategy": "no", "use_cpu": True, "disable_tqdm": True, **options}
    return [text for name, value in chosen.items() for text in (f"--{name}", str(value))]


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def test_a_prompt_is_tuned_further(tiny_models, tmp_path):
    pytest.importorskip("peft")
    model = tiny_models["t5_lm_adapted"]
    width = json.loads((model / "config.json").read_text())["d_model"]
    rows = np.random.default_rng(0).normal(size=(7, width)).astype(np.float32)
    np.save(tmp_path / "prompt.npy", rows)
    # A step of rate 0 leaves the prompt as it began.
    still = {"model_name_or_path": model, "max_steps": 1, "learning_rate": 0, "weight_decay": 0}
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    prompt_tune.main(words(**still, output_dir=first, prompt_init=tmp_path / "prompt.npy"))
    prompt_tune.main(words(**still, output_dir=second, prompt_init=first, prompt_length=7))
    for folder in (first, second):
        assert load_file(folder / "adapter_model.safetensors")["prompt_embeddings"].numpy().tobytes() == rows.tobytes()
    prompt_tune.main(words(model_name_or_path=model, max_steps=1, output_dir=third, prompt_init=first))
    tuned = load_file(third / "adapter_model.safetensors")["prompt_embeddings"]
    assert tuned.shape == (7, width)
    assert not torch.equal(tuned, torch.from_numpy(rows))
    for options, message in (
        ({"prompt_init": first, "prompt_length": 8}, "--prompt_length is 8, but --prompt_init .* has 7 rows"),
        ({"prompt_init": "zero"}, "--prompt_init zero is not one of vocab, labels, random, and no file"),
        ({"prompt_init": model}, "has no adapter_model.safetensors that can be read"),
        ({"prompt_init": first, "import_prompt": "x.npy"}, "--import_prompt trains nothing"),
    ):
        with pytest.raises(SystemExit, match=message):
            prompt_tune.main(words(model_name_or_path=model, max_steps=1, output_dir=tmp_path / "no", **options))
    with pytest.raises(SystemExit, match="holds a prompt: prompt_tune tunes it further with --prompt_init"):
        finetune.main(words(model_name_or_path=first, max_steps=1, output_dir=tmp_path / "no", optim="adamw_torch"))
    assert not (tmp_path / "no").exists()


def test_adapters_are_trained_further_and_merged(tiny_models, tmp_path):
    pytest.importorskip("peft")
    model, first, second, merged = tiny_models["t5_v1_1"], *(tmp_path / name for name in ("first", "second", "merged"))
    options = {"optimizer_preset": "adamw", "dropout_rate": 0, "max_steps": 2, "lr_scheduler_type": "constant"}
    finetune.main(words(**options, model_name_or_path=model, output_dir=first, lora_rank=3))
    before = load_file(first / "adapter_model.safetensors")
    finetune.main(words(**{**options, "learning_rate": 0}, model_name_or_path=first, output_dir=second))
    after = load_file(second / "adapter_model.safetensors")
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert json.loads((second / "adapter_config.json").read_text())["base_model_name_or_path"] == str(model)
    finetune.main(words(**options, model_name_or_path=first, output_dir=merged, merge_lora=True))
    assert (merged / "model.safetensors").is_file()
    finetune.main(words(max_steps=1, model_name_or_path=merged, output_dir=tmp_path / "whole"))
    with pytest.raises(SystemExit, match="first holds an adapter: give the folder of the model"):
        prompt_tune.main(words(model_name_or_path=first, max_steps=1, output_dir=tmp_path / "no"))
    with pytest.raises(SystemExit, match=r"--lora_rank is for new adapters, and .*first holds some"):
        finetune.main(words(**options, model_name_or_path=first, output_dir=tmp_path / "no", lora_rank=3))
    with pytest.raises(SystemExit, match="holds adapters, and the Adafactor of --optimizer_preset finetune scales"):
        finetune.main(
            words(model_name_or_path=first, max_steps=1, optimizer_preset="finetune", output_dir=tmp_path / "no")
        )


@pytest.mark.slow
def test_a_run_that_no_longer_improves_ends(tiny_models, forked, tmp_path):
    """Also one that is killed meanwhile, at the same step."""
    options = {"model_name_or_path": tiny_models["t5_v1_1"], "validation_file": DATA / "restaurants_test.jsonl"}
    options |= {"eval_strategy": "steps", "eval_steps": 1, "save_steps": 1, "max_steps": 20, "learning_rate": 0}
    options |= {"early_stopping_patience": 3, "optim": "sgd", "per_device_train_batch_size": 1, "report_to": "none"}
    options |= {"per_device_eval_batch_size": 50}
    kill = """
import os
from t5_experimental.training.trainer.trainer import T5Trainer
whole = T5Trainer.training_step
def step(self, *args, **kwargs):
    if self.state.global_step == 3:
        os.kill(os.getpid(), 9)
    return whole(self, *args, **kwargs)
T5Trainer.training_step = step
"""
    assert forked(**options, output_dir=tmp_path / "killed", hook=kill).returncode == -9
    for name in ("whole", "killed"):
        result = forked(**options, output_dir=tmp_path / name)
        assert result.returncode == 0, result.stderr
        # The first evaluation is the best; three more are no better.
        assert json.loads((tmp_path / name / "trainer_state.json").read_text())["global_step"] == 4
    # One that improves goes on, though its patience is short.
    improving = {**options, "early_stopping_patience": 1, "max_steps": 4, "learning_rate": 0.1}
    improving |= {"save_strategy": "no", "save_steps": None}
    result = forked(**improving, output_dir=tmp_path / "improving")
    assert json.loads((tmp_path / "improving" / "trainer_state.json").read_text())["global_step"] == 4, result.stderr
    refused = forked(**{**options, "eval_strategy": "no"}, output_dir=tmp_path / "no")
    assert "--early_stopping_patience needs evaluations to compare" in refused.stderr


def test_an_estimate_needs_neither_model_nor_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for program, optimizer in ((finetune, "finetune"), (prompt_tune, "adafactor")):
        program.main(["--preset", "t5.1.1.xl", "--estimate", "fsdp2:8"])
        assert f"estimate    fsdp2 on 8 process(es), {optimizer}," in capsys.readouterr().out
    finetune.main(["--preset", "t5.1.1.xl", "--estimate", "deepspeed_zero3:8"])
    assert "deepspeed_zero3 on 8 process(es), adamw," in capsys.readouterr().out
    with pytest.raises(SystemExit, match="does not support: choose --optimizer_preset finetune"):
        finetune.main(["--preset", "t5.1.1.xl", "--estimate", "fsdp2:8", "--optim", "adafactor"])
    assert not [path for path in tmp_path.iterdir() if path.name != "cache"]
    for options, message in (
        (["--preset", "t5.1.1.xl"], "--output_dir is missing"),
        (["--preset", "t5.1.1.xl", "--output_dir", "no"], "--preset without --estimate: give --model_name_or_path"),
        (["--preset", "t5.1.1.xxxl", "--estimate", "fsdp2:8"], "--preset t5.1.1.xxxl does not exist: choose one of"),
        (["--estimate", "fsdp2:8"], "Give either --model_name_or_path, .* or, with --estimate, --preset"),
    ):
        with pytest.raises(SystemExit, match=message):
            finetune.main([*options, "--use_cpu"])


@pytest.mark.parametrize(("steps", "expected"), [(3, 1), (19, 1), (40, 4), (50, 50), (99, 50)])
def test_runs_shorter_than_the_interval_log_every_tenth(steps, expected):
    args, state = TrainingArguments(use_cpu=True, logging_steps=50, report_to="none"), TrainerState(max_steps=steps)
    _UseOwnIntervals().on_train_begin(args, state, TrainerControl())
    assert state.logging_steps == expected
