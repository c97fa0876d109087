"""The benchmarks of models run from end to end, as their users start them; their figures mean nothing here."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
RAGGED = ("--batch-size 2 --length 80 --ragged", 110)
SMALL = "--preset t5.1.1.small --quick --rounds 1 --threads 1"

pytestmark = pytest.mark.slow


def run(script: str, flags: str, output: Path) -> dict:
    """What a benchmark wrote as JSON; its chart must be there, too."""
    command = [sys.executable, "-m", f"benchmarks.{script}", *SMALL.split(), *flags.split(), "--output", str(output)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    report = json.loads(output.with_suffix(".json").read_text())
    assert {"processor", "threads", "torch", "transformers", "date"} <= set(report["machine"])
    return report


@pytest.mark.parametrize(("flags", "tokens"), [("--batch-size 1 --length 160", 160), RAGGED])
def test_encode(flags, tokens, tmp_path):
    results = run("encode", flags, tmp_path / "encode")["results"]
    for dtype, tolerance in (("fp32", 1e-5), ("bf16", 0.03)):
        figures = results[dtype]
        assert figures["tokens"] == tokens
        int8 = {"t5_experimental int8"} if dtype == "fp32" else set()
        assert set(figures["contestants"]) == {"transformers", "t5_experimental", "products alone"} | int8
        assert all(figures["relative_errors"][name] < 0.05 for name in int8)
        assert all(len(figure["seconds"]) == 1 for figure in figures["contestants"].values())
        # Both compute the same, or their times could not be compared.
        assert figures["largest_difference"] <= tolerance * figures["largest_output"]


def test_train_step(tmp_path):
    flags = "--batch-size 4 --ragged --source-length 16 --target-length 8 --gradient-checkpointing"
    results = run("train_step", flags, tmp_path / "train_step")["results"]
    stock, ours = results["transformers"], results["t5_experimental"]
    assert results["t5_experimental keep_attention"]["losses"] == pytest.approx(ours["losses"], rel=1e-4)
    assert len(ours["losses"]) == 2  # the warm-up has one, too
    assert ours["losses"] == pytest.approx(stock["losses"], rel=1e-4)
    assert ours["losses"][1] < ours["losses"][0]
    assert 0.5 * stock["peak_mib"] < ours["peak_mib"] < 1.2 * stock["peak_mib"]


def test_generate(tmp_path):
    pytest.importorskip("ctranslate2")
    flags = "--batch-sizes 1 --source-length 4 --new-tokens 5 --only fp32"
    results = run("generate", flags, tmp_path / "generate")["results"]
    assert {row["name"].split()[0] for row in results} == {"transformers", "CTranslate2", "t5_experimental"}
    ours = [row for row in results if row["name"].startswith("t5_experimental")]
    assert [row["tokens_equal_to_first"] for row in ours] == [1.0, 1.0]  # a call for itself, and calls in a session


def test_generate_of_a_family_that_others_do_not_run(tmp_path):
    flags = "--preset t5.1.th.base --batch-sizes 2 --source-length 4 --new-tokens 3 --beams 2 --memory --only int8"
    results = run("generate", flags, tmp_path / "generate")["results"]
    assert [row["name"].split()[1] for row in results] == ["int8"]
    assert all(row["mib_of_a_call"] >= 0 for row in results)
