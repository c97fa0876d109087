# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Times what happens before any work: imports and small commands, beside the imports of torch and of the rivals.

    python -m benchmarks.startup --rounds 5 --output benchmarks/results/startup

Each runs in a process of its own, and in each round each has one turn, so that they share disturbances. Seconds of the
processor count, in all threads, the interpreter's own included: other programs on the machine disturb them less than
the clock. The checkpoint is a t5.1.1 of 2 layers and random numbers, its vocabulary 300 pieces. Written is OUTPUT.json.
"""

import argparse
import importlib.util
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .common import ratio, write_json
from .convert import configuration, remove, write_checkpoint
from .small_models import train_vocabulary
from .usage import Usage, measure


BASE = "import torch"
VOCABULARY = "sentencepiece.model"
PAIRS = "pairs.jsonl"

STATEMENTS = {
    "Python alone": "pass",
    BASE: "import torch",
    "import transformers": "import transformers",
    "import ctranslate2": "import ctranslate2",
    "transformers' T5ForConditionalGeneration": "from transformers import T5ForConditionalGeneration",
    "import t5_experimental": "import t5_experimental",
    "our T5V11Config": "from t5_experimental import T5V11Config",
    "our T5V11ForConditionalGeneration": "from t5_experimental import T5V11ForConditionalGeneration",
}
"""By name, what a new interpreter executes."""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="turns of each that count")
    parser.add_argument("--warm-up", type=int, default=1, help="turns of each before those")
    parser.add_argument("--quick", action="store_true", help="one turn of each: tries the benchmark itself")
    parser.add_argument("--output", type=Path, default=Path("startup"), help="path without suffix")
    return parser.parse_args()


def commands(folder: Path) -> dict[str, list[str]]:
    """What to run, by name.

    Args:
        folder: holds the checkpoint, `source`, what it is converted to, `model`, `VOCABULARY` and `PAIRS`; conversions
            write `output`.
    """
    installed = {
        name: statement
        for name, statement in STATEMENTS.items()
        if name != "import ctranslate2" or importlib.util.find_spec("ctranslate2") is not None
    }
    ours = [sys.executable, "-m", "t5_experimental.convert"]
    source, output = str(folder / "source"), str(folder / "output")
    found = {name: [sys.executable, "-c", statement] for name, statement in installed.items()}
    quietly = ["sh", "-c", 'echo text | "$@" > /dev/null', "sh"]
    finetune = [sys.executable, "-m", "t5_experimental.training.finetune", "--output_dir", output, "--use_cpu"]
    return found | {
        "--help": [*ours, "--help"],
        # The status says that the option was refused, and nothing else went wrong.
        "a misspelt option": ["sh", "-c", '"$@" 2> /dev/null; test $? = 2', "sh", *ours, "convert", source, "--dtyp"],
        "presets": [*ours, "presets"],
        "inspect": [*ours, "inspect", source],
        "convert": [*ours, "convert", source, output],
        "convert --vocab": [*ours, "convert", source, output, "--vocab", str(folder / VOCABULARY)],
        "generate, 3 tokens": [*quietly, *ours, "generate", str(folder / "model"), "--max-new-tokens", "3"],
        "finetune --estimate": [
            *(*quietly, *finetune, "--estimate"),
            *("--model_name_or_path", str(folder / "model"), "--train_file", str(folder / PAIRS)),
        ],
    }


def in_turns(turns: Mapping[str, Callable[[], Usage]], rounds: int, warm_up: int) -> dict[str, list[Usage]]:
    """Usage of every turn that counts, by name."""
    usages: dict[str, list[Usage]] = {name: [] for name in turns}
    for turn in range(warm_up + rounds):
        for name, run in turns.items():
            usage = run()
            if turn >= warm_up:
                usages[name].append(usage)
    return usages


def figures_of(usages: Mapping[str, list[Usage]]) -> dict[str, dict[str, Any]]:
    """By name: medians, all processor seconds, and the median ratio of these to those of `BASE` in the same round."""
    cpu_seconds = {name: [usage.cpu_seconds for usage in turns] for name, turns in usages.items()}
    return {
        name: {
            "cpu_median": statistics.median(cpu_seconds[name]),
            "median": statistics.median(usage.seconds for usage in turns),
            "peak_bytes": statistics.median(usage.peak_bytes for usage in turns),
            "to_torch": ratio(cpu_seconds, name, BASE),
            "cpu_seconds": cpu_seconds[name],
        }
        for name, turns in usages.items()
    }


def print_table(figures: Mapping[str, Mapping[str, Any]]) -> None:
    print(f"{'':42}{'CPU s':>8}{'seconds':>9}{'/ torch':>9}{'peak MB':>9}")
    for name, row in figures.items():
        print(
            f"{name:42}{row['cpu_median']:8.2f}{row['median']:9.2f}{row['to_torch']:9.2f}{row['peak_bytes'] / 1e6:9.0f}"
        )


def main() -> None:
    arguments = parse_arguments()
    rounds, warm_up = (1, 0) if arguments.quick else (arguments.rounds, arguments.warm_up)
    with tempfile.TemporaryDirectory(prefix="startup-benchmark-") as name:
        folder = Path(name)
        write_checkpoint(configuration("tiny"), folder / "source", has_numbers=True)

        def turn(command: list[str], keeps: Path | None = None) -> Usage:
            usage = measure(command)
            if keeps is not None:
                (folder / "output").rename(keeps)
            elif (folder / "output").exists():
                remove(folder / "output")
            return usage

        texts = [line for path in Path(__file__).parent.glob("*.py") for line in path.read_text("utf-8").splitlines()]
        train_vocabulary(texts, folder / VOCABULARY, 300)
        (folder / PAIRS).write_text('{"source": "a", "target": "b"}\n')
        found = commands(folder)
        turn(found["convert --vocab"], keeps=folder / "model")
        # The default binds each command to its own function.
        turns = {name: lambda command=command: turn(command) for name, command in found.items()}
        figures = figures_of(in_turns(turns, rounds, warm_up))
    print_table(figures)
    write_json(arguments.output.with_suffix(".json"), {"rounds": rounds, "results": figures})


if __name__ == "__main__":
    main()
