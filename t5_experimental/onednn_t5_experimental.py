# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Linear layers computed by oneDNN on CPUs, in inference and in training.

In float32, on CPUs other than Intel's, oneDNN is up to 20% faster than `F.linear`, and it fuses GELU and gate. A module
that is not a bare `nn.Linear` (adapters, quantized weights, hooks for offloading or sharding), or that something
observes, is called as it is (calls_t5_experimental.py).
"""

import platform
from functools import cache
from typing import Any

import torch
from torch import nn
from transformers.activations import GELUTanh, NewGELUActivation

from .calls_t5_experimental import is_bare_linear, is_observed, is_untouched, may_read_values
from .self_check_t5_experimental import passes_check


_MIN_ROWS = 128
"""With fewer rows, the overhead of these checks exceeds the gain; for generation see decoding_t5_experimental.py."""


def supports(dtype: torch.dtype) -> bool:
    """Whether oneDNN is available, enabled, computes in a dtype natively, and rightly: its operators are not public."""
    return bool(torch.backends.mkldnn.enabled) and _is_native(dtype) and _is_right(dtype)


def _is_right(dtype: torch.dtype) -> bool:
    generator = torch.Generator().manual_seed(0)
    shapes = (5, 48), (32, 48), (32, 48), (5, 32)
    states, weight, gate, residual = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)

    def by_onednn() -> dict[str, torch.Tensor]:
        packed, packed_gate = pack(weight, 5), pack(gate, 5)
        return {
            "product": multiply(states, weight),
            "product with a packed weight": multiply(states, packed),
            "sum": multiply_and_add(states, packed, residual),
            "gated product": multiply_gated(states, packed_gate, packed),
        }

    def exactly() -> dict[str, torch.Tensor]:
        product, gated = (states.double() @ matrix.double().t() for matrix in (weight, gate))
        gated = torch.nn.functional.gelu(gated, approximate="tanh") * product
        return {
            "product": product,
            "product with a packed weight": product,
            "sum": residual.double() + product,
            "gated product": gated,
        }

    return passes_check(("oneDNN's linear layers", dtype), by_onednn, exactly, 1e-2 if dtype.itemsize == 2 else 1e-5)


@cache
def _is_native(dtype: torch.dtype) -> bool:
    if platform.machine() not in ("x86_64", "AMD64") or not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def is_tanh_gelu(act: nn.Module) -> bool:
    """Whether `act` is the tanh approximation of GELU, which oneDNN fuses with a linear layer."""
    return is_untouched(act, GELUTanh, NewGELUActivation)


def is_eager_on_cpu(states: torch.Tensor) -> bool:
    """Whether `states` are on a CPU, in a pass without tracing, autocast or transforms."""
    return may_read_values(states, wait=False) and not torch.is_autocast_enabled("cpu")


def _has_many_rows(states: torch.Tensor) -> bool:
    if torch.compiler.is_compiling():  # before sizes are compared: an exported graph takes all of them
        return False
    return states.shape[:-1].numel() >= _MIN_ROWS and is_eager_on_cpu(states) and not is_observed()


def is_plain_inference(states: torch.Tensor) -> bool:
    """Whether `states` `(..., d)` are many rows on a CPU, in a pass without gradients, autocast or observers."""
    return not torch.is_grad_enabled() and _has_many_rows(states)


def are_bare(states: torch.Tensor, *linears: nn.Module, computed_in: torch.dtype | None = None) -> bool:
    """Whether `states` are many rows and all of `linears` are bare linear layers of their dtype that oneDNN supports.

    Args:
        states: `(..., in)`.
        linears: modules.
        computed_in: dtype of the product, if not that of the states.
    """
    return (
        _has_many_rows(states)
        and supports(computed_in or states.dtype)
        and all(is_bare_linear(linear) and _is_on_cpu(linear.weight, states.dtype) for linear in linears)
    )


def _is_on_cpu(weight: Any, dtype: torch.dtype) -> bool:
    return weight.dtype == dtype and weight.device.type == "cpu"


def pack(weight: torch.Tensor, rows: int) -> torch.Tensor:
    """A copy of `weight` `(out, in)` in the layout that oneDNN prefers for a number of input rows."""
    return torch.ops.mkldnn._reorder_linear_weight(weight, rows)


def multiply(states: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """`states @ weight.T` by oneDNN: `(..., in)` and `(out, in)`, packed or not, -> `(..., out)`. Like the next two, it
    records no gradient and does not check whether oneDNN [`supports`] the dtype."""
    return torch.ops.mkldnn._linear_pointwise(states, weight, None, "none", [], "")


def multiply_and_add(states: torch.Tensor, weight: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
    """`residual + states @ weight.T`, see [`multiply`]; `residual` `(..., out)`."""
    return torch.ops.mkldnn._linear_pointwise.binary(states, residual, weight, None, "add")


def multiply_gated(states: torch.Tensor, gate: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """`gelu(states @ gate.T) * (states @ weight.T)` with the tanh approximation of GELU, see [`multiply`]."""
    gated = torch.ops.mkldnn._linear_pointwise(states, gate, None, "gelu", [], "tanh")
    return torch.ops.mkldnn._linear_pointwise.binary(states, gated, weight, None, "mul")


class Linear(torch.autograd.Function):
    """`states @ weight.T` in float32. oneDNN computes the output, and the gradient of `states`."""

    @staticmethod
    def forward(ctx: Any, states: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """`(..., in)` and `(out, in)` -> `(..., out)`."""
        ctx.save_for_backward(states, weight)
        return multiply(states, weight)

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """`(..., out)` -> gradients of both, which are differentiable themselves."""
        states, weight = ctx.saved_tensors
        grad_states = grad_weight = None
        if ctx.needs_input_grad[0]:
            # A mode or hook may be active now that was not in the forward pass.
            uses_onednn = is_eager_on_cpu(grad_output) and not is_observed()
            grad_states = Linear.apply(grad_output, weight.t()) if uses_onednn else grad_output @ weight
        if ctx.needs_input_grad[1]:
            # oneDNN is no faster here. `flatten` does not support batched gradients.
            rows = grad_output.reshape(-1, grad_output.shape[-1])
            grad_weight = rows.t() @ states.reshape(-1, states.shape[-1])
        return grad_states, grad_weight


def matmul(states: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """`states @ weight.T`, `(rows, in)` and `(out, in)` -> `(rows, out)`; for code that records no gradient."""
    if states.dtype == torch.float32 and _has_many_rows(states) and supports(states.dtype):
        return multiply(states, weight)
    return states @ weight.t()
