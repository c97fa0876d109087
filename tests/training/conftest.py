# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""The launcher, and what does its work in less time, for the tests of training."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.forking import ForkServer


REPOSITORY = Path(__file__).parents[2]
DATA = REPOSITORY / "tests" / "data"

Launcher = Callable[..., subprocess.CompletedProcess[str]]


def _words(value: object) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else [str(value)]


@pytest.fixture(scope="session")
def forked(fork_server: ForkServer) -> Launcher:
    """As `launch`, but the processes are forked from one that has imported everything: much less to compute.

    `hook` is code that each process runs before, with `RANK` as its number. An option that is None is left out.
    """

    def run(
        processes: int = 1, entry: str = "finetune", hook: str = "", **options: object
    ) -> subprocess.CompletedProcess[str]:
        options = {"train_file": DATA / "restaurants_train.jsonl", "use_cpu": True, "disable_tqdm": True, **options}
        if entry == "evaluate":
            del options["train_file"]
        given = {name: value for name, value in options.items() if value is not None}
        flags = [text for name, value in given.items() for text in (f"--{name}", *_words(value))]
        run = fork_server.start(entry, flags, "ddp" if processes > 1 else "single", processes, hook, grace=5)
        codes = run.wait()
        stdout, stderr = map("".join, zip(*map(run.printed, range(processes)), strict=True))
        return subprocess.CompletedProcess([entry, *flags], max(codes, key=abs), stdout, stderr)

    return run


@pytest.fixture(scope="session")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Launcher:
    """Runs `training/finetune.py`, or another script, on the CPU through accelerate and returns the outcome.

    Options of the script are keywords. Of several processes, `processes`, each is told to meet the others by gloo.
    """
    cache = tmp_path_factory.mktemp("cache")

    def run(
        processes: int = 1, script: Path = REPOSITORY / "training" / "finetune.py", **options: object
    ) -> subprocess.CompletedProcess[str]:
        # All that accelerate would otherwise choose and announce at length, before what went wrong.
        launcher_options = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
        launcher_options += ["--num_processes", str(processes)]
        options = {"train_file": DATA / "restaurants_train.jsonl", "use_cpu": True, "disable_tqdm": True, **options}
        if processes > 1:
            # Port 0 is any that is free: launches of tests that run at the same time must not meet.
            launcher_options += ["--multi_gpu", "--main_process_port", "0"]
            options["ddp_backend"] = "gloo"
        flags = [text for name, value in options.items() for text in (f"--{name}", str(value))]
        return subprocess.run(
            [sys.executable, "-m", "accelerate.commands.launch", *launcher_options, str(script), *flags],
            env={**os.environ, "HF_DATASETS_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=1800,
        )

    return run
