"""Who looks on sees what there is to see: hooks, counters and transforms find the same calls, operators and numbers on
the fast paths of CPUs as on the ordinary ones."""

import platform

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForSeq2SeqLM, T5Config, T5ForConditionalGeneration

from t5_experimental import decoding_session, linears_t5_experimental
from t5_experimental import decoding_t5_experimental as decoding


HAS_ONEDNN = platform.machine() in ("x86_64", "AMD64") and torch.backends.mkldnn.is_available()
FAMILIES = ("t5.1.1", "t5.1.1.lm100k", "t5.1.th", "t5.1.n4w10")


def many_rows(batch_size=4):
    """Enough rows for oneDNN, with enough pairs of positions for attention in blocks."""
    generator = torch.Generator().manual_seed(2)
    return {
        "input_ids": torch.randint(3, 1000, (batch_size, 140), generator=generator),
        "labels": torch.randint(3, 1000, (batch_size, 130), generator=generator),
    }


def make(make_config, name, implementation="sdpa", **overrides):
    torch.manual_seed(0)
    config = make_config(name, dropout_rate=0.0, **overrides)
    return AutoModelForSeq2SeqLM.from_config(config, attn_implementation=implementation).eval()


@pytest.fixture
def products(monkeypatch):
    """One entry for each product that oneDNN computes on a fast path."""
    found = []
    right = linears_t5_experimental.are_bare

    def counted(*arguments, **options):
        is_taken = right(*arguments, **options)
        found.extend([1] if is_taken else [])
        return is_taken

    monkeypatch.setattr(linears_t5_experimental, "are_bare", counted)
    return found


def calls_of(model, run, types=nn.Linear):
    """Modules of some types that a hook on all modules sees, once for each call."""
    seen = []

    def see(module, inputs, output):
        seen.extend([module] if isinstance(module, types) else [])

    handle = nn.modules.module.register_module_forward_hook(see)
    try:
        run()
    finally:
        handle.remove()
    return seen


@pytest.mark.parametrize("skip_logits", [False, True])
@pytest.mark.parametrize("records", [False, True])
def test_a_hook_on_all_modules_sees_every_linear(model, records, skip_logits, products):
    with torch.set_grad_enabled(records):
        seen = calls_of(model, lambda: model(**many_rows(), skip_logits=skip_logits))
    assert {id(module) for module in seen} == {id(m) for m in model.modules() if isinstance(m, nn.Linear)}
    assert not products
    model(**many_rows())
    assert bool(products) == HAS_ONEDNN


def test_backward_hooks_on_all_modules_see_every_linear(model):
    seen = set()
    handles = [
        nn.modules.module.register_module_full_backward_hook(lambda module, *_: seen.add(module)),
        nn.modules.module.register_module_full_backward_pre_hook(lambda module, _: seen.add((module, "before"))),
    ]
    try:
        model(**many_rows(), skip_logits=True).loss.backward()
    finally:
        for handle in handles:
            handle.remove()
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    assert all(linear in seen and (linear, "before") in seen for linear in linears)


@pytest.mark.parametrize(
    "kind", ["forward_pre_hook", "forward_hook", "full_backward_pre_hook", "full_backward_hook", "backward_hook"]
)
def test_hooks_on_the_classifier_are_called_without_logits(make_config, batch, kind):
    model = make(make_config, "t5.1.1")
    expected = model(**batch).loss
    calls = []
    getattr(model.lm_head, f"register_{kind}")(lambda *_: calls.append(kind))
    outputs = model(**batch, skip_logits=True)
    outputs.loss.backward()
    assert outputs.logits is None
    torch.testing.assert_close(outputs.loss, expected)
    assert len(calls) == 1


def test_a_bias_of_the_classifier_counts_without_logits(make_config, batch):
    model = make(make_config, "t5.1.1")
    before = model(**batch, skip_logits=True).loss
    weight = model.lm_head.weight
    model.lm_head = nn.Linear(32, 1152)
    model.lm_head.weight = weight
    nn.init.normal_(model.lm_head.bias)
    found = model(**batch, skip_logits=True).loss
    assert found != before
    torch.testing.assert_close(found, model(**batch).loss)


@pytest.mark.parametrize("part", ["act", "dropout", "wi_0"])
@torch.no_grad()
def test_hooks_within_a_gate_are_called(make_config, part):
    model = make(make_config, "t5.1.1")
    expected = model(**many_rows()).logits
    calls = []
    dense = model.encoder.block[0].layer[1].DenseReluDense
    getattr(dense, part).register_forward_hook(lambda module, inputs, output: calls.append(part) or output * 2)
    assert not torch.equal(model(**many_rows()).logits, expected)
    assert len(calls) == 1


def test_a_decoder_layer_that_is_compiled_is_not_left_out(make_config):
    model = make(make_config, "t5.1.1")
    assert decoding.is_ordinary(model)
    model.decoder.block[1].compile(backend="eager")
    assert not decoding.is_ordinary(model)


def flops(run):
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def stock(config, implementation):
    names = ("vocab_size", "d_model", "d_kv", "d_ff", "num_heads", "num_layers", "dropout_rate")
    stock_config = T5Config(**{name: getattr(config, name) for name in names}, feed_forward_proj="gated-gelu")
    stock_config.decoder_start_token_id = 0
    stock_config._attn_implementation = implementation
    return T5ForConditionalGeneration(stock_config).eval()


def passes(model, **options):
    """FLOPs of one pass of every kind."""
    batch = many_rows()
    with torch.no_grad():
        counts = {"inference": flops(lambda: model(**batch))}
        source = {"input_ids": batch["input_ids"]}
        counts["generate"] = flops(lambda: model.generate(**source, max_new_tokens=5, min_new_tokens=5))
    counts["forward"] = flops(lambda: model(**batch, **options))
    counts["both"] = flops(lambda: model(**batch, **options).loss.backward())
    loss = model(**batch).loss
    counts["backward"] = flops(loss.backward)
    return counts


@pytest.mark.parametrize("skip_logits", [False, True])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_as_many_flops_as_transformers_t5(make_config, implementation, skip_logits):
    model = make(make_config, "t5.1.1", implementation)
    expected = passes(stock(model.config, implementation))
    assert passes(model, skip_logits=skip_logits) == expected
    assert expected["both"] == 3 * expected["forward"] > 0


@pytest.mark.parametrize("skip_logits", [False, True])
def test_talking_heads_in_blocks_have_as_many_flops_as_all_pairs(make_config, skip_logits):
    expected = passes(make(make_config, "t5.1.th", "eager"))
    assert passes(make(make_config, "t5.1.th"), skip_logits=skip_logits) == expected


@pytest.mark.parametrize("name", FAMILIES)
def test_four_examples_have_four_times_the_flops_of_one(make_config, name):
    model = make(make_config, name)

    def both(batch_size):
        return flops(lambda: model(**many_rows(batch_size), skip_logits=True).loss.backward())

    assert both(4) == 4 * both(1)


def test_plain_attention_in_blocks_has_as_many_flops_as_all_pairs(make_config):
    """With dropout, for which torch has no kernel on the CPU, in the encoder-decoder attention, too."""
    counts = {}
    for implementation in ("eager", "sdpa"):
        model = make(make_config, "t5.1.n4w10", implementation).train()
        for attention in (m for m in model.modules() if hasattr(m, "weight_dropout")):
            attention.dropout = 0.1
        counts[implementation] = flops(lambda model=model: model(**many_rows()).loss.backward())
    assert counts["sdpa"] == counts["eager"]


def test_steps_of_a_session_are_counted_and_hooked(make_config, monkeypatch):
    """Also by who comes after the session was opened."""
    model = make(make_config, "t5.1.1")
    inputs = {"input_ids": many_rows()["input_ids"], "max_new_tokens": 6, "min_new_tokens": 6}
    steps = []
    right = decoding.StepDecoder.__call__
    monkeypatch.setattr(decoding.StepDecoder, "__call__", lambda *arguments: steps.append(1) or right(*arguments))
    expected = flops(lambda: stock(model.config, "sdpa").generate(**inputs))
    with decoding_session(model):
        generated = model.generate(**inputs)
        assert len(steps) == 5
        assert flops(lambda: model.generate(**inputs)) == expected
        for module in (model.lm_head, model.decoder.block[0].layer[2].DenseReluDense.act, model.decoder.embed_tokens):
            calls = []
            handle = module.register_forward_hook(lambda *_, calls=calls: calls.append(1))
            model.generate(**inputs)
            handle.remove()
            assert len(calls) == 6
        q = model.decoder.block[0].layer[0].SelfAttention.q
        q.forward = lambda states: nn.functional.linear(states, q.weight) * 2
        assert not torch.equal(model.generate(**inputs), generated)
        del q.forward
        assert len(steps) == 5
        assert torch.equal(model.generate(**inputs), generated)
        assert len(steps) == 10


class Products(TorchFunctionMode):
    """Counts calls of `torch.nn.functional.linear`."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.count += function is nn.functional.linear
        return function(*args, **(kwargs or {}))


def test_modes_of_functions_see_products(make_config):
    model = make(make_config, "t5.1.1")
    with torch.no_grad(), Products() as mode:
        model(**many_rows())
    assert mode.count == sum(isinstance(module, nn.Linear) for module in model.modules())


@pytest.mark.skipif(not HAS_ONEDNN, reason="needs a torch with oneDNN")
def test_modes_to_which_products_make_no_difference_leave_the_fast_path(make_config, products):
    """A default device, and the checkpointing that keeps attentions."""
    model = make(make_config, "t5.1.1")
    with torch.device("cpu"):
        model(**many_rows())
    assert len(products) == sum(isinstance(module, nn.Linear) for module in model.modules()) - 1  # the classifier
    products.clear()
    model.train().gradient_checkpointing_enable({"keep_attention": True})
    model(**many_rows()).loss.backward()
    assert len(products) >= 2 * (sum(isinstance(module, nn.Linear) for module in model.modules()) - 1) - 4


def function_of_parameters(model, **options):
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def loss(parameters, input_ids, labels):
        batch = {"input_ids": input_ids, "labels": labels}
        return torch.func.functional_call(model, parameters, kwargs={**batch, **options}).loss

    return loss, parameters


@pytest.mark.parametrize("skip_logits", [False, True])
@pytest.mark.parametrize("name", ["t5.1.1", "t5.1.th"])
def test_functions_of_parameters_can_be_transformed(make_config, name, skip_logits):
    """`torch.func`: gradients, and gradients of every example."""
    model, batch = make(make_config, name), many_rows(2)
    model(**batch).loss.backward()
    loss, parameters = function_of_parameters(model, skip_logits=skip_logits)
    gradients = torch.func.grad(loss)(parameters, **batch)
    for key, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[key], parameter.grad, rtol=1e-3, atol=1e-5, msg=key)
    of_examples = torch.func.vmap(
        torch.func.grad(lambda parameters, ids, labels: loss(parameters, ids[None], labels[None])), (None, 0, 0)
    )(parameters, batch["input_ids"], batch["labels"])
    for key, gradient in gradients.items():
        torch.testing.assert_close(of_examples[key].mean(0), gradient, rtol=1e-3, atol=1e-5, msg=key)


@pytest.mark.parametrize("skip_logits", [False, True])
@pytest.mark.parametrize("way", ["jvp", "dual", "dual without a graph"])
@pytest.mark.parametrize(("name", "implementation"), [("t5.1.1", "eager"), ("t5.1.th", "eager"), ("t5.1.th", "sdpa")])
def test_forward_derivatives_are_those_of_the_backward_pass(make_config, name, implementation, way, skip_logits):
    """torch's own kernel for plain attention has none."""
    model, batch = make(make_config, name, implementation), many_rows(2)
    model(**batch).loss.backward()
    torch.manual_seed(3)
    tangents = {key: torch.randn_like(parameter) for key, parameter in model.named_parameters()}
    expected = sum((tangents[key] * parameter.grad).sum() for key, parameter in model.named_parameters())
    loss, parameters = function_of_parameters(model, skip_logits=skip_logits)
    if way == "jvp":
        _, found = torch.func.jvp(lambda parameters: loss(parameters, **batch), (parameters,), (tangents,))
    else:
        with forward_ad.dual_level(), torch.set_grad_enabled(way == "dual"):
            dual = {key: forward_ad.make_dual(parameter, tangents[key]) for key, parameter in parameters.items()}
            found = forward_ad.unpack_dual(loss(dual, **batch)).tangent
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_batched_gradients_are_single_ones(make_config):
    model = make(make_config, "t5.1.1", "eager")
    logits = model(**many_rows()).logits
    weight = model.encoder.block[0].layer[1].DenseReluDense.wi_0.weight
    directions = torch.randn(2, *logits.shape)
    expected = [torch.autograd.grad(logits, weight, direction, retain_graph=True)[0] for direction in directions]
    found = torch.autograd.grad(logits, weight, directions, is_grads_batched=True)[0]
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-4, atol=1e-4)
