# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Times training steps of t5.1.th.base against t5.1.1.base, and counts what talking heads keep for the backward pass.

    python -m benchmarks.talking_heads --output talking_heads

A step is forward pass, loss in chunks, backward pass and fused AdamW, with random weights and random ids. Contestants
take turns in one process: t5.1.1 as it is by default, t5.1.th as it is by default (blocks of rows), and t5.1.th with
all pairs at once (eager). One attention of t5.1.th alone is timed in both forms, too. Written are OUTPUT.json and
OUTPUT.png.
"""

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib


matplotlib.use("agg")

import torch
from matplotlib import pyplot
from transformers import AutoModelForSeq2SeqLM

from t5_experimental import preset_config
from t5_experimental.attention_t5_experimental import bias_diagonals, build_attention, dense_bias
from t5_experimental.visibility_t5_experimental import Visibility

from .common import in_turns, ratio, write_json


CONTESTANTS = {
    "t5.1.1": ("t5.1.1.base", "sdpa"),
    "t5.1.th": ("t5.1.th.base", "sdpa"),
    "t5.1.th eager": ("t5.1.th.base", "eager"),
}

# Source positions: a step with all pairs at once at 2048 needs more than 22 GB.
EAGER_STEP_UP_TO = 1024


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--shapes", nargs="*", default=["4x512/114", "1x2048/114"], help="batch x source / target")
    parser.add_argument("--contestants", nargs="+", default=list(CONTESTANTS), choices=list(CONTESTANTS))
    parser.add_argument("--lengths", type=int, nargs="*", default=[256, 512, 1024, 2048, 4096, 8192])
    parser.add_argument("--eager-up-to", type=int, default=2048, help="longest attention to run with all pairs at once")
    parser.add_argument("--dropout", type=float, default=0.0, help="0 as in pre-training; fine-tuning has 0.1")
    parser.add_argument("--bfloat16", action="store_true", help="under autocast")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("talking_heads"), help="path without suffix")
    return parser.parse_args()


def training_step(contestant: str, shape: str, dropout: float, bfloat16: bool) -> Callable[[], None]:
    """A function that makes one step."""
    preset, implementation = CONTESTANTS[contestant]
    batch, lengths = shape.split("x")
    source, target = map(int, lengths.split("/"))
    torch.manual_seed(0)
    config = preset_config(preset, dropout_rate=dropout)
    model = AutoModelForSeq2SeqLM.from_config(config, attn_implementation=implementation).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    inputs = {
        "input_ids": torch.randint(3, 32000, (int(batch), source)),
        "labels": torch.randint(3, 32000, (int(batch), target)),
    }

    def step() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
            loss = model(**inputs, skip_logits=True, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def attention_pass(length: int, by_rows: bool, saved: list[int]) -> Callable[[], None]:
    """A function that runs one self-attention of t5.1.th.base forwards and backwards, without its projections.

    Args:
        length: of one sequence.
        by_rows: in blocks of rows; else all pairs at once.
        saved: gets the bytes of every tensor kept for the backward pass.
    """
    config = preset_config("t5.1.th.base", dropout_rate=0.0)
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    attention = build_attention(config, config.layer_specs("encoder")[0], has_relative_attention_bias=True)
    for projection in (attention.logits_projection, attention.weights_projection):
        torch.nn.init.normal_(projection.weight, std=0.2)
    query, key, value = (torch.randn(1, 24, length, 32, requires_grad=True) for _ in range(3))
    visible = Visibility(length, length)

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor.untyped_storage().nbytes())
        return tensor

    def run() -> None:
        diagonals = bias_diagonals(attention.relative_attention_bias, visible, True, 128, query.device)
        if by_rows:
            output = attention.attend_blockwise(query, key, value, diagonals, visible)
        else:
            output, _ = attention.attend(query, key, value, dense_bias(diagonals, visible), False)
        output.sum().backward()

    def run_and_count() -> None:
        saved.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            run()

    return run_and_count


def measure_steps(arguments: argparse.Namespace) -> dict[str, Any]:
    """Times of training steps, by shape and contestant, and their ratios to t5.1.1."""
    results = {}
    for shape in arguments.shapes:
        source = int(shape.split("x")[1].split("/")[0])
        steps = {
            name: training_step(name, shape, arguments.dropout, arguments.bfloat16)
            for name in arguments.contestants
            if source <= EAGER_STEP_UP_TO or CONTESTANTS[name][1] != "eager"
        }
        seconds = in_turns(steps, arguments.rounds)
        base = arguments.contestants[0]
        results[shape] = {
            "seconds": seconds,
            "median": {name: statistics.median(times) for name, times in seconds.items()},
            f"ratio to {base}": {name: ratio(seconds, name, base) for name in seconds},
        }
        print(shape, results[shape]["median"], results[shape][f"ratio to {base}"], flush=True)
    return results


def measure_attention(arguments: argparse.Namespace) -> dict[str, Any]:
    """Time and kept bytes of one attention, by length."""
    results = {}
    for length in arguments.lengths:
        saved: dict[str, list[int]] = {"by rows": []}
        if length <= arguments.eager_up_to:
            saved["eager"] = []
        passes = {name: attention_pass(length, name == "by rows", sizes) for name, sizes in saved.items()}
        seconds = in_turns(passes, arguments.rounds if length <= 2048 else 1, int(length <= 2048))
        results[length] = {
            "seconds": seconds,
            "saved_bytes": {name: sum(sizes) for name, sizes in saved.items()},
            "eager / by rows": ratio(seconds, "eager", "by rows") if "eager" in seconds else None,
        }
        print(length, results[length], flush=True)
    return results


def draw(path: Path, steps: dict[str, Any], attention: dict[str, Any]) -> None:
    """Training steps on the left, what one attention keeps on the right."""
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    if steps:
        for index, name in enumerate(next(iter(steps.values()))["median"]):
            timed = [(place, r["median"][name]) for place, r in enumerate(steps.values()) if name in r["median"]]
            places, medians = zip(*timed, strict=True)
            left.bar([place + (index - 1) * 0.25 for place in places], medians, 0.23, label=name)
        left.set_xticks(range(len(steps)), list(steps))
        left.set_ylabel("seconds per training step")
        left.legend()
    for name in ("by rows", "eager"):
        points = {n: r["saved_bytes"][name] / 2**20 for n, r in attention.items() if name in r["saved_bytes"]}
        right.loglog(list(points), list(points.values()), "o-", base=2, label=name)
    if attention:
        right.set_xlabel("length")
        right.set_ylabel("MiB kept by one attention")
        right.legend()
    figure.savefig(path, dpi=150)


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    results = {"settings": {name: str(value) for name, value in vars(arguments).items() if name != "output"}}
    attention = measure_attention(arguments)
    steps = measure_steps(arguments)
    write_json(arguments.output.with_suffix(".json"), {**results, "steps": steps, "attention": attention})
    draw(arguments.output.with_suffix(".png"), steps, attention)


if __name__ == "__main__":
    main()
