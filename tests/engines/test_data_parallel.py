# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Data parallelism on two processes gets to what one process gets to, and what compares them is not easily pleased."""

from dataclasses import replace
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def spoiled(engines) -> dict[str, object]:
    """Cells that must not pass, by what is wrong with them."""
    first = engines.QUICK_CELLS[0]
    names = ("doubled", "mean of means", "forgetful save")
    return {name: replace(first, name=name, spoil=name) for name in names}


@pytest.fixture(scope="module")
def trained(trained_alone: Path, engines, spoiled, once, fork_server) -> Path:
    """The same folder, with what two processes trained, right and wrong."""
    cells = [*engines.QUICK_CELLS, *spoiled.values()]
    once(
        "ddp",
        lambda _: engines.train("ddp", cells, trained_alone, steps=engines.QUICK_STEPS, fork_server=fork_server),
    )
    return trained_alone


@pytest.mark.slow
def test_all_cells_equal_one_process(trained, engines, check_generation_config, check_permissions):
    for cell in engines.QUICK_CELLS:
        row = engines.compare(trained, "ddp", cell, steps=engines.QUICK_STEPS)
        assert row["engine_seen"].startswith("data parallelism, 2 process(es) on")
        assert row["max_loss_difference"] < 1e-5  # that of another order of additions
    check_generation_config(trained / "ddp", engines.QUICK_CELLS)
    for cell in engines.QUICK_CELLS:
        check_permissions(trained / "ddp" / cell.name / "model")
    said = (trained / "ddp" / "output.txt").read_text()
    assert "engine      data parallelism, 2 process(es)" in said
    assert "bytes of parameters" in said


@pytest.mark.slow
def test_what_is_wrong_is_found(trained, engines, spoiled, tmp_path):
    problems = {
        "doubled": r"losses differ by \d\.\de\+00",
        "mean of means": "losses differ by ",
        "forgetful save": "^saved_equal is false; evaluated_equal is false:",
    }
    for name, expected in problems.items():
        with pytest.raises(AssertionError, match=expected):
            engines.compare(trained, "ddp", spoiled[name], steps=engines.QUICK_STEPS)
    # What trained as plain data parallelism does not pass for an engine that cuts the model up.
    for name, ran in {"single": "single", "deepspeed_zero3": "ddp"}.items():
        (tmp_path / name).symlink_to(trained / ran)
    with pytest.raises(AssertionError, match=r"the engine was MULTI_\w+ with DistributedDataParallel; .*100% of the"):
        engines.compare(tmp_path, "deepspeed_zero3", engines.QUICK_CELLS[0], steps=engines.QUICK_STEPS)
