# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""The launcher, for the tests of training."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest


REPOSITORY = Path(__file__).parents[2]
DATA = REPOSITORY / "tests" / "data"

Launcher = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Launcher:
    """Runs `training/finetune.py` on the CPU through accelerate, with options as keywords, and returns the outcome."""
    cache = tmp_path_factory.mktemp("cache")

    def run(launcher_options: tuple[str, ...] = (), **options: object) -> subprocess.CompletedProcess[str]:
        script = REPOSITORY / "training" / "finetune.py"
        options = {"train_file": DATA / "restaurants_train.jsonl", "use_cpu": True, "disable_tqdm": True, **options}
        flags = [text for name, value in options.items() for text in (f"--{name}", str(value))]
        return subprocess.run(
            [sys.executable, "-m", "accelerate.commands.launch", *launcher_options, str(script), *flags],
            env={**os.environ, "HF_DATASETS_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run
