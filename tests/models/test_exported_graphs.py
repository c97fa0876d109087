# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""`torch.export` with dynamic sizes: one graph of torch's own operators for batches and lengths other than the
example's."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim
from transformers import AutoModelForSeq2SeqLM
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput


# Batch, length, and positions that are cached: below and above the length from which attention is computed in blocks,
# the pairs from which it is, the rows from which oneDNN computes, the buckets and `relative_attention_max_distance`.
SIZES = [(1, 1, 1), (3, 5, 2), (1, 15, 16), (3, 16, 15), (2, 40, 33), (1, 128, 129), (3, 150, 150)]
FAMILIES = ["t5.1.1", "t5.1.th", "t5.1.n4w10"]

BATCH, LENGTH, PAST = Dim("batch"), Dim("length"), Dim("past")


class Step(nn.Module):
    """One decoder step with the cache as inputs and outputs: of each layer keys and values of the decoder, then those
    of the encoder."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, token: torch.Tensor, states: torch.Tensor, mask: torch.Tensor, past: list[list[torch.Tensor]]
    ) -> tuple[torch.Tensor, list[list[torch.Tensor]]]:
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache()) if past else None
        for index, (key, value, encoder_key, encoder_value) in enumerate(past):
            cache.self_attention_cache.update(key, value, index)
            cache.cross_attention_cache.update(encoder_key, encoder_value, index)
            cache.is_updated[index] = True
        outputs = self.model(
            encoder_outputs=BaseModelOutput(states),
            attention_mask=mask,
            decoder_input_ids=token,
            past_key_values=cache,
            use_cache=True,
        )
        cache = outputs.past_key_values
        layers = zip(cache.self_attention_cache.layers, cache.cross_attention_cache.layers, strict=True)
        return outputs.logits, [[own.keys, own.values, other.keys, other.values] for own, other in layers]


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest, make_config: Callable[..., Any]) -> nn.Module:
    torch.manual_seed(0)
    sizes = {} if request.param == "t5.1.n4w10" else {"num_layers": 1}
    return AutoModelForSeq2SeqLM.from_config(make_config(request.param, **sizes)).eval()


def inputs_of(batch: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and a mask with padding in the first row, if there is room for it."""
    generator = torch.Generator().manual_seed(length)
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[0, 1 + length // 2 :] = 0
    return torch.randint(3, 1000, (batch, length), generator=generator), mask


def custom_operators(exported: torch.export.ExportedProgram) -> set[str]:
    """Operators that are not torch's own: a program that has them does not load without this package."""
    targets = {str(node.target) for node in exported.graph.nodes if node.op == "call_function"}
    return {name for name in targets if name.startswith("t5_experimental") or "mkldnn" in name}


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
def test_the_encoder_takes_any_size(model: nn.Module, grad: bool) -> None:
    sizes = {0: BATCH, 1: LENGTH}
    ids, mask = inputs_of(2, 7)
    with torch.set_grad_enabled(grad):
        exported = torch.export.export(
            model.encoder, (), {"input_ids": ids, "attention_mask": mask}, dynamic_shapes=[sizes, sizes]
        )
    run = exported.module()
    for batch, length, _ in SIZES:
        ids, mask = inputs_of(batch, length)
        with torch.no_grad():
            expected = model.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
            found = run(input_ids=ids, attention_mask=mask).last_hidden_state
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert custom_operators(exported) == set()


@torch.no_grad()
def test_decoder_steps_take_any_size(model: nn.Module) -> None:
    """The first one without a cache, and one with it."""
    step = Step(model)
    first, following = export_steps(step)
    for batch, length, past in SIZES:
        states, mask = torch.randn(batch, length, 32), inputs_of(batch, length)[1]
        tokens, _ = inputs_of(batch, past + 1)
        logits, cache = first(tokens[:, :past], states, mask, [])
        expected, expected_cache = step(tokens[:, :past], states, mask, [])
        torch.testing.assert_close([logits, cache], [expected, expected_cache], rtol=1e-4, atol=1e-5)
        found = following(tokens[:, past:], states, mask, cache)
        whole, whole_cache = step(tokens, states, mask, [])
        torch.testing.assert_close(found[0], whole[:, -1:], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found[1], whole_cache, rtol=1e-4, atol=1e-4)


def export_steps(step: Step) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The first step of any number of positions, and a following one."""
    (_, mask), states = inputs_of(2, 7), torch.randn(2, 7, 32)
    prompt, token = inputs_of(2, 4)[0], inputs_of(2, 1)[0]
    sizes = ({0: BATCH, 1: PAST}, {0: BATCH, 1: LENGTH}, {0: BATCH, 1: LENGTH})
    first = torch.export.export(step, (prompt, states, mask, []), dynamic_shapes=(*sizes, []))
    # Of parts of larger tensors, as the cache holds them, the graph would take such of other strides alone.
    cache = [[states.contiguous() for states in layer] for layer in step(prompt, states, mask, [])[1]]
    of_layer = [{0: BATCH, 2: PAST}] * 2 + [{0: BATCH, 2: LENGTH}] * 2
    following = torch.export.export(
        step,
        (token, states, mask, cache),
        dynamic_shapes=({0: BATCH}, *sizes[1:], [of_layer] * len(cache)),
    )
    assert custom_operators(first) | custom_operators(following) == set()
    return first.module(), following.module()
