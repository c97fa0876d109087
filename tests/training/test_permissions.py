# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Who may read what a run or a conversion writes is for the umask to say, of every file alike."""

import os
from pathlib import Path

import numpy as np
import pytest

from t5_experimental.convert.cli import main as convert
from t5_experimental.training import finetune, pretrain, prompt_tune


DATA = Path(__file__).parents[1] / "data"


@pytest.fixture(params=[0o022, 0o027], ids=oct)
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def permissions(folder: Path) -> dict[str, str]:
    """Of everything in a folder, by name."""
    return {str(path.relative_to(folder)): oct(path.stat().st_mode & 0o777) for path in [folder, *folder.rglob("*")]}


def expected(folder: Path, umask: int) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): oct((0o777 if path.is_dir() else 0o666) & ~umask)
        for path in [folder, *folder.rglob("*")]
    }


@pytest.mark.parametrize(
    ("program", "more", "weights"),
    [
        (finetune, {}, "model.safetensors"),
        (finetune, {"lora_rank": 2, "optimizer_preset": "adamw"}, "adapter_model.safetensors"),
        (prompt_tune, {"prompt_length": 2}, "adapter_model.safetensors"),
        (pretrain, {"text_column": "target"}, "model.safetensors"),
    ],
)
def test_training(program, more, weights, umask, tiny_models, tmp_path, monkeypatch):
    """The model or adapters, and what checkpoints hold besides: optimizer, random state, stream."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    output = tmp_path / "output"
    options = {"model_name_or_path": tiny_models["t5_v1_1"], "train_file": DATA / "restaurants_train.jsonl"}
    options |= {"use_cpu": True, "disable_tqdm": True, "max_steps": 1, "save_steps": 1, "report_to": "none", **more}
    options["output_dir"] = output
    program.main([word for name, value in options.items() for word in (f"--{name}", str(value))])
    found = permissions(output)
    assert found == expected(output, umask)
    assert {weights, "report.html", f"checkpoint-1/{weights}", "checkpoint-1/optimizer.pt"} <= set(found)


def test_imported_prompts(umask, tiny_models, tmp_path):
    np.save(tmp_path / "x.npy", np.ones((3, 32), np.float32))
    options = ["--model_name_or_path", str(tiny_models["t5_v1_1"]), "--import_prompt", str(tmp_path / "x.npy")]
    prompt_tune.main([*options, "--output_dir", str(tmp_path / "output"), "--use_cpu"])
    assert permissions(tmp_path / "output") == expected(tmp_path / "output", umask)
    assert "adapter_model.safetensors" in permissions(tmp_path / "output")


def test_conversion(umask, reference, tmp_path):
    source, output = str(reference / "golden" / "t5.1.th.tiny"), tmp_path / "output"
    vocabulary = ["--vocab", str(DATA / "restaurants.model")]
    assert convert(["convert", source, str(output), *vocabulary, "--with-optimizer", "--max-shard-size", "200KB"]) == 0
    assert convert(["export", str(output), str(tmp_path / "exported")]) == 0
    for folder in (output, tmp_path / "exported"):
        assert permissions(folder) == expected(folder, umask)
    assert len(permissions(output)) > 10
