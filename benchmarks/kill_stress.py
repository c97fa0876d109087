# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Kills runs at random moments and starts the same command again, until it has finished; every run has to end with the
very losses and weights of one that nothing happened to.

    python -m benchmarks.kill_stress --engines single ddp --kills 20 --output benchmarks/results/kill_stress
"""

import argparse
import json
import platform
import random
import shutil
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM

from t5_experimental import T5V11Config
from tests.support.forking import ENGINES, LIMIT, ForkedRun, ForkServer
from tests.support.launching import flags
from tests.support.pretended_gpus import FLAGS


DATA = Path(__file__).parents[1] / "tests" / "data"
STEPS = 10
KILLS_OF_A_RUN = 4
# What is printed right before training begins.
BEGINS = "examples "


def make_model(folder: Path) -> Path:
    """A random tiny model with the restaurants' tokenizer."""
    torch.manual_seed(0)
    config = T5V11Config(vocab_size=1152, d_model=32, d_kv=8, d_ff=64, num_heads=4, num_layers=2)
    AutoModelForSeq2SeqLM.from_config(config).save_pretrained(folder)
    shutil.copyfile(DATA / "restaurants.model", folder / "spiece.model")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5Tokenizer", "extra_ids": 100}))
    return folder


_GLOO = ("--ddp_backend", "gloo")
# By the first word of the engine's name. transformers' own Adafactor runs where nothing else is chosen.
_OF_ENGINES = {
    "single": ("--use_cpu",),
    "ddp": ("--use_cpu", *_GLOO),
    "fsdp2": (*FLAGS, *_GLOO, "--optimizer_preset", "finetune"),
    "deepspeed": (*_GLOO, "--optimizer_preset", "adamw"),
}


def arguments(model: Path, output: Path, engine: str) -> list[str]:
    """A run with dropout, accumulation and evaluation that saves at every other step, and logs at other steps."""
    options: dict[str, Any] = {
        "model_name_or_path": model,
        "train_file": DATA / "restaurants_train.jsonl",
        "validation_file": DATA / "restaurants_test.jsonl",
        "output_dir": output,
        "max_steps": STEPS,
        "save_steps": 2,
        "save_total_limit": 2,
        "logging_steps": 3,
        "eval_strategy": "steps",
        "eval_steps": 3,
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 50,
        "gradient_accumulation_steps": 2,
        "dropout_rate": 0.3,
        "report_to": "none",
        "disable_tqdm": True,
    }
    return [*flags(**options), *_OF_ENGINES[engine.partition("_")[0]]]


def outcome(output: Path) -> dict[str, Any]:
    """What a run has logged, but for times, its mean loss, and a sum that tells its weights apart."""
    history = json.loads((output / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())["log_history"]
    timed = ("runtime", "per_second")
    weights = load_file(output / "model.safetensors")
    return {
        "logged": [{name: value for name, value in entry.items() if not name.endswith(timed)} for entry in history],
        "train_loss": json.loads((output / "train_results.json").read_text())["train_loss"],
        "weights": {name: hash(weights[name].numpy().tobytes()) for name in sorted(weights)},
    }


def wait_for_training(run: ForkedRun) -> float:
    """Seconds on the clock when training is about to begin."""
    end = time.monotonic() + LIMIT
    while BEGINS not in run.read():
        if time.monotonic() > end:
            raise RuntimeError(f"Waited {LIMIT:g} seconds for the training to begin:\n{run.read()}")
        time.sleep(0.01)
    return time.monotonic()


def has_model(output: Path) -> bool:
    """Whether a run has written its model: what it does then is evaluate and report."""
    return (output / "config.json").is_file()


def share_left(output: Path) -> float:
    """How much of a run is still to be done until its model is written."""
    done = max((int(path.name.rpartition("-")[2]) for path in output.glob("checkpoint-*")), default=0)
    return (STEPS + 1 - done) / (STEPS + 1)


def stress(server: ForkServer, model: Path, folder: Path, engine: str, kills: int, draws: random.Random) -> dict:
    """Kills that many times; a new run begins whenever one has finished."""
    processes = 1 if engine == "single" else 2
    run = server.start("finetune", arguments(model, folder / "whole", engine), engine, processes)
    started = wait_for_training(run)
    while not has_model(folder / "whole") and time.monotonic() < started + LIMIT:
        time.sleep(0.01)
    seconds = time.monotonic() - started
    if any(run.wait()):
        raise RuntimeError(run.read())
    expected = outcome(folder / "whole")
    seen: list[dict[str, Any]] = []
    finished, different = 0, 0
    while len(seen) < kills:
        output, done, before = folder / f"killed-{finished}", False, len(seen)
        while not done:
            run = server.start("finetune", arguments(model, output, engine), engine, processes)
            started = wait_for_training(run)
            moment = draws.uniform(0, seconds * share_left(output))
            victims = draws.choice([[rank] for rank in range(processes)] + [list(range(processes))])
            # What is left to do after the model is written says little; nor would a run that never comes further.
            if len(seen) < min(kills, before + KILLS_OF_A_RUN) and not has_model(output):
                time.sleep(max(started + moment - time.monotonic(), 0))
                run.kill(victims)
            codes = run.wait()
            # It may have come to its end just before.
            done = not any(codes) or (output / "README.md").is_file()
            if not done and -signal.SIGKILL not in codes:
                raise RuntimeError(f"{engine}: {codes}\n" + "\n".join(run.read(rank) for rank in range(processes)))
            if not done:
                left = sorted(path.name for path in output.iterdir()) if output.is_dir() else []
                kept = [name for name in left if name.startswith("checkpoint-")]
                seen.append(
                    {
                        "after_seconds": round(moment, 3),
                        "victims": victims,
                        "checkpoints": kept,
                        "half_written": "unfinished" in left,
                        "model_written": has_model(output),
                    }
                )
        finished += 1
        different += outcome(output) != expected
        print(f"{engine}: {len(seen)} kills, {finished} runs finished, {different} of them different", flush=True)
        shutil.rmtree(output)
    return {
        "processes": processes,
        "seconds_of_a_run": round(seconds, 2),
        "kills": len(seen),
        "runs_finished": finished,
        "runs_different": different,
        "killed_in_a_save": sum(kill["half_written"] for kill in seen),
        "killed_after_the_model": sum(kill["model_written"] for kill in seen),
        "moments": seen,
    }


def main() -> None:
    """Parses the command line, kills, writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), choices=list(ENGINES))
    parser.add_argument("--kills", type=int, default=20, help="of each engine")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="where the result goes, without .json; engines that it has stay")
    args = parser.parse_args()
    path = None if args.output is None else args.output.with_suffix(".json")
    result = json.loads(path.read_text()) if path is not None and path.is_file() else {"engines": {}}
    result["machine"] = f"{platform.machine()}, torch {torch.__version__}, transformers {transformers.__version__}"
    for engine in args.engines:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            with ForkServer(root / "server", ["deepspeed"] if engine.startswith("deepspeed") else []) as server:
                draws = random.Random(f"{engine} {args.seed}")
                outcomes = stress(server, make_model(root / "model"), root, engine, args.kills, draws)
        result["engines"][engine] = {"seed": args.seed, **outcomes}
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(result, indent=2) + "\n")
    if any(outcomes["runs_different"] for outcomes in result["engines"].values()):
        raise SystemExit("Some runs ended differently after a kill.")


if __name__ == "__main__":
    main()
