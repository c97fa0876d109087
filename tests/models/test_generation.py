"""`generate` in all the ways that users of T5 call it; every way that must agree, agrees."""

import pytest
import torch
from transformers import DynamicCache, EncoderDecoderCache, StaticCache


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
def test_compiled_generation(make_config, inputs):
    from transformers import AutoModelForSeq2SeqLM

    torch.manual_seed(0)
    model = AutoModelForSeq2SeqLM.from_config(make_config("t5.1.th")).eval()
    expected = generate(model, **inputs)
    model.generation_config.cache_implementation = "static"
    model.forward = torch.compile(model.forward, dynamic=False, fullgraph=True)
    assert torch.equal(generate(model, **inputs), expected)
