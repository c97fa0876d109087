# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Bytes that a process of a run holds: parameters, gradients, optimizer state, and temporary tensors.

They are computed from the shapes of a model on the meta device, as each engine stores them;
tests/engines/test_footprint.py compares them with what the engines allocate. Activations are in
training/memory/activations.py.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoModelForSeq2SeqLM
from transformers.training_args import OptimizerNames

from t5_experimental.configuration_t5_experimental import T5ExperimentalConfig
from t5_experimental.loss_t5_experimental import _CHUNK
from t5_experimental.stack_t5_experimental import T5Block

from ..engines.engine import Engine
from ..errors import TrainingError
from ..models.adapters import import_peft, lora_config, lora_targets
from ..optim.presets import OptimizerChoice, build_optimizer
from .activations import Step, activation_bytes


GPU_SIZES = (16, 24, 40, 48, 80, 141)
"""GB (10**9 bytes) of memory of common devices. Most have up to 7 % more, which is left to the CUDA context and to
fragmentation."""

# DeepSpeed's defaults, in elements, which training/configs keeps: the bucket for reducing gradients, the size below
# which it does not shard parameters, and how many gathered ones it keeps between two uses.
_REDUCE_BUCKET = 500_000_000
_PERSISTENT = 100_000
_LIVE = 1_000_000_000
# Shards of a flat group of parameters are aligned to this many elements.
_ALIGNMENT = 2


@dataclass(frozen=True)
class Setup:
    """What to train, and how.

    Attributes:
        engine: with one process per device.
        optimizer: a preset, or one of transformers'.
        bf16: compute in bfloat16.
    """

    engine: Engine
    optimizer: OptimizerChoice
    bf16: bool = True

    @property
    def keeps_half(self) -> bool:
        """Whether the model itself computes in bfloat16, without casts."""
        return self.bf16 and self.engine.shards_state


@dataclass
class Estimate:
    """Bytes of one process.

    Attributes:
        device: by purpose, on the device.
        host: by purpose, in host memory, where an engine offloads to it.
    """

    device: dict[str, int] = field(default_factory=dict)
    host: dict[str, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """On the device, all together: slightly more than the peak, since they are not all needed at the same time."""
        return sum(self.device.values())

    @property
    def gpu(self) -> int | None:
        """Smallest of [`GPU_SIZES`] that fits; None if none does."""
        return next((size for size in GPU_SIZES if self.total <= size * 10**9), None)

    def lines(self) -> dict[str, str]:
        """Lines to print, by heading."""
        lines = {name: _gigabytes(size) for name, size in self.device.items()}
        lines["total"] = f"{_gigabytes(self.total)} on each device"
        if self.host:
            lines["host"] = f"{_gigabytes(sum(self.host.values()))} for each process: {', '.join(self.host)}"
        fitting = [str(size) for size in GPU_SIZES if self.total <= size * 10**9]
        lines["fits"] = f"GPUs of {', '.join(fitting)} GB" if fitting else f"no GPU of up to {GPU_SIZES[-1]} GB"
        return lines


def _gigabytes(size: int) -> str:
    """With at least two digits, also of tiny models."""
    return f"{size / 1e9:7.2f} GB" if size >= 10**8 else f"{size / 1e6:7.2f} MB"


# The model on the meta device.


def empty_model(config: T5ExperimentalConfig, lora_rank: int = 0, prompt_length: int = 0) -> nn.Module:
    """The model to train, with shapes alone: its parameters are on the meta device."""
    with torch.device("meta"):
        model = AutoModelForSeq2SeqLM.from_config(config, dtype=torch.float32)
        if lora_rank:
            return import_peft().get_peft_model(model, lora_config(model, lora_rank, lora_targets(model)))
        if prompt_length:
            model.requires_grad_(False)
            model.prompt = nn.Embedding(prompt_length, config.d_model)
    return model


def _split(length: int, parts: int) -> int:
    """Length of the longest part."""
    return -(-length // parts)


def _rows_of(weight: torch.Tensor, processes: int) -> tuple[int, ...]:
    """Shape of the first process's shard of a parameter that is sharded along its first dimension."""
    return (_split(weight.shape[0], processes), *weight.shape[1:])


# Weights, gradients, optimizer.


class _Weights:
    """Counts what exists all the time."""

    def __init__(self, model: nn.Module, setup: Setup):
        self.setup, self.engine, self.model = setup, setup.engine, model
        self.all = list(model.parameters())
        self.trained = [weight for weight in self.all if weight.requires_grad]
        self.size = 2 if setup.engine.is_deepspeed and setup.bf16 else 4

    def groups(self) -> list[list[nn.Parameter]]:
        """Trained parameters in the optimizer's groups; DeepSpeed flattens each group into one tensor."""
        if self.setup.optimizer.preset is None:
            return [self.trained]
        optimizer, _ = build_optimizer(self.setup.optimizer.preset, self.model)
        return [group["params"] for group in optimizer.param_groups]

    def local_numbers(self) -> list[int]:
        """Trained elements of this process, for each tensor that the optimizer sees."""
        engine, processes = self.engine, self.engine.processes
        if engine.kind == "fsdp":
            return [torch.Size(_rows_of(weight, processes)).numel() for weight in self.trained]
        if not engine.is_deepspeed:
            return [weight.numel() for weight in self.trained]
        if engine.keeps_parameters_whole:
            totals = [sum(weight.numel() for weight in group) for group in self.groups()]
            unit = _ALIGNMENT * processes
            return [_split(total, unit) * unit // processes for total in totals]
        return [sum(_split(weight.numel(), processes) for weight in group) for group in self.groups()]

    def parameters(self) -> int:
        """Bytes of parameters between two steps."""
        engine, processes = self.engine, self.engine.processes
        if engine.kind == "fsdp":
            return sum(torch.Size(_rows_of(weight, processes)).numel() for weight in self.all) * self.size
        if not engine.keeps_parameters_whole:
            cut = sum(_split(weight.numel(), processes) for weight in self.all)
            return (cut + sum(weight.numel() for weight in self.all if weight.numel() < _PERSISTENT)) * self.size
        if engine.is_deepspeed:
            frozen = sum(weight.numel() for weight in self.all if not weight.requires_grad)
            return (frozen + sum(self.local_numbers()) * processes) * self.size
        return sum(weight.numel() for weight in self.all) * self.size

    def gradients(self) -> int:
        return sum(self.local_numbers()) * self.size

    def masters(self) -> int:
        """DeepSpeed's float32 copy of its shard, regardless of the dtype of the parameters."""
        return sum(self.local_numbers()) * 4 if self.engine.is_deepspeed else 0

    def _state_bytes(self, state: torch.Tensor, weight: torch.Tensor) -> int:
        """Bytes of a state, which FSDP2 shards like its parameter if it has as many rows, see
        [`~t5_experimental.training.engines.fsdp2.placed_with`]."""
        if self.engine.kind != "fsdp" or state.shape[0] != weight.shape[0]:
            return state.nbytes
        return torch.Size(_rows_of(state, self.engine.processes)).numel() * state.element_size()

    def optimizer(self) -> int:
        """State after the first step."""
        self.engine.check(self.setup.optimizer)
        name = self.setup.optimizer.name
        local = self.local_numbers()
        counts = 4 * len(local)  # `step` of each
        if self.setup.optimizer.preset is not None and self.setup.optimizer.takes_means:
            optimizer, _ = build_optimizer(name, self.model)
            weights = [(weight, group) for group in optimizer.param_groups for weight in group["params"]]
            return counts + sum(
                self._state_bytes(state, weight)
                for place, (weight, group) in enumerate(weights)
                for state in cast(Any, optimizer).fresh_state(weight, group, place).values()
            )
        if name == OptimizerNames.ADAFACTOR.value:
            return sum(map(_factored, self._local_shapes()))
        if name.startswith("adamw") and not any(kind in name for kind in ("8bit", "4bit", "fp8", "anyprecision")):
            return counts + 8 * sum(local)
        if name == OptimizerNames.SGD.value:
            return 0
        raise TrainingError(
            f"--estimate does not know the memory of --optim {name}: estimate with adafactor, adamw_torch or sgd."
        )

    def _local_shapes(self) -> Iterator[tuple[int, ...]]:
        for weight in self.trained:
            yield _rows_of(weight, self.engine.processes) if self.engine.kind == "fsdp" else tuple(weight.shape)


def _factored(shape: tuple[int, ...]) -> int:
    """State of transformers' Adafactor: means over the last two dimensions, and the root mean square."""
    if len(shape) < 2:
        return 4 * torch.Size(shape).numel() + 4
    return 4 * (torch.Size(shape[:-1]).numel() + torch.Size((*shape[:-2], shape[-1])).numel()) + 4


# Temporary tensors.


def _largest_unit(model: nn.Module) -> int:
    """Elements of the largest module that an engine gathers at a time: a block, the embedding or the classifier."""
    units = [module for module in model.modules() if isinstance(module, T5Block | nn.Embedding | nn.Linear)]
    return max(sum(weight.numel() for weight in unit.parameters()) for unit in units)


def _gathered(model: nn.Module, setup: Setup) -> int:
    """Gathered parameters of the modules that compute, and of the next ones."""
    size = 2 if setup.bf16 else 4
    if setup.engine.keeps_parameters_whole:
        return 0
    total = sum(weight.numel() for weight in model.parameters())
    if setup.engine.is_deepspeed:
        return min(total, _LIVE + _largest_unit(model)) * size
    return min(2 * _largest_unit(model), total) * size


def _sent(weights: _Weights) -> int:
    """Gradients in communication buffers."""
    setup = weights.setup
    if setup.engine.config == "ddp":
        return sum(weight.numel() for weight in weights.trained) * 4
    if setup.engine.is_deepspeed:
        return _REDUCE_BUCKET * weights.size
    return _largest_unit(weights.model) * (2 if setup.bf16 else 4) if setup.engine.kind == "fsdp" else 0


def _logits(config: T5ExperimentalConfig, step: Step) -> int:
    """Logits besides those that are kept: their gradient, also in the precision of matmuls."""
    tokens = step.examples * step.target
    if not step.all_logits:
        tokens = min(tokens, _CHUNK)
    return tokens * config.vocab_size * (4 + step.matmul)


def _casts(model: nn.Module, step: Step) -> int:
    """Copies of weights in bfloat16 that autocast caches for the forward pass."""
    if step.half or not step.autocast:
        return 0
    return 2 * sum(
        weight.numel()
        for module in model.modules()
        if isinstance(module, nn.Linear)
        for weight in module.parameters(recurse=False)
    )


def estimate(model: nn.Module, config: T5ExperimentalConfig, setup: Setup, step: Step) -> Estimate:
    """Bytes of a process.

    Args:
        model: to train, from [`empty_model`].
        config: of the model, with the dropout of training.
        setup: engine and optimizer.
        step: one forward pass of a process.

    Raises:
        TrainingError: the engine does not allow the optimizer, or its memory is unknown.
    """
    weights = _Weights(model, setup)
    result = Estimate()
    offloaded = result.host if setup.engine.config == "deepspeed_zero3_offload" else result.device
    offloaded["parameters"] = weights.parameters()
    offloaded["gradients"] = weights.gradients()
    if masters := weights.masters():
        offloaded["masters"] = masters
    offloaded["optimizer"] = weights.optimizer()
    if casts := _casts(model, step):
        result.device["casts"] = casts
    result.device["activations"] = activation_bytes(config, step).peak
    result.device["logits"] = _logits(config, step)
    if gathered := _gathered(model, setup):
        result.device["gathered"] = gathered
    if sent := _sent(weights):
        result.device["sent"] = sent
    return result
