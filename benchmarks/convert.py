# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Measures the converter on checkpoints of t5.1.1 that it makes itself (Linux).

    python -m benchmarks.convert --sizes base xl xxl --work-dir /disk/with/room --output benchmarks/results/convert

In turns, so that they share disturbances, and each in a process of its own that starts when the disk is idle:

    cp           `cp` of the checkpoint's data file, then `sync` of the copy
    streaming    the part of a conversion that moves weights: reading, checksums, transposing, writing, `fsync`; what
                 comes before (imports, plan) is not counted
    command      `t5-experimental convert` as a user runs it: time, and peak memory, which must not be more than twice
                 the largest tensor and 200 MB
    stock        the same command with a folder of transformers' T5, of the same weights in one safetensors file; for
                 sizes of random numbers only
    TensorFlow   TensorFlow's reader, `T5ForConditionalGeneration` and `save_pretrained`, which waits for no disk; for
                 sizes of random numbers only, and where TensorFlow is installed

Base has random numbers. The data files of xl and xxl are holes with right checksums: they take no disk, and read as
zeros. Copies and conversions do take disk, and what there is no room for is left out: all of a size, or everything but
the command, which then writes bfloat16. Written are OUTPUT.json and, where matplotlib is installed, OUTPUT.png.
"""

import argparse
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from t5_experimental import T5ExperimentalConfig, preset_config, without_models
from t5_experimental.convert.bundle.reader import data_path
from t5_experimental.convert.bundle.writer import BundleWriter, write_state_file
from t5_experimental.convert.mesh.gin_writer import natural_layout, operative_config
from t5_experimental.convert.mesh.matching import mesh_name
from t5_experimental.convert.mesh.parameters import parameters
from t5_experimental.convert.pipeline import convert, inspect
from t5_experimental.convert.source.checkpoint import GIN_FILE
from t5_experimental.convert.tensors import Variable

from .common import write_json
from .usage import Usage, measure


PREFIX = "model.ckpt-1000000"

# Tiny is for trying the benchmark out: it measures nothing but the start of processes.
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"vocab_size": 512, "d_model": 64, "num_layers": 2},
    "base": {},
    "large": {},
    "xl": {},
    "xxl": {},
}

# Sizes whose checkpoints have numbers; all others are holes.
RANDOM = ("tiny", "base")

# Free disk that is left alone.
MARGIN_BYTES = 10**9

CONTESTANTS = ("cp", "streaming", "command", "stock", "TensorFlow")
COMMANDS = ("command", "stock")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--sizes", nargs="+", default=["base"], choices=list(SIZES))
    parser.add_argument("--rounds", type=int, default=3, help="turns of each that count")
    parser.add_argument("--warm-up", type=int, default=1, help="turns of each before those")
    parser.add_argument("--skip-tensorflow", action="store_true")
    parser.add_argument("--work-dir", type=Path, help="where to put all files, which go in the end; default: here")
    parser.add_argument("--output", type=Path, default=Path("convert"), help="path without suffix")
    return parser.parse_args()


def configuration(size: str) -> T5ExperimentalConfig:
    return preset_config("t5.1.1.small" if size == "tiny" else f"t5.1.1.{size}", **SIZES[size])


def variables_of(config: T5ExperimentalConfig) -> list[Variable]:
    """Variables of a checkpoint of that model, sorted as TensorFlow does; no optimizer's slots."""
    layout = natural_layout(config)
    variables = [
        Variable(mesh_name(name, parameter.section, layout), parameter.mesh_shape, "float32")
        for name, parameter in parameters(config).items()
    ]
    return sorted([*variables, Variable("global_step", (), "int64")], key=lambda variable: variable.name.encode())


def nbytes(variable: Variable) -> int:
    return int(np.prod(variable.shape, dtype=np.int64)) * np.dtype(variable.dtype).itemsize


def random_blocks(size: int, generator: np.random.Generator) -> Iterator[memoryview]:
    """`size` random float32 numbers, as large as weights are, as bytes."""
    for start in range(0, size, 2**22):
        block = generator.standard_normal(min(2**22, size - start), np.float32)
        block *= 0.05
        yield block.data.cast("B")


def write_checkpoint(config: T5ExperimentalConfig, folder: Path, has_numbers: bool) -> None:
    """Writes a checkpoint with its gin file, of random numbers or of zeros that take no disk."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    variables = variables_of(config)
    with BundleWriter(folder / PREFIX, [variables]) as writer:
        for variable in variables:
            if has_numbers and variable.shape:
                writer.write(variable.name, random_blocks(int(np.prod(variable.shape)), generator))
            else:
                writer.write_zeros(variable.name)
    (folder / GIN_FILE).write_text(operative_config(config, natural_layout(config), "float32"), encoding="utf-8")
    write_state_file(folder / PREFIX)


def write_mapping(source: Path, path: Path) -> None:
    """Says how a stock T5 takes the weights of a checkpoint, see `convert_steps.tensorflow`."""
    found = inspect(source, output_format="stock-t5")
    tensors = {entry.name: (entry.source.name, not entry.is_copied) for entry in found.plan.entries}
    path.write_text(
        json.dumps({"config": found.output.fields(found.architecture, found.dtype), "tensors": tensors}),
        encoding="utf-8",
    )


def step(*arguments: object) -> list[str]:
    return [sys.executable, str(Path(__file__).with_name("convert_steps.py")), *map(str, arguments)]


def contestants_for(
    folder: Path, dtype: str, has_numbers: bool, has_tensorflow: bool
) -> dict[str, Callable[[], Usage]]:
    """What to run for a checkpoint in `folder / "source"`, by name; each writes `folder / "output"`.

    Args:
        folder: of this size.
        dtype: to convert to. With bfloat16 it is the command alone: a copy writes twice as much.
        has_numbers: include a folder of stock T5, which this writes.
        has_tensorflow: include it.
    """
    source, output = folder / "source", folder / "output"
    data, copy = str(data_path(source / PREFIX, 0, 1)), str(output)

    def streaming() -> Usage:
        process = measure(step("stream", source, output, dtype))
        return Usage(**json.loads(process.printed), peak_bytes=process.peak_bytes, printed="")

    program = [sys.executable, "-m", "t5_experimental.convert", "convert"]
    command = [*program, str(source), str(output), "--dtype", dtype]
    contestants = {
        "cp": lambda: measure(["sh", "-c", 'cp --sparse=never "$0" "$1" && sync "$1"', data, copy]),
        "streaming": streaming,
        "command": lambda: measure(command),
    }
    if dtype != "float32":
        return {"command": contestants["command"]}
    if has_numbers:
        convert(source, folder / "stock", output_format="stock-t5", max_shard_size=10**12)
        contestants["stock"] = lambda: measure([*program, str(folder / "stock"), str(output)])
    if has_tensorflow:
        write_mapping(source, folder / "mapping.json")
        contestants["TensorFlow"] = lambda: measure(
            step("tensorflow", source / PREFIX, folder / "mapping.json", output)
        )
    return contestants


def in_turns(contestants: dict[str, Callable[[], Usage]], output: Path, rounds: int, warm_up: int) -> dict[str, Any]:
    """Figures of every turn, by name of the contestant."""
    figures: dict[str, dict[str, list[float]]] = {
        name: {"seconds": [], "cpu_seconds": [], "peak_bytes": []} for name in contestants
    }
    for turn in range(warm_up + rounds):
        for name, run in contestants.items():
            # What others left to be written must not be waited for by this one.
            subprocess.run(["sync"], check=True)
            usage = run()
            remove(output)
            print(f"  {name}: {usage.seconds:.1f} s, peak {usage.peak_bytes / 1e6:.0f} MB", flush=True)
            if turn >= warm_up:
                for figure, values in figures[name].items():
                    values.append(getattr(usage, figure))
    return figures


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def measure_size(size: str, arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    """All figures of one size; what was left out, and why, under "left out"."""
    config = configuration(size)
    has_numbers = size in RANDOM
    sizes = [nbytes(variable) for variable in variables_of(config)]
    largest = max(sizes)
    left_out = []
    free = max(0, shutil.disk_usage(work).free - MARGIN_BYTES)
    source_bytes = sum(sizes)
    dtype = "float32"
    needed = source_bytes * (3 if has_numbers else 1)
    if needed > free:
        left_out.append(f"cp, streaming, float32: {needed / 1e9:.0f} GB of free disk needed, {free / 1e9:.0f} GB there")
        dtype, needed = "bfloat16", source_bytes * (3 if has_numbers else 1) // 2
    if needed > free:
        return {"left out": [f"all: {needed / 1e9:.0f} GB of free disk needed, {free / 1e9:.0f} GB there"]}
    has_tensorflow = has_numbers and importlib.util.find_spec("tensorflow") is not None
    if has_numbers and not has_tensorflow:
        left_out.append("TensorFlow: it is not installed")
    folder = work / size
    folder.mkdir()
    write_checkpoint(config, folder / "source", has_numbers)
    contestants = contestants_for(folder, dtype, has_numbers, has_tensorflow and not arguments.skip_tensorflow)
    load = os.getloadavg()[0]
    figures = in_turns(contestants, folder / "output", arguments.rounds, arguments.warm_up)
    remove(folder)
    return {
        "numbers": "random" if has_numbers else "zeros in a sparse file",
        "source_bytes": source_bytes,
        "dtype": dtype,
        "largest_tensor_bytes": largest,
        "memory_limit_bytes": 2 * largest + 200 * 10**6,
        "load": load,
        "figures": figures,
        "median": {
            name: {figure: statistics.median(values) for figure, values in turns.items()}
            for name, turns in figures.items()
        },
        "ratios": ratios(figures),
        "left out": left_out,
    }


def ratios(figures: dict[str, Any]) -> dict[str, float]:
    """Medians over the rounds of quotients of times in the same round."""
    pairs = [("streaming", "cp"), ("stock", "cp"), ("command", "TensorFlow")]
    return {
        f"{name} / {base}": statistics.median(
            a / b for a, b in zip(figures[name]["seconds"], figures[base]["seconds"], strict=True)
        )
        for name, base in pairs
        if name in figures and base in figures
    }


def print_table(results: dict[str, Any]) -> None:
    print(f"\n{'size':6}{'what':12}{'seconds':>9}{'CPU s':>9}{'peak MB':>9}{'limit MB':>9}")
    for size, result in results.items():
        for name, median in result.get("median", {}).items():
            limit = f"{result['memory_limit_bytes'] / 1e6:.0f}" if name in COMMANDS else ""
            print(
                f"{size:6}{name:12}{median['seconds']:9.1f}{median['cpu_seconds']:9.1f}"
                f"{median['peak_bytes'] / 1e6:9.0f}{limit:>9}"
            )
        for name, value in result.get("ratios", {}).items():
            print(f"{size:6}{name} = {value:.2f}")
        for what in result["left out"]:
            print(f"{size:6}left out: {what}")


def draw(results: dict[str, Any], path: Path) -> None:
    """Times on the left, memory and its limit on the right."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    measured = {size: result for size, result in results.items() if "median" in result}
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for k, name in enumerate(CONTESTANTS):
        places = [at for at, result in enumerate(measured.values()) if name in result["median"]]
        medians = [result["median"][name] for result in measured.values() if name in result["median"]]
        for axes, key, unit in ((left, "seconds", 1.0), (right, "peak_bytes", 1e6)):
            if key == "seconds" or name in (*COMMANDS, "TensorFlow"):
                heights = [median[key] / unit for median in medians]
                bars = axes.bar([at + (k - 2) * 0.18 for at in places], heights, 0.17, color=f"C{k}", label=name)
                axes.bar_label(bars, fmt="%.1f" if key == "seconds" else "%.0f", fontsize=8)
    for at, result in enumerate(measured.values()):
        limit = result["memory_limit_bytes"] / 1e6
        right.hlines(limit, at - 0.45, at + 0.45, "black", "dashed", label="" if at else "limit of the command")
    names = [size if r["dtype"] == "float32" else f"{size}, {r['dtype']}" for size, r in measured.items()]
    for axes, title in ((left, "seconds"), (right, "peak memory, MB")):
        axes.set_xticks(range(len(names)), names)
        axes.set_title(title)
        axes.legend(fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    left.set_yscale("log")
    left.set_ylim(bottom=0.1)
    figure.savefig(path, dpi=150)


def main() -> None:
    arguments = parse_arguments()
    results = {}
    with tempfile.TemporaryDirectory(prefix="convert-benchmark-", dir=arguments.work_dir or ".") as work:
        for size in arguments.sizes:
            print(size, flush=True)
            with without_models():
                results[size] = measure_size(size, arguments, Path(work))
    print_table(results)
    settings = {"rounds": arguments.rounds, "warm_up": arguments.warm_up}
    write_json(arguments.output.with_suffix(".json"), {**settings, "sizes": results})
    if importlib.util.find_spec("matplotlib"):
        draw(results, arguments.output.with_suffix(".png"))
    else:
        print("There is no chart: it takes matplotlib.")


if __name__ == "__main__":
    main()
