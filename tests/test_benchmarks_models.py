"""The benchmarks of models run from end to end; their figures mean nothing here."""

import json
from argparse import Namespace
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from benchmarks.graphs import NAMES, versions
from tests.support.forking import ForkServer


RAGGED = ("--batch-size 2 --length 80 --ragged --only t5_experimental", 110)
RIVALS = {NAMES[name] for name in versions()}
SMALL = "--preset t5.1.1.small --quick --rounds 1 --threads 1"

pytestmark = pytest.mark.slow


@pytest.fixture
def run(fork_server: ForkServer) -> Callable[[str, str, Path], dict]:
    """`run(script, flags, output)`: what a benchmark wrote as JSON; its chart must be there, too."""

    def start(script: str, flags: str, output: Path) -> dict:
        arguments = [f"benchmarks.{script}", *SMALL.split(), *flags.split(), "--output", output]
        started = fork_server.start("tests.support.script", arguments, "single", 1)
        assert started.wait() == [0], started.read()
        assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
        report = json.loads(output.with_suffix(".json").read_text())
        assert {"processor", "threads", "torch", "transformers", "date"} <= set(report["machine"])
        return report

    return start


@pytest.mark.parametrize(("flags", "tokens"), [("--batch-size 1 --length 160", 160), RAGGED])
def test_encode(flags, tokens, tmp_path, run):
    report = run("encode", flags, tmp_path / "encode")
    is_complete = "--only" not in flags
    assert "onnxruntime" in report["settings"]
    for dtype, tolerance in (("fp32", 1e-5), ("bf16", 0.03)):
        figures = report["results"][dtype]
        assert figures["tokens"] == tokens
        floats = {"transformers", "t5_experimental"}
        if is_complete:
            floats |= RIVALS if dtype == "fp32" else RIVALS - {"onnxruntime"}
        int8 = {f"{name} int8" for name in floats - {"transformers"}} if dtype == "fp32" else set()
        assert set(figures["contestants"]) == floats | int8 | ({"products alone"} if is_complete else set())
        assert all(figures["relative_errors"][name] < 0.05 for name in int8)
        assert all(figures["relative_errors"][name] < tolerance for name in floats)
        assert all(len(figure["seconds"]) == 1 for figure in figures["contestants"].values())
        # Both compute the same, or their times could not be compared.
        assert figures["largest_difference"] <= tolerance * figures["largest_output"]


def test_train_step(tmp_path, run):
    flags = "--batch-size 4 --ragged --source-length 16 --target-length 8 --gradient-checkpointing"
    results = run("train_step", flags, tmp_path / "train_step")["results"]
    stock, ours = results["transformers"], results["t5_experimental"]
    assert results["t5_experimental keep_attention"]["losses"] == pytest.approx(ours["losses"], rel=1e-4)
    assert len(ours["losses"]) == 2  # the warm-up has one, too
    assert ours["losses"] == pytest.approx(stock["losses"], rel=1e-4)
    assert ours["losses"][1] < ours["losses"][0]
    assert 0.5 * stock["peak_mib"] < ours["peak_mib"] < 1.2 * stock["peak_mib"]


def test_products(tmp_path, run):
    results = run("products", "--rows 1 3", tmp_path / "products")["results"]
    assert list(results) == ["1 rows", "3 rows"]
    for figures in results.values():
        assert {"float32-linear", "bfloat16-linear"} <= set(figures)
        assert all(figure["gigabytes_per_second"] > 0 for figure in figures.values())


def test_generate(tmp_path, run):
    pytest.importorskip("ctranslate2")
    flags = "--batch-sizes 1 --source-length 4 --new-tokens 5 --only fp32"
    results = run("generate", flags, tmp_path / "generate")["results"]
    assert {row["name"].split()[0] for row in results} == {"transformers", "CTranslate2", "t5_experimental"} | RIVALS
    assert all(row["tokens_equal_to_first"] == 1 for row in results if row["name"].split()[0] in RIVALS)
    ours = [row for row in results if row["name"].startswith("t5_experimental")]
    assert [row["tokens_equal_to_first"] for row in ours] == [1.0, 1.0]  # a call for itself, and calls in a session


def test_graphs_search_greedily_alone(tmp_path, capsys):
    pytest.importorskip("ctranslate2")  # another contestant, which the script imports
    from benchmarks.generate import graph_contestants

    arguments = Namespace(beams=4, threads=1, new_tokens=3)
    assert graph_contestants(torch.nn.Module(), arguments, tmp_path) == {}
    assert capsys.readouterr().out == f"Left out, as they search greedily alone: {', '.join(versions())}.\n"
    arguments.beams = 1
    names = set(graph_contestants(torch.nn.Module(), arguments, tmp_path))
    assert {"onnxruntime fp32", "onnxruntime int8"} <= names
    assert not capsys.readouterr().out
    assert not list(tmp_path.iterdir())  # only those that are chosen are exported


def test_a_name_that_no_contestant_has():
    pytest.importorskip("ctranslate2")
    from benchmarks.generate import build_contestants

    sizes = {"preset": "t5.1.th.base", "quick": True, "new_tokens": 3, "beams": 1}
    with pytest.raises(
        SystemExit, match=r"No contestant has --only ours in its name: t5_experimental fp32, .* int8 session\."
    ):
        build_contestants(Namespace(only="ours", **sizes), Path(), ExitStack())


def test_generate_of_a_family_that_others_do_not_run(tmp_path, run):
    flags = "--preset t5.1.th.base --batch-sizes 2 --source-length 4 --new-tokens 3 --beams 2 --memory --only int8"
    results = run("generate", flags, tmp_path / "generate")["results"]
    assert [row["name"].split()[1] for row in results] == ["int8"]
    assert all(row["mib_of_a_call"] >= 0 for row in results)
