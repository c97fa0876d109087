# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Triton kernels of talking-heads attention; attention_triton_t5_experimental.py launches them.

    J = q k^T        L = J mixed by P_l + bias        W = softmax(L)        U = W mixed by P_w        O = dropout(U) v

A program handles square tiles of queries and keys with all heads at once, as both mixes need them. An online softmax
does not work through the second mix, so a first pass over the keys computes maximum and sum of each row of L, and every
later pass recomputes its tiles from q and k with finished weights. The backward pass also needs D = sum(W dW) of each
row, which the first pass computes along with the sum. Each program writes its own sums, which are added afterwards
where needed: there are no atomics, so results are deterministic.

Head counts are padded with zeros to powers of two, at least 16, because the mixes are matmuls.

Axes are named as in attention_t5_experimental.py. Uppercase names in `s`, a [`_Sizes`], are compile-time constants.
"""

from typing import Any, NamedTuple

import torch


# transformers requires all packages that code in a checkpoint's folder imports, unless the import is in a `try`.
try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise ImportError(
        'Talking heads on GPUs need Triton: install `triton`, or load the model with `attn_implementation="eager"`.'
    ) from error


# Logit of a hidden pair, as in `masked_bias`: rows in which all keys are hidden attend to all keys alike.
_HIDDEN = tl.constexpr(torch.finfo(torch.float32).min / 2)


def is_interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels, on the CPU."""
    return bool(triton.knobs.runtime.interpret)


class _Sizes(NamedTuple):
    """Compile-time constants of a kernel; `P` marks padded head counts."""

    KEY_HEADS: int
    HEADS: int
    VALUE_HEADS: int
    KEY_HEADS_P: int
    HEADS_P: int
    VALUE_HEADS_P: int
    KEY_SIZE: int
    VALUE_SIZE: int
    KEY_COLUMNS: int
    VALUE_COLUMNS: int
    TILE: int
    CHUNK: int
    HAS_BIAS: bool
    HAS_MASK: bool
    MASKED_HEADS: int
    HAS_SEGMENTS: bool
    CAUSAL: bool
    THRESHOLD: int
    PRECISION: str


class _Inputs(NamedTuple):
    """Inputs of all kernels. All tensors except the mask are contiguous; kernels do not read those that are missing
    according to `_Sizes`."""

    query: Any
    key: Any
    value: Any
    logits_projection: Any
    weights_projection: Any
    diagonals: Any
    mask: Any
    mask_strides: tuple[int, ...]
    query_segments: Any
    key_segments: Any
    past_length: Any
    query_length: int
    key_length: int


class _Rows(NamedTuple):
    """For each softmax head and query, `(b, h, n)`: maximum of L, sum of exp(L - maximum), and D."""

    maximum: Any
    total: Any
    correction: Any


@triton.jit
def _load_states(
    pointer,
    batch,
    first_row,
    length,
    first_column,
    HEADS: tl.constexpr,
    HEADS_P: tl.constexpr,
    SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """`[HEADS_P, ROWS, COLUMNS]` of a tensor `(b, HEADS, length, SIZE)`, zeros beyond it."""
    head = tl.arange(0, HEADS_P)[:, None, None]
    row = first_row + tl.arange(0, ROWS)[None, :, None]
    column = first_column + tl.arange(0, COLUMNS)[None, None, :]
    offset = ((batch.to(tl.int64) * HEADS + head) * length + row) * SIZE + column
    return tl.load(pointer + offset, mask=(head < HEADS) & (row < length) & (column < SIZE), other=0.0)


@triton.jit
def _store_states(
    pointer,
    states,
    head,
    batch,
    first_row,
    length,
    first_column,
    HEADS: tl.constexpr,
    SIZE: tl.constexpr,
    s: tl.constexpr,
):
    """`[heads, TILE, columns]` into a tensor `(b, length, HEADS, SIZE)`."""
    row = first_row + tl.arange(0, s.TILE)[None, :, None]
    column = first_column + tl.arange(0, states.shape[2])[None, None, :]
    offset = ((batch.to(tl.int64) * length + row) * HEADS + head) * SIZE + column
    inside = (head < HEADS) & (row < length) & (column < SIZE)
    tl.store(pointer + offset, states.to(pointer.dtype.element_ty), mask=inside)


@triton.jit
def _load_keys(pointer, batch, first_row, length, column, s: tl.constexpr):
    """`[KEY_HEADS_P, TILE, KEY_COLUMNS]` of queries or keys."""
    return _load_states(
        pointer, batch, first_row, length, column, s.KEY_HEADS, s.KEY_HEADS_P, s.KEY_SIZE, s.TILE, s.KEY_COLUMNS
    )


@triton.jit
def _load_values(pointer, batch, first_row, length, column, s: tl.constexpr):
    """`[VALUE_HEADS_P, TILE, VALUE_COLUMNS]` of values or gradients of the output."""
    return _load_states(
        pointer, batch, first_row, length, column, s.VALUE_HEADS, s.VALUE_HEADS_P, s.VALUE_SIZE, s.TILE, s.VALUE_COLUMNS
    )


@triton.jit
def _store_keys(pointer, states, batch, first_row, length, column, s: tl.constexpr):
    """The reverse of `_load_keys`, into a tensor `(b, length, hk, dk)`."""
    head = tl.arange(0, s.KEY_HEADS_P)[:, None, None]
    _store_states(pointer, states, head, batch, first_row, length, column, s.KEY_HEADS, s.KEY_SIZE, s)


@triton.jit
def _store_values(pointer, states, batch, first_row, length, column, s: tl.constexpr):
    """The reverse of `_load_values`, into a tensor `(b, length, hv, dv)`."""
    head = tl.arange(0, s.VALUE_HEADS_P)[:, None, None]
    _store_states(pointer, states, head, batch, first_row, length, column, s.VALUE_HEADS, s.VALUE_SIZE, s)


@triton.jit
def _row_offsets(batch, first_query, x, s: tl.constexpr):
    """Offsets of the rows of a tile in tensors `(b, h, n)`, and which of them exist; `[HEADS_P, TILE]`."""
    head = tl.arange(0, s.HEADS_P)[:, None]
    query = first_query + tl.arange(0, s.TILE)[None, :]
    offset = (batch.to(tl.int64) * s.HEADS + head) * x.query_length + query
    return offset, (head < s.HEADS) & (query < x.query_length)


@triton.jit
def _load_matrix(pointer, ROWS: tl.constexpr, COLUMNS: tl.constexpr, ROWS_P: tl.constexpr, COLUMNS_P: tl.constexpr):
    """`[ROWS_P, COLUMNS_P]` of a matrix `(ROWS, COLUMNS)`, zeros beyond it."""
    row = tl.arange(0, ROWS_P)[:, None]
    column = tl.arange(0, COLUMNS_P)[None, :]
    return tl.load(pointer + row * COLUMNS + column, mask=(row < ROWS) & (column < COLUMNS), other=0.0)


@triton.jit
def _logits_projection(x, s: tl.constexpr):
    """P_l, `[KEY_HEADS_P, HEADS_P]`."""
    return _load_matrix(x.logits_projection, s.KEY_HEADS, s.HEADS, s.KEY_HEADS_P, s.HEADS_P)


@triton.jit
def _weights_projection(x, s: tl.constexpr):
    """P_w, `[HEADS_P, VALUE_HEADS_P]`."""
    return _load_matrix(x.weights_projection, s.HEADS, s.VALUE_HEADS, s.HEADS_P, s.VALUE_HEADS_P)


@triton.jit
def _mix(matrix, states, s: tl.constexpr):
    """`[heads out, heads in]` times `[heads in, TILE, TILE]`."""
    flat = tl.reshape(states, (matrix.shape[1], s.TILE * s.TILE)).to(matrix.dtype)
    mixed = tl.dot(matrix, flat, input_precision=s.PRECISION)
    return tl.reshape(mixed, (matrix.shape[0], s.TILE, s.TILE))


@triton.jit
def _sum_over_pairs(left, right, DTYPE: tl.constexpr, s: tl.constexpr):
    """`[heads left, heads right]` from `[heads, TILE, TILE]` each."""
    left_flat = tl.reshape(left, (left.shape[0], s.TILE * s.TILE)).to(DTYPE)
    right_flat = tl.reshape(right, (right.shape[0], s.TILE * s.TILE)).to(DTYPE)
    return tl.dot(left_flat, tl.trans(right_flat), input_precision=s.PRECISION)


@triton.jit
def _products(
    queries,
    keys,
    batch,
    first_query,
    first_key,
    x,
    HEADS: tl.constexpr,
    HEADS_P: tl.constexpr,
    SIZE: tl.constexpr,
    s: tl.constexpr,
):
    """Matmul of queries `(b, HEADS, n, SIZE)` and keys `(b, HEADS, m, SIZE)`: `[HEADS_P, TILE, TILE]`."""
    products = tl.full((HEADS_P, s.TILE, s.TILE), 0, tl.float32)
    for column in range(0, SIZE, s.CHUNK):
        left = _load_states(queries, batch, first_query, x.query_length, column, HEADS, HEADS_P, SIZE, s.TILE, s.CHUNK)
        right = _load_states(keys, batch, first_key, x.key_length, column, HEADS, HEADS_P, SIZE, s.TILE, s.CHUNK)
        products = tl.dot(left, tl.permute(right, (0, 2, 1)), products, input_precision=s.PRECISION)
    return products


@triton.jit
def _key_logits(x, batch, first_query, first_key, s: tl.constexpr):
    """J, `[KEY_HEADS_P, TILE, TILE]`."""
    return _products(x.query, x.key, batch, first_query, first_key, x, s.KEY_HEADS, s.KEY_HEADS_P, s.KEY_SIZE, s)


@triton.jit
def _visible(x, batch, first_query, first_key, s: tl.constexpr):
    """Which pairs exist and are visible, `[1 or HEADS_P, TILE, TILE]`; see [`Visibility`]."""
    query = first_query + tl.arange(0, s.TILE)[None, :, None]
    key = first_key + tl.arange(0, s.TILE)[None, None, :]
    inside = (query < x.query_length) & (key < x.key_length)
    visible = inside
    if s.HAS_MASK:
        head = tl.arange(0, s.MASKED_HEADS)[:, None, None]
        offset = batch.to(tl.int64) * x.mask_strides[0] + head * x.mask_strides[1]
        offset += query.to(tl.int64) * x.mask_strides[2] + key * x.mask_strides[3]
        visible = tl.load(x.mask + offset, mask=inside & (head < s.HEADS), other=0) != 0
    if s.HAS_SEGMENTS:
        query_segment = tl.load(
            x.query_segments + batch.to(tl.int64) * x.query_length + query, mask=query < x.query_length, other=0
        )
        key_segment = tl.load(
            x.key_segments + batch.to(tl.int64) * x.key_length + key, mask=key < x.key_length, other=0
        )
        visible = visible & (query_segment == key_segment)
    if s.CAUSAL:
        visible = visible & (key <= query + tl.load(x.past_length))
    return visible


@triton.jit
def _biased_logits(x, logits, visible, first_query, first_key, s: tl.constexpr):
    """L, `[HEADS_P, TILE, TILE]`, with bias and mask, from J."""
    biased = _mix(tl.trans(_logits_projection(x, s)), logits, s)
    query = first_query + tl.arange(0, s.TILE)[None, :, None]
    key = first_key + tl.arange(0, s.TILE)[None, None, :]
    if s.HAS_BIAS:
        head = tl.arange(0, s.HEADS_P)[:, None, None]
        offset = head * (x.query_length + x.key_length - 1) + key - query + x.query_length - 1
        inside = (head < s.HEADS) & (query < x.query_length) & (key < x.key_length)
        biased += tl.load(x.diagonals + offset, mask=inside, other=0.0)
    biased = tl.where(visible, biased, _HIDDEN)
    return tl.where(key < x.key_length, biased, float("-inf"))


@triton.jit
def _weights(x, rows, logits, visible, batch, first_query, first_key, s: tl.constexpr):
    """W, `[HEADS_P, TILE, TILE]`, from J; 0 where a pair does not exist."""
    offset, inside = _row_offsets(batch, first_query, x, s)
    maximum = tl.load(rows.maximum + offset, mask=inside, other=0.0)
    total = tl.load(rows.total + offset, mask=inside, other=1.0)
    biased = _biased_logits(x, logits, visible, first_query, first_key, s)
    return tl.exp(biased - maximum[:, :, None]) / total[:, :, None]


@triton.jit
def _keep(x, states, batch, first_query, first_key, seed, s: tl.constexpr):
    """Applies dropout to `states`, `[VALUE_HEADS_P, TILE, TILE]`.

    It depends on the seed and the position alone, so that all passes drop the same elements.
    """
    if s.THRESHOLD > 0:
        nothing = tl.full((s.VALUE_HEADS_P, s.TILE, s.TILE), 0, tl.int32)
        head = nothing + batch * s.VALUE_HEADS + tl.arange(0, s.VALUE_HEADS_P)[:, None, None]
        query = nothing + first_query + tl.arange(0, s.TILE)[None, :, None]
        key = nothing + first_key + tl.arange(0, s.TILE)[None, None, :]
        word, _, _, _ = tl.philox(seed, query, key, head, nothing)
        states = tl.where((word >> 16).to(tl.int32) >= s.THRESHOLD, states, 0.0)
    return states


@triton.jit
def _talked_weights(x, weights, batch, first_query, first_key, seed, s: tl.constexpr):
    """U after dropout, `[VALUE_HEADS_P, TILE, TILE]`, from W."""
    talked = _mix(tl.trans(_weights_projection(x, s)), weights, s)
    return _keep(x, talked, batch, first_query, first_key, seed, s)


@triton.jit
def _talked_gradients(x, grad_output, batch, first_query, first_key, seed, s: tl.constexpr):
    """dU, `[VALUE_HEADS_P, TILE, TILE]`."""
    gradients = _products(
        grad_output, x.value, batch, first_query, first_key, x, s.VALUE_HEADS, s.VALUE_HEADS_P, s.VALUE_SIZE, s
    )
    return _keep(x, gradients, batch, first_query, first_key, seed, s)


@triton.jit
def _biased_gradients(x, rows, weights, grad_talked, batch, first_query, s: tl.constexpr):
    """dL, `[HEADS_P, TILE, TILE]`, from W and dU."""
    offset, inside = _row_offsets(batch, first_query, x, s)
    correction = tl.load(rows.correction + offset, mask=inside, other=0.0)
    return weights * (_mix(_weights_projection(x, s), grad_talked, s) - correction[:, :, None])


@triton.jit
def _key_logit_gradients(x, rows, grad_output, batch, first_query, first_key, seed, s: tl.constexpr):
    """dJ, `[KEY_HEADS_P, TILE, TILE]`."""
    logits = _key_logits(x, batch, first_query, first_key, s)
    visible = _visible(x, batch, first_query, first_key, s)
    weights = _weights(x, rows, logits, visible, batch, first_query, first_key, s)
    grad_talked = _talked_gradients(x, grad_output, batch, first_query, first_key, seed, s)
    grad_biased = _biased_gradients(x, rows, weights, grad_talked, batch, first_query, s)
    return _mix(_logits_projection(x, s), grad_biased, s)


@triton.jit(do_not_specialize=["seed"])
def _rows_kernel(x, rows, grad_output, seed, BACKWARD: tl.constexpr, s: tl.constexpr):
    """Fills `rows`, D among them if `BACKWARD`; one program for each tile of queries and batch element."""
    first_query, batch = tl.program_id(0) * s.TILE, tl.program_id(1)
    maximum = tl.full((s.HEADS_P, s.TILE), float("-inf"), tl.float32)
    total = tl.full((s.HEADS_P, s.TILE), 0, tl.float32)
    correction = tl.full((s.HEADS_P, s.TILE), 0, tl.float32)
    for first_key in range(0, x.key_length, s.TILE):
        logits = _key_logits(x, batch, first_query, first_key, s)
        visible = _visible(x, batch, first_query, first_key, s)
        biased = _biased_logits(x, logits, visible, first_query, first_key, s)
        larger = tl.maximum(maximum, tl.max(biased, 2))
        shrink = tl.exp(maximum - larger)
        powers = tl.exp(biased - larger[:, :, None])
        total = total * shrink + tl.sum(powers, 2)
        if BACKWARD:
            grad_talked = _talked_gradients(x, grad_output, batch, first_query, first_key, seed, s)
            grad_weights = _mix(_weights_projection(x, s), grad_talked, s)
            correction = correction * shrink + tl.sum(powers * grad_weights, 2)
        maximum = larger
    offset, inside = _row_offsets(batch, first_query, x, s)
    tl.store(rows.maximum + offset, maximum, mask=inside)
    tl.store(rows.total + offset, total, mask=inside)
    if BACKWARD:
        tl.store(rows.correction + offset, correction / total, mask=inside)


@triton.jit(do_not_specialize=["seed"])
def _output_kernel(x, rows, output, seed, s: tl.constexpr):
    """O, into `(b, n, hv, dv)`; one program for each tile of queries, batch element and group of columns."""
    first_query, batch = tl.program_id(0) * s.TILE, tl.program_id(1)
    column = tl.program_id(2) * s.VALUE_COLUMNS
    sums = tl.full((s.VALUE_HEADS_P, s.TILE, s.VALUE_COLUMNS), 0, tl.float32)
    for first_key in range(0, x.key_length, s.TILE):
        logits = _key_logits(x, batch, first_query, first_key, s)
        visible = _visible(x, batch, first_query, first_key, s)
        weights = _weights(x, rows, logits, visible, batch, first_query, first_key, s)
        talked = _talked_weights(x, weights, batch, first_query, first_key, seed, s)
        values = _load_values(x.value, batch, first_key, x.key_length, column, s)
        sums = tl.dot(talked.to(values.dtype), values, sums, input_precision=s.PRECISION)
    _store_values(output, sums, batch, first_query, x.query_length, column, s)


@triton.jit(do_not_specialize=["seed"])
def _query_gradients_kernel(x, rows, grad_output, grad_query, seed, s: tl.constexpr):
    """dq, into `(b, n, hk, dk)`; one program for each tile of queries, batch element and group of columns."""
    first_query, batch = tl.program_id(0) * s.TILE, tl.program_id(1)
    column = tl.program_id(2) * s.KEY_COLUMNS
    sums = tl.full((s.KEY_HEADS_P, s.TILE, s.KEY_COLUMNS), 0, tl.float32)
    for first_key in range(0, x.key_length, s.TILE):
        gradients = _key_logit_gradients(x, rows, grad_output, batch, first_query, first_key, seed, s)
        keys = _load_keys(x.key, batch, first_key, x.key_length, column, s)
        sums = tl.dot(gradients.to(keys.dtype), keys, sums, input_precision=s.PRECISION)
    _store_keys(grad_query, sums, batch, first_query, x.query_length, column, s)


@triton.jit(do_not_specialize=["seed"])
def _key_gradients_kernel(x, rows, grad_output, grad_key, seed, s: tl.constexpr):
    """dk, into `(b, m, hk, dk)`; one program for each tile of keys, batch element and group of columns."""
    first_key, batch = tl.program_id(0) * s.TILE, tl.program_id(1)
    column = tl.program_id(2) * s.KEY_COLUMNS
    sums = tl.full((s.KEY_HEADS_P, s.TILE, s.KEY_COLUMNS), 0, tl.float32)
    for first_query in range(0, x.query_length, s.TILE):
        gradients = _key_logit_gradients(x, rows, grad_output, batch, first_query, first_key, seed, s)
        queries = _load_keys(x.query, batch, first_query, x.query_length, column, s)
        transposed = tl.permute(gradients, (0, 2, 1)).to(queries.dtype)
        sums = tl.dot(transposed, queries, sums, input_precision=s.PRECISION)
    _store_keys(grad_key, sums, batch, first_key, x.key_length, column, s)


@triton.jit(do_not_specialize=["seed"])
def _value_gradients_kernel(x, rows, grad_output, grad_value, seed, s: tl.constexpr):
    """dv, into `(b, m, hv, dv)`; one program for each tile of keys, batch element and group of columns."""
    first_key, batch = tl.program_id(0) * s.TILE, tl.program_id(1)
    column = tl.program_id(2) * s.VALUE_COLUMNS
    sums = tl.full((s.VALUE_HEADS_P, s.TILE, s.VALUE_COLUMNS), 0, tl.float32)
    for first_query in range(0, x.query_length, s.TILE):
        logits = _key_logits(x, batch, first_query, first_key, s)
        visible = _visible(x, batch, first_query, first_key, s)
        weights = _weights(x, rows, logits, visible, batch, first_query, first_key, s)
        talked = _talked_weights(x, weights, batch, first_query, first_key, seed, s)
        gradients = _load_values(grad_output, batch, first_query, x.query_length, column, s)
        transposed = tl.permute(talked, (0, 2, 1)).to(gradients.dtype)
        sums = tl.dot(transposed, gradients, sums, input_precision=s.PRECISION)
    _store_values(grad_value, sums, batch, first_key, x.key_length, column, s)


@triton.jit(do_not_specialize=["seed"])
def _mix_gradients_kernel(
    x, rows, grad_output, grad_logits_mix, grad_weights_mix, grad_diagonals, seed, s: tl.constexpr
):
    """Partial sums of dP_l, dP_w and the bias diagonals, from the tiles along one diagonal of tiles.

    These tiles have 2 TILE - 1 diagonals of the bias in common; the last of the 2 TILE sums is 0. One program for each
    diagonal of tiles and batch element, into tensors `(programs, KEY_HEADS_P, HEADS_P)`,
    `(programs, HEADS_P, VALUE_HEADS_P)` and `(programs, HEADS_P, 2 TILE)`.
    """
    batch = tl.program_id(1)
    query_tiles = tl.cdiv(x.query_length, s.TILE)
    ahead = tl.program_id(0) - (query_tiles - 1)  # tiles of keys before the one that goes with the first queries
    first_tile = tl.maximum(0, -ahead)
    last_tile = tl.minimum(query_tiles, tl.cdiv(x.key_length, s.TILE) - ahead)
    logits_sums = tl.full((s.KEY_HEADS_P, s.HEADS_P), 0, tl.float32)
    weights_sums = tl.full((s.HEADS_P, s.VALUE_HEADS_P), 0, tl.float32)
    diagonal_sums = tl.full((s.HEADS_P, 2 * s.TILE), 0, tl.float32)
    pair = tl.arange(0, s.TILE * s.TILE)[:, None]
    dtype: tl.constexpr = x.query.dtype.element_ty
    on_diagonal = pair % s.TILE - pair // s.TILE + s.TILE - 1 == tl.arange(0, 2 * s.TILE)[None, :]
    for tile in range(first_tile, last_tile):
        first_query, first_key = tile * s.TILE, (tile + ahead) * s.TILE
        logits = _key_logits(x, batch, first_query, first_key, s)
        visible = _visible(x, batch, first_query, first_key, s)
        weights = _weights(x, rows, logits, visible, batch, first_query, first_key, s)
        grad_talked = _talked_gradients(x, grad_output, batch, first_query, first_key, seed, s)
        weights_sums += _sum_over_pairs(weights, grad_talked, dtype, s)
        gradients = _biased_gradients(x, rows, weights, grad_talked, batch, first_query, s)
        logits_sums += _sum_over_pairs(logits, gradients, dtype, s)
        if s.HAS_BIAS:
            # A mask replaces the bias of hidden keys, also in rows in which all keys are hidden.
            flat = tl.reshape(tl.where(visible, gradients, 0.0), (s.HEADS_P, s.TILE * s.TILE)).to(dtype)
            diagonal_sums += tl.dot(flat, on_diagonal.to(dtype), input_precision=s.PRECISION)
    program = batch * tl.num_programs(0) + tl.program_id(0)
    key_head = tl.arange(0, s.KEY_HEADS_P)
    head = tl.arange(0, s.HEADS_P)
    value_head = tl.arange(0, s.VALUE_HEADS_P)
    diagonal = tl.arange(0, 2 * s.TILE)
    tl.store(grad_logits_mix + (program * s.KEY_HEADS_P + key_head[:, None]) * s.HEADS_P + head[None, :], logits_sums)
    tl.store(
        grad_weights_mix + (program * s.HEADS_P + head[:, None]) * s.VALUE_HEADS_P + value_head[None, :], weights_sums
    )
    tl.store(grad_diagonals + (program * s.HEADS_P + head[:, None]) * (2 * s.TILE) + diagonal[None, :], diagonal_sums)
