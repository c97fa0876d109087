# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""`training/prompt_tune.py` as users start it, and what it refuses."""

import ast
import json
import os
import sys
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from t5_experimental.training import prompt_tune
from t5_experimental.training.cli.entry_point import RECIPES
from t5_experimental.training.optim.adafactor import PromptAdafactor


REPOSITORY = Path(__file__).parents[2]
DATA = REPOSITORY / "tests" / "data"
TRAIN = DATA / "restaurants_train.jsonl"


@pytest.fixture(autouse=True)
def _private_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def words(**options):
    return [text for name, value in {"use_cpu": True, **options}.items() for text in (f"--{name}", str(value))]


def logged_losses(output):
    logs = [ast.literal_eval(line) for line in output.splitlines() if line.startswith("{'loss'")]
    return [float(log["loss"]) for log in logs]


def load(model, adapter):
    return peft.PeftModel.from_pretrained(AutoModelForSeq2SeqLM.from_pretrained(model), adapter).eval()


def test_a_prompt_learns_loads_and_generates(tiny_models, fork_server, tmp_path):
    """In a process of its own, with the recipe."""
    model, output = tiny_models["t5_lm_adapted"], tmp_path / "adapter"
    options = words(
        model_name_or_path=model,
        train_file=TRAIN,
        validation_file=DATA / "restaurants_validation.jsonl",
        output_dir=output,
        prompt_length=20,
        class_labels="The, Thai food",
        max_steps=30,
        logging_steps=10,
        eval_steps=30,
        save_steps=30,
        disable_tqdm=True,
    )
    run = fork_server.start("prompt_tune", ["prompt_tune.yaml", *options], "single", 1)
    assert run.wait() == [0], run.read()
    printed, _ = run.printed()
    assert "prompt      20 rows, initialized with labels; all else is frozen\n" in printed
    assert "adafactor without parameter scaling, learning rate 0.3, schedule constant, decay 1e-05\n" in printed
    assert "32 examples on 1 process(es)" in printed
    assert "dropout     0.1\n" in printed
    losses = logged_losses(printed)
    assert losses[-1] < losses[0] - 0.05
    files = {path.name for path in output.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "checkpoint-30"} <= files
    assert not files & {"config.json", "model.safetensors", "training_args.bin", "unfinished"}
    assert {name: value.shape for name, value in load_file(output / "adapter_model.safetensors").items()} == {
        "prompt_embeddings": (20, 32)
    }

    adapted, tokenizer = load(model, output), AutoTokenizer.from_pretrained(output)
    texts = [json.loads(line)["source"] for line in TRAIN.read_text().splitlines()[:3]]
    texts[0] += " " + texts[1]
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    assert (inputs.attention_mask == 0).any()
    together = adapted.generate(**inputs, max_new_tokens=8)
    for text, row in zip(texts, together, strict=True):
        alone = adapted.generate(**tokenizer(text, return_tensors="pt"), max_new_tokens=8)[0]
        assert torch.equal(row[: len(alone)], alone)


def test_only_the_prompt_is_trained(tiny_models, tmp_path, monkeypatch):
    """The model stays as it is, and the optimizer keeps a state of the prompt alone, not factored."""
    right, seen = prompt_tune.finetune.train_and_evaluate, []

    def watched(trainer, *others):
        before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
        right(trainer, *others)
        changed = [name for name, value in trainer.model.named_parameters() if not torch.equal(value, before[name])]
        seen.append((changed, [set(state) for state in trainer.optimizer.state.values()]))

    moved, replace = [], os.replace
    monkeypatch.setattr("os.replace", lambda source, target: moved.append(Path(target).name) or replace(source, target))
    monkeypatch.setattr(prompt_tune.finetune, "train_and_evaluate", watched)
    options = {"model_name_or_path": tiny_models["t5_talking_heads"], "train_file": TRAIN, "prompt_length": 4}
    more = {"output_dir": tmp_path / "adapter", "max_steps": 2, "save_strategy": "no", "disable_tqdm": True}
    prompt_tune.main(words(**options, **more))
    # Without its configuration, nothing loads the folder.
    assert {"adapter_model.safetensors", "tokenizer.json"} <= set(moved[: moved.index("adapter_config.json")])
    assert seen == [(["prompt_encoder.default.embedding.weight"], [{"step", "v"}])]


def test_a_run_resumes_exactly(tiny_models, tmp_path, capsys):
    options = {
        "model_name_or_path": tiny_models["t5_first_layers_narrow"],
        "train_file": TRAIN,
        "validation_file": DATA / "restaurants_validation.jsonl",
        "prompt_length": 4,
        "max_steps": 4,
        "save_steps": 2,
        "logging_steps": 1,
        "disable_tqdm": True,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 50,
        "predict_with_generate": True,
        "generation_max_length": 4,
    }
    prompt_tune.main(words(**options, output_dir=tmp_path / "whole"))
    losses = logged_losses(capsys.readouterr().out)
    assert len(losses) == 4
    checkpoint = tmp_path / "whole" / "checkpoint-2"
    prompt_tune.main(words(**options, output_dir=tmp_path / "resumed", resume_from_checkpoint=checkpoint))
    assert logged_losses(capsys.readouterr().out) == losses[2:]
    whole, resumed = (
        load_file(tmp_path / name / "adapter_model.safetensors")["prompt_embeddings"] for name in ("whole", "resumed")
    )
    assert torch.equal(whole, resumed)
    assert json.loads((tmp_path / "whole" / "eval_results.json").read_text())["eval_exact_match"] == 0


def test_the_optimizer_is_that_of_the_paper():
    """Two steps by hand: no scaling by the parameter, no factoring of a short prompt, decay that is not scaled."""
    torch.manual_seed(0)
    start, gradients = torch.randn(100, 256) * 40, torch.randn(2, 100, 256)
    parameter = torch.nn.Parameter(start.clone())
    optimizer = PromptAdafactor([parameter], lr=0.3, weight_decay=1e-5)
    expected, moment = start.clone(), torch.zeros_like(start)
    for step, gradient in enumerate(gradients):
        parameter.grad = gradient.clone()
        optimizer.step()
        decay = 1 - (step + 1) ** -0.8
        moment = decay * moment + (1 - decay) * (gradient**2 + 1e-30)
        update = gradient / moment.sqrt()
        update = update / update.square().mean().sqrt().clamp(min=1)
        expected = (1 - 1e-5) * expected - 0.3 * update
        torch.testing.assert_close(parameter.detach(), expected)
    assert set(optimizer.state[parameter]) == {"step", "v"}


def test_a_step_without_a_rate_moves_nothing():
    """FSDP's checkpoints take one before they give the optimizer its state."""
    parameter = torch.nn.Parameter(torch.ones(5, 8))
    parameter.grad = torch.ones(5, 8)
    PromptAdafactor([parameter], lr=0.0, weight_decay=0.1).step()
    assert torch.equal(parameter, torch.ones(5, 8))


def test_the_recipe_is_the_paper(tiny_models, tmp_path):
    paper = words(model_name_or_path=tiny_models["t5_lm_adapted"], train_file=TRAIN, output_dir=tmp_path / "adapter")
    recipe = RECIPES / "prompt_tune.yaml"
    assert recipe.read_text().startswith(
        "# accelerate launch training/prompt_tune.py training/recipes/prompt_tune.yaml"
    )
    model, prompt, _, training = prompt_tune.ENTRY_POINT.parse([str(recipe), *paper]).options
    assert (prompt.prompt_length, prompt.prompt_init) == (100, "vocab")
    assert (training.learning_rate, training.weight_decay, training.max_grad_norm) == (0.3, 1e-5, 0)
    assert (training.per_device_train_batch_size, training.max_steps, model.dropout_rate) == (32, 30_000, 0.1)


def test_import(tiny_models, tmp_path, capsys):
    rows = np.random.default_rng(0).standard_normal((100, 32)).astype(np.float32)
    np.save(tmp_path / "x.npy", rows)
    model, output = tiny_models["t5_lm_adapted"], tmp_path / "adapter"
    options = {"model_name_or_path": model, "import_prompt": tmp_path / "x.npy", "output_dir": output}
    prompt_tune.main(words(**options))
    assert f"The prompt of 100 rows is in {output}" in capsys.readouterr().out
    card = (output / "README.md").read_text()
    assert "A prompt for prompt tuning of `t5_lm_adapted`, a `T5LMAdaptedForConditionalGeneration`," in card
    assert 'AutoTokenizer.from_pretrained("t5_lm_adapted")' in card
    assert "report.html" not in card
    assert load(model, output).get_prompt(batch_size=1)[0].detach().numpy().tobytes() == rows.tobytes()
    with pytest.raises(
        SystemExit, match="already holds an adapter, and no checkpoint to go on from: give another folder"
    ):
        prompt_tune.main(words(**options))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "There is nothing to do: give --train_file, --dataset_name or --mixture to tune a prompt, or --import"),
        ({"train_file": TRAIN, "import_prompt": "x.npy"}, "--import_prompt trains nothing: .* leave --train_file out"),
        ({"test_file": TRAIN, "import_prompt": "x.npy"}, "--import_prompt trains nothing: .* leave --test_file out"),
        ({"import_prompt": "x.npy", "prompt_length": 100}, "trains nothing: .* leave --prompt_length out"),
        ({"import_prompt": "x.npy", "class_labels": "a"}, "trains nothing: .* leave --class_labels out"),
        ({"import_prompt": "x.npy", "learning-rate": 0.1}, "trains nothing: .* leave --learning_rate out"),
        ({"import_prompt": "none.npy"}, "--import_prompt none.npy cannot be read"),
        ({"train_file": TRAIN, "prompt_length": 0}, "--prompt_length is 0"),
        ({"train_file": TRAIN, "prompt_init": "labels"}, "--prompt_init labels needs the labels: give --class_labels"),
        ({"train_file": TRAIN, "prompt_init": "vocab", "class_labels": "a"}, "--class_labels is not for --prompt_init"),
        (
            {"train_file": TRAIN, "prompt_init": "zero"},
            "--prompt_init zero is not one of vocab, labels, random, and no file",
        ),
        ({"train_file": TRAIN, "optimizer_preset": "finetune"}, "There is no option --optimizer_preset"),
        ({"train_file": TRAIN, "lora_rank": 2}, "There is no option --lora_rank"),
        ({"train_file": TRAIN, "class_labels": "The,日"}, "does not know all of '日'"),
        ({"train_file": TRAIN, "class_labels": "The,,food"}, "has an empty label"),
        ({"train_file": TRAIN, "class_labels": "The,food", "prompt_length": 1}, "2 labels for a prompt of 1 rows"),
    ],
)
def test_bad_options(options, expected, tiny_models, tmp_path):
    output = tmp_path / "adapter"
    with pytest.raises(SystemExit, match=f"^prompt_tune: .*{expected}"):
        prompt_tune.main(words(model_name_or_path=tiny_models["t5_lm_adapted"], output_dir=output, **options))
    assert not output.exists()


def test_peft_is_missing(tiny_models, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    options = words(model_name_or_path=tiny_models["t5_lm_adapted"], train_file=TRAIN, output_dir=tmp_path / "adapter")
    with pytest.raises(SystemExit, match="need the package peft"):
        prompt_tune.main(options)


def test_the_best_prompt_is_kept(tiny_models, tmp_path):
    """And not the last one, as the recipe asks for; the highest loss counts as the best here, which the first has."""
    output = tmp_path / "adapter"
    options = {"model_name_or_path": tiny_models["t5_lm_adapted"], "train_file": TRAIN, "output_dir": output}
    data = {"validation_file": DATA / "restaurants_validation.jsonl", "prompt_length": 4, "disable_tqdm": True}
    steps = {"max_steps": 3, "eval_strategy": "steps", "eval_steps": 1, "save_steps": 1}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": True}
    prompt_tune.main(words(**options, **data, **steps, **best))
    kept, first, last = (
        load_file(folder / "adapter_model.safetensors")["prompt_embeddings"]
        for folder in (output, output / "checkpoint-1", output / "checkpoint-3")
    )
    assert torch.equal(kept, first)
    assert not torch.equal(kept, last)
