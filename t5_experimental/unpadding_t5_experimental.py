# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Padding that is not computed.

Products, norms, feed-forward and dropout treat every position alike. Where enough of a batch is padding they run over
its tokens alone, `(1, tokens, features)`; only attentions need examples in rows, `(b, n, features)`, and get them with
zeros at padding. Columns before the first and behind the last token of all rows are left out of attention, too.

What comes back has zeros at padding, as in the original.
"""

from typing import NamedTuple

import torch
from torch.nn import functional as F

from .calls_t5_experimental import may_read_values


_MIN_PADDING = 1 / 16
"""Share of positions from which leaving them out is worth the copies: of a layer of base size on the CPU, gathering and
spreading takes about as long as computing one position in fifty."""


class Tokens(NamedTuple):
    """The positions of a batch that are computed; made by [`find_tokens`].

    Attributes:
        batch: b.
        length: n, of the whole rows.
        start: first column that holds a token.
        stop: column behind the last one that does.
        places: `(tokens,)`, in ascending order, indices into the flattened columns from `start` to `stop`, `(b * n',)`.
    """

    batch: int
    length: int
    start: int
    stop: int
    places: torch.Tensor

    @property
    def rows(self) -> torch.Tensor:
        """`(tokens,)`, the row of the batch that each stands in."""
        return self.places // (self.stop - self.start)

    def whole(self) -> "Tokens":
        """The same, with no column left out."""
        columns = self.places % (self.stop - self.start) + self.start
        return self._replace(start=0, stop=self.length, places=self.rows * self.length + columns)

    def trim(
        self, states: torch.Tensor, attention_mask: torch.Tensor | None, segment_ids: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """The columns from `start` to `stop` of states `(b, n, d)`, and of what there is of the other two, `(b, n)`."""
        window = slice(self.start, self.stop)
        return (
            states[:, window],
            None if attention_mask is None else attention_mask[:, window],
            None if segment_ids is None else segment_ids[:, window],
        )

    def gather(self, states: torch.Tensor) -> torch.Tensor:
        """`(b, n', features)` -> `(1, tokens, features)`."""
        return states.flatten(0, 1).index_select(0, self.places)[None]

    def spread(self, states: torch.Tensor) -> torch.Tensor:
        """`(1, tokens, features)` -> `(b, n', features)`, 0 at padding."""
        length, features = self.stop - self.start, states.shape[-1]
        rows = states.new_zeros(self.batch * length, features)
        return rows.index_copy_(0, self.places, states[0]).view(self.batch, length, features)

    def restore(self, states: torch.Tensor) -> torch.Tensor:
        """`(1, tokens, features)` -> `(b, n, features)`, 0 at padding and in the columns left out."""
        return F.pad(self.spread(states), (0, 0, self.start, self.length - self.stop))


def find_tokens(needed: torch.Tensor | None, states: torch.Tensor) -> Tokens | None:
    """The positions to compute, or None where all have to be, or nearly all, or where they cannot be counted.

    Args:
        needed: booleans `(b, n)`, true where the result is; no such position sees another one. None: everywhere.
        states: `(b, n, d)`, to be computed with.
    """
    if needed is None or needed.shape != states.shape[:2]:
        return None
    if not may_read_values(needed) or not may_read_values(states):
        return None
    needed = needed.cpu()
    columns = needed.any(0).nonzero()
    if len(columns) == 0:
        return None
    start, stop = int(columns[0]), int(columns[-1]) + 1
    places = needed[:, start:stop].flatten().nonzero().squeeze(-1)
    if len(places) > (1 - _MIN_PADDING) * needed.numel():
        return None
    batch, length = needed.shape
    return Tokens(batch, length, start, stop, places.to(states.device, non_blocking=True))


def real_positions(attention_mask: torch.Tensor | None, segment_ids: torch.Tensor | None) -> torch.Tensor | None:
    """Booleans `(b, n)`, false at padding, or None where neither a padding mask nor segment ids alone tell.

    Args:
        attention_mask: `(b, n)`, nonzero where a position is not padding; of any other shape it does not tell.
        segment_ids: `(b, n)`, 0 at padding.
    """
    mask = segment_ids if attention_mask is None else attention_mask
    if mask is None or mask.ndim != 2 or (attention_mask is not None and segment_ids is not None):
        return None
    return mask != 0


def positions_up_to_labels(labels: torch.Tensor, ignored: int) -> torch.Tensor:
    """Booleans `(b, n)`, false behind the last label of a row, which causal attention never sees.

    Args:
        labels: `(b, n)`.
        ignored: what stands where there is no label.
    """
    return (labels != ignored).flip(1).cumsum(1).flip(1) > 0
