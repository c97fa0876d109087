# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Trains every family through torch_xla, and compares with the same run on the CPU.

    PJRT_DEVICE=CPU python -m benchmarks.engines_xla --output benchmarks/results/engines_xla.json

Needs an environment with torch_xla, as `make test-xla` creates it. Models are tiny and the data are the tests'. A row
says by how much the losses differ at most, how many programs were compiled up to the second log, after it, in the
first evaluation and in the second, how often a step waited for the device, how much each device holds, whether the
saved folder holds the very weights of the run and gives the same loss on the CPU, and whether generated texts are the
same.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM, TrainerCallback, set_seed

import t5_experimental
from t5_experimental.training import finetune, pretrain, prompt_tune
from t5_experimental.training.engines.parts import optimizer_bytes, parameter_bytes

from .common import machine
from .engines import same_adapter


REPOSITORY = Path(__file__).parents[1]
DATA = REPOSITORY / "tests" / "data"
STEPS, LOG = 20, 5

_SIZE = {"vocab_size": 1152, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_heads": 4, "num_layers": 2}
FAMILIES = {
    config_class.model_type: config_class(**{**_SIZE, **more})
    for config_class, more in (
        (t5_experimental.T5V11Config, {}),
        (t5_experimental.T5LMAdaptedConfig, {}),
        (t5_experimental.T5TalkingHeadsConfig, {"num_key_heads": 2, "num_value_heads": 3, "d_k": 8, "d_v": 6}),
        (t5_experimental.T5FirstLayersNarrowConfig, {"num_layers": 6}),
    )
}

_COMMON = (
    f"--max_steps {STEPS} --logging_steps {LOG} --per_device_train_batch_size 4 --per_device_eval_batch_size 8 "
    "--save_strategy no --report_to none --disable_tqdm True"
)
# Inputs of 128 are long enough for attention by rows, where there is any; 50 examples are no multiple of 8.
_PAIRS = (
    f"--train_file {DATA / 'restaurants_train.jsonl'} --validation_file {DATA / 'restaurants_validation.jsonl'} "
    "--max_source_length 128 --max_target_length 48 --metric f1"
)
_TEXT = (
    f"--train_file {DATA / 'restaurants_train.jsonl'} --validation_file {DATA / 'restaurants_validation.jsonl'} "
    "--text_column target --max_source_length 32 --validation_rows 5 --shuffle_megabytes 0.01"
)


class Cell(NamedTuple):
    """Something to train: a family by an entry point with flags, each step by `devices` together."""

    family: str
    entry_point: str
    flags: str
    devices: int = 1


_PLAIN = "--dropout_rate 0 --bf16 False"
_ADAMW = "--optimizer_preset adamw --learning_rate 3e-3"
CELLS = {
    **{family: Cell(family, "finetune", f"{_PAIRS} {_PLAIN}") for family in FAMILIES},
    "bfloat16": Cell("t5_v1_1", "finetune", f"{_PAIRS} --dropout_rate 0 --bf16 True"),
    "dropout": Cell("t5_talking_heads", "finetune", f"{_PAIRS} --dropout_rate 0.1 --bf16 False"),
    "pretrain": Cell("t5_lm_adapted", "pretrain", f"{_TEXT} {_PLAIN}"),
    "packed": Cell("t5_talking_heads", "pretrain", f"{_TEXT} {_PLAIN} --pack"),
    "the original's Adafactor": Cell("t5_talking_heads", "finetune", f"{_PAIRS} {_PLAIN} --optimizer_preset finetune"),
    "adamw": Cell("t5_v1_1", "finetune", f"{_PAIRS} {_PLAIN} {_ADAMW}"),
    "rms_adamw": Cell("t5_v1_1", "finetune", f"{_PAIRS} {_PLAIN} --optimizer_preset rms_adamw"),
    "LoRA": Cell("t5_first_layers_narrow", "finetune", f"{_PAIRS} {_PLAIN} {_ADAMW} --lora_rank 4"),
    "prompt": Cell("t5_lm_adapted", "prompt_tune", f"{_PAIRS} {_PLAIN} --prompt_length 5"),
    **{
        f"{family}, 4 devices": Cell(family, "finetune", f"{_PAIRS} {_PLAIN} {optimizer}", 4)
        for family, optimizer in zip(
            FAMILIES,
            (_ADAMW, "--optimizer_preset finetune", "--optimizer_preset finetune", "--optimizer_preset rms_adamw"),
            strict=True,
        )
    },
    "pretrain, 4 devices": Cell("t5_v1_1", "pretrain", f"{_TEXT} {_PLAIN} --pack {_ADAMW}", 4),
}
"""By name."""


def make_model(folder: Path, family: str) -> Path:
    """A folder with a random tiny model and the restaurants' tokenizer."""
    torch.manual_seed(0)
    AutoModelForSeq2SeqLM.from_config(FAMILIES[family]).save_pretrained(folder)
    shutil.copyfile(DATA / "restaurants.model", folder / "spiece.model")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5Tokenizer", "extra_ids": 100}))
    return folder


class _Counts(TrainerCallback):
    """What torch_xla has counted by the end of each step."""

    def __init__(self) -> None:
        self.compilations: list[int] = []
        self.transfers: list[int] = []

    def on_step_end(self, *unused: Any, **also_unused: Any) -> None:
        self.compilations.append(_count("CompileTime"))
        self.transfers.append(_count("TransferFromDeviceTime"))


def _count(metric: str) -> int:
    import torch_xla.debug.metrics as metrics

    return (metrics.metric_data(metric) or [0])[0]


def _fallbacks() -> dict[str, int]:
    """Operators that XLA does not have and the CPU computed, by name; reading a scalar back is one of them."""
    import torch_xla.debug.metrics as metrics

    return {name: metrics.counter_value(name) for name in metrics.counter_names() if name.startswith("aten::")}


def train(cell: str, model: Path, output: Path, on_xla: bool) -> dict[str, Any]:
    """Trains, saves and evaluates in this process; returns what there is to compare."""
    _, name, flags, devices = CELLS[cell]
    given = f"--model_name_or_path {model} --output_dir {output} {_COMMON} {flags}".split()
    given += ["--xla_spmd"] * (devices > 1) if on_xla else ["--use_cpu"]
    set_seed(7)  # of adapters' weights, too, as the entry points do
    trainer: Any
    if name == "finetune":
        trainer, _ = finetune.build_trainer(finetune.parse(given))
    elif name == "prompt_tune":
        trainer, *_ = prompt_tune.build_trainer(prompt_tune.ENTRY_POINT.parse(given))
    else:
        trainer = pretrain.build_trainer(pretrain.parse(given))
    counts = _Counts()
    if on_xla:
        trainer.add_callback(counts)
    start = time.perf_counter()
    trainer.train()
    results: dict[str, Any] = {
        "seconds": round(time.perf_counter() - start, 1),
        "engine": trainer.accelerator.distributed_type.value,
        "device": str(next(trainer.model.parameters()).device.type),
        "processes": trainer.args.world_size,
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "described": trainer.run.engine.describe(trainer.accelerator),
        "parameters_bytes_per_device": parameter_bytes(trainer.model)[0],
        "parameters_bytes": parameter_bytes(trainer.model)[1],
        "optimizer_bytes_per_device": optimizer_bytes(trainer.optimizer),
    }
    if on_xla:
        warm, log = counts.compilations[2 * LOG], slice(2 * LOG, 3 * LOG)
        results["compilations"] = {"until_second_log": warm, "after": counts.compilations[-1] - warm}
        # The log of a step comes after its end: of these steps, all but the first come after no log.
        results["transfers_between_logs"] = counts.transfers[log][-1] - counts.transfers[log][0]
    trainer.save_finished_model()
    weights = {name: value.cpu() for name, value in trainer.model.state_dict().items()}
    if is_adapter := (output / "adapter_config.json").is_file():
        results["saved_equal"] = same_adapter(weights, load_file(output / "adapter_model.safetensors"))
    else:
        saved = load_file(output / "model.safetensors")
        results["saved_equal"] = all(torch.equal(value, weights[name]) for name, value in saved.items())
    for evaluation in ("first_evaluation", "second_evaluation"):
        before = _count("CompileTime") if on_xla else 0
        results["eval_loss"] = trainer.evaluate()["eval_loss"]
        if on_xla:
            results["compilations"][evaluation] = _count("CompileTime") - before
    if name != "pretrain":
        results["texts"] = [sample.prediction for sample in trainer.sample("eval")]
    if on_xla:
        results["fallbacks"] = _fallbacks()
        loaded = AutoModelForSeq2SeqLM.from_pretrained(model if is_adapter else output)
        results["loaded_eval_loss"] = _loss_of_saved(
            trainer, PeftModel.from_pretrained(loaded, output) if is_adapter else loaded
        )
    return results


def _loss_of_saved(trainer: Any, saved: torch.nn.Module) -> float:
    """Of a saved model on the first examples of the evaluation, minus that of the model in training."""
    loader = trainer.get_eval_dataloader()
    batch = {name: value for name, value in next(iter(loader)).items() if value is not None}
    losses = []
    for model in (saved, trainer.model):
        device = next(model.parameters()).device
        with torch.no_grad():
            loss = model.eval()(**{name: value.to(device) for name, value in batch.items()}).loss
        losses.append(loss.item())
    return losses[0] - losses[1]


def _in_a_process(cell: str, model: Path, folder: Path, on_xla: bool) -> dict[str, Any]:
    kind = "xla" if on_xla else "cpu"
    environment = {**os.environ, "USE_TORCH_XLA": str(int(on_xla)), "HF_DATASETS_CACHE": str(folder / "cache")}
    environment |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment |= {"CPU_NUM_DEVICES": str(CELLS[cell].devices)}
    command = [
        sys.executable,
        "-m",
        "benchmarks.engines_xla",
        "--cells",
        cell,
        "--worker",
        kind,
        str(model),
        str(folder / kind),
    ]
    subprocess.run([*command, "--output", str(folder / f"{kind}.json")], env=environment, cwd=REPOSITORY, check=True)
    return json.loads((folder / f"{kind}.json").read_text())


def measure(cell: str, folder: Path) -> dict[str, Any]:
    """The row of a cell; works in an empty folder."""
    family, entry_point, _, devices = CELLS[cell]
    model = make_model(folder / "model", family)
    xla, cpu = (_in_a_process(cell, model, folder, on_xla) for on_xla in (True, False))
    if (cpu["device"], cpu["engine"]) != ("cpu", "NO"):
        raise RuntimeError(f"The run to compare with was on {cpu['device']}, by {cpu['engine']}, and not on the CPU.")
    pairs = [*zip(xla["losses"], cpu["losses"], strict=True), (xla["eval_loss"], cpu["eval_loss"])]
    row = {"cell": cell, "family": family, "entry_point": entry_point, "steps": STEPS}
    row |= {"devices": devices, **{name: xla[name] for name in ("engine", "described", "device", "processes")}}
    row |= {name: value for name, value in xla.items() if "_bytes" in name}
    row["optimizer_bytes"] = cpu["optimizer_bytes_per_device"]
    row["max_loss_difference"] = max(abs(a - b) / abs(b) for a, b in pairs)
    row |= {name: xla[name] for name in ("compilations", "transfers_between_logs", "fallbacks", "saved_equal")}
    row["loaded_loss_difference"] = abs(xla["loaded_eval_loss"])
    row["generated_equal"] = xla["texts"] == cpu["texts"] if "texts" in xla else None
    return {**row, "seconds": xla["seconds"]}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs with a command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", nargs="+", default=list(CELLS), choices=list(CELLS))
    parser.add_argument("--output", type=Path, required=True, help="JSON file")
    parser.add_argument("--worker", nargs=3, metavar=("KIND", "MODEL", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker is not None:
        kind, model, folder = options.worker
        options.output.write_text(json.dumps(train(options.cells[0], Path(model), Path(folder), kind == "xla")))
        return
    rows = []
    for cell in options.cells:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(cell, Path(folder)))
        print(json.dumps(rows[-1]), flush=True)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
