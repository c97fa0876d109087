# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Unpadding: a padding-free forward pass.

Linear layers, norms, feed-forward and dropout treat all positions alike. If enough of a batch is padding, they run on
the tokens alone, unpadded to `(1, tokens, features)`. Only attention needs rows, `(b, n, features)`, and gets them with
zeros at padding; it skips the columns before the first and after the last token of the batch.

The output has zeros at padding, as in the original.
"""

from typing import NamedTuple

import torch
from torch.nn import functional as F

from .calls_t5_experimental import may_read_values


_MIN_PADDING = 1 / 16
"""Smallest share of padding that is worth unpadding: in a layer of base size on the CPU, the copies take about as long
as computing 2% of the positions."""


class Tokens(NamedTuple):
    """The positions of a batch to compute; made by [`find_tokens`].

    Attributes:
        batch: b.
        length: n, length of the padded rows.
        start: first column with a token.
        stop: column after the last one with a token.
        places: `(tokens,)`, ascending indices into the flattened columns from `start` to `stop`, `(b * n',)`.
    """

    batch: int
    length: int
    start: int
    stop: int
    places: torch.Tensor

    @property
    def rows(self) -> torch.Tensor:
        """`(tokens,)`, the row of each token in the batch."""
        return self.places // (self.stop - self.start)

    def whole(self) -> "Tokens":
        """The same tokens with `start` 0 and `stop` n."""
        columns = self.places % (self.stop - self.start) + self.start
        return self._replace(start=0, stop=self.length, places=self.rows * self.length + columns)

    def trim(
        self, states: torch.Tensor, attention_mask: torch.Tensor | None, segment_ids: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """The columns from `start` to `stop` of states `(b, n, d)` and, if given, of masks `(b, n)`."""
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
        """`(1, tokens, features)` -> `(b, n, features)`, 0 at padding."""
        return F.pad(self.spread(states), (0, 0, self.start, self.length - self.stop))


def find_tokens(needed: torch.Tensor | None, states: torch.Tensor) -> Tokens | None:
    """The positions to compute; None for all of them: if nearly all are needed, or counting is impossible (compiled).

    Args:
        needed: booleans `(b, n)`, true where the output is needed; these positions must not attend to others. None for
            all.
        states: `(b, n, d)`, the input.
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
    """Booleans `(b, n)`, false at padding; None without exactly one of a 2-D mask and segment ids.

    Args:
        attention_mask: `(b, n)`, 0 at padding.
        segment_ids: `(b, n)`, 0 at padding.
    """
    mask = segment_ids if attention_mask is None else attention_mask
    if mask is None or mask.ndim != 2 or (attention_mask is not None and segment_ids is not None):
        return None
    return mask != 0


def positions_up_to_labels(labels: torch.Tensor, ignored: int) -> torch.Tensor:
    """Booleans `(b, n)`, false after the last label of a row, which causal attention never reads.

    Args:
        labels: `(b, n)`.
        ignored: the label at positions that the loss ignores.
    """
    return (labels != ignored).flip(1).cumsum(1).flip(1) > 0
