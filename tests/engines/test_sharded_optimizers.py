# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Adafactor and RMS-scaled AdamW on rows that are spread over three processes, some of which have none."""

import json
from pathlib import Path
from types import ModuleType

import pytest


pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parent / "sharded_optimizers.py"


def test_statistics_are_those_of_whole_parameters(launching: ModuleType) -> None:
    """To rounding, where a process's own rows would give other ones; few collectives, hardly any of whole gradients."""
    outcome = launching.launch("torchrun", SCRIPT, processes=3)
    assert outcome.returncode == 0, outcome.stderr[-5000:]
    for rank in json.loads(outcome.stdout):
        mistakes = rank.pop("mistakes")
        assert len(mistakes) == 2
        assert min(mistakes.values()) > 1e-3
        assert len(rank) == 5
        for name, (difference, collectives) in rank.items():
            assert difference < (1e-6 if name.endswith("float32") else 1e-14), name
            assert sum(collectives.values()) <= (36 if name.startswith("adafactor") else 14), name
