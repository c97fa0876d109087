# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Optimizers by name: Adafactor as the original runs it, which can go on from a checkpoint's slots, and two AdamWs.

`torch.optim.Adafactor` and `transformers.Adafactor` are not the original's. Both factor every matrix over its last two
axes, of whatever size, where the original leaves small ones alone and factors the two largest dimensions of variables
that are merged or transposed here. torch's bounds the learning rate by 1 / sqrt(step) and puts its first epsilon
elsewhere. Neither can be given a state, and neither keeps its state in float32 when a checkpoint of parameters in half
precision is loaded.
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
from .base import _WholeParameterOptimizer
from .rms_adamw import RMSScaledAdamW
from .slots import read_slots


def load_slots(optimizer: Optimizer, model: nn.Module, folder: str | Path) -> int:
    """Puts the state that a converted checkpoint brings along (`optimizer.safetensors`) into an [`Adafactor`].

    Parameters that the file does not know, such as adapters, begin afresh. Which ones are factored, and over which
    dimensions, is taken from the file.

    Args:
        optimizer: of the model's parameters.
        model: what the folder holds, with names as there.
        folder: written by `t5-experimental convert --with-optimizer`.

    Returns:
        The training step that comes next.

    Raises:
        TrainingError: there is no such file, it is broken or not of this model, or the optimizer is another one.
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
    """An optimizer with its habits.

    Attributes:
        make: builds it, from the model, the learning rate, the decay of weights and, of AdamW, `betas` and `eps`.
        learning_rate: unless the caller says otherwise; None if it follows from the plateau.
        plateau: steps for which the original's schedule, `1 / sqrt(max(n, plateau))`, is constant; None for another.
        has_schedule: or is used with the caller's.
        takes_means: over entire parameters, so that engines which cut these into flat pieces refuse it.
    """

    make: Callable[..., Optimizer]
    learning_rate: float | None
    plateau: int | None = None
    has_schedule: bool = True
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
    """Groups: everything decays but the scales of norms."""
    scales = {module.weight for module in model.modules() if isinstance(module, T5LayerNorm)}
    groups: list[dict[str, Any]] = [{"params": [], "weight_decay": decay} for decay in (weight_decay, 0.0)]
    for parameter in _trained(model):
        groups[parameter in scales]["params"].append(parameter)
    return [group for group in groups if group["params"]]


_PRESETS = {
    "finetune": _Preset(_make_adafactor, 1e-3),
    "pretrain": _Preset(_make_adafactor, None, plateau=10_000),
    "adamw": _Preset(_make_adamw, 3e-4, has_schedule=False, takes_means=False),
    "rms_adamw": _Preset(_make_rms_adamw, 2e-2, has_schedule=False),
}
PRESETS = tuple(_PRESETS)


@dataclass(frozen=True)
class OptimizerChoice:
    """The optimizer that the options choose.

    Attributes:
        preset: name of ours; None for `optim`.
        optim: name of transformers'.
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
    """Whether the learning rate of a preset follows the preset's schedule, not the caller's."""
    return _PRESETS[preset].has_schedule


def check_preset(preset: str, weight_decay: float = 0.0) -> None:
    """Refuses a preset that does not exist, and a decay of weights beside one that has none."""
    if preset not in _PRESETS:
        raise TrainingError(f"--optimizer_preset {preset} does not exist: choose one of {', '.join(PRESETS)}.")
    if weight_decay and _PRESETS[preset].make is _make_adafactor:
        raise TrainingError(
            f"--weight_decay {weight_decay:g} is not for Adafactor, which the original runs without: leave it out, or "
            "choose --optimizer_preset adamw."
        )


def plateau_of(preset: str, warmup_steps: int | None = None) -> int | None:
    """Steps for which the original's schedule keeps its first learning rate; None for a preset without it."""
    plateau = _PRESETS[preset].plateau
    return None if plateau is None else max(1, plateau if warmup_steps is None else warmup_steps)


def preset_learning_rate(preset: str, warmup_steps: int | None = None) -> float:
    """The learning rate that a preset has unless the caller says otherwise: its highest."""
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
    """An optimizer with the settings that it is used with for T5.

    - `finetune`: the original's Adafactor, learning rate 1e-3 throughout; linear warm-up if asked for.
    - `pretrain`: the original's Adafactor, learning rate `1 / sqrt(max(n, 10_000))` in step n. Transformers' schedule
      of that name rises from 0 during the warm-up; the original's is constant then. After 1,000,000 steps, which the
      checkpoints have behind them, both presets are at 1e-3.
    - `adamw`: torch's, learning rate 3e-4.
    - `rms_adamw`: [`RMSScaledAdamW`] with nanoT5's 2e-2, which it lets rise for 10,000 steps and fall with a cosine.

    Args:
        preset: one of these.
        model: whose trained parameters are updated; frozen ones are left out.
        learning_rate: instead of the preset's own; for `pretrain`, that of the first steps.
        warmup_steps: of a preset that has a schedule; by default none, but for `pretrain`.
        weight_decay: AdamW's, for everything but the scales of norms.
        slots: folder to continue Adafactor's state from, see [`load_slots`]; the schedule of `pretrain` goes on at the
            step of the checkpoint.
        moments: `betas` and `eps` of AdamW, instead of the preset's own.

    Returns:
        Optimizer, and schedule of the learning rate, to be stepped after every update; None for the two AdamWs, which
        have none of their own.

    Raises:
        TrainingError: no such preset, options that do not fit it, or parameters that were cut into parts.
    """
    check_preset(preset, weight_decay)
    chosen, plateau = _PRESETS[preset], plateau_of(preset, warmup_steps)
    if learning_rate is None:
        learning_rate = preset_learning_rate(preset, warmup_steps)
    optimizer = chosen.make(model, learning_rate, weight_decay, **(moments or {}))
    if isinstance(optimizer, _WholeParameterOptimizer):
        refuse_parts(chain.from_iterable(group["params"] for group in optimizer.param_groups))
    first_step = 0 if slots is None else load_slots(optimizer, model, slots)
    if plateau is not None:
        return optimizer, LambdaLR(optimizer, lambda n: math.sqrt(plateau / max(n + first_step, plateau)))
    if chosen.has_schedule:
        return optimizer, get_constant_schedule_with_warmup(optimizer, warmup_steps or 0)
    return optimizer, None
