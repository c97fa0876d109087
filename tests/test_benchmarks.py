# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""The benchmarks run, and measure what they say; how fast anything is is no test's business."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from benchmarks import convert, startup
from t5_experimental import T5ExperimentalConfig
from t5_experimental.convert.bundle.reader import TensorBundleReader
from t5_experimental.convert.cli import main
from tests.support.optional_tensorflow import import_tensorflow


ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_conversions_are_measured(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    options = ["--sizes", "tiny", "--rounds", "1", "--warm-up", "0", "--skip-tensorflow"]
    places = ["--work-dir", tmp_path / "work", "--output", tmp_path / "results" / "convert"]
    command = [sys.executable, "-m", "benchmarks.convert", *options, *map(str, places)]
    subprocess.run(command, cwd=ROOT, check=True)
    assert not list((tmp_path / "work").iterdir())
    results = json.loads((tmp_path / "results" / "convert.json").read_text())
    assert results["machine"]["torch"]
    tiny = results["sizes"]["tiny"]
    # Of 1024 inner units.
    assert tiny["memory_limit_bytes"] == 2 * 1024 * 64 * 4 + 200 * 10**6
    assert set(tiny["figures"]) == {"cp", "streaming", "command", "stock"}
    for figures in tiny["figures"].values():
        assert all(len(values) == 1 and values[0] >= 0 for values in figures.values())
    # What it means to import numpy; the benchmark's own memory, with torch, is not counted into that of others.
    assert tiny["median"]["cp"]["peak_bytes"] < 15e6 < tiny["median"]["command"]["peak_bytes"] < 150e6
    seconds = {name: figures["seconds"][0] for name, figures in tiny["figures"].items()}
    assert tiny["ratios"] == {f"{name} / cp": seconds[name] / seconds["cp"] for name in ("streaming", "stock")}


@pytest.mark.slow
def test_starts_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Importing models is measured as importing torch is.
    monkeypatch.setattr(startup, "STATEMENTS", {"Python alone": "pass", startup.BASE: "import torch"})
    output = tmp_path / "results" / "startup"
    monkeypatch.setattr(sys, "argv", ["", "--quick", "--output", str(output)])
    startup.main()
    printed = capsys.readouterr().out
    report = json.loads(output.with_suffix(".json").read_text())
    assert report["machine"]["torch"]
    results = report["results"]
    models = ["generate, 3 tokens", "finetune --estimate"]
    small = ["--help", "a misspelt option", "presets", "inspect", "convert", "convert --vocab"]
    assert list(results)[2:] == [*small, *models]
    for name, figures in results.items():
        assert f"{name} " in printed
        assert figures["to_torch"] == figures["cpu_seconds"][0] / results[startup.BASE]["cpu_seconds"][0] > 0
    # What must be in memory, unlike time, is no matter of chance: torch for one of them.
    others = [figures["peak_bytes"] for name, figures in results.items() if name not in (startup.BASE, *models)]
    assert max(others) < results[startup.BASE]["peak_bytes"]


@pytest.mark.parametrize("has_numbers", [False, True])
def test_checkpoint_is_of_the_size_that_is_said(tmp_path: Path, has_numbers: bool) -> None:
    """Every checksum is right, and the only zeros are those of a file of holes."""
    config = convert.configuration("tiny")
    convert.write_checkpoint(config, tmp_path / "source", has_numbers)
    data = next((tmp_path / "source").glob("*.data-*"))
    assert data.stat().st_size == sum(map(convert.nbytes, convert.variables_of(config)))
    assert (data.stat().st_blocks * 512 >= data.stat().st_size) == has_numbers
    reader = TensorBundleReader(tmp_path / "source" / convert.PREFIX)
    for name in reader.variables:
        assert reader.read(name).any() == (has_numbers and name != "global_step"), name
    assert main(["convert", str(tmp_path / "source"), str(tmp_path / "output")]) == 0


@pytest.mark.slow
def test_tensorflow_does_the_same_work(tmp_path: Path) -> None:
    """The contestant's folder holds the numbers that the command writes."""
    import_tensorflow()
    config: T5ExperimentalConfig = convert.configuration("tiny")
    convert.write_checkpoint(config, tmp_path / "source", True)
    convert.contestants_for(tmp_path, "float32", has_numbers=False, has_tensorflow=True)["TensorFlow"]()
    theirs = load_file(tmp_path / "output" / "model.safetensors")
    assert main(["convert", str(tmp_path / "source"), str(tmp_path / "ours"), "--format", "stock-t5"]) == 0
    ours = load_file(tmp_path / "ours" / "model.safetensors")
    assert theirs.keys() == ours.keys()
    for name in ours:
        assert np.array_equal(theirs[name], ours[name]), name


def test_what_the_disk_cannot_take_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 0})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    assert convert.measure_size("xxl", None, tmp_path) == {
        "left out": ["all: 22 GB of free disk needed, 0 GB there"],
    }
    assert not list(tmp_path.iterdir())
