"""The cache of a step: what a dynamic layer holds, without copying old positions."""

import pytest
import torch
from transformers.cache_utils import DynamicLayer

from t5_experimental.cache_t5_experimental import GrowingLayer


MODES = [(torch.no_grad,), (torch.inference_mode,), (torch.enable_grad,)]


@pytest.mark.parametrize("modes", [*MODES, sum(MODES, ())], ids=["no_grad", "inference", "grad", "mixed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_growing_layer_holds_what_a_dynamic_one_holds(dtype, modes):
    torch.manual_seed(0)
    growing, dynamic = GrowingLayer(), DynamicLayer()

    def update(length):
        rows = len(growing.keys) if growing.is_initialized else 3
        states = (1e6 * torch.randn(2, rows, 4, length, 8)).to(dtype)  # out of the reach of float16
        growing.update(*states)
        dynamic.update(*states)

    operations = [
        lambda: update(5),
        lambda: update(1),
        lambda: [layer.reorder_cache(torch.tensor([2, 0, 0])) for layer in (growing, dynamic)],
        lambda: update(1),
        lambda: [layer.crop(-2) for layer in (growing, dynamic)],
        lambda: update(80),
        lambda: [layer.batch_repeat_interleave(2) for layer in (growing, dynamic)],
        lambda: update(1),
        lambda: [layer.batch_select_indices(torch.tensor([5, 1])) for layer in (growing, dynamic)],
        lambda: update(200),
        lambda: [layer.offload() for layer in (growing, dynamic)],
        lambda: update(1),
        lambda: [layer.reset() for layer in (growing, dynamic)],
        lambda: update(3),
    ]
    for number, operation in enumerate(operations):
        with modes[number % len(modes)]():
            operation()
        assert growing.get_seq_length() == dynamic.get_seq_length()
        if growing.is_initialized:
            assert torch.equal(growing.keys.to(dtype), dynamic.keys)
            assert torch.equal(growing.values.to(dtype), dynamic.values)


def test_a_growing_layer_copies_no_old_positions():
    layer = GrowingLayer()
    places = set()
    with torch.no_grad():
        for _ in range(200):
            keys, _ = layer.update(torch.randn(1, 2, 1, 4), torch.randn(1, 2, 1, 4))
            places.add(keys.data_ptr())
    assert len(places) == 3  # rooms of 64, 128 and 256
    assert keys.shape == (1, 2, 200, 4)


def test_a_growing_layer_from_inference_mode_goes_on_outside():
    layer, states = GrowingLayer(), torch.randn(1, 2, 1, 4)
    with torch.inference_mode():
        layer.update(states, states)
    with torch.no_grad():
        keys, _ = layer.update(states, states)
    assert torch.equal(keys, states.expand(1, 2, 2, 4))
