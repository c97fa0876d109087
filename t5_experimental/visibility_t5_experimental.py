# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Attention masks for padding, packed examples and causality: first as a description, then as boolean tensors.

The original gives every position a sequence id, 0 for padding, and each position attends only to positions with the
same id. Here `attention_mask` does this for unpacked rows, and `segment_ids` for packed ones.

Padding *queries* attend like all others, as in transformers' T5, so their outputs equal those of transformers; the
original zeroes them. No other position attends to them, and if the caller does not need them, they are not computed
and are 0 (unpadding_t5_experimental.py). The only exception are targets without inputs, which attend to all encoder
positions alike: [`without_padding`] and [`inputless_queries`] make their outputs equal the original's.
"""

from typing import NamedTuple

import torch

from .calls_t5_experimental import is_traced, may_read_values
from .unpadding_t5_experimental import Tokens


class Visibility(NamedTuple):
    """Which queries attend to which keys, described per query and per key; made and checked by [`visibility`].

    Tensors of queries times keys exist only for the requested rows, unless the user passed one.

    Attributes:
        query_length: n.
        key_length: m.
        mask: boolean `(b, 1 or h, 1 or n, m)`, true where a key is visible, or None.
        query_segments: `(b, n)`, segment ids: a query attends only to keys with the same id; or None.
        key_segments: `(b, m)`, or None.
        past_length: number of positions before the first query; a tensor for static caches.
        causal: whether a query attends only to itself and earlier positions.
        query_tokens: positions of unpadded queries; None without unpadding.
        key_tokens: the same for keys.
        inputless: result of [`inputless_queries`].
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
        """Mask of the queries from `start` to `stop`: booleans, broadcastable to `(b, h, stop - start, m)`, true where
        a key is visible; None if all are."""
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
        """[`Visibility.rows`] of all queries."""
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
        attention_mask: 2-D `(batch, keys)`, 0 at padding; it may be shorter than `key_length` if the cache has spare
            positions. Or 3-D `(batch, queries, keys)` or 4-D `(batch, 1 or heads, queries, keys)`: booleans or
            integers, nonzero where a key is visible, or floats in transformers' additive form, 0 where a key is visible
            and -1000 or less elsewhere.
        query_segments: `(batch, queries)`, id of each query's packed example, 0 for padding.
        key_segments: `(batch, keys)`, the same for the keys.
        query_length: number of queries.
        key_length: number of keys.
        past_length: see [`Visibility`].
        causal: see [`Visibility`].

    Raises:
        ValueError: a mask or segment ids do not fit the numbers of queries and keys.
    """
    mask = None
    if attention_mask is not None:
        if attention_mask.ndim == 2:
            mask = attention_mask[:, None, None, :] != 0
        else:
            mask = _visible_pairs(attention_mask if attention_mask.ndim == 4 else attention_mask[:, None])
        spare = key_length - mask.shape[-1]
        if spare > 0 and attention_mask.ndim == 2:
            mask = torch.nn.functional.pad(mask, (0, spare), value=False)
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
    """The encoder's output with 0 at padding, as in the original: a query that attends to padding alone gets zeros.

    Args:
        states: `(b, m, d)`.
        visible: mask of encoder-decoder attention.
    """
    real = _mask_of_keys(visible)
    if visible.key_segments is not None:
        tokens = visible.key_segments != 0
        real = tokens if real is None else real & tokens
    # Not a product: padding may hold NaN.
    return states if real is None else states.masked_fill(~real[..., None].to(states.device), 0)


def inputless_queries(visible: Visibility) -> torch.Tensor | None:
    """Booleans `(b, n)`, true for targets of packed examples without inputs; None if there are no such targets.

    The original gives each key weight 1 for them: it adds -1e9 to all logits, and the logarithm of the softmax's sum is
    lost to rounding. Source: `log_softmax` in mesh_tensorflow/ops.py.

    Args:
        visible: mask of encoder-decoder attention.
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
    """Booleans, true where a key is visible, from a 4-D mask in either form."""
    if not attention_mask.is_floating_point():
        return attention_mask != 0
    if not is_traced() and attention_mask.numel() and bool(attention_mask.max() > 0):
        raise ValueError(
            "A 3-D or 4-D attention mask of floats is added to the logits, so it cannot have values above 0: give "
            "booleans or integers for a mask of ones and zeros."
        )
    return attention_mask > -1000


def causal_positions(
    query_length: int, key_length: int, past_length: int | torch.Tensor, device: torch.device
) -> torch.Tensor | None:
    """Causal mask: a query attends to itself and earlier positions.

    Args:
        query_length: number of queries; the first is at position `past_length`.
        key_length: number of keys; the first is at position 0.
        past_length: number of positions before the first query; a tensor for static caches.
        device: device of the mask.

    Returns:
        Booleans `(1, 1, queries, keys)`; None if the only query is at the last position and sees every key.
    """
    if query_length == 1 and isinstance(past_length, int) and key_length == past_length + 1:
        return None
    queries = torch.arange(query_length, device=device) + past_length
    keys = torch.arange(key_length, device=device)
    return (keys[None, :] <= queries[:, None])[None, None]


def masked_bias(bias: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    """Combines position bias and mask into one bias for the logits.

    Hidden positions get half of the dtype's minimum: small enough for a weight of 0, and far enough from overflow that
    a query without visible keys (of a packed example without inputs) gives finite outputs, even in float16.

    Args:
        bias: floats broadcastable to `(batch, heads, queries, keys)`; zero without position bias.
        visible: result of [`Visibility.rows`].

    Returns:
        Floats in the dtype of `bias`, in the shape that the two broadcast to.
    """
    return bias.masked_fill(~visible, torch.finfo(bias.dtype).min / 2)
