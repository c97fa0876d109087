# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Host memory of every process until training begins: model, weights from bfloat16 files, optimizer, no step.

    python -m benchmarks.memory_per_rank --preset t5.1.1.large --ways ours whole zero3 --output memory_per_rank

- `ours`: FSDP2 as `finetune` does it, every process reads its own rows;
- `whole`: FSDP2 with the weights loaded by transformers and sent around by accelerate, as without this package;
- `zero3`: DeepSpeed's ZeRO-3.

The files are holes: as long as real ones, and zero throughout. `peak` is the most anonymous memory (`RssAnon`) above
what the imports take; pages of mapped files, which the system drops when it needs them, are `files`. Processes on the
CPU hold in it what would be on their GPUs, too: with two, half the weights in float32 each.
"""

import argparse
import itertools
import json
import os
import struct
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSeq2SeqLM

from t5_experimental import preset_config
from t5_experimental.training import finetune
from tests.support.launching import flags, launch
from tests.support.pretended_gpus import FLAGS, pretend_gpus

from .common import write_json


WAYS = {"ours": "fsdp2", "whole": "fsdp2", "zero3": "deepspeed_zero3"}
DATA = Path(__file__).parents[1] / "tests" / "data"


class Loaded(Exception):
    """Training would begin now."""


class Watched(finetune.FinetuningTrainer):
    """Ends before the first step."""

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        raise Loaded


def write_model(folder: Path, preset: str) -> int:
    """A model of a preset's shape with zeros in files of at most 5 GB; returns the number of its parameters."""
    config = preset_config(preset)
    with torch.device("meta"):
        model = AutoModelForSeq2SeqLM.from_config(config)
    model.generation_config.save_pretrained(folder)
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    parameters = dict(model.named_parameters())
    limit, size, shard = 5 * 10**9, 0, 0
    shards: dict[str, list[str]] = {}
    for name, parameter in parameters.items():
        if size and size + 2 * parameter.numel() > limit:
            size, shard = 0, shard + 1
        size += 2 * parameter.numel()
        shards.setdefault(f"model-{shard + 1:05}.safetensors", []).append(name)
    for file, names in shards.items():
        ends = list(itertools.accumulate((2 * parameters[name].numel() for name in names), initial=0))
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        for name, begin, end in zip(names, ends, ends[1:], strict=False):
            header[name] = {"dtype": "BF16", "shape": list(parameters[name].shape), "data_offsets": [begin, end]}
        text = json.dumps(header).encode()
        with (folder / file).open("wb") as stream:
            stream.write(struct.pack("<Q", len(text)) + text)
            stream.truncate(8 + len(text) + ends[-1])
    index = {"metadata": {}, "weight_map": {name: file for file, names in shards.items() for name in names}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return sum(parameter.numel() for parameter in parameters.values())


def memory() -> dict[str, int]:
    """Bytes of this process, anonymous and of files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines if line.startswith("Rss"))
    return {name: int(fields[name].split()[0]) * 1024 for name in ("RssAnon", "RssFile")}


class Peak(threading.Thread):
    """Looks at the memory every 5 ms until it is told to stop."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.begin, self.most, self.stopped = memory(), memory(), threading.Event()

    def run(self) -> None:
        while not self.stopped.wait(0.005):
            self.most = {name: max(value, self.most[name]) for name, value in memory().items()}


def work(plan: dict[str, Any]) -> None:
    """What every process does."""
    finetune.FinetuningTrainer = Watched  # type: ignore[misc]
    if WAYS[plan["way"]] == "fsdp2":
        pretend_gpus()
    if plan["way"] == "whole":
        finetune.reads_in_parts = lambda engine, folder: False
    peak = Peak()
    peak.start()
    start = time.perf_counter()
    try:
        finetune.run(finetune.parse(plan["flags"]))
    except Loaded:
        seconds = time.perf_counter() - start
    end = memory()
    peak.stopped.set()
    found = {
        "seconds": seconds,
        "peak": peak.most["RssAnon"] - peak.begin["RssAnon"],
        "end": end["RssAnon"] - peak.begin["RssAnon"],
        "files": peak.most["RssFile"] - peak.begin["RssFile"],
    }
    (Path(plan["output"]) / f"{plan['way']}-{os.environ['RANK']}.json").write_text(json.dumps(found))
    torch.distributed.barrier()
    os._exit(0)  # nothing to save, and engines that were never used may wait for each other


def measure(way: str, work_folder: Path, processes: int) -> list[dict[str, Any]]:
    """What each process took."""
    options: dict[str, Any] = {
        "model_name_or_path": work_folder / "model",
        "train_file": DATA / "restaurants_train.jsonl",
        "output_dir": work_folder / way,
        "optimizer_preset": "adamw",
        "max_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    more = FLAGS if WAYS[way] == "fsdp2" else ()
    plan = work_folder / f"{way}.json"
    plan.write_text(json.dumps({"way": way, "flags": [*flags(**options), *more], "output": str(work_folder)}))
    outcome = launch(WAYS[way], "benchmarks.memory_per_rank", ["--work", plan], processes=processes, timeout=1800)
    files = [work_folder / f"{way}-{rank}.json" for rank in range(processes)]
    if not all(file.exists() for file in files):
        raise SystemExit(f"{way} ended with {outcome.returncode}:\n{outcome.stderr[-3000:]}")
    return [json.loads(file.read_text()) for file in files]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--preset", default="t5.1.1.large")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--tokenizer", type=Path, default=DATA / "restaurants.model", help="sentencepiece file")
    parser.add_argument("--output", type=Path, default=Path("memory_per_rank"), help="path without suffix")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work is not None:
        work(json.loads(arguments.work.read_text()))
        return
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        model.mkdir()
        parameters = write_model(model, arguments.preset)
        (model / "spiece.model").write_bytes(arguments.tokenizer.read_bytes())
        (model / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer", "extra_ids": 100}')
        for way in arguments.ways:
            results[way] = measure(way, Path(folder), arguments.processes)
            for rank, found in enumerate(results[way]):
                figures = ", ".join(f"{name} {found[name] / 2**20:,.0f} MiB" for name in ("peak", "end", "files"))
                print(f"{way} {rank}: {figures}, {found['seconds']:.1f} s", file=sys.stderr)
    settings = {"preset": arguments.preset, "parameters": parameters, "processes": arguments.processes}
    write_json(arguments.output.with_suffix(".json"), {"settings": settings, "ways": results})


if __name__ == "__main__":
    main()
