# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""DeepSpeed's ZeRO-2 and ZeRO-3, as they are, on two processes of a CPU."""

import pytest


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_all_cells_equal_one_process(
    stage, trained_alone, engines, fork_server, check_generation_config, check_permissions
):
    engine = f"deepspeed_zero{stage}"
    cells = engines.cells_of(engine, engines.QUICK_CELLS)
    cells = cells[1:] if stage == 3 else cells  # the first one goes through the launcher
    engines.train(engine, cells, trained_alone, steps=engines.QUICK_STEPS, fork_server=fork_server)
    for cell in cells:
        compare(engines, trained_alone, stage, cell)
    check_generation_config(trained_alone / engine, cells)
    for cell in cells:
        check_permissions(trained_alone / engine / cell.name / "model")
    check_generation_config(trained_alone / "single", cells)


@pytest.mark.slow
def test_through_the_launcher(trained_alone, engines, check_generation_config, check_permissions, tmp_path):
    """ZeRO-3, as users start it."""
    engines.make_models(tmp_path, engines.QUICK_FAMILIES)
    (tmp_path / "single").symlink_to(trained_alone / "single")
    cell = engines.QUICK_CELLS[0]
    engines.train("deepspeed_zero3", [cell], tmp_path, steps=engines.QUICK_STEPS)
    compare(engines, tmp_path, 3, cell)
    check_generation_config(tmp_path / "deepspeed_zero3", [cell])
    check_permissions(tmp_path / "deepspeed_zero3" / cell.name / "model")


def compare(engines, folder, stage, cell):
    """Whether the engine was at work, and has computed what one process does."""
    engine = f"deepspeed_zero{stage}"
    row = engines.compare(folder, engine, cell, steps=engines.QUICK_STEPS)
    assert row["engine_seen"].startswith(f"DeepSpeed ZeRO-{stage}, 2 process(es) on")
    assert row["engine_seen"].endswith("DeepSpeedEngine")
    assert f"engine      DeepSpeed ZeRO-{stage}, 2 process(es) on" in (folder / engine / "output.txt").read_text()
