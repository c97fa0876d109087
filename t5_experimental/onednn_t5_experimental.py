# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Products with weights as oneDNN computes them on CPUs, in inference and in training.

Of float32, on processors that MKL was not made for, oneDNN multiplies up to a fifth faster than `F.linear`, and it
applies gelu and gate to its outputs before they leave the cache. What is not a bare `nn.Linear` (adapters, quantised
weights, hooks of offloading or sharding), or is watched, is called as it is (calls_t5_experimental.py).
"""

import platform
from functools import cache
from typing import Any

import torch
from torch import nn

from .calls_t5_experimental import is_bare_linear, is_traced, is_watched


_MIN_ROWS = 128
"""Below this, a call's overhead is larger than what it saves; generation has a path of its own."""


@cache
def _multiplies(dtype: torch.dtype) -> bool:
    """Whether oneDNN is there and computes in a type without emulating it."""
    if platform.machine() not in ("x86_64", "AMD64") or not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def is_eager_on_cpu(states: torch.Tensor) -> bool:
    """Whether `states` are on a CPU, in a pass that nothing traces, casts or transforms."""
    return (
        states.device.type == "cpu"
        and not is_traced()
        and not torch.is_autocast_enabled("cpu")
        and type(states) in (torch.Tensor, nn.Parameter)
    )


def _has_many_rows(states: torch.Tensor) -> bool:
    return states.shape[:-1].numel() >= _MIN_ROWS and is_eager_on_cpu(states) and not is_watched()


def is_plain_inference(states: torch.Tensor) -> bool:
    """Whether `states` `(..., d)` are many rows on a CPU, in a pass that nothing records, traces, casts or watches."""
    return not torch.is_grad_enabled() and _has_many_rows(states)


def are_bare(states: torch.Tensor, *linears: nn.Module) -> bool:
    """Whether all of `linears` do nothing but multiply `states`, many rows, by a matrix that oneDNN takes."""
    return (
        _has_many_rows(states)
        and _multiplies(states.dtype)
        and bool(torch.backends.mkldnn.enabled)
        and all(is_bare_linear(linear) and _is_on_cpu(linear.weight, states.dtype) for linear in linears)
    )


def _is_on_cpu(weight: Any, dtype: torch.dtype) -> bool:
    return weight.dtype == dtype and weight.device.type == "cpu"


class _Product(torch.autograd.Function):
    """`states @ weight.T` in float32; both products along the rows of `weight` are oneDNN's, forward and backward."""

    @staticmethod
    def forward(ctx: Any, states: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """`(..., in)` and `(out, in)` -> `(..., out)`."""
        ctx.save_for_backward(states, weight)
        return torch.ops.mkldnn._linear_pointwise(states, weight, None, "none", [], "")

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """`(..., out)` -> gradients of both, which can be derived again."""
        states, weight = ctx.saved_tensors
        grad_states = grad_weight = None
        if ctx.needs_input_grad[0]:
            # Who looks on may have come since the forward pass.
            takes_onednn = is_eager_on_cpu(grad_output) and not is_watched()
            grad_states = _Product.apply(grad_output, weight.t()) if takes_onednn else grad_output @ weight
        if ctx.needs_input_grad[1]:
            # oneDNN is no faster at this one. Not flattened, for which batched gradients have no rule.
            rows = grad_output.reshape(-1, grad_output.shape[-1])
            grad_weight = rows.t() @ states.reshape(-1, states.shape[-1])
        return grad_states, grad_weight


def product(states: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """`states @ weight.T`, `(rows, in)` and `(out, in)` -> `(rows, out)`, where no gradient is recorded."""
    if states.dtype == torch.float32 and _has_many_rows(states) and _multiplies(states.dtype):
        return torch.ops.mkldnn._linear_pointwise(states, weight, None, "none", [], "")
    return states @ weight.t()


def multiply(linear: nn.Module, states: torch.Tensor) -> torch.Tensor:
    """`linear(states)`, `(..., in)` -> `(..., out)`; in bfloat16 `F.linear` is oneDNN's already."""
    if states.dtype != torch.float32 or not are_bare(states, linear):
        return linear(states)
    return _Product.apply(states, linear.weight)


def multiply_gated(gate: nn.Linear, linear: nn.Linear, states: torch.Tensor) -> torch.Tensor:
    """`gelu(gate(states)) * linear(states)`, `(..., in)` -> `(..., out)`, with the gelu that is made of a tanh; both
    modules must be bare ([`are_bare`]), and no gradient is recorded."""
    gated = torch.ops.mkldnn._linear_pointwise(states, gate.weight, None, "gelu", [], "tanh")
    return torch.ops.mkldnn._linear_pointwise.binary(states, gated, linear.weight, None, "mul")
