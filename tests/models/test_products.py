"""oneDNN's products, and norms in blocks, which CPUs take, against the ordinary operators."""

import platform

import pytest
import torch
from torch import nn
from transformers import AutoModelForSeq2SeqLM

from t5_experimental import block_t5_experimental, linears_t5_experimental, self_check_t5_experimental
from t5_experimental import onednn_t5_experimental as onednn_t5_experimental
from t5_experimental.block_t5_experimental import T5LayerNorm
from t5_experimental.linears_t5_experimental import apply_linear
from t5_experimental.loss_t5_experimental import chunked_token_losses, token_losses
from t5_experimental.onednn_t5_experimental import are_bare, is_plain_inference


@pytest.fixture
def any_rows(monkeypatch):
    """Takes even a few rows, and norms five at a time."""
    monkeypatch.setattr(onednn_t5_experimental, "_MIN_ROWS", 1)
    monkeypatch.setattr(block_t5_experimental, "_NORM_ROWS", 5)


def fused_calls(monkeypatch) -> list[bool]:
    """Whether oneDNN computes it, for every product from now on."""
    calls = []
    right = linears_t5_experimental.are_bare

    def counted(*arguments, **options):
        calls.append(right(*arguments, **options))
        return calls[-1]

    monkeypatch.setattr(linears_t5_experimental, "are_bare", counted)
    return calls


def test_models_give_equal_outputs_and_gradients(model, batch, any_rows, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(torch.backends.mkldnn, "enabled", False)
        expected = model(**batch)
        gradients = torch.autograd.grad(expected.loss, list(model.parameters()))
    calls = fused_calls(monkeypatch)
    with torch.no_grad():
        actual = model(**batch).logits
    torch.testing.assert_close(actual, expected.logits, rtol=1e-4, atol=1e-5)
    actual_gradients = torch.autograd.grad(model(**batch).loss, list(model.parameters()))
    torch.testing.assert_close(actual_gradients, gradients, rtol=1e-4, atol=1e-5)
    is_there = platform.machine() in ("x86_64", "AMD64") and torch.backends.mkldnn.is_available()
    assert calls
    assert all(calls) == is_there


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="needs a torch with oneDNN")
def test_products_can_be_derived_again(any_rows):
    """Gradients, gradients of gradients, and neither for what is frozen."""
    torch.manual_seed(0)
    states, linear = torch.randn(2, 3, 4, requires_grad=True), nn.Linear(4, 5, bias=False)

    def derivatives(product):
        gradients = torch.autograd.grad(product(states).square().sum(), (states, linear.weight), create_graph=True)
        return *gradients, *torch.autograd.grad(sum(x.square().sum() for x in gradients), (states, linear.weight))

    actual = derivatives(lambda states: onednn_t5_experimental.Linear.apply(states, linear.weight))
    torch.testing.assert_close(actual, derivatives(linear))
    linear.requires_grad_(False)
    apply_linear(linear, states).sum().backward()
    assert states.grad is not None
    assert linear.weight.grad is None


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


def test_losses_in_chunks_are_the_same(any_rows, monkeypatch):
    """The classifier's products within them are oneDNN's, too."""
    torch.manual_seed(0)
    states, weight = torch.randn(600, 8, requires_grad=True), torch.randn(40, 8, requires_grad=True)
    labels = torch.randint(40, (600,))
    right, calls = onednn_t5_experimental.supports, []
    monkeypatch.setattr(onednn_t5_experimental, "supports", lambda dtype: calls.append(dtype) or right(dtype))
    actual = chunked_token_losses(states, weight, labels, 1e-4, 0.1)
    gradients = torch.autograd.grad(actual.square().sum(), (states, weight))
    expected = token_losses(states @ weight.t(), labels, 1e-4, 0.1)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        gradients, torch.autograd.grad(expected.square().sum(), (states, weight)), rtol=1e-4, atol=1e-4
    )
    assert len(calls) == 3 + 2 + 3  # logits of every chunk, again but for the last, and the gradients of the states


def test_what_is_more_than_a_matrix_is_called(any_rows):
    """Adapters, hooks and quantised weights have their say."""
    states = torch.randn(3, 4)
    with torch.no_grad():
        assert is_plain_inference(states)
        linear = nn.Linear(4, 5, bias=False)
        hooked, wrapped = nn.Linear(4, 5, bias=False), nn.Linear(4, 5, bias=False)
        hooked.register_forward_hook(lambda module, inputs, output: output * 0 + 1)
        wrapped.forward = lambda states: states.new_full((3, 5), 2.0)
        assert torch.equal(apply_linear(hooked, states), torch.ones(3, 5))
        assert torch.equal(apply_linear(wrapped, states), torch.full((3, 5), 2.0))
        assert torch.equal(apply_linear(nn.Sequential(linear), states), linear(states))
        watched = nn.Linear(4, 5, bias=False)
        watched.register_full_backward_hook(lambda *unused: None)
        assert not are_bare(states, watched)
        biased = nn.Linear(4, 5)
        assert torch.equal(apply_linear(biased, states), biased(states))
        assert not are_bare(states, linear.half())


def test_autocast_transforms_and_compilation_take_the_ordinary_way(any_rows):
    states, linear = torch.randn(3, 4), nn.Linear(4, 5, bias=False)
    assert not is_plain_inference(states)
    assert are_bare(states, linear)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not are_bare(states, linear)
    expected = linear(states)
    torch.testing.assert_close(torch.func.vmap(lambda row: apply_linear(linear, row[None])[0])(states), expected)
    with torch.no_grad():
        compiled = torch.compile(apply_linear, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(linear, states), linear(states))


def test_training_mode_keeps_its_dropout(make_config, batch, any_rows):
    """Without gradients, but in training mode, as for estimates of uncertainty."""
    torch.manual_seed(0)
    model = AutoModelForSeq2SeqLM.from_config(make_config("t5.1.1", dropout_rate=0.0)).train()
    for block in [*model.encoder.block, *model.decoder.block]:
        block.layer[-1].DenseReluDense.dropout.p = 0.5
    with torch.no_grad():
        assert not torch.equal(model(**batch).logits, model(**batch).logits)


@pytest.mark.skipif(not onednn_t5_experimental.supports(torch.float32), reason="needs a torch with oneDNN")
@pytest.mark.parametrize("what", ["multiply", "multiply_and_add", "multiply_gated", "pack"])
def test_products_that_are_wrong_or_gone_are_off(what, monkeypatch, model, batch):
    """As a later torch may make them: the models then use its public operators."""
    expected = model(**batch).logits
    monkeypatch.setattr(self_check_t5_experimental, "_verdicts", {})
    right = getattr(onednn_t5_experimental, what)

    def wrong(*arguments):
        if what == "pack":
            raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute '_reorder_linear_weight'")
        return right(*arguments) * 1.01

    monkeypatch.setattr(onednn_t5_experimental, what, wrong)
    assert not onednn_t5_experimental.supports(torch.float32)
    ((key, why),) = self_check_t5_experimental.verdicts().items()
    assert key == ("oneDNN's linear layers", torch.float32)
    assert ("AttributeError" if what == "pack" else "differs by") in why
    torch.testing.assert_close(model(**batch).logits, expected, rtol=1e-4, atol=1e-5)
