# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Pre-trains a small model by span corruption, then fine-tunes it beside one that was not, on two processor cores.

    python -m benchmarks.pretraining --text shakespeare.txt --output benchmarks/results/pretraining

The text, whose documents blank lines separate, is cut in three: the first 80 % are pre-trained on, of the next 10 %
come the examples to fine-tune on, of the last 10 % those to evaluate on. The task is to say which word is missing from
three lines: little to learn from, and much that other text of the author tells. Both models begin with the same random
weights and see the same examples in the same order. Written are OUTPUT.json and OUTPUT.png.
"""

import argparse
import json
import random
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import transformers

from .common import write_json
from .small_models import curve, draw_curves, launch, launch_all, make_model, read_figures, train_vocabulary


SHAPE = "t5.1.1"
LINES = 3
BLANK = "<extra_id_0>"
LIMITS = {"max_source_length": 96, "max_target_length": 12}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--text", type=Path, required=True, help="text file, documents separated by blank lines")
    parser.add_argument("--steps", type=int, default=300, help="of pre-training")
    parser.add_argument("--batch-size", type=int, default=16, help="rows of 128 tokens in a step of pre-training")
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="of pre-training; it rises and falls")
    parser.add_argument("--fine-tuning-steps", type=int, default=150)
    parser.add_argument("--fine-tuning-batch-size", type=int, default=32)
    parser.add_argument("--fine-tuning-learning-rate", type=float, default=1e-3, help="it rises and falls, too")
    parser.add_argument("--evaluated", type=int, default=500, help="examples to evaluate on, at most")
    parser.add_argument("--pieces", type=int, default=2000, help="size of the vocabulary, sentinels not counted")
    parser.add_argument("--at-once", type=int, default=2, help="trainings at the same time, on one thread each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that everything works")
    parser.add_argument("--output", type=Path, default=Path("pretraining"), help="path without suffix")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.steps = arguments.fine_tuning_steps = 2
        arguments.evaluated = 20
    return arguments


def cut_text(text: str) -> tuple[str, str, str]:
    """A text in parts of 80, 10 and 10 % of its documents."""
    documents = re.split(r"\n\s*\n", text.strip())
    first, second = len(documents) * 8 // 10, len(documents) * 9 // 10
    parts = (documents[:first], documents[first:second], documents[second:])
    return tuple("\n\n".join(part) for part in parts)  # type: ignore[return-value]


def missing_words(text: str, seed: int) -> list[dict[str, str]]:
    """An example for every line of a text with the lines after it: a word that is missing, one of at least three
    letters."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    chance = random.Random(seed)
    examples = []
    for start in range(len(lines) - LINES + 1):
        passage = " ".join(lines[start : start + LINES])
        if words := list(re.finditer(r"[A-Za-z]{3,}", passage)):
            word = chance.choice(words)
            source = passage[: word.start()] + BLANK + passage[word.end() :]
            examples.append({"source": source, "target": word.group()})
    return examples


def prepare_data(text: Path, work: Path, evaluated: int, seed: int) -> dict[str, int]:
    """Writes `text.txt`, `train.jsonl` and `validation.jsonl`; returns how much each holds."""
    plain, train, validation = cut_text(text.read_text(encoding="utf-8"))
    (work / "text.txt").write_text(plain + "\n", encoding="utf-8")
    examples = {"train": missing_words(train, seed), "validation": missing_words(validation, seed)}
    if len(examples["validation"]) > evaluated:
        examples["validation"] = random.Random(seed).sample(examples["validation"], evaluated)
    for name, rows in examples.items():
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (work / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    return {"text_characters": len(plain), **{name: len(rows) for name, rows in examples.items()}}


def shared_options(steps: int, batch_size: int, learning_rate: float, seed: int) -> dict[str, Any]:
    """Options of a training with AdamW, whose learning rate rises for a tenth of the steps and then falls."""
    return {
        "max_steps": steps,
        "save_steps": steps,
        "logging_steps": max(steps // 20, 1),
        "per_device_train_batch_size": batch_size,
        "optim": "adamw_torch_fused",
        "learning_rate": learning_rate,
        "lr_scheduler_type": "linear",
        "warmup_steps": steps // 10,
        "seed": seed,
        "report_to": "none",
        "disable_tqdm": True,
    }


def pretrain(work: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Pre-trains the fresh model and returns the figures."""
    options = shared_options(arguments.steps, arguments.batch_size, arguments.learning_rate, arguments.seed)
    place = {"model_name_or_path": work / "fresh", "output_dir": work / "pretrained"}
    # An empty preset: the original's Adafactor is made for a million steps. Text in small parts is shuffled better.
    text = {"train_file": work / "text.txt", "max_source_length": 128, "shuffle_megabytes": 0.1}
    usage = launch("pretrain", {**options, **place, **text, "optimizer_preset": ""}, threads=1)
    return {**read_figures(work / "pretrained"), "cpu_seconds": usage.cpu_seconds}


def fine_tune(work: Path, arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Fine-tunes the pre-trained and the fresh model and returns the figures of each."""
    steps = arguments.fine_tuning_steps
    options = {
        **shared_options(steps, arguments.fine_tuning_batch_size, arguments.fine_tuning_learning_rate, arguments.seed),
        **LIMITS,
        "train_file": work / "train.jsonl",
        "validation_file": work / "validation.jsonl",
        "eval_strategy": "steps",
        "eval_steps": max(steps // 6, 1),
        "metric": "exact_match",
        "per_device_eval_batch_size": 128,
        "dropout_rate": 0.1,
    }
    models = {"pre-trained": "pretrained", "fresh": "fresh"}
    outputs = {name: work / "runs" / folder for name, folder in models.items()}
    runs = [
        {**options, "model_name_or_path": work / folder, "output_dir": outputs[name]} for name, folder in models.items()
    ]
    usages = launch_all("finetune", runs, arguments.at_once)
    return {
        name: {**read_figures(output), "cpu_seconds": usage.cpu_seconds}
        for (name, output), usage in zip(outputs.items(), usages, strict=True)
    }


def main() -> None:
    arguments = parse_arguments()
    transformers.logging.set_verbosity_error()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        sizes = prepare_data(arguments.text, work, arguments.evaluated, arguments.seed)
        vocabulary = work / "vocabulary.model"
        lines = (work / "text.txt").read_text(encoding="utf-8").splitlines()
        train_vocabulary(lines, vocabulary, arguments.pieces)
        parameters = make_model(work / "fresh", SHAPE, vocabulary, arguments.seed)
        pretraining = pretrain(work, arguments)
        print("pre-training", pretraining["log"][-2:], flush=True)
        tuned = fine_tune(work, arguments)
    models = {
        name: {
            "exact_match": round(figures["eval_exact_match"], 2),
            "validation_loss": figures["eval_loss"],
            "seconds": figures["train_runtime"],
            "cpu_seconds": round(figures["cpu_seconds"], 1),
            "log": figures["log"],
        }
        for name, figures in tuned.items()
    }
    for name, result in models.items():
        print(name, {key: value for key, value in result.items() if key != "log"}, flush=True)
    results = {
        "settings": {name: value for name, value in vars(arguments).items() if name not in ("text", "output")},
        "sizes": sizes,
        "parameters": parameters,
        "pretraining": {
            "seconds": pretraining["train_runtime"],
            "cpu_seconds": round(pretraining["cpu_seconds"], 1),
            "tokens_per_second": pretraining["train_tokens_per_second"],
            "log": pretraining["log"],
        },
        "models": models,
        "seconds": round(time.perf_counter() - start),
    }
    write_json(arguments.output.with_suffix(".json"), results)
    panels: dict[str, Any] = {"span corruption: training loss": {SHAPE: curve(pretraining["log"], "loss")}}
    for heading, figure in (("missing word: held-out loss", "eval_loss"), ("exact match", "eval_exact_match")):
        panels[heading] = {name: curve(result["log"], figure) for name, result in models.items()}
    title = (
        f"{parameters / 1e6:.1f} M parameters, {arguments.steps} steps of pre-training, "
        f"{arguments.fine_tuning_steps} of fine-tuning"
    )
    draw_curves(arguments.output.with_suffix(".png"), title, panels)


if __name__ == "__main__":
    main()
