# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Attention in bounded memory: exact, in blocks of query rows, recomputed in the backward pass.

    J = q k^T        L = J mixed by P_l + bias        W = softmax(L)        U = W mixed by P_w        O = dropout(U) v

This is talking-heads attention; plain attention is the same without P_l and P_w, with L = J + bias and U = W. J, L, W
and U each have heads x queries x keys elements, and moving them through memory takes several times longer than
computing them. Here they exist only for the query rows of one block, in buffers that stay in the CPU cache and are
reused for all blocks and batch elements. The backward pass recomputes them from q and k, so only q, k, v and the output
are saved. The second mix needs the finished softmax and so all keys of a row: keys are not split. On CUDA devices,
the kernels in attention_triton_t5_experimental.py compute talking heads instead, if they support the inputs.

The relative position bias is constant along diagonals and given as one vector per head. A block with its queries in
reverse order reads it through a view with equal strides for queries and keys, and the gradient of a diagonal is the sum
over a column of a skewed view.

Axes are named as in attention_t5_experimental.py; r is the number of query rows in a block.
"""

import importlib.util
import os
import re
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry, register_flop_formula

from .attention_check_t5_experimental import AttentionSizes, Backward, Forward, computes_talking_heads
from .attention_problem_t5_experimental import _Problem
from .attention_rows_t5_experimental import _backward, _empty_output, _forward
from .self_check_t5_experimental import asked_while_compiling
from .visibility_t5_experimental import Visibility


# Size of one buffer of heads x rows x keys, and the smallest number of rows with efficient matmuls. On CPUs, a few
# buffers fit into the cache; on other devices, few and large kernels matter more.
_BUFFER_BYTES = {"cpu": 2**21}
_OTHER_BUFFER_BYTES = 2**28
_MIN_ROWS = 16

# Instead of a number of rows: use the kernels in attention_triton_t5_experimental.py.
USE_TRITON = 0
# They also support float32 and more heads, but need more shared memory for them than many devices have.
_TRITON_DTYPES = (torch.bfloat16, torch.float16)
_TRITON_MOST_HEADS = 32
# "0" never uses them, "force" uses them without comparing them with the exact path first.
_SWITCH = os.environ.get("T5_EXPERIMENTAL_TRITON", "1")
_UNCHECKED = _SWITCH == "force"
# torch 2.13 depends on Triton 3.7; 3.5 does not compile the kernels. ROCm devices are "cuda", too, but the kernels are
# untested there.
_HAS_TRITON = (
    _SWITCH != "0"
    and (torch.__version__ >= "2.13" or _UNCHECKED)
    and torch.version.hip is None
    and importlib.util.find_spec("triton") is not None
)


def block_rows(heads: int, query_length: int, key_length: int, dtype: torch.dtype, device: torch.device) -> int:
    """Query rows of a block.

    Args:
        heads: the largest of the three head counts.
        query_length: n.
        key_length: m.
        dtype: of the queries.
        device: of the queries.
    """
    budget = _BUFFER_BYTES.get(device.type, _OTHER_BUFFER_BYTES)
    fitting = budget // (heads * key_length * dtype.itemsize)
    return max(1, min(query_length, max(_MIN_ROWS, fitting)))


def uses_triton(heads: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the Triton kernels are used, if they pass their check: in half precision on CUDA devices from Ampere on,
    unless the environment set `T5_EXPERIMENTAL_TRITON=0` when this module was imported.

    Args:
        heads: the largest of the three head counts.
        dtype: of the queries.
        device: of the queries.
    """
    if device.type != "cuda" or not _HAS_TRITON or dtype not in _TRITON_DTYPES or heads > _TRITON_MOST_HEADS:
        return False
    return torch.cuda.get_device_properties(device).major >= 8


# The copy of this file in a converted folder registers its own operators next to those of the installed package.
_NAME = "t5_experimental::" + re.sub(r"\W", "_", __name__)
_INPUTS = (
    "Tensor query, Tensor key, Tensor value, Tensor? logits_projection, Tensor? weights_projection, Tensor? diagonals, "
    "Tensor? mask, Tensor? query_segments, Tensor? key_segments, Tensor past_length, bool causal, float dropout, "
    "Tensor? seed, SymInt rows"
)


def _problem(inputs: tuple[Any, ...]) -> _Problem:
    """Builds a problem from the inputs of the operators."""
    query, key, value, logits_projection, weights_projection, diagonals, *mask, dropout, seed, rows = inputs
    visible = Visibility(query.shape[2], key.shape[2], *mask)
    return _Problem(query, key, value, logits_projection, weights_projection, diagonals, visible, dropout, seed, rows)


def _passes(problem: _Problem) -> tuple[Forward, Backward]:
    """Forward and backward implementation, chosen by `problem.rows`, so that both match."""
    return (_forward, _backward) if problem.rows != USE_TRITON else _kernels()


def _kernels() -> tuple[Forward, Backward]:
    from .attention_triton_t5_experimental import backward, forward

    return forward, backward


@asked_while_compiling
def kernels_are_right(sizes: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the Triton kernels compile on this device and compute what they should, see [`computes_talking_heads`].

    Args:
        sizes: the fields of [`AttentionSizes`].
        dtype: of queries, keys and values, bfloat16 or float16.
        device: of the same.
    """
    name = "Triton kernels of talking-heads attention"
    return computes_talking_heads(name, AttentionSizes(*sizes), dtype, device, _kernels)


@torch.library.custom_op(_NAME, mutates_args=(), schema=f"({_INPUTS}) -> Tensor")
def _blockwise_attention(*inputs: Any) -> torch.Tensor:
    """A custom operator, opaque to `torch.compile`."""
    problem = _problem(inputs)
    forward, _ = _passes(problem)
    with torch.autocast(inputs[0].device.type, enabled=False):
        return forward(problem)


@torch.library.custom_op(
    _NAME + "_backward",
    mutates_args=(),
    schema=f"(Tensor grad_output, {_INPUTS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _blockwise_attention_backward(grad_output: torch.Tensor, *inputs: Any) -> tuple[torch.Tensor, ...]:
    problem = _problem(inputs)
    _, backward = _passes(problem)
    with torch.autocast(grad_output.device.type, enabled=False):
        grads = backward(problem, grad_output)
    return tuple(
        inputs[0].new_empty(0) if x is None or grad is None else grad.to(x.dtype).contiguous()
        for grad, x in zip(grads, inputs[:6], strict=True)
    )


@_blockwise_attention.register_fake
def _(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *unused: Any) -> torch.Tensor:
    return _empty_output(query, value)


@_blockwise_attention_backward.register_fake
def _(grad_output: torch.Tensor, *inputs: Any) -> tuple[torch.Tensor, ...]:
    return tuple(inputs[0].new_empty(0) if x is None else x.new_empty(x.shape) for x in inputs[:6])


def _save(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    *tensors, ctx.causal, ctx.dropout, seed, ctx.rows = inputs
    ctx.save_for_backward(*tensors, seed)


def _gradients(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    *tensors, seed = ctx.saved_tensors
    grads = _blockwise_attention_backward(grad_output, *tensors, ctx.causal, ctx.dropout, seed, ctx.rows)
    return (*(None if x is None else grad for grad, x in zip(grads, tensors[:6], strict=True)), *[None] * 8)


def _no_second_gradients(ctx: Any, *grads: torch.Tensor) -> None:
    raise RuntimeError(
        'Blockwise attention has no second derivatives: load the model with `attn_implementation="eager"`.'
    )


_blockwise_attention.register_autograd(_gradients, setup_context=_save)
_blockwise_attention_backward.register_autograd(_no_second_gradients)


def _flops(
    query: torch.Size,
    key: torch.Size,
    value: torch.Size,
    logits_projection: torch.Size | None,
    weights_projection: torch.Size | None,
    *unused: Any,
    out_shape: Any = None,
) -> int:
    """FLOPs of the same attention with all pairs at once, from shapes."""
    batch, key_heads, queries, key_size = query
    _, value_heads, keys, value_size = value
    per_pair = key_heads * key_size + value_heads * value_size
    for matrix in (logits_projection, weights_projection):
        per_pair += 0 if matrix is None else matrix[0] * matrix[1]
    return 2 * batch * queries * keys * per_pair


def _flops_backward(grad_output: torch.Size, *inputs: Any, out_shape: Any = None) -> int:
    """A matmul has two gradients, which are matmuls of the same size."""
    return 2 * _flops(*inputs)


for _operator, _formula in ((_blockwise_attention, _flops), (_blockwise_attention_backward, _flops_backward)):
    _packet = _operator._opoverload.overloadpacket
    if _packet not in flop_registry:  # already there if this file is imported twice
        register_flop_formula(_packet)(_formula)


def attention_operator() -> Any:
    """The operator that [`blockwise_attention`] calls, for checkpointing policies."""
    return _blockwise_attention._opoverload


def _kernels_apply(
    query: torch.Tensor,
    value: torch.Tensor,
    logits_projection: torch.Tensor,
    weights_projection: torch.Tensor,
) -> bool:
    """Whether the Triton kernels are used for such inputs and, unless the environment set
    `T5_EXPERIMENTAL_TRITON=force`, compute on this device what they should."""
    (key_heads, heads), value_heads = logits_projection.shape, weights_projection.shape[1]
    if not uses_triton(max(key_heads, heads, value_heads), query.dtype, query.device):
        return False
    sizes = key_heads, heads, value_heads, query.shape[3], value.shape[3]
    return _UNCHECKED or kernels_are_right(sizes, query.dtype, query.device)


def blockwise_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    logits_projection: torch.Tensor | None,
    weights_projection: torch.Tensor | None,
    diagonals: torch.Tensor | None,
    visible: Visibility,
    dropout: float = 0.0,
    rows: int | None = None,
) -> torch.Tensor:
    """Attention in memory proportional to n + m; has first derivatives for all floating-point arguments.

    Args:
        query: `(b, hk, n, dk)`.
        key: `(b, hk, m, dk)`.
        value: `(b, hv, m, dv)`.
        logits_projection: P_l, `(hk, h)`; None, as P_w, for plain attention, where all head counts are equal.
        weights_projection: P_w, `(h, hv)`, or None.
        diagonals: `(h, n + m - 1)`, added to the mixed logits: query i and key j have index j - i + n - 1; or None.
        visible: mask. A query without visible keys attends to all keys alike.
        dropout: dropout rate of the mixed weights, rounded to a multiple of 1 / 65536.
        rows: query rows of a block, or `USE_TRITON`; by default `USE_TRITON` if [`uses_triton`] and the kernels pass
            their check ([`kernels_are_right`]), else [`block_rows`].

    Returns:
        `(b, hv, n, dv)`, in the dtype of `query`.
    """
    projections = [
        None if matrix is None else matrix.to(query.dtype) for matrix in (logits_projection, weights_projection)
    ]
    if rows is None:
        logits_mix, weights_mix = projections
        if logits_mix is not None and weights_mix is not None and _kernels_apply(query, value, logits_mix, weights_mix):
            rows = USE_TRITON
        else:
            heads = max(query.shape[1], value.shape[1], 0 if logits_mix is None else logits_mix.shape[1])
            rows = block_rows(heads, query.shape[2], key.shape[2], query.dtype, query.device)
    # From the default generator, so that `manual_seed` and gradient checkpointing work as for any dropout.
    seed = torch.randint(2**62, ()) if dropout > 0 else None
    return _blockwise_attention(
        query,
        key.to(query.dtype),
        value.to(query.dtype),
        *projections,
        diagonals,
        visible.mask,
        visible.query_segments,
        visible.key_segments,
        torch.as_tensor(visible.past_length),
        visible.causal,
        dropout,
        seed,
        rows,
    )
