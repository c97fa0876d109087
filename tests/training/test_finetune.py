# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""`training/finetune.py` as users start it: through accelerate, in processes of its own."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from t5_experimental.training import finetune


DATA = Path(__file__).parents[1] / "data"


def logged_losses(result: subprocess.CompletedProcess[str]) -> list[float]:
    """Training losses as the trainer printed them."""
    assert result.returncode == 0, result.stderr
    logs = [ast.literal_eval(line) for line in result.stdout.splitlines() if line.startswith("{'loss'")]
    return [float(log["loss"]) for log in logs]


def batch_loss(folder: Path) -> float:
    """Loss of a saved model on four fixed examples, without dropout."""
    rows = [json.loads(line) for line in (DATA / "restaurants_train.jsonl").read_text().splitlines()[:4]]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    batch = tokenizer([row["source"] for row in rows], padding=True, return_tensors="pt")
    labels = tokenizer([row["target"] for row in rows], padding=True, return_tensors="pt").input_ids
    with torch.no_grad():
        return model(**batch, labels=labels.masked_fill(labels == 0, -100)).loss.item()


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["t5_v1_1", "t5_lm_adapted", "t5_talking_heads", "t5_first_layers_narrow"])
def test_every_family_trains_and_reloads(model_type, tiny_models, launch, tmp_path):
    model, output = tiny_models[model_type], tmp_path / "output"
    result = launch(
        model_name_or_path=model,
        output_dir=output,
        validation_file=DATA / "restaurants_validation.jsonl",
        max_steps=4,
        logging_steps=1,
        save_steps=2,
    )
    assert len(logged_losses(result)) == 4
    assert f"({model_type})" in result.stdout
    assert "adafactor, learning rate 0.001, schedule constant" in result.stdout
    assert "400 train, 50 eval" in result.stdout
    files = {path.name for path in output.iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= files
    assert {"checkpoint-2", "checkpoint-4", "all_results.json", "eval_results.json"} <= files
    assert not files & {"unfinished", "training_args.bin", "test_results.json"}
    assert json.loads((output / "eval_results.json").read_text())["eval_loss"] > 0
    # The untrained loss is ln(1152) and a bit; four steps of any model that learns go below that of the start.
    assert batch_loss(output) < batch_loss(model)


@pytest.mark.slow
def test_learns_resumes_and_reports_exact_match(tiny_models, launch, tmp_path):
    model, output = tiny_models["t5_v1_1"], tmp_path / "output"
    options = {
        "model_name_or_path": model,
        "test_file": DATA / "restaurants_test.jsonl",
        "per_device_train_batch_size": 32,
        "learning_rate": 0.01,
        "dropout_rate": 0,
        "max_target_length": 64,
        "save_steps": 60,
        "predict_with_generate": True,
    }
    losses = logged_losses(launch(**options, output_dir=output, max_steps=120, logging_steps=20))
    assert losses[-1] < losses[0] / 2
    assert batch_loss(output) < batch_loss(model) / 2
    metrics = json.loads((output / "test_results.json").read_text())
    assert 0 <= metrics["test_exact_match"] <= 1

    checkpoint, resumed = output / "checkpoint-60", tmp_path / "resumed"
    result = launch(**options, output_dir=resumed, max_steps=120, logging_steps=20, resume_from_checkpoint=checkpoint)
    assert logged_losses(result) == losses[3:]


def test_dropout_is_what_was_asked_for(tiny_models, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    losses = {}
    for name, flags in {"default": [], "none": ["--dropout_rate", "0"], "half": ["--dropout_rate", "0.5"]}.items():
        folders = ["--model_name_or_path", str(tiny_models["t5_v1_1"]), "--output_dir", str(tmp_path / name)]
        data = ["--train_file", str(DATA / "restaurants_train.jsonl")]
        finetune.main([*folders, *data, "--use_cpu", "--max_steps", "1", "--save_strategy", "no", *flags])
        rate = {"default": 0.1, "none": 0, "half": 0.5}[name]
        assert f"dropout    {rate:g}\n" in capsys.readouterr().out
        assert json.loads((tmp_path / name / "config.json").read_text())["dropout_rate"] == rate
        losses[name] = json.loads((tmp_path / name / "train_results.json").read_text())["train_loss"]
    # Examples and weights of the one step are the same, so the rate alone tells the losses apart.
    assert len(set(losses.values())) == 3


@pytest.mark.slow
def test_two_processes_and_accumulation_equal_one_large_batch(tiny_models, launch, tmp_path):
    options = {
        "model_name_or_path": tiny_models["t5_talking_heads"],
        "validation_file": DATA / "restaurants_validation.jsonl",
        "per_device_eval_batch_size": 5,
        "dropout_rate": 0,
        "max_steps": 4,
        "logging_steps": 1,
        "save_strategy": "no",
        "predict_with_generate": True,
    }
    one = launch(**options, output_dir=tmp_path / "one", per_device_train_batch_size=8)
    two = launch(
        ("--multi_gpu", "--num_processes", "2"),
        **options,
        output_dir=tmp_path / "two",
        per_device_train_batch_size=4,
        ddp_backend="gloo",
    )
    accumulated = launch(
        **options, output_dir=tmp_path / "accumulated", per_device_train_batch_size=2, gradient_accumulation_steps=4
    )
    expected = logged_losses(one)
    assert "8 examples on 2 process(es)" in two.stdout
    assert "8 examples on 1 process(es)" in accumulated.stdout
    assert logged_losses(two) == pytest.approx(expected, rel=2e-4)  # printed with four digits
    assert logged_losses(accumulated) == pytest.approx(expected, rel=2e-4)
    weights = {
        name: AutoModelForSeq2SeqLM.from_pretrained(tmp_path / name).state_dict()
        for name in ("one", "two", "accumulated")
    }
    for name in ("two", "accumulated"):
        for key, value in weights["one"].items():
            torch.testing.assert_close(weights[name][key], value, atol=1e-4, rtol=1e-4, msg=f"{name}: {key}")
    evaluations = [json.loads((tmp_path / name / "eval_results.json").read_text())["eval_loss"] for name in weights]
    assert evaluations == pytest.approx([evaluations[0]] * 3, rel=1e-4)


@pytest.mark.slow
def test_non_finite_loss_stops_the_run(tiny_models, launch, tmp_path):
    result = launch(
        model_name_or_path=tiny_models["t5_v1_1"],
        output_dir=tmp_path / "output",
        learning_rate=1e30,
        max_steps=6,
        logging_steps=1,
        save_steps=6,
    )
    assert result.returncode != 0
    assert "finetune: The loss is nan at or before step" in result.stderr
    assert not [path.name for path in (tmp_path / "output").iterdir()]


def test_module_and_help(tmp_path):
    """It runs as an installed module from anywhere, and the help text formats."""
    command = [sys.executable, "-m", "t5_experimental.training.finetune", "--help"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "--source_prefix" in result.stdout
    assert "--learning_rate" in result.stdout
