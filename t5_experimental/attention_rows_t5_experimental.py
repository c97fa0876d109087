# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Attention in blocks of query rows: forward, and backward with recomputed weights."""

import torch

from .attention_problem_t5_experimental import _Problem, _transposed


def _mix(matrix: torch.Tensor, states: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """Writes `(heads out, heads in)` times `(heads in, r, m)` to `out` `(heads out, r, m)`."""
    torch.mm(matrix, states.flatten(1), out=out.flatten(1))
    return out


def _softmax_weights(
    problem: _Problem,
    query: torch.Tensor,
    key: torch.Tensor,
    buffers: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    bias: torch.Tensor | None,
    hidden: torch.Tensor | None,
) -> torch.Tensor:
    """Softmax weights of a block of one batch element.

    Args:
        problem: has the matrix that mixes the logits, or none.
        query: `(hk, r, dk)`.
        key: `(hk, m, dk)`.
        buffers: for J `(hk, r, m)`, which plain attention does not use, and for L and W, both `(h, r, m)`; J and W may
            be the same buffer.
        bias: `(h, r, m)`.
        hidden: broadcastable to `(h, r, m)`.

    Returns:
        W, in its buffer.
    """
    logits, mixed, weights = buffers
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
    """Buffer for O, `(b, hv, n, dv)`, in the memory layout that the output projection reads, `(b, n, hv, dv)`."""
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
        buffers = problem.cut(even, key_heads, rows), problem.cut(odd, heads, rows), problem.cut(even, heads, rows)
        for index in range(batch):
            query_rows = query[index, :, start:stop].flip(1)
            hidden_here = None if hidden is None else hidden[index if hidden.shape[0] > 1 else 0]
            talked = _softmax_weights(problem, query_rows, key[index], buffers, bias, hidden_here)
            if problem.weights_mix is not None:
                talked = _mix(problem.weights_mix, talked, problem.cut(odd, value_heads, rows))
            if (keep := problem.keep(rows)) is not None:
                talked *= keep
            output[index, :, start:stop] = torch.bmm(talked, value[index]).flip(1)
    return output


def _add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """Adds the batched matmul of `left` and `right` to `total`, whose dtype may be wider."""
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
        # Each row is padded with as many zeros as there are rows. A view whose rows are one element shorter shifts
        # row i by i columns to the right, so that its columns are the diagonals of the block.
        self.buffer = torch.empty(heads * problem.rows * (problem.key.shape[2] + problem.rows), dtype=problem.wide)
        self.buffer = self.buffer.to(problem.query.device)

    def start_block(self, rows: int) -> None:
        heads, length = self.total.shape[0], self.problem.key.shape[2]
        self.padded = self.buffer[: heads * rows * (length + rows)].view(heads, rows, length + rows).zero_()

    def add(self, gradient: torch.Tensor, hidden: torch.Tensor | None) -> None:
        """Adds the gradient of one batch element, `(h, r, m)`.

        A mask replaces the bias of hidden keys. Their weights and gradients are 0, except in rows whose keys are all
        hidden: these rows are skipped.
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
    """Gradients of query, key, value, both projections and diagonals, in the wide dtype; None for missing inputs."""
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
        buffers = logits, mixed, problem.cut(third, heads, rows)
        if sums is not None:
            sums.start_block(rows)
        for index in range(batch):
            query_rows, grad_rows = query[index, :, start:stop].flip(1), grad_output[index, :, start:stop].flip(1)
            hidden_here = None if hidden is None else hidden[index if hidden.shape[0] > 1 else 0]
            weights = _softmax_weights(problem, query_rows, key[index], buffers, bias, hidden_here)
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
