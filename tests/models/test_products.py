"""oneDNN's products and norms in blocks, which inference takes on CPUs, against the ordinary operators."""

import platform

import pytest
import torch
from torch import nn
from transformers import AutoModelForSeq2SeqLM

from t5_experimental import products_t5_experimental, stack_t5_experimental
from t5_experimental.products_t5_experimental import are_bare, is_plain_inference, multiply
from t5_experimental.stack_t5_experimental import T5LayerNorm


@pytest.fixture
def any_rows(monkeypatch):
    """Takes even a few rows, and norms five at a time."""
    monkeypatch.setattr(products_t5_experimental, "_MIN_ROWS", 1)
    monkeypatch.setattr(stack_t5_experimental, "_NORM_ROWS", 5)


def fused_calls(monkeypatch) -> list[str]:
    """Gets the name of every product that oneDNN fuses or computes from now on."""
    calls = []
    for module in (products_t5_experimental, stack_t5_experimental):
        right = module.are_bare

        def counted(*arguments, right=right):
            calls.append(right(*arguments))
            return calls[-1]

        monkeypatch.setattr(module, "are_bare", counted)
    return calls


def test_models_give_equal_outputs(model, batch, any_rows, monkeypatch):
    """Without gradients the products are oneDNN's, with them they are not."""
    expected = model(**batch).logits
    calls = fused_calls(monkeypatch)
    with torch.no_grad():
        actual = model(**batch).logits
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    is_there = platform.machine() in ("x86_64", "AMD64") and torch.backends.mkldnn.is_available()
    assert calls
    assert all(calls) == is_there


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_norms_in_blocks_give_the_same_numbers(dtype, any_rows, monkeypatch):
    torch.manual_seed(0)
    norm = T5LayerNorm(16, 1e-6).to(dtype)
    nn.init.normal_(norm.weight)
    states = torch.randn(3, 7, 16).to(dtype).transpose(0, 1)  # not contiguous
    expected = norm(states)
    operators = []
    right = norm._in_blocks
    monkeypatch.setattr(norm, "_in_blocks", lambda states: operators.append(1) or right(states))
    with torch.no_grad():
        assert torch.equal(norm(states), expected)
    assert operators


def test_what_is_more_than_a_matrix_is_called(any_rows):
    """Adapters, hooks and quantised weights have their say."""
    states = torch.randn(3, 4)
    with torch.no_grad():
        assert is_plain_inference(states)
        linear = nn.Linear(4, 5, bias=False)
        hooked, wrapped = nn.Linear(4, 5, bias=False), nn.Linear(4, 5, bias=False)
        hooked.register_forward_hook(lambda module, inputs, output: output * 0 + 1)
        wrapped.forward = lambda states: states.new_full((3, 5), 2.0)
        assert torch.equal(multiply(hooked, states), torch.ones(3, 5))
        assert torch.equal(multiply(wrapped, states), torch.full((3, 5), 2.0))
        assert torch.equal(multiply(nn.Sequential(linear), states), linear(states))
        biased = nn.Linear(4, 5)
        assert torch.equal(multiply(biased, states), biased(states))
        assert not are_bare(states, linear.half())


def test_gradients_autocast_and_compilation_take_the_ordinary_way(any_rows):
    states = torch.randn(3, 4)
    assert not is_plain_inference(states)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert not is_plain_inference(states)
    with torch.no_grad():
        linear = nn.Linear(4, 5, bias=False)
        compiled = torch.compile(multiply, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(linear, states), linear(states))


def test_training_mode_keeps_its_dropout(make_config, batch, any_rows):
    """Without gradients, but in training mode, as for estimates of uncertainty."""
    torch.manual_seed(0)
    model = AutoModelForSeq2SeqLM.from_config(make_config("t5.1.1", dropout_rate=0.0)).train()
    for block in [*model.encoder.block, *model.decoder.block]:
        block.layer[-1].DenseReluDense.dropout.p = 0.5
    with torch.no_grad():
        assert not torch.equal(model(**batch).logits, model(**batch).logits)
