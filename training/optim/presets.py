# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Optimizers by name: the original's Adafactor, which can resume from a checkpoint's slots, and two AdamWs.

`torch.optim.Adafactor` and `transformers.Adafactor` differ from the original's. Both factor every matrix over its last
two axes, regardless of size; the original does not factor small ones, and factors the two largest dimensions of
variables that are merged or transposed here. torch's limits the learning rate to 1 / sqrt(step) and adds its first
epsilon elsewhere. Neither accepts an initial state, and neither keeps its state in float32 when it is loaded for
parameters in half precision.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_constant_schedule_with_warmup
from transformers.training_args import OptimizerNames

from t5_experimental.block_t5_experimental import T5LayerNorm

from ..engines.fsdp2 import refuse_parts
from ..engines.hooks import hooks_for
from ..errors import TrainingError
from .adafactor import Adafactor, original_axes
from .base import _FullParameterOptimizer
from .rms_adamw import RMSScaledAdamW
from .slots import read_slots


def load_slots(optimizer: Optimizer, model: nn.Module, folder: str | Path) -> int:
    """Loads the state of a converted checkpoint (`optimizer.safetensors`) into an [`Adafactor`].

    Parameters that the file does not contain, such as adapters, start with a fresh state. The file determines which
    parameters are factored, over which dimensions.

    Args:
        optimizer: of the model's parameters.
        model: of the folder, with the same names.
        folder: written by `t5-experimental convert --with-optimizer`.

    Returns:
        The next training step.

    Raises:
            TrainingError: the file is missing, broken or of a different model, or the optimizer is not Adafactor.
    """
    if not isinstance(optimizer, Adafactor):
        raise TrainingError("The slots of a checkpoint are Adafactor's: choose the optimizer finetune or pretrain.")
    trained = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    named = {name: parameter for name, parameter in model.named_parameters() if parameter in trained}
    step, states = read_slots(named, folder)
    optimizer.begin_with({named[name]: {"step": torch.tensor(float(step)), **state} for name, state in states.items()})
    return step


@dataclass(frozen=True)
class _Preset:
    """An optimizer with its settings.

    Attributes:
        make: builds it, from model, learning rate, weight decay and, unless it is the original's, `betas` and `eps`.
        learning_rate: default; None if it follows from the plateau.
        plateau: steps for which the original's schedule, `1 / sqrt(max(n, plateau))`, is constant; None for any other.
        is_original: the original's Adafactor, which has its own schedule, and moments and decay that no option changes.
        takes_means: over entire parameters, so that engines which flatten and shard these refuse it.
    """

    make: Callable[..., Optimizer]
    learning_rate: float | None
    plateau: int | None = None
    is_original: bool = False
    takes_means: bool = True


def _make_adafactor(model: nn.Module, learning_rate: float, weight_decay: float) -> Optimizer:
    assert not weight_decay
    return Adafactor(_trained(model), learning_rate, original_axes(model))


def _make_adamw(model: nn.Module, learning_rate: float, weight_decay: float, **moments: Any) -> Optimizer:
    suited = hooks_for(next(model.parameters()).device).adamw
    return AdamW(_with_decay(model, weight_decay), learning_rate, **suited, **moments)


def _make_rms_adamw(model: nn.Module, learning_rate: float, weight_decay: float, **moments: Any) -> Optimizer:
    return RMSScaledAdamW(_with_decay(model, weight_decay), learning_rate, **moments)


def _trained(model: nn.Module) -> list[torch.Tensor]:
    parameters: list[torch.Tensor] = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return parameters


def _with_decay(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Groups: everything decays except the scales of norms."""
    scales = {module.weight for module in model.modules() if isinstance(module, T5LayerNorm)}
    groups: list[dict[str, Any]] = [{"params": [], "weight_decay": decay} for decay in (weight_decay, 0.0)]
    for parameter in _trained(model):
        groups[parameter in scales]["params"].append(parameter)
    return [group for group in groups if group["params"]]


_PRESETS = {
    "finetune": _Preset(_make_adafactor, 1e-3, is_original=True),
    "pretrain": _Preset(_make_adafactor, None, plateau=10_000, is_original=True),
    "adamw": _Preset(_make_adamw, 3e-4, takes_means=False),
    "rms_adamw": _Preset(_make_rms_adamw, 2e-2),
}
PRESETS = tuple(_PRESETS)


@dataclass(frozen=True)
class OptimizerChoice:
    """The optimizer that the options choose.

    Attributes:
        preset: name of one of ours; None for `optim`.
        optim: name of one of transformers'.
        knows_shards: its means over parameters are right where FSDP2 shards these by rows.
    """

    preset: str | None
    optim: str = OptimizerNames.ADAFACTOR.value
    knows_shards: bool = True

    @property
    def name(self) -> str:
        return self.preset or self.optim

    @property
    def option(self) -> str:
        """The option that chooses it."""
        return f"--optim {self.optim}" if self.preset is None else f"--optimizer_preset {self.preset}"

    @property
    def takes_means(self) -> bool:
        """Whether it takes means over entire parameters."""
        if self.preset is None:
            return self.optim == OptimizerNames.ADAFACTOR.value
        return _PRESETS[self.preset].takes_means

    @property
    def is_original_adafactor(self) -> bool:
        """Whether it is a preset of the original's Adafactor, which has its own schedule."""
        return self.preset is not None and has_own_schedule(self.preset)


def has_own_schedule(preset: str) -> bool:
    """Whether a preset has its own schedule instead of the caller's."""
    return _PRESETS[preset].is_original


def check_preset(preset: str, weight_decay: float = 0.0) -> None:
    """Refuses a preset that does not exist, and weight decay for one without it."""
    if preset not in _PRESETS:
        raise TrainingError(f"--optimizer_preset {preset} does not exist: choose one of {', '.join(PRESETS)}.")
    if weight_decay and _PRESETS[preset].is_original:
        raise TrainingError(
            f"--weight_decay {weight_decay:g} is not for Adafactor, which the original runs without it: leave it out, "
            "or choose --optimizer_preset adamw."
        )


def plateau_of(preset: str, warmup_steps: int | None = None) -> int | None:
    """Steps for which the original's schedule keeps its first learning rate; None for presets without that schedule."""
    plateau = _PRESETS[preset].plateau
    return None if plateau is None else max(1, plateau if warmup_steps is None else warmup_steps)


def preset_learning_rate(preset: str, warmup_steps: int | None = None) -> float:
    """The default learning rate of a preset; the highest of its schedule."""
    rate = _PRESETS[preset].learning_rate
    return (plateau_of(preset, warmup_steps) or 1) ** -0.5 if rate is None else rate


def build_optimizer(
    preset: str,
    model: nn.Module,
    *,
    learning_rate: float | None = None,
    warmup_steps: int | None = None,
    weight_decay: float = 0.0,
    slots: str | Path | None = None,
    moments: Mapping[str, Any] | None = None,
) -> tuple[Optimizer, LambdaLR | None]:
    """An optimizer with the settings that T5 uses.

    - `finetune`: the original's Adafactor, constant learning rate 1e-3; with linear warm-up if asked for.
    - `pretrain`: the original's Adafactor, learning rate `1 / sqrt(max(n, 10_000))` in step n. Transformers' schedule
      of that name rises from 0 during the warm-up; the original's is constant there. After 1,000,000 steps, where the
      checkpoints are, both presets are at 1e-3.
    - `adamw`: torch's, learning rate 3e-4.
    - `rms_adamw`: [`RMSScaledAdamW`] with nanoT5's 2e-2; nanoT5 warms up for 10,000 steps, then decays with a cosine.

    Args:
        preset: one of these.
        model: its trained parameters are updated; frozen ones are left out.
        learning_rate: instead of the preset's own; for `pretrain`, that of the first steps.
        warmup_steps: for presets with a schedule; by default none, except for `pretrain`.
        weight_decay: AdamW's, for everything except the scales of norms.
        slots: folder to resume Adafactor's state from, see [`load_slots`]; the schedule of `pretrain` resumes at the
            step of the checkpoint.
        moments: `betas` and `eps` of AdamW, instead of the preset's own.

    Returns:
        Optimizer, and learning rate schedule, to be stepped after every update; None for the two AdamWs, which have no
        schedule of their own.

    Raises:
        TrainingError: the preset does not exist, options do not fit it, or parameters are flattened and sharded.
    """
    check_preset(preset, weight_decay)
    chosen, plateau = _PRESETS[preset], plateau_of(preset, warmup_steps)
    if learning_rate is None:
        learning_rate = preset_learning_rate(preset, warmup_steps)
    optimizer = chosen.make(model, learning_rate, weight_decay, **(moments or {}))
    if isinstance(optimizer, _FullParameterOptimizer):
        refuse_parts(chain.from_iterable(group["params"] for group in optimizer.param_groups))
    first_step = 0 if slots is None else load_slots(optimizer, model, slots)
    if plateau is not None:
        return optimizer, LambdaLR(optimizer, lambda n: math.sqrt(plateau / max(n + first_step, plateau)))
    if chosen.is_original:
        return optimizer, get_constant_schedule_with_warmup(optimizer, warmup_steps or 0)
    return optimizer, None
