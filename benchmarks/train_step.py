# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Times a training step side by side: transformers' own T5 and this package, same random weights, float32, on the CPU.

    python -m benchmarks.train_step --output benchmarks/results/train_step

A step is forward pass, loss, backward pass and AdamW (torch's fused one, for both). Ours runs as fine-tuning runs it,
with the loss in chunks. Contestants take turns in one process; the peak of resident memory comes from a process of its
own for each. Written are OUTPUT.json and OUTPUT.png.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForSeq2SeqLM

from .common import (
    add_model_options,
    chosen_config,
    draw_bars,
    in_turns,
    peak_memory,
    ragged_mask,
    stock_twin,
    summary,
    write_json,
)


CONTESTANTS = ("transformers", "t5_experimental")
# With --gradient-checkpointing there is one more, which computes all but the attentions again.
KEEPING = "t5_experimental keep_attention"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    add_model_options(parser)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--source-length", type=int, default=512)
    parser.add_argument("--target-length", type=int, default=114)
    parser.add_argument("--ragged", action="store_true", help="rows of different lengths, padded to the longest")
    parser.add_argument("--dropout", type=float, default=0.0, help="0 as in pre-training; fine-tuning has 0.1")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("train_step"), help="path without suffix")
    return parser.parse_args()


def training_step(name: str, arguments: argparse.Namespace) -> Callable[[], float]:
    """A function that makes one step of a contestant and returns the loss before it."""
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    config = chosen_config(arguments, dropout_rate=arguments.dropout)
    model = AutoModelForSeq2SeqLM.from_config(config)
    options = {"skip_logits": True}
    if name == "transformers":
        model, options = stock_twin(model), {}
    model.train()
    if arguments.gradient_checkpointing:
        kept = {"keep_attention": True} if name == KEEPING else {"use_reentrant": False}
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kept)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    generator = torch.Generator().manual_seed(1)
    inputs = {
        key: torch.randint(3, config.vocab_size, (arguments.batch_size, length), generator=generator)
        for key, length in (("input_ids", arguments.source_length), ("labels", arguments.target_length))
    }
    if arguments.ragged:
        inputs["attention_mask"] = ragged_mask(*inputs["input_ids"].shape)
        inputs["labels"][ragged_mask(*inputs["labels"].shape) == 0] = -100

    def step() -> float:
        loss = model(**inputs, **options, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def two_steps(name: str, arguments: argparse.Namespace) -> Callable[[], None]:
    """A function that makes two steps: the second one has the optimizer's state in memory, too."""
    step = training_step(name, arguments)

    def run() -> None:
        step()
        step()

    return run


def main() -> None:
    arguments = parse_arguments()
    transformers.logging.set_verbosity_error()
    names = (*CONTESTANTS, KEEPING) if arguments.gradient_checkpointing else CONTESTANTS
    memory = {name: peak_memory(two_steps, name, arguments) for name in names}
    steps = {name: training_step(name, arguments) for name in names}
    losses: dict[str, list[float]] = {name: [] for name in names}
    cpu_seconds: dict[str, list[float]] = {}
    turns = {name: (lambda name=name: losses[name].append(steps[name]())) for name in names}
    seconds = in_turns(turns, arguments.rounds, cpu_seconds=cpu_seconds)
    results = summary(seconds, cpu_seconds, "transformers")
    for name, figures in results.items():
        figures.update(peak_mib=memory[name], losses=losses[name])
        print(name, {key: value for key, value in figures.items() if key != "seconds"}, flush=True)
    settings = {name: value for name, value in vars(arguments).items() if name != "output"}
    write_json(arguments.output.with_suffix(".json"), {"settings": settings, "results": results})
    options = ", gradient checkpointing" * arguments.gradient_checkpointing + ", ragged" * arguments.ragged
    title = (
        f"{arguments.preset}, training step{options}, {arguments.batch_size} x {arguments.source_length}/"
        f"{arguments.target_length}, float32, {arguments.threads} threads"
    )
    groups = {
        "time (seconds)": {name: figures["median"] for name, figures in results.items()},
        "peak memory (MiB)": {name: figures["peak_mib"] for name, figures in results.items()},
    }
    draw_bars(arguments.output.with_suffix(".png"), title, groups, "")


if __name__ == "__main__":
    main()
