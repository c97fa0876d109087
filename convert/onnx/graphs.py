# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""The graphs of a model, with the names that optimum gave inputs, outputs and sizes, and that its loaders look for.

A cache has four tensors for each layer of the decoder: keys and values of its own positions, then those of the
encoder, which only the first step computes. They are `(batch, heads, positions, size of a head)`, see
`T5Attention._to_cache`.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.export import Dim
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput


ENCODER = "encoder_model"
FIRST_STEP = "decoder_model"
NEXT_STEP = "decoder_with_past_model"
MERGED = "decoder_model_merged"
# A folder of the encoder alone: the name of every model that is one graph.
ALONE = "model"

# Any sizes that differ from each other and from those of models, above 1.
_BATCH, _SOURCE, _TARGET, _PAST = 2, 11, 3, 5

_SIZES = {
    "batch": Dim("batch_size"),
    "source": Dim("encoder_sequence_length"),
    "target": Dim("decoder_sequence_length"),
    "past": Dim("past_decoder_sequence_length"),
}


@dataclass(frozen=True)
class Graph:
    """What is traced.

    Attributes:
        module: takes and returns tensors alone.
        inputs: examples of them, by name.
        sizes: of each input, the dimensions that may have any size, with its name.
        outputs: their names.
    """

    module: nn.Module
    inputs: dict[str, torch.Tensor]
    sizes: tuple[dict[int, Any], ...]
    outputs: tuple[str, ...]


class _Encoder(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.encoder = model.encoder

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """`(b, m)` and `(b, m)` -> `(b, m, d_model)`."""
        return self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


class _FirstStep(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: torch.Tensor, encoder_hidden_states: torch.Tensor, encoder_attention_mask: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """`(b, n)`, `(b, m, d_model)` and `(b, m)` -> logits `(b, n, vocab)` and the cache."""
        outputs = self.model(
            encoder_outputs=BaseModelOutput(encoder_hidden_states),
            attention_mask=encoder_attention_mask,
            decoder_input_ids=input_ids,
            use_cache=True,
        )
        cache = outputs.past_key_values
        layers = zip(cache.self_attention_cache.layers, cache.cross_attention_cache.layers, strict=True)
        states = (x for own, other in layers for x in (own.keys, own.values, other.keys, other.values))
        # On a CPU, the cache is wider than a model in half precision.
        return outputs.logits, *(x.to(encoder_hidden_states.dtype) for x in states)


class _NextStep(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: torch.Tensor, encoder_attention_mask: torch.Tensor, *past: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """`(b, n)`, `(b, m)` and the cache -> logits `(b, n, vocab)` and the decoder's own part of the cache."""
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        for layer in range(len(past) // 4):
            cache.self_attention_cache.update(past[4 * layer], past[4 * layer + 1], layer)
            cache.cross_attention_cache.update(past[4 * layer + 2], past[4 * layer + 3], layer)
            cache.is_updated[layer] = True
        # The cache has all that is read of the encoder's output, but for its length.
        states = past[0].new_zeros((*encoder_attention_mask.shape, 0))
        outputs = self.model(
            encoder_outputs=BaseModelOutput(states),
            attention_mask=encoder_attention_mask,
            decoder_input_ids=input_ids,
            past_key_values=cache,
            use_cache=True,
        )
        layers = outputs.past_key_values.self_attention_cache.layers
        return outputs.logits, *(x for own in layers for x in (own.keys, own.values))


def encoder_graph(model: Any) -> Graph:
    """The encoder of a model."""
    inputs = {"input_ids": _ids(_BATCH, _SOURCE), "attention_mask": _ids(_BATCH, _SOURCE)}
    return Graph(_Encoder(model), inputs, (_dims("batch", "source"),) * 2, ("last_hidden_state",))


def first_step_graph(model: Any) -> Graph:
    """The decoder without a cache; returns one."""
    module = _FirstStep(model)
    states = torch.zeros(_BATCH, _SOURCE, model.config.d_model, dtype=model.dtype)
    inputs = {
        "input_ids": _ids(_BATCH, _TARGET),
        "encoder_hidden_states": states,
        "encoder_attention_mask": _ids(_BATCH, _SOURCE),
    }
    sizes = (_dims("batch", "target"), _dims("batch", "source"), _dims("batch", "source"))
    return Graph(module, inputs, sizes, ("logits", *cache_names("present", _count(model))))


def next_step_graph(model: Any) -> Graph:
    """The decoder with a cache."""
    names = cache_names("past_key_values", _count(model))
    example = first_step_graph(model)
    example.inputs["input_ids"] = _ids(_BATCH, _PAST)
    cache = [states.contiguous() for states in example.module(**example.inputs)[1:]]
    inputs = {"input_ids": _ids(_BATCH, _TARGET), "encoder_attention_mask": _ids(_BATCH, _SOURCE)}
    sizes = [_dims("batch", "target"), _dims("batch", "source")]
    sizes += [{0: _SIZES["batch"], 2: _SIZES["source" if ".encoder." in name else "past"]} for name in names]
    outputs = [name for name in cache_names("present", _count(model)) if ".encoder." not in name]
    return Graph(
        _NextStep(model), {**inputs, **dict(zip(names, cache, strict=True))}, tuple(sizes), ("logits", *outputs)
    )


def cache_names(prefix: str, layers: int) -> list[str]:
    """Names of a cache's tensors, in their order.

    Args:
        prefix: "past_key_values" of inputs, "present" of outputs.
        layers: of the decoder.
    """
    parts = [f"{stack}.{part}" for stack in ("decoder", "encoder") for part in ("key", "value")]
    return [f"{prefix}.{layer}.{part}" for layer in range(layers) for part in parts]


def _count(model: Any) -> int:
    return len(model.decoder.block)


def _ids(batch: int, length: int) -> torch.Tensor:
    return torch.ones(batch, length, dtype=torch.long)


def _dims(*names: str) -> dict[int, Any]:
    return {index: _SIZES[name] for index, name in enumerate(names)}
