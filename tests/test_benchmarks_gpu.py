"""The benchmark of GPUs runs in full on a CPU, and goes on where something fails; its figures mean nothing here."""

import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
import torch
import transformers

from benchmarks import gpu, gpu_attention, gpu_checksums, gpu_goldens, gpu_models, gpu_processes, gpu_runs
from benchmarks.gpu_report import Machine, Report
from t5_experimental import self_check_t5_experimental as self_check


CPU = Machine(torch.device("cpu"), tiny=True)


@pytest.fixture(autouse=True)
def _settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """What the program sets for its own process."""
    monkeypatch.setattr(self_check, "_verdicts", {})
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    yield
    transformers.utils.logging.enable_progress_bar()


def read(output: Path) -> dict[str, Any]:
    return json.loads(output.with_suffix(".json").read_text())


@pytest.mark.slow
def test_all_sections_run_on_a_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "results" / "gpu"
    code = gpu.main(["--device", "cpu", "--tiny", "--budget-seconds", "3600", "--output", str(output)])
    report = read(output)
    assert code == 0, report
    assert list(report["sections"]) == list(gpu.BUDGETS)
    for section in report["sections"].values():
        assert (section["status"], section["failures"], section["left out"]) == ("ok", [], [])
    rows = {name: {row["item"]: row for row in section["rows"]} for name, section in report["sections"].items()}
    assert rows["goldens"]["t5.1.th.tiny float32 sdpa"]["greedy equal"] == 1
    # The kernels were used, and not what would have computed instead of them.
    assert rows["goldens"]["t5.1.th.tiny bfloat16 kernels"]["checks"] == 1
    assert all(row["passes"] for item, row in rows["kernels"].items() if item.endswith("check"))
    errors = rows["kernels"]["talking heads 24, bfloat16, kernels, errors"]["errors"]
    assert set(errors["kernels"]) == set(errors["eager"]) == set(gpu_attention.RESULTS)
    steps = rows["training"]
    assert steps["t5.1.1.base"]["loss"] == pytest.approx(steps["transformers t5.1.1.base"]["loss"], rel=1e-3)
    assert steps["t5.1.th.base kernels"]["loss"] == pytest.approx(steps["t5.1.th.base rows"]["loss"], rel=1e-3)
    for row in steps.values():
        assert min(row["tokens/s"], row["TFLOP/s"]) > 0
        assert (row["MFU"], row["peak GB"]) == (None, None)  # of no known device
    assert len(rows["decoding"]) == 8
    assert all(row["equal tokens"] == 1 for row in rows["decoding"].values())
    assert [row["graphs"] for row in rows["decoding"].values() if "graphs" in row] == [1] * 2
    assert list(rows["finetuning"]) == ["transformers' trainer, float32", "finetune, float32"]
    assert all(row["difference"] == 0 for row in rows["finetuning"].values())
    assert list(rows["fsdp2"]) == ["fully_shard", "finetune"]
    printed = capsys.readouterr().out
    assert output.with_suffix(".txt").read_text() in printed
    assert {path.name for path in output.parent.iterdir()} == {"gpu.json", "gpu.txt"}


def test_kernels_are_compiled_by_a_process_for_each_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def note(name: str, *arguments: object) -> dict[str, Any]:
        (tmp_path / f"{os.getpid()}").open("a").write(f"{name} {arguments}\n")
        return {}

    rows = {gpu_attention: ("check_row", "errors_row", "speed_row"), gpu_goldens: ("kernels_row",)}
    for module, names in {**rows, gpu_models: ("step_row",)}.items():
        for name in names:
            monkeypatch.setattr(module, name, functools.partial(note, name))
    machine = Machine(torch.device("cpu"), tiny=False)
    with Report(tmp_path / "gpu", {}, machine).section("compiling", budget=1000) as section:
        gpu_models.compiling(section, machine)
    assert section.content["rows"][0]["processes"] == 8
    done = sorted(path.read_text() for path in tmp_path.iterdir() if path.name.isdecimal())
    assert [text.count("\n") for text in done] == [3] * 4 + [1] * 4
    assert "step_row ('t5.1.th.base', 'kernels', (16, 512, 114)" in done[-1]


def fail(*unused: object) -> dict[str, Any]:
    raise ValueError("no kernel image is available\nfor this device")


def test_failures_end_their_own_row_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_attention, "check_row", fail)
    monkeypatch.setattr(gpu_attention, "errors_row", lambda *unused: {"kernels error": 1.0, "wrong": "an error of 1.0"})
    monkeypatch.setattr(gpu_attention, "speed_row", lambda *unused: {"forward ms": 1.0})
    monkeypatch.setattr(gpu_runs, "convert", fail)
    output = tmp_path / "gpu"
    assert gpu.main(["--device", "cpu", "--tiny", "--only", "fsdp2", "kernels", "--output", str(output)]) == 1
    sections = read(output)["sections"]
    assert list(sections) == ["kernels", "fsdp2"]
    check, errors = sections["kernels"]["failures"]
    assert check["error"] == "ValueError: no kernel image is available"
    assert "in fail\n" in check["traceback"]
    assert "for this device" in check["traceback"]
    assert errors["error"] == "an error of 1.0"
    assert len(sections["kernels"]["rows"]) == 6
    (whole,) = sections["fsdp2"]["failures"]
    assert whole["item"] == "the section itself"
    assert [section["status"] for section in sections.values()] == ["failed", "failed"]
    table = output.with_suffix(".txt").read_text()
    assert "FAILED talking heads 24, bfloat16, check: ValueError: no kernel image is available" in table


def test_wrong_kernels_are_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = pytest.importorskip("t5_experimental.attention_triton_t5_experimental")
    monkeypatch.setattr(kernels, "forward", fail)
    row = gpu_attention.check_row((3, 4, 5, 6, 7), torch.bfloat16, CPU)
    assert row == {"passes": False, "wrong": "they raise ValueError (no kernel image is available)"}
    monkeypatch.setattr(gpu_attention, "by_kernels", lambda *inputs: 1.1 * gpu_attention.by_rows(*inputs))
    row = gpu_attention.errors_row((3, 4, 5, 6, 7), torch.bfloat16, CPU)
    assert row["kernels error"] == pytest.approx(0.1, rel=0.1)
    assert row["wrong"].startswith("an error is ")


def test_what_no_longer_fits_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def take(seconds: float) -> dict[str, Any]:
        now[0] += seconds
        return {"seconds": seconds}

    report = Report(tmp_path / "gpu", {}, CPU)
    with report.section("one", budget=10) as section:
        for item, seconds in (("a", 4), ("b", 1), ("c", 2), ("d", 3)):
            section.measure(item, take, seconds)
    content = read(tmp_path / "gpu")["sections"]["one"]
    assert [row["item"] for row in content["rows"]] == ["a", "b", "c"]
    assert content["left out"] == [{"item": "d", "why": "3 s are left and an item took up to 4 s"}]
    assert content["status"] == "incomplete"
    assert "left out d: 3 s are left" in (tmp_path / "gpu.txt").read_text()


def test_a_run_that_is_cut_off_keeps_its_rows(tmp_path: Path) -> None:
    def interrupt() -> dict[str, Any]:
        assert [row["item"] for row in read(tmp_path / "gpu")["sections"]["one"]["rows"]] == ["a"]
        raise KeyboardInterrupt

    def cut_off() -> None:
        with Report(tmp_path / "gpu", {}, CPU).section("one", budget=1000) as section:
            section.measure("a", lambda: {"figure": 1.5})
            section.measure("b", interrupt)

    with pytest.raises(KeyboardInterrupt):
        cut_off()
    content = read(tmp_path / "gpu")["sections"]["one"]
    assert (content["status"], len(content["rows"]), content["failures"]) == ("interrupted", 1, [])


def test_without_a_gpu_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(["--output", str(tmp_path / "gpu")]) == 2
    assert capsys.readouterr().err == (
        "benchmarks.gpu: torch finds no CUDA device; --device cpu --tiny tries the script.\n"
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "peak"),
    [("NVIDIA H200", 989.5e12), ("NVIDIA H100 PCIe", 756.5e12), ("NVIDIA A100-SXM4-80GB", 312e12), ("Other", None)],
)
def test_peaks_are_those_of_known_devices(name: str, peak: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert Machine(torch.device("cuda", 0), tiny=False).peak_flops == peak


def test_all_head_counts_of_the_presets_are_measured() -> None:
    assert gpu_attention.head_counts() == {
        "multi_head": [(heads, heads, heads, 64, 64) for heads in (6, 12, 16, 32, 64)],
        "talking_heads": [(heads, heads, heads, 32, 32) for heads in (24, 32)],
    }


def test_what_is_not_installed_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("resumed_row", "sharded_row", "model_with_words"):
        monkeypatch.setattr(gpu_runs, name, lambda *unused: {})
    for name in ("speed_row", "check_row", "errors_row"):
        monkeypatch.setattr(gpu_attention, name, lambda *unused: {})
    monkeypatch.setattr(gpu_runs, "has_datasets", lambda: False)
    monkeypatch.setattr(gpu_attention, "has_triton", lambda: False)
    options = ["--device", "cpu", "--tiny", "--only", "kernels", "finetuning", "fsdp2"]
    assert gpu.main([*options, "--output", str(tmp_path / "gpu")]) == 0
    sections = read(tmp_path / "gpu")["sections"]
    assert [left["item"] for section in sections.values() for left in section["left out"]] == [
        "talking heads 24, bfloat16, kernels",
        "finetune, float32",
        "finetune",
    ]
    assert sections["fsdp2"]["left out"][0]["why"] == gpu_runs.NO_DATASETS


def test_processes_that_fail_or_hang_are_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match=r"The process ended with 1: ValueError: no kernel image") as failed:
        gpu_processes.in_process([(os.getcwd, ()), (print, ("before",)), (_fail_in_one_line, ())], {}, left=600)
    assert "before" in str(failed.value)
    with pytest.raises(RuntimeError, match="ended with 1: an error in a sentence"):
        gpu_processes.in_process([(_exit, ())], {}, left=600)
    monkeypatch.setattr(gpu_processes, "LEAST_SECONDS", 0.0)
    with pytest.raises(RuntimeError, match="The process was ended, as its time was over"):
        gpu_processes.in_process([(time.sleep, (3600,))], {}, left=0)


def _fail_in_one_line() -> None:
    raise ValueError("no kernel image")


def _exit() -> None:
    raise SystemExit("an error in a sentence")


def test_checksums_are_those_of_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    data = np.random.default_rng(0).bytes(1000)
    assert gpu_checksums.value(data) == google_crc32c.value(data)
    assert gpu_checksums.extend(gpu_checksums.value(data[:77]), memoryview(data)[77:]) == google_crc32c.value(data)
    gpu_checksums.stand_in()
    assert sys.modules["google_crc32c"] is google_crc32c  # which is there
    monkeypatch.delitem(sys.modules, "google_crc32c")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    gpu_checksums.stand_in()
    assert sys.modules["google_crc32c"] is gpu_checksums


def test_a_checkout_that_is_not_installed_runs_from_links(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[Any] = []

    def run(command: list[str], env: dict[str, str]) -> subprocess.CompletedProcess[str]:
        folder, root, *_ = env["PYTHONPATH"].split(os.pathsep)
        package = Path(folder) / "t5_experimental"
        seen.extend((command[1:], Path(root) == gpu.ROOT, env["PYTHONSAFEPATH"]))
        seen.extend((package / name).exists() for name in ("__init__.py", "convert/cli.py", "training/finetune.py"))
        return subprocess.CompletedProcess(command, 3)

    monkeypatch.setattr(gpu, "is_complete", lambda: False)
    monkeypatch.setattr(subprocess, "run", run)
    assert gpu.main(["--only", "goldens"]) == 3
    assert seen == [["-m", "benchmarks.gpu", "--only", "goldens"], True, "1", True, True, True]
