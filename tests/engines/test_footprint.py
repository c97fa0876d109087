# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Counted bytes against what engines really hold on two CPU processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


WORKER = Path(__file__).parent / "footprint_worker.py"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "precision"),
    [("fsdp2", "float32"), ("deepspeed_zero2", "bf16"), ("deepspeed_zero3", "float32"), ("deepspeed_zero3", "bf16")],
)
def test_exactly(engine: str, precision: str) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    command = [*launch, str(WORKER), engine, precision]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    found = json.loads(next(line for line in run.stdout.splitlines() if line.startswith('{"held"')))
    assert found["counted"] == found["held"]
