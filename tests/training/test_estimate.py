# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""`--estimate`: what it prints, that it trains nothing and reads no weights, and what it counts."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from t5_experimental import preset_config
from t5_experimental.original import padded_vocab_size
from t5_experimental.training import finetune, pretrain, prompt_tune
from t5_experimental.training.data.pretraining_arguments import PretrainingDataArguments
from t5_experimental.training.engines.engine import Engine
from t5_experimental.training.errors import TrainingError
from t5_experimental.training.memory.activations import Step
from t5_experimental.training.memory.estimate import table
from t5_experimental.training.memory.states import Setup, empty_model, estimate
from t5_experimental.training.optim.presets import OptimizerChoice, build_optimizer
from t5_experimental.vocabulary import SENTINELS


TINY = {"d_model": 128, "d_ff": 160, "d_kv": 32, "num_heads": 4, "num_layers": 2, "vocab_size": 384}
DATA = Path(__file__).parents[1] / "data"


@pytest.fixture
def without_weights(tmp_path: Path) -> Path:
    """A model's folder with the configuration and tokenizer alone."""
    folder = tmp_path / "empty"
    preset_config("t5.1.th.base", **TINY).save_pretrained(folder)
    shutil.copyfile(DATA / "restaurants.model", folder / "spiece.model")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer", "extra_ids": 100}')
    return folder


def figures(text: str) -> dict[str, str]:
    return dict(re.match(r"(\S+)\s+(.*)", line).groups() for line in text.splitlines())  # type: ignore[union-attr]


ENTRY_POINTS: dict[str, tuple[Callable[..., Any], list[str]]] = {
    "finetune": (finetune.main, ["--train_file", str(DATA / "restaurants_train.jsonl")]),
    "prompt_tune": (prompt_tune.main, ["--train_file", str(DATA / "restaurants_train.jsonl")]),
    "pretrain": (
        pretrain.main,
        ["--train_file", str(DATA / "restaurants_train.jsonl"), "--text_column", "target", "--max_steps", "1"],
    ),
}


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_entry_points(name: str, without_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main, options = ENTRY_POINTS[name]
    output = tmp_path / "output"
    main(["--model_name_or_path", str(without_weights), "--output_dir", str(output), *options, "--estimate"])
    found = figures(capsys.readouterr().out)
    assert found["estimate"].startswith("single on 1 process(es)")
    assert "GB" in found["activations"]
    assert "16, 24" in found["fits"]
    assert not output.exists()


def test_of_a_preset_under_an_engine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--train_file", str(DATA / "restaurants_train.jsonl"), "--text_column", "target", "--max_steps", "1"]
    options += ["--preset", "t5.1.1.xxl", "--tokenizer_name", str(DATA / "restaurants.model")]
    options += [
        "--optimizer_preset",
        "adamw",
        "--gradient_checkpointing",
        "--output_dir",
        str(tmp_path / "x"),
    ]
    pretrain.main([*options, "--estimate", "fsdp2:8"])
    found = figures(capsys.readouterr().out)
    assert found["estimate"].startswith("fsdp2 on 8 process(es), adamw, bfloat16")
    # 11 B parameters, less most of the vocabulary, in float32, by 8
    assert float(found["parameters"].split()[0]) == pytest.approx(5.4, abs=0.1)


@pytest.mark.parametrize(
    ("name", "step"), [("finetune", "8 x 512/128"), ("prompt_tune", "32 x 612/128"), ("pretrain", "8 x 512/114")]
)
def test_a_preset_is_enough(name: str, step: str, capsys: pytest.CaptureFixture[str]) -> None:
    """No data, tokenizer, number of steps or output folder."""
    main, _ = ENTRY_POINTS[name]
    main(["--preset", "t5.1.1.small", "--estimate", "fsdp2:8"])
    found = figures(capsys.readouterr().out)
    assert found["step"].startswith(f"{step} tokens")
    needed = "--optimizer_preset finetune, since the default does not run there"
    assert found.get("needed") == (needed if name == "finetune" else None)
    size, unit = found["parameters"].split()  # the whole vocabulary, in a unit that has digits for it
    assert (float(size), unit) == (pytest.approx(76.96 * 4 / 8, rel=1e-3), "MB")


@pytest.mark.parametrize(
    ("name", "option"), [("finetune", "--optimizer_preset adamw"), ("prompt_tune", "--optim adamw_torch")]
)
def test_the_option_that_a_run_needs_is_one_of_the_program(
    name: str, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main, _ = ENTRY_POINTS[name]
    main(["--preset", "t5.1.1.small", "--estimate", "deepspeed_zero2:8"])
    assert figures(capsys.readouterr().out)["needed"] == f"{option}, since the default does not run there"
    main(["--preset", "t5.1.1.small", "--estimate", "deepspeed_zero2:8", *option.split()])
    assert "needed" not in figures(capsys.readouterr().out)


def test_objectives_of_the_released_vocabulary_are_those_of_a_tokenizer(tiny_models: dict[str, Path]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_models["t5_v1_1"])
    kinds = get_args(get_type_hints(PretrainingDataArguments)["objective"])
    assert len(kinds) == 6
    for kind in kinds:
        options = PretrainingDataArguments(objective=kind)
        known, real = options.make_objective(None), options.make_objective(tokenizer)
        assert (type(known), known.inputs_length) == (type(real), real.inputs_length)
        # UL2's modes take one token each there, and six here.
        assert known.targets_length - real.targets_length == (5 if kind == "ul2" else 0)
    assert preset_config("t5.1.1.small").vocab_size == padded_vocab_size(32_000 + SENTINELS)


def test_without_training_there_is_an_estimate_as_well(capsys: pytest.CaptureFixture[str]) -> None:
    finetune.main(["--preset", "t5.1.1.small", "--estimate", "--do_train", "False"])
    assert "GB" in figures(capsys.readouterr().out)["total"]
    with pytest.raises(SystemExit, match="--preset without --estimate: give --model_name_or_path"):
        finetune.main(["--preset", "t5.1.1.small", "--do_train", "False", "--output_dir", "x", "--use_cpu"])


@pytest.mark.parametrize("value", ["fsdp3:8", "fsdp2:none", "fsdp2:0"])
def test_unknown_engines(value: str, without_weights: Path, tmp_path: Path) -> None:
    main, options = ENTRY_POINTS["finetune"]
    with pytest.raises(SystemExit, match="is not ENGINE:PROCESSES"):
        main(
            ["--model_name_or_path", str(without_weights), "--output_dir", str(tmp_path), *options, "--estimate", value]
        )


@pytest.mark.parametrize("preset", ["t5.1.1.base", "t5.1.th.base", "t5.1.n4w10.base"])
@pytest.mark.parametrize("optimizer", ["finetune", "adamw", "rms_adamw"])
def test_one_process_exactly(preset: str, optimizer: str) -> None:
    fields = TINY | ({"num_layers": 5} if "n4w10" in preset else {})
    config = preset_config(preset, **fields)
    model = AutoModelForSeq2SeqLM.from_config(config)
    real, _ = build_optimizer(optimizer, model)
    for weight in model.parameters():
        weight.grad = torch.ones_like(weight)
    real.step()
    state = sum(value.nbytes for values in real.state.values() for value in values.values())
    setup = Setup(Engine(), OptimizerChoice(optimizer), bf16=False)
    counted = estimate(empty_model(config), config, setup, Step(1, 8, 8))
    assert counted.device["optimizer"] == state
    assert counted.device["gradients"] == sum(weight.grad.nbytes for weight in model.parameters())  # type: ignore
    assert counted.device["parameters"] == sum(weight.nbytes for weight in model.parameters())


def test_whole_parameter_optimizers_do_not_go_along_with_sharding() -> None:
    config = preset_config("t5.1.1.small")
    setup = Setup(Engine.named("deepspeed_zero3", 2), OptimizerChoice("finetune"))
    with pytest.raises(TrainingError, match=r"preset finetune takes means .* DeepSpeed's ZeRO-3 flattens and shards"):
        estimate(empty_model(config), config, setup, Step(1, 8, 8))


def test_adapters_are_all_that_is_trained() -> None:
    pytest.importorskip("peft")
    config = preset_config("t5.1.1.xl")
    model = empty_model(config, lora_rank=16)
    step = Step(8, 512, 128, autocast=True, trained="adapters", rank=16)
    counted = estimate(model, config, Setup(Engine(), OptimizerChoice("adamw")), step)
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    assert counted.device["gradients"] == 4 * trained < 0.02 * counted.device["parameters"]


def test_table() -> None:
    rows = table().splitlines()
    assert len(rows) == 2 + 10
    xxl = next(row for row in rows if row.startswith("| t5.1.1.xxl"))
    assert "**none** (2" in xxl  # AdamW alone takes 16 bytes for each of 11 B parameters
    assert "\n".join(rows) in (DATA.parents[1] / "docs" / "memory.md").read_text()
