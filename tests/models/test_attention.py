"""Attention against formulas written out once more, in float64 and without shortcuts."""

import math

import numpy as np
import pytest
import torch

from t5_experimental.attention_t5_experimental import (
    bias_diagonals,
    bucket_starts,
    build_attention,
    dense_bias,
    relative_position_bucket,
)
from t5_experimental.visibility_t5_experimental import Visibility


def test_buckets_are_the_originals(reference):
    with np.load(reference / "golden" / "buckets.npz") as stored:
        arrays = dict(stored)
    positions = torch.from_numpy(arrays["relative_position"])
    names = sorted(set(arrays) - {"relative_position"})
    assert len(names) == 6
    for name in names:  # as bidirectional_32_128
        direction, num_buckets, max_distance = name.rsplit("_", 2)
        ours = relative_position_bucket(positions, direction == "bidirectional", int(num_buckets), int(max_distance))
        assert np.array_equal(ours.numpy(), arrays[name]), name


def test_bucket_starts_follow_the_logarithm():
    for num_buckets, max_distance in ((16, 128), (32, 128), (8, 20), (32, 2**31 - 1)):
        exact = num_buckets // 2
        for i, start in enumerate(bucket_starts(num_buckets, max_distance), 1):
            position = [
                math.log(n / exact) / math.log(max_distance / exact) * (num_buckets - exact) for n in (start - 1, start)
            ]
            assert position[0] < i <= position[1] + 1e-9


def test_the_compiler_traces_buckets_without_a_warning(recwarn, monkeypatch):
    monkeypatch.setattr(torch._dynamo.utils, "warn_once_cache", set())
    torch._dynamo.reset()
    traced = torch.compile(relative_position_bucket, backend="eager", fullgraph=True)
    positions = torch.arange(-200, 200)
    assert torch.equal(traced(positions, True, 32, 128), relative_position_bucket(positions, True, 32, 128))
    assert [str(warning.message) for warning in recwarn] == []


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("past", [0, 3, torch.tensor(3)])
def test_bias_is_the_table_at_every_pair(bidirectional, past):
    table = torch.nn.Embedding(32, 5)
    visible = Visibility(query_length=4, key_length=9, past_length=past)
    bias = dense_bias(bias_diagonals(table, visible, bidirectional, 128, torch.device("cpu")), visible)
    assert bias.shape == (1, 5, 4, 9)
    for query in range(4):
        for key in range(9):
            bucket = relative_position_bucket(torch.tensor(key - query - int(past)), bidirectional, 32, 128)
            assert torch.equal(bias[0, :, query, key], table.weight[bucket])


def naive_attention(attention, states, source, bias):
    """Attention of every query by sums over named axes, in float64."""
    spec = attention.spec
    weight = {name: parameter.detach().double() for name, parameter in attention.named_parameters()}
    q = (states @ weight["q.weight"].T).unflatten(-1, (spec.num_key_heads, spec.d_k))
    k = (source @ weight["k.weight"].T).unflatten(-1, (spec.num_key_heads, spec.d_k))
    v = (source @ weight["v.weight"].T).unflatten(-1, (spec.num_value_heads, spec.d_v))
    logits = torch.einsum("bnhd,bmhd->bhnm", q, k)
    if spec.attention_type == "talking_heads":
        logits = torch.einsum("bknm,kh->bhnm", logits, weight["logits_projection.weight"])
    weights = (logits + bias).softmax(-1)
    mixed = weights
    if spec.attention_type == "talking_heads":
        mixed = torch.einsum("bhnm,hv->bvnm", weights, weight["weights_projection.weight"])
    context = torch.einsum("bvnm,bmvd->bnvd", mixed, v).flatten(2)
    return context @ weight["o.weight"].T, weights


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("is_cross", [False, True])
@pytest.mark.parametrize("name", ["t5.1.1", "t5.1.th"])
def test_attention_equals_the_formula(make_config, name, is_cross, implementation):
    torch.manual_seed(0)
    config = make_config(name)
    config._attn_implementation = implementation
    spec = config.layer_specs("encoder")[0]
    attention = build_attention(config, spec).double().eval()
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter)
    states = torch.randn(2, 5, config.d_model, dtype=torch.float64) / 6
    source = torch.randn(2, 7, config.d_model, dtype=torch.float64) / 6 if is_cross else states
    bias = torch.randn(1, spec.num_heads, 5, source.shape[1], dtype=torch.float64)
    expected, weights = naive_attention(attention, states, source, bias)
    output = attention(states, bias, source if is_cross else None)
    torch.testing.assert_close(output.hidden_states, expected)
    assert output.weights is None or implementation == "eager"
    with_weights = attention(states, bias, source if is_cross else None, output_attentions=True)
    torch.testing.assert_close(with_weights.hidden_states, expected)
    torch.testing.assert_close(with_weights.weights, weights)


@pytest.mark.parametrize("name", ["t5.1.1", "t5.1.th"])
def test_gradients_of_attention_and_bias(make_config, name):
    """By finite differences, the position bias among the inputs."""
    torch.manual_seed(0)
    config = make_config(name, d_model=6, num_heads=2, d_kv=3)
    spec = config.layer_specs("encoder")[0]
    attention = build_attention(config, spec).double().eval()
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter)
    for implementation in ("eager", "sdpa"):
        config._attn_implementation = implementation
        states = torch.randn(1, 4, 6, dtype=torch.float64, requires_grad=True)
        bias = torch.randn(1, spec.num_heads, 4, 4, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda x, b: attention(x, b).hidden_states, (states, bias))


def test_dropout_of_attention_weights_keeps_the_mean(make_config):
    torch.manual_seed(0)
    for name in ("t5.1.1", "t5.1.th"):
        config = make_config(name, dropout_rate=0.5)
        config._attn_implementation = "eager"
        spec = config.layer_specs("encoder")[0]
        attention = build_attention(config, spec)
        for parameter in attention.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        states = torch.randn(1, 6, config.d_model).expand(4000, -1, -1)
        with torch.no_grad():
            dropped = attention.train()(states).hidden_states
            kept = attention.eval()(states).hidden_states[0]
        assert dropped.std(0).mean() > 0.01
        assert (dropped.mean(0) - kept).abs().max() < 0.15 * kept.abs().max()
