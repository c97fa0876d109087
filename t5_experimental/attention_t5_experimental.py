# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""T5's relative position bias, multi-head attention and talking-heads attention.

Axes in the shapes below:

    b  batch            n  queries          m  keys             d  d_model
    h  softmax heads    hk key heads        hv value heads      (equal in plain attention)
    dk size of a query or key head          dv size of a value head

Logits are not divided by sqrt(dk): T5 folds that factor into the initialization of q.
"""

from functools import cache
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from transformers.cache_utils import Cache, EncoderDecoderCache

from .blockwise_attention_t5_experimental import blockwise_attention
from .calls_t5_experimental import is_transformed
from .configuration_t5_experimental import TALKING_HEADS, LayerSpec, T5ExperimentalConfig
from .linears_t5_experimental import apply_linear
from .onednn_t5_experimental import is_eager_on_cpu
from .unpadding_t5_experimental import Tokens
from .visibility_t5_experimental import Visibility, masked_bias


# For smaller problems, computing all pairs at once was as fast as blocks (two cores, float32) and takes little memory.
_MIN_QUERIES = 16
_MIN_PAIRS = 2**14


def bucket_starts(num_buckets: int, max_distance: int) -> tuple[int, ...]:
    """Smallest distances of the logarithmic buckets of one direction, except the first of them.

    The first `num_buckets // 2` buckets hold one distance each. Bucket `num_buckets // 2 + i` begins at the smallest
    distance with `log(distance / exact) / log(max_distance / exact) * (num_buckets - exact) >= i`. With integers this
    comparison has no rounding error that could put a distance into the next bucket on some device.

    Source: `_relative_position_bucket` in mesh_tensorflow/transformer/transformer_layers.py.
    """
    exact = num_buckets // 2
    logarithmic = num_buckets - exact
    starts: list[int] = []
    for i in range(1, logarithmic):
        least, most = exact, max(exact, max_distance)
        while least < most:  # configurations allow 2**31 - 1
            middle = (least + most) // 2
            if middle**logarithmic * exact**i < max_distance**i * exact**logarithmic:
                least = middle + 1
            else:
                most = middle
        starts.append(least)
    return tuple(starts)


_cached_bucket_starts = cache(bucket_starts)


def relative_position_bucket(
    relative_position: torch.Tensor, bidirectional: bool, num_buckets: int, max_distance: int
) -> torch.Tensor:
    """Bucket of each relative position.

    Args:
        relative_position: integers of any shape, position of the key minus position of the query.
        bidirectional: whether keys after the query have their own buckets (encoder) or share bucket 0 (decoder).
        num_buckets: number of buckets; if bidirectional, half of them for each direction.
        max_distance: this distance and all larger ones share the last bucket.

    Returns:
        Integers in `[0, num_buckets)`, in the shape of `relative_position`.
    """
    offset = torch.zeros_like(relative_position)
    if bidirectional:
        num_buckets //= 2
        offset = (relative_position > 0) * num_buckets
        distance = relative_position.abs()
    else:
        distance = (-relative_position).clamp(min=0)
    bucket = distance.clamp(max=num_buckets // 2)
    # The compiler warns of a cache, and traces what is behind it.
    starts = bucket_starts if torch.compiler.is_compiling() else _cached_bucket_starts
    for start in starts(num_buckets, max_distance):
        bucket = bucket + (distance >= start)
    return offset + bucket


def bias_diagonals(
    table: nn.Embedding,
    visible: Visibility,
    bidirectional: bool,
    max_distance: int,
    device: torch.device,
) -> torch.Tensor:
    """Relative position bias for every distance between a query and a key.

    Args:
        table: `(buckets, h)`.
        visible: has the numbers and positions of queries and keys.
        bidirectional: see [`relative_position_bucket`].
        max_distance: see [`relative_position_bucket`].
        device: of the result; offloading may not have moved the table there yet.

    Returns:
        `(h, n + m - 1)`; query i and key j have index j - i + n - 1.
    """
    differences = torch.arange(1 - visible.query_length, visible.key_length, device=device) - visible.past_length
    buckets = relative_position_bucket(differences, bidirectional, table.num_embeddings, max_distance)
    return table(buckets).t()  # [n + m - 1, h] -> [h, n + m - 1]


def dense_bias(diagonals: torch.Tensor, visible: Visibility) -> torch.Tensor:
    """Position bias and mask of every query-key pair, `(1 or b, h, n, m)`, from [`bias_diagonals`]."""
    n, m = visible.query_length, visible.key_length
    device = diagonals.device
    # [n, m] -> index of the diagonal
    diagonal = torch.arange(m, device=device)[None, :] - torch.arange(n, device=device)[:, None] + (n - 1)
    bias = diagonals[:, diagonal][None]
    mask = visible.all_rows(device)
    return bias if mask is None else masked_bias(bias, mask)


def shared_dropout(states: torch.Tensor, rate: float, dim: int, tokens: Tokens | None = None) -> torch.Tensor:
    """Dropout that drops or keeps all elements along an axis together.

    Source: `noise_shape` of `dropout` in mesh_tensorflow/ops.py.

    Args:
        states: of any shape.
        rate: probability of an element to be zeroed; the others are divided by `1 - rate`.
        dim: the axis.
        tokens: positions of unpadded `states` `(1, tokens, features)`; all tokens of a row then share the dropout mask.
    """
    shape = list(states.shape if tokens is None else (tokens.batch, *states.shape[1:]))
    shape[dim] = 1
    # Ones and zeros, because half precision would round 1 / (1 - rate).
    kept = torch.empty(shape, dtype=states.dtype, device=states.device).bernoulli_(1 - rate)
    if tokens is not None:
        kept = kept.bool().index_select(0, tokens.rows).transpose(0, 1)  # [b, 1, features] -> [1, tokens, features]
    return (states * kept).mul_(1 / (1 - rate))


class InitialValues(NamedTuple):
    """How a parameter is initialized, if not by its module's default.

    Attributes:
        distribution: `"normal"`, `"truncated_normal"` (at two standard deviations) or `"uniform"`.
        scale: standard deviation before truncation, or bound of the uniform distribution.
    """

    distribution: str
    scale: float


class AttentionOutput(NamedTuple):
    """Output of an attention: `hidden_states` `(b, n, d)` and, if requested, softmax weights `(b, h, n, m)`."""

    hidden_states: torch.Tensor
    weights: torch.Tensor | None


class T5Attention(nn.Module):
    """Multi-head self-attention or encoder-decoder attention.

    Args:
        config: config of the model.
        spec: sizes of the layer.
        has_relative_attention_bias: whether this layer holds a bias table, see `relative_attention_type` of the
            configuration.
        layer_idx: index of the layer in its stack, for the cache.
    """

    # The original initializes only these four kernels without truncation.
    kernel_distribution = "normal"

    def __init__(
        self,
        config: T5ExperimentalConfig,
        spec: LayerSpec,
        has_relative_attention_bias: bool = False,
        layer_idx: int = 0,
    ):
        super().__init__()
        self.config = config
        self.spec = spec
        self.layer_idx = layer_idx
        self.dropout = config.dropout_rate
        self.drops_keys = config.broadcast_dropout
        self.q = nn.Linear(config.d_model, spec.num_key_heads * spec.d_k, bias=False)
        self.k = nn.Linear(config.d_model, spec.num_key_heads * spec.d_k, bias=False)
        self.v = nn.Linear(config.d_model, spec.num_value_heads * spec.d_v, bias=False)
        self.o = nn.Linear(spec.num_value_heads * spec.d_v, config.d_model, bias=False)
        if has_relative_attention_bias:
            buckets = config.relative_attention_num_buckets
            self.relative_attention_bias = nn.Embedding(buckets, spec.num_heads)
            glorot = (6 / (buckets + spec.num_heads)) ** 0.5
            self.relative_attention_bias.initial_values = InitialValues("uniform", glorot)  # type: ignore[assignment]
        for linear in (self.q, self.k, self.v, self.o):
            # T5 puts the 1/sqrt(dk) of scaled dot-product attention into the initialization of q.
            scale = linear.in_features**-0.5 * (spec.d_k**-0.5 if linear is self.q else 1.0)
            linear.initial_values = InitialValues(self.kernel_distribution, scale)  # type: ignore[assignment]

    @property
    def weight_dropout(self) -> float:
        """Dropout rate of single weights: 0 if whole keys are dropped instead, before [`T5Attention.attend`]."""
        return self.dropout if self.training and not self.drops_keys else 0.0

    @property
    def uses_sdpa(self) -> bool:
        """Whether [`T5Attention.attend`] calls `F.scaled_dot_product_attention`."""
        return self.config._attn_implementation == "sdpa"

    def self_attention_bias(self, visible: Visibility, bidirectional: bool, device: torch.device) -> torch.Tensor:
        """Diagonals `(h, n + m - 1)` of the position bias, for all layers of the stack with as many heads.

        Call it inside the forward pass of the block that holds the table: FSDP and ZeRO-3 gather a block's parameters
        only then.
        """
        max_distance = self.config.relative_attention_max_distance
        return bias_diagonals(self.relative_attention_bias, visible, bidirectional, max_distance, device)

    def uses_blocks(
        self,
        states: torch.Tensor,
        diagonals: torch.Tensor | None,
        visible: Visibility | None,
        output_attentions: bool,
    ) -> bool:
        """Whether to compute attention in blocks of query rows, which needs `diagonals` and `visible` but no bias for
        every pair: if the problem is large enough, unless the model uses the eager implementation."""
        return (
            visible is not None
            and not output_attentions
            and self.config._attn_implementation == "sdpa"
            and not is_transformed()
            and not torch.compiler.is_exporting()  # a graph for all sizes, of torch's own operators
            and visible.query_length >= _MIN_QUERIES
            and visible.query_length * visible.key_length >= _MIN_PAIRS
            and self._gains_from_blocks(states, diagonals)
        )

    def _gains_from_blocks(self, states: torch.Tensor, diagonals: torch.Tensor | None) -> bool:
        """Whether torch has no fused kernel for this on the CPU and would materialize all pairs: with a trainable bias,
        or with dropout. With dropout also without gradients, because a checkpointed block must draw the same random
        numbers in both passes."""
        if not is_eager_on_cpu(states):
            return False
        trains_bias = torch.is_grad_enabled() and diagonals is not None and diagonals.requires_grad
        return trains_bias or self.weight_dropout > 0

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_bias: torch.Tensor | None = None,
        key_value_states: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        output_attentions: bool = False,
        diagonals: torch.Tensor | None = None,
        visible: Visibility | None = None,
    ) -> AttentionOutput:
        """Computes attention.

        Args:
            hidden_states: `(b, n, d)`, normed input for queries, and for keys and values if there is no
                `key_value_states`. If `visible` has `query_tokens`, input and output are unpadded, `(1, tokens, d)`.
            attention_bias: position bias and mask, added to the logits, broadcastable to `(b, h, n, m)`. Not read if
                [`T5Attention.uses_blocks`].
            key_value_states: `(b, m, d)`, the encoder's output, for encoder-decoder attention; `(1, tokens, d)` if
                `visible` has `key_tokens`.
            past_key_values: cache to read and extend.
            output_attentions: also return the softmax weights; this uses the eager path.
            diagonals: `(h, n + m - 1)`, position bias from [`bias_diagonals`].
            visible: mask, read together with `diagonals`.
        """
        tokens, key_tokens = (None, None) if visible is None else (visible.query_tokens, visible.key_tokens)
        query = apply_linear(self.q, hidden_states)
        query = self._split_heads(query if tokens is None else tokens.spread(query), self.spec.d_k)  # [b, hk, n, dk]
        key, value = self._keys_and_values(hidden_states, key_value_states, past_key_values, key_tokens)
        if self.training and self.drops_keys and self.dropout > 0:
            value = shared_dropout(value, self.dropout, dim=-1)
        uses_blocks = self.uses_blocks(hidden_states, diagonals, visible, output_attentions)
        if uses_blocks and visible is not None:
            context, weights = self.attend_blockwise(query.to(key.dtype), key, value, diagonals, visible), None
        else:
            # A cache may have a wider dtype than the model.
            context, weights = self.attend(query.to(key.dtype), key, value, attention_bias, output_attentions)
        if visible is not None and visible.inputless is not None:
            if uses_blocks or output_attentions or not self.uses_sdpa:
                everything = context * visible.key_length  # if all m keys are hidden, each has weight 1 / m
            else:
                everything = sum_of_hidden(query, key, value)
            context = torch.where(visible.inputless[:, None, :, None], everything, context)
        merged = context.to(query.dtype).transpose(1, 2).flatten(2)  # [b, hv, n, dv] -> [b, n, hv * dv]
        return AttentionOutput(apply_linear(self.o, merged if tokens is None else tokens.gather(merged)), weights)

    @staticmethod
    def _split_heads(states: torch.Tensor, size: int) -> torch.Tensor:
        return states.unflatten(-1, (-1, size)).transpose(1, 2)  # [b, n, heads * size] -> [b, heads, n, size]

    def _keys_and_values(
        self,
        hidden_states: torch.Tensor,
        key_value_states: torch.Tensor | None,
        past_key_values: Cache | None,
        tokens: Tokens | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys `(b, hk, m, dk)` and values `(b, hv, m, dv)`, cached ones included. The encoder's are computed once."""
        is_cross = key_value_states is not None
        layers = past_key_values
        if isinstance(past_key_values, EncoderDecoderCache):
            layers = past_key_values.cross_attention_cache if is_cross else past_key_values.self_attention_cache
            if is_cross and past_key_values.is_updated.get(self.layer_idx):
                layer: Any = layers.layers[self.layer_idx]
                return self._from_cache(layer.keys, layer.values)
        source = key_value_states if key_value_states is not None else hidden_states
        key, value = apply_linear(self.k, source), apply_linear(self.v, source)
        if tokens is not None:
            key, value = tokens.spread(key), tokens.spread(value)
        key, value = self._to_cache(key, value)
        if layers is not None:
            key, value = layers.update(key, value, self.layer_idx)
            if is_cross and isinstance(past_key_values, EncoderDecoderCache):
                past_key_values.is_updated[self.layer_idx] = True
        return self._from_cache(key, value)

    @property
    def _has_even_heads(self) -> bool:
        return self.spec.num_key_heads == self.spec.num_value_heads

    def _to_cache(self, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Projections `(b, m, heads * size)` in the shape of the cache, `(b, heads, m, size)`.

        A static cache needs equal numbers of key and value heads: if they differ, it holds all heads as one.
        """
        if self._has_even_heads:
            return self._split_heads(key, self.spec.d_k), self._split_heads(value, self.spec.d_v)
        return key[:, None], value[:, None]

    def _from_cache(self, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self._has_even_heads:
            return key, value
        return self._split_heads(key.squeeze(1), self.spec.d_k), self._split_heads(value.squeeze(1), self.spec.d_v)

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_bias: torch.Tensor | None,
        output_attentions: bool,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Computes attention between the projections.

        Args:
            query: `(b, hk, n, dk)`.
            key: `(b, hk, m, dk)`.
            value: `(b, hv, m, dv)`.
            attention_bias: broadcastable to `(b, h, n, m)`.
            output_attentions: also return the softmax weights.

        Returns:
            `(b, hv, n, dv)`, and the weights `(b, h, n, m)` or None.
        """
        dropout = self.weight_dropout
        if self.uses_sdpa and not output_attentions:
            if attention_bias is not None:
                attention_bias = attention_bias.to(query.dtype)
            context = F.scaled_dot_product_attention(query, key, value, attention_bias, dropout_p=dropout, scale=1.0)
            return context, None
        logits = query @ key.transpose(-1, -2)
        weights = softmax_with_bias(logits, attention_bias)
        return F.dropout(weights, dropout) @ value, weights

    def attend_blockwise(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        diagonals: torch.Tensor | None,
        visible: Visibility,
    ) -> torch.Tensor:
        """[`T5Attention.attend`] in blocks of query rows; bias and mask as in [`T5Attention.forward`]."""
        return blockwise_attention(query, key, value, *self._projections(), diagonals, visible, self.weight_dropout)

    def _projections(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """The matrices that mix heads before and after the softmax."""
        return None, None


def softmax_with_bias(logits: torch.Tensor, attention_bias: torch.Tensor | None) -> torch.Tensor:
    """Softmax of `logits` `(b, h, n, m)` plus bias over the keys, in at least float32, in the dtype of `logits`."""
    if attention_bias is not None:
        logits = logits + attention_bias
    return F.softmax(logits, dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32)).to(logits.dtype)


def sum_of_hidden(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Attention output of queries that get every key with weight 1, see [`inputless_queries`].

    The output does not depend on the logits, but the gradients do, as for any softmax. torch's kernels compute wrong
    gradients if all keys are hidden, because they also lose the logarithm of the sum to rounding.

    Args:
        query: `(b, h, n, dk)`.
        key: `(b, h, m, dk)`.
        value: `(b, h, m, dv)`.

    Returns:
        `(b, h, n, dv)`.
    """
    # d logits = (v_j - mean v) . d output
    centered = (value - value.mean(-2, keepdim=True)).detach()
    linear = query.to(key.dtype) @ (key.transpose(-1, -2) @ centered)
    return value.sum(-2, keepdim=True) + (linear - linear.detach())


class HeadProjection(nn.Module):
    """Learned projection across heads, a matrix `(heads in, heads out)`.

    The weight has the layout of the original and the paper. It is not an `nn.Linear`, so that quantizers and adapters
    for "all linear layers" leave it alone.
    """

    def __init__(self, heads_in: int, heads_out: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(heads_in, heads_out))

    def forward(self, states: torch.Tensor | None = None) -> torch.Tensor:
        """`(b, heads in, n, m)` -> `(b, heads out, n, m)`; without states the matrix itself.

        Reading the matrix by a call lets sharding engines gather it.
        """
        if states is None:
            return self.weight
        return torch.einsum("binm,io->bonm", states, self.weight.to(states.dtype))


class T5TalkingHeadsAttention(T5Attention):
    """Talking-heads attention (https://arxiv.org/abs/2003.02436).

        J = q k^T                  [b, hk, n, m]   logits of the key heads
        L = J mixed by P_l + bias  [b, h,  n, m]   position bias and mask are per softmax head
        W = softmax(L)             [b, h,  n, m]
        U = W mixed by P_w         [b, hv, n, m]   rows no longer sum to 1
        O = dropout(U) v           [b, hv, n, dv]

    P_l is `logits_projection`, P_w is `weights_projection`. `output_attentions` returns W.
    """

    kernel_distribution = "truncated_normal"
    uses_sdpa = False

    def __init__(self, config: T5ExperimentalConfig, spec: LayerSpec, *args: Any):
        super().__init__(config, spec, *args)
        self.logits_projection = HeadProjection(spec.num_key_heads, spec.num_heads)
        self.weights_projection = HeadProjection(spec.num_heads, spec.num_value_heads)

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_bias: torch.Tensor | None,
        output_attentions: bool,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """See [`T5Attention.attend`]; computes all pairs at once. The reference for [`blockwise_attention`]."""
        logits = self.logits_projection(query @ key.transpose(-1, -2))
        weights = softmax_with_bias(logits, attention_bias)
        mixed = F.dropout(self.weights_projection(weights), self.weight_dropout)
        return mixed @ value, weights if output_attentions else None

    def _gains_from_blocks(self, states: torch.Tensor, diagonals: torch.Tensor | None) -> bool:
        """Always, as there is no other kernel. XLA devices have neither overlapping views nor generators."""
        return states.device.type != "xla"

    def _projections(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        return self.logits_projection(), self.weights_projection()


def build_attention(
    config: T5ExperimentalConfig, spec: LayerSpec, has_relative_attention_bias: bool = False, layer_idx: int = 0
) -> T5Attention:
    """Builds the attention of a layer from its spec; for the arguments see [`T5Attention`]."""
    attention_class = T5TalkingHeadsAttention if spec.attention_type == TALKING_HEADS else T5Attention
    return attention_class(config, spec, has_relative_attention_bias, layer_idx)
