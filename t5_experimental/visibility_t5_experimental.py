# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Which positions see which: padding, packed examples and causality, as a description and as boolean tensors.

The original gives every position a sequence id, 0 for padding, and lets a position see only positions of its own id. An
`attention_mask` here says the same for unpacked rows, `segment_ids` for packed ones. Padding *queries* are treated as
in transformers (they see what any query sees) and not zeroed as in the original: no other position can see them, so
nothing but their own, meaningless outputs differs, and those stay equal to what transformers' T5 puts there. Where
no one reads them they are not computed at all, and are 0 then (unpadding_t5_experimental.py). Only targets
without inputs would read them, which see no position of the encoder and so attend to all alike: what they find is made
the original's, by [`without_padding`] and [`inputless_queries`].
"""

from typing import NamedTuple

import torch

from .calls_t5_experimental import is_traced, may_read_values
from .unpadding_t5_experimental import Tokens


class Visibility(NamedTuple):
    """Which query sees which key, in numbers per query and per key; [`visibility`] makes and checks it.

    A tensor of queries times keys exists only for the rows that are asked for, unless a user gave one.

    Attributes:
        query_length: n.
        key_length: m.
        mask: boolean `(b, 1 or h, 1 or n, m)`, true where a key is visible, or None.
        query_segments: `(b, n)`, a query sees only keys of its own id, or None.
        key_segments: `(b, m)`, or None.
        past_length: positions before the first query, the first key standing at 0; a tensor for caches of fixed size.
        causal: a query sees only itself and what comes before it.
        query_tokens: the queries that are computed, which hidden states then hold alone; None for all.
        key_tokens: the same of the keys.
        inputless: what [`inputless_queries`] returned.
    """

    query_length: int
    key_length: int
    mask: torch.Tensor | None = None
    query_segments: torch.Tensor | None = None
    key_segments: torch.Tensor | None = None
    past_length: int | torch.Tensor = 0
    causal: bool = False
    query_tokens: Tokens | None = None
    key_tokens: Tokens | None = None
    inputless: torch.Tensor | None = None

    def rows(self, start: int, stop: int, device: torch.device) -> torch.Tensor | None:
        """Booleans, broadcastable to `(b, h, stop - start, m)`, true where one of the queries from `start` to `stop`
        sees a key; None if all see all."""
        visible = None
        if self.mask is not None:
            visible = self.mask if self.mask.shape[2] == 1 else self.mask[:, :, start:stop]
        if self.query_segments is not None and self.key_segments is not None:
            same = (self.query_segments[:, start:stop, None] == self.key_segments[:, None, :])[:, None]
            visible = same if visible is None else visible & same
        if self.causal:
            causal = causal_positions(stop - start, self.key_length, self.past_length + start, device)
            if visible is None or causal is None:
                return causal if visible is None else visible
            visible = visible & causal
        return visible

    def all_rows(self, device: torch.device) -> torch.Tensor | None:
        """What [`Visibility.rows`] gives for all queries."""
        return self.rows(0, self.query_length, device)


def visibility(
    attention_mask: torch.Tensor | None,
    query_segments: torch.Tensor | None,
    key_segments: torch.Tensor | None,
    query_length: int,
    key_length: int,
    past_length: int | torch.Tensor = 0,
    causal: bool = False,
) -> Visibility:
    """Combines a padding mask, segment ids and causality.

    Args:
        attention_mask: 2-D `(batch, keys)`, nonzero where a key is not padding; it may be shorter than `key_length`
            when the cache has free room. Or 3-D `(batch, queries, keys)` or 4-D `(batch, 1 or heads, queries, keys)`:
            booleans or whole numbers, nonzero where a query sees a key, or floats in transformers' additive form, 0
            where it does and -1000 or less elsewhere.
        query_segments: `(batch, queries)`, id of the packed example that a query belongs to, 0 for padding.
        key_segments: `(batch, keys)`, the same for the keys.
        query_length: number of queries.
        key_length: number of keys.
        past_length: see [`Visibility`].
        causal: see [`Visibility`].

    Raises:
        ValueError: a mask does not have the lengths of what it masks.
    """
    mask = None
    if attention_mask is not None:
        if attention_mask.ndim == 2:
            mask = attention_mask[:, None, None, :] != 0
        else:
            mask = _visible_pairs(attention_mask if attention_mask.ndim == 4 else attention_mask[:, None])
        free_room = key_length - mask.shape[-1]
        if free_room > 0 and attention_mask.ndim == 2:
            mask = torch.nn.functional.pad(mask, (0, free_room), value=False)
        if mask.shape[-1] != key_length or mask.shape[-2] not in (1, query_length):
            raise ValueError(
                f"The attention mask of shape {tuple(attention_mask.shape)} does not fit {query_length} queries and "
                f"{key_length} keys: give a mask with one entry per key, past ones included."
            )
    if query_segments is None or key_segments is None:
        return Visibility(query_length, key_length, mask, None, None, past_length, causal)
    if query_segments.shape[-1] != query_length or key_segments.shape[-1] != key_length:
        raise ValueError(
            f"Segment ids of lengths {query_segments.shape[-1]} and {key_segments.shape[-1]} do not fit "
            f"{query_length} queries and {key_length} keys: give one id per token."
        )
    return Visibility(query_length, key_length, mask, query_segments, key_segments, past_length, causal)


def without_padding(states: torch.Tensor, visible: Visibility) -> torch.Tensor:
    """The encoder's output with 0 at padding, as the original has it: a query whose keys all are padding finds nothing.

    Args:
        states: `(b, m, d)`.
        visible: which of them the decoder sees.
    """
    real = _mask_of_keys(visible)
    if visible.key_segments is not None:
        tokens = visible.key_segments != 0
        real = tokens if real is None else real & tokens
    # Not a product: there may be NaN where nobody looks.
    return states if real is None else states.masked_fill(~real[..., None].to(states.device), 0)


def inputless_queries(visible: Visibility) -> torch.Tensor | None:
    """Booleans `(b, n)`, true for the targets of a packed example that has no inputs; None if there are none.

    The original gives them every key with weight 1: it adds -1e9 to their logits, next to which the logarithm of the
    softmax's sum is lost to rounding. Source: `log_softmax` in mesh_tensorflow/ops.py.

    Args:
        visible: of encoder-decoder attention.
    """
    queries, keys = visible.query_segments, visible.key_segments
    if queries is None or keys is None:
        return None
    if (real := _mask_of_keys(visible)) is not None:
        keys = keys.masked_fill(~real, 0)
    inputless = (queries != 0) & (queries[:, :, None] != keys[:, None, :]).all(-1)
    return None if may_read_values(inputless) and not bool(inputless.any()) else inputless


def _mask_of_keys(visible: Visibility) -> torch.Tensor | None:
    """The part of the mask that is the same for all queries, booleans `(b, m)`."""
    if visible.mask is None or visible.mask.shape[1:3] != (1, 1):
        return None
    return visible.mask[:, 0, 0]


def _visible_pairs(attention_mask: torch.Tensor) -> torch.Tensor:
    """True where a query sees a key, from a 4-D mask in either form."""
    if not attention_mask.is_floating_point():
        return attention_mask != 0
    if not is_traced() and attention_mask.numel() and bool(attention_mask.max() > 0):
        raise ValueError(
            "A 3-D or 4-D attention mask of floats is added to the logits, so it cannot have values above 0: give "
            "booleans or whole numbers for a mask of ones and zeros."
        )
    return attention_mask > -1000


def causal_positions(
    query_length: int, key_length: int, past_length: int | torch.Tensor, device: torch.device
) -> torch.Tensor | None:
    """Lets a query see itself and what comes before it.

    Args:
        query_length: number of queries; the first stands at position `past_length`.
        key_length: number of keys; the first stands at position 0.
        past_length: positions before the first query; a tensor for caches of fixed size.
        device: where to make the mask.

    Returns:
        Boolean `(1, 1, queries, keys)`; None if the only query is the last position, which sees every key.
    """
    if query_length == 1 and isinstance(past_length, int) and key_length == past_length + 1:
        return None
    queries = torch.arange(query_length, device=device) + past_length
    keys = torch.arange(key_length, device=device)
    return (keys[None, :] <= queries[:, None])[None, None]


def masked_bias(bias: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    """Folds visibility into the bias that attention adds to its logits.

    Hidden positions get half of the dtype's most negative number: small enough that their weight is 0, and far enough
    from overflow that a query which sees nothing (a packed example without inputs, say) gives finite numbers in
    float16, too.

    Args:
        bias: floats broadcastable to `(batch, heads, queries, keys)`; a zero where there is no position bias.
        visible: what [`Visibility.rows`] returned.

    Returns:
        Floats in the dtype of `bias`, in the shape that the two broadcast to.
    """
    return bias.masked_fill(~visible, torch.finfo(bias.dtype).min / 2)
