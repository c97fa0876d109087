# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Fast decoding of single tokens: `generate` runs this for every token after the first.

A decoding step needs only a part of the decoder's forward pass. [`StepDecoder`] does the same arithmetic on the same
parameters, without dropout, general masks and a few hundred module calls. On CPUs it also packs the weights: with few
rows, a linear layer is bound by reading its weight, and oneDNN reads its packed layout up to twice as fast. q, k and v
are packed as one matrix; wi_0 and wi_1 stay separate, because oneDNN then fuses GELU and gate.

The packed copies live as long as a [`decoding_session`]. `generate` opens one for itself, so copies cannot become
stale: weights do not change while it runs. Models with adapters, quantized weights, or hooks for offloading or sharding
use the ordinary forward pass, and so do steps that something observes (calls_t5_experimental.py).
"""

import platform
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers.cache_utils import EncoderDecoderCache

from .attention_t5_experimental import HeadProjection, T5Attention, T5TalkingHeadsAttention
from .block_t5_experimental import (
    T5Block,
    T5DenseActDense,
    T5Dropout,
    T5LayerCrossAttention,
    T5LayerFF,
    T5LayerNorm,
    T5LayerSelfAttention,
)
from .cache_t5_experimental import INITIAL_CAPACITY, GrowingLayer, storage_dtype
from .calls_t5_experimental import hooks_of, is_observed, is_untouched
from .onednn_t5_experimental import is_tanh_gelu, multiply, multiply_and_add, multiply_gated, pack, supports
from .stack_t5_experimental import T5Stack
from .visibility_t5_experimental import Visibility, masked_bias, visibility


PLAIN_STEPS = 2
"""Steps of a session before the weights are packed, which costs as much as it saves in about ten steps."""

FEW_ROWS = 2
"""Up to this number of float32 rows, MKL with unpacked weights is faster than oneDNN with packed ones, on Intel CPUs
only."""

PACKED_ROWS = 32
"""Number of rows for which oneDNN chooses its layout; fewer rows are as fast."""

OWN_MODULES = (
    T5Stack,
    T5Block,
    T5LayerSelfAttention,
    T5LayerCrossAttention,
    T5LayerFF,
    T5LayerNorm,
    T5DenseActDense,
    T5Attention,
    T5TalkingHeadsAttention,
    HeadProjection,
    nn.ModuleList,
    nn.Embedding,
    nn.Linear,
    T5Dropout,
)
"""Types of all modules of a decoder except activations."""


class StepLinear:
    """One or several linear layers with the same input.

    Args:
        linears: modules without bias; their parameters are used in place until [`StepLinear.pack`].
    """

    def __init__(self, *linears: nn.Linear):
        self.weights = [linear.weight for linear in linears]
        self.sizes = [weight.shape[0] for weight in self.weights]
        self.packed: torch.Tensor | None = None

    def pack(self) -> None:
        """Copies the weights into one matrix in oneDNN's layout."""
        joined = torch.cat(self.weights) if len(self.weights) > 1 else self.weights[0].detach()
        self.packed = pack(joined, PACKED_ROWS)

    def __call__(self, states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """`(b, 1, in)` -> `(b, 1, out)` of every layer."""
        if self.packed is None or suits_mkl(states):
            return tuple(F.linear(states, weight) for weight in self.weights)
        joined = multiply(states, self.packed)
        return joined.split(self.sizes, -1) if len(self.sizes) > 1 else (joined,)

    def added_to(self, residual: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        """`residual` `(b, 1, out)` plus the output of the only layer for `(b, 1, in)`."""
        if self.packed is None or suits_mkl(states):
            return residual + F.linear(states, self.weights[0])
        return multiply_and_add(states, self.packed, residual)


def suits_mkl(states: torch.Tensor) -> bool:
    """Whether `F.linear` is faster for `(b, 1, in)` than oneDNN with packed weights, see [`FEW_ROWS`]."""
    return states.dtype == torch.float32 and states.shape[0] <= FEW_ROWS and _is_intel()


@cache
def _is_intel() -> bool:
    """Whether this is an Intel CPU and torch has MKL."""
    try:
        names = Path("/proc/cpuinfo").read_text()
    except OSError:  # not Linux
        names = platform.processor()
    return torch.backends.mkl.is_available() and "GenuineIntel" in names


class StepGatedLinear(StepLinear):
    """`act(W_0 x) * W_1 x`; with the tanh approximation of GELU, oneDNN fuses it.

    Args:
        linears: W_0 and W_1.
        act: the activation.
    """

    def __init__(self, *linears: nn.Linear, act: nn.Module):
        super().__init__(*linears)
        self.act = act
        self.is_tanh_gelu = is_tanh_gelu(act)
        self.other: torch.Tensor | None = None

    def pack(self) -> None:
        """Copies the weights into oneDNN's layout; separately if it fuses the gate."""
        if not self.is_tanh_gelu:
            super().pack()
            return
        self.packed, self.other = (pack(weight.detach(), PACKED_ROWS) for weight in self.weights)

    def gated(self, states: torch.Tensor) -> torch.Tensor:
        """`(b, 1, in)` -> `(b, 1, out)`."""
        if self.packed is None or self.other is None or suits_mkl(states):
            gate, linear = super().__call__(states)
            # `act` itself may run eight operators.
            return (F.gelu(gate, approximate="tanh") if self.is_tanh_gelu else self.act(gate)) * linear
        return multiply_gated(states, self.packed, self.other)


class Norm:
    """RMS norm, in four operators on CPUs: torch's own runs ten, which cost mostly overhead.

    With d features, `x * w / sqrt(mean(x^2) + eps)` is `x / sqrt(|x|^2 + d eps) * sqrt(d) w`.
    """

    def __init__(self, norm: T5LayerNorm):
        self.weight = norm.weight
        self.shape = tuple(norm.weight.shape)
        self.eps = norm.eps
        (size,) = self.shape
        self.scale = norm.weight.detach().to(torch.promote_types(norm.weight.dtype, torch.float32)) * size**0.5
        self.least = torch.full_like(self.scale[0], (size * norm.eps) ** 0.5)

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """`(b, 1, d)` -> `(b, 1, d)`."""
        if states.device.type != "cpu":
            return F.rms_norm(states, self.shape, self.weight, self.eps)
        length = torch.linalg.vector_norm(states, dim=-1, keepdim=True, dtype=self.scale.dtype)
        normed = (states / torch.hypot(length, self.least)).mul_(self.scale)
        return normed if normed.dtype == states.dtype else normed.to(states.dtype)


class SelfAttentionStep:
    """Self-attention of one new position, with norm and residual connection."""

    def __init__(self, layer: Any):
        self.attention: T5Attention = layer.SelfAttention
        self.norm = Norm(layer.layer_norm)
        self.inputs = StepLinear(self.attention.q, self.attention.k, self.attention.v)
        self.output = StepLinear(self.attention.o)

    def __call__(self, states: torch.Tensor, bias: torch.Tensor, cache: GrowingLayer) -> torch.Tensor:
        """`(b, 1, d)` and a bias that broadcasts to `(b, h, 1, m)` -> `(b, 1, d)`; extends the cache."""
        query, key, value = self.inputs(self.norm(states))
        cache.update(*self.attention._to_cache(key, value))
        return attend(self.attention, query, cache, bias, self.output, states)


class CrossAttentionStep:
    """Encoder-decoder attention of one new position, with norm and residual connection."""

    def __init__(self, layer: Any):
        self.attention: T5Attention = layer.EncDecAttention
        self.norm = Norm(layer.layer_norm)
        self.inputs = StepLinear(self.attention.q)
        self.output = StepLinear(self.attention.o)

    def __call__(self, states: torch.Tensor, bias: torch.Tensor | None, cache: Any) -> torch.Tensor:
        """`(b, 1, d)` and a bias that broadcasts to `(b, h, 1, m)` -> `(b, 1, d)`."""
        (query,) = self.inputs(self.norm(states))
        return attend(self.attention, query, cache, bias, self.output, states)


def attend(
    attention: T5Attention,
    query: torch.Tensor,
    cache: Any,
    bias: torch.Tensor | None,
    output: StepLinear,
    residual: torch.Tensor,
) -> torch.Tensor:
    """`residual` `(b, 1, d)` plus the attention output of a query `(b, 1, hk * dk)` over one layer of the cache."""
    key, value = attention._from_cache(cache.keys, cache.values)
    query = query.unflatten(-1, (-1, attention.spec.d_k)).transpose(1, 2)
    context, _ = attention.attend(query.to(key.dtype), key, value, bias, False)
    merged = context.to(query.dtype).transpose(1, 2).flatten(2)
    return output.added_to(residual, merged)  # [b, hv, 1, dv] -> [b, 1, hv * dv]


class FeedForwardStep:
    """Feed-forward of one new position, with norm and residual connection."""

    def __init__(self, layer: Any):
        dense: Any = layer.DenseReluDense
        self.act = dense.act
        self.norm = Norm(layer.layer_norm)
        self.inputs: StepLinear = (
            StepGatedLinear(dense.wi_0, dense.wi_1, act=dense.act) if dense.is_gated else StepLinear(dense.wi)
        )
        self.output = StepLinear(dense.wo)

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """`(b, 1, d)` -> `(b, 1, d)`."""
        normed = self.norm(states)
        inputs = self.inputs
        inner = inputs.gated(normed) if isinstance(inputs, StepGatedLinear) else self.act(inputs(normed)[0])
        return self.output.added_to(states, inner)


class StepDecoder:
    """Decoder and language modeling head, for one new position at a time.

    Args:
        model: a model for conditional generation that [`is_ordinary`].
    """

    def __init__(self, model: Any):
        self.model = model
        decoder: T5Stack = model.decoder
        self.embedding = decoder.embed_tokens.weight
        self.head_counts = decoder.head_counts
        blocks: list[Any] = list(decoder.block)
        self.layers = [
            (SelfAttentionStep(block.layer[0]), CrossAttentionStep(block.layer[1]), FeedForwardStep(block.layer[2]))
            for block in blocks
        ]
        self.final_norm = Norm(decoder.final_layer_norm)
        self.classifier = StepLinear(model.lm_head)
        self.hooks = [hooks for module in _modules_of_a_step(model) for hooks in hooks_of(module)]
        self.steps = 0
        self.tried_packing = False
        self.bias_dtype = storage_dtype(self.embedding.dtype, self.embedding.device)  # that of the keys
        self._biases: dict[int, torch.Tensor] = {}  # by head count, (1, h, 1, distances), the largest first
        self._cache: Callable[[], Any] = lambda: None  # weak reference to the last one; the two below belong to it
        self._supports_cache = False
        self._encoder_masks: tuple[torch.Tensor | None, torch.Tensor | None] = (None, None)  # as given, as a bias

    @property
    def linears(self) -> list[StepLinear]:
        """All linear layers of a step."""
        parts = [part for layer in self.layers for part in layer]
        return [linear for part in parts for linear in (part.inputs, part.output)] + [self.classifier]

    def supports_cache(self, cache: Any) -> bool:
        """Whether a cache holds the encoder's keys and values, and has growing layers for self-attention."""
        if self._cache() is not cache or not self._supports_cache:
            count = len(self.layers)
            self._supports_cache = (
                isinstance(cache, EncoderDecoderCache)
                and len(cache.self_attention_cache.layers) == count
                and all(type(layer) is GrowingLayer for layer in cache.self_attention_cache.layers)
                and all(cache.is_updated.get(index) for index in range(count))
            )
            self._cache = weakref.ref(cache)
            self._encoder_masks = (None, None)
        return self._supports_cache

    def __call__(
        self,
        input_ids: torch.Tensor,
        cache: EncoderDecoderCache,
        encoder_mask: torch.Tensor | None,
        decoder_mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """Logits of the next token.

        Args:
            input_ids: `(b, 1)`, the newest token.
            cache: of all earlier tokens; is extended.
            encoder_mask: `(b, source)`, 0 at padding, or None.
            decoder_mask: `(b, past + 1)`, 0 at padding, or None.

        Returns:
            `(b, 1, vocabulary)`.
        """
        states = F.embedding(input_ids, self.embedding)
        if self.steps >= PLAIN_STEPS and not self.tried_packing and not suits_mkl(states):
            self.tried_packing = True
            if can_be_packed(self.model):
                for linear in self.linears:
                    linear.pack()
        self.steps += 1
        position = cache.get_seq_length()
        biases = {count: self._bias(count, position, decoder_mask) for count in set(self.head_counts)}
        encoder_bias = self._encoder_bias(encoder_mask)
        self_layers, cross_layers = cache.self_attention_cache.layers, cache.cross_attention_cache.layers
        for index, (self_attention, cross_attention, feed_forward) in enumerate(self.layers):
            states = self_attention(states, biases[self.head_counts[index]], self_layers[index])  # type: ignore[arg-type]
            states = cross_attention(states, encoder_bias, cross_layers[index])
            states = feed_forward(states)
        states = self.final_norm(states)
        if self.model.config.scale_decoder_outputs:
            states = states * self.model.config.d_model**-0.5
        return self.classifier(states)[0]

    def _bias(self, head_count: int, position: int, decoder_mask: torch.Tensor | None) -> torch.Tensor:
        """Position bias and mask of a query at `position`, broadcastable to `(b, h, 1, position + 1)`."""
        bias = self._biases.get(head_count)
        if bias is None or bias.shape[-1] <= position:
            length = max(INITIAL_CAPACITY, 1 << position.bit_length())
            # Bias of the last of `length` positions; that of an earlier position is the end of it.
            last_position = Visibility(1, length, past_length=length - 1, causal=True)
            attention = self.layers[self.head_counts.index(head_count)][0].attention
            bias = attention.self_attention_bias(last_position, bidirectional=False, device=self.embedding.device)
            self._biases[head_count] = bias = bias[None, :, None].to(self.bias_dtype).contiguous()
        bias = bias.narrow(-1, bias.shape[-1] - position - 1, position + 1)
        if bias.device.type != "cpu":  # fused GPU kernels need aligned rows
            bias = bias.clone(memory_format=torch.contiguous_format)
        visible = visibility(decoder_mask, None, None, 1, position + 1).all_rows(bias.device)
        return bias if visible is None else masked_bias(bias, visible)

    def _encoder_bias(self, mask: torch.Tensor | None) -> torch.Tensor | None:
        """Mask of encoder-decoder attention, computed once for all steps with the same mask."""
        if mask is None:
            return None
        if mask is not self._encoder_masks[0]:
            visible = mask[:, None, None, :] != 0
            zero = torch.zeros((), dtype=self.bias_dtype, device=mask.device)
            self._encoder_masks = (mask, None if bool(visible.all()) else masked_bias(zero, visible))
        return self._encoder_masks[1]


def is_ordinary(model: Any) -> bool:
    """Whether decoder and head are unmodified, in evaluation mode, on one device and in one dtype.

    Adapters and quantizers replace modules or parameters; offloading and sharding add hooks or replace `forward`. A
    step must not bypass them.
    """
    activations = {id(module.act) for module in model.decoder.modules() if isinstance(module, T5DenseActDense)}
    modules = [module for module in _modules_of_a_step(model) if id(module) not in activations]
    parameters = [parameter for module in modules for parameter in module.parameters(recurse=False)]
    first = parameters[0]
    return bool(
        not any(module.training for module in modules)
        and all(is_untouched(module, *OWN_MODULES) and getattr(module, "bias", None) is None for module in modules)
        and all(is_untouched(module, type(module)) for module in model.decoder.modules())  # activations, too
        and all(type(parameter) is nn.Parameter for parameter in parameters)
        and all((parameter.dtype, parameter.device) == (first.dtype, first.device) for parameter in parameters)
        and first.dtype in (torch.float32, torch.bfloat16, torch.float64)
        and first.device.type != "meta"
    )


def _modules_of_a_step(model: Any) -> list[nn.Module]:
    """All modules whose calls a step bypasses."""
    return [*model.decoder.modules(), model.lm_head]


def can_be_packed(model: Any) -> bool:
    """Whether oneDNN packs weights of this dtype and device, and they are small enough to keep twice."""
    weight = model.lm_head.weight
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.decoder.parameters())
    return weight.device.type == "cpu" and supports(weight.dtype) and size <= model.packed_decoder_limit


_SESSIONS: ContextVar[Mapping[int, StepDecoder | None]] = ContextVar("_SESSIONS", default=MappingProxyType({}))


@contextmanager
def decoding_session(model: Any) -> Iterator[None]:
    """Lets all `generate` calls inside the block share packed weights. Do not change weights inside it.

    Args:
        model: a model for conditional generation.
    """
    sessions = _SESSIONS.get()
    decode = sessions.get(id(model))
    if not is_ordinary(model):
        decode = None
    elif id(model) not in sessions:
        decode = StepDecoder(model)
    token = _SESSIONS.set({**sessions, id(model): decode})
    try:
        yield
    finally:
        _SESSIONS.reset(token)


def next_token_logits(
    model: Any,
    input_ids: torch.Tensor | None,
    cache: Any,
    encoder_mask: torch.Tensor | None,
    decoder_mask: torch.Tensor | None,
) -> torch.Tensor | None:
    """Logits `(b, 1, vocabulary)` after one more token; None if the ordinary forward pass must compute them.

    Args:
        model: a model for conditional generation, inside a [`decoding_session`].
        input_ids: `(b, 1)`; None for other lengths.
        cache: see [`StepDecoder.supports_cache`].
        encoder_mask: as passed to the model; None unless 2-D.
        decoder_mask: as passed to the model; None unless 2-D.
    """
    decode = _SESSIONS.get().get(id(model))
    if (
        decode is None
        or input_ids is None
        or input_ids.shape[1] != 1
        or any(mask is not None and mask.ndim != 2 for mask in (encoder_mask, decoder_mask))
        or torch.is_grad_enabled()
        or torch.is_autocast_enabled(input_ids.device.type)
        or is_observed()
        or any(decode.hooks)  # since the session was opened
        or not decode.supports_cache(cache)
    ):
        return None
    return decode(input_ids, cache, encoder_mask, decoder_mask)
