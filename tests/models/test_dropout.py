"""The two forms of dropout: single numbers, or what all positions of a row share, as in the original."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForSeq2SeqLM

from t5_experimental.attention_t5_experimental import build_attention, dense_bias, shared_dropout
from t5_experimental.block_t5_experimental import T5Dropout
from t5_experimental.visibility_t5_experimental import visibility


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shared_dropout_decides_once_for_an_axis(dtype):
    torch.manual_seed(0)
    # Without zeros, which bfloat16 would round some to.
    states = 1 + torch.rand(50, 7, 60).to(dtype)
    dropped = shared_dropout(states, 0.3, dim=-2)
    kept = dropped != 0
    assert (kept == kept[:, :1]).all()
    assert kept[:, 0].float().mean() == pytest.approx(0.7, abs=0.03)
    assert not (kept[0] == kept[1]).all()
    # Rounded once: a factor in bfloat16 would be off by 0.2 percent.
    torch.testing.assert_close(dropped[kept], (states[kept].double() / 0.7).to(dtype), rtol=1e-6, atol=0)


def attention_case(make_config, name, implementation, length):
    """An attention with its inputs: one row is padded."""
    torch.manual_seed(0)
    config = make_config(name, dropout_rate=0.4, broadcast_dropout=True)
    config._attn_implementation = implementation
    attention = build_attention(config, config.layer_specs("encoder")[0], has_relative_attention_bias=True)
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    mask = torch.ones(2, length)
    mask[1, length // 2 :] = 0
    visible = visibility(mask, None, None, length, length)
    return attention, torch.randn(2, length, config.d_model), visible


def with_explicit_mask(attention, states, visible, kept):
    """The formula; `kept` `(b, hv, 1, m)` is multiplied with the weights that meet the values."""

    def split(linear, size):
        return linear(states).unflatten(-1, (-1, size)).transpose(1, 2)

    spec = attention.spec
    logits = split(attention.q, spec.d_k) @ split(attention.k, spec.d_k).transpose(-1, -2)
    talks = spec.attention_type == "talking_heads"
    if talks:
        logits = torch.einsum("binm,io->bonm", logits, attention.logits_projection.weight)
    bias = dense_bias(attention.self_attention_bias(visible, True, states.device), visible)
    weights = (logits + bias).softmax(-1)
    if talks:
        weights = torch.einsum("binm,io->bonm", weights, attention.weights_projection.weight)
    context = (weights * kept) @ split(attention.v, spec.d_v)
    return attention.o(context.transpose(1, 2).flatten(2))


@pytest.mark.parametrize(
    ("name", "implementation", "length", "by_rows"),
    [
        ("t5.1.1", "eager", 9, False),
        ("t5.1.1", "sdpa", 9, False),
        ("t5.1.1", "sdpa", 128, True),
        ("t5.1.th", "eager", 9, False),
        ("t5.1.th", "sdpa", 9, False),
        ("t5.1.th", "sdpa", 128, True),
    ],
)
def test_dropping_keys_equals_a_mask_on_the_weights(name, implementation, length, by_rows, make_config):
    attention, states, visible = attention_case(make_config, name, implementation, length)
    diagonals = attention.self_attention_bias(visible, True, states.device)
    assert attention.uses_blocks(states, diagonals, visible, False) == by_rows
    bias = dense_bias(diagonals, visible)

    def run(seed):
        torch.manual_seed(seed)
        return attention(states, bias, diagonals=diagonals, visible=visible).hidden_states

    def gradients(output):
        generator = torch.Generator().manual_seed(5)
        weights = torch.randn(output.shape, generator=generator)
        return torch.autograd.grad((output * weights).sum(), list(attention.parameters()), retain_graph=True)

    output = run(3)
    torch.manual_seed(3)
    kept = torch.empty(2, attention.spec.num_value_heads, length, 1).bernoulli_(0.6).transpose(-1, -2) / 0.6
    assert 0 < (kept == 0).float().mean() < 1
    expected = with_explicit_mask(attention, states, visible, kept)
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)
    for gradient, wanted in zip(gradients(output), gradients(expected), strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max()))
    # Other heads' masks, and none at all, are noticed.
    for other in (kept.roll(1, 1), torch.ones_like(kept)):
        assert (with_explicit_mask(attention, states, visible, other) - output).abs().max() > 0.1
    assert (run(4) - output).abs().max() > 0.1
    attention.eval()
    torch.testing.assert_close(
        run(3), with_explicit_mask(attention, states, visible, torch.ones_like(kept)), rtol=1e-4, atol=1e-4
    )


def test_keys_are_dropped_at_the_rate_and_the_mean_is_kept(make_config):
    for name in ("t5.1.1", "t5.1.th"):
        attention, states, visible = attention_case(make_config, name, "sdpa", 9)
        bias = dense_bias(attention.self_attention_bias(visible, True, states.device), visible)
        with torch.no_grad():
            outputs = torch.stack([attention(states, bias).hidden_states for _ in range(3000)])
            expected = attention.eval()(states, bias).hidden_states
        error = (outputs.mean(0) - expected).abs() / (outputs.std(0) / 3000**0.5 + 1e-6)
        assert error.max() < 6  # standard errors


def dropout_results(model, batch):
    """What every dropout of hidden states got and returned in a training step."""
    results = []
    handles = [
        module.register_forward_hook(lambda module, inputs, output: results.append((inputs[0], output)))
        for module in model.modules()
        if isinstance(module, T5Dropout)
    ]
    model.train()(**batch).loss.backward()
    for handle in handles:
        handle.remove()
    return results


@pytest.mark.parametrize("broadcast", [True, False])
def test_hidden_states_lose_features_or_single_numbers(broadcast, config, batch):
    """Everywhere: of the embeddings, of each sublayer, within the feed-forward, and of the final norm."""
    config.dropout_rate, config.broadcast_dropout = 0.3, broadcast
    torch.manual_seed(0)
    model = AutoModelForSeq2SeqLM.from_config(config)
    del batch["attention_mask"]  # every position is computed
    results = dropout_results(model, batch)
    sublayers = 2 * len(model.encoder.block) + 3 * len(model.decoder.block)
    feed_forwards = len(model.encoder.block) + len(model.decoder.block)
    assert len(results) == 4 + sublayers + feed_forwards
    for before, after in results:
        # A kept number is 1 / 0.7 times what it was; some are 0 before.
        kept = torch.isclose(after, before / 0.7) & (before != 0)
        lost = (after == 0) & (before != 0)
        assert (kept | lost | (before == 0)).all()
        assert (lost.any(1) & kept.any(1)).any() == (not broadcast)
    lost_share = torch.cat([(after == 0).float().flatten() for _, after in results]).mean()
    assert lost_share == pytest.approx(0.3, abs=0.05)


def test_packed_examples_share_what_their_row_drops(make_config, batch):
    torch.manual_seed(0)
    model = AutoModelForSeq2SeqLM.from_config(make_config("t5.1.1", dropout_rate=0.3, broadcast_dropout=True))
    segments = (torch.arange(13) // 5 + 1).expand(3, 13)
    packed = {
        "input_ids": batch["input_ids"],
        "labels": batch["labels"],
        "segment_ids": segments,
        "decoder_segment_ids": (torch.arange(7) // 3 + 1).expand(3, 7),
    }
    for before, after in dropout_results(model, packed):
        lost = (after == 0) & (before != 0)
        assert ((lost | (before == 0)).all(1) | ~lost.any(1)).all()


def test_evaluation_and_generation_do_not_depend_on_it(config, batch):
    torch.manual_seed(0)
    plain = AutoModelForSeq2SeqLM.from_config(config).eval()
    config.broadcast_dropout = True
    broadcast = AutoModelForSeq2SeqLM.from_config(config).eval()
    broadcast.load_state_dict(plain.state_dict())
    assert torch.equal(broadcast(**batch).logits, plain(**batch).logits)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    generated = [model.generate(**inputs, max_new_tokens=5, do_sample=False) for model in (plain, broadcast)]
    assert torch.equal(*generated)


def test_without_a_rate_nothing_is_dropped(make_config, batch):
    for name in ("t5.1.1", "t5.1.th"):
        torch.manual_seed(0)
        model = AutoModelForSeq2SeqLM.from_config(make_config(name, dropout_rate=0.0, broadcast_dropout=True))
        assert model.train()(**batch).loss == model.eval()(**batch).loss


def test_the_form_is_saved_with_the_config(config, tmp_path):
    assert config.broadcast_dropout is False
    config.broadcast_dropout = True
    config.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).broadcast_dropout is True
    assert AutoConfig.from_pretrained(tmp_path, broadcast_dropout=False).broadcast_dropout is False
