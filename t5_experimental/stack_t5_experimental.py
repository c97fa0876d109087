# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""From one layer to a whole stack: norm, feed-forward, block, encoder or decoder.

    embed -> dropout -> block 0 .. block N-1 -> norm -> dropout

    block:  x = x + dropout(self_attention(norm(x)))
            x = x + dropout(cross_attention(norm(x), encoder))     decoder only
            x = x + dropout(feed_forward(norm(x)))

Modules are named as in transformers' T5, so that its checkpoints, adapters and sharding policies fit.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN, GELUTanh, NewGELUActivation
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPastAndCrossAttentions
from transformers.utils import logging
from transformers.utils.generic import can_return_tuple

from .attention_t5_experimental import (
    HeadProjection,
    InitialValues,
    T5Attention,
    build_attention,
    dense_bias,
    shared_dropout,
)
from .cache_t5_experimental import with_room
from .checkpointing_t5_experimental import with_kept_attention
from .configuration_t5_experimental import LayerSpec, T5ExperimentalConfig
from .masks_t5_experimental import Visibility, masked_bias, visibility
from .products_t5_experimental import are_bare, is_plain_inference, multiply, multiply_gated


logger = logging.get_logger(__name__)

# Few enough rows for the cache, and few blocks: every operator lets its threads wait for each other.
_NORM_ROWS = 1024


class T5LayerNorm(nn.Module):
    """RMS norm: a scale, no shift, no subtraction of the mean; the mean square is taken in float32."""

    def __init__(self, hidden_size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.eps = eps

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`(..., d_model)` -> `(..., d_model)`, in the weight's dtype if that is a half one."""
        if hidden_states.dtype == self.weight.dtype:
            if hidden_states.dtype in (torch.bfloat16, torch.float16) and is_plain_inference(hidden_states):
                return self._in_blocks(hidden_states)
            return F.rms_norm(hidden_states, self.weight.shape, self.weight, self.eps)
        normed = F.rms_norm(hidden_states.float(), self.weight.shape, None, self.eps)
        return self.weight * normed.to(self.weight.dtype)

    def _in_blocks(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """The same numbers, some rows at a time: on the CPU half types go through float32 tensors, which stay in the
        cache so."""
        normed = torch.empty_like(hidden_states, memory_format=torch.contiguous_format)
        blocks = (
            hidden_states.flatten(0, -2).split(_NORM_ROWS),
            normed.view(-1, hidden_states.shape[-1]).split(_NORM_ROWS),
        )
        for rows, target in zip(*blocks, strict=True):
            target.copy_(F.rms_norm(rows, self.weight.shape, self.weight, self.eps))
        return normed


class T5Dropout(nn.Dropout):
    """Dropout of hidden states, single numbers or whole features of a row (`broadcast_dropout`)."""

    def __init__(self, config: T5ExperimentalConfig):
        super().__init__(config.dropout_rate)
        self.drops_features = config.broadcast_dropout

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`(b, n, features)` -> `(b, n, features)`."""
        if self.drops_features and self.training and self.p > 0:
            return shared_dropout(hidden_states, self.p, dim=-2)
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

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`(b, n, d_model)` -> `(b, n, d_model)`."""
        if self._is_fused(hidden_states):
            return multiply(self.wo, multiply_gated(self.wi_0, self.wi_1, hidden_states))
        if self.is_gated:
            inner = self.act(multiply(self.wi_0, hidden_states)) * multiply(self.wi_1, hidden_states)
        else:
            inner = self.act(multiply(self.wi, hidden_states))
        inner = self.dropout(inner)
        # `wo` stays in float32 when the rest is float16, whose range its outputs exceed; quantised weights cast
        # themselves.
        weight = self.wo.weight
        if (
            isinstance(weight, torch.Tensor)
            and weight.is_floating_point()
            and not torch.is_autocast_enabled(inner.device.type)
        ):
            inner = inner.to(weight.dtype)
        return multiply(self.wo, inner)

    def _is_fused(self, hidden_states: torch.Tensor) -> bool:
        """Whether oneDNN does gelu and gate along with the products."""
        return (
            self.is_gated
            and not self.training
            and isinstance(self.act, GELUTanh | NewGELUActivation)
            and is_plain_inference(hidden_states)
            and are_bare(hidden_states, self.wi_0, self.wi_1)
        )


class T5LayerSelfAttention(nn.Module):
    """Normed self-attention with its residual branch."""

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
        """`(b, n, d_model)` -> `(b, n, d_model)` and the weights, if asked for."""
        attended, weights = self.SelfAttention(
            self.layer_norm(hidden_states), attention_bias, None, past_key_values, output_attentions, diagonals, visible
        )
        return hidden_states + self.dropout(attended), weights


class T5LayerCrossAttention(nn.Module):
    """Normed encoder-decoder attention with its residual branch; it has no position bias."""

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
        """`(b, n, d_model)` and the encoder's `(b, m, d_model)` -> `(b, n, d_model)` and the weights, if asked for."""
        attended, weights = self.EncDecAttention(
            self.layer_norm(hidden_states),
            attention_bias,
            encoder_hidden_states,
            past_key_values,
            output_attentions,
            visible=visible,
        )
        return hidden_states + self.dropout(attended), weights


class T5LayerFF(nn.Module):
    """Normed feed-forward with its residual branch."""

    def __init__(self, config: T5ExperimentalConfig, spec: LayerSpec):
        super().__init__()
        self.DenseReluDense = T5DenseActDense(config, spec.d_ff)
        self.layer_norm = T5LayerNorm(config.d_model, config.layer_norm_epsilon)
        self.dropout = T5Dropout(config)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`(b, n, d_model)` -> `(b, n, d_model)`."""
        return hidden_states + self.dropout(self.DenseReluDense(self.layer_norm(hidden_states)))


def clamp_float16(hidden_states: torch.Tensor) -> torch.Tensor:
    """Keeps float16 finite where a residual stream of large models would overflow; other dtypes pass unchanged."""
    if hidden_states.dtype != torch.float16:
        return hidden_states
    limit = torch.finfo(torch.float16).max
    return hidden_states.clamp(-limit, limit)


class T5Block(GradientCheckpointingLayer):
    """One layer of a stack: self-attention, in the decoder encoder-decoder attention, feed-forward."""

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
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """Applies the layer.

        Position biases are arguments and results of their own, so that gradient checkpointing follows them.

        Args:
            hidden_states: `(b, n, d_model)`.
            diagonals: `(h, n + m - 1)`, position bias of self-attention, as an earlier block with as many heads
                returned it; None for the block that holds the table.
            attention_bias: the same bias and the mask for every pair, broadcastable to `(b, h, n, m)`, as an earlier
                block with as many heads returned it; None if no earlier one needed it.
            visible: mask of self-attention.
            encoder_hidden_states: `(b, m, d_model)`; without it a decoder layer skips its encoder-decoder attention.
            encoder_attention_bias: mask of encoder-decoder attention, broadcastable to `(b, h, n, m)`.
            encoder_visible: the same mask, for attentions that take rows of it.
            past_key_values: cache to read and extend.
            output_attentions: also return the weights of both attentions.

        Returns:
            Hidden states, diagonals and attention bias for later blocks, and the weights of self- and encoder-decoder
            attention.
        """
        attention: T5Attention = self.layer[0].SelfAttention  # type: ignore[assignment]
        if diagonals is None:
            diagonals = attention.self_attention_bias(
                visible, bidirectional=not self.is_decoder, device=hidden_states.device
            )
        if attention_bias is None and not attention.takes_rows(hidden_states, diagonals, visible, output_attentions):
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
        return clamp_float16(self.layer[-1](hidden_states)), diagonals, attention_bias, self_weights, cross_weights


class T5ExperimentalPreTrainedModel(PreTrainedModel):
    """Initialisation, loading and saving that all models share."""

    config: T5ExperimentalConfig
    config_class = T5ExperimentalConfig
    base_model_prefix = "transformer"
    supports_gradient_checkpointing = True
    _no_split_modules = ["T5Block"]
    _keep_in_fp32_modules = ["wo"]
    _supports_sdpa = True
    _can_compile_fullgraph = True
    # Embeddings of the stacks that are the model's `shared`, whatever the configuration says of the classifier.
    _shared_embeddings: tuple[str, ...] = ()

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict[str, str]:
        """Names of parameters that are another one: always the stacks' embeddings, the classifier only where
        configured."""
        tied = super().get_expanded_tied_weights_keys(all_submodels=all_submodels)
        return dict.fromkeys(self._shared_embeddings, "shared.weight") | tied

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Draws the original's initial values.

        Dense kernels are truncated at two standard deviations, as TensorFlow's variance scaling does. A module whose
        values are drawn otherwise says so itself (`initial_values`): transformers asks only modules that hold
        parameters, not those around them.
        """
        factor = self.config.initializer_factor
        if isinstance(module, T5LayerNorm):
            init.constant_(module.weight, factor)
            return
        if isinstance(module, nn.Embedding):
            values = InitialValues("normal", 1.0)
        elif isinstance(module, nn.Linear):
            values = InitialValues("truncated_normal", module.in_features**-0.5)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, HeadProjection):
            values = InitialValues("truncated_normal", module.weight.shape[0] ** -0.5)
        else:
            return
        distribution, scale = getattr(module, "initial_values", values)
        scale *= factor
        if distribution == "uniform":
            init.uniform_(module.weight, -scale, scale)
        elif distribution == "normal":
            init.normal_(module.weight, std=scale)
        else:
            init.trunc_normal_(module.weight, std=scale, a=-2 * scale, b=2 * scale)

    def _set_gradient_checkpointing(
        self, enable: bool = True, gradient_checkpointing_func: Callable[..., Any] = checkpoint, **kwargs: Any
    ) -> None:
        """As in transformers; `gradient_checkpointing_kwargs={"keep_attention": True}` also keeps what attentions
        return."""
        super()._set_gradient_checkpointing(enable, with_kept_attention(gradient_checkpointing_func), **kwargs)

    def _shift_right(self, labels: torch.Tensor, segment_ids: torch.Tensor | None = None) -> torch.Tensor:
        """Decoder inputs that predict `labels`: each label's predecessor, the start token at the front.

        Args:
            labels: `(batch, length)`, -100 where nothing is predicted.
            segment_ids: `(batch, length)`, packed examples; each begins with the start token of its own.
        """
        start, pad = self.config.decoder_start_token_id, self.config.pad_token_id
        if start is None or pad is None:
            raise ValueError(
                "`decoder_start_token_id` and `pad_token_id` must be set in the config to shift labels; T5 uses 0."
            )
        shifted = F.pad(labels[..., :-1], (1, 0), value=start)
        shifted = shifted.masked_fill(shifted == -100, pad)
        if segment_ids is not None:
            is_first = segment_ids != F.pad(segment_ids[..., :-1], (1, 0), value=-1)
            shifted = shifted.masked_fill(is_first, start)
        return shifted


class T5Stack(T5ExperimentalPreTrainedModel):
    """The encoder or the decoder.

    Args:
        config: of the whole model.
        stack: `"encoder"` or `"decoder"`.
    """

    def __init__(self, config: T5ExperimentalConfig, stack: str):
        super().__init__(config)
        self.is_decoder = stack == "decoder"
        # A module of its own, as in transformers' T5, so that device maps can place it; its weight is the model's
        # `shared`.
        self.embed_tokens = nn.Embedding(config.vocab_size, config.d_model)
        specs = config.layer_specs(stack)
        self.head_counts = [spec.num_heads for spec in specs]
        # The first layer of each head count holds the bias table of all that have as many, as in the original.
        self.block = nn.ModuleList(
            T5Block(config, spec, self.is_decoder, self.head_counts.index(spec.num_heads) == index, index)
            for index, spec in enumerate(specs)
        )
        self.final_layer_norm = T5LayerNorm(config.d_model, config.layer_norm_epsilon)
        self.dropout = T5Dropout(config)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.embed_tokens = value

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        segment_ids: torch.Tensor | None = None,
        encoder_segment_ids: torch.Tensor | None = None,
    ) -> BaseModelOutput | BaseModelOutputWithPastAndCrossAttentions:
        """Runs the stack.

        Args:
            input_ids: `(b, n)`; or give `inputs_embeds` `(b, n, d_model)`.
            attention_mask: `(b, m)`, or with queries as described in [`visibility`]; with a cache it covers past and
                present.
            encoder_hidden_states: `(b, m, d_model)`, decoder only.
            encoder_attention_mask: `(b, m)`, decoder only.
            past_key_values: cache to continue from, decoder only.
            use_cache: return a cache, decoder only.
            output_attentions: return the weights of every attention.
            output_hidden_states: return the input of every block, and the final output.
            segment_ids: `(b, n)`, packed examples, 0 for padding; with a cache it covers past and present.
            encoder_segment_ids: `(b, m)`, decoder only.

        Raises:
            ValueError: not exactly one of `input_ids` and `inputs_embeds`, or masks that do not fit.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError(
                "Give either `input_ids` or `inputs_embeds` (for a decoder: with the prefix `decoder_`), not both."
            )
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        past_key_values = self._cache(past_key_values, use_cache)

        visible = self._visible(inputs_embeds, attention_mask, segment_ids, past_key_values)
        encoder_visible, encoder_bias = None, None
        if encoder_hidden_states is not None:
            query_length, key_length = inputs_embeds.shape[1], encoder_hidden_states.shape[1]
            query_segments = segment_ids[:, -query_length:] if segment_ids is not None else None
            encoder_visible = visibility(
                encoder_attention_mask, query_segments, encoder_segment_ids, query_length, key_length
            )
            encoder_bias = self._encoder_attention_bias(inputs_embeds, encoder_visible, output_attentions)

        hidden_states = self.dropout(inputs_embeds)
        biases: dict[int, tuple[torch.Tensor, torch.Tensor | None]] = {}  # by number of softmax heads
        inputs_of_blocks, self_weights, cross_weights = [], [], []
        for block, num_heads in zip(self.block, self.head_counts, strict=True):
            inputs_of_blocks.append(hidden_states)
            hidden_states, diagonals, attention_bias, self_weight, cross_weight = block(
                hidden_states,
                *biases.get(num_heads, (None, None)),
                visible,
                encoder_hidden_states,
                encoder_bias,
                encoder_visible,
                past_key_values=past_key_values,
                output_attentions=output_attentions,
            )
            biases[num_heads] = diagonals, attention_bias
            self_weights.append(self_weight)
            cross_weights.append(cross_weight)
        hidden_states = self.dropout(self.final_layer_norm(hidden_states))

        outputs: dict[str, Any] = {"last_hidden_state": hidden_states}
        if output_hidden_states:
            outputs["hidden_states"] = (*inputs_of_blocks, hidden_states)
        if output_attentions:
            outputs["attentions"] = tuple(self_weights)
        if not self.is_decoder:
            return BaseModelOutput(**outputs)
        if output_attentions and encoder_hidden_states is not None:
            outputs["cross_attentions"] = tuple(cross_weights)
        return BaseModelOutputWithPastAndCrossAttentions(**outputs, past_key_values=past_key_values)

    def _cache(self, past_key_values: Cache | None, use_cache: bool | None) -> Cache | None:
        """The cache to use, made here if it is wanted and missing."""
        if not self.is_decoder:
            return None
        if self.gradient_checkpointing and self.training:
            if use_cache or past_key_values is not None:
                logger.warning_once(
                    "Gradient checkpointing computes the blocks twice, so no cache is used: `use_cache=False`."
                )
            return None
        if use_cache is None:
            use_cache = self.config.use_cache
        if past_key_values is None:
            return EncoderDecoderCache(with_room(DynamicCache()), with_room(DynamicCache())) if use_cache else None
        if not isinstance(past_key_values, Cache):
            raise ValueError(
                f"`past_key_values` is a {type(past_key_values).__name__}: give an `EncoderDecoderCache`, or nothing "
                "and `use_cache=True`."
            )
        if not isinstance(past_key_values, EncoderDecoderCache):
            # Both attentions of a layer would write into the one cache.
            return EncoderDecoderCache(past_key_values, DynamicCache())
        return past_key_values

    def _visible(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | None,
        segment_ids: torch.Tensor | None,
        past_key_values: Cache | None,
    ) -> Visibility:
        """Where the inputs and what the cache holds stand, and which sees which."""
        query_length = key_length = inputs_embeds.shape[1]
        past_length: int | torch.Tensor = 0
        if past_key_values is not None:
            past_length = past_key_values.get_seq_length()
            if isinstance(past_length, torch.Tensor):
                past_length = past_length.clone()  # a static cache advances its counter in place while the blocks run
            key_length, _ = past_key_values.get_mask_sizes(query_length, 0)
        query_segments = segment_ids[:, -query_length:] if segment_ids is not None else None
        return visibility(
            attention_mask, query_segments, segment_ids, query_length, key_length, past_length, self.is_decoder
        )

    def _encoder_attention_bias(
        self, inputs_embeds: torch.Tensor, visible: Visibility, output_attentions: bool
    ) -> torch.Tensor | None:
        """Mask of encoder-decoder attention, broadcastable to `(b, h, n, m)`; None if no layer needs one."""
        attentions: list[T5Attention] = [block.layer[1].EncDecAttention for block in self.block]  # type: ignore
        if all(attention.takes_rows(inputs_embeds, None, visible, output_attentions) for attention in attentions):
            return None
        mask = visible.all_rows(inputs_embeds.device)
        if mask is None:
            return None
        return masked_bias(torch.zeros((), dtype=inputs_embeds.dtype, device=inputs_embeds.device), mask)
