# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""The best weights are those that the run ends with, and its checkpoint stays, wherever the folder is."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file
from transformers import TrainerControl, TrainerState

from t5_experimental.training import finetune
from t5_experimental.training.trainer.saving import _StopEarly


DATA = Path(__file__).parents[1] / "data"


@pytest.fixture
def run(tiny_models, tmp_path, monkeypatch) -> Callable[..., Path]:
    """`run(folder, **options)`: evaluates and saves every step; the highest loss is the best, which step 1 has."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    common = {"model_name_or_path": tiny_models["t5_v1_1"], "train_file": DATA / "restaurants_train.jsonl"}
    common |= {"validation_file": DATA / "restaurants_validation.jsonl", "use_cpu": True, "disable_tqdm": True}
    common |= {"report_to": "none", "per_device_train_batch_size": 2, "eval_strategy": "steps", "eval_steps": 1}
    common |= {"save_steps": 1, "metric_for_best_model": "loss", "greater_is_better": True, "learning_rate": 0.01}
    common |= {"load_best_model_at_end": True, "save_total_limit": 2}

    def start(folder: Path | str, **options: object) -> Path:
        chosen = {**common, "output_dir": folder, **options}
        given = {name: str(value) for name, value in chosen.items() if value is not None}
        finetune.main([word for name, value in given.items() for word in (f"--{name}", value)])
        return Path(folder)

    return start


def weights(folder: Path) -> dict[str, bytes]:
    return {name: weight.numpy().tobytes() for name, weight in load_file(folder / "model.safetensors").items()}


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("checkpoint-*"))


@pytest.mark.parametrize("how", ["moved", "copied", "other path"])
def test_the_best_checkpoint_is_found_where_the_folder_is_now(how, run, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    run("first", max_steps=2)
    best = weights(Path("first") / "checkpoint-1")
    if how == "copied":
        shutil.copytree("first", "second")
    elif how == "moved":
        Path("first").rename("second")
    else:
        (tmp_path / "first").rename("second")
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
    second = run(tmp_path / "second", max_steps=4)
    assert checkpoints(second) == ["checkpoint-1", "checkpoint-4"]
    assert weights(second) == weights(second / "checkpoint-1") == best
    state = json.loads((second / "trainer_state.json").read_text())
    assert (state["best_global_step"], state["best_model_checkpoint"]) == (1, str(second / "checkpoint-1"))
    assert "does not exist anymore" not in caplog.text


def test_the_best_checkpoint_may_be_the_one_to_resume_from_by_any_name(run, tmp_path):
    first = run(tmp_path / "first", max_steps=1)
    (first / "checkpoint-1").rename(tmp_path / "kept")
    output = run(tmp_path / "output", max_steps=2, resume_from_checkpoint=tmp_path / "kept")
    assert weights(output) == weights(tmp_path / "kept")
    assert "the saved model is that of step 1" in (output / "README.md").read_text()


def test_a_best_checkpoint_that_is_gone_is_missed(run, tmp_path):
    output = run(tmp_path / "output", max_steps=2)
    shutil.rmtree(output / "checkpoint-1")
    with pytest.raises(SystemExit, match=r"best checkpoint so far, checkpoint-1, is not beside .*: put it back, or"):
        run(output, max_steps=3)
    run(output, max_steps=3, load_best_model_at_end=False)
    assert weights(output) == weights(output / "checkpoint-3")


def test_the_end_of_a_run_removes_no_checkpoint_of_others_nor_the_last(run, tmp_path):
    foreign = tmp_path / "output" / "checkpoint-0"
    foreign.mkdir(parents=True)
    (foreign / "thesis.tex").write_text("mine")
    output = run(tmp_path / "output", max_steps=3, save_total_limit=1)
    assert checkpoints(output) == ["checkpoint-0", "checkpoint-1", "checkpoint-3"]
    assert (foreign / "thesis.tex").read_text() == "mine"
    assert weights(output) == weights(output / "checkpoint-1") != weights(output / "checkpoint-3")


def test_a_best_metric_that_comes_and_goes(run, tmp_path, monkeypatch):
    """One's own function may return other names for other texts."""
    name = f"metrics_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(
        "CALLS = []\ndef figures(p, r):\n    CALLS.append(1)\n    return {'b' if len(CALLS) > 1 else 'a': 1.0}\n"
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        SystemExit, match=r"--metric_for_best_model a is not among the figures .* eval_b, .* same names in"
    ):
        run(tmp_path / "output", max_steps=2, metric=f"{name}:figures", metric_for_best_model="a")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"save_steps": 3}, "but --eval_steps is 1 and --save_steps 3: give the same, or --save_strategy best"),
        ({"eval_steps": None, "save_steps": 500}, "--eval_steps is 50 and --save_steps 500"),
        ({"eval_steps": 0.1, "save_steps": 0.3}, "--eval_steps is 0.1 and --save_steps 0.3"),
        ({"save_strategy": "no"}, "--eval_strategy is steps and --save_strategy no"),
    ],
)
def test_every_evaluation_needs_a_checkpoint(options, expected, run, tmp_path):
    with pytest.raises(SystemExit, match=f"--load_best_model_at_end needs a checkpoint of every .*{expected}"):
        run(tmp_path / "output", max_steps=3, **options)


def test_only_the_best_are_saved(run, tmp_path):
    output = run(tmp_path / "output", max_steps=3, save_strategy="best", save_steps=None)
    assert checkpoints(output) == ["checkpoint-1"]
    assert weights(output) == weights(output / "checkpoint-1")


STILL = {"learning_rate": 0, "optim": "sgd", "load_best_model_at_end": False, "save_total_limit": 1, "max_steps": 9}


def last_step(folder: Path) -> int:
    return json.loads((folder / "trainer_state.json").read_text())["global_step"]


def test_a_run_that_stopped_early_stops_at_once_until_it_is_finished(run, tmp_path):
    options = {**STILL, "early_stopping_patience": 2}
    output = run(tmp_path / "output", **options)
    assert last_step(output) == 3
    for name in ("report.html", "README.md"):  # as after a kill in the last evaluation
        (output / name).unlink()
    run(output, **options)
    assert (last_step(output), checkpoints(output)) == (3, ["checkpoint-1", "checkpoint-3"])
    # It goes on; the next evaluation is no better. It may be killed once more.
    options["max_steps"] = 12
    run(output, **options)
    assert last_step(output) == 4
    (output / "trainer_state.json").write_text('{"global_step": 3}')
    run(output, **options)
    assert last_step(output) == 4
    # The checkpoint of another run is what a new one goes on from.
    other = run(tmp_path / "other", **options, resume_from_checkpoint=output / "checkpoint-4")
    assert last_step(other) == 5


def test_early_stopping_is_silent_about_evaluations_without_its_metric(run, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    for name in ("a", "b"):
        shutil.copyfile(DATA / "restaurants_validation.jsonl", tmp_path / f"{name}.jsonl")
    several = {"validation_file": f"{tmp_path}/[ab].jsonl", "test_file": DATA / "restaurants_test.jsonl"}
    options = {**STILL, **several, "early_stopping_patience": 2, "metric_for_best_model": "a_loss"}
    assert last_step(run(tmp_path / "output", **options)) == 3
    assert "early stopping required" not in caplog.text


def test_figures_that_are_not_finite_are_no_improvement():
    stop = _StopEarly(2, 0.0)
    args, state = SimpleNamespace(greater_is_better=True), TrainerState()
    for count, value in enumerate([float("nan")] * 3, start=1):
        stop.check_metric_value(args, state, TrainerControl(), value)
        assert stop.early_stopping_patience_counter == count
    stop.check_metric_value(args, state, TrainerControl(), 0.5)
    assert stop.early_stopping_patience_counter == 0


def test_figures_of_earlier_weights_do_not_stay_beside_new_ones(run, tmp_path):
    shared = {"load_best_model_at_end": False, "max_target_length": 4}
    first = {"test_file": f"{DATA}/restaurants_[tv]*[tn].jsonl", "metric": "exact_match"}
    output = run(tmp_path / "output", **shared, **first, max_steps=1)
    splits = ("restaurants_test", "restaurants_train", "restaurants_validation")
    written = {f"test_{split}_results.json" for split in splits} | {
        f"predictions_test_{split}.jsonl" for split in splits
    }
    assert {*written, "predictions_eval.jsonl"} <= {path.name for path in output.iterdir()}
    mine = {"my_results.json": '{"my_loss": 1}', "test_results.json": "[]", "predictions_test.jsonl": "mine"}
    for name, text in mine.items():
        (output / name).write_text(text)
    run(output, **shared, max_steps=2)
    assert not {*written, "predictions_eval.jsonl"} & {path.name for path in output.iterdir()}
    assert {name: (output / name).read_text() for name in mine} == mine
    figures = {}
    for split in ("train", "eval"):
        figures |= json.loads((output / f"{split}_results.json").read_text())
    assert json.loads((output / "all_results.json").read_text()) == figures
