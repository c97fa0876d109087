# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Files of slots that cannot be gone on from; test_optimizers.py resumes from good ones."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSeq2SeqLM

from t5_experimental.training.errors import TrainingError
from t5_experimental.training.optim.presets import build_optimizer


def spoiled(folder: Path, output: Path, **header: str) -> Path:
    """A copy of a folder's state with another header and, if that says so, with momentum."""
    source = folder / "optimizer.safetensors"
    with safe_open(source, "pt") as file:
        metadata = {**file.metadata(), **header}
    tensors = load_file(source)
    if metadata.pop("momentum", ""):
        tensors["shared.weight.m"] = torch.zeros(1152, 32)
    if metadata.pop("turned", ""):
        axes = json.loads(metadata["factored"])
        axes["shared.weight"]["shape"].reverse()
        metadata["factored"] = json.dumps(axes)
    if lost := metadata.pop("lost", ""):
        del metadata[lost]
    save_file(tensors, output / "optimizer.safetensors", metadata)
    return output


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"optimizer": "sgd"}, "does not hold Adafactor's state"),
        ({"momentum": "yes"}, "with momentum"),
        ({"lost": "step"}, r"is broken \(KeyError\('step'\)\): convert the checkpoint again"),
        ({"lost": "factored"}, r"is broken \(KeyError\('factored'\)\)"),
        ({"step": "many"}, r"is broken \(ValueError"),
        ({"turned": "yes"}, "the state of shared.weight does not fit a parameter of shape"),
    ],
)
def test_broken_slots(header: dict[str, str], message: str, with_slots: Callable[[str], Path], tmp_path: Path) -> None:
    model = AutoModelForSeq2SeqLM.from_pretrained(with_slots("t5.1.1.tiny"))
    folder = spoiled(with_slots("t5.1.1.tiny"), tmp_path, **header)
    with pytest.raises(TrainingError, match=message):
        build_optimizer("finetune", model, slots=folder)


def test_slots_that_were_cut_short(with_slots: Callable[[str], Path], tmp_path: Path) -> None:
    folder = with_slots("t5.1.1.tiny")
    whole = (folder / "optimizer.safetensors").read_bytes()
    (tmp_path / "optimizer.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(TrainingError, match=r"is broken \(SafetensorError.*convert the checkpoint again"):
        build_optimizer("finetune", AutoModelForSeq2SeqLM.from_pretrained(folder), slots=tmp_path)
