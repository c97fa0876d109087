# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Optimizers by name: Adafactor as the original runs it, which can go on from a checkpoint's slots, and two AdamWs.

`torch.optim.Adafactor` and `transformers.Adafactor` are not the original's. Both factor every matrix over its last two
axes, of whatever size, where the original leaves small ones alone and factors the two largest dimensions of variables
that are merged or transposed here. torch's bounds the learning rate by 1 / sqrt(step) and puts its first epsilon
elsewhere. Neither can be given a state, and neither keeps its state in float32 when a checkpoint of parameters in half
precision is loaded.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_constant_schedule_with_warmup

from t5_experimental.attention_t5_experimental import T5Attention
from t5_experimental.block_t5_experimental import T5LayerNorm
from t5_experimental.configuration_t5_experimental import TALKING_HEADS
from t5_experimental.training.errors import TrainingError
from t5_experimental.training.sharding import (
    mean_over,
    placed_with,
    refuse,
    refuse_parts,
    reshaped,
    root_mean_square,
)
from t5_experimental.training.slots import State, read_slots
from t5_experimental.training.xla import is_xla


# The original's epsilon1 and epsilon2, and the root mean square that updates are clipped to.
_SQUARE_EPSILON = 1e-30
_SCALE_EPSILON = 1e-3
_CLIPPING_THRESHOLD = 1.0

_ParameterGroups: TypeAlias = Iterable[torch.Tensor] | Iterable[dict[str, Any]]


class Axes(NamedTuple):
    """How a parameter lies in the original's variable.

    Attributes:
        shape: what to view the parameter as, so that every dimension of the variable is an axis.
        order: these axes in the order of the variable's dimensions.
    """

    shape: tuple[int, ...]
    order: tuple[int, ...]


def original_axes(model: nn.Module) -> dict[torch.Tensor, Axes]:
    """Axes of those parameters that are trained, but norms. It matters what the original keeps apart and in which order
    it counts: its factoring rule asks for the two largest dimensions, the first of equal ones being the larger."""
    found: dict[torch.Tensor, Axes] = {}
    for module in model.modules():  # parents come before their children
        if isinstance(module, T5Attention):
            found |= _axes_of_attention(module)
        elif isinstance(module, nn.Embedding):
            found.setdefault(module.weight, Axes(tuple(module.weight.shape), (0, 1)))
        elif isinstance(module, nn.Linear):
            found.setdefault(module.weight, Axes(tuple(module.weight.shape), (1, 0)))
    return {parameter: axes for parameter, axes in found.items() if parameter.requires_grad}


def _axes_of_attention(attention: T5Attention) -> dict[torch.Tensor, Axes]:
    """Axes of what is special in an attention: talking heads' kernels have three, plain ones merge heads and their
    size; the bias table is transposed."""
    spec, found = attention.spec, {}
    if hasattr(attention, "relative_attention_bias"):
        table = attention.relative_attention_bias.weight
        found[table] = Axes(tuple(table.shape), (1, 0))
    if spec.attention_type != TALKING_HEADS:
        return found
    keys, values = (spec.num_key_heads, spec.d_k), (spec.num_value_heads, spec.d_v)
    for linear, heads in ((attention.q, keys), (attention.k, keys), (attention.v, values)):
        found[linear.weight] = Axes((*heads, linear.in_features), (2, 0, 1))
    found[attention.o.weight] = Axes((attention.o.out_features, *values), (1, 2, 0))
    return found


class _WholeParameterOptimizer(Optimizer, ABC):
    """What optimizers have in common whose update of a number depends on others of its parameter.

    States are in at least float32, whatever the parameters are in; `step` counts the updates of a parameter and stays
    on the CPU. FSDP of the second kind puts distributed tensors in place of the parameters, between construction and
    the first step; their states are distributed, too. So what is known of a parameter goes by its place in the groups.

    Attributes:
        first_states: those that parameters begin with at their first update, by place; where there is none, afresh.
    """

    def __init__(self, parameters: _ParameterGroups, defaults: dict[str, Any]):
        self._shapes: list[torch.Size] = []
        self.first_states: dict[int, State] = {}
        super().__init__(parameters, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        self._shapes += [parameter.shape for parameter in self.param_groups[-1]["params"]]

    def begin_with(self, states: Mapping[torch.Tensor, State]) -> None:
        """Gives states, `step` among them, to parameters that have not been updated yet."""
        self.first_states = {
            place: dict(states[parameter])
            for place, (parameter, _) in enumerate(self._members())
            if parameter in states
        }

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Updates all parameters that have a gradient.

        Raises:
            TrainingError: an engine has cut a parameter into parts that have lost its rows.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for place, (parameter, group) in enumerate(self._members()):
            if parameter.grad is not None:
                self._update(parameter, group, place)
        return loss

    def _members(self) -> Iterator[tuple[torch.Tensor, dict[str, Any]]]:
        """All parameters, each with its group; their order are their places."""
        for group in self.param_groups:
            for parameter in group["params"]:
                yield parameter, group

    def _update(self, parameter: torch.Tensor, group: Mapping[str, Any], place: int) -> None:
        state = self.state[parameter]
        if not state:
            # ZeRO-1 and 2 put flat parts there.
            if parameter.shape != self._shapes[place]:
                refuse()
            refuse_parts([parameter])
            first = self.first_states.pop(place, None) or self.fresh_state(parameter, group, place)
            state["step"] = first.pop("step", torch.tensor(0.0))
            state.update({name: placed_with(value, parameter) for name, value in first.items()})
        wide = torch.promote_types(parameter.dtype, torch.float32)
        values = parameter.to(wide)
        self.update(values, parameter.grad.to(wide), state, group)  # type: ignore[union-attr]
        state["step"] += 1
        if values is not parameter:
            parameter.copy_(values)

    @abstractmethod
    def fresh_state(self, parameter: torch.Tensor, group: Mapping[str, Any], place: int) -> State:
        """State of the parameter at a place of the groups before its first update, `step` aside."""

    @abstractmethod
    def update(self, values: torch.Tensor, gradient: torch.Tensor, state: State, group: Mapping[str, Any]) -> None:
        """Changes `values` and `state` in place; `step` of it is the number of updates before this one."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.first_states.clear()
        # torch has cast the states to the dtypes of the parameters, and left `step` on the device that it came on.
        saved = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        own = chain.from_iterable(group["params"] for group in self.param_groups)
        for index, parameter in zip(saved, own, strict=True):
            if index in state_dict["state"]:
                self.state[parameter] = {
                    name: value.to("cpu" if name == "step" else parameter.device, copy=True)
                    for name, value in state_dict["state"][index].items()
                }


class Adafactor(_WholeParameterOptimizer):
    """Adafactor without momentum, as the original trains: the learning rate comes from outside.

    With g the gradient, t the number of updates before, and `decay = 1 - (t + 1) ** -0.8`, a parameter P changes by

        v = decay * v + (1 - decay) * (g**2 + 1e-30)
        x = g * rsqrt(v)
        P = P - lr * max(1e-3, rms(P)) * x / max(1, rms(x))

    If two of P's dimensions are of size 128 or more, v is not stored, but `vr` and `vc`, its means over the largest
    and over the second largest dimension: v is then `vr * vc / mean(vr)`. The state has the mean's dimension as an axis
    of size 1, in the shape that [`Axes`] gives, so the shapes of the two tell all.

    Source: `AdafactorOptimizer` in mesh_tensorflow/optimize.py; https://arxiv.org/abs/1804.04235.

    Args:
        parameters: or groups of them, as of any optimizer.
        lr: learning rate, relative to the parameters' root mean squares.
        axes: of parameters that are not the original's as they are, see [`original_axes`].
        scale_parameter: multiply by `max(1e-3, rms(P))`.
        decay_exponent: of the decay.
        min_dim_size_to_factor: size that both dimensions must have.
    """

    def __init__(
        self,
        parameters: _ParameterGroups,
        lr: float = 1e-3,
        axes: Mapping[torch.Tensor, Axes] | None = None,
        scale_parameter: bool = True,
        decay_exponent: float = 0.8,
        min_dim_size_to_factor: int = 128,
    ):
        defaults = {
            "lr": lr,
            "scale_parameter": scale_parameter,
            "decay_exponent": decay_exponent,
            "min_dim_size_to_factor": min_dim_size_to_factor,
        }
        super().__init__(parameters, defaults)
        places = {parameter: place for place, (parameter, _) in enumerate(self._members())}
        self._axes = {places[parameter]: layout for parameter, layout in (axes or {}).items() if parameter in places}

    def fresh_state(self, parameter: torch.Tensor, group: Mapping[str, Any], place: int) -> State:
        wide = torch.promote_types(parameter.dtype, torch.float32)
        shape, order = self._axes.get(place, Axes(tuple(parameter.shape), tuple(range(parameter.ndim))))
        largest = sorted(order, key=lambda axis: -shape[axis])[:2]  # stable: the first of equal ones
        if len(largest) < 2 or shape[largest[1]] < group["min_dim_size_to_factor"]:
            return {"v": torch.zeros_like(parameter, dtype=wide)}
        shapes = ([1 if axis == mean else size for axis, size in enumerate(shape)] for mean in largest)
        return {
            name: torch.zeros(shape, dtype=wide, device=parameter.device)
            for name, shape in zip(("vr", "vc"), shapes, strict=True)
        }

    def update(self, values: torch.Tensor, gradient: torch.Tensor, state: State, group: Mapping[str, Any]) -> None:
        decay = 1 - (float(state["step"]) + 1) ** -group["decay_exponent"]
        if "v" in state:
            update = _divided_by_root(gradient, state["v"], decay)
        else:
            update = _divided_by_factors(gradient, state["vr"], state["vc"], decay)
        rate = group["lr"] / (root_mean_square(update) / _CLIPPING_THRESHOLD).clamp(min=1)
        if group["scale_parameter"]:
            rate = rate * root_mean_square(values).clamp(min=_SCALE_EPSILON)
        values.addcmul_(update.view_as(values), rate, value=-1)


def _divided_by_root(gradient: torch.Tensor, v: torch.Tensor, decay: float) -> torch.Tensor:
    """Gradient times rsqrt(v), after v has been updated."""
    v.mul_(decay).addcmul_(gradient, gradient, value=1 - decay).add_((1 - decay) * _SQUARE_EPSILON)
    return v.rsqrt().mul_(gradient)


def _divided_by_factors(gradient: torch.Tensor, vr: torch.Tensor, vc: torch.Tensor, decay: float) -> torch.Tensor:
    """The same where only means of v are stored, in the shape that they tell."""
    gradient = reshaped(gradient, torch.broadcast_shapes(vr.shape, vc.shape))
    d0, d1 = (_lacking_axis(mean, other) for mean, other in ((vr, vc), (vc, vr)))
    squares = gradient.square()
    for mean, axis in ((vr, d0), (vc, d1)):
        mean.mul_(decay).add_(mean_over(squares, axis).add_(_SQUARE_EPSILON), alpha=1 - decay)
    rows = vr.div(mean_over(vr, d1)).rsqrt_()
    return torch.mul(gradient, rows, out=squares).mul_(vc.rsqrt())


def _lacking_axis(mean: torch.Tensor, other: torch.Tensor) -> int:
    """Axis that a mean was taken over: of size 1 in it, but not in the other mean."""
    return next(axis for axis, size in enumerate(mean.shape) if size == 1 != other.shape[axis])


class RMSScaledAdamW(_WholeParameterOptimizer):
    """AdamW whose learning rate is multiplied by `max(1e-3, rms(P))` for every parameter P, as Adafactor's is.

    As in nanoT5 (https://arxiv.org/abs/2309.02373), which pre-trains T5 with it, epsilon stands beside a second moment
    that is not corrected for its bias, and the decay of weights is not scaled by P; in `torch.optim.AdamW` it stands
    beside the corrected one.

    Args:
        parameters: or groups of them, as of any optimizer.
        lr: learning rate, relative to the parameters' root mean squares.
        betas: decays of the first and of the second moment.
        eps: added to the root of the second moment.
        weight_decay: multiplied by `lr`, the share of a weight that is taken away in a step.
    """

    def __init__(
        self,
        parameters: _ParameterGroups,
        lr: float = 2e-2,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
    ):
        super().__init__(parameters, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    def fresh_state(self, parameter: torch.Tensor, group: Mapping[str, Any], place: int) -> State:
        wide = torch.promote_types(parameter.dtype, torch.float32)
        return {name: torch.zeros_like(parameter, dtype=wide) for name in ("exp_avg", "exp_avg_sq")}

    def update(self, values: torch.Tensor, gradient: torch.Tensor, state: State, group: Mapping[str, Any]) -> None:
        (beta1, beta2), count = group["betas"], float(state["step"]) + 1
        state["exp_avg"].mul_(beta1).add_(gradient, alpha=1 - beta1)
        state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        root = state["exp_avg_sq"].sqrt().add_(group["eps"])
        correction = math.sqrt(1 - beta2**count) / (1 - beta1**count)
        rate = group["lr"] * correction * root_mean_square(values).clamp(min=_SCALE_EPSILON)
        values.addcmul_(torch.div(state["exp_avg"], root, out=root), rate, value=-1)
        if group["weight_decay"]:
            values.mul_(1 - group["lr"] * group["weight_decay"])


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
    """

    make: Callable[..., Optimizer]
    learning_rate: float | None
    plateau: int | None = None
    has_schedule: bool = True


def _make_adafactor(model: nn.Module, learning_rate: float, weight_decay: float) -> Optimizer:
    assert not weight_decay
    return Adafactor(_trained(model), learning_rate, original_axes(model))


def _make_adamw(model: nn.Module, learning_rate: float, weight_decay: float, **moments: Any) -> Optimizer:
    # XLA has no fused kernel; with its step on the device, no step takes a program of its own.
    on_xla = is_xla(next(model.parameters()).device)
    return AdamW(_with_decay(model, weight_decay), learning_rate, fused=not on_xla, capturable=on_xla, **moments)


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
    "adamw": _Preset(_make_adamw, 3e-4, has_schedule=False),
    "rms_adamw": _Preset(_make_rms_adamw, 2e-2, has_schedule=False),
}
PRESETS = tuple(_PRESETS)


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
