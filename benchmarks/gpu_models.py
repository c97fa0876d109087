# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Sections of `benchmarks/gpu.py`: compiling, training steps and generation of whole models with random weights."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForSeq2SeqLM, CompileConfig

from t5_experimental import decoding_session, preset_config
from t5_experimental.configuration_t5_experimental import TALKING_HEADS

from .common import stock_twin
from .gpu_attention import (
    NO_TRITON,
    attention_by,
    compile_attention,
    dtypes,
    failed_checks,
    has_triton,
    head_counts,
)
from .gpu_goldens import compile_golden, golden_names, talks
from .gpu_processes import Work, at_once
from .gpu_report import Machine, Row, Section


TINY = {"vocab_size": 1152, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_heads": 4}
STEP_SHAPE = (16, 512, 114)  # examples, source, target
TINY_LAYERS = {"t5.1.n4w10.base": 5}  # four of them are narrow

# Name, preset, who computes it. Talking heads are named by how their attention is computed.
STEPS = (
    ("transformers t5.1.1.base", "t5.1.1.base", "transformers"),
    ("t5.1.1.base", "t5.1.1.base", "ours"),
    ("t5.1.n4w10.base", "t5.1.n4w10.base", "ours"),
    ("t5.1.th.base kernels", "t5.1.th.base", "kernels"),
    ("t5.1.th.base rows", "t5.1.th.base", "rows"),
    ("t5.1.1.large", "t5.1.1.large", "ours"),
)


def build(preset: str, machine: Machine, **overrides: Any) -> Any:
    """A model with random weights on the device, the same for every call."""
    if machine.tiny:
        overrides = {**TINY, "num_layers": TINY_LAYERS.get(preset, 1), **overrides}
    torch.manual_seed(0)
    with machine.device:  # which draws random numbers faster
        return AutoModelForSeq2SeqLM.from_config(preset_config(preset, **overrides))


def twin(model: Any, machine: Machine) -> Any:
    """transformers' T5 with the weights of ours."""
    with machine.device:
        return stock_twin(model)


# Compiling.


def compiling(section: Section, machine: Machine) -> None:
    """Fills Triton's cache with what the other sections need, with a process for each part: compiling takes seconds for
    every kernel, and one process compiles one at a time."""
    if not has_triton():
        section.leave_out("kernels", NO_TRITON)
        return
    sizes = head_counts()[TALKING_HEADS]
    if machine.tiny:
        jobs: list[list[Work]] = [[(compile_attention, (sizes[0], dtype, machine))] for dtype in dtypes(machine)]
    else:
        jobs = [[(compile_attention, (size, dtype, machine))] for size in sizes for dtype in dtypes(machine)]
        jobs += [[(compile_golden, (name, machine))] for name in golden_names() if talks(name)]
        jobs += [[(step_row, ("t5.1.th.base", "kernels", STEP_SHAPE, machine, 1))]]
    section.measure("kernels", compile_row, jobs, section)


def compile_row(jobs: list[list[Work]], section: Section) -> Row:
    at_once(jobs, {}, section.left)
    return {"processes": len(jobs)}


# Training.


def training(section: Section, machine: Machine) -> None:
    """A step in bfloat16 autocast with fused AdamW, without dropout, as in pre-training."""
    shape = (2, 16, 8) if machine.tiny else STEP_SHAPE
    for item, preset, by in STEPS:
        if by == "kernels" and not has_triton():
            section.leave_out(item, NO_TRITON)
        else:
            section.measure(item, step_row, preset, by, shape, machine)


def step_row(preset: str, by: str, shape: tuple[int, int, int], machine: Machine, layers: int | None = None) -> Row:
    """Tokens per second, MFU (matmuls and attention, counted by torch, over the data sheet's FLOP/s) and the memory at
    the peak beside `--estimate`; of a whole model, or of its first layers."""
    machine.reset_peak_memory()
    model = build(preset, machine, dropout_rate=0.0, **({} if layers is None else {"num_layers": layers}))
    config, options = model.config, {"skip_logits": True}
    if by == "transformers":
        model, options = twin(model, machine), {}
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    batch, source, target = shape
    generator = torch.Generator().manual_seed(1)
    inputs = {
        name: torch.randint(3, config.vocab_size - 100, (batch, length), generator=generator).to(machine.device)
        for name, length in (("input_ids", source), ("labels", target))
    }
    losses: list[torch.Tensor] = []

    def passes() -> None:
        with torch.autocast(machine.device.type, dtype=torch.bfloat16):
            loss = model(**inputs, **options, use_cache=False).loss
        loss.backward()
        losses.append(loss.detach())

    def step() -> None:
        passes()
        optimizer.step()
        optimizer.zero_grad()

    with attention_by(by) if by in ("kernels", "rows") else contextlib.nullcontext():
        seconds = machine.seconds(step, rounds=8)
        peak = machine.peak_memory()  # before anything else is counted
        with FlopCounterMode(display=False) as counter:
            passes()
    first, last = losses[0].item(), losses[-1].item()
    row: Row = {
        "step ms": seconds * 1e3,
        "tokens/s": batch * (source + target) / seconds,
        "TFLOP/s": (flops := counter.get_total_flops()) / seconds / 1e12,
        "MFU": None if machine.peak_flops is None else flops / seconds / machine.peak_flops,
        "peak GB": None if peak is None else peak / 1e9,
        "loss": first,
        "last loss": last,
    }
    if by != "transformers":
        row["estimate GB"] = estimated_bytes(config, shape) / 1e9
    if not last < first:  # also if it is NaN
        row["wrong"] = f"the loss of the same batch went from {first:.4g} to {last:.4g}"
    elif by == "kernels" and (failed := failed_checks()):
        row["wrong"] = f"the kernels are off: {failed[0]}"
    return row


def estimated_bytes(config: Any, shape: tuple[int, int, int]) -> int:
    """What `--estimate` says of such a step on a GPU."""
    from t5_experimental.training.engines.engine import Engine
    from t5_experimental.training.memory.activations import Step
    from t5_experimental.training.memory.states import Setup, empty_model, estimate
    from t5_experimental.training.optim.presets import OptimizerChoice

    setup = Setup(Engine(), OptimizerChoice("adamw"))
    return estimate(empty_model(config), config, setup, Step(*shape, autocast=True, padded=False)).total


# Generation.


@dataclass(frozen=True)
class Contestant:
    """A way to generate.

    Attributes:
        preset: of the model.
        stock: transformers' T5 instead of ours, with the same weights.
        attention: its implementation.
        static: with a static cache.
        mode: of `torch.compile`; None without.
    """

    preset: str = "t5.1.1.base"
    stock: bool = False
    attention: str = "sdpa"
    static: bool = False
    mode: str | None = None


# The cheap ones first: what is compiled takes tens of seconds before its first token.
CONTESTANTS = {
    "transformers eager": Contestant(stock=True, attention="eager"),
    "transformers SDPA": Contestant(stock=True),
    "ours": Contestant(),
    "ours t5.1.n4w10.base": Contestant("t5.1.n4w10.base"),
    "ours t5.1.th.base": Contestant("t5.1.th.base"),
    "ours static": Contestant(static=True),
    "ours static, CUDA graphs": Contestant(static=True, mode="reduce-overhead"),
    "transformers static, CUDA graphs": Contestant(stock=True, static=True, mode="reduce-overhead"),
    "ours static, compiled": Contestant(static=True, mode="default"),
    "transformers static, compiled": Contestant(stock=True, static=True, mode="default"),
}


def decoding(section: Section, machine: Machine) -> None:
    """Greedy generation in bfloat16; how many tokens are those of the first contestant with the same weights says
    whether they compute the same, up to rounding."""
    tokens: dict[tuple[str, int], torch.Tensor] = {}
    for name, contestant in CONTESTANTS.items():
        if machine.tiny and contestant.mode == "default":  # not compiled, as those before it
            continue
        for batch in (2,) if machine.tiny else (1, 64):
            section.measure(f"{name}, batch {batch}", decoding_row, contestant, batch, tokens, machine)


def decoding_row(
    contestant: Contestant, batch: int, tokens: dict[tuple[str, int], torch.Tensor], machine: Machine
) -> Row:
    """Milliseconds per token of whole calls, encoder included.

    Args:
        contestant: who generates.
        batch: number of inputs.
        tokens: gets the generated tokens of each preset and batch, the first time.
        machine: where.
    """
    source, new = (6, 4) if machine.tiny else (64, 64)
    model = build(contestant.preset, machine, dropout_rate=0.0).eval()
    if contestant.stock:
        model = twin(model, machine)
    model.set_attn_implementation(contestant.attention)
    model.to(torch.bfloat16)
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randint(3, model.config.vocab_size - 100, (batch, source), generator=generator).to(machine.device)
    options: dict[str, Any] = {"min_new_tokens": new, "max_new_tokens": new, "do_sample": False}
    if contestant.static:
        options["cache_implementation"] = "static"
        options["disable_compile"] = contestant.mode is None
    if contestant.mode is not None:
        options["compile_config"] = compile_config(contestant.mode, machine)
    mask = torch.ones_like(inputs)
    graphs = count_graphs()
    machine.reset_peak_memory()
    with session(model, contestant):
        start = machine.seconds(lambda: model.generate(inputs, attention_mask=mask, **options), rounds=1, warm_up=0)
        seconds = machine.seconds(lambda: model.generate(inputs, attention_mask=mask, **options), rounds=5)
        generated = model.generate(inputs, attention_mask=mask, **options)[:, 1:].cpu()
    peak, graphs = machine.peak_memory(), count_graphs() - graphs
    torch._dynamo.reset()
    first = tokens.setdefault((contestant.preset, batch), generated)
    row: Row = {
        "ms per token": seconds * 1e3 / new,
        "tokens/s": batch * new / seconds,
        "first call s": start,
        "peak MiB": None if peak is None else peak // 2**20,
        "equal tokens": float((generated == first).double().mean()) if generated.shape == first.shape else 0.0,
    }
    if contestant.mode is not None:
        row["graphs"] = graphs
        if not graphs:
            row["wrong"] = "nothing was compiled"
    if generated.shape != (batch, new):
        row["wrong"] = f"{tuple(generated.shape)} tokens were generated instead of {(batch, new)}"
    return row


@contextlib.contextmanager
def session(model: Any, contestant: Contestant) -> Iterator[None]:
    """Ours generates in a session, as users do who generate more than once."""
    with contextlib.nullcontext() if contestant.stock else decoding_session(model):
        yield


def compile_config(mode: str, machine: Machine) -> CompileConfig:
    """For `generate`, which by itself compiles on GPUs only; tiny models are traced, but not compiled."""
    config = CompileConfig(mode=mode) if not machine.tiny else CompileConfig(backend="eager", mode=None)
    config._compile_all_devices = True
    return config


def count_graphs() -> int:
    """How many graphs the compiler has made so far."""
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"]
