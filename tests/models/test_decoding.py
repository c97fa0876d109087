"""Decoding step by step computes what the ordinary forward pass computes, with less; nothing it prepares outlives a
change of the weights."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.nn.utils import parametrizations
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForSeq2SeqLM, DynamicCache, EncoderDecoderCache, T5Config, T5ForConditionalGeneration
from transformers.cache_utils import DynamicLayer

from t5_experimental import decoding_session
from t5_experimental import decoding_t5_experimental as decoding
from t5_experimental.block_t5_experimental import T5LayerNorm
from t5_experimental.onednn_t5_experimental import supports


LENGTH = {"max_new_tokens": 8, "min_new_tokens": 8}


@pytest.fixture
def inputs(batch):
    del batch["labels"]
    return batch


@pytest.fixture
def calls(monkeypatch):
    """Step decoders, once for each token that they decoded."""
    found = []
    original = decoding.StepDecoder.__call__

    def call(self, *args):
        found.append(self)
        return original(self, *args)

    monkeypatch.setattr(decoding.StepDecoder, "__call__", call)
    return found


@pytest.fixture
def without_steps(monkeypatch):
    """Call it, and every token takes the ordinary forward pass."""
    return lambda: monkeypatch.setattr(decoding, "is_ordinary", lambda model: False)


def generate(model, inputs, **kwargs):
    torch.manual_seed(3)
    return model.generate(**inputs, **{**LENGTH, **kwargs})


@torch.no_grad()
def logits_of_steps(model, inputs, steps, **kwargs):
    """Logits `(b, steps, vocabulary)` of one forward pass a token, as in `generate`; ids do not depend on logits."""
    ids = torch.arange(steps).repeat(len(inputs["input_ids"]), 1) % 50
    outputs = model(**inputs, decoder_input_ids=ids[:, :1], use_cache=True)
    logits, encoder_outputs = [outputs.logits], (outputs.encoder_last_hidden_state,)
    for step in range(1, steps):
        outputs = model(
            encoder_outputs=encoder_outputs,
            attention_mask=inputs["attention_mask"],
            decoder_input_ids=ids[:, step : step + 1],
            past_key_values=outputs.past_key_values,
            **kwargs,
        )
        logits.append(outputs.logits)
    return torch.cat(logits, dim=1)


@pytest.mark.parametrize("overrides", [{}, {"feed_forward_proj": "relu", "scale_decoder_outputs": True}])
def test_steps_compute_what_the_forward_pass_computes(config, overrides, inputs, calls):
    torch.manual_seed(0)
    config = type(config)(**{**config.to_dict(), **overrides})
    model = AutoModelForSeq2SeqLM.from_config(config).eval()
    steps = 140  # the room is enlarged twice
    expected = logits_of_steps(model, inputs, steps)
    assert not calls
    with decoding_session(model):
        logits = logits_of_steps(model, inputs, steps)
    assert len(calls) == steps - 1
    assert all((linear.copy is not None) == supports(model.dtype) for linear in calls[0].linears)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "way",
    [
        {"do_sample": False},
        {"num_beams": 3, "num_return_sequences": 2},
        {"do_sample": True, "top_k": 20, "num_return_sequences": 2},
        {"prompt_lookup_num_tokens": 2},
    ],
    ids=["greedy", "beam", "sampling", "assisted"],
)
def test_generate_takes_steps_and_generates_the_same(model, inputs, way, calls, without_steps):
    if "prompt_lookup_num_tokens" in way:
        inputs = {name: tensor[:1] for name, tensor in inputs.items()}
    generated = generate(model, inputs, **way)
    assert len(calls) == 7 or "prompt_lookup_num_tokens" in way
    without_steps()
    assert torch.equal(generate(model, inputs, **way), generated)


def tiny(make_config, name="t5.1.1"):
    torch.manual_seed(0)
    return AutoModelForSeq2SeqLM.from_config(make_config(name)).eval()


@pytest.fixture
def plain(make_config):
    return tiny(make_config)


def optimizer_step(model, inputs):
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    model(**inputs, labels=torch.ones(3, 4, dtype=torch.long)).loss.backward()
    optimizer.step()


def change_behind_the_version_counter(model, inputs):
    for parameter in model.decoder.parameters():
        parameter.data.mul_(1.5)


def load_other_weights(model, inputs):
    other = AutoModelForSeq2SeqLM.from_config(model.config)
    model.load_state_dict(other.state_dict())


def change_the_dtype(model, inputs):
    model.to(torch.float64)


def exchange_a_module(model, inputs):
    model.decoder.block[0].layer[0].SelfAttention.q = torch.nn.Linear(32, 32, bias=False).eval()


CHANGES = [optimizer_step, change_behind_the_version_counter, load_other_weights, change_the_dtype, exchange_a_module]


@pytest.mark.parametrize("change", CHANGES)
def test_nothing_is_kept_from_before_a_change(plain, inputs, change, without_steps, calls):
    generate(plain, inputs)
    change(plain, inputs)
    kwargs = {"output_logits": True, "return_dict_in_generate": True}
    outputs = generate(plain, inputs, **kwargs)
    assert len(calls) == 14
    without_steps()
    expected = generate(copy.deepcopy(plain), inputs, **kwargs)
    assert torch.equal(outputs.sequences, expected.sequences)
    torch.testing.assert_close(torch.stack(outputs.logits), torch.stack(expected.logits), rtol=0, atol=1e-4)


def add_lora(model):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["q", "v", "wo"], init_lora_weights=False)
    return peft.get_peft_model(model, config).eval()


def offload(model):
    accelerate = pytest.importorskip("accelerate")
    return accelerate.cpu_offload(model, execution_device=torch.device("cpu"))


def hook_a_norm(model):
    norm = model.decoder.block[1].layer[2].layer_norm
    norm.register_forward_hook(lambda module, arguments, output: output * 1.5)
    return model


def replace_a_forward(model):
    linear = model.decoder.block[0].layer[1].EncDecAttention.q
    linear.forward = lambda states: torch.nn.functional.linear(states, linear.weight) * 2
    return model


def parametrize(model):
    parametrizations.weight_norm(model.lm_head)
    return model


def mix_dtypes(model):
    model.decoder.final_layer_norm.double()
    model.lm_head.double()
    return model


UNUSUAL = [add_lora, offload, hook_a_norm, replace_a_forward, parametrize, mix_dtypes]


@pytest.mark.parametrize("change", UNUSUAL)
def test_whatever_was_changed_takes_the_ordinary_path(plain, inputs, change, calls):
    changed = change(plain)
    generated = generate(changed, inputs)
    assert not calls
    expected = generate(changed, inputs, use_cache=False)
    assert torch.equal(generated, expected)


def test_merged_adapters_are_seen(plain, inputs, calls):
    """peft adds to `weight.data`, which no version counter notices."""
    before = generate(plain, inputs)
    adapted = add_lora(plain)
    expected = generate(adapted, inputs)
    merged = adapted.merge_and_unload()
    assert torch.equal(generate(merged, inputs), expected)
    assert len(calls) == 14
    assert not torch.equal(before, expected)


def test_hooks_on_all_modules_are_called(plain, inputs, calls):
    seen = []
    handle = torch.nn.modules.module.register_module_forward_pre_hook(lambda module, _: seen.append(module))
    try:
        generate(plain, inputs)
    finally:
        handle.remove()
    assert sum(module is plain.lm_head for module in seen) == 8
    assert not calls


def test_training_mode_and_autocast_take_the_ordinary_path(plain, inputs, calls):
    with torch.autocast("cpu", torch.bfloat16):
        generate(plain, inputs)
    plain.train()
    generate(plain, inputs)
    assert not calls


def test_all_that_is_asked_for_is_returned(plain, inputs, calls):
    kwargs = {"return_dict_in_generate": True, "output_attentions": True, "output_hidden_states": True}
    outputs = generate(plain, inputs, **kwargs)
    assert len(outputs.decoder_attentions) == len(outputs.cross_attentions) == len(outputs.decoder_hidden_states) == 8
    assert not calls


def test_gradients_flow_through_steps_with_a_cache(plain, inputs, calls):
    with decoding_session(plain):
        outputs = plain(**inputs, decoder_input_ids=torch.zeros(3, 1, dtype=torch.long), use_cache=True)
        outputs = plain(
            encoder_outputs=(outputs.encoder_last_hidden_state,),
            decoder_input_ids=torch.ones(3, 1, dtype=torch.long),
            past_key_values=outputs.past_key_values,
        )
    outputs.logits.sum().backward()
    assert all(parameter.grad is not None for parameter in plain.parameters())
    assert not calls


def test_a_session_prepares_once(plain, inputs, calls):
    with decoding_session(plain):
        first = generate(plain, inputs)
        assert torch.equal(generate(plain, inputs), first)
    assert len(set(map(id, calls))) == 1
    generate(plain, inputs)
    assert len(set(map(id, calls))) == 2


def test_a_session_of_a_model_with_a_prompt(plain, inputs, calls):
    """peft generates with the model inside its own."""
    peft = pytest.importorskip("peft")
    config = peft.PromptTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=3, num_transformer_submodules=1)
    tuned = peft.get_peft_model(plain, config).eval()
    expected = generate(tuned, inputs)
    calls.clear()
    with decoding_session(tuned):
        assert torch.equal(generate(tuned, inputs), expected)
        assert torch.equal(generate(tuned, inputs), expected)
    assert len(set(map(id, calls))) == 1


def test_sessions_of_other_threads_and_models_are_their_own(make_config, inputs):
    models = {name: tiny(make_config, name) for name in ("t5.1.1", "t5.1.n4w10")}
    expected = {name: generate(model, inputs) for name, model in models.items()}
    found = {}

    def run(key, name):
        found[key] = models[name].generate(**inputs, **LENGTH)

    with decoding_session(models["t5.1.1"]):
        threads = [threading.Thread(target=run, args=((i, name), name)) for i in range(2) for name in models]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(found) == 4
    assert all(torch.equal(tokens, expected[name]) for (_, name), tokens in found.items())


def test_threads_that_share_a_session_take_turns(plain, inputs, monkeypatch):
    """`asyncio.to_thread` copies the context. What a step remembers belongs to its batch."""
    batches = [{name: values[:size] for name, values in inputs.items()} for size in (1, 2, 3)]
    expected = [generate(plain, batch) for batch in batches]
    step, unlocked = decoding.StepDecoder.__call__, []

    def watched(self, *arguments):
        unlocked.append(self.lock.acquire(blocking=False))
        return step(self, *arguments)

    monkeypatch.setattr(decoding.StepDecoder, "__call__", watched)
    with decoding_session(plain), ThreadPoolExecutor(3) as pool:
        jobs = [pool.submit(copy_context().run, generate, plain, batch) for _ in range(4) for batch in batches]
        found = [job.result() for job in jobs]
    assert len(inputs["input_ids"]) == 3
    assert all(map(torch.equal, found, expected * 4))
    assert set(unlocked) == {False}


def test_a_first_token_without_a_cache_takes_the_ordinary_path(plain, inputs, calls):
    encoded = plain.encoder(**inputs)
    tokens = torch.tensor([[0, 5]] * len(inputs["input_ids"]))
    arguments = {"encoder_outputs": encoded, "attention_mask": inputs["attention_mask"]}

    def logits(ids, cache=None):
        return plain(**arguments, decoder_input_ids=ids, past_key_values=cache, use_cache=True)

    with torch.no_grad():
        both = logits(tokens).logits
        with decoding_session(plain):
            outputs = logits(tokens[:, :1])
            cache = outputs.past_key_values
            for _ in range(2):
                torch.testing.assert_close(outputs.logits, both[:, :1])
                torch.testing.assert_close(logits(tokens[:, 1:], cache).logits, both[:, 1:])
                cache.reset()
                outputs = logits(tokens[:, :1], cache)
            with pytest.raises(ValueError, match="give an `EncoderDecoderCache`"):
                logits(tokens[:, :1], ((), ()))
    assert len(calls) == 2


def test_masks_are_not_remembered_beyond_their_cache(plain, inputs):
    """The same tensor with other content."""
    with decoding_session(plain):
        generate(plain, inputs)
        inputs["attention_mask"][0, 5:] = 0
        generated = generate(plain, inputs)
    assert torch.equal(generated, generate(plain, inputs))


def test_big_decoders_are_not_copied(plain, inputs, calls):
    plain.packed_decoder_limit = 1000
    generate(plain, inputs)
    places = {parameter.data_ptr() for parameter in plain.parameters()}
    for linear in calls[0].linears:
        used = linear.copy if isinstance(linear.copy, tuple) else [] if linear.copy is None else [linear.copy]
        assert {weight.data_ptr() for weight in used} <= places


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_norms_of_a_step_are_those_of_the_forward_pass(dtype):
    norm = T5LayerNorm(48, 1e-6).to(dtype)
    torch.nn.init.normal_(norm.weight, 1.0, 0.3)
    states = torch.randn(3, 1, 48, dtype=dtype) * torch.tensor([1e-4, 1.0, 1e4], dtype=dtype)[:, None, None]
    with torch.no_grad():
        actual, expected = decoding.Norm(norm)(states), norm(states)
    assert actual.dtype == dtype
    torch.testing.assert_close(actual, expected, rtol={torch.bfloat16: 2**-7}.get(dtype, 1e-6), atol=0)


class Counter(TorchDispatchMode):
    """Counts operators that compute or allocate, and the bytes of their results; views are neither."""

    _t5_experimental_operator_agnostic = True  # so that the steps go on as they are

    def __init__(self):
        super().__init__()
        self.operators = 0
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if not function.is_view:
            self.operators += 1
            is_fresh = isinstance(result, torch.Tensor) and not function._schema.is_mutable
            self.bytes += result.numel() * result.element_size() if is_fresh and not result.is_mkldnn else 0
        return result


@torch.no_grad()
def count_steps(model, inputs, steps):
    """Operators and bytes of every single step; views do not count."""
    outputs = model(**inputs, decoder_input_ids=torch.zeros(3, 1, dtype=torch.long), use_cache=True)
    encoder_outputs, token = (outputs.encoder_last_hidden_state,), torch.ones(3, 1, dtype=torch.long)
    counts = []
    for _ in range(steps):
        with Counter() as counter:
            model(
                encoder_outputs=encoder_outputs,
                attention_mask=inputs["attention_mask"],
                decoder_input_ids=token,
                past_key_values=outputs.past_key_values,
            )
        counts.append((counter.operators, counter.bytes))
    return counts


# Operators of a layer, with weights in oneDNN's layout and without.
OPERATORS = {"t5.1.1": (23, 39), "t5.1.1.lm100k": (23, 39), "t5.1.n4w10": (23, 39), "t5.1.th": (61, 75)}
OPERATORS_OUTSIDE = 7


@pytest.mark.parametrize("is_packed", [True, False])
@pytest.mark.parametrize("name", OPERATORS)
def test_a_step_does_no_more_than_it_must(name, is_packed, make_config, inputs):
    """A guard against waste that creeps in: these numbers do not depend on the machine."""
    model = tiny(make_config, name)
    if not is_packed:
        model.packed_decoder_limit = 0
    with decoding_session(model):
        counts = count_steps(model, inputs, 50)[decoding.PLAIN_STEPS + 1 :]
    print(name, len(model.decoder.block), counts[0], counts[-1])
    per_layer = OPERATORS[name][0 if is_packed and supports(model.dtype) else 1]
    assert len({operators for operators, _ in counts}) == 1
    assert counts[0][0] <= OPERATORS_OUTSIDE + per_layer * len(model.decoder.block)
    if name != "t5.1.th":  # whose softmax leaves one weight for every position
        assert len({size for _, size in counts}) == 1


@pytest.mark.parametrize("name", ["t5.1.1", "t5.1.th"])
def test_a_compiled_model_is_compiled_for_the_first_step_only(name, make_config, inputs):
    model = tiny(make_config, name)
    expected = generate(model, inputs)
    torch._dynamo.reset()
    counter = CompileCounter()
    model.generation_config.cache_implementation = "static"
    model.forward = torch.compile(model.forward, backend=counter, dynamic=False, fullgraph=True)
    graphs = []

    def count(input_ids, scores, **kwargs):
        graphs.append(counter.frame_count)
        return torch.zeros(len(input_ids), dtype=torch.bool)

    generated = generate(model, inputs, disable_compile=True, stopping_criteria=[count])
    assert torch.equal(generated, expected)
    assert len(graphs) == 8
    assert 1 <= graphs[0] < graphs[-1]  # the prompt, and a step
    assert len(set(graphs[1:])) == 1


def test_other_caches_are_left_alone(plain, inputs, calls):
    mine = EncoderDecoderCache(DynamicCache(), DynamicCache())
    expected = generate(plain, inputs)
    calls.clear()
    assert torch.equal(generate(plain, inputs, past_key_values=mine), expected)
    assert type(mine.self_attention_cache.layers[0]) is DynamicLayer
    assert not calls


def test_bfloat16_is_at_most_twice_as_far_off_as_that_of_transformers(make_config, inputs, calls):
    torch.manual_seed(0)
    exact = AutoModelForSeq2SeqLM.from_config(make_config("t5.1.1", d_model=128, d_ff=256)).eval()
    names = ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads")
    stock_config = T5Config(**{n: getattr(exact.config, n) for n in names}, feed_forward_proj="gated-gelu")
    stock_config.tie_word_embeddings = stock_config.scale_decoder_outputs = False
    stock = T5ForConditionalGeneration(stock_config).eval()
    stock.load_state_dict(exact.state_dict())
    expected = logits_of_steps(exact, inputs, 20)
    torch.testing.assert_close(logits_of_steps(stock, inputs, 20), expected, rtol=0, atol=1e-4)
    half = copy.deepcopy(exact).to(torch.bfloat16)
    with decoding_session(half):
        ours = logits_of_steps(half, inputs, 20)
    assert len(calls) == 19
    theirs = logits_of_steps(stock.to(torch.bfloat16), inputs, 20)
    our_error, their_error = ((logits.float() - expected).pow(2).mean().sqrt() for logits in (ours, theirs))
    print(f"bfloat16 error: ours {our_error:.2e}, transformers' {their_error:.2e}")
    assert our_error <= 2 * their_error
