# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Counted bytes against what engines really hold on two CPU processes."""

import json

import pytest

from tests.support.forking import ForkServer


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "precision"),
    [("fsdp2", "float32"), ("deepspeed_zero2", "bf16"), ("deepspeed_zero3", "float32"), ("deepspeed_zero3", "bf16")],
)
def test_exactly(engine: str, precision: str, fork_server: ForkServer) -> None:
    run = fork_server.start("tests.engines.footprint_worker", [engine, precision], "ddp", 2)
    assert run.wait() == [0, 0], run.read()
    stdout, _ = run.printed()
    found = json.loads(next(line for line in stdout.splitlines() if line.startswith('{"held"')))
    assert found["counted"] == found["held"]
