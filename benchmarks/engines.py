# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Trains under every engine, and compares with one process: every family, through the entry points as users start them.

    python -m benchmarks.engines --output benchmarks/results/engines.json
    python -m benchmarks.engines --engines ddp --cells t5_v1_1 --output one.json

Models are tiny and the data are the tests'. Each engine trains all cells in one start of two processes (DeepSpeed's
part of the command line is `accelerate launch --config_file training/configs/deepspeed_zero3.yaml`), one process trains
them with the same batches, and a row says by how much the losses differ at most, what each process held, whether the
saved folder holds the very weights of the run and loads in one process, and whether generated texts are the same. Rows
of engines that are not run stay in the file: other programs add theirs.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM

import t5_experimental
from tests.support.forking import ForkServer
from tests.support.launching import launch
from tests.support.pretended_gpus import FLAGS

from .common import machine


REPOSITORY = Path(__file__).parents[1]
DATA = REPOSITORY / "tests" / "data"
WORKER = "tests.support.engine_worker"

ENGINES = ("ddp", "fsdp2", "deepspeed_zero2", "deepspeed_zero3", "deepspeed_zero3_offload")
STEPS = 15
QUICK_STEPS = 6
"""For the tests: three of warm-up, and as many at the full rate."""
TOLERANCE = 1e-4
"""Of the losses of a step, relative; float32."""
_ANOTHER_DRAW = 0.3
"""The same where the weights begin with other random numbers."""
_FRESH = "fresh weights"

_SIZE = {"vocab_size": 1152, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_heads": 4, "num_layers": 2}
FAMILIES = {
    config_class.model_type: config_class(**{**_SIZE, **more})
    for config_class, more in (
        (t5_experimental.T5V11Config, {}),
        (t5_experimental.T5LMAdaptedConfig, {}),
        (t5_experimental.T5TalkingHeadsConfig, {"num_key_heads": 2, "num_value_heads": 3}),
        (t5_experimental.T5FirstLayersNarrowConfig, {"num_layers": 6}),
    )
}

_NARROW = {"num_heads": 2, "d_ff": 64}
QUICK_FAMILIES = {
    **FAMILIES,
    "t5_first_layers_narrow": t5_experimental.T5FirstLayersNarrowConfig(
        **_SIZE, layer_overrides={key: [_NARROW, {}] for key in ("encoder", "decoder")}
    ),
}
"""For the tests: one narrow layer instead of four, since ZeRO-3 takes its time for each."""

# Eight examples in a step, however many processes share them; targets are of unequal length.
_STEP = "--optimizer_preset adamw --learning_rate 3e-3 --lr_scheduler_type linear --warmup_steps 3 --logging_steps 1"
_COMMON = "--dropout_rate 0 --bf16 False --save_strategy no --disable_tqdm True --report_to none --seed 7"
_TEXTS = "--generation_max_length 8 --generation_num_beams 2 --per_device_eval_batch_size 2 --eval_strategy steps"
_PAIRS = (
    f"--train_file {DATA / 'restaurants_train.jsonl'} --max_source_length 48 --max_target_length 48 {_TEXTS} "
    "--metric f1"
)
_TEXT = (
    f"--train_file {DATA / 'restaurants_train.jsonl'} --validation_file {DATA / 'restaurants_validation.jsonl'} "
    "--text_column target --max_source_length 32 --validation_rows 5 --shuffle_megabytes 0.01"
)


@dataclass(frozen=True)
class Cell:
    """Something to train.

    Attributes:
        name: of the cell, as in the table.
        family: `model_type`.
        entry_point: module of `t5_experimental.training`.
        flags: besides those that all have.
        batches: the flags that say how a step's examples are spread: of one process, and of two.
        spoil: see `engine_worker.py`.
        takes_means: the optimizer takes them over whole parameters, which DeepSpeed refuses.
    """

    name: str
    family: str
    entry_point: str = "finetune"
    flags: str = f"{_PAIRS} {_STEP}"
    batches: tuple[str, str] = (
        "--per_device_train_batch_size 8",
        "--per_device_train_batch_size 2 --gradient_accumulation_steps 2",
    )
    spoil: str | None = None
    takes_means: bool = False

    @property
    def baseline(self) -> str:
        """The cell that one process trains for it."""
        return self.name if self.spoil is None else self.family


CELLS = (
    *(Cell(family, family) for family in FAMILIES),
    Cell(
        "pretrain",
        "t5_v1_1",
        "pretrain",
        f"{_TEXT} {_STEP}",
        # Every worker of every process has its own part of the text: two workers of one are one each of two.
        (
            "--per_device_train_batch_size 4 --gradient_accumulation_steps 2 --dataloader_num_workers 2",
            "--per_device_train_batch_size 4",
        ),
    ),
    Cell(
        _FRESH,
        "t5_talking_heads",
        "pretrain",
        f"{_TEXT} {_STEP} --objective prefix_lm --pack",
        (
            "--per_device_train_batch_size 4 --gradient_accumulation_steps 2 --dataloader_num_workers 2",
            "--per_device_train_batch_size 4",
        ),
    ),
    Cell("LoRA", "t5_first_layers_narrow", flags=f"{_PAIRS} {_STEP} --lora_rank 4"),
    Cell(
        "prompt",
        "t5_lm_adapted",
        "prompt_tune",
        f"{_PAIRS} {_STEP.replace('--optimizer_preset adamw', '--optim adamw_torch')} --prompt_length 5",
    ),
    Cell(
        "prompt, Adafactor",
        "t5_talking_heads",
        "prompt_tune",
        f"{_PAIRS} --logging_steps 1 --prompt_length 5",
        takes_means=True,
    ),
)


_WHILE_TRAINING = "--eval_strategy steps"
QUICK_CELLS = tuple(
    cell if cell.name in ("t5_v1_1", "prompt") else replace(cell, flags=cell.flags.replace(_WHILE_TRAINING, ""))
    for cell in CELLS
    if cell.name != "t5_lm_adapted"
)
"""For the tests: lm100k is t5.1.1 under another name, and has prompts to train. One model and the prompt are evaluated
while they train, and all when they have trained."""


def cells_of(engine: str, cells: Sequence[Cell] = CELLS) -> list[Cell]:
    """Those that an engine trains."""
    return [cell for cell in cells if not (cell.takes_means and engine.startswith("deepspeed"))]


def make_models(folder: Path, families: Mapping[str, t5_experimental.T5ExperimentalConfig] = FAMILIES) -> None:
    """Writes a random model of each family, with the restaurants' tokenizer, and the examples to evaluate on."""
    for family, config in families.items():
        torch.manual_seed(0)
        AutoModelForSeq2SeqLM.from_config(config).save_pretrained(folder / family)
        shutil.copyfile(DATA / "restaurants.model", folder / family / "spiece.model")
        settings = {"tokenizer_class": "T5Tokenizer", "extra_ids": 100}
        (folder / family / "tokenizer_config.json").write_text(json.dumps(settings))
    # Five: the last batch of two processes has to be filled up.
    rows = (DATA / "restaurants_validation.jsonl").read_text().splitlines()[:5]
    (folder / "five.jsonl").write_text("\n".join(rows) + "\n")


def _flags(cell: Cell, folder: Path, output: Path, processes: int, steps: int) -> list[str]:
    if cell.name == _FRESH:
        size = {name: value for name, value in _SIZE.items() if name != "vocab_size"}
        model = ["--preset", "t5.1.th.base", "--tokenizer_name", str(DATA / "restaurants.model")]
        model += ["--config_overrides", json.dumps({**size, "num_decoder_layers": 2, "num_key_heads": 4})]
    else:
        model = ["--model_name_or_path", str(folder / cell.family)]
    if cell.entry_point != "pretrain":
        model += ["--validation_file", str(folder / "five.jsonl")]
        model += ["--eval_steps", str(steps)] if _WHILE_TRAINING in cell.flags else []
    settings = f"{cell.flags} {cell.batches[processes > 1]} {_COMMON} --max_steps {steps}"
    return [*model, "--output_dir", str(output), *settings.split()]


def train(
    engine: str,
    cells: Sequence[Cell],
    folder: Path,
    processes: int = 2,
    steps: int = STEPS,
    fork_server: ForkServer | None = None,
) -> None:
    """Trains cells under an engine; leaves `ENGINE/CELL/model` and `ENGINE/CELL/record` in the folder.

    Args:
        engine: name of a file in `training/configs`.
        cells: to train.
        folder: where [`make_models`] wrote.
        processes: how many; `single` has one.
        steps: of each cell.
        fork_server: starts the processes without imports, instead of the launcher; for the tests.
    """
    processes = 1 if engine == "single" else processes
    root = folder / engine
    root.mkdir()
    more = FLAGS if engine == "fsdp2" and not torch.accelerator.is_available() else ()
    plan = [
        {
            "entry_point": cell.entry_point,
            "flags": [*_flags(cell, folder, root / cell.name / "model", processes, steps), *more],
            "record": str(root / cell.name / "record"),
            "spoil": cell.spoil if processes > 1 else None,
        }
        for cell in cells
    ]
    (root / "plan.json").write_text(json.dumps(plan, indent=2))
    if fork_server is None:
        cache = {"HF_DATASETS_CACHE": str(folder / "cache")}
        result = launch(engine, WORKER, [root / "plan.json"], processes=processes, environment=cache, timeout=1800)
        has_failed, output = result.returncode != 0, result.stdout + result.stderr
    else:
        run = fork_server.start(WORKER, [root / "plan.json"], engine, processes)
        has_failed, output = any(run.wait()), "".join(run.read(rank) for rank in range(processes))
    (root / "output.txt").write_text(output)
    if has_failed:
        raise RuntimeError(f"{engine} failed:\n{output}")


def records(folder: Path, engine: str, name: str) -> list[dict[str, Any]]:
    """What each process has seen of a cell, by rank."""
    paths = sorted((folder / engine / name / "record").glob("*.json"), key=lambda path: int(path.stem))
    return [json.loads(path.read_text()) for path in paths]


def compare(folder: Path, engine: str, cell: Cell, processes: int = 2, steps: int = STEPS) -> dict[str, Any]:
    """The row of a cell, of which `single` and the engine have been trained.

    Raises:
        AssertionError: the engine was not at work, or something is not as in one process; the row is in its message.
    """
    (single,), seen = records(folder, "single", cell.baseline), records(folder, engine, cell.name)
    # Where transformers builds a model in parts, it draws the same values in another order.
    another_draw = cell.name == _FRESH and engine.startswith("deepspeed_zero3")
    pairs = zip(seen[0]["losses"], single["losses"], strict=True)
    row = {
        "engine": engine,
        "family": cell.family,
        "cell": cell.name,
        "entry_point": cell.entry_point,
        "engine_seen": f"{seen[0]['engine']}; {seen[0]['wrapped']}",
        "processes": len(seen),
        "steps": len(single["losses"]),
        "max_loss_difference": max(abs(loss - right) / right for loss, right in pairs),
        "parameters_bytes_per_rank": [record["parameters_bytes"] for record in seen],
        "parameters_bytes_single": single["parameters_bytes"],
        "optimizer_bytes_per_rank": [record["optimizer_bytes"] for record in seen],
        "optimizer_bytes_single": single["optimizer_bytes"],
        "saved_equal": _saved_equal(folder / engine / cell.name),
        "evaluated_equal": another_draw or _figures_agree(seen, single),
        "generated_equal": all(record["predictions"] == single["predictions"] for record in seen),
        "another_draw": another_draw,
    }
    failed = [*_problems_of_engine(engine, row, seen, processes), *_problems_of_results(row, steps)]
    assert not failed, f"{'; '.join(failed)}: {json.dumps(row)}"
    return row


_ACTIVE = {
    "ddp": ("DistributedDataParallel", ("MULTI_CPU", "MULTI_GPU")),
    "fsdp2": ("FSDP", ("FSDP",)),
    "deepspeed_zero2": ("DeepSpeedEngine", ("DEEPSPEED",)),
    "deepspeed_zero3": ("DeepSpeedEngine", ("DEEPSPEED",)),
    "deepspeed_zero3_offload": ("DeepSpeedEngine", ("DEEPSPEED",)),
}
"""By engine: how the class that it puts around the model is called, and accelerate's word for it."""

_CUT_PARAMETERS = ("fsdp2", "deepspeed_zero3", "deepspeed_zero3_offload")
# Parts are of one size, the last ones filled up; and FSDP keeps a frozen embedding gathered between steps.
_MOST = 0.65


def _problems_of_engine(
    engine: str, row: dict[str, Any], seen: Sequence[dict[str, Any]], processes: int
) -> Iterable[str]:
    """Where the engine was not at work."""
    wrapped, types = _ACTIVE[engine]
    for record in seen:
        if wrapped not in record["wrapped"] or record["distributed_type"] not in types:
            yield f"the engine was {record['distributed_type']} with {record['wrapped']}"
    if len(seen) != processes or any(record["processes"] != processes for record in seen):
        yield f"there were {len(seen)} processes"
    largest = {name: max(row[f"{name}_bytes_per_rank"]) / row[f"{name}_bytes_single"] for name in _KINDS}
    if engine in _CUT_PARAMETERS and largest["parameters"] > _MOST:
        yield f"a process held {largest['parameters']:.0%} of the parameters"
    if engine != "ddp" and largest["optimizer"] > _MOST:
        yield f"a process held {largest['optimizer']:.0%} of the optimizer's state"
    if engine == "ddp" and min(largest.values()) < 1:
        yield "data parallelism held less than the whole"


_KINDS = ("parameters", "optimizer")


def _problems_of_results(row: dict[str, Any], steps: int) -> Iterable[str]:
    """Where an engine got to something else than one process."""
    if row["steps"] != steps:
        yield f"there were {row['steps']} steps"
    if not row["max_loss_difference"] <= (_ANOTHER_DRAW if row["another_draw"] else TOLERANCE):
        yield f"losses differ by {row['max_loss_difference']:.1e}"
    for name in ("saved_equal", "evaluated_equal", "generated_equal"):
        if not row[name]:
            yield f"{name} is false"


def _saved_equal(root: Path) -> bool:
    """Whether the folder has the weights that the processes held after the last step, and loads."""
    gathered = load_file(root / "record" / "weights.safetensors")
    if (root / "model" / "adapter_config.json").is_file():
        return same_adapter(gathered, load_file(root / "model" / "adapter_model.safetensors"))
    model, report = AutoModelForSeq2SeqLM.from_pretrained(root / "model", output_loading_info=True)
    loaded = dict(model.named_parameters())
    complete = not any(report.values()) and loaded.keys() == gathered.keys()
    return complete and all(torch.equal(loaded[name], weight) for name, weight in gathered.items())


def same_adapter(gathered: dict[str, torch.Tensor], saved: dict[str, torch.Tensor]) -> bool:
    """Whether an adapter is what was trained; peft leaves its own name out of the names, or gives another one."""
    trained = {
        name.replace(".default", ""): weight
        for name, weight in gathered.items()
        if "lora_" in name or "prompt_encoder" in name
    }
    if set(saved) == {"prompt_embeddings"}:
        (weight,) = trained.values()
        return torch.equal(weight, saved["prompt_embeddings"])
    return trained.keys() == saved.keys() and all(torch.equal(saved[name], trained[name]) for name in trained)


def _figures_agree(seen: Sequence[dict[str, Any]], single: dict[str, Any]) -> bool:
    """Whether every process has the losses and metrics of one process's evaluations."""
    return bool(single["evaluations"]) and all(
        right.keys() == found.keys()
        and all(abs(found[name] - value) <= TOLERANCE * abs(value) for name, value in right.items())
        for record in seen
        for right, found in zip(single["evaluations"], record["evaluations"], strict=True)
    )


def run(engines: Sequence[str], cells: Sequence[Cell], folder: Path) -> list[dict[str, Any]]:
    """Rows of all engines and cells."""
    make_models(folder)
    train("single", cells, folder)
    rows = []
    for engine in engines:
        own = cells_of(engine, cells)
        train(engine, own, folder)
        rows += [compare(folder, engine, cell) for cell in own]
    return rows


def write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes rows into a file; those that it has of other engines stay, with the machine that they are from."""
    before = json.loads(path.read_text())["rows"] if path.is_file() else []
    engines = {row["engine"] for row in rows}
    kept = [row for row in before if row["engine"] not in engines]
    here = machine()
    path.write_text(json.dumps({"rows": [*kept, *({**row, "machine": here} for row in rows)]}, indent=2) + "\n")


def main() -> None:
    """Reads the command line, trains, prints, writes."""
    parser = argparse.ArgumentParser(description="Trains under every engine, and compares with one process.")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=ENGINES)
    names = [cell.name for cell in CELLS]
    parser.add_argument("--cells", nargs="+", choices=names, default=names)
    parser.add_argument("--output", type=Path, required=True, help="JSON file; rows of other engines in it stay")
    parser.add_argument("--folder", type=Path, help="keeps models and records here instead of nowhere")
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        rows = run(options.engines, [cell for cell in CELLS if cell.name in options.cells], folder)
    for row in rows:
        print(f"{row['engine']:<24} {row['cell']:<24} {row['max_loss_difference']:.1e}", file=sys.stderr)
    write(options.output, rows)


if __name__ == "__main__":
    main()
