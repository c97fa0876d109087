# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Fast decoding of single tokens: `generate` runs this for every token after the first.

A decoding step needs only a part of the decoder's forward pass. [`StepDecoder`] does the same arithmetic on the same
parameters, without dropout, general masks and a few hundred module calls. On CPUs it also copies the weights for the
fastest kernel (kernels_t5_experimental.py): with few rows, a linear layer is bound by reading its weight. q, k and v
are one matrix; wi_0 and wi_1 stay separate where oneDNN fuses GELU and gate. Half precision that the CPU emulates is
computed in float32, and with `weights="int8"` the weights are rounded to 8 bits, the encoder's included.

The copies live as long as a [`decoding_session`]. `generate` opens one for itself, so copies cannot become stale:
weights do not change while it runs. Models with adapters, quantized weights, or hooks for offloading or sharding use
the ordinary forward pass, and so do steps that something observes (calls_t5_experimental.py).
"""

import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers.cache_utils import EncoderDecoderCache
from transformers.utils import logging

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
from .calls_t5_experimental import hooks_of, is_autocast, is_bare_linear, is_observed, is_untouched
from .kernels_t5_experimental import (
    Choice,
    Kernel,
    bucket,
    choose,
    float_kernels,
    int8_kernels,
    kernels_without_copy,
)
from .linears_t5_experimental import INT8_LINEARS, Int8Linear, PreparedGatedLinear, PreparedLinear
from .stack_t5_experimental import T5Stack
from .visibility_t5_experimental import Visibility, masked_bias, visibility


logger = logging.get_logger(__name__)

PLAIN_STEPS = 2
"""Steps of a session before the weights are copied, which costs as much as it saves in about ten steps."""

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
        self.inputs = PreparedLinear(self.attention.q, self.attention.k, self.attention.v)
        self.output = PreparedLinear(self.attention.o)

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
        self.inputs = PreparedLinear(self.attention.q)
        self.output = PreparedLinear(self.attention.o)

    def __call__(self, states: torch.Tensor, bias: torch.Tensor | None, cache: Any) -> torch.Tensor:
        """`(b, 1, d)` and a bias that broadcasts to `(b, h, 1, m)` -> `(b, 1, d)`."""
        (query,) = self.inputs(self.norm(states))
        return attend(self.attention, query, cache, bias, self.output, states)


def attend(
    attention: T5Attention,
    query: torch.Tensor,
    cache: Any,
    bias: torch.Tensor | None,
    output: PreparedLinear,
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
        self.inputs: PreparedLinear = (
            PreparedGatedLinear(dense.wi_0, dense.wi_1, act=dense.act) if dense.is_gated else PreparedLinear(dense.wi)
        )
        self.output = PreparedLinear(dense.wo)

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """`(b, 1, d)` -> `(b, 1, d)`."""
        normed = self.norm(states)
        inputs = self.inputs
        inner = inputs.gated(normed) if isinstance(inputs, PreparedGatedLinear) else self.act(inputs(normed)[0])
        return self.output.added_to(states, inner)


class StepDecoder:
    """Decoder and language modeling head, for one new position at a time.

    Args:
        model: a model for conditional generation that [`is_ordinary`].
        is_int8: round weights to 8 bits.
    """

    def __init__(self, model: Any, is_int8: bool = False):
        self.model = model
        self.is_int8 = is_int8
        decoder: T5Stack = model.decoder
        self.embedding = decoder.embed_tokens.weight
        self.bias_holders = decoder.bias_holders
        blocks: list[Any] = list(decoder.block)
        self.layers = [
            (SelfAttentionStep(block.layer[0]), CrossAttentionStep(block.layer[1]), FeedForwardStep(block.layer[2]))
            for block in blocks
        ]
        self.final_norm = Norm(decoder.final_layer_norm)
        self.classifier = PreparedLinear(model.lm_head)
        self.hooks = [hooks for module in _modules_of_a_step(model) for hooks in hooks_of(module)]
        self.lock = threading.Lock()
        """For one step at a time: threads that copy their context share the session, as `asyncio.to_thread` does."""
        self.steps = 0
        self.dtype = self.embedding.dtype  # of the hidden states
        self.choices: list[Choice] = []  # of kernels, for each linear layer
        self._bucket = 0  # number of rows that the kernels were chosen for, see `bucket`
        self.bias_dtype = storage_dtype(self.embedding.dtype, self.embedding.device)  # that of the keys
        self._biases: dict[
            int, torch.Tensor
        ] = {}  # by the layer with the table, (1, h, 1, distances), the largest first
        self._cache: Callable[[], Any] = lambda: None  # weak reference to the last one; the two below belong to it
        self._supports_cache = False
        # As given, with its version, and as a bias.
        self._encoder_masks: tuple[torch.Tensor | None, int, torch.Tensor | None] = (None, 0, None)

    @property
    def linears(self) -> list[PreparedLinear]:
        """All linear layers of a step."""
        parts = [part for layer in self.layers for part in layer]
        return [linear for part in parts for linear in (part.inputs, part.output)] + [self.classifier]

    def supports_cache(self, cache: Any) -> bool:
        """Whether a cache holds the encoder's keys and values, and has growing layers for self-attention."""
        if not isinstance(cache, EncoderDecoderCache):
            return False
        if self._cache() is not cache or not self._supports_cache:
            layers = cache.self_attention_cache.layers
            self._supports_cache = len(layers) == len(self.layers) and all(type(x) is GrowingLayer for x in layers)
            self._cache = weakref.ref(cache)
            self._encoder_masks = (None, 0, None)
        # `reset` takes these away.
        return self._supports_cache and all(cache.is_updated.get(index) for index in range(len(self.layers)))

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
        if bucket(len(input_ids)) != self._bucket and self.embedding.device.type == "cpu":
            self._choose_kernels(len(input_ids))
        self.steps += 1
        states = F.embedding(input_ids, self.embedding).to(self.dtype)
        position = cache.get_seq_length()
        biases = {holder: self._bias(holder, position, decoder_mask) for holder in set(self.bias_holders)}
        encoder_bias = self._encoder_bias(encoder_mask)
        self_layers, cross_layers = cache.self_attention_cache.layers, cache.cross_attention_cache.layers
        for index, (self_attention, cross_attention, feed_forward) in enumerate(self.layers):
            states = self_attention(states, biases[self.bias_holders[index]], self_layers[index])  # type: ignore[arg-type]
            states = cross_attention(states, encoder_bias, cross_layers[index])
            states = feed_forward(states)
        states = self.final_norm(states)
        if self.model.config.scale_decoder_outputs:
            states = states * self.model.config.d_model**-0.5
        return self.classifier(states)[0].to(self.embedding.dtype)

    def _choose_kernels(self, rows: int) -> None:
        """Chooses the fastest kernels for a number of rows, and copies the weights for them."""
        # float16 models have some weights in float32, so that their weights cannot be used as they are.
        if self.steps < PLAIN_STEPS and not self.is_int8 and self.embedding.dtype != torch.float16:
            return
        self._bucket = bucket(rows)
        self.choices = choose(self._candidates(rows), [linear.shape for linear in self.linears], rows)
        self.dtype = self.choices[0].kernel.dtype
        joins = not self.is_int8 and can_be_copied(self.model, self.embedding.dtype)
        for linear, choice in zip(self.linears, self.choices, strict=True):
            linear.prepare(choice.kernel, joins)

    def _candidates(self, rows: int) -> list[list[Kernel]]:
        """Kernels for steps with a number of rows, in groups of one dtype each."""
        dtype = self.embedding.dtype
        if self.is_int8:
            return int8_kernels(dtype)
        if not can_be_copied(self.model, dtype):
            return kernels_without_copy(dtype)
        if dtype == torch.float16:
            return float_kernels(torch.float32, rows=rows)
        if dtype == torch.bfloat16 and can_be_copied(self.model, torch.float32):
            return float_kernels(dtype, torch.float32, rows=rows)
        return float_kernels(dtype, rows=rows)

    def _bias(self, holder: int, position: int, decoder_mask: torch.Tensor | None) -> torch.Tensor:
        """Position bias by the table of layer `holder`, and mask, of a query at `position`, broadcastable to `(b, h, 1,
        position + 1)`."""
        bias = self._biases.get(holder)
        if bias is None or bias.shape[-1] <= position:
            length = max(INITIAL_CAPACITY, 1 << position.bit_length())
            # Bias of the last of `length` positions; that of an earlier position is the end of it.
            last_position = Visibility(1, length, past_length=length - 1, causal=True)
            attention = self.layers[holder][0].attention
            bias = attention.self_attention_bias(last_position, bidirectional=False, device=self.embedding.device)
            self._biases[holder] = bias = bias[None, :, None].to(self.bias_dtype).contiguous()
        bias = bias.narrow(-1, bias.shape[-1] - position - 1, position + 1)
        if bias.device.type != "cpu":  # fused GPU kernels need aligned rows
            bias = bias.clone(memory_format=torch.contiguous_format)
        visible = visibility(decoder_mask, None, None, 1, position + 1).all_rows(bias.device)
        return bias if visible is None else masked_bias(bias, visible)

    def _encoder_bias(self, mask: torch.Tensor | None) -> torch.Tensor | None:
        """Mask of encoder-decoder attention, computed once for all steps with the same mask."""
        if mask is None:
            return None
        version = 0 if mask.is_inference() else mask._version  # changed in place
        if mask is not self._encoder_masks[0] or version != self._encoder_masks[1]:
            visible = mask[:, None, None, :] != 0
            zero = torch.zeros((), dtype=self.bias_dtype, device=mask.device)
            self._encoder_masks = (mask, version, None if bool(visible.all()) else masked_bias(zero, visible))
        return self._encoder_masks[2]


def is_ordinary(model: Any) -> bool:
    """Whether decoder and head are unmodified, in evaluation mode, on one device and in a dtype that steps compute.

    Adapters and quantizers replace modules or parameters; offloading and sharding add hooks or replace `forward`. A
    step must not bypass them.
    """
    activations = {id(module.act) for module in model.decoder.modules() if isinstance(module, T5DenseActDense)}
    modules = [module for module in _modules_of_a_step(model) if id(module) not in activations]
    parameters = [parameter for module in modules for parameter in module.parameters(recurse=False)]
    return bool(
        not any(module.training for module in modules)
        and all(is_untouched(module, *OWN_MODULES) and getattr(module, "bias", None) is None for module in modules)
        and all(is_untouched(module, type(module)) for module in model.decoder.modules())  # activations, too
        and all(type(parameter) is nn.Parameter for parameter in parameters)
        and len({parameter.device for parameter in parameters}) == 1
        and parameters[0].device.type != "meta"
        and _has_step_dtype(model, {parameter.dtype for parameter in parameters})
    )


def _has_step_dtype(model: Any, dtypes: set[torch.dtype]) -> bool:
    """Whether all weights have one dtype; float16 models keep some in float32, and are computed in it on CPUs."""
    head: torch.Tensor = model.lm_head.weight
    if torch.float16 in dtypes:
        return head.dtype == torch.float16 and head.device.type == "cpu" and dtypes <= {torch.float16, torch.float32}
    return len(dtypes) == 1 and dtypes <= {torch.float32, torch.bfloat16, torch.float64}


def _modules_of_a_step(model: Any) -> list[nn.Module]:
    """All modules whose calls a step bypasses."""
    return [*model.decoder.modules(), model.lm_head]


def can_be_copied(model: Any, dtype: torch.dtype) -> bool:
    """Whether the decoder is on a CPU, and small enough for copies of its weights in a dtype."""
    size = sum(parameter.numel() for parameter in model.decoder.parameters()) * dtype.itemsize
    return model.lm_head.weight.device.type == "cpu" and size <= model.packed_decoder_limit


class Session:
    """What calls in a [`decoding_session`] share. Printed, it shows the kernels and the times they were chosen by.

    Args:
        model: a model for conditional generation, or an encoder.
        weights: `"int8"` or None.
    """

    def __init__(self, model: Any, weights: str | None):
        self.model = model
        self.weights = weights
        is_int8 = weights == "int8" and _can_compute_int8(model)
        has_decoder = hasattr(model, "lm_head") and is_ordinary(model)
        # Steps of float16 models need copies of the weights, as some of these are float32.
        if has_decoder and model.lm_head.weight.dtype == torch.float16 and not is_int8:
            has_decoder = can_be_copied(model, torch.float32)
        self.decode = StepDecoder(model, is_int8) if has_decoder else None
        if is_int8 and hasattr(model, "lm_head") and self.decode is None:
            logger.warning(
                "The decoder is not computed in int8 but in its own dtype: something wraps or changes its modules, as "
                "adapters or hooks do, or it is in training mode. Merge adapters, and call `eval()`."
            )
        self.int8_linears = _int8_linears(model) if is_int8 else {}

    def __str__(self) -> str:
        choices = [choice for linear in self.int8_linears.values() for choice in linear.choices.values()]
        choices += self.decode.choices if self.decode is not None else []
        return "\n".join(dict.fromkeys(map(str, choices))) or "No kernel has been chosen yet."


def _can_compute_int8(model: Any) -> bool:
    """Whether this torch and processor have right kernels for 8 bits; if not, says so."""
    device = model.device.type
    if device == "cpu" and int8_kernels():
        return True
    reason = (
        "this torch has no operators for it that are right on this CPU" if device == "cpu" else f"it is on {device}"
    )
    logger.warning(f"The model is not decoded with int8 weights but in its own dtype: {reason}.")
    return False


def _int8_linears(model: Any) -> dict[int, Int8Linear]:
    """The linear layers of the encoder, and of the decoder those that read its output, unless something wraps them."""
    encoder: Any = model.get_encoder()
    modules = [module for module in encoder.modules() if isinstance(module, nn.Linear)]
    for module in model.modules():
        if isinstance(module, T5LayerCrossAttention):
            modules += [module.EncDecAttention.k, module.EncDecAttention.v]
    return {id(module): Int8Linear(module) for module in modules if is_bare_linear(module)}


_SESSIONS: ContextVar[Mapping[int, Session]] = ContextVar("_SESSIONS", default=MappingProxyType({}))


def _check_has_own_model(model: Any) -> None:
    # Not by type: a converted folder carries a copy of these files, and so classes of its own.
    modules = model.modules() if isinstance(model, nn.Module) else ()
    if not any(hasattr(getattr(module, "config", None), "layer_specs") for module in modules):
        raise TypeError(
            f"A decoding session needs a model of t5_experimental, and this is a {type(model).__name__}: load T5 with "
            "`T5V11ForConditionalGeneration.from_pretrained`."
        )


@contextmanager
def decoding_session(model: Any, weights: str | None = None) -> Iterator[Session]:
    """Lets all `generate` calls inside the block share copies of the weights. Do not change weights inside it.

    Args:
        model: a model for conditional generation, or peft's of one; with `weights="int8"` also an encoder.
        weights: `"int8"` rounds the weights of linear layers to 8 bits, with a scale for each output feature, and
            hidden states before each product. On CPUs only. None is what an enclosing session does, or the dtype of
            the model.

    Yields:
        The session; printed, it shows the kernels that were chosen and the times they were chosen by.

    Raises:
        TypeError: there is no model of this package in `model`.
        ValueError: `weights` is something else. With `"int8"`, a call inside the block raises it for a weight that is
            to be rounded and has NaN or infinite values.
    """
    if weights not in (None, "int8"):
        raise ValueError(f'`weights` is {weights!r}; it can be "int8", or None for the dtype of the model.')
    if hasattr(model, "get_base_model"):  # peft's, which generates with the model inside it
        model = model.get_base_model()
    _check_has_own_model(model)
    sessions = _SESSIONS.get()
    session = sessions.get(id(model))
    if session is None:
        session = Session(model, weights)
    elif weights not in (None, session.weights) or (session.decode is not None and not is_ordinary(model)):
        session = Session(model, weights or session.weights)
    token = _SESSIONS.set({**sessions, id(model): session})
    int8_token = INT8_LINEARS.set({**INT8_LINEARS.get(), **session.int8_linears})
    try:
        yield session
    finally:
        INT8_LINEARS.reset(int8_token)
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
    session = _SESSIONS.get().get(id(model))
    decode = None if session is None else session.decode
    if (
        decode is None
        or input_ids is None
        or input_ids.shape[1] != 1
        or any(mask is not None and mask.ndim != 2 for mask in (encoder_mask, decoder_mask))
        or torch.is_grad_enabled()
        or is_autocast(input_ids.device)
        or is_observed()
        or any(decode.hooks)  # since the session was opened
    ):
        return None
    with decode.lock:
        return decode(input_ids, cache, encoder_mask, decoder_mask) if decode.supports_cache(cache) else None
