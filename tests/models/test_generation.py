"""`generate` in all the ways that users of T5 call it; every way that must agree, agrees."""

import inspect

import pytest
import torch
from transformers import (
    AutoTokenizer,
    DynamicCache,
    EncoderDecoderCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StaticCache,
    StoppingCriteria,
    StoppingCriteriaList,
    T5Config,
    T5ForConditionalGeneration,
    WatermarkingConfig,
)
from transformers.generation import BaseStreamer

import t5_experimental


LENGTH = {"max_new_tokens": 8, "min_new_tokens": 8}
WAYS = {
    "greedy": {"do_sample": False},
    "beam": {"num_beams": 3, "num_return_sequences": 2},
    "sampling": {"do_sample": True, "top_k": 20},
}


def generate(model, **kwargs):
    torch.manual_seed(3)
    return model.generate(**{**LENGTH, "disable_compile": True, **kwargs})


@pytest.fixture
def inputs(batch):
    del batch["labels"]
    return batch


@pytest.mark.parametrize("way", WAYS)
def test_caches_do_not_change_what_is_generated(model, inputs, way):
    expected = generate(model, **inputs, **WAYS[way])
    assert expected.shape == (6 if way == "beam" else 3, 9)
    for kwargs in ({"use_cache": False}, {"cache_implementation": "static"}):
        assert torch.equal(generate(model, **inputs, **WAYS[way], **kwargs), expected), kwargs


def test_encoder_inputs_in_every_form(model, inputs):
    expected = generate(model, **inputs)
    mask = inputs["attention_mask"]
    encoder_outputs = model.get_encoder()(**inputs)
    assert torch.equal(generate(model, encoder_outputs=encoder_outputs, attention_mask=mask), expected)
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    assert torch.equal(generate(model, inputs_embeds=embeds, attention_mask=mask), expected)


@pytest.mark.parametrize("way", ["greedy", "beam"])
def test_a_decoder_prompt_as_ids_or_as_embeddings(model, inputs, way):
    prompt = torch.tensor([[0, 17, 4]]).expand(3, -1)
    expected = generate(model, **inputs, **WAYS[way], decoder_input_ids=prompt)
    embeds = model.get_input_embeddings()(prompt)
    for kwargs in ({}, {"use_cache": False}, {"cache_implementation": "static"}):
        generated = generate(model, **inputs, **WAYS[way], decoder_inputs_embeds=embeds, **kwargs)
        assert torch.equal(generated[:, 1:], expected[:, 3:])


def test_padding_changes_nothing(model, inputs):
    """Row 1 is padded on the right, row 2 on the left; alone and unpadded they give the same."""
    expected = generate(model, **inputs)
    for row, (start, stop) in enumerate(((0, 13), (0, 9), (4, 13))):
        alone = generate(model, input_ids=inputs["input_ids"][row : row + 1, start:stop])
        assert torch.equal(alone[0], expected[row])


def test_a_left_padded_decoder_prompt(model, inputs):
    row = {name: tensor[:1] for name, tensor in inputs.items()}
    expected = generate(model, **row, decoder_input_ids=torch.tensor([[0, 17]]))
    for kwargs in ({}, {"use_cache": False}, {"cache_implementation": "static"}):
        padded = generate(
            model,
            **row,
            decoder_input_ids=torch.tensor([[0, 0, 0, 17]]),
            decoder_attention_mask=torch.tensor([[0, 0, 1, 1]]),
            **kwargs,
        )
        assert torch.equal(padded[0, 2:], expected[0]), kwargs


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_step_by_step_logits_equal_one_pass(model, batch, kind):
    labels = batch.pop("labels")
    decoder_input_ids = model.prepare_decoder_input_ids_from_labels(labels)
    with torch.no_grad():
        expected = model(**batch, decoder_input_ids=decoder_input_ids, use_cache=False).logits
        if kind == "dynamic":
            cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        else:
            config = model.config.get_text_config(decoder=True)
            cache = EncoderDecoderCache(StaticCache(config, max_cache_len=10), StaticCache(config, max_cache_len=13))
        steps = [
            model(**batch, decoder_input_ids=decoder_input_ids[:, i : i + 1], past_key_values=cache).logits
            for i in range(decoder_input_ids.shape[1])
        ]
    torch.testing.assert_close(torch.cat(steps, dim=1), expected, rtol=1e-4, atol=1e-5)


def test_a_cache_for_one_attention_is_completed_and_other_things_are_refused(model, batch):
    labels = batch.pop("labels")
    decoder_input_ids = model.prepare_decoder_input_ids_from_labels(labels)
    expected = model(**batch, decoder_input_ids=decoder_input_ids).logits
    cache = DynamicCache()
    model(**batch, decoder_input_ids=decoder_input_ids[:, :4], past_key_values=cache)
    logits = model(**batch, decoder_input_ids=decoder_input_ids[:, 4:], past_key_values=cache).logits
    torch.testing.assert_close(logits, expected[:, 4:], rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="`past_key_values` is a tuple: give an `EncoderDecoderCache`"):
        model(**batch, decoder_input_ids=decoder_input_ids, past_key_values=((),))


@pytest.mark.slow
def test_compiled_generation(make_config, inputs, compile_backend):
    from transformers import AutoModelForSeq2SeqLM

    torch.manual_seed(0)
    model = AutoModelForSeq2SeqLM.from_config(make_config("t5.1.th")).eval()
    expected = generate(model, **inputs)
    model.generation_config.cache_implementation = "static"
    model.forward = torch.compile(model.forward, dynamic=False, fullgraph=True, backend=compile_backend)
    assert torch.equal(generate(model, **inputs), expected)


class Streamer(BaseStreamer):
    def __init__(self):
        self.seen = []

    def put(self, value):
        self.seen.append(value.tolist())

    def end(self):
        self.seen.append("end")


class Prefers(LogitsProcessor):
    def __call__(self, input_ids, scores):
        scores = scores.clone()
        scores[:, 10] += 3
        return scores


class StopsAtFour(StoppingCriteria):
    def __call__(self, input_ids, scores, **kwargs):
        return torch.full((len(input_ids),), input_ids.shape[1] >= 4)


def custom(model, input_ids, logits_processor, stopping_criteria, generation_config, extra=None, **kwargs):
    return input_ids + extra


DETAILS = {
    "return_dict_in_generate": True,
    **dict.fromkeys(("output_scores", "output_logits", "output_attentions", "output_hidden_states"), True),
}
# Arguments that go along with `input_ids`; a function makes those that hold state, or belong to a model.
ARGUMENTS = {
    "stop_strings": lambda model, tools: {"stop_strings": ["e"], "tokenizer": tools["tokenizer"], "min_new_tokens": 0},
    "tokenizer alone": lambda model, tools: {"tokenizer": tools["tokenizer"]},
    "streamer": lambda model, tools: {"streamer": Streamer(), "one": True},
    "assistant": lambda model, tools: {"assistant_model": tools["assistant"], "one": True},
    "stock assistant": lambda model, tools: {"assistant_model": tools["stock assistant"], "one": True},
    "assistant and tokenizer": lambda model, tools: {
        "assistant_model": tools["assistant"],
        "tokenizer": tools["tokenizer"],
        "one": True,
    },
    "prompt lookup": lambda model, tools: {"prompt_lookup_num_tokens": 2, "one": True},
    "custom_generate": lambda model, tools: {"custom_generate": custom, "extra": 5},
    "processors": lambda model, tools: {
        "logits_processor": LogitsProcessorList([Prefers()]),
        "stopping_criteria": StoppingCriteriaList([StopsAtFour()]),
        "min_new_tokens": 0,
    },
    "prefix": lambda model, tools: {"prefix_allowed_tokens_fn": lambda row, ids: [5, 6, 7]},
    "several": lambda model, tools: {"num_beams": 3, "num_return_sequences": 3, "length_penalty": 0.5},
    "sampled beams": lambda model, tools: {"num_beams": 3, "do_sample": True},
    "details": lambda model, tools: DETAILS,
    "details of beams": lambda model, tools: {**DETAILS, "num_beams": 2},
    "configuration": lambda model, tools: {
        "generation_config": GenerationConfig(max_new_tokens=3, decoder_start_token_id=0, pad_token_id=0),
        "max_new_tokens": None,
        "min_new_tokens": None,
    },
    "limits on tokens": lambda model, tools: {
        "bad_words_ids": [[5]],
        "repetition_penalty": 1.2,
        "encoder_repetition_penalty": 1.1,
        "no_repeat_ngram_size": 2,
        "encoder_no_repeat_ngram_size": 2,
        "forced_bos_token_id": 4,
        "suppress_tokens": [3],
        "sequence_bias": [[[6], 1.0]],
    },
    "limits on sampling": lambda model, tools: {
        "do_sample": True,
        **{"top_k": 9, "top_p": 0.9, "min_p": 0.01, "typical_p": 0.9, "epsilon_cutoff": 1e-4, "temperature": 0.7},
    },
    "watermark": lambda model, tools: {"watermarking_config": WatermarkingConfig()},
    "max_time": lambda model, tools: {"max_time": 10000.0},
    "decoder mask": lambda model, tools: {"decoder_attention_mask": torch.ones(3, 1, dtype=torch.long)},
    "own cache": lambda model, tools: {"past_key_values": EncoderDecoderCache(DynamicCache(), DynamicCache())},
}


@pytest.fixture(scope="module")
def pair():
    """Ours, transformers' with the same weights, and what some ways of generating need."""
    sizes = {"vocab_size": 1152, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_heads": 4, "num_layers": 2}
    torch.manual_seed(0)
    config = t5_experimental.T5V11Config(**sizes)
    ours, assistant = (
        t5_experimental.T5V11ForConditionalGeneration._from_config(config, attn_implementation="eager").eval()
        for _ in range(2)
    )
    stock_config = T5Config(**sizes, feed_forward_proj="gated-gelu", tie_word_embeddings=False)
    stock_config.decoder_start_token_id, stock_config._attn_implementation = 0, "eager"
    theirs, stock_assistant = (T5ForConditionalGeneration(stock_config).eval() for _ in range(2))
    for stock, weights in ((theirs, ours), (stock_assistant, assistant)):
        stock.lm_head.weight = torch.nn.Parameter(torch.zeros(1152, 32))
        stock.load_state_dict(weights.state_dict())
        stock.generation_config = ours.generation_config
    return ours, theirs, {"assistant": assistant, "stock assistant": stock_assistant}


@pytest.fixture
def tools(pair, tiny_models):
    prompt = torch.tensor([[0, 17, 4, 9, 8]]).expand(3, -1)
    return {**pair[2], "tokenizer": AutoTokenizer.from_pretrained(tiny_models["t5_v1_1"]), "prompt": prompt}


def tensors_of(outputs):
    """All tensors of an output, but for those of the cache."""
    if isinstance(outputs, torch.Tensor):
        return [outputs]
    parts = outputs.values() if isinstance(outputs, dict) else outputs if isinstance(outputs, tuple | list) else ()
    return [tensor for part in parts for tensor in tensors_of(part)]


@pytest.mark.parametrize("way", ARGUMENTS)
def test_what_transformers_t5_takes_gives_the_same(way, pair, inputs, tools):
    found = []
    for model in pair[:2]:
        arguments = {**inputs, **ARGUMENTS[way](model, tools)}
        if arguments.pop("one", False):
            arguments = {
                name: value[:1] if isinstance(value, torch.Tensor) else value for name, value in arguments.items()
            }
        outputs = generate(model, **arguments)
        found.append((outputs, getattr(arguments.get("streamer"), "seen", None)))
    (ours, our_stream), (theirs, their_stream) = found
    assert type(ours) is type(theirs)
    assert our_stream == their_stream
    ours, theirs = tensors_of(ours), tensors_of(theirs)
    assert len(ours) == len(theirs) > 0
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-4)


def test_stop_strings_stop(pair, inputs, tools):
    ours, decode = pair[0], tools["tokenizer"].decode
    options = {**inputs, "max_new_tokens": 30, "min_new_tokens": 0}
    full = generate(ours, **options)
    stopped = generate(ours, **options, stop_strings=["e"], tokenizer=tools["tokenizer"])
    found = 0
    for row, short in zip(full, stopped, strict=True):
        end = next((end for end in range(1, len(row) + 1) if "e" in decode(row[:end])), len(row))
        assert torch.equal(short[:end], row[:end])
        assert (short[end:] == 0).all()
        found += end < len(row)
    assert found


def test_the_signature_is_that_of_transformers(pair):
    ours, theirs, _ = pair
    assert inspect.signature(ours.generate) == inspect.signature(theirs.generate)


def test_a_prompt_in_pieces_is_the_whole_prompt(pair, inputs, tools):
    """transformers cuts the encoder's mask to the length of the decoder's pieces."""
    ours = pair[0]
    expected = generate(ours, **inputs, decoder_input_ids=tools["prompt"])
    found = generate(ours, **inputs, decoder_input_ids=tools["prompt"], prefill_chunk_size=2)
    assert torch.equal(found, expected)


def test_encoder_outputs_as_a_tuple(pair, inputs):
    ours = pair[0]
    encoded = ours.encoder(**inputs)
    mask = inputs["attention_mask"]
    expected = generate(ours, encoder_outputs=encoded, attention_mask=mask)
    assert torch.equal(generate(ours, encoder_outputs=(encoded[0],), attention_mask=mask), expected)


def test_arguments_that_nothing_takes_are_refused(pair, inputs):
    with pytest.raises(ValueError, match="not used by the model"):
        generate(pair[0], **inputs, nun_beams=3)
