"""The comparison that `make demo` ends with: what is close depends on how large the logits are."""

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest


@pytest.fixture(scope="session")
def check() -> Callable[[Path, Path], int]:
    """`check(folder, golden_file)`: the program's exit status."""
    main: Any = runpy.run_path(str(Path(__file__).with_name("check_golden.py")))["main"]
    return lambda folder, golden: main(str(folder), str(golden))


@pytest.mark.parametrize(("share", "status"), [(0, 0), (8e-6, 0), (3e-5, 1), (np.nan, 1)])
@pytest.mark.parametrize("what", ["logits", "loss"])
def test_differences_are_shares_of_the_largest_logit(
    what: str,
    share: float,
    status: int,
    check: Callable[[Path, Path], int],
    converted: Callable[[str], Path],
    reference: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arrays = dict(np.load(reference / "golden" / "t5.1.1.tiny" / "golden.npz"))
    targets = arrays["targets"] > 0
    largest = np.abs(arrays["logits"][targets]).max()
    assert not 0.5 < largest < 2  # or a share could not be told from a difference
    if what == "logits":
        at = tuple(np.argwhere(targets)[3])
        arrays["logits"][at][5] += share * largest
    else:
        arrays["loss"] = arrays["loss"] + np.float32(share * largest)
    np.savez(tmp_path / "golden.npz", **arrays)
    assert check(converted("t5.1.1.tiny"), tmp_path / "golden.npz") == status
    assert "of the largest" in capsys.readouterr().out
