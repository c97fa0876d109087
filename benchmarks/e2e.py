# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Trains three small models from scratch to say what a list of facts says: the E2E data set, on two processor cores.

    python -m benchmarks.e2e --data FOLDER --output benchmarks/results/e2e

FOLDER holds `e2e_dev.csv`, to train on, and `e2e_test.csv`, both with the columns `mr` and `ref`. The models have the
shapes of t5.1.1, talking heads and n4w10, about as many parameters as each other, the same vocabulary of 2,000 pieces,
and see the same examples in the same order. Every twelfth input of the training file is held out for the curves; the
test file is used once, at the end. `training/evaluate.py` then evaluates the saved models, and must come to the same
digits. Then transformers' T5 of the t5.1.1 shape and ours train in turns, in the same trainer with the same weights,
for the speed alone. Written are OUTPUT.json and OUTPUT.png.
"""

import argparse
import csv
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoTokenizer

from t5_experimental.training import finetune

from .common import in_turns, stock_twin, summary, write_json
from .small_models import (
    SHAPES,
    curve,
    draw_curves,
    flags,
    launch_all,
    make_model,
    read_figures,
    train_vocabulary,
)


HELD_OUT_EVERY = 12
COLUMNS = {"input_column": "mr", "target_column": "ref"}
LIMITS = {"max_source_length": 96, "max_target_length": 96}
EVALUATED = ("eval_loss", "eval_bleu", "test_loss", "test_bleu")
COMMON = {"report_to": "none", "disable_tqdm": True}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of e2e_dev.csv and e2e_test.csv")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="the highest; it rises and falls linearly")
    parser.add_argument("--warmup-steps", type=int, default=50)
    parser.add_argument("--pieces", type=int, default=2000, help="size of the vocabulary, sentinels not counted")
    parser.add_argument("--speed-steps", type=int, default=40, help="steps of every turn of the comparison of speeds")
    parser.add_argument("--rounds", type=int, default=2, help="turns of that comparison that count")
    parser.add_argument("--at-once", type=int, default=2, help="trainings at the same time, on one thread each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that everything works")
    parser.add_argument("--output", type=Path, default=Path("e2e"), help="path without suffix")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.steps = arguments.speed_steps = 2
        arguments.rounds = 1
    return arguments


def read_rows(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file."""
    with path.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    """Writes rows as a CSV file."""
    with path.open("w", encoding="utf-8", newline="") as lines:
        writer = csv.DictWriter(lines, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def prepare_data(source: Path, folder: Path) -> dict[str, int]:
    """Writes `train.csv` and `validation.csv`, which share no input; returns the rows of each.

    Args:
        source: the training file.
        folder: where they are written.
    """
    rows = read_rows(source)
    inputs = list(dict.fromkeys(row["mr"] for row in rows))
    held_out = set(inputs[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY])
    parts = {
        "train": [row for row in rows if row["mr"] not in held_out],
        "validation": [row for row in rows if row["mr"] in held_out],
    }
    for name, part in parts.items():
        write_rows(folder / f"{name}.csv", part)
    return {name: len(part) for name, part in parts.items()}


def tokens_per_example(folder: Path, rows: list[dict[str, str]]) -> float:
    """Tokens of an input and its target, on average, in the vocabulary of a model."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return statistics.mean(len(tokenizer(row["mr"]).input_ids) + len(tokenizer(row["ref"]).input_ids) for row in rows)


def training_options(model: Path, work: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """What every training has in common, for `training/finetune.py`."""
    return {
        "model_name_or_path": model,
        "train_file": work / "train.csv",
        **COLUMNS,
        **LIMITS,
        **COMMON,
        "dropout_rate": 0.1,
        "per_device_train_batch_size": arguments.batch_size,
        "optim": "adamw_torch_fused",
        "learning_rate": arguments.learning_rate,
        "lr_scheduler_type": "linear",
        "warmup_steps": arguments.warmup_steps,
        # Less padding.
        "train_sampling_strategy": "group_by_length",
        "seed": arguments.seed,
    }


def evaluation_options(work: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """What is evaluated, and how, in training and afterwards."""
    return {
        "validation_file": work / "validation.csv",
        "test_file": arguments.data / "e2e_test.csv",
        "metric": "bleu",
        "per_device_eval_batch_size": 128,
    }


def fine_tune_all(work: Path, arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Trains all models and returns their figures, by shape."""
    interval = max(arguments.steps // 8, 1)
    schedule = {
        "max_steps": arguments.steps,
        "save_steps": arguments.steps,
        "logging_steps": max(arguments.steps // 24, 1),
    }
    evaluation = {**evaluation_options(work, arguments), "eval_strategy": "steps", "eval_steps": interval}
    runs = [
        {
            **training_options(work / "models" / shape, work, arguments),
            **schedule,
            **evaluation,
            "output_dir": work / "runs" / shape,
        }
        for shape in SHAPES
    ]
    usages = launch_all("finetune", runs, arguments.at_once)
    return {
        shape: {**read_figures(work / "runs" / shape), "cpu_seconds": usage.cpu_seconds}
        for shape, usage in zip(SHAPES, usages, strict=True)
    }


def evaluate_all(work: Path, figures: dict[str, dict[str, Any]], arguments: argparse.Namespace) -> None:
    """Evaluates the saved models by `training/evaluate.py`.

    Args:
        work: folder of models and data.
        figures: that training reported, by shape.
        arguments: of the command line.

    Raises:
        RuntimeError: a loss or a metric differs, even in the last digit.
    """
    folders = {shape: work / "evaluations" / shape for shape in SHAPES}
    options = {**COLUMNS, **LIMITS, **COMMON, **evaluation_options(work, arguments)}
    runs = [
        {**options, "model_name_or_path": work / "runs" / shape, "output_dir": folder}
        for shape, folder in folders.items()
    ]
    launch_all("evaluate", runs, arguments.at_once)
    for shape, folder in folders.items():
        found = json.loads((folder / "all_results.json").read_text())
        for name in EVALUATED:
            if found[name] != figures[shape][name]:
                raise RuntimeError(
                    f"evaluate.py finds the {name} {found[name]!r} of the saved {shape}, where its training reported "
                    f"{figures[shape][name]!r}."
                )


def compare_speed(work: Path, tokens: float, arguments: argparse.Namespace) -> dict[str, Any]:
    """How fast transformers' T5 and ours train, in turns in one process, with one thread.

    Args:
        work: folder of models and data.
        tokens: of an example, on average.
        arguments: of the command line.

    Returns:
        Losses of the held-out rows before training, which must agree, and times; tokens count by the processor's
        time, which other programs disturb less.
    """
    torch.set_num_threads(1)
    losses: dict[str, float] = {}

    def contestant(name: str, adapt: Callable[[Any, Any], Any]) -> Callable[[], None]:
        output = {"output_dir": work / "speed", "max_steps": arguments.speed_steps, "save_strategy": "no"}
        options = {
            **training_options(work / "models" / "t5.1.1", work, arguments),
            **output,
            "validation_file": work / "validation.csv",
            "use_cpu": True,
        }
        # Before any training, because dropout then draws differently.
        losses[name] = finetune.build_trainer(finetune.parse(flags(options)), adapt)[0].evaluate()["eval_loss"]

        def train() -> None:
            trainer, _ = finetune.build_trainer(finetune.parse(flags(options)), adapt)
            trainer.train()

        return train

    contestants = {
        "transformers": contestant("transformers", lambda model, tokenizer: stock_twin(model)),
        "t5_experimental": contestant("t5_experimental", lambda model, tokenizer: model),
    }
    cpu_seconds: dict[str, list[float]] = {}
    seconds = in_turns(contestants, arguments.rounds, warm_up=0, cpu_seconds=cpu_seconds)
    figures = summary(seconds, cpu_seconds, "transformers")
    for row in figures.values():
        row["tokens_per_second"] = round(tokens * arguments.batch_size * arguments.speed_steps / row["cpu_median"], 1)
    return {"losses": losses, "contestants": figures}


def summarise(figures: dict[str, Any], parameters: int) -> dict[str, Any]:
    """What counts of a run."""
    return {
        "parameters": parameters,
        "test_bleu": round(figures["test_bleu"], 2),
        "test_loss": figures["test_loss"],
        "validation_bleu": round(figures["eval_bleu"], 2),
        "validation_loss": figures["eval_loss"],
        "seconds": figures["train_runtime"],
        "cpu_seconds": round(figures["cpu_seconds"], 1),
        "tokens_per_second": figures["train_tokens_per_second"],
        "log": figures["log"],
    }


def main() -> None:
    arguments = parse_arguments()
    transformers.logging.set_verbosity_error()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        rows = prepare_data(arguments.data / "e2e_dev.csv", work)
        train = read_rows(work / "train.csv")
        vocabulary = work / "vocabulary.model"
        train_vocabulary((text for row in train for text in row.values()), vocabulary, arguments.pieces)
        parameters = {shape: make_model(work / "models" / shape, shape, vocabulary, arguments.seed) for shape in SHAPES}
        tokens = tokens_per_example(work / "models" / "t5.1.1", train)
        figures = fine_tune_all(work, arguments)
        evaluate_all(work, figures, arguments)
        models = {shape: summarise(figures[shape], parameters[shape]) for shape in SHAPES}
        for shape, result in models.items():
            print(shape, {key: value for key, value in result.items() if key != "log"}, flush=True)
        speed = compare_speed(work, tokens, arguments)
    print("speed", speed, flush=True)
    settings = {name: value for name, value in vars(arguments).items() if name not in ("data", "output")}
    results = {
        "settings": settings,
        "rows": {**rows, "test": len(read_rows(arguments.data / "e2e_test.csv"))},
        "tokens_per_example": round(tokens, 2),
        "tokens": round(tokens * arguments.batch_size * arguments.steps),
        "models": models,
        "speed": speed,
        "seconds": round(time.perf_counter() - start),
    }
    write_json(arguments.output.with_suffix(".json"), results)
    panels = {
        heading: {shape: curve(result["log"], name) for shape, result in models.items()}
        for heading, name in (("training loss", "loss"), ("held-out loss", "eval_loss"), ("held-out BLEU", "eval_bleu"))
    }
    title = f"E2E, {max(parameters.values()) / 1e6:.1f} M parameters, {arguments.steps} steps of {arguments.batch_size}"
    draw_curves(arguments.output.with_suffix(".png"), title, panels)


if __name__ == "__main__":
    main()
