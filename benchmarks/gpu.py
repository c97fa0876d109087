# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Proves and times everything that a GPU computes otherwise, in at most eight minutes, from a checkout.

    python -m benchmarks.gpu --output gpu

It needs torch, transformers and accelerate; the checkout need not be installed. Sections: kernels compiled by several
processes at once, outputs of the original code
(goldens), the Triton kernels against all pairs at once, training steps, generation, a fine-tuning and its resume, FSDP2
on one device. A failure ends its own row only; in the end the exit code is 1 if there was one. OUTPUT.json and
OUTPUT.txt are rewritten after each row, so that a run that is cut off loses nothing. `--device cpu --tiny` tries the
script itself, with the kernels in Triton's interpreter.
"""

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path


ROOT = Path(__file__).resolve().parents[1]

# Seconds of each section on an H200: together with the imports below eight minutes.
BUDGETS = {
    "compiling": 75,
    "goldens": 30,
    "kernels": 45,
    "training": 90,
    "decoding": 100,
    "finetuning": 65,
    "fsdp2": 45,
}


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.gpu", description=__doc__.split("\n\n")[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny models and shapes: tries the script itself")
    parser.add_argument("--only", choices=list(BUDGETS), nargs="+", default=list(BUDGETS), metavar="SECTION")
    parser.add_argument(
        "--budget-seconds", type=float, help=f"of each section, after which it begins nothing more; default {BUDGETS}"
    )
    parser.add_argument("--output", type=Path, default=Path("gpu"), help="path without suffix")
    return parser.parse_args(arguments)


def is_complete() -> bool:
    """Whether all three packages can be imported, as in an installation."""
    return all(importlib.util.find_spec(f"t5_experimental.{name}") is not None for name in ("convert", "training"))


def run_with_links(arguments: Sequence[str]) -> int:
    """Runs this script again from a folder of links that has the packages where an installation has them."""
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "t5_experimental"
        package.mkdir()
        for path in (*(ROOT / "t5_experimental").glob("*.py"), ROOT / "convert", ROOT / "training"):
            (package / path.name).symlink_to(path)
        paths = [folder, str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        # Safe: without the working folder, where the packages are not where they belong.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1"}
        return subprocess.run([sys.executable, "-m", "benchmarks.gpu", *arguments], env=environment).returncode


def run(options: argparse.Namespace) -> int:
    """Runs the sections; the exit code."""
    import torch
    import transformers

    from . import gpu_attention, gpu_goldens, gpu_models, gpu_runs
    from .gpu_report import Machine, Report

    if options.device == "cuda" and not torch.cuda.is_available():
        print("benchmarks.gpu: torch finds no CUDA device; --device cpu --tiny tries the script.", file=sys.stderr)
        return 2
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_float32_matmul_precision("highest")  # no TF32
    device = torch.device("cuda", 0) if options.device == "cuda" else torch.device("cpu")
    machine = Machine(device, options.tiny)
    if options.tiny:
        torch.set_num_threads(1)
    sections = {
        "compiling": gpu_models.compiling,
        "goldens": gpu_goldens.goldens,
        "kernels": gpu_attention.kernels,
        "training": gpu_models.training,
        "decoding": gpu_models.decoding,
        "finetuning": gpu_runs.finetuning,
        "fsdp2": gpu_runs.fsdp2,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    settings = {name: value for name, value in vars(options).items() if name != "output"}
    report = Report(options.output, settings, machine)
    for name in (name for name in sections if name in options.only):
        # What one section takes too long, the last ones lack.
        budget = options.budget_seconds or min(BUDGETS[name], sum(BUDGETS.values()) - report.elapsed)
        with report.section(name, budget) as section:
            sections[name](section, machine)
    report.say(f"{report.failures()} failures, {options.output.with_suffix('.json')}")
    print(report.as_text(), end="")
    return 1 if report.failures() else 0


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if options.device == "cpu":
        os.environ.setdefault("TRITON_INTERPRET", "1")  # read when Triton is imported
    if not is_complete():
        return run_with_links(sys.argv[1:] if arguments is None else arguments)
    return run(options)


if __name__ == "__main__":
    sys.exit(main())
