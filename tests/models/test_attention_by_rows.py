"""Attention by blocks of rows, talking heads and plain: equal to all pairs at once, in bounded memory, by default."""

import copy

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForSeq2SeqLM

from t5_experimental import attention_t5_experimental, blockwise_attention_t5_experimental
from t5_experimental.attention_t5_experimental import dense_bias
from t5_experimental.blockwise_attention_t5_experimental import block_rows, blockwise_attention
from t5_experimental.visibility_t5_experimental import Visibility, masked_bias


NAMES = ("query", "key", "value", "logits_projection", "weights_projection", "diagonals")


def make_inputs(n, m, batch=2, with_diagonals=True, dtype=torch.float64, requires_grad=True, plain=False):
    """Three key heads, four softmax heads, five value heads; or four of all and nothing that mixes them."""
    generator = torch.Generator().manual_seed(n * m)
    key_heads, value_heads = (4, 4) if plain else (3, 5)
    shapes = [(batch, key_heads, n, 6), (batch, key_heads, m, 6), (batch, value_heads, m, 7)]
    shapes += [(3, 4), (4, 5), (4, n + m - 1)]
    inputs = [torch.randn(shape, generator=generator, dtype=torch.float64).mul(0.6).to(dtype) for shape in shapes]
    inputs = [tensor.requires_grad_(requires_grad) for tensor in inputs]
    if plain:
        inputs[3:5] = None, None
    return inputs if with_diagonals else [*inputs[:5], None]


def eager(query, key, value, logits_projection, weights_projection, diagonals, visible):
    """The formula, with all pairs of all heads written out."""
    logits = query @ key.transpose(-1, -2)
    if logits_projection is not None:
        logits = torch.einsum("bknm,kh->bhnm", logits, logits_projection)
    if diagonals is not None:
        logits = logits + dense_bias(diagonals, visible)
    elif (mask := visible.all_rows(query.device)) is not None:
        logits = logits + masked_bias(torch.zeros((), dtype=query.dtype), mask)
    weights = logits.softmax(-1)
    if weights_projection is not None:
        weights = torch.einsum("bhnm,hc->bcnm", weights, weights_projection)
    return weights @ value


def with_gradients(function, inputs, visible, **kwargs):
    """Output and gradients of all inputs, by name."""
    output = function(*inputs, visible, **kwargs)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    given = {name: tensor for name, tensor in zip(NAMES, inputs, strict=True) if tensor is not None}
    gradients = torch.autograd.grad(output, list(given.values()), weights.to(output.dtype))
    return {"output": output.detach(), **dict(zip(given, gradients, strict=True))}


def largest_difference(results, expected):
    assert results.keys() == expected.keys()
    return max(float((results[name].double() - expected[name].double()).abs().max()) for name in expected)


def visibilities(n=11, m=13):
    """By name; nothing in row 3 of the first example is visible where the name says so."""
    generator = torch.Generator().manual_seed(5)
    padding = torch.ones(2, 1, 1, m, dtype=torch.bool)
    padding[0, ..., 9:] = padding[1, ..., :2] = False
    query_segments, key_segments = (torch.arange(length)[None].expand(2, -1) // 4 for length in (n, m))
    pairs = torch.rand(2, 4, n, m, generator=generator) > 0.4
    pairs[0, :, 3] = False
    nothing = padding.clone()
    nothing[0] = False
    return {
        "all": Visibility(n, m),
        "padding": Visibility(n, m, padding),
        "packed": Visibility(n, m, None, query_segments, key_segments),
        "packed and padded": Visibility(n, m, padding, query_segments, key_segments),
        "causal": Visibility(n, m, causal=True),
        "causal with a past": Visibility(n, m, padding, past_length=2, causal=True),
        "past in a tensor": Visibility(n, m, past_length=torch.tensor(2), causal=True),
        "pairs of each head, hidden row": Visibility(n, m, pairs),
        "pairs, causal, packed": Visibility(n, m, pairs[:, :1], query_segments, key_segments, 2, True),
        "hidden example": Visibility(n, m, nothing),
        "left padding and causal": Visibility(n, m, padding.flip(-1), causal=True),
    }


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("with_diagonals", [True, False])
@pytest.mark.parametrize("rows", [1, 4, 11])
@pytest.mark.parametrize("name", visibilities())
def test_output_and_gradients_equal_eager(name, rows, with_diagonals, plain):
    visible = visibilities()[name]
    inputs = make_inputs(11, 13, with_diagonals=with_diagonals, plain=plain)
    expected = with_gradients(eager, inputs, visible)
    assert largest_difference(with_gradients(blockwise_attention, inputs, visible, rows=rows), expected) < 1e-12


def bias_before_the_first_mix(query, key, value, logits_projection, weights_projection, diagonals, visible):
    logits = torch.einsum("bknd,bkmd->bknm", query, key) + dense_bias(diagonals, visible)[:, :3]
    weights = torch.einsum("bknm,kh->bhnm", logits, logits_projection).softmax(-1)
    return torch.einsum("bhnm,hc,bcmd->bcnd", weights, weights_projection, value)


def one_mix_after_the_values(query, key, value, logits_projection, weights_projection, diagonals, visible):
    logits = torch.einsum("bknd,bkmd,kh->bhnm", query, key, logits_projection) + dense_bias(diagonals, visible)
    weights = torch.einsum("bhnm,hc->bcnm", logits.softmax(-1), weights_projection.flip(0))
    return weights @ value


class SoftmaxWithSharedCorrection(torch.autograd.Function):
    """Subtracts the mean over the heads of sum(W dW), which only sums over all heads agree with."""

    @staticmethod
    def forward(ctx, logits):
        weights = logits.softmax(-1)
        ctx.save_for_backward(weights)
        return weights

    @staticmethod
    def backward(ctx, gradient):
        (weights,) = ctx.saved_tensors
        correction = (weights * gradient).sum(-1, keepdim=True).mean(1, keepdim=True)
        return weights * (gradient - correction)


def one_correction_for_all_heads(query, key, value, logits_projection, weights_projection, diagonals, visible):
    logits = torch.einsum("bknd,bkmd,kh->bhnm", query, key, logits_projection) + dense_bias(diagonals, visible)
    weights = SoftmaxWithSharedCorrection.apply(logits)
    return torch.einsum("bhnm,hc,bcmd->bcnd", weights, weights_projection, value)


def bias_the_other_way_round(*inputs):
    *others, diagonals, visible = inputs
    return eager(*others, diagonals.flip(1), visible)


@pytest.mark.parametrize(
    "wrong",
    [bias_before_the_first_mix, one_mix_after_the_values, one_correction_for_all_heads, bias_the_other_way_round],
)
def test_a_wrong_formula_fails_the_comparison(wrong):
    """The check above discriminates."""
    inputs, visible = make_inputs(11, 13), Visibility(11, 13)
    results = with_gradients(blockwise_attention, inputs, visible, rows=4)
    assert largest_difference(results, with_gradients(wrong, inputs, visible)) > 1e-3


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("with_diagonals", [True, False])
def test_gradients_by_finite_differences(with_diagonals, dropout, plain):
    """With dropout, that forward and backward pass draw the same mask."""
    inputs = make_inputs(5, 6, with_diagonals=with_diagonals, plain=plain)
    visible = Visibility(5, 6, torch.arange(6)[None, None, None].expand(2, -1, -1, -1) != 4, past_length=1, causal=True)

    def function(*arguments):
        torch.manual_seed(3)
        return blockwise_attention(*arguments, visible, dropout, rows=2)

    # In one direction that is drawn at random: every entry of every gradient counts in it.
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)


def test_dropout_keeps_the_mean_and_drops_weights_one_by_one():
    inputs = make_inputs(5, 6, batch=1, with_diagonals=False, requires_grad=False)
    visible = Visibility(5, 6)
    expected = blockwise_attention(*inputs, visible)
    torch.manual_seed(0)
    draws = torch.stack([blockwise_attention(*inputs, visible, 0.25, rows=2) for _ in range(4000)])
    standard_error = draws.std(0) / len(draws) ** 0.5
    assert ((draws.mean(0) - expected).abs() < 5 * standard_error).all()

    # One weight of each row times one, so that the output is what dropout left of it.
    ones = torch.ones(1, 2, 64, 1, dtype=torch.float64)
    identity = torch.eye(2, dtype=torch.float64)
    values = torch.zeros(1, 2, 64, 64, dtype=torch.float64) + torch.eye(64, dtype=torch.float64)
    kept = blockwise_attention(ones, ones, values, identity, identity, None, Visibility(64, 64), 0.25) * 64
    assert torch.unique(kept.round(decimals=9)).tolist() == pytest.approx([0, 1 / 0.75], rel=1e-8)
    share = (kept > 0).double()
    error = (0.25 * 0.75) ** 0.5
    assert abs(share.mean() - 0.75) < 5 * error / share.numel() ** 0.5
    for axis in (1, 2, 3):  # no draw is shared along heads, queries or keys
        assert abs(share.mean(axis).std() - error / share.shape[axis] ** 0.5) < 0.2 * error / share.shape[axis] ** 0.5


def test_dropout_follows_the_seed():
    inputs = make_inputs(5, 6, requires_grad=False)
    outputs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outputs.append(blockwise_attention(*inputs, Visibility(5, 6), 0.3))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_half_precision_is_as_exact_as_eager(dtype, plain):
    """At most twice the error of the same formula in the same dtype, output and gradients, over several inputs."""
    errors = {}
    for n in range(40, 45):
        visible = Visibility(n, 50, causal=True, past_length=50 - n)
        exact = with_gradients(eager, make_inputs(n, 50, plain=plain), visible)
        for function in (blockwise_attention, eager):
            results = with_gradients(function, make_inputs(n, 50, dtype=dtype, plain=plain), visible)
            for name, expected in exact.items():
                assert results[name].dtype == dtype
                error = float((results[name].double() - expected).norm() / expected.norm())
                errors[function, name] = errors.get((function, name), 0.0) + error
    for name in exact:
        assert errors[blockwise_attention, name] <= 2 * errors[eager, name], name


def test_hidden_rows_stay_finite_in_half_precision():
    for dtype in (torch.bfloat16, torch.float16):
        results = with_gradients(
            blockwise_attention, make_inputs(11, 13, dtype=dtype), visibilities()["pairs of each head, hidden row"]
        )
        assert all(tensor.isfinite().all() for tensor in results.values())


def saved_numbers(length):
    """How many numbers the graph of one attention keeps, and how many the largest tensor of them has."""
    sizes = []

    def pack(tensor):
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        blockwise_attention(*make_inputs(length, length), Visibility(length, length, causal=True), 0.1)
    return sum(sizes), max(sizes)


def test_what_is_kept_for_the_backward_pass_grows_with_the_length_alone():
    (small, _), (double, _), (large, largest) = (saved_numbers(length) for length in (64, 128, 256))
    assert double < 2.1 * small
    assert large < 2.1 * double
    assert largest < 256 * 256


def test_no_tensor_of_all_pairs_is_made(monkeypatch):
    """In neither pass: every tensor that an operation returns has fewer numbers than there are pairs."""
    monkeypatch.setattr(blockwise_attention_t5_experimental, "_MIN_ROWS", 2)
    monkeypatch.setitem(blockwise_attention_t5_experimental._BUFFER_BYTES, "cpu", 1)
    length, sizes = 200, []

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            sizes.extend(x.numel() for x in torch.utils._pytree.tree_leaves(result) if isinstance(x, torch.Tensor))
            return result

    inputs = make_inputs(length, length, batch=1)
    visible = Visibility(length, length, None, *(torch.arange(length)[None] // 30,) * 2, causal=True)
    with Sizes():
        with_gradients(blockwise_attention, inputs, visible, dropout=0.1)
    assert max(sizes) < length * length / 2


def test_blocks_fit_their_budget():
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert block_rows(24, 512, 512, torch.float32, cpu) * 24 * 512 * 4 <= 2**21
    assert block_rows(24, 8192, 8192, torch.float32, cpu) == 16
    assert block_rows(24, 5, 8192, torch.float32, cpu) == 5
    assert block_rows(24, 512, 512, torch.float32, gpu) == 512


def test_second_derivatives_are_refused():
    inputs = make_inputs(5, 6)
    output = blockwise_attention(*inputs, Visibility(5, 6))
    (gradient,) = torch.autograd.grad(output.sum(), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match='attn_implementation="eager"'):
        gradient.sum().backward()


@pytest.mark.slow
def test_compiled_as_one_graph(compile_backend):
    inputs, visible = make_inputs(40, 50), Visibility(40, 50, causal=True)

    def function(*arguments):
        return blockwise_attention(*arguments).sin()

    expected = with_gradients(function, inputs, visible)
    compiled = torch.compile(function, fullgraph=True, backend=compile_backend)
    assert largest_difference(with_gradients(compiled, inputs, visible), expected) < 1e-12


@pytest.fixture
def by_rows(monkeypatch):
    """Blocks of three rows, none too small for them; the fixture lists the lengths that they were used for."""
    monkeypatch.setattr(attention_t5_experimental, "_MIN_QUERIES", 1)
    monkeypatch.setattr(attention_t5_experimental, "_MIN_PAIRS", 1)
    used = []

    def by_three(*inputs):
        used.append((inputs[0].shape[2], inputs[1].shape[2]))
        return blockwise_attention(*inputs, rows=3)

    monkeypatch.setattr(attention_t5_experimental, "blockwise_attention", by_three)
    return used


@pytest.fixture(params=["t5.1.1", "t5.1.th", "t5.1.n4w10", "mixed"])
def pair(request, make_config):
    """The default and the eager implementation of one model, in float64."""
    torch.manual_seed(0)
    config = make_config(request.param)
    model = AutoModelForSeq2SeqLM.from_config(config).double().eval()
    reference = AutoModelForSeq2SeqLM.from_config(copy.deepcopy(config), attn_implementation="eager").double().eval()
    reference.load_state_dict(model.state_dict())
    return model, reference


def mixes_heads(model):
    """Whether it has talking heads; plain attention takes rows only where a bias learns."""
    return any("logits_projection" in name for name, _ in model.named_parameters())


def packed(batch):
    batch = dict(batch)
    del batch["attention_mask"]
    lengths = batch["input_ids"].shape[1], batch["labels"].shape[1]
    segments = [(torch.arange(length) // (length // 2) + 1).expand(3, -1) for length in lengths]
    return {**batch, "segment_ids": segments[0], "decoder_segment_ids": segments[1]}


@pytest.mark.parametrize("arrange", [dict, packed])
@pytest.mark.parametrize("checkpointing", [None, True, False])
def test_models_equal_eager_ones(pair, batch, by_rows, arrange, checkpointing):
    """Loss and the gradient of every parameter, the bias tables' through all blocks that share them among them."""
    results = []
    for index, model in enumerate(pair):
        if index == 0 and checkpointing is not None:
            model.train().gradient_checkpointing_enable({"use_reentrant": checkpointing})
            model.enable_input_require_grads()
            for module in model.modules():
                if isinstance(getattr(module, "dropout", None), float):
                    module.dropout = 0.0
                if isinstance(module, torch.nn.Dropout):
                    module.p = 0.0
        loss = model(**arrange(batch)).loss
        loss.backward()
        results.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert {(13, 13), (7, 7), (7, 13)} - set(by_rows) == (set() if mixes_heads(pair[0]) else {(7, 13)})
    assert largest_difference(*results) < 1e-12


def test_decoding_with_a_cache_equals_eager(pair, batch, by_rows):
    batch.pop("labels")
    arguments = {"max_new_tokens": 8, "min_new_tokens": 8, "output_logits": True, "return_dict_in_generate": True}
    for kwargs in ({}, {"cache_implementation": "static", "disable_compile": True}, {"num_beams": 2}):
        ours, theirs = (model.generate(**batch, **arguments, **kwargs) for model in pair)
        assert torch.equal(ours.sequences, theirs.sequences)
        torch.testing.assert_close(torch.stack(ours.logits), torch.stack(theirs.logits), rtol=1e-9, atol=1e-9)
    assert ((1, 13) in by_rows) == mixes_heads(pair[0])


@pytest.fixture
def rows_taken(monkeypatch):
    """Gets the dropout of every attention that is computed by rows."""
    calls = []
    monkeypatch.setattr(
        attention_t5_experimental,
        "blockwise_attention",
        lambda *inputs: calls.append(inputs[-1]) or blockwise_attention(*inputs),
    )
    return calls


LONG = {"input_ids": torch.full((1, 130), 7), "labels": torch.full((1, 3), 8)}


def test_which_path_talking_heads_take(make_config, batch, rows_taken):
    """Blocks of rows by default; all pairs at once for attentions, eager models and small problems."""
    config = make_config("t5.1.th")
    model = AutoModelForSeq2SeqLM.from_config(config).eval()
    model(**batch)
    model(**LONG, output_attentions=True)
    assert not rows_taken
    model(**LONG)
    assert len(rows_taken) == config.num_layers
    model.set_attn_implementation("eager")
    model(**LONG)
    assert len(rows_taken) == config.num_layers


def test_which_path_plain_attention_takes(make_config, rows_taken):
    """Blocks of rows where torch's kernel could not compute gradients or dropout: for a bias that learns, and for
    dropout."""
    config = make_config("t5.1.1", dropout_rate=0.25)
    model = AutoModelForSeq2SeqLM.from_config(config).eval()
    with torch.no_grad():
        model(**LONG)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model(**LONG)
    assert not rows_taken
    model.train()
    model(**LONG)
    assert rows_taken == [0.25] * config.num_layers
    model.requires_grad_(True).eval()
    model(**LONG)
    assert rows_taken[config.num_layers :] == [0.0] * config.num_layers
    model.set_attn_implementation("eager")
    model(**LONG)
    assert len(rows_taken) == 2 * config.num_layers


def test_autocast(make_config, by_rows):
    torch.manual_seed(0)
    model = AutoModelForSeq2SeqLM.from_config(make_config("t5.1.th", dropout_rate=0.0)).train()
    long = {"input_ids": torch.randint(3, 1000, (2, 30)), "labels": torch.randint(3, 1000, (2, 9))}
    exact = model(**long).logits
    logits = []
    for implementation in ("sdpa", "eager"):
        model.set_attn_implementation(implementation)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            outputs = model(**long)
        outputs.loss.backward()
        logits.append(outputs.logits)
    ours, theirs = (F.mse_loss(x.float(), exact) for x in logits)
    assert 0 < ours < 2 * theirs
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
