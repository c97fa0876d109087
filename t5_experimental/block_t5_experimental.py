# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""One block of a stack: attention and feed-forward, each with norm, dropout and a residual connection.

    x = x + dropout(self_attention(norm(x)))
    x = x + dropout(cross_attention(norm(x), encoder))     decoder only
    x = x + dropout(feed_forward(norm(x)))

Modules are named as in transformers' T5, so that its checkpoints, adapters and sharding policies fit.
"""

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer

from .attention_t5_experimental import T5Attention, build_attention, dense_bias, shared_dropout
from .calls_t5_experimental import is_autocast, is_untouched
from .configuration_t5_experimental import LayerSpec, T5ExperimentalConfig
from .linears_t5_experimental import apply_linear, fuses_gate, gated_product, in_chunks, int8_linear
from .onednn_t5_experimental import is_plain_inference, is_tanh_gelu
from .unpadding_t5_experimental import Tokens
from .visibility_t5_experimental import Visibility


# Small enough for the CPU cache, large enough that the overhead of starting threads is small.
_NORM_ROWS = 512


class T5LayerNorm(nn.Module):
    """RMS norm: scales without bias, and without subtracting the mean. The mean square is computed in float32."""

    def __init__(self, hidden_size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.eps = eps

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`(..., d_model)` -> `(..., d_model)`, in the weight's dtype if that is float16 or bfloat16."""
        if hidden_states.dtype == self.weight.dtype:
            if hidden_states.dtype in (torch.bfloat16, torch.float16) and is_plain_inference(hidden_states):
                return self._in_blocks(hidden_states)
            return F.rms_norm(hidden_states, self.weight.shape, self.weight, self.eps)
        normed = F.rms_norm(hidden_states.float(), self.weight.shape, None, self.eps)
        return self.weight * normed.to(self.weight.dtype)

    def _in_blocks(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """The same in chunks of rows, so that their float32 copies stay in the CPU cache. torch's own norm makes twice
        as many passes over memory."""
        normed = torch.empty_like(hidden_states, memory_format=torch.contiguous_format)
        size = hidden_states.shape[-1]
        blocks = (hidden_states.flatten(0, -2).split(_NORM_ROWS), normed.view(-1, size).split(_NORM_ROWS))
        for rows, target in zip(*blocks, strict=True):
            wide = rows.float()
            length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
            wide *= length.square_().mul_(1 / size).add_(self.eps).rsqrt_()
            wide *= self.weight
            target.copy_(wide)
        return normed


class T5Dropout(nn.Dropout):
    """Dropout of hidden states: of elements, or with `broadcast_dropout` of whole features of a row."""

    def __init__(self, config: T5ExperimentalConfig):
        super().__init__(config.dropout_rate)
        self.drops_features = config.broadcast_dropout

    def forward(self, hidden_states: torch.Tensor, tokens: Tokens | None = None) -> torch.Tensor:
        """`(b, n, features)` -> `(b, n, features)`, or unpadded `(1, tokens, features)` -> the same."""
        if self.drops_features and self.training and self.p > 0:
            return shared_dropout(hidden_states, self.p, dim=-2, tokens=tokens)
        return super().forward(hidden_states)


class T5DenseActDense(nn.Module):
    """Feed-forward `wo(act(wi x))` or, gated, `wo(act(wi_0 x) * wi_1 x)`."""

    def __init__(self, config: T5ExperimentalConfig, d_ff: int):
        super().__init__()
        self.is_gated = config.is_gated_act
        if self.is_gated:
            self.wi_0 = nn.Linear(config.d_model, d_ff, bias=False)
            self.wi_1 = nn.Linear(config.d_model, d_ff, bias=False)
        else:
            self.wi = nn.Linear(config.d_model, d_ff, bias=False)
        self.wo = nn.Linear(d_ff, config.d_model, bias=False)
        self.dropout = T5Dropout(config)
        self.act = ACT2FN[config.dense_act_fn]

    def forward(self, hidden_states: torch.Tensor, tokens: Tokens | None = None) -> torch.Tensor:
        """`(b, n, d_model)` -> `(b, n, d_model)`, or unpadded `(1, tokens, d_model)` -> the same."""
        if self._is_fused(hidden_states):
            return apply_linear(self.wo, gated_product(hidden_states, self.wi_0.weight, self.wi_1.weight))
        if not self.training and int8_linear(self.wo) is not None:
            return in_chunks(self._dense, hidden_states)
        return self._dense(hidden_states, tokens)

    def _dense(self, hidden_states: torch.Tensor, tokens: Tokens | None = None) -> torch.Tensor:
        """[`T5DenseActDense.forward`], module by module."""
        if self.is_gated:
            inner = self.act(apply_linear(self.wi_0, hidden_states)) * apply_linear(self.wi_1, hidden_states)
        else:
            inner = self.act(apply_linear(self.wi, hidden_states))
        inner = self.dropout(inner, tokens)
        # `wo` stays in float32 in float16 models, as its outputs overflow float16; quantized weights cast themselves.
        weight = self.wo.weight
        if isinstance(weight, torch.Tensor) and weight.is_floating_point() and not is_autocast(inner.device):
            inner = inner.to(weight.dtype)
        return apply_linear(self.wo, inner)

    def _is_fused(self, hidden_states: torch.Tensor) -> bool:
        """Whether oneDNN fuses GELU and gate with the linear layers."""
        return (
            self.is_gated
            and not self.training
            and is_tanh_gelu(self.act)
            and is_untouched(self.dropout, T5Dropout)
            and fuses_gate(hidden_states, self.wi_0, self.wi_1)
        )


class T5LayerSelfAttention(nn.Module):
    """Norm, self-attention and residual connection."""

    def __init__(
        self, config: T5ExperimentalConfig, spec: LayerSpec, has_relative_attention_bias: bool, layer_idx: int
    ):
        super().__init__()
        self.SelfAttention = build_attention(config, spec, has_relative_attention_bias, layer_idx)
        self.layer_norm = T5LayerNorm(config.d_model, config.layer_norm_epsilon)
        self.dropout = T5Dropout(config)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_bias: torch.Tensor | None,
        past_key_values: Cache | None,
        output_attentions: bool,
        diagonals: torch.Tensor,
        visible: Visibility,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """`(b, n, d_model)` -> `(b, n, d_model)` and the weights, if requested."""
        attended, weights = self.SelfAttention(
            self.layer_norm(hidden_states), attention_bias, None, past_key_values, output_attentions, diagonals, visible
        )
        return hidden_states + self.dropout(attended, visible.query_tokens), weights


class T5LayerCrossAttention(nn.Module):
    """Norm, encoder-decoder attention and residual connection; without position bias."""

    def __init__(self, config: T5ExperimentalConfig, spec: LayerSpec, layer_idx: int):
        super().__init__()
        self.EncDecAttention = build_attention(config, spec, False, layer_idx)
        self.layer_norm = T5LayerNorm(config.d_model, config.layer_norm_epsilon)
        self.dropout = T5Dropout(config)

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_bias: torch.Tensor | None,
        past_key_values: Cache | None,
        output_attentions: bool,
        visible: Visibility | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """`(b, n, d_model)` and the encoder's `(b, m, d_model)` -> `(b, n, d_model)` and the weights, if requested."""
        attended, weights = self.EncDecAttention(
            self.layer_norm(hidden_states),
            attention_bias,
            encoder_hidden_states,
            past_key_values,
            output_attentions,
            visible=visible,
        )
        return hidden_states + self.dropout(attended, None if visible is None else visible.query_tokens), weights


class T5LayerFF(nn.Module):
    """Norm, feed-forward and residual connection."""

    def __init__(self, config: T5ExperimentalConfig, spec: LayerSpec):
        super().__init__()
        self.DenseReluDense = T5DenseActDense(config, spec.d_ff)
        self.layer_norm = T5LayerNorm(config.d_model, config.layer_norm_epsilon)
        self.dropout = T5Dropout(config)

    def forward(self, hidden_states: torch.Tensor, tokens: Tokens | None = None) -> torch.Tensor:
        """`(b, n, d_model)` -> `(b, n, d_model)`, or unpadded `(1, tokens, d_model)` -> the same."""
        dense = self.DenseReluDense(self.layer_norm(hidden_states), tokens)
        return hidden_states + self.dropout(dense, tokens)


def clamp_float16(hidden_states: torch.Tensor) -> torch.Tensor:
    """Clamps float16 hidden states to finite values, since large models overflow it; other dtypes stay as they are."""
    if hidden_states.dtype != torch.float16:
        return hidden_states
    limit = torch.finfo(torch.float16).max
    return hidden_states.clamp(-limit, limit)


class BlockOutput(NamedTuple):
    """What a block returns.

    Attributes:
        hidden_states: in the shape of the input.
        diagonals: `(h, n + m - 1)`, position bias for later blocks that share the table.
        attention_bias: the same bias with the mask, for every pair of positions, if a block needed it.
        self_weights: `(b, h, n, m)`, softmax weights of self-attention, if requested.
        cross_weights: the same of encoder-decoder attention.
    """

    hidden_states: torch.Tensor
    diagonals: torch.Tensor
    attention_bias: torch.Tensor | None
    self_weights: torch.Tensor | None
    cross_weights: torch.Tensor | None


class T5Block(GradientCheckpointingLayer):
    """One block: self-attention, encoder-decoder attention (decoder only), feed-forward."""

    def __init__(
        self,
        config: T5ExperimentalConfig,
        spec: LayerSpec,
        is_decoder: bool,
        has_relative_attention_bias: bool,
        layer_idx: int,
    ):
        super().__init__()
        self.is_decoder = is_decoder
        self.layer = nn.ModuleList([T5LayerSelfAttention(config, spec, has_relative_attention_bias, layer_idx)])
        if is_decoder:
            self.layer.append(T5LayerCrossAttention(config, spec, layer_idx))
        self.layer.append(T5LayerFF(config, spec))

    def forward(
        self,
        hidden_states: torch.Tensor,
        diagonals: torch.Tensor | None,
        attention_bias: torch.Tensor | None,
        visible: Visibility,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_bias: torch.Tensor | None = None,
        encoder_visible: Visibility | None = None,
        past_key_values: Cache | None = None,
        output_attentions: bool = False,
    ) -> BlockOutput:
        """Runs the block.

        Position biases are explicit arguments and outputs, so that gradients reach them through checkpointing.

        Args:
            hidden_states: `(b, n, d_model)`; `(1, tokens, d_model)` if `visible` has `query_tokens`.
            diagonals: `(h, n + m - 1)`, position bias of self-attention, as an earlier block with the same table
                returned it; None for the block that holds the table.
            attention_bias: the same bias with the mask, for every pair of positions, broadcastable to `(b, h, n, m)`,
                as an earlier block with the same table returned it; None if no earlier block needed it.
            visible: mask of self-attention.
            encoder_hidden_states: `(b, m, d_model)`, or `(1, tokens, d_model)` if `encoder_visible` has `key_tokens`;
                without it a decoder block skips encoder-decoder attention.
            encoder_attention_bias: mask of encoder-decoder attention, broadcastable to `(b, h, n, m)`.
            encoder_visible: the same mask, for blockwise attention.
            past_key_values: cache to read and extend.
            output_attentions: also return the weights of both attentions.
        """
        attention: T5Attention = self.layer[0].SelfAttention  # type: ignore[assignment]
        if diagonals is None:
            diagonals = attention.self_attention_bias(
                visible, bidirectional=not self.is_decoder, device=hidden_states.device
            )
        if attention_bias is None and not attention.uses_blocks(hidden_states, diagonals, visible, output_attentions):
            attention_bias = dense_bias(diagonals, visible)
        hidden_states, self_weights = self.layer[0](
            hidden_states, attention_bias, past_key_values, output_attentions, diagonals, visible
        )
        hidden_states = clamp_float16(hidden_states)
        cross_weights = None
        if self.is_decoder and encoder_hidden_states is not None:
            hidden_states, cross_weights = self.layer[1](
                hidden_states,
                encoder_hidden_states,
                encoder_attention_bias,
                past_key_values,
                output_attentions,
                encoder_visible,
            )
            hidden_states = clamp_float16(hidden_states)
        hidden_states = clamp_float16(self.layer[-1](hidden_states, visible.query_tokens))
        return BlockOutput(hidden_states, diagonals, attention_bias, self_weights, cross_weights)
