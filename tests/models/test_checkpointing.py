"""Activation checkpointing that keeps what attentions return: same gradients, attentions computed once."""

import functools

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForSeq2SeqLM

from t5_experimental.activation_checkpointing_t5_experimental import with_kept_attention
from t5_experimental.blockwise_attention_t5_experimental import attention_operator


class Attentions(TorchDispatchMode):
    """Counts the attentions that are computed, without their backward passes."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name
        is_kernel = name.startswith("aten::_scaled_dot_product") and not name.endswith("backward")
        self.count += is_kernel or function is attention_operator()
        return function(*args, **(kwargs or {}))


def step(config, options):
    """Gradients by name, and attentions computed, of one step with checkpointing options; None: without."""
    torch.manual_seed(0)
    model = AutoModelForSeq2SeqLM.from_config(config).double().train()
    if options is not None:
        model.gradient_checkpointing_enable(options)
    ids = torch.arange(2 * 140).view(2, 140) % 50 + 3
    with Attentions() as attentions:
        torch.manual_seed(1)
        model(input_ids=ids, labels=ids[:, :130]).loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}, attentions.count


@pytest.mark.parametrize("family", ["t5.1.1", "t5.1.th", "t5.1.n4w10"])
@pytest.mark.parametrize("dropout_rate", [0.0, 0.2])
def test_attentions_are_computed_once(make_config, family, dropout_rate):
    config = make_config(family, dropout_rate=dropout_rate)
    expected, once = step(config, None)
    _, twice = step(config, {"use_reentrant": False})
    gradients, kept = step(config, {"keep_attention": True})
    layers = config.num_layers + 2 * config.num_decoder_layers
    assert (once, kept, twice) == (layers, layers, 2 * layers)
    torch.testing.assert_close(gradients, expected, rtol=1e-12, atol=1e-12)


def test_options_pass_through():
    plain = functools.partial(checkpoint, use_reentrant=True)
    assert with_kept_attention(plain) is plain
    assert with_kept_attention(checkpoint) is checkpoint
    off = with_kept_attention(functools.partial(checkpoint, keep_attention=False, use_reentrant=True))
    assert off.keywords == {"use_reentrant": True}
    with pytest.raises(ValueError, match='set "use_reentrant" to false'):
        with_kept_attention(functools.partial(checkpoint, keep_attention=True, use_reentrant=True))
