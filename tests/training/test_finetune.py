# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""`training/finetune.py` from its flags to its files; tests/engines and README start it with the launcher."""

import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from t5_experimental.training import finetune
from t5_experimental.training.engines.hooks import DeviceHooks, hooks_for
from t5_experimental.training.trainer.settle import bfloat16_is_fast
from t5_experimental.training.trainer.trainer import T5Trainer


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


def as_stock(model: Path, folder: Path, model_type: str, **fields: object) -> Path:
    """A folder of t5.1.1 as transformers 4 would have saved it."""
    shutil.copytree(model, folder, ignore=shutil.ignore_patterns("*.py", "config.json"))
    config = json.loads((model / "config.json").read_text())
    names = (
        "vocab_size",
        "d_model",
        "d_kv",
        "d_ff",
        "num_layers",
        "num_decoder_layers",
        "num_heads",
        "feed_forward_proj",
    )
    stock = {name: config[name] for name in names} | {"tie_word_embeddings": False, "transformers_version": "4.40.0"}
    (folder / "config.json").write_text(json.dumps({**stock, "model_type": model_type, **fields}))
    return folder


def test_folders_of_transformers_train_as_what_they_are(tiny_models, forked, tmp_path):
    """Under transformers 5, its own T5 would train with a classifier that is tied as soon as something ties it."""
    native = tiny_models["t5_v1_1"]
    stock = as_stock(native, tmp_path / "stock", "t5")
    results = [
        forked(model_name_or_path=model, output_dir=tmp_path / name, max_steps=2, logging_steps=1)
        for name, model in (("from_native", native), ("from_stock", stock))
    ]
    assert logged_losses(results[0]) == logged_losses(results[1])
    assert batch_loss(tmp_path / "from_native") == batch_loss(tmp_path / "from_stock")
    assert json.loads((tmp_path / "from_stock" / "config.json").read_text())["model_type"] == "t5_v1_1"
    fewer = as_stock(native, tmp_path / "fewer", "t5", num_layers=1)
    refused = forked(model_name_or_path=fewer, output_dir=tmp_path / "none", max_steps=2)
    assert (
        "has 9 weights that the model of its config.json does not have, such as encoder.block.1.layer.0"
        in refused.stderr
    )


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["t5_v1_1", "t5_lm_adapted", "t5_talking_heads", "t5_first_layers_narrow"])
def test_every_family_trains_and_reloads(model_type, tiny_models, forked, tmp_path):
    model, output = tiny_models[model_type], tmp_path / "output"
    result = forked(
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
def test_learns_resumes_and_reports_exact_match(tiny_models, forked, tmp_path):
    model, output = tiny_models["t5_v1_1"], tmp_path / "output"
    options = {
        "model_name_or_path": model,
        "test_file": DATA / "restaurants_test.jsonl",
        "per_device_train_batch_size": 16,
        "learning_rate": 0.01,
        "dropout_rate": 0,
        "max_target_length": 64,
        "max_steps": 60,
        "save_steps": 30,
        "logging_steps": 10,
        "generation_max_length": 24,
        "predict_with_generate": True,
    }
    losses = logged_losses(forked(**options, output_dir=output))
    assert losses[-1] < losses[0] / 2
    assert batch_loss(output) < batch_loss(model) / 2
    metrics = json.loads((output / "test_results.json").read_text())
    assert 0 <= metrics["test_exact_match"] <= 100

    checkpoint, resumed = output / "checkpoint-30", tmp_path / "resumed"
    result = forked(**options, output_dir=resumed, resume_from_checkpoint=checkpoint)
    assert logged_losses(result) == losses[3:]

    # "True" is the last checkpoint of the output folder, regardless of how its name sorts.
    continued = tmp_path / "continued"
    shutil.copytree(checkpoint, continued / "checkpoint-30")
    (continued / "checkpoint-7").mkdir()
    result = forked(**options, output_dir=continued, resume_from_checkpoint=True)
    assert logged_losses(result) == losses[3:]
    assert (continued / "config.json").is_file()


def test_dropout_is_what_was_asked_for(tiny_models, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    losses = {}
    for name, flags in {
        "default": [],
        "none": ["--dropout_rate", "0"],
        "half": ["--dropout_rate", "0.5", "--broadcast_dropout"],
    }.items():
        folders = ["--model_name_or_path", str(tiny_models["t5_v1_1"]), "--output_dir", str(tmp_path / name)]
        data = ["--train_file", str(DATA / "restaurants_train.jsonl")]
        finetune.main([*folders, *data, "--use_cpu", "--max_steps", "1", "--save_strategy", "no", *flags])
        rate = {"default": 0.1, "none": 0, "half": 0.5}[name]
        said = f"dropout     {rate:g}{', the same at all positions' * (name == 'half')}\n"
        assert said in capsys.readouterr().out
        config = json.loads((tmp_path / name / "config.json").read_text())
        assert (config["dropout_rate"], config["broadcast_dropout"]) == (rate, name == "half")
        losses[name] = json.loads((tmp_path / name / "train_results.json").read_text())["train_loss"]
    # Examples and weights of the one step are the same, so the rate alone tells the losses apart.
    assert len(set(losses.values())) == 3


@pytest.mark.slow
def test_two_processes_and_accumulation_equal_one_large_batch(tiny_models, forked, tmp_path):
    options = {
        "model_name_or_path": tiny_models["t5_talking_heads"],
        "validation_file": DATA / "restaurants_validation.jsonl",
        "per_device_eval_batch_size": 5,
        "dropout_rate": 0,
        "max_steps": 4,
        "logging_steps": 1,
        "save_strategy": "no",
        "predict_with_generate": True,
        "generation_max_length": 8,
    }
    one = forked(**options, output_dir=tmp_path / "one", per_device_train_batch_size=8)
    two = forked(
        processes=2,
        **options,
        output_dir=tmp_path / "two",
        per_device_train_batch_size=4,
    )
    accumulated = forked(
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
def test_evaluation_counts_every_example_once(tiny_models, forked, tmp_path):
    """Two processes with batches of two fill five examples up to eight, with the first ones."""
    model = AutoModelForSeq2SeqLM.from_pretrained(tiny_models["t5_v1_1"]).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_models["t5_v1_1"])
    inputs = tokenizer("The Amber Anchor serves Thai food", return_tensors="pt")
    produced = tokenizer.decode(model.generate(**inputs, max_new_tokens=8)[0], skip_special_tokens=True).strip()
    rows = [{"source": "The Amber Anchor serves Thai food", "target": produced}]
    rows += [{"source": f"{number} Anchors", "target": "by the harbour"} for number in range(4)]
    (tmp_path / "five.jsonl").write_text("\n".join(map(json.dumps, rows)))
    result = forked(
        processes=2,
        model_name_or_path=tiny_models["t5_v1_1"],
        output_dir=tmp_path / "output",
        validation_file=tmp_path / "five.jsonl",
        per_device_eval_batch_size=2,
        predict_with_generate=True,
        generation_max_length=9,
        # One step that changes nothing: the model that is evaluated is the one above.
        optim="sgd",
        learning_rate=0,
        max_steps=1,
        save_strategy="no",
    )
    assert result.returncode == 0, result.stderr
    assert "on 2 process(es)" in result.stdout
    metrics = json.loads((tmp_path / "output" / "eval_results.json").read_text())
    # With the examples that fill up counted it would be 2 of 8.
    assert metrics["eval_exact_match"] == 100 / 5
    batch = tokenizer([row["source"] for row in rows], padding=True, return_tensors="pt")
    labels = tokenizer([row["target"] for row in rows], padding=True, return_tensors="pt").input_ids
    expected = model(**batch, labels=labels.masked_fill(labels == 0, -100)).loss.item()
    assert metrics["eval_loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"logging_steps": 1, "save_steps": 6},
        # The checkpoint comes long before the first log.
        {"save_steps": 2},
        # Nothing is logged or saved until the end.
        {"save_strategy": "no"},
    ],
)
def test_non_finite_loss_stops_the_run(options, tiny_models, forked, tmp_path):
    model, output = tiny_models["t5_v1_1"], tmp_path / "output"
    result = forked(model_name_or_path=model, output_dir=output, learning_rate=1e30, max_steps=6, **options)
    assert result.returncode != 0
    assert re.search(r"finetune: In step 2, the loss .*became infinite or NaN: nothing more is saved", result.stderr)
    assert {path.name for path in output.iterdir()} <= {"history.jsonl"}


@pytest.mark.slow
def test_non_finite_loss_of_one_process_stops_all(tiny_models, forked, tmp_path):
    """Only the second process sees the loss; neither saves, both end, and the first one says why."""
    result = forked(
        processes=2,
        hook=ONE_BROKEN_LOSS,
        model_name_or_path=tiny_models["t5_v1_1"],
        output_dir=tmp_path / "output",
        max_steps=6,
        save_steps=2,
    )
    assert result.returncode != 0
    assert "on 2 process(es)" in result.stdout
    assert result.stderr.count("finetune: In step 3, the loss became infinite or NaN") == 1
    assert sorted(path.name for path in (tmp_path / "output").iterdir()) == ["checkpoint-2", "history.jsonl"]


# The loss that the trainer is told is not the one that the gradients came from, so that all weights stay finite.
ONE_BROKEN_LOSS = """
from transformers import Seq2SeqTrainer

right = Seq2SeqTrainer.training_step


def training_step(self, *args, **kwargs):
    loss = right(self, *args, **kwargs)
    broken = self.args.process_index == 1 and self.state.global_step == 2
    return loss * float("inf") if broken else loss


Seq2SeqTrainer.training_step = training_step
"""


def test_non_finite_weights_are_not_saved(tiny_models, tmp_path, monkeypatch):
    """The last step breaks the weights: every loss was fine, and yet there is no checkpoint and no model."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folders = ["--model_name_or_path", str(tiny_models["t5_v1_1"]), "--output_dir", str(tmp_path / "output")]
    data = ["--train_file", str(DATA / "restaurants_train.jsonl")]
    for more in ("--save_steps 1", "--save_strategy no", "--save_steps 1 --logging_nan_inf_filter"):
        flags = f"--use_cpu --optim sgd --learning_rate 1e30 --weight_decay 1e10 --max_steps 1 {more}"
        with pytest.raises(SystemExit, match=r"After step 1, shared.weight, .* more of \d+ became infinite or NaN"):
            finetune.main([*folders, *data, *flags.split()])
        assert {path.name for path in (tmp_path / "output").iterdir()} <= {"history.jsonl"}


@pytest.mark.parametrize(
    ("device", "processes", "expected"),
    [
        ("cpu", 1, [0, 1, 2, 3, 3, 4, 5, 5, 5]),
        # Between two logs nothing reads the flag back: the log, the summary of the run, two checks of the final save.
        ("cuda", 1, [3, 5, 5, 5]),
        ("cpu", 2, [3, 5, 5, 5]),
    ],
)
def test_steps_wait_for_the_check_where_it_is_free(device, processes, expected, tiny_models, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    steps = hooks_for(torch.device(device)).steps_between_checks(processes)
    monkeypatch.setattr(DeviceHooks, "steps_between_checks", lambda *unused: steps)
    checks = []
    right = T5Trainer._holds_everywhere

    def counted(self, *args):
        checks.append(self.state.global_step)
        return right(self, *args)

    monkeypatch.setattr(T5Trainer, "_holds_everywhere", counted)
    folders = f"--model_name_or_path {tiny_models['t5_v1_1']} --output_dir {tmp_path / 'output'}"
    data = f"--train_file {DATA / 'restaurants_train.jsonl'}"
    finetune.main(f"{folders} {data} --use_cpu --max_steps 5 --logging_steps 3 --save_strategy no".split())
    assert checks == expected


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_training_steps_need_no_logits(smoothing, tiny_models, tmp_path, monkeypatch):
    """Nor does evaluation of the loss, with smoothed labels, too."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folders = f"--model_name_or_path {tiny_models['t5_v1_1']} --output_dir {tmp_path / 'output'}"
    data = f"--train_file {DATA / 'restaurants_train.jsonl'} --validation_file {DATA / 'restaurants_test.jsonl'}"
    flags = f"--use_cpu --max_steps 2 --save_strategy no --label_smoothing_factor {smoothing}"
    trainer, splits = finetune.build_trainer(finetune.parse(f"{folders} {data} {flags}".split()))
    seen = []
    trainer.model.register_forward_hook(
        lambda model, inputs, outputs: seen.append((model.training, outputs.logits is None))
    )
    trainer.train()
    trainer.evaluate(splits["eval"].pairs.select(range(2)))
    assert set(seen) == {(True, True), (False, True)}


@pytest.mark.parametrize(
    ("launcher", "flags", "hardware", "expected"),
    [
        ("no", "", True, "bf16"),
        ("no", "", False, "no"),
        ("no", "--bf16", False, "bf16"),
        ("no", "--bf16 True", False, "bf16"),
        ("no", "--bf16 False", True, "no"),
        ("no", "--fp16", True, "fp16"),
        ("fp16", "", True, "fp16"),
        ("bf16", "", False, "bf16"),
        ("bf16", "--bf16 False", True, "no"),
    ],
)
def test_precision(launcher, flags, hardware, expected, tiny_models, tmp_path, monkeypatch):
    """bfloat16 where the hardware has it, unless the user says otherwise."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launcher)
    monkeypatch.setattr("t5_experimental.training.trainer.settle.bfloat16_is_fast", lambda use_cpu: hardware)
    folders = f"--model_name_or_path {tiny_models['t5_v1_1']} --output_dir {tmp_path / 'output'}"
    data = f"--train_file {DATA / 'restaurants_train.jsonl'}"
    _, _, training = finetune.parse(f"{folders} {data} --use_cpu {flags}".split()).options
    assert training.mixed_precision == expected
    assert isinstance(training.bf16, bool)


def test_bfloat16_needs_circuits_for_it(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    # Older devices have it emulated, slower than float32.
    for native in (True, False):
        monkeypatch.setattr(
            "torch.cuda.is_bf16_supported",
            lambda including_emulation=True, native=native: including_emulation or native,
        )
        assert bfloat16_is_fast(use_cpu=False) == native
        assert not bfloat16_is_fast(use_cpu=True)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert not bfloat16_is_fast(use_cpu=False)


@pytest.mark.parametrize(
    ("flags", "printed", "warned"),
    [
        ("", "computation float32 (bfloat16 is slow on most CPUs; --bf16 True asks for it)\n", False),
        ("--bf16", "computation bfloat16\n", False),
        ("--fp16", "computation ", True),
    ],
)
def test_precision_is_printed(flags, printed, warned, tiny_models, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folders = f"--model_name_or_path {tiny_models['t5_v1_1']} --output_dir {tmp_path / 'output'}"
    data = f"--train_file {DATA / 'restaurants_train.jsonl'}"
    finetune.main(f"{folders} {data} --use_cpu --max_steps 1 --save_strategy no {flags}".split())
    output = capsys.readouterr()
    assert f"weights float32, {printed}" in output.out
    assert ("WARNING: --fp16 computes in float16" in output.err) == warned


def test_module_and_help(tmp_path):
    """It runs as an installed module from anywhere, and the help text formats."""
    command = [sys.executable, "-m", "t5_experimental.training.finetune", "--help-all"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=1800, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "--source_prefix" in result.stdout
    assert "--learning_rate" in result.stdout
