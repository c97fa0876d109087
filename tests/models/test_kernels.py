"""The kernels for weights on CPUs: each multiplies rightly, the fastest is taken, and int8 decodes like float."""

import copy
import logging

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM

from t5_experimental import decoding_session, onednn_t5_experimental
from t5_experimental import kernels_t5_experimental as kernels
from t5_experimental import linears_t5_experimental as linears
from t5_experimental.kernels_t5_experimental import choose, float_kernels, int8_kernel, int8_kernels, linear_kernel
from tests.models.test_decoding import LENGTH, logits_of_steps


needs_int8 = pytest.mark.skipif(not int8_kernels(), reason="this torch or processor has no right int8 kernel")

ENGINES = [engine for engine in ("fbgemm", "onednn") if kernels.int8_kernel(engine) is not None]


@pytest.fixture(autouse=True)
def fresh_times(monkeypatch):
    """No test sees the times of another."""
    monkeypatch.setattr(kernels, "_TIMES", {})
    kernels._float32_is_faster.cache_clear()
    yield
    kernels._float32_is_faster.cache_clear()


@pytest.fixture
def allow(monkeypatch):
    return lambda names: monkeypatch.setenv(kernels.VARIABLE, names)


@pytest.fixture
def inputs(batch):
    del batch["labels"]
    return batch


@pytest.fixture
def wide_model(make_config):
    """A model of each family that is wide enough for its rounding errors to average."""

    def build(name):
        torch.manual_seed(0)
        sizes = {} if name == "t5.1.n4w10" else {"d_model": 128, "d_ff": 256}
        return AutoModelForSeq2SeqLM.from_config(make_config(name, **sizes)).eval()

    return build


def relative_error(actual, expected):
    return float((actual - expected).norm() / expected.norm())


def all_kernels():
    groups = (*float_kernels(torch.float32, rows=1), *int8_kernels(torch.float32))
    return list(dict.fromkeys(kernel for group in groups for kernel in group))


@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (2, 5, 7)])
def test_every_kernel_multiplies(shape, allow):
    allow("")
    torch.manual_seed(0)
    weight = torch.randn(24, 40) * torch.logspace(-3, 3, 24)[:, None]
    states = torch.randn(*shape, 40)
    expected = states @ weight.t()
    assert len(all_kernels()) > 1
    for kernel in all_kernels():
        product = kernel.multiply(states, kernel.pack(weight))
        assert product.shape == expected.shape
        # Each output feature has a scale of its own: the smallest is as exact as the largest.
        for feature in range(24):
            error = relative_error(product[..., feature], expected[..., feature])
            assert error < (0.2 if kernel.is_int8 else 1e-5), (kernel.name, feature)


@needs_int8
@pytest.mark.parametrize("engine", ENGINES)
def test_sums_of_eight_bits_do_not_overflow(engine):
    """With instructions for products of 8 bits or without: then states have 7 bits."""
    kernel = kernels.int8_kernel(engine)
    states, weight = torch.ones(2, 512), torch.ones(16, 512)
    assert relative_error(kernel.multiply(states, kernel.pack(weight)), torch.full((2, 16), 512.0)) < 0.02


@needs_int8
@pytest.mark.parametrize("engine", ENGINES)
def test_rows_do_not_depend_on_each_other(engine):
    """However large, zero, or no numbers others are."""
    kernel = kernels.int8_kernel(engine)
    torch.manual_seed(0)
    weight = torch.randn(24, 40)
    states = torch.randn(7, 40) * torch.logspace(-6, 6, 7)[:, None]
    states[3] = 0
    packed = kernel.pack(weight)
    together = kernel.multiply(states, packed)
    assert bool((together[3] == 0).all())
    for row in range(7):
        alone = kernel.multiply(states[row : row + 1].repeat(2, 1), packed)[0]
        torch.testing.assert_close(together[row], alone, rtol=0.02, atol=0.02 * float(alone.abs().max()))
    states[5, 4] = float("inf")
    infinite = kernel.multiply(states, packed)
    assert not bool(infinite[5].isfinite().any())
    torch.testing.assert_close(infinite[[0, 1, 2, 4, 6]], together[[0, 1, 2, 4, 6]])


def test_a_kernel_that_overflows_is_found(monkeypatch):
    """As on processors of AVX2 alone, where 8 bits give half of the sum and 7 bits are right."""
    if not ENGINES:
        pytest.skip("this torch or processor has no right int8 kernel")
    right = torch.ops.quantized.linear_dynamic

    def overflowing(states, packed, reduce_range):
        product = right(states, packed, reduce_range=reduce_range)
        return product if reduce_range else product / 2

    kernels.int8_range.cache_clear()
    monkeypatch.setattr(torch.ops.quantized, "linear_dynamic", overflowing)
    try:
        assert kernels.int8_range(ENGINES[0]) == 7
        kernels.int8_kernel.cache_clear()
        kernel = kernels.int8_kernel(ENGINES[0])
        for rows in (1, 3):
            product = kernel.multiply(torch.ones(rows, 64), kernel.pack(torch.ones(8, 64)))
            assert relative_error(product, torch.full((rows, 8), 64.0)) < 0.02
        kernels.int8_range.cache_clear()
        monkeypatch.setattr(torch.ops.quantized, "linear_dynamic", lambda *a, reduce_range: right(*a) * 1.1)
        assert kernels.int8_range(ENGINES[0]) is None
    finally:
        kernels.int8_range.cache_clear()
        kernels.int8_kernel.cache_clear()


class Clock:
    """Stands in for the times of products: by the kernel's name."""

    def __init__(self, monkeypatch, times):
        self.problems = []
        self.times = times
        monkeypatch.setattr(kernels, "_milliseconds", self)

    def __call__(self, candidates, out_features, in_features, rows):
        self.problems.append((out_features, in_features, rows))
        return {kernel.name: self.times[kernel.name] for kernel in candidates}


def two_groups():
    return [[linear_kernel(torch.bfloat16)], [linear_kernel(torch.float32)]]


def test_the_fastest_is_taken_and_timed_once(monkeypatch):
    clock = Clock(monkeypatch, {"bfloat16-linear": 3.0, "float32-linear": 1.0})
    shapes = [(64, 32), (64, 32), (32, 64)]
    choices = choose(two_groups(), shapes, 5)
    assert [choice.kernel.name for choice in choices] == ["float32-linear"] * 3
    assert sorted(clock.problems) == [(32, 64, 8), (64, 32, 8)]
    choose(two_groups(), shapes, 7)  # as many rows, to the next power of 2
    assert len(clock.problems) == 2
    choose(two_groups(), shapes, 9)
    assert len(clock.problems) == 4
    one_group = [[kernel for group in two_groups() for kernel in group]]
    assert choose(one_group, shapes, 5)[0].kernel.name == "float32-linear"
    assert str(choices[2]) == "32 x 64, 8 rows: float32-linear (bfloat16-linear 3 ms, float32-linear 1 ms)"


def test_the_first_is_kept_unless_another_is_clearly_faster(monkeypatch):
    Clock(monkeypatch, {"bfloat16-linear": 1.0, "float32-linear": 0.95})
    assert choose(two_groups(), [(64, 32)], 1)[0].kernel.name == "bfloat16-linear"
    one_group = [[kernel for group in two_groups() for kernel in group]]
    assert choose(one_group, [(32, 64)], 1)[0].kernel.name == "bfloat16-linear"


def test_real_times_are_positive_and_a_single_kernel_is_not_timed(allow):
    allow("")
    (choice,) = choose([[linear_kernel(torch.float32)]], [(8, 16)], 3)
    assert choice.milliseconds == {}
    assert str(choice) == "8 x 16, 4 rows: float32-linear"
    (choice,) = choose(two_groups(), [(8, 16)], 1)
    assert all(time > 0 for time in choice.milliseconds.values())


def test_a_kernel_is_warm_when_it_is_timed_and_its_weight_is_not():
    used = []
    one = linear_kernel(torch.float32)._replace(
        name="one", multiply=lambda states, weight: used.append(weight.data_ptr())
    )
    times = kernels._milliseconds([one, one._replace(name="two")], 8, 4, 1)
    assert set(times) == {"one", "two"}
    (warm_up,), (timed,) = set(used[::2]), set(used[1::2])
    assert warm_up != timed


def test_the_environment_decides_without_a_clock(allow, monkeypatch):
    clock = Clock(monkeypatch, {})
    allow("nonsense, float32-linear")
    assert (
        choose(float_kernels(torch.bfloat16, torch.float32, rows=1), [(64, 32)], 1)[0].kernel.name == "float32-linear"
    )
    assert kernels.is_emulated(torch.bfloat16)
    kernels._float32_is_faster.cache_clear()
    allow("nonsense")
    assert not kernels.is_emulated(torch.bfloat16)
    assert not kernels.is_emulated(torch.float32)
    assert choose(float_kernels(torch.float64, rows=1), [(64, 32)], 1)[0].kernel.name == "float64-linear"
    assert clock.problems == []


@pytest.mark.parametrize("name", ["float32-linear", "float32-onednn", "float32-onednn-plain, float32-onednn"])
def test_each_kernel_gives_the_logits_of_the_forward_pass(name, model, inputs, allow):
    allow(name)
    expected = logits_of_steps(model, inputs, 12)
    with decoding_session(model) as session:
        for some in (inputs, {key: value[:1] for key, value in inputs.items()}, inputs):
            logits = logits_of_steps(model, some, 12)
            torch.testing.assert_close(logits, expected[: len(logits)], rtol=0, atol=1e-5)
    there = name.rpartition(", ")[2] if onednn_t5_experimental.supports(torch.float32) else "float32-linear"
    assert {choice.kernel.name for choice in session.decode.choices} == {there}
    lines = str(session).splitlines()
    assert len(lines) == len({choice.shape for choice in session.decode.choices})
    assert all(line.endswith(f" rows: {there}") for line in lines)


needs_onednn = pytest.mark.skipif(not onednn_t5_experimental.supports(torch.float32), reason="oneDNN is not there")


@needs_int8
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_in_int8_has_no_copies_in_float32(dtype, model, inputs, allow):
    allow("float32-onednn-plain, float32-linear, int8-fbgemm, int8-onednn")
    model.to(dtype)
    model.packed_decoder_limit = 0
    with decoding_session(model, weights="int8") as session:
        logits_of_steps(model, inputs, 6)
    assert all(choice.kernel.is_int8 for choice in session.decode.choices)


@needs_int8
@needs_onednn
@pytest.mark.parametrize("length", [5, 90])
def test_an_encoder_in_int8_uses_the_float_kernel_that_was_faster(length, wide_model, allow, monkeypatch):
    """The one that was timed, and no other, for few rows and many."""
    model, shapes = wide_model("t5.1.1").encoder, []
    ids = torch.randint(3, 1000, (3, length), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(ids).last_hidden_state

    def multiply(states, weight):
        shapes.append(states.shape)
        return onednn_t5_experimental.multiply(states, weight)

    noted = kernels.plain_kernel()._replace(multiply=multiply)
    monkeypatch.setattr(kernels, "plain_kernel", lambda: noted)
    allow("float32-onednn-plain")
    with decoding_session(model, weights="int8"), torch.no_grad():
        found = model(ids).last_hidden_state
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert sum(shape[:-1].numel() for shape in shapes) == 7 * model.config.num_layers * ids.numel()


@needs_onednn
@pytest.mark.parametrize(
    ("weights", "has_room"), [(None, True), (None, False), pytest.param("int8", True, marks=needs_int8)]
)
def test_a_row_needs_no_copy_of_the_weights(weights, has_room, model, inputs, allow):
    """oneDNN takes them as they are; only what is multiplied together is joined, if there is room for float32."""
    allow("float32-onednn-plain")
    if not has_room:
        model.packed_decoder_limit = 0
    one = {key: value[:1] for key, value in inputs.items()}
    expected = logits_of_steps(model, one, 8)
    with decoding_session(model, **({"weights": weights} if weights else {})) as session:
        logits = logits_of_steps(model, one, 8)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
    assert {choice.kernel.name for choice in session.decode.choices} == {"float32-onednn-plain"}
    places = {parameter.data_ptr() for parameter in model.parameters()}
    for linear in session.decode.linears:
        copies = linear.copy if isinstance(linear.copy, tuple) else (linear.copy,)
        is_joined = weights is None and has_room and len(linear.weights) > 1
        is_joined = is_joined and not isinstance(linear, linears.PreparedGatedLinear)
        assert [copy.data_ptr() in places for copy in copies] == [not is_joined] * len(copies)


@pytest.mark.parametrize("names", ["", "float32-onednn,float32-linear"])
def test_float64_stays_float64(names, wide_model, inputs, allow, monkeypatch):
    """However fast float32 is."""
    Clock(monkeypatch, {"float64-linear": 9.0, "float32-linear": 1.0, "float32-onednn": 1.0})
    allow(names)
    model = wide_model("t5.1.1").to(torch.float64)
    expected = logits_of_steps(model, inputs, 8)
    with decoding_session(model) as session:
        logits = logits_of_steps(model, inputs, 8)
    assert session.decode.steps == 7
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_that_is_emulated_is_computed_in_float32(dtype, wide_model, inputs, allow, monkeypatch):
    """In encoder and steps: nearer to the exact logits than what its own dtype gives."""
    monkeypatch.setattr(onednn_t5_experimental, "_MIN_ROWS", 1)
    computed = []
    for name in ("linear_in_float32", "multiply_gated"):
        right = getattr(linears, name)

        def noted(states, *weights, name=name, right=right):
            computed.append((name, weights[0].dtype))
            return right(states, *weights)

        monkeypatch.setattr(linears, name, noted)
    half = wide_model("t5.1.1").to(dtype)
    exact = copy.deepcopy(half).to(torch.float64)
    expected = logits_of_steps(exact, inputs, 12)

    def error():
        with decoding_session(half) as session:
            logits = logits_of_steps(half, inputs, 12)
        assert logits.dtype == dtype
        return relative_error(logits, expected), session.decode

    allow("float32-linear")
    kernels._float32_is_faster.cache_clear()
    wide, decode = error()
    assert decode.dtype == torch.float32
    encoder_layers = len(half.encoder.block)
    assert computed.count(("linear_in_float32", dtype)) >= 5 * encoder_layers  # q, k, v, o, wo
    if onednn_t5_experimental.supports(torch.float32):
        assert computed.count(("multiply_gated", torch.float32)) >= encoder_layers
    computed.clear()
    kernels._float32_is_faster.cache_clear()
    allow("bfloat16-linear,float16-linear")
    narrow, decode = error()
    assert ("linear_in_float32", dtype) not in computed
    assert decode.dtype == (torch.bfloat16 if dtype == torch.bfloat16 else torch.float32)
    print(f"{dtype}: {wide:.1e} in float32, {narrow:.1e} in its own")
    assert wide <= narrow * 1.05


def test_float16_models_with_float32_outputs_take_steps(wide_model, inputs, tmp_path):
    """`from_pretrained` keeps `wo` in float32."""
    wide_model("t5.1.1").save_pretrained(tmp_path)
    half = AutoModelForSeq2SeqLM.from_pretrained(tmp_path, dtype=torch.float16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.float16, torch.float32}
    expected = logits_of_steps(half, inputs, 6)
    with decoding_session(half) as session:
        logits = logits_of_steps(half, inputs, 6)
    assert session.decode.steps == 5
    assert logits.dtype == torch.float16
    assert relative_error(logits.float(), expected.float()) < 2e-3
    half.packed_decoder_limit = 1000  # no room for float32 copies: the ordinary forward pass computes
    with decoding_session(half) as session:
        assert torch.equal(logits_of_steps(half, inputs, 6), expected)
    assert session.decode is None
    if int8_kernels():
        with decoding_session(half, weights="int8") as session:  # which takes a quarter of that
            assert relative_error(logits_of_steps(half, inputs, 6).float(), expected.float()) < INT8_ERROR
        assert session.decode.steps == 5


# Relative errors of logits were 1.0 to 3.7 percent; the less wide a model, the larger.
INT8_ERROR = 0.05


@needs_int8
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["t5.1.1", "t5.1.1.lm100k", "t5.1.th", "t5.1.n4w10"])
def test_int8_computes_all_linear_layers_of_every_family(name, engine, wide_model, inputs, allow):
    allow(f"int8-{engine}")
    model = wide_model(name)
    expected = logits_of_steps(model, inputs, 12)
    with decoding_session(model, weights="int8") as session:
        logits = logits_of_steps(model, inputs, 12)
        steps = session.decode
        assert steps.steps == 11
        assert {choice.kernel.name for choice in steps.choices} == {f"int8-{engine}"}
        encoder = [module for module in model.encoder.modules() if isinstance(module, torch.nn.Linear)]
        cross = 2 * len(model.decoder.block)
        assert len(session.int8_linears) == len(encoder) + cross
        assert all(linear.choices for linear in session.int8_linears.values())
    error = relative_error(logits, expected)
    print(f"{name} {engine}: {error:.2%}")
    assert 1e-4 < error < INT8_ERROR
    assert torch.equal(logits_of_steps(model, inputs, 12), expected)  # nothing is left behind


@needs_int8
def test_int8_of_half_precision_and_of_an_encoder_alone(wide_model, inputs):
    model = wide_model("t5.1.1").to(torch.bfloat16)
    expected = logits_of_steps(model, inputs, 8).float()
    with decoding_session(model, weights="int8"):
        logits = logits_of_steps(model, inputs, 8)
    assert logits.dtype == torch.bfloat16
    assert relative_error(logits.float(), expected) < INT8_ERROR
    encoder = wide_model("t5.1.th").get_encoder()
    with torch.no_grad():
        expected = encoder(**inputs).last_hidden_state
        with decoding_session(encoder, weights="int8") as session:
            states = encoder(**inputs).last_hidden_state
    assert session.decode is None
    assert 1e-4 < relative_error(states, expected) < INT8_ERROR


@needs_int8
def test_a_model_says_once_that_it_decodes_in_int8(wide_model, inputs):
    model = wide_model("t5.1.1")
    scores = {"output_logits": True, "return_dict_in_generate": True, **LENGTH}
    expected = model.generate(**inputs, **scores).logits
    with decoding_session(model, weights="int8"):
        rounded = model.generate(**inputs, **scores).logits
        with decoding_session(model):  # as `generate` does: it is the same session
            assert torch.equal(model.generate(**inputs, **scores).logits[-1], rounded[-1])
    assert not torch.equal(rounded[-1], expected[-1])
    model.decoding_weights = "int8"
    assert torch.equal(model.generate(**inputs, **scores).logits[-1], rounded[-1])


@needs_int8
def test_gradients_hooks_and_wrapped_modules_are_computed_in_float(wide_model, inputs):
    model = wide_model("t5.1.1")
    encoder = model.get_encoder()
    exact = encoder(**inputs).last_hidden_state
    with decoding_session(model, weights="int8"):
        states = encoder(**inputs).last_hidden_state
        assert torch.equal(states, exact)
        states.sum().backward()
    assert model.encoder.block[0].layer[0].SelfAttention.q.weight.grad is not None
    linear = model.encoder.block[0].layer[0].SelfAttention.q
    seen = []
    with torch.no_grad(), decoding_session(model, weights="int8"):
        assert linears.int8_linear(linear) is not None
        with linear.register_forward_hook(lambda *_: seen.append(1)):
            encoder(**inputs)
            assert linears.int8_linear(linear) is None
    assert seen == [1]
    assert linears.int8_linear(linear) is None


def test_int8_says_what_is_wrong(wide_model, inputs, monkeypatch, caplog):
    model = wide_model("t5.1.1")
    with pytest.raises(ValueError, match=r"`weights` is 'int4'; it can be \"int8\""), decoding_session(model, "int4"):
        pass
    # A later torch may have no such operators: it says so, and computes in float.
    expected = logits_of_steps(model, inputs, 6)
    monkeypatch.delattr(torch.ops.quantized, "linear_dynamic", raising=False)
    monkeypatch.setattr(type(torch.ops.quantized), "__getattr__", hidden(type(torch.ops.quantized).__getattr__))
    kernels.int8_range.cache_clear()
    kernels.int8_kernel.cache_clear()
    logging.getLogger("t5_experimental").propagate = True
    try:
        with decoding_session(model, weights="int8"):
            torch.testing.assert_close(logits_of_steps(model, inputs, 6), expected, rtol=0, atol=1e-5)
    finally:
        kernels.int8_range.cache_clear()
        kernels.int8_kernel.cache_clear()
    assert "not decoded with int8 weights" in caplog.text
    assert "has no operators for it that are right on this CPU" in caplog.text


@needs_int8
def test_a_decoder_that_stays_in_float_is_told(wide_model, inputs, caplog):
    model = wide_model("t5.1.1")
    logging.getLogger("t5_experimental").propagate = True
    with decoding_session(model, weights="int8"):
        pass
    assert not caplog.text
    model.lm_head.register_forward_hook(lambda *_: None)
    with decoding_session(model, weights="int8") as session:
        model.generate(**inputs, **LENGTH)
    assert session.decode is None
    assert "The decoder is not computed in int8" in caplog.text


@needs_int8
def test_the_encoder_stays_in_int8_if_the_decoder_cannot(wide_model, inputs):
    """Something observes the decoder since the session was opened."""
    model = wide_model("t5.1.1")
    with decoding_session(model, weights="int8"):
        model.lm_head.register_forward_hook(lambda *_: None)
        with decoding_session(model) as inner:
            assert inner.decode is None
            assert inner.int8_linears


def hidden(right):
    """Looks up operators except those that multiply in 8 bits."""

    def look_up(namespace, name):
        if name.startswith("linear_"):
            raise AttributeError(name)
        return right(namespace, name)

    return look_up


@needs_int8
def test_weights_that_are_no_numbers_are_refused(wide_model, inputs):
    model = wide_model("t5.1.1")
    with torch.no_grad():
        model.decoder.block[1].layer[2].DenseReluDense.wo.weight[3, 4] = float("nan")
    with pytest.raises(ValueError, match="NaN or infinite values"), decoding_session(model, weights="int8"):
        logits_of_steps(model, inputs, 6)


@needs_int8
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("engine", ENGINES)
def test_rows_that_are_not_finite_leave_the_others_alone(engine, value, allow):
    allow(f"int8-{engine}")
    kernel = int8_kernel(engine)
    torch.manual_seed(0)
    weight, states = torch.randn(24, 64), torch.randn(8, 64)
    packed, exact = kernel.pack(weight), states @ weight.t()
    for row, feature in ((0, 0), (3, 17), (7, 63)):
        damaged = states.index_put((torch.tensor(row), torch.tensor(feature)), torch.tensor(value))
        product = kernel.multiply(damaged, packed)
        healthy = [x for x in range(8) if x != row]
        assert product[row].isnan().all()
        assert relative_error(product[healthy], exact[healthy]) < 0.02
        assert kernel.multiply(damaged[row : row + 1], packed).isnan().all()
    large = torch.full((1, 64), 1e37)
    assert not kernel.multiply(large, packed).isnan().any()  # their sum overflows


@needs_int8
@pytest.mark.parametrize("tokens", [[5, 7, 9], [7], [9]])
@pytest.mark.parametrize("feature", [0, 3, 127])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("engine", ENGINES)
def test_hidden_states_that_are_not_finite_give_logits_of_nan(
    engine, value, feature, tokens, wide_model, inputs, allow
):
    """In their row alone; integers know no NaN, and the operators skip it or raise."""
    allow(f"int8-{engine}")
    model = wide_model("t5.1.1")
    inputs = {name: values[: len(tokens)] for name, values in inputs.items()}
    outputs = model(**inputs, decoder_input_ids=torch.zeros(len(tokens), 1, dtype=torch.long), use_cache=True)
    with torch.no_grad():
        model.shared.weight[7, feature] = value
        with decoding_session(model, weights="int8") as session:
            logits = model(
                encoder_outputs=(outputs.encoder_last_hidden_state,),
                attention_mask=inputs["attention_mask"],
                decoder_input_ids=torch.tensor(tokens)[:, None],
                past_key_values=outputs.past_key_values,
            ).logits
    assert session.decode.steps == 1
    assert logits.isfinite().all(-1).flatten().tolist() == [token != 7 for token in tokens]


@needs_int8
@pytest.mark.parametrize("name", ["t5.1.1", "t5.1.th"])
def test_copies_in_int8_take_a_quarter(name, wide_model, inputs):
    """Of float32's, as far as one can see from outside: they hold a byte for each weight and a few for each row."""
    model = wide_model(name)
    with decoding_session(model, weights="int8") as session:
        logits_of_steps(model, inputs, 6)
        for linear in session.decode.linears:
            assert len(linear._copies) == 1
            (packed,) = linear._copies.values()
            weight, _ = packed.unpack()
            assert weight.shape == linear.shape
            assert weight.element_size() == 1


@needs_int8
@pytest.mark.parametrize("name", ["t5.1.1", "t5.1.th"])
def test_many_rows_in_chunks_are_those_of_few(name, wide_model, monkeypatch):
    """Only rounding differs: the operator's own zero point depends on the rows beside it."""
    torch.manual_seed(0)
    monkeypatch.setattr(onednn_t5_experimental, "_MIN_ROWS", 1)  # the gate could be fused in float
    ids = torch.randint(3, 1000, (3, 40))
    encoder = wide_model(name).get_encoder()
    with torch.no_grad(), decoding_session(encoder, weights="int8") as session:
        whole = encoder(ids).last_hidden_state
        assert all(linear.choices for linear in session.int8_linears.values())
        monkeypatch.setattr(linears, "MOST_ROWS", 7)
        chunks = encoder(ids).last_hidden_state
    assert chunks.shape == whole.shape
    assert relative_error(chunks, whole) < 0.02
