"""Padding on the left: an example in a batch gives what it gives alone, in every head."""

import pytest
import torch

import t5_experimental


LENGTHS = (9, 4, 6)


def build(config, suffix, **overrides):
    torch.manual_seed(0)
    for name, value in overrides.items():
        setattr(config, name, value)
    return getattr(t5_experimental, type(config).__name__.removesuffix("Config") + suffix)(config).eval()


def texts():
    """Token ids of three texts; the second ends with three ends of sequence, the third has one in the middle, too."""
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randint(3, 1000, (length,), generator=generator) for length in LENGTHS]
    for row in rows:
        row[-1] = 1
    rows[1][-3:] = 1
    rows[2][2] = 1
    return rows


def padded(rows, side, length, value=0):
    """Rows `(length,)` side by side, and where each one lies."""
    batch = torch.full((len(rows), length), value)
    places = []
    for number, row in enumerate(rows):
        start = {"left": length - len(row), "right": 0, "both": (length - len(row)) // 2}[side]
        places.append(slice(start, start + len(row)))
        batch[number, places[-1]] = row
    return batch, places


def batch_of(side, length=12, pad=0):
    rows = texts()
    input_ids, places = padded(rows, side, length, pad)
    mask, _ = padded([torch.ones_like(row) for row in rows], side, length)
    return {"input_ids": input_ids, "attention_mask": mask}, rows, places


def assert_equal(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right", "both"])
@pytest.mark.parametrize("pad", [0, 1, 7])
def test_classes_of_texts(side, pad, config):
    """Also where padding looks like an end of sequence: the mask says what it is."""
    model = build(config, "ForSequenceClassification", num_labels=3)
    batch, rows, _ = batch_of(side, pad=pad)
    expected = torch.cat([model(row[None]).logits for row in rows])
    assert_equal(model(**batch).logits, expected)
    embeds = model.transformer.shared(batch["input_ids"])
    assert_equal(model(**batch, inputs_embeds=embeds).logits, expected)
    encoded = model.transformer.encoder(**batch)
    assert_equal(model(**batch, encoder_outputs=encoded).logits, expected)
    for flags in ({"output_hidden_states": True}, {"output_attentions": True}, {"use_cache": True}):
        assert_equal(model(**batch, **flags).logits, expected)


@pytest.mark.parametrize("side", ["left", "right", "both"])
def test_answers(side, config):
    model = build(config, "ForQuestionAnswering")
    batch, rows, places = batch_of(side)
    outputs = model(**batch)
    for number, (row, place) in enumerate(zip(rows, places, strict=True)):
        alone = model(row[None])
        assert_equal(outputs.start_logits[number, place], alone.start_logits[0])
        assert_equal(outputs.end_logits[number, place], alone.end_logits[0])


@pytest.mark.parametrize("side", ["left", "right", "both"])
def test_classes_of_tokens(side, config):
    model = build(config, "ForTokenClassification", num_labels=5)
    batch, rows, places = batch_of(side)
    for logits, row, place in zip(model(**batch).logits, rows, places, strict=True):
        assert_equal(logits[place], model(row[None]).logits[0])
    embeds = model.transformer.shared(batch["input_ids"])
    assert_equal(model(inputs_embeds=embeds, attention_mask=batch["attention_mask"]).logits, model(**batch).logits)


@pytest.mark.parametrize("skip_logits", [False, True])
@pytest.mark.parametrize("side", ["left", "right", "both"])
def test_labels(side, skip_logits, config):
    """A tokenizer that pads on the left lets the collator of transformers pad the labels there, too."""
    model = build(config, "ForConditionalGeneration")
    batch, rows, places = batch_of(side)
    labels, _ = padded(rows, side, 12, -100)
    outputs = model(**batch, labels=labels, skip_logits=skip_logits)
    alone = [model(row[None], labels=row[None]) for row in rows]
    expected = sum(len(row) * output.loss for row, output in zip(rows, alone, strict=True)) / sum(LENGTHS)
    assert_equal(outputs.loss, expected)
    if not skip_logits:
        for logits, output, place in zip(outputs.logits, alone, places, strict=True):
            assert_equal(logits[place], output.logits[0])


def test_a_start_token_of_its_own(make_config):
    """Where it is not the padding token, it has to stand before the text."""
    config = make_config("t5.1.1", decoder_start_token_id=5)
    for suffix, output in (("ForSequenceClassification", "logits"), ("ForQuestionAnswering", "start_logits")):
        model = build(config, suffix)
        batch, rows, places = batch_of("left")
        found = model(**batch)[output]
        for number, row in enumerate(rows):
            own = found[number] if output == "logits" else found[number, places[number]]
            assert_equal(own, model(row[None])[output][0])


def test_what_decides_is_given(make_config):
    """Decoder inputs and mask that the caller gives are taken as they are."""
    model = build(make_config("t5.1.1"), "ForSequenceClassification")
    batch, _, _ = batch_of("left")
    ids = model._shift_right(batch["input_ids"])
    seen = model(**batch, decoder_input_ids=ids).logits
    assert (seen - model(**batch).logits).abs().max() > 1e-3
    mask = torch.ones_like(ids)
    assert_equal(model(**batch, decoder_input_ids=ids, decoder_attention_mask=mask).logits, seen)
    assert (model(**batch, decoder_attention_mask=mask).logits - model(**batch).logits).abs().max() > 1e-3


def test_an_end_that_only_padding_has_is_none(make_config):
    model = build(make_config("t5.1.1"), "ForSequenceClassification")
    batch, _, _ = batch_of("left", pad=1)
    batch["input_ids"][1, -3:] = 9
    with pytest.raises(ValueError, match=r"Every example must contain the end-of-sequence token.*example 1"):
        model(**batch)


def test_compiled_heads(make_config):
    torch._dynamo.reset()
    model = build(make_config("t5.1.1"), "ForSequenceClassification")
    batch, rows, _ = batch_of("left")
    compiled = torch.compile(model, backend="eager", dynamic=False, fullgraph=True)
    assert_equal(compiled(**batch).logits, torch.cat([model(row[None]).logits for row in rows]))
