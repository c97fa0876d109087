# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""A run through torch_xla that was killed goes on as if nothing had been, its random numbers included.

Runs in an environment of its own, see `make test-xla`.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM

from t5_experimental import T5V11Config


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("torch_xla") is None,
        reason="torch_xla needs an environment of its own, with the torch of the same release: run `make test-xla`",
    ),
]

DATA = Path(__file__).parents[1] / "data"

# Ends itself in step 7, three after a checkpoint.
KILLED = """
import os
from t5_experimental.training import finetune
from t5_experimental.training.trainer.trainer import T5Trainer

train_step = T5Trainer.training_step

def training_step(self, *args, **kwargs):
    if self.state.global_step == 6:
        os.kill(os.getpid(), 9)
    return train_step(self, *args, **kwargs)

T5Trainer.training_step = training_step
finetune.main()
"""


def make_model(folder: Path) -> Path:
    torch.manual_seed(0)
    config = T5V11Config(vocab_size=1152, d_model=32, d_kv=8, d_ff=64, num_heads=4, num_layers=2)
    AutoModelForSeq2SeqLM.from_config(config).save_pretrained(folder)
    (folder / "spiece.model").write_bytes((DATA / "restaurants.model").read_bytes())
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5Tokenizer", "extra_ids": 100}))
    return folder


@pytest.mark.parametrize("devices", [1, 4])
def test_a_killed_run_goes_on_exactly(devices: int, tmp_path: Path) -> None:
    (tmp_path / "killed.py").write_text(KILLED)
    flags = f"--model_name_or_path {make_model(tmp_path / 'model')} --train_file {DATA / 'restaurants_train.jsonl'} "
    flags += "--optimizer_preset adamw --learning_rate 1e-3 --dropout_rate 0.1 --per_device_train_batch_size 4 "
    flags += "--max_source_length 64 --max_target_length 48 --max_steps 10 --save_steps 4 --logging_steps 5 "
    flags += "--report_to none --disable_tqdm True" + " --xla_spmd" * (devices > 1)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    environment |= {"CPU_NUM_DEVICES": str(devices)}

    def run(output: str, *program: str) -> int:
        command = [sys.executable, *program, *flags.split(), "--output_dir", str(tmp_path / output)]
        return subprocess.run(command, env=environment, cwd=tmp_path, check=False).returncode

    module = ("-m", "t5_experimental.training.finetune")
    assert run("whole", *module) == 0
    assert run("killed", "killed.py") == -9
    assert run("killed", *module) == 0
    outcomes = []
    for output in (tmp_path / "whole", tmp_path / "killed"):
        history = json.loads((output / "checkpoint-10" / "trainer_state.json").read_text())["log_history"]
        outcomes.append(
            ([entry["loss"] for entry in history if "loss" in entry], load_file(output / "model.safetensors"))
        )
    assert outcomes[0][0] == outcomes[1][0]
    assert all(torch.equal(weight, outcomes[1][1][name]) for name, weight in outcomes[0][1].items())
