# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Weights that every process reads its own part of, under FSDP2: see `training/loading.py`."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from t5_experimental.training.engines.engine import Engine
from t5_experimental.training.engines.fsdp2_weights import reads_in_parts
from tests.support.forking import ForkServer
from tests.support.launching import flags


SCRIPT = "tests.engines.fsdp2_on_cpu"
DATA = Path(__file__).parents[1] / "data"
STEPS = 5


@pytest.mark.parametrize(
    ("version", "files", "expected"),
    [
        ("2", ["model.safetensors"], True),
        ("2", ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "index"], True),
        ("2", ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"], False),
        ("2", ["model.safetensors", "adapter_model.safetensors"], False),
        ("2", ["model.safetensors", "model-00001-of-00001.safetensors", "index"], False),
        ("2", ["index"], False),
        ("1", ["model.safetensors"], False),
        (None, ["model.safetensors"], False),
    ],
)
def test_only_a_model_alone_in_its_folder_is_read_in_parts(
    version: str | None, files: list[str], expected: bool, tmp_path: Path
) -> None:
    """Anything else is loaded the usual way, which knows which files to take."""
    for name in files:
        (tmp_path / name.replace("index", "model.safetensors.index.json")).touch()
    engine = Engine() if version is None else Engine("fsdp", int(version), 2)
    assert reads_in_parts(engine, str(tmp_path)) == expected


@pytest.fixture(scope="module")
def reports(
    tiny_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, fork_server: ForkServer
) -> dict[int, list[Any]]:
    """By number of processes, what each reports of a run from bfloat16 files, many of them."""
    folder = tmp_path_factory.mktemp("loading")
    model = AutoModelForSeq2SeqLM.from_pretrained(tiny_models["t5_talking_heads"])
    model.to(torch.bfloat16).save_pretrained(folder / "model", max_shard_size="40KB")
    AutoTokenizer.from_pretrained(tiny_models["t5_talking_heads"]).save_pretrained(folder / "model")
    found = {}
    for processes in (1, 3):
        options = {
            "model_name_or_path": folder / "model",
            "output_dir": folder / str(processes),
            "train_file": DATA / "restaurants_train.jsonl",
            "validation_file": DATA / "restaurants_validation.jsonl",
            "optimizer_preset": "finetune",
            "per_device_train_batch_size": 12 // processes,
            "max_steps": STEPS,
            "save_strategy": "no",
            "use_cpu": True,
            "accelerator_config": '{"use_configured_state": true}',
            "disable_tqdm": True,
            "report_to": "none",
            "dropout_rate": 0,
            "logging_steps": 1,
        }
        runs = {"run": {"flags": flags(**options), "environment": {}}}
        files = [folder / f"{processes}.json", folder / f"{processes}.reports.json"]
        files[0].write_text(json.dumps(runs))
        engine = "fsdp2" if processes > 1 else "single"
        run = fork_server.start(SCRIPT, files, engine, processes)
        assert not any(run.wait()), run.read()
        found[processes] = [rank["run"] for rank in json.loads(files[1].read_text())]
    return found


@pytest.mark.slow
def test_three_processes_of_which_one_has_no_row_of_some_weights(reports: dict[int, list[Any]]) -> None:
    """The four heads' mixing matrices leave nothing for the third process: accelerate takes all its empty parts for
    the same parameter."""
    one, ranks = reports[1][0], reports[3]
    assert [rank["empty_at_first"] for rank in (one, *ranks)] == [False, True, True, True]
    assert sum(rank["parameters_bytes_per_rank"] for rank in ranks) == one["parameters_bytes_per_rank"]
    assert [rank["without_rows"] > 1 for rank in ranks] == [False, False, True]
    for rank in ranks:
        assert rank["optimized"] == rank["parameters"] == one["parameters"]
        assert len(rank["losses"]) == STEPS
        assert rank["losses"] == pytest.approx(one["losses"], abs=1e-4)
        assert rank["norms"] == pytest.approx(one["norms"], abs=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory of a process where Linux tells it")
def test_no_process_holds_a_copy_of_the_whole_model(tmp_path: Path) -> None:
    """In float32, which the files are not. The usual way does hold one, so the figures mean something."""
    options = ["--preset", "t5.1.1.small", "--ways", "ours", "whole", "--output", tmp_path / "memory"]
    command = [sys.executable, "-m", "benchmarks.memory_per_rank", *options]
    root = Path(__file__).parents[2]
    outcome = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=1800)
    assert outcome.returncode == 0, outcome.stderr[-3000:]
    found = json.loads((tmp_path / "memory.json").read_text())
    whole = 4 * found["settings"]["parameters"]
    assert len(found["ways"]["ours"]) == 2
    for rank in found["ways"]["ours"]:
        # A half, and what is imported meanwhile: scipy, for one, if it is installed.
        assert whole / 2 < rank["peak"] < 0.9 * whole
    for rank in found["ways"]["whole"]:
        assert rank["peak"] > whole
