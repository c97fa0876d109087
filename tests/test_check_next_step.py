"""The comparison of one Adafactor step that real sizes are checked with, on a tiny checkpoint."""

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest


@pytest.mark.parametrize(("share", "status"), [(0, 0), (5e-5, 0), (2e-4, 1), (np.nan, 1)])
def test_the_loss_after_the_step_decides(
    share: float,
    status: int,
    with_slots: Callable[[str], Path],
    reference: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arrays = dict(np.load(reference / "golden" / "t5.1.th.tiny" / "golden.npz"))
    arrays["loss_after_step"] = arrays["loss_after_step"] * np.float32(1 + share)
    np.savez(tmp_path / "golden.npz", **arrays)
    main: Any = runpy.run_path(str(Path(__file__).with_name("check_next_step.py")))["main"]
    assert main(str(with_slots("t5.1.th.tiny")), str(tmp_path / "golden.npz")) == status
    if not share:
        assert float(capsys.readouterr().out.splitlines()[-1].rpartition(" ")[2]) < 1e-3


def test_another_learning_rate_is_noticed(
    with_slots: Callable[[str], Path], reference: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main: Any = runpy.run_path(str(Path(__file__).with_name("check_next_step.py")))["main"]
    golden = reference / "golden" / "t5.1.th.tiny" / "golden.npz"
    assert main(str(with_slots("t5.1.th.tiny")), str(golden), 0.0303) == 1
    assert "(at most 0.0001)" in capsys.readouterr().out
