# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""The inputs of one blockwise attention, shared by the implementations in torch and in Triton."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from .visibility_t5_experimental import Visibility, masked_bias


# Dropout compares 16 random bits with a threshold: drawing 64-bit integers is several times faster than
# `torch.bernoulli`, and the rate is exact to 1 / 65536.
_DROPOUT_STEPS = 2**16


@dataclass
class _Problem:
    """The inputs of one attention, in blocks, for forward and backward pass.

    Shapes: `query` `(b, hk, n, dk)`, `key` `(b, hk, m, dk)`, `value` `(b, hv, m, dv)`, `logits_projection` `(hk, h)`,
    `weights_projection` `(h, hv)`, both None for plain attention, `diagonals` `(h, n + m - 1)` or None. `rows` is
    the number of query rows of a block. `seed` makes both passes drop the same weights.
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
        # Dtype of the softmax and of sums over blocks.
        self.wide = torch.promote_types(self.dtype, torch.float32)
        # Matmuls read each head many times, and the projections return heads with large strides.
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
        """Yields start and stop of each block of rows."""
        length = self.query.shape[2]
        return ((start, min(start + self.rows, length)) for start in range(0, length, self.rows))

    def buffer(self, heads: int, wide: bool = False) -> torch.Tensor:
        """Uninitialized flat buffer for `heads` x rows x keys."""
        size = heads * self.rows * self.key.shape[2]
        return torch.empty(size, dtype=self.wide if wide else self.dtype, device=self.query.device)

    def cut(self, buffer: torch.Tensor, heads: int, rows: int) -> torch.Tensor:
        """A view `(heads, rows, m)` of the start of a buffer."""
        length = self.key.shape[2]
        return buffer[: heads * rows * length].view(heads, rows, length)

    def hidden(self, start: int, stop: int) -> torch.Tensor | None:
        """Additive mask of the rows in reverse order, 0 where a key is visible and very negative elsewhere,
        broadcastable to `(b, h, r, m)`."""
        visible = self.visibility.rows(start, stop, self.query.device)
        if visible is None:
            return None
        return masked_bias(torch.zeros((), dtype=self.wide, device=visible.device), visible.flip(2))

    def bias_rows(self, start: int, stop: int) -> torch.Tensor | None:
        """`(h, r, m)`, a view of the diagonals: reversed row i and key j are on diagonal i + j + n - stop."""
        if self.bias is None:
            return None
        heads, width = self.bias.shape
        shape = (heads, stop - start, self.key.shape[2])
        return self.bias.as_strided(shape, (width, 1, 1), self.query.shape[2] - stop)

    def keep(self, rows: int) -> torch.Tensor | None:
        """Booleans `(hv, r, m)`, false where dropout drops a weight; draws from the generator."""
        if self.generator is None:
            return None
        shape = (self.value.shape[1], rows, self.key.shape[2])
        count = shape[0] * shape[1] * shape[2]
        words = torch.empty((count + 3) // 4, dtype=torch.int64, device=self.query.device)
        words.random_(-(2**63), None, generator=self.generator)
        return words.view(torch.int16)[:count].view(shape) >= self.threshold - _DROPOUT_STEPS // 2


def _transposed(matrix: torch.Tensor | None) -> torch.Tensor | None:
    return None if matrix is None else matrix.t().contiguous()
