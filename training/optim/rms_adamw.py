# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""AdamW with the learning rate scaled by each parameter's size, as in nanoT5."""

import math
from collections.abc import Mapping
from typing import Any

import torch

from ..engines.fsdp2 import root_mean_square
from .base import _SCALE_EPSILON, _FullParameterOptimizer, _ParameterGroups
from .slots import State


class RMSScaledAdamW(_FullParameterOptimizer):
    """AdamW whose learning rate is multiplied by `max(1e-3, rms(P))` for every parameter P, as in Adafactor.

    As in nanoT5 (https://arxiv.org/abs/2309.02373), which pre-trains T5 with it, epsilon is added to the square root of
    the second moment before bias correction, and weight decay is not scaled by P. `torch.optim.AdamW` adds epsilon
    after the correction.

    Args:
        parameters: or groups of them, as for any optimizer.
        lr: learning rate, relative to the parameters' root mean squares.
        betas: decays of the first and second moments.
        eps: added to the root of the second moment.
        weight_decay: fraction of a weight that a step removes, divided by `lr`.
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
