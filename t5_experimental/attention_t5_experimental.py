# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Attention of T5: relative position bias, plain multi-head attention, talking-heads attention.

Axes, as they occur in shapes below:

    b  batch            n  queries          m  keys             d  d_model
    h  softmax heads    hk key heads        hv value heads      (plain attention: all three are one)
    dk size of a query or key head          dv size of a value head

Logits are not divided by sqrt(dk): T5 folds that factor into the initialiser of q.
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
from .onednn_t5_experimental import apply_linear, is_eager_on_cpu
from .unpadding_t5_experimental import Tokens
from .visibility_t5_experimental import Visibility, masked_bias


# Below these, all pairs at once were not slower than blocks of rows (two cores, float32), and their memory is small.
_MIN_QUERIES = 16
_MIN_PAIRS = 2**14


@cache
def bucket_starts(num_buckets: int, max_distance: int) -> tuple[int, ...]:
    """Distances at which the logarithmic half of the buckets of one direction begins, after its first bucket.

    The first `num_buckets // 2` buckets hold one distance each. Bucket `num_buckets // 2 + i` begins at the smallest
    distance with `log(distance / exact) / log(max_distance / exact) * (num_buckets - exact) >= i`. In whole numbers the
    comparison has no rounding, and so no device on which a distance could fall into the neighbouring bucket.

    Source: `_relative_position_bucket` in mesh_tensorflow/transformer/transformer_layers.py.
    """
    exact = num_buckets // 2
    logarithmic = num_buckets - exact
    starts: list[int] = []
    distance = exact
    for i in range(1, logarithmic):
        while distance**logarithmic * exact**i < max_distance**i * exact**logarithmic:
            distance += 1
        starts.append(distance)
    return tuple(starts)


def relative_position_bucket(
    relative_position: torch.Tensor, bidirectional: bool, num_buckets: int, max_distance: int
) -> torch.Tensor:
    """Bucket of each relative position.

    Args:
        relative_position: integers of any shape, position of the key minus position of the query.
        bidirectional: keys after the query have buckets of their own (encoder); otherwise they share the query's
            (decoder).
        num_buckets: buckets in all; bidirectional, half of them for each direction.
        max_distance: distances from here on share the last bucket.

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
    for start in bucket_starts(num_buckets, max_distance):
        bucket = bucket + (distance >= start)
    return offset + bucket


def bias_diagonals(
    table: nn.Embedding,
    visible: Visibility,
    bidirectional: bool,
    max_distance: int,
    device: torch.device,
) -> torch.Tensor:
    """Relative position bias of every difference of positions, on which alone it depends.

    Args:
        table: `(buckets, h)`.
        visible: says how many queries and keys there are, and where they stand.
        bidirectional: see [`relative_position_bucket`].
        max_distance: see [`relative_position_bucket`].
        device: of the result; the table's own weight may not have arrived on it yet.

    Returns:
        `(h, n + m - 1)`; query i and key j have number j - i + n - 1.
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
    """Dropout that decides once for all entries along an axis.

    Source: `noise_shape` of `dropout` in mesh_tensorflow/ops.py.

    Args:
        states: of any shape.
        rate: share of the decisions that set to 0; what stays is divided by `1 - rate`.
        dim: axis that shares a decision.
        tokens: what the rows of `states` `(1, tokens, features)` are, if positions of a batch share decisions.
    """
    shape = list(states.shape if tokens is None else (tokens.batch, *states.shape[1:]))
    shape[dim] = 1
    # Ones and zeros, as half precision has no digits for 1 / (1 - rate).
    kept = torch.empty(shape, dtype=states.dtype, device=states.device).bernoulli_(1 - rate)
    if tokens is not None:
        kept = kept.bool().index_select(0, tokens.rows).transpose(0, 1)  # [b, 1, features] -> [1, tokens, features]
    return (states * kept).mul_(1 / (1 - rate))


class InitialValues(NamedTuple):
    """How a parameter is drawn when a model is built, where its module's default is not the original's.

    Attributes:
        distribution: `"normal"`, `"truncated_normal"` (at two standard deviations) or `"uniform"`.
        scale: standard deviation, before truncation; of a uniform distribution, the bound.
    """

    distribution: str
    scale: float


class AttentionOutput(NamedTuple):
    """What an attention returns: `hidden_states` `(b, n, d)` and, if asked for, softmax weights `(b, h, n, m)`."""

    hidden_states: torch.Tensor
    weights: torch.Tensor | None


class T5Attention(nn.Module):
    """Plain multi-head attention, over the sequence itself or over the encoder's output.

    Args:
        config: of the model.
        spec: widths of the layer.
        has_relative_attention_bias: this layer holds the bias table that all layers of its head count in the stack use.
        layer_idx: index of the layer in its stack, for the cache.
    """

    # The original draws these four by hand; all its other dense kernels come truncated from variance scaling.
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
            # T5 puts the 1/sqrt(dk) of scaled dot-product attention into the initial q.
            scale = linear.in_features**-0.5 * (spec.d_k**-0.5 if linear is self.q else 1.0)
            linear.initial_values = InitialValues(self.kernel_distribution, scale)  # type: ignore[assignment]

    @property
    def weight_dropout(self) -> float:
        """Rate at which single weights are dropped: 0 where whole keys are, before [`T5Attention.attend`]."""
        return self.dropout if self.training and not self.drops_keys else 0.0

    @property
    def uses_sdpa(self) -> bool:
        """Whether [`T5Attention.attend`] runs torch's kernel."""
        return self.config._attn_implementation == "sdpa"

    def self_attention_bias(self, visible: Visibility, bidirectional: bool, device: torch.device) -> torch.Tensor:
        """Diagonals `(h, n + m - 1)` of the position bias, for this layer and all others of its stack with as many
        heads.

        Only the layer that holds the table can compute them, and it does so within its block's forward pass: sharding
        engines gather a block's parameters for that time.
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
        """Whether attention runs in blocks of query rows, from diagonals and visibility, without a bias for every
        pair: unless the eager path is asked for, for all but small problems, where it is faster or takes less memory.
        """
        return (
            visible is not None
            and not output_attentions
            and self.config._attn_implementation == "sdpa"
            and not is_transformed()
            and visible.query_length >= _MIN_QUERIES
            and visible.query_length * visible.key_length >= _MIN_PAIRS
            and self._gains_from_blocks(states, diagonals)
        )

    def _gains_from_blocks(self, states: torch.Tensor, diagonals: torch.Tensor | None) -> bool:
        """Whether torch's attention has no kernel for this on the CPU and would keep all pairs: with a bias that is
        trained, and with dropout. With dropout also without gradients, since a checkpointed block has to draw the same
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
        """Attends.

        Args:
            hidden_states: `(b, n, d)`, normed input of the queries; of keys and values too unless `key_value_states` is
                given. `(1, tokens, d)` if `visible` names the tokens; so is then what is returned.
            attention_bias: added to the logits of the softmax, broadcastable to `(b, h, n, m)`: position bias and mask.
                Not read where [`T5Attention.uses_blocks`].
            key_value_states: `(b, m, d)`, the encoder's output, for encoder-decoder attention; `(1, tokens, d)` if
                `visible` names the tokens of the keys.
            past_key_values: cache to read and to extend.
            output_attentions: also return the weights after the softmax; this takes the eager path.
            diagonals: `(h, n + m - 1)`, position bias in the form that [`bias_diagonals`] returns.
            visible: mask in the form that goes with `diagonals`.
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
            # A cache may hold more digits than the model computes with.
            context, weights = self.attend(query.to(key.dtype), key, value, attention_bias, output_attentions)
        if visible is not None and visible.inputless is not None:
            if uses_blocks or output_attentions or not self.uses_sdpa:
                everything = context * visible.key_length  # of m keys that are all hidden, each has weight 1 / m
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
        """Keys `(b, hk, m, dk)` and values `(b, hv, m, dv)`, past ones included; the encoder's are computed once."""
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
        """Projections `(b, m, heads * size)` in the form that caches hold, `(b, heads, m, size)`.

        Caches of fixed size expect as many key heads as value heads: where the two differ, all heads are cached as one.
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
        """The attention proper, between the projections.

        Args:
            query: `(b, hk, n, dk)`.
            key: `(b, hk, m, dk)`.
            value: `(b, hv, m, dv)`.
            attention_bias: broadcastable to `(b, h, n, m)`.
            output_attentions: return the softmax weights, too.

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
        """As [`T5Attention.attend`], where [`T5Attention.uses_blocks`], with bias and mask as in
        [`T5Attention.forward`]."""
        return blockwise_attention(query, key, value, *self._projections(), diagonals, visible, self.weight_dropout)

    def _projections(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """The matrices that mix heads before and after the softmax."""
        return None, None


def softmax_with_bias(logits: torch.Tensor, attention_bias: torch.Tensor | None) -> torch.Tensor:
    """Softmax over the keys of `logits` `(b, h, n, m)` plus bias, computed in at least float32, returned in logits'
    dtype."""
    if attention_bias is not None:
        logits = logits + attention_bias
    return F.softmax(logits, dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32)).to(logits.dtype)


def sum_of_hidden(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """What queries find that are to see every key with weight 1, see [`inputless_queries`].

    The logits have no share in the value, but in the gradients, as those of any softmax. torch's kernels get these
    wrong where all keys are hidden: the logarithm of the sum is lost to them, too.

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
    """Learned mix of heads, a matrix `(heads in, heads out)`.

    Its weight lies as in the original and in the paper, and it is no `nn.Linear`: quantisers and "all linear layers"
    adapters leave these few numbers alone.
    """

    def __init__(self, heads_in: int, heads_out: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(heads_in, heads_out))

    def forward(self, states: torch.Tensor | None = None) -> torch.Tensor:
        """`(b, heads in, n, m)` -> `(b, heads out, n, m)`; without states the matrix itself.

        Engines that fetch parameters when a module is called see that call, too.
        """
        if states is None:
            return self.weight
        return torch.einsum("binm,io->bonm", states, self.weight.to(states.dtype))


class T5TalkingHeadsAttention(T5Attention):
    """Talking-heads attention (https://arxiv.org/abs/2003.02436).

        J = q k^T                  [b, hk, n, m]   logits of the key heads
        L = J mixed by P_l + bias  [b, h,  n, m]   position bias and mask live on the softmax heads
        W = softmax(L)             [b, h,  n, m]
        U = W mixed by P_w         [b, hv, n, m]   rows no longer sum to 1
        O = dropout(U) v           [b, hv, n, dv]

    P_l is `logits_projection`, P_w is `weights_projection`. The weights that are returned are W.
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
        """See [`T5Attention.attend`]; all pairs of all heads at once, the reference for
        [`blockwise_attention`]."""
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
    """The attention that a layer's widths ask for; arguments as of [`T5Attention`]."""
    attention_class = T5TalkingHeadsAttention if spec.attention_type == TALKING_HEADS else T5Attention
    return attention_class(config, spec, has_relative_attention_bias, layer_idx)
