# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Training through torch_xla is the same as without: one program for all steps, no waiting, the same numbers and texts.

Runs in an environment of its own, see `make test-xla`.
"""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("torch_xla") is None,
        reason="torch_xla needs an environment of its own, with the torch of the same release: run `make test-xla`",
    ),
]

ROOT = Path(__file__).parents[2]

# Relative, of mean losses, and whether generated texts must be the same: masks of dropout differ between devices, and
# in bfloat16 a step's rounding does.
CELLS = {
    "t5_v1_1": (1e-4, True),
    "t5_lm_adapted": (1e-4, True),
    "t5_talking_heads": (1e-4, True),
    "t5_first_layers_narrow": (1e-4, True),
    "bfloat16": (1e-2, False),
    "dropout": (5e-2, False),
    "pretrain": (1e-4, False),
    "packed": (1e-4, False),
    "the original's Adafactor": (1e-4, True),
    "adamw": (1e-4, True),
    "rms_adamw": (1e-4, True),
    "LoRA": (1e-4, True),
    "prompt": (1e-4, True),
    "t5_v1_1, 4 devices": (1e-4, True),
    "t5_lm_adapted, 4 devices": (1e-4, True),
    "t5_talking_heads, 4 devices": (1e-4, True),
    "t5_first_layers_narrow, 4 devices": (1e-4, True),
    "pretrain, 4 devices": (1e-4, False),
}


@pytest.mark.parametrize("cell", CELLS)
def test_equals_the_run_on_the_cpu(cell: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.engines_xla", "--cells", cell, "--output", tmp_path / "row.json"]
    subprocess.run(command, cwd=ROOT, check=True)
    (row,) = json.loads((tmp_path / "row.json").read_text())["rows"]
    tolerance, compares_texts = CELLS[cell]
    assert (row["engine"], row["device"]) == ("XLA", "xla")
    assert row["max_loss_difference"] < tolerance
    assert row["saved_equal"]
    assert row["loaded_loss_difference"] < (1e-3 if cell == "bfloat16" else 1e-5)
    assert not compares_texts or row["generated_equal"]
    _check_programs(row)
    if cell.endswith("4 devices"):
        assert row["described"].startswith("XLA, each step on 4 devices, 1 process(es)")
        for what in ("parameters", "optimizer"):
            assert row[f"{what}_bytes_per_device"] < 0.27 * row[f"{what}_bytes"]


def _check_programs(row: dict[str, Any]) -> None:
    """Two programs for steps (the first update of an optimizer is special), the others for the first logs."""
    assert row["compilations"]["until_second_log"] <= 13
    assert row["compilations"]["after"] == 0
    assert row["compilations"]["first_evaluation"] <= 30
    assert row["compilations"]["second_evaluation"] == 0
    assert row["transfers_between_logs"] == 0
    # A log reads scalars back; `generate` checks its start tokens with the other, once for a batch.
    assert set(row["fallbacks"]) <= {"aten::_local_scalar_dense", "aten::isin.Tensor_Tensor"}
