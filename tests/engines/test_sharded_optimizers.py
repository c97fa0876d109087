# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Adafactor and RMS-scaled AdamW on rows that are spread over three processes, some of which have none."""

import json

import pytest

from tests.support.forking import ForkServer


pytestmark = pytest.mark.slow


def test_statistics_are_those_of_whole_parameters(fork_server: ForkServer) -> None:
    """To rounding, where a process's own rows would give other ones; few collectives, hardly any of whole gradients."""
    run = fork_server.start("tests.engines.sharded_optimizers", [], "ddp", 3)
    assert run.wait() == [0, 0, 0], run.read()
    for rank in json.loads(run.printed()[0]):
        mistakes = rank.pop("mistakes")
        assert len(mistakes) == 2
        assert min(mistakes.values()) > 1e-3
        assert len(rank) == 5
        for name, (difference, collectives) in rank.items():
            assert difference < (1e-6 if name.endswith("float32") else 1e-14), name
            assert sum(collectives.values()) <= (36 if name.startswith("adafactor") else 14), name
