# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""DeepSpeed's ZeRO-2 and ZeRO-3, as they are, on two processes of a CPU."""

import pytest


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_all_cells_equal_one_process(
    stage, trained_alone, engines, fork_server, check_generation_config, check_permissions
):
    """ZeRO-3 through the launcher, as users start it; ZeRO-2 without its imports."""
    engine = f"deepspeed_zero{stage}"
    cells = engines.cells_of(engine, engines.QUICK_CELLS)
    engines.train(
        engine, cells, trained_alone, steps=engines.QUICK_STEPS, fork_server=fork_server if stage == 2 else None
    )
    for cell in cells:
        row = engines.compare(trained_alone, engine, cell, steps=engines.QUICK_STEPS)
        assert row["engine_seen"].startswith(f"DeepSpeed ZeRO-{stage}, 2 process(es) on")
        assert row["engine_seen"].endswith("DeepSpeedEngine")
    check_generation_config(trained_alone / engine, cells)
    for cell in cells:
        check_permissions(trained_alone / engine / cell.name / "model")
    check_generation_config(trained_alone / "single", cells)
    assert (
        f"engine      DeepSpeed ZeRO-{stage}, 2 process(es) on" in (trained_alone / engine / "output.txt").read_text()
    )
