# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Compares an implementation of talking-heads attention with the formula on a small problem, before its first use."""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch

from .attention_problem_t5_experimental import _Problem
from .self_check_t5_experimental import passes_check
from .visibility_t5_experimental import Visibility


Forward = Callable[[_Problem], torch.Tensor]
Backward = Callable[[_Problem, torch.Tensor], tuple[torch.Tensor | None, ...]]

# Largest error of the output or of a gradient, relative to its norm: about six times that of attention in blocks of
# rows in the same dtype.
_TOLERANCES = {torch.bfloat16: 0.03, torch.float16: 0.004}
_RESULTS = ("output", "query", "key", "value", "logits_projection", "weights_projection", "diagonals")

# Two examples, more than one tile of queries and of keys, none of which fills its last tile.
_BATCH, _QUERIES, _KEYS, _PADDING = 2, 19, 30, 6


class AttentionSizes(NamedTuple):
    """Sizes that kernels are compiled for; axes as in attention_t5_experimental.py."""

    key_heads: int
    heads: int
    value_heads: int
    key_size: int
    value_size: int


def computes_talking_heads(
    name: str,
    sizes: AttentionSizes,
    dtype: torch.dtype,
    device: torch.device,
    implementation: Callable[[], tuple[Forward, Backward]],
) -> bool:
    """Whether an implementation of talking-heads attention agrees with all pairs at once in output and all gradients,
    on a small random causal problem with bias and padding. See [`passes_check`]: one warning if it does not.

    Args:
        name: of the implementation, in the plural.
        sizes: of the problem.
        dtype: of queries, keys and values, bfloat16 or float16.
        device: of the same.
        implementation: returns forward and backward pass, which the check alone calls; it may raise.
    """

    def candidate() -> dict[str, torch.Tensor]:
        forward, backward = implementation()
        *states, grad_output = (tensor.to(device) for tensor in _random_inputs(sizes, dtype))
        with torch.no_grad():
            inputs: tuple[Any, ...] = *states, _visibility(device), 0.0, None, _QUERIES
            problem = _Problem(*inputs)
            results = forward(problem), *backward(problem, grad_output)
        return {name: tensor for name, tensor in zip(_RESULTS, results, strict=True) if tensor is not None}

    def all_pairs() -> dict[str, torch.Tensor]:
        *states, grad_output = (tensor.to(device, torch.float64) for tensor in _random_inputs(sizes, dtype))
        output = _formula([tensor.requires_grad_() for tensor in states], _visibility(device))
        return dict(zip(_RESULTS, (output, *torch.autograd.grad(output, states, grad_output)), strict=True))

    return passes_check((name, device, dtype, sizes), candidate, all_pairs, _TOLERANCES[dtype])


def _random_inputs(sizes: AttentionSizes, dtype: torch.dtype) -> list[torch.Tensor]:
    """Query, key, value, projections, diagonals and the gradient of the output, rounded to `dtype`; logits before the
    softmax are about 1."""
    shapes_and_scales: list[tuple[tuple[int, ...], float]] = [
        ((_BATCH, sizes.key_heads, _QUERIES, sizes.key_size), sizes.key_size**-0.25),
        ((_BATCH, sizes.key_heads, _KEYS, sizes.key_size), sizes.key_size**-0.25),
        ((_BATCH, sizes.value_heads, _KEYS, sizes.value_size), 1.0),
        ((sizes.key_heads, sizes.heads), sizes.key_heads**-0.5),
        ((sizes.heads, sizes.value_heads), sizes.heads**-0.5),
        ((sizes.heads, _QUERIES + _KEYS - 1), 1.0),
        ((_BATCH, sizes.value_heads, _QUERIES, sizes.value_size), 1.0),
    ]
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu") * scale).to(dtype)
        for shape, scale in shapes_and_scales
    ]


def _visibility(device: torch.device) -> Visibility:
    """Causality and padding each hide some keys: the last query sees the last key."""
    mask = torch.ones(_BATCH, 1, 1, _KEYS, dtype=torch.bool, device=device)
    mask[0, ..., _KEYS - _PADDING :] = False
    mask[1, ..., :2] = False
    return Visibility(_QUERIES, _KEYS, mask, past_length=_KEYS - _QUERIES, causal=True)


def _formula(inputs: list[torch.Tensor], visible: Visibility) -> torch.Tensor:
    """Talking heads as in the paper; the mask leaves a key to every query."""
    query, key, value, logits_projection, weights_projection, diagonals = inputs
    queries, keys = torch.arange(_QUERIES, device=query.device), torch.arange(_KEYS, device=query.device)
    bias = diagonals[:, keys[None, :] - queries[:, None] + _QUERIES - 1]
    mask = cast(torch.Tensor, visible.all_rows(query.device))
    logits = torch.einsum("bkid,bkjd,kh->bhij", query, key, logits_projection) + bias
    weights = logits.masked_fill(~mask, -torch.inf).softmax(-1)
    return torch.einsum("bhij,hc->bcij", weights, weights_projection) @ value
