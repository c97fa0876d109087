# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Products with weights as oneDNN computes them on CPUs, in inference and in training.

Of float32, on processors that MKL was not made for, oneDNN multiplies up to a fifth faster than `F.linear`, and it
applies gelu and gate to its outputs before they leave the cache. Whatever is not a bare `nn.Linear` (adapters,
quantised weights, hooks of offloading or sharding) is called as it is.
"""

import platform
from functools import cache
from typing import Any

import torch
from torch import nn


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
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
        and type(states) in (torch.Tensor, nn.Parameter)
        and not torch._C._are_functorch_transforms_active()
    )


def _has_many_rows(states: torch.Tensor) -> bool:
    return states.shape[:-1].numel() >= _MIN_ROWS and is_eager_on_cpu(states)


def is_plain_inference(states: torch.Tensor) -> bool:
    """Whether `states` `(..., d)` are many rows on a CPU, in a pass that nothing records, traces or casts."""
    return not torch.is_grad_enabled() and _has_many_rows(states)


def are_bare(states: torch.Tensor, *linears: nn.Module) -> bool:
    """Whether all of `linears` do nothing but multiply `states`, many rows, by a matrix that oneDNN takes."""
    return (
        _has_many_rows(states)
        and _multiplies(states.dtype)
        and bool(torch.backends.mkldnn.enabled)
        and all(_is_bare(linear, states.dtype) for linear in linears)
    )


def _is_bare(linear: nn.Module, dtype: torch.dtype) -> bool:
    return (
        type(linear) is nn.Linear
        and linear.bias is None
        # Before a look at the weight: DeepSpeed's ZeRO-3 gathers it then, and all processes have to take part, whatever
        # the number of rows that each of them has.
        and "forward" not in vars(linear)
        and not (linear._forward_hooks or linear._forward_pre_hooks)
        and not (linear._backward_hooks or linear._backward_pre_hooks)
        and type(linear.weight) is nn.Parameter
        and linear.weight.dtype == dtype
        and linear.weight.device.type == "cpu"
    )


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
            grad_states = _Product.apply(grad_output, weight.t())
        if ctx.needs_input_grad[1]:
            # oneDNN is no faster at this one.
            grad_weight = grad_output.flatten(0, -2).t() @ states.flatten(0, -2)
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
