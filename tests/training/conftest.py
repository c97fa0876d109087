# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Tiny models with a tokenizer, and the launcher, for the tests of training."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM

from t5_experimental import T5FirstLayersNarrowConfig, T5LMAdaptedConfig, T5TalkingHeadsConfig, T5V11Config


REPOSITORY = Path(__file__).parents[2]
DATA = REPOSITORY / "tests" / "data"
FAMILIES = {
    config_class.model_type: config_class
    for config_class in (T5V11Config, T5LMAdaptedConfig, T5TalkingHeadsConfig, T5FirstLayersNarrowConfig)
}

Launcher = Callable[..., subprocess.CompletedProcess[str]]


def make_tiny_model(folder: Path, model_type: str) -> Path:
    """A folder with a random tiny model of a family and the restaurants' tokenizer."""
    layers = 6 if model_type == "t5_first_layers_narrow" else 2
    config = FAMILIES[model_type](vocab_size=1152, d_model=32, d_kv=8, d_ff=64, num_heads=4, num_layers=layers)
    torch.manual_seed(0)
    AutoModelForSeq2SeqLM.from_config(config).save_pretrained(folder)
    shutil.copyfile(DATA / "restaurants.model", folder / "spiece.model")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5Tokenizer", "extra_ids": 100}))
    return folder


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folder of a tiny model for each family, by `model_type`."""
    folder = tmp_path_factory.mktemp("models")
    return {model_type: make_tiny_model(folder / model_type, model_type) for model_type in FAMILIES}


@pytest.fixture(scope="session")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Launcher:
    """Runs `training/finetune.py` on the CPU through accelerate, with options as keywords, and returns the outcome."""
    cache = tmp_path_factory.mktemp("cache")

    def run(launcher_options: tuple[str, ...] = (), **options: object) -> subprocess.CompletedProcess[str]:
        script = REPOSITORY / "training" / "finetune.py"
        options = {"train_file": DATA / "restaurants_train.jsonl", "use_cpu": True, "disable_tqdm": True, **options}
        flags = [text for name, value in options.items() for text in (f"--{name}", str(value))]
        return subprocess.run(
            [sys.executable, "-m", "accelerate.commands.launch", *launcher_options, str(script), *flags],
            env={**os.environ, "HF_DATASETS_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run
