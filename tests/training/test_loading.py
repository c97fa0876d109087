# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Weights that are read in parts, and files that become shorter meanwhile; `tests/engines` has whole runs."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForSeq2SeqLM

from t5_experimental.training.engines import fsdp2_weights as loading
from t5_experimental.training.engines.fsdp2_weights import PartsReader
from t5_experimental.training.errors import TrainingError
from t5_experimental.training.optim.slots import read_slots


@pytest.fixture
def folder(tiny_models: dict[str, Path], tmp_path: Path) -> Path:
    model = AutoModelForSeq2SeqLM.from_pretrained(tiny_models["t5_v1_1"])
    model.to(torch.bfloat16).save_pretrained(tmp_path / "model", max_shard_size="40KB")
    return tmp_path / "model"


def test_all_tensors_of_all_files(folder: Path) -> None:
    expected: dict[str, torch.Tensor] = {}
    for path in folder.glob("*.safetensors"):
        expected |= load_file(path)
    assert len(list(folder.glob("*.safetensors"))) > 2
    found = {name: torch.empty(tensor.shape) for name, tensor in expected.items()}
    dcp.load(found, storage_reader=PartsReader(str(folder)))
    assert all(torch.equal(found[name], tensor.float()) for name, tensor in expected.items())
    with pytest.raises(dcp.CheckpointException, match=r"(?i)size mismatch"):
        dcp.load({name: torch.empty(3, 3, 3) for name in expected}, storage_reader=PartsReader(str(folder)))


@pytest.mark.parametrize("size", [0, 4, 100, 20_000])
def test_weights_that_become_shorter(
    size: int, folder: Path, monkeypatch: pytest.MonkeyPatch, accelerator: Any
) -> None:
    opened = loading.opened
    count = [0]

    def and_cut(path: Path) -> Any:
        file = opened(path)
        count[0] += 1
        if count[0] == len(list(folder.glob("*.safetensors"))) + 2:  # the second whose weights are read
            os.truncate(path, size)
        return file

    monkeypatch.setattr(loading, "opened", and_cut)
    config = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = AutoModelForSeq2SeqLM.from_config(config)
    with pytest.raises(TrainingError, match=r"^The weights of .*/model do not load: .*[Cc]ould not read tensor"):
        loading.shard_and_load(model, str(folder), accelerator)


@pytest.fixture
def accelerator(monkeypatch: pytest.MonkeyPatch) -> Any:
    """For one process, which cuts nothing up."""
    from types import SimpleNamespace

    for name in ("fsdp2_prepare_model", "fsdp2_apply_ac"):
        monkeypatch.setattr(loading, name, lambda *_: None)
    monkeypatch.setattr(loading, "fsdp2_canonicalize_names", lambda names: names)
    plugin = SimpleNamespace(
        set_auto_wrap_policy=lambda _: None,
        activation_checkpointing=False,
        cpu_offload=None,
        cpu_ram_efficient_loading=1,
    )
    return SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin), device=torch.device("cpu"))


def test_an_optimizer_that_becomes_shorter(
    with_slots: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from t5_experimental.training.optim import slots

    folder = Path(shutil.copytree(with_slots("t5.1.1.tiny"), tmp_path / "model"))
    model = AutoModelForSeq2SeqLM.from_pretrained(folder)
    safe_open = slots.safe_open

    def and_cut(path: Path, *arguments: Any, **options: Any) -> Any:
        file = safe_open(path, *arguments, **options)
        os.truncate(path, 3000)
        return file

    monkeypatch.setattr(slots, "safe_open", and_cut)
    with pytest.raises(TrainingError, match=r"is broken \(SafetensorError.*Could not read tensor"):
        read_slots(dict(model.named_parameters()), folder)
