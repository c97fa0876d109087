# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Times the products of one decoding step by each kernel that a step may use, on the CPU.

    python -m benchmarks.products --output benchmarks/results/products

All weights of the decoder and the classifier are multiplied one after the other, as in a step: each comes from memory,
and each kernel has its code in the cache. Kernels take turns, step by step. "gigabytes_per_second" is the size of the
weights in the kernel's numbers divided by the median time. Written are OUTPUT.json and OUTPUT.png.
"""

import argparse
import math
import os
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForSeq2SeqLM

from t5_experimental.decoding_t5_experimental import StepDecoder
from t5_experimental.kernels_t5_experimental import (
    VARIABLE,
    Kernel,
    float_kernels,
    int8_kernels,
)

from .common import add_model_options, chosen_config, draw_bars, in_turns, write_json


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    add_model_options(parser)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 8])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--output", type=Path, default=Path("products"), help="path without suffix")
    return parser.parse_args()


def kernels() -> list[Kernel]:
    """All that there are here, the usually fastest of each type of numbers first."""
    groups = (*float_kernels(torch.float32, torch.bfloat16, rows=1), *int8_kernels())
    return [kernel for group in groups for kernel in group]


def products(kernel: Kernel, shapes: list[tuple[int, int]], rows: int) -> Callable[[], None]:
    """A function that multiplies random states by a weight of each shape."""
    weights = [kernel.pack(torch.randn(shape).to(kernel.dtype)) for shape in shapes]
    states = {size: torch.randn(rows, size).to(kernel.dtype) for _, size in shapes}

    def run() -> None:
        for (_, size), weight in zip(shapes, weights, strict=True):
            kernel.multiply(states[size], weight)

    return run


@torch.no_grad()
def measure(shapes: list[tuple[int, int]], rows: int, rounds: int) -> dict[str, dict[str, Any]]:
    """By kernel, seconds of all products, and how fast weights are read."""
    known = kernels()
    times = in_turns({kernel.name: products(kernel, shapes, rows) for kernel in known}, rounds)
    results = {}
    for kernel in known:
        median = statistics.median(times[kernel.name])
        size = (1 if kernel.is_int8 else kernel.dtype.itemsize) * sum(map(math.prod, shapes))
        results[kernel.name] = {
            "milliseconds": round(median * 1000, 2),
            "gigabytes_per_second": round(size / median / 1e9, 1),
            "seconds": times[kernel.name],
        }
    return results


def main() -> None:
    arguments = parse_arguments()
    os.environ.pop(VARIABLE, None)  # it would leave a single kernel
    torch.set_num_threads(arguments.threads)
    transformers.logging.set_verbosity_error()
    model = AutoModelForSeq2SeqLM.from_config(chosen_config(arguments))
    shapes = [linear.shape for linear in StepDecoder(model).linears]
    del model
    results = {}
    for rows in arguments.rows:
        results[f"{rows} rows"] = measure(shapes, rows, arguments.rounds)
        for name, figures in results[f"{rows} rows"].items():
            print(rows, name, {key: value for key, value in figures.items() if key != "seconds"}, flush=True)
    settings = {name: value for name, value in vars(arguments).items() if name != "output"}
    write_json(arguments.output.with_suffix(".json"), {"settings": settings, "results": results})
    title = f"{arguments.preset}, products of a decoding step, {arguments.threads} threads"
    groups = {
        rows: {name: figures["milliseconds"] for name, figures in result.items()} for rows, result in results.items()
    }
    draw_bars(arguments.output.with_suffix(".png"), title, groups, "ms")


if __name__ == "__main__":
    main()
