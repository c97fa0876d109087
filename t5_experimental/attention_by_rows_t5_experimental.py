# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Attention in bounded memory: exact, in blocks of query rows, recomputed in the backward pass.

    J = q k^T        L = J mixed by P_l + bias        W = softmax(L)        U = W mixed by P_w        O = dropout(U) v

Talking heads mix; plain attention is the same without P_l and P_w, where L = J + bias and U = W. Written out, each of
J, L, W and U has heads x queries x keys numbers, and moving them between memory and processor takes several times
longer than computing them. Here only the rows of one block exist at a time, in buffers that stay in the processor's
cache and are used again for every block and batch element. The backward pass computes them once more from q and k, so
nothing larger than q, k, v and the output outlives the forward pass. The softmax is finished before the second mix,
which needs all keys of a row at once: keys are not split. On CUDA devices the kernels in
talking_heads_triton_t5_experimental.py take the place of talking heads by rows, where they can.

The relative position bias is constant along diagonals and arrives as one row of numbers per head. With its queries in
reverse order, a block reads it through a view with equal strides along queries and keys, and the gradient of a diagonal
is the sum over a column of a skewed view.

Axes are named as in attention_t5_experimental.py; r are the query rows of a block.
"""

import importlib.util
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry, register_flop_formula

from .masks_t5_experimental import Visibility, masked_bias


# Size of one buffer of heads x rows x keys, and the fewest rows that keep matrix products efficient. Processors: a few
# buffers fit into the cache. Others: few and large kernels matter more.
_BUFFER_BYTES = {"cpu": 2**21}
_OTHER_BUFFER_BYTES = 2**28
_MIN_ROWS = 16

# In place of a number of rows: the kernels in talking_heads_triton_t5_experimental.py.
BY_TRITON = 0
# They take float32 and more heads, too, but then need more shared memory than many devices have.
_TRITON_DTYPES = (torch.bfloat16, torch.float16)
_TRITON_MOST_HEADS = 32
# Torch 2.13 brings Triton 3.7; 3.5 does not compile the kernels. ROCm calls its tensors "cuda", too; nobody has tried
# the kernels there.
_HAS_TRITON = (
    os.environ.get("T5_EXPERIMENTAL_TRITON", "1") != "0"
    and torch.__version__ >= "2.13"
    and torch.version.hip is None
    and importlib.util.find_spec("triton") is not None
)

# Dropout compares 16 random bits with a threshold: drawing whole random words is several times faster than
# `torch.bernoulli`, and the rate is exact to 1 / 65536.
_DROPOUT_STEPS = 2**16


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


def takes_triton(heads: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the Triton kernels are used: in half precision on CUDA devices from Ampere on, unless the environment set
    `T5_EXPERIMENTAL_TRITON=0` when this module was imported.

    Args:
        heads: the largest of the three head counts.
        dtype: of the queries.
        device: of the queries.
    """
    if device.type != "cuda" or not _HAS_TRITON or dtype not in _TRITON_DTYPES or heads > _TRITON_MOST_HEADS:
        return False
    return torch.cuda.get_device_properties(device).major >= 8


@dataclass
class _Problem:
    """The inputs of one attention, cut into blocks; what forward and backward pass share.

    Shapes: `query` `(b, hk, n, dk)`, `key` `(b, hk, m, dk)`, `value` `(b, hv, m, dv)`, `logits_projection` `(hk, h)`,
    `weights_projection` `(h, hv)`, both None for plain attention, `diagonals` `(h, n + m - 1)` or None. `rows` are
    those of a block; with the same `seed`, dropout takes the same weights in both passes.
    """

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    logits_projection: torch.Tensor | None
    weights_projection: torch.Tensor | None
    diagonals: torch.Tensor | None
    visibility: Visibility
    dropout: float
    seed: torch.Tensor | None
    rows: int

    def __post_init__(self) -> None:
        self.dtype = self.query.dtype
        # The softmax, and sums over blocks, are in at least float32.
        self.wide = torch.promote_types(self.dtype, torch.float32)
        # Heads lie far apart in what the projections return; products read them many times.
        self.query, self.key = self.query.contiguous(), self.key.contiguous()
        self.logits_mix = _transposed(self.logits_projection)
        self.weights_mix = _transposed(self.weights_projection)
        self.heads = self.query.shape[1] if self.logits_mix is None else self.logits_mix.shape[0]
        self.bias = None if self.diagonals is None else self.diagonals.to(self.wide).contiguous()
        self.threshold, self.scale = 0, 1.0
        if self.dropout > 0:
            self.threshold = min(max(round(self.dropout * _DROPOUT_STEPS), 1), _DROPOUT_STEPS - 1)
            self.scale = _DROPOUT_STEPS / (_DROPOUT_STEPS - self.threshold)
        self.value = (self.value * self.scale).contiguous()
        self.generator: torch.Generator | None = None
        if self.seed is not None:
            self.generator = torch.Generator(self.query.device).manual_seed(int(self.seed))

    def blocks(self) -> Iterator[tuple[int, int]]:
        """First row of each block and the row after its last."""
        length = self.query.shape[2]
        return ((start, min(start + self.rows, length)) for start in range(0, length, self.rows))

    def buffer(self, heads: int, wide: bool = False) -> torch.Tensor:
        """Uninitialised room for `heads` x rows x keys, flat."""
        size = heads * self.rows * self.key.shape[2]
        return torch.empty(size, dtype=self.wide if wide else self.dtype, device=self.query.device)

    def cut(self, buffer: torch.Tensor, heads: int, rows: int) -> torch.Tensor:
        """`(heads, rows, m)` at the front of a buffer."""
        length = self.key.shape[2]
        return buffer[: heads * rows * length].view(heads, rows, length)

    def hidden(self, start: int, stop: int) -> torch.Tensor | None:
        """What is added to the logits of rows in reverse order, 0 where a key is visible and very negative elsewhere,
        broadcastable to `(b, h, r, m)`."""
        visible = self.visibility.rows(start, stop, self.query.device)
        if visible is None:
            return None
        return masked_bias(torch.zeros((), dtype=self.wide, device=visible.device), visible.flip(2))

    def bias_rows(self, start: int, stop: int) -> torch.Tensor | None:
        """`(h, r, m)`, a view of the diagonals: row i, key j is diagonal i + j + n - stop, as rows are reversed."""
        if self.bias is None:
            return None
        heads, width = self.bias.shape
        shape = (heads, stop - start, self.key.shape[2])
        return self.bias.as_strided(shape, (width, 1, 1), self.query.shape[2] - stop)

    def keep(self, rows: int) -> torch.Tensor | None:
        """Booleans `(hv, r, m)`, true where dropout leaves a weight; the next draw of the generator."""
        if self.generator is None:
            return None
        shape = (self.value.shape[1], rows, self.key.shape[2])
        count = shape[0] * shape[1] * shape[2]
        words = torch.empty((count + 3) // 4, dtype=torch.int64, device=self.query.device)
        words.random_(-(2**63), None, generator=self.generator)
        return words.view(torch.int16)[:count].view(shape) >= self.threshold - _DROPOUT_STEPS // 2


def _transposed(matrix: torch.Tensor | None) -> torch.Tensor | None:
    return None if matrix is None else matrix.t().contiguous()


def _mix(matrix: torch.Tensor, states: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """`(heads out, heads in)` times `(heads in, r, m)` into `out` `(heads out, r, m)`."""
    torch.mm(matrix, states.flatten(1), out=out.flatten(1))
    return out


def _softmax_weights(
    problem: _Problem,
    query: torch.Tensor,
    key: torch.Tensor,
    rooms: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    bias: torch.Tensor | None,
    hidden: torch.Tensor | None,
) -> torch.Tensor:
    """Softmax weights of a block of one batch element.

    Args:
        problem: whose matrix mixes the logits, or none.
        query: `(hk, r, dk)`.
        key: `(hk, m, dk)`.
        rooms: for J `(hk, r, m)`, which plain attention leaves as it is, for L and for W, both `(h, r, m)`; J and W may
            be the same room.
        bias: `(h, r, m)`.
        hidden: broadcastable to `(h, r, m)`.

    Returns:
        The room of W, filled.
    """
    logits, mixed, weights = rooms
    transposed = key.transpose(1, 2)
    added = [term for term in (bias, hidden) if term is not None]
    mix = problem.logits_mix
    if mix is not None:
        torch.bmm(query, transposed, out=logits)
    if added and problem.dtype == problem.wide:
        mixed.copy_(added[0])
        for term in added[1:]:
            mixed += term
        if mix is None:
            mixed.baddbmm_(query, transposed)
        else:
            mixed.flatten(1).addmm_(mix, logits.flatten(1))
        return torch.softmax(mixed, dim=-1, out=weights)
    if mix is None:
        torch.bmm(query, transposed, out=mixed)
    else:
        _mix(mix, logits, mixed)
    if problem.dtype == problem.wide:
        return torch.softmax(mixed, dim=-1, out=weights)
    wide = mixed.to(problem.wide)
    for term in added:
        wide += term
    return weights.copy_(torch.softmax(wide, dim=-1))


def _empty_output(query: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Room for O, `(b, hv, n, dv)`, in the order in which the output projection reads it, `(b, n, hv, dv)`."""
    batch, _, length, _ = query.shape
    return query.new_empty(batch, length, value.shape[1], value.shape[3]).transpose(1, 2)


def _forward(problem: _Problem) -> torch.Tensor:
    """O, `(b, hv, n, dv)`."""
    query, key, value = problem.query, problem.key, problem.value
    batch, key_heads = query.shape[:2]
    heads, value_heads = problem.heads, value.shape[1]
    output = _empty_output(query, value)
    even, odd = (problem.buffer(max(key_heads, heads, value_heads)) for _ in range(2))
    for start, stop in problem.blocks():
        rows = stop - start
        hidden, bias = problem.hidden(start, stop), problem.bias_rows(start, stop)
        rooms = problem.cut(even, key_heads, rows), problem.cut(odd, heads, rows), problem.cut(even, heads, rows)
        for index in range(batch):
            query_rows = query[index, :, start:stop].flip(1)
            hidden_here = None if hidden is None else hidden[index if hidden.shape[0] > 1 else 0]
            talked = _softmax_weights(problem, query_rows, key[index], rooms, bias, hidden_here)
            if problem.weights_mix is not None:
                talked = _mix(problem.weights_mix, talked, problem.cut(odd, value_heads, rows))
            if (keep := problem.keep(rows)) is not None:
                talked *= keep
            output[index, :, start:stop] = torch.bmm(talked, value[index]).flip(1)
    return output


def _add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """Adds the batched product of two matrices to `total`, whose dtype may be wider than theirs."""
    if total.dtype == left.dtype:
        total.baddbmm_(left, right)
    else:
        total += torch.bmm(left, right)


class _DiagonalSums:
    """Gradient of the bias diagonals, `(h, n + m - 1)`, from gradients of the biased logits, block by block."""

    def __init__(self, problem: _Problem):
        self.problem = problem
        heads, width = problem.diagonals.shape  # type: ignore[union-attr]
        self.total = torch.zeros(heads, width, dtype=problem.wide, device=problem.query.device)
        # Each row is followed by as many zeros as there are rows: read with rows one number shorter than they are, row
        # i is shifted i columns to the right, and a column of the result is a diagonal of the block.
        self.room = torch.empty(heads * problem.rows * (problem.key.shape[2] + problem.rows), dtype=problem.wide)
        self.room = self.room.to(problem.query.device)

    def start_block(self, rows: int) -> None:
        heads, length = self.total.shape[0], self.problem.key.shape[2]
        self.padded = self.room[: heads * rows * (length + rows)].view(heads, rows, length + rows).zero_()

    def add(self, gradient: torch.Tensor, hidden: torch.Tensor | None) -> None:
        """Adds the gradient of one batch element, `(h, r, m)`.

        A mask replaces the bias of what it hides. Weights there are 0, and so is the gradient, but for rows in which
        everything is hidden: these are left out.
        """
        summed = self.padded[:, :, : gradient.shape[2]]
        if hidden is None:
            summed += gradient
        else:
            summed.addcmul_(gradient, (hidden == 0).any(-1, keepdim=True).to(gradient.dtype))

    def end_block(self, stop: int) -> None:
        heads, rows, width = self.padded.shape
        skewed = self.padded.as_strided((heads, rows, width - 1), (rows * width, width - 1, 1))
        first = self.problem.query.shape[2] - stop
        self.total[:, first : first + width - 1] += skewed.sum(1)


def _backward(problem: _Problem, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    """Gradients of query, key, value, both projections and the diagonals, each None without it, in the wide dtype."""
    query, key, value = problem.query, problem.key, problem.value
    batch, key_heads = query.shape[:2]
    heads, value_heads = problem.heads, value.shape[1]
    logits_mix, weights_mix = problem.logits_mix, problem.weights_mix
    grad_query, grad_key, grad_value = (torch.zeros_like(x, dtype=problem.wide) for x in (query, key, value))
    grad_logits_mix, grad_weights_mix = (
        None if matrix is None else torch.zeros_like(matrix, dtype=problem.wide) for matrix in (logits_mix, weights_mix)
    )
    sums = None if problem.diagonals is None else _DiagonalSums(problem)
    most = max(key_heads, heads, value_heads)
    first, second, third, fourth = (problem.buffer(most) for _ in range(4))
    for start, stop in problem.blocks():
        rows = stop - start
        hidden, bias = problem.hidden(start, stop), problem.bias_rows(start, stop)
        logits, mixed = problem.cut(first, key_heads, rows), problem.cut(second, heads, rows)
        rooms = logits, mixed, problem.cut(third, heads, rows)
        if sums is not None:
            sums.start_block(rows)
        for index in range(batch):
            query_rows, grad_rows = query[index, :, start:stop].flip(1), grad_output[index, :, start:stop].flip(1)
            hidden_here = None if hidden is None else hidden[index if hidden.shape[0] > 1 else 0]
            weights = _softmax_weights(problem, query_rows, key[index], rooms, bias, hidden_here)
            talked = weights
            if weights_mix is not None:
                talked = _mix(weights_mix, weights, problem.cut(second, value_heads, rows))
            grad_talked = problem.cut(fourth, value_heads, rows)
            torch.bmm(grad_rows, value[index].transpose(1, 2), out=grad_talked)
            if (keep := problem.keep(rows)) is not None:
                talked = torch.mul(talked, keep, out=problem.cut(second, value_heads, rows))
                grad_talked *= keep
            _add_product(grad_value[index], talked.transpose(1, 2), grad_rows)
            grad_weights, grad_mixed = grad_talked, mixed
            if weights_mix is not None and grad_weights_mix is not None:
                grad_weights_mix += grad_talked.flatten(1) @ weights.flatten(1).t()
                grad_weights, grad_mixed = _mix(weights_mix.t(), grad_talked, mixed), problem.cut(fourth, heads, rows)
            torch.ops.aten._softmax_backward_data.out(grad_weights, weights, -1, problem.dtype, grad_input=grad_mixed)
            if sums is not None:
                sums.add(grad_mixed, hidden_here)
            grad_logits = grad_mixed
            if logits_mix is not None and grad_logits_mix is not None:
                grad_logits_mix += grad_mixed.flatten(1) @ logits.flatten(1).t()
                grad_logits = _mix(logits_mix.t(), grad_mixed, problem.cut(second, key_heads, rows))
            grad_query[index, :, start:stop] = torch.bmm(grad_logits, key[index]).flip(1)
            _add_product(grad_key[index], grad_logits.transpose(1, 2), query_rows)
        if sums is not None:
            sums.end_block(stop)
    return (
        grad_query,
        grad_key,
        grad_value * problem.scale,
        _transposed(grad_logits_mix),
        _transposed(grad_weights_mix),
        None if sums is None else sums.total,
    )


# A folder that carries this file along registers operators of its own, beside those of the installed package.
_NAME = "t5_experimental::" + re.sub(r"\W", "_", __name__)
_INPUTS = (
    "Tensor query, Tensor key, Tensor value, Tensor? logits_projection, Tensor? weights_projection, Tensor? diagonals, "
    "Tensor? mask, Tensor? query_segments, Tensor? key_segments, Tensor past_length, bool causal, float dropout, "
    "Tensor? seed, SymInt rows"
)


def _problem(inputs: tuple[Any, ...]) -> _Problem:
    """From the inputs of the operators."""
    query, key, value, logits_projection, weights_projection, diagonals, *mask, dropout, seed, rows = inputs
    visible = Visibility(query.shape[2], key.shape[2], *mask)
    return _Problem(query, key, value, logits_projection, weights_projection, diagonals, visible, dropout, seed, rows)


def _passes(problem: _Problem) -> tuple[Callable[..., torch.Tensor], Callable[..., tuple[torch.Tensor | None, ...]]]:
    """Forward and backward pass; the rows of the problem choose them, so that both are of the same kind."""
    if problem.rows != BY_TRITON:
        return _forward, _backward
    from .talking_heads_triton_t5_experimental import backward, forward

    return forward, backward


@torch.library.custom_op(_NAME, mutates_args=(), schema=f"({_INPUTS}) -> Tensor")
def _attention_by_rows(*inputs: Any) -> torch.Tensor:
    """An operator of its own, opaque to `torch.compile`."""
    problem = _problem(inputs)
    forward, _ = _passes(problem)
    with torch.autocast(inputs[0].device.type, enabled=False):
        return forward(problem)


@torch.library.custom_op(
    _NAME + "_backward",
    mutates_args=(),
    schema=f"(Tensor grad_output, {_INPUTS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _attention_by_rows_backward(grad_output: torch.Tensor, *inputs: Any) -> tuple[torch.Tensor, ...]:
    problem = _problem(inputs)
    _, backward = _passes(problem)
    with torch.autocast(grad_output.device.type, enabled=False):
        grads = backward(problem, grad_output)
    return tuple(
        inputs[0].new_empty(0) if x is None or grad is None else grad.to(x.dtype).contiguous()
        for grad, x in zip(grads, inputs[:6], strict=True)
    )


@_attention_by_rows.register_fake
def _(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *unused: Any) -> torch.Tensor:
    return _empty_output(query, value)


@_attention_by_rows_backward.register_fake
def _(grad_output: torch.Tensor, *inputs: Any) -> tuple[torch.Tensor, ...]:
    return tuple(inputs[0].new_empty(0) if x is None else x.new_empty(x.shape) for x in inputs[:6])


def _save(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    *tensors, ctx.causal, ctx.dropout, seed, ctx.rows = inputs
    ctx.save_for_backward(*tensors, seed)


def _gradients(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    *tensors, seed = ctx.saved_tensors
    grads = _attention_by_rows_backward(grad_output, *tensors, ctx.causal, ctx.dropout, seed, ctx.rows)
    return (*(None if x is None else grad for grad, x in zip(grads, tensors[:6], strict=True)), *[None] * 8)


def _no_second_gradients(ctx: Any, *grads: torch.Tensor) -> None:
    raise RuntimeError(
        "Attention by blocks of rows has no second derivatives: load the model with "
        '`attn_implementation="eager"` for them.'
    )


_attention_by_rows.register_autograd(_gradients, setup_context=_save)
_attention_by_rows_backward.register_autograd(_no_second_gradients)


def _flops(
    query: torch.Size,
    key: torch.Size,
    value: torch.Size,
    logits_projection: torch.Size | None,
    weights_projection: torch.Size | None,
    *unused: Any,
    out_shape: Any = None,
) -> int:
    """Of the products that the same attention takes with all pairs at once, from shapes."""
    batch, key_heads, queries, key_size = query
    _, value_heads, keys, value_size = value
    per_pair = key_heads * key_size + value_heads * value_size
    for matrix in (logits_projection, weights_projection):
        per_pair += 0 if matrix is None else matrix[0] * matrix[1]
    return 2 * batch * queries * keys * per_pair


def _flops_backward(grad_output: torch.Size, *inputs: Any, out_shape: Any = None) -> int:
    """A product has two gradients, which are products as large."""
    return 2 * _flops(*inputs)


for _operator, _formula in ((_attention_by_rows, _flops), (_attention_by_rows_backward, _flops_backward)):
    _packet = _operator._opoverload.overloadpacket
    if _packet not in flop_registry:  # it is there if this file is imported once more
        register_flop_formula(_packet)(_formula)


def attention_operator() -> Any:
    """The operator that [`attention_by_rows`] calls, for policies on what to keep."""
    return _attention_by_rows._opoverload


def attention_by_rows(
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
    """Attention in memory proportional to n + m; gradients for all floating-point arguments, once.

    Args:
        query: `(b, hk, n, dk)`.
        key: `(b, hk, m, dk)`.
        value: `(b, hv, m, dv)`.
        logits_projection: P_l, `(hk, h)`; None, as P_w, for plain attention, where all head counts are equal.
        weights_projection: P_w, `(h, hv)`, or None.
        diagonals: `(h, n + m - 1)`, added to the mixed logits: query i and key j have number j - i + n - 1; or None.
        visible: mask. A query that sees nothing attends to all keys alike.
        dropout: rate at which mixed weights are dropped, one by one, to the next multiple of 1 / 65536.
        rows: query rows of a block, or `BY_TRITON`; unless given, `BY_TRITON` where [`takes_triton`] and the number
            from [`block_rows`] elsewhere.

    Returns:
        `(b, hv, n, dv)`, in the dtype of `query`.
    """
    projections = [
        None if matrix is None else matrix.to(query.dtype) for matrix in (logits_projection, weights_projection)
    ]
    if rows is None:
        heads = max(query.shape[1], value.shape[1], 0 if logits_projection is None else logits_projection.shape[1])
        if logits_projection is not None and takes_triton(heads, query.dtype, query.device):
            rows = BY_TRITON
        else:
            rows = block_rows(heads, query.shape[2], key.shape[2], query.dtype, query.device)
    # Drawn from the default generator, so that seeds and gradient checkpointing hold for it as for any dropout.
    seed = torch.randint(2**62, ()) if dropout > 0 else None
    return _attention_by_rows(
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
