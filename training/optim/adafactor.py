# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""The original's Adafactor, which decides by the shapes of the Mesh variables what to factor."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from torch import nn

from t5_experimental.attention_t5_experimental import T5Attention
from t5_experimental.configuration_t5_experimental import TALKING_HEADS
from t5_experimental.original import FACTORED_FROM, TALKING_HEADS_AXES, factored_dimensions, labels_of

from ..engines.fsdp2 import mean_over, reshaped, root_mean_square
from .base import _SCALE_EPSILON, _FullParameterOptimizer, _ParameterGroups
from .slots import State


# The original's epsilon1, and the root mean square that updates are clipped to.
_SQUARE_EPSILON = 1e-30


_CLIPPING_THRESHOLD = 1.0


class Axes(NamedTuple):
    """The layout of a parameter in the original's variable.

    Attributes:
        shape: a view of the parameter in which every dimension of the variable is an axis.
        order: these axes in the order of the variable's dimensions.
    """

    shape: tuple[int, ...]
    order: tuple[int, ...]


def original_axes(model: nn.Module) -> dict[torch.Tensor, Axes]:
    """Axes of the trained parameters, except norms. The factoring rule depends on the variable's dimensions and their
    order: it takes the two largest, and of equal ones the first counts as larger."""
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
    """Axes of attention parameters that differ from other layers: talking heads' kernels have three axes, and the bias
    table is transposed."""
    spec, found = attention.spec, {}
    if hasattr(attention, "relative_attention_bias"):
        table = attention.relative_attention_bias.weight
        found[table] = Axes(tuple(table.shape), (1, 0))
    if spec.attention_type != TALKING_HEADS:
        return found
    sizes = {**asdict(spec), "d_model": attention.q.in_features}
    for name, (original, ours) in TALKING_HEADS_AXES.items():
        labels = labels_of(ours)
        shape = tuple(sizes[label] for label in labels)
        found[getattr(attention, name).weight] = Axes(shape, tuple(labels.index(label) for label in original.split()))
    return found


class Adafactor(_FullParameterOptimizer):
    """Adafactor without momentum, as the original trains; the caller sets the learning rate.

    With g the gradient, t the number of updates before, and `decay = 1 - (t + 1) ** -0.8`, a parameter P changes by

        v = decay * v + (1 - decay) * (g**2 + 1e-30)
        x = g * rsqrt(v)
        P = P - lr * max(1e-3, rms(P)) * x / max(1, rms(x))

    If two of P's dimensions have 128 elements or more, the state has `vr` and `vc` instead of v: its means over the
    largest and over the second largest dimension; v is then `vr * vc / mean(vr)`. Each has an axis of size 1 where the
    mean was taken, in the shape that [`Axes`] gives, so their shapes tell the axes.

    Source: `AdafactorOptimizer` in mesh_tensorflow/optimize.py; https://arxiv.org/abs/1804.04235.

    Args:
        parameters: or groups of them, as for any optimizer.
        lr: learning rate, relative to the parameters' root mean squares.
        axes: of parameters whose layout differs from the original's, see [`original_axes`].
        scale_parameter: multiply by `max(1e-3, rms(P))`.
        decay_exponent: exponent of t in the decay.
        min_dim_size_to_factor: size that both dimensions must reach.
    """

    def __init__(
        self,
        parameters: _ParameterGroups,
        lr: float = 1e-3,
        axes: Mapping[torch.Tensor, Axes] | None = None,
        scale_parameter: bool = True,
        decay_exponent: float = 0.8,
        min_dim_size_to_factor: int = FACTORED_FROM,
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
        factored = factored_dimensions([shape[axis] for axis in order], group["min_dim_size_to_factor"])
        if factored is None:
            return {"v": torch.zeros_like(parameter, dtype=wide)}
        shapes = ([1 if axis == order[k] else size for axis, size in enumerate(shape)] for k in factored)
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
    """The same for a factored v, in the shape that its means imply."""
    gradient = reshaped(gradient, torch.broadcast_shapes(vr.shape, vc.shape))
    d0, d1 = (_lacking_axis(mean, other) for mean, other in ((vr, vc), (vc, vr)))
    squares = gradient.square()
    for mean, axis in ((vr, d0), (vc, d1)):
        mean.mul_(decay).add_(mean_over(squares, axis).add_(_SQUARE_EPSILON), alpha=1 - decay)
    rows = vr.div(mean_over(vr, d1)).rsqrt_()
    return torch.mul(gradient, rows, out=squares).mul_(vc.rsqrt())


def _lacking_axis(mean: torch.Tensor, other: torch.Tensor) -> int:
    """The axis that a mean was taken over: it has size 1 here, but not in the other mean."""
    return next(axis for axis, size in enumerate(mean.shape) if size == 1 != other.shape[axis])


class PromptAdafactor(Adafactor):
    """Adafactor as the original tunes prompts: without parameter scaling, and with weight decay.

    The decay is the fraction of each value that a step removes, not multiplied by the learning rate (but a learning
    rate of 0 disables it). Source: t5x/adafactor.py with `multiply_by_parameter_scale = False`, as in
    google-research/prompt-tuning.

    Args:
        parameters: or groups of them, as for any optimizer.
        lr: root mean square of an update, at most.
        weight_decay: that fraction.
    """

    def __init__(self, parameters: Iterable[Any], lr: float = 0.3, weight_decay: float = 1e-5):
        super().__init__(parameters, lr, scale_parameter=False)
        for group in self.param_groups:
            group.setdefault("weight_decay", weight_decay)

    def update(
        self, values: torch.Tensor, gradient: torch.Tensor, state: dict[str, torch.Tensor], group: Mapping[str, Any]
    ) -> None:
        # torch initializes states for FSDP's checkpoints with a step at learning rate 0, which must not move anything.
        if group["lr"]:
            values.mul_(1 - group["weight_decay"])
        super().update(values, gradient, state, group)
