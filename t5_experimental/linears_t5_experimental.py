# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Linear layers computed by the fastest kernel of this CPU (kernels_t5_experimental.py).

A session (decoding_t5_experimental.py) copies weights for their kernels: [`PreparedLinear`] for the decoder's steps,
[`Int8Linear`] for modules that are called, which [`apply_linear`] finds in [`INT8_LINEARS`].
"""

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional as F

from .calls_t5_experimental import is_bare_linear
from .kernels_t5_experimental import (
    MOST_ROWS,
    Choice,
    Kernel,
    bucket,
    choose,
    int8_kernels,
    is_emulated,
    linear_in_float32,
)
from .onednn_t5_experimental import (
    Linear,
    are_bare,
    is_eager_on_cpu,
    is_plain_inference,
    is_tanh_gelu,
    multiply_and_add,
    multiply_gated,
)


class PreparedLinear:
    """One or several linear layers with the same input.

    Args:
        linears: modules without bias; their parameters are used in place until [`PreparedLinear.prepare`].
    """

    def __init__(self, *linears: nn.Linear):
        self.weights = [linear.weight for linear in linears]
        self.sizes = [weight.shape[0] for weight in self.weights]
        self.shape = sum(self.sizes), self.weights[0].shape[1]
        self.kernel: Kernel | None = None
        self.copy: Any = None  # for the kernel; None: the parameters are used
        self._copies: dict[str, Any] = {}  # by name of the kernel
        self._joins = True

    def prepare(self, kernel: Kernel, joins: bool = True) -> None:
        """From now on a kernel computes the product, with a copy of the weights unless it takes them as they are.

        Args:
            kernel: what multiplies.
            joins: copy several weights into one for oneDNN although it takes them as they are: one product of all is
                faster.
        """
        self.kernel, self._joins = kernel, joins
        is_ready = kernel.takes_weights and all(weight.dtype == kernel.dtype for weight in self.weights)
        self.copy = None if is_ready and not kernel.fuses else self._copy_for(kernel)

    def _copy_for(self, kernel: Kernel) -> Any:
        if kernel.name not in self._copies:
            typed = [weight.detach().to(kernel.dtype) for weight in self.weights]
            self._copies[kernel.name] = self._pack(kernel, typed)
        return self._copies[kernel.name]

    def _pack(self, kernel: Kernel, weights: list[torch.Tensor]) -> Any:
        if len(weights) > 1 and kernel.takes_weights and not self._joins:
            return tuple(weights)
        return kernel.pack(torch.cat(weights) if len(weights) > 1 else weights[0])

    def __call__(self, states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """`(..., in)` -> `(..., out)` of every layer."""
        if self.kernel is None or self.copy is None:
            return tuple(F.linear(states, weight) for weight in self.weights)
        if isinstance(self.copy, tuple):
            return tuple(self.kernel.multiply(states, copy) for copy in self.copy)
        joined = self.kernel.multiply(states, self.copy)
        return joined.split(self.sizes, -1) if len(self.sizes) > 1 else (joined,)

    def added_to(self, residual: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        """`residual` `(..., out)` plus the output of the only layer for `(..., in)`."""
        if self.kernel is not None and self.copy is not None and self.kernel.fuses:
            return multiply_and_add(states, self.copy, residual)
        return residual + self(states)[0]


class PreparedGatedLinear(PreparedLinear):
    """`act(W_0 x) * W_1 x`; with the tanh approximation of GELU, oneDNN fuses it.

    Args:
        linears: W_0 and W_1.
        act: the activation.
    """

    def __init__(self, *linears: nn.Linear, act: nn.Module):
        super().__init__(*linears)
        self.act = act
        self.is_tanh_gelu = is_tanh_gelu(act)

    def _pack(self, kernel: Kernel, weights: list[torch.Tensor]) -> Any:
        """Separate copies if oneDNN fuses the gate."""
        if self.is_tanh_gelu and kernel.fuses:
            return tuple(kernel.pack(weight) for weight in weights)
        return super()._pack(kernel, weights)

    def gated(self, states: torch.Tensor) -> torch.Tensor:
        """`(..., in)` -> `(..., out)`."""
        if self.is_tanh_gelu and self.copy is not None and self.kernel is not None and self.kernel.fuses:
            return multiply_gated(states, *self.copy)
        gate, linear = self(states)
        # `act` itself may run eight operators.
        return (F.gelu(gate, approximate="tanh") if self.is_tanh_gelu else self.act(gate)) * linear


class Int8Linear(PreparedLinear):
    """A linear layer whose weight is rounded to 8 bits where that is faster.

    Args:
        linear: a module without bias.
    """

    def __init__(self, linear: nn.Linear):
        super().__init__(linear)
        self.choices: dict[int, Choice] = {}  # by number of rows, see `bucket`

    def product(self, states: torch.Tensor) -> torch.Tensor:
        """`(..., in)` -> `(..., out)` in the dtype of `states`."""
        rows = bucket(states.shape[:-1].numel())
        if rows not in self.choices:
            self.choices[rows] = choose(int8_kernels(self.weights[0].dtype), [self.shape], rows)[0]
        kernel = self.choices[rows].kernel
        if not kernel.is_int8:  # it takes the weight as it is
            (weight,) = self.weights
            return kernel.multiply(states, weight.detach())
        copy = self._copy_for(kernel)  # not kept as `copy`: other threads may be in this method
        return in_chunks(lambda rows: kernel.multiply(rows.float(), copy).to(states.dtype), states)


def in_chunks(compute: Callable[[torch.Tensor], torch.Tensor], states: torch.Tensor) -> torch.Tensor:
    """`compute(states)`, `(..., in)` -> `(..., out)`, of rows that do not depend on each other: in chunks whose
    intermediate results stay in the CPU's cache. Passes over memory take longer than products of integers."""
    if states.shape[:-1].numel() <= MOST_ROWS:
        return compute(states)
    computed = torch.cat([compute(rows) for rows in states.flatten(0, -2).split(MOST_ROWS)])
    return computed.unflatten(0, states.shape[:-1])


INT8_LINEARS: ContextVar[Mapping[int, Int8Linear]] = ContextVar("INT8_LINEARS", default=MappingProxyType({}))
"""Linear layers that are computed in 8 bits in inference, by the identity of the module."""


def int8_linear(linear: nn.Module) -> Int8Linear | None:
    """What a session computes in 8 bits in place of `linear`, in a pass without gradients that nothing observes."""
    if torch.compiler.is_compiling():
        return None
    found = INT8_LINEARS.get().get(id(linear))
    return None if found is None or torch.is_grad_enabled() or not is_bare_linear(linear) else found


def apply_linear(module: nn.Module, states: torch.Tensor) -> torch.Tensor:
    """`module(states)`, `(..., in)` -> `(..., out)`."""
    replacement = int8_linear(module)
    if replacement is not None and is_eager_on_cpu(states):
        return replacement.product(states)
    if states.dtype == torch.float32:
        return Linear.apply(states, module.weight) if are_bare(states, module) else module(states)
    if is_plain_inference(states) and is_emulated(states.dtype) and is_bare_linear(module):
        return linear_in_float32(states, cast(torch.Tensor, module.weight))
    return module(states)  # in bfloat16, `F.linear` itself uses oneDNN


def fuses_gate(states: torch.Tensor, *linears: nn.Module) -> bool:
    """Whether [`gated_product`] may compute many rows `states` with these modules: oneDNN multiplies in their dtype, or
    in float32 where the CPU emulates it, and no session rounds them to 8 bits."""
    return (
        is_plain_inference(states)
        and are_bare(states, *linears, computed_in=_computed_in(states.dtype))
        and not any(int8_linear(linear) for linear in linears)
    )


def gated_product(states: torch.Tensor, gate: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """`gelu(states @ gate.T) * (states @ weight.T)` with the tanh approximation of GELU, where [`fuses_gate`]."""
    dtype = _computed_in(states.dtype)
    return multiply_gated(states.to(dtype), gate.to(dtype), weight.to(dtype)).to(states.dtype)


def _computed_in(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if is_emulated(dtype) else dtype
