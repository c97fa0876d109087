# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""What all benchmarks share: turns, medians, a description of the machine, and files for the results."""

import argparse
import datetime
import json
import multiprocessing
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import T5Config, T5ForConditionalGeneration

from t5_experimental import T5ExperimentalConfig, preset_config


COLOURS = {
    "transformers": "#9aa5b1",
    "CTranslate2": "#5b8db8",
    "onnxruntime": "#6fa287",
    "OpenVINO": "#8f7fb5",
    "t5_experimental": "#d1603d",
    "products": "#d8dee4",
}
"""Of bars, by the first word of a contestant's name."""


def stock_twin(model: torch.nn.Module) -> T5ForConditionalGeneration:
    """transformers' T5 with the weights of ours."""
    ours: Any = model.config
    names = ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_decoder_layers", "num_heads", "dropout_rate")
    config = T5Config(
        **{name: getattr(ours, name) for name in names},
        feed_forward_proj="gated-gelu",
        decoder_start_token_id=ours.decoder_start_token_id,
    )
    # T5Config of transformers 5 sets both, regardless of its arguments.
    config.tie_word_embeddings = config.scale_decoder_outputs = False
    stock = T5ForConditionalGeneration(config)
    # Untied, its stacks would otherwise have embeddings of their own, to be loaded, held and updated.
    stock.set_input_embeddings(stock.shared)
    stock.load_state_dict(model.state_dict(), strict=False)
    if stock.num_parameters() != model.num_parameters():  # type: ignore[operator]
        raise RuntimeError("transformers' model has other parameters than ours, so they cannot be compared.")
    if stock.lm_head.weight is stock.shared.weight or not torch.equal(stock.lm_head.weight, model.lm_head.weight):
        raise RuntimeError("transformers tied the classifier to the embedding, so it would compute something else.")
    return stock.eval()


def ragged_mask(batch_size: int, length: int) -> torch.Tensor:
    """Ones at tokens, zeros at padding, `(batch, length)`: lengths drawn evenly from an eighth of `length` to the
    whole, by a seed of their own, and the first row full, as in a batch that is padded to its longest."""
    lengths = torch.randint(length // 8, length + 1, (batch_size, 1), generator=torch.Generator().manual_seed(2))
    lengths[0] = length
    return (torch.arange(length) < lengths).long()


def in_turns(
    contestants: Mapping[str, Callable[[], object]],
    rounds: int,
    warm_up: int = 1,
    cpu_seconds: dict[str, list[float]] | None = None,
) -> dict[str, list[float]]:
    """Seconds of every call, by name; in each round every contestant has one turn, so that they share disturbances.

    Args:
        contestants: what to time, by name.
        rounds: turns of each that count.
        warm_up: turns of each before those.
        cpu_seconds: gets the processor's time of every call, by name: other programs disturb it less.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(warm_up + rounds):
        for name, call in contestants.items():
            start, cpu_start = time.perf_counter(), time.process_time()
            call()
            if turn >= warm_up:
                seconds[name].append(time.perf_counter() - start)
                if cpu_seconds is not None:
                    cpu_seconds.setdefault(name, []).append(time.process_time() - cpu_start)
    return seconds


def ratio(seconds: Mapping[str, list[float]], name: str, base: str) -> float:
    """Median over the rounds of one contestant's time divided by another's in the same round."""
    return statistics.median(a / b for a, b in zip(seconds[name], seconds[base], strict=True))


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Which model to measure, for `chosen_config`."""
    parser.add_argument("--preset", default="t5.1.1.base", help="a t5.1.1 size, which all contestants can express")
    parser.add_argument("--quick", action="store_true", help="one layer, 1,024 pieces: tries the benchmark itself")


def chosen_config(arguments: argparse.Namespace, **overrides: Any) -> T5ExperimentalConfig:
    """Configuration of the model that the options name."""
    size = {"num_layers": 1, "vocab_size": 1024} if arguments.quick else {}
    return preset_config(arguments.preset, **size, **overrides)


def peak_memory(prepare: Callable[..., Callable[[], object]], *arguments: object) -> int:
    """Largest resident size, in MiB, of a process of its own that calls `prepare(*arguments)()`, or raises."""
    with _fresh_processes().Pool(1) as pool:
        return pool.apply(_run_and_look, (prepare, *arguments))


@cache
def _fresh_processes() -> Any:
    """What starts processes that have computed nothing yet. Where there can be a server of them, it imports once."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["transformers.models.t5.modeling_t5", "t5_experimental.modeling_t5_experimental"])
    return context


def _run_and_look(prepare: Callable[..., Callable[[], object]], *arguments: object) -> int:
    prepare(*arguments)()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def summary(
    seconds: Mapping[str, list[float]], cpu_seconds: Mapping[str, list[float]], base: str
) -> dict[str, dict[str, Any]]:
    """By contestant: median seconds, median processor seconds, and how many times as fast as `base`."""
    return {
        name: {
            "median": round(statistics.median(times), 3),
            "cpu_median": round(statistics.median(cpu_seconds[name]), 3),
            "speedup": round(ratio(seconds, base, name), 3),
            "cpu_speedup": round(ratio(cpu_seconds, base, name), 3),
            "seconds": times,
        }
        for name, times in seconds.items()
    }


def draw_bars(path: Path, title: str, groups: Mapping[str, Mapping[str, float]], unit: str) -> None:
    """One chart of horizontal bars for each group, beside each other."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    height = max(3, 0.9 + 0.24 * max(map(len, groups.values())))
    figure, axes = pyplot.subplots(
        1, len(groups), figsize=(5 * len(groups), height), squeeze=False, layout="constrained"
    )
    for axis, (name, values) in zip(axes[0], groups.items(), strict=True):
        labels = list(values)[::-1]
        colours = [COLOURS.get(label.split()[0], COLOURS["t5_experimental"]) for label in labels]
        bars = axis.barh(labels, [values[label] for label in labels], color=colours)
        axis.bar_label(bars, fmt="%.3g", padding=3)
        axis.set_xlim(0, max(values.values()) * 1.2)
        axis.set_title(name)
        axis.set_xlabel(unit)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=9)
    figure.savefig(path, dpi=150)


_LIMITS = (
    "ATEN_CPU_CAPABILITY",
    "CT2_FORCE_CPU_ISA",
    "FBGEMM_ENABLE_INSTRUCTIONS",
    "MKL_ENABLE_INSTRUCTIONS",
    "ONEDNN_MAX_CPU_ISA",
)


def machine() -> dict[str, Any]:
    """Processor, threads, versions and the load before the run."""
    model = platform.processor()
    if (cpu_info := Path("/proc/cpuinfo")).exists():
        lines = cpu_info.read_text().splitlines()
        model = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), model)
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "system": platform.platform(),
        "processor": model,
        "capability": torch.backends.cpu.get_cpu_capability(),
        # What keeps the libraries from instructions that the processor has.
        "limits": {name: os.environ[name] for name in _LIMITS if name in os.environ},
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def write_json(path: Path, results: Mapping[str, Any]) -> None:
    """Writes results with the machine they were measured on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine(), **results}, indent=2) + "\n")
