# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""The loss of a step as the options ask for it, however its batch is cut into parts."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, DataCollatorForSeq2Seq

from t5_experimental import original_loss, token_losses
from t5_experimental.training import finetune
from t5_experimental.training.optim.presets import build_optimizer
from t5_experimental.training.trainer.arguments import T5TrainingArguments
from t5_experimental.training.trainer.trainer import T5Trainer


FAMILIES = ("t5_v1_1", "t5_lm_adapted", "t5_talking_heads", "t5_first_layers_narrow")
LENGTH = 12


def examples() -> list[dict[str, list[int]]]:
    """Twelve examples with targets of 1 to 12 tokens."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 1000, (12, 2, LENGTH), generator=generator).tolist()
    return [{"input_ids": source, "labels": target[: count + 1]} for count, (source, target) in enumerate(ids)]


@pytest.fixture
def make_trainer(tiny_models: dict[str, Path], tmp_path: Path) -> Callable[..., T5Trainer]:
    """`make_trainer(family, **options)`: without dropout, with every batch padded to the same length."""

    def make(family: str, **options: Any) -> T5Trainer:
        folder = tiny_models[family]
        model = AutoModelForSeq2SeqLM.from_pretrained(folder, dropout_rate=0.0)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        arguments = T5TrainingArguments(
            output_dir=str(tmp_path / "output"),
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            logging_steps=1,
            **options,
        )
        return T5Trainer(
            model=model,
            args=arguments,
            train_dataset=examples(),
            eval_dataset=examples(),
            data_collator=DataCollatorForSeq2Seq(tokenizer, model=model, padding="max_length", max_length=LENGTH),
            optimizers=build_optimizer("finetune", model, learning_rate=0.03),
        )

    return make


def train(trainer: T5Trainer) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses of all steps, and the weights then."""
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return losses, {name: weight.clone() for name, weight in trainer.model.state_dict().items()}


OPTIONS = {"z_loss": 1e-2, "label_smoothing_factor": 0.1}


@pytest.mark.parametrize("denominator", ["tokens", "positions"])
@pytest.mark.parametrize("family", FAMILIES)
def test_accumulation_gives_the_curve_of_the_large_batch(
    family: str, denominator: str, make_trainer: Callable[..., T5Trainer]
) -> None:
    """Parts with unequal numbers of target tokens, over two epochs."""
    options = {"max_steps": 4, "loss_denominator": denominator, **OPTIONS}
    losses, weights = train(make_trainer(family, per_device_train_batch_size=6, **options))
    parts = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3}
    part_losses, part_weights = train(make_trainer(family, **parts, **options))
    assert len(set(losses)) == 4
    assert part_losses == pytest.approx(losses, rel=1e-5)
    # Adafactor divides by the root of squared gradients: where these are nearly 0, rounding shows.
    for name, weight in part_weights.items():
        assert (weight - weights[name]).norm() < 1e-4 * weights[name].norm(), name


def test_a_mean_of_means_is_another_curve(
    make_trainer: Callable[..., T5Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    losses, _ = train(make_trainer("t5_v1_1", per_device_train_batch_size=6, max_steps=4))
    monkeypatch.setattr(T5Trainer, "_get_num_items_in_batch", lambda *_: None)
    parts = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3}
    means, _ = train(make_trainer("t5_v1_1", **parts, max_steps=4))
    assert means != pytest.approx(losses, rel=1e-3)


def test_the_loss_is_what_the_options_say(make_trainer: Callable[..., T5Trainer]) -> None:
    """All examples in one step, whose loss is therefore known beforehand."""
    whole = {"per_device_train_batch_size": 12, "max_steps": 1}
    trainer = make_trainer("t5_v1_1", **whole)
    batch = trainer.data_collator(examples())
    labels = batch["labels"]
    with torch.no_grad():
        logits = trainer.model(**batch).logits
    counted = labels >= 0

    def mean(**options: float) -> float:
        return float(token_losses(logits, labels.clamp(min=0), **options)[counted].mean())

    expected = {
        (): mean(),
        (("z_loss", 1e-2),): mean(z_loss=1e-2),
        (("label_smoothing_factor", 0.1),): mean(label_smoothing=0.1),
        (("loss_denominator", "positions"), ("z_loss", 1e-4)): float(original_loss(logits, labels)),
    }
    assert len(set(expected.values())) == 4
    for options, loss in expected.items():
        trainer = make_trainer("t5_v1_1", **whole, **dict(options))
        # Evaluation is cross-entropy per token, regardless of the training loss.
        assert trainer.evaluate()["eval_loss"] == pytest.approx(mean(), rel=1e-5)
        assert train(trainer)[0] == pytest.approx([loss], rel=1e-5)


def test_positions_are_counted_up_to_the_limit(
    tiny_models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in the original, which pads to it; batches of pairs are padded to their longest target."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    lines = [{"source": "a", "target": "food " * (1 + 3 * row)} for row in range(4)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    files = f"--model_name_or_path {tiny_models['t5_v1_1']} --train_file {tmp_path / 'train.jsonl'}"
    common = f"{files} --max_steps 1 --logging_steps 1 --save_strategy no --use_cpu --report_to none --dropout_rate 0"

    def loss(more: str) -> float:
        flags = f"{common} --output_dir {tmp_path / 'output'} --max_target_length 60 {more}"
        trainer, splits = finetune.build_trainer(finetune.parse(flags.split()))
        trainer.train()
        tokens.append(sum(map(len, splits["train"].pairs["labels"])))
        return next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)

    tokens: list[int] = []
    whole = loss("--loss_denominator positions --per_device_train_batch_size 4")
    parts = loss(
        "--loss_denominator positions --per_device_train_batch_size 1 --gradient_accumulation_steps 4",
    )
    mean = loss("--loss_denominator tokens --per_device_train_batch_size 4")
    assert parts == pytest.approx(whole, rel=1e-5)
    assert mean * tokens[0] == pytest.approx(whole * 4 * 60, rel=1e-5)
