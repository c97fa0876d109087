"""The task heads of every family: shapes, losses of every kind, clear errors."""

import pytest
import torch

import t5_experimental


def build(config, suffix, **overrides):
    torch.manual_seed(0)
    for name, value in overrides.items():
        setattr(config, name, value)
    return getattr(t5_experimental, type(config).__name__.removesuffix("Config") + suffix)(config).eval()


@pytest.mark.parametrize(
    ("num_labels", "labels", "loss"),
    [
        (3, torch.tensor([0, 2, 1]), torch.nn.functional.cross_entropy),
        (1, torch.tensor([0.5, -1.0, 2.0]), lambda x, y: torch.nn.functional.mse_loss(x.squeeze(-1), y)),
        (2, torch.tensor([[1.0, 0], [1, 1], [0, 0]]), torch.nn.functional.binary_cross_entropy_with_logits),
    ],
    ids=["one class", "a number", "several classes"],
)
def test_sequence_classification(config, batch, num_labels, labels, loss):
    model = build(config, "ForSequenceClassification", num_labels=num_labels)
    outputs = model(batch["input_ids"], batch["attention_mask"], labels=labels)
    assert outputs.logits.shape == (3, num_labels)
    torch.testing.assert_close(outputs.loss, loss(outputs.logits, labels))


def test_sequence_classification_needs_the_end_of_sequence(config, batch):
    model = build(config, "ForSequenceClassification")
    with pytest.raises(ValueError, match="must contain the end-of-sequence token"):
        model(batch["input_ids"].clamp(min=2))
    with pytest.raises(ValueError, match="give `input_ids`"):
        model(decoder_input_ids=batch["input_ids"])


def test_sequence_classification_reads_the_last_end(config, batch):
    """Other ends of sequence before it, fewer in some examples than in others, do not matter."""
    model = build(config, "ForSequenceClassification")
    input_ids = batch["input_ids"].clone()
    input_ids[0, 5] = 1
    states = model.transformer(input_ids, batch["attention_mask"], decoder_input_ids=model._shift_right(input_ids))
    logits = model(input_ids, batch["attention_mask"]).logits
    torch.testing.assert_close(logits[0], model.classification_head(states.last_hidden_state[0, -1]))
    torch.testing.assert_close(logits[1], model.classification_head(states.last_hidden_state[1, 8]))


def test_token_classification(config, batch):
    model = build(config, "ForTokenClassification", num_labels=5)
    labels = torch.randint(0, 5, (3, 13))
    labels[1, 9:] = -100
    outputs = model(batch["input_ids"], batch["attention_mask"], labels=labels)
    assert outputs.logits.shape == (3, 13, 5)
    torch.testing.assert_close(
        outputs.loss, torch.nn.functional.cross_entropy(outputs.logits.view(-1, 5), labels.view(-1))
    )


def test_question_answering(config, batch):
    model = build(config, "ForQuestionAnswering")
    start, end = torch.tensor([1, 2, 99]), torch.tensor([[2], [4], [99]])  # the last answer lies beyond the text
    outputs = model(batch["input_ids"], batch["attention_mask"], start_positions=start, end_positions=end)
    assert outputs.start_logits.shape == outputs.end_logits.shape == (3, 13)
    losses = [
        torch.nn.functional.cross_entropy(logits[:2], positions.view(-1)[:2])
        for logits, positions in ((outputs.start_logits, start), (outputs.end_logits, end))
    ]
    torch.testing.assert_close(outputs.loss, sum(losses) / 2)


def test_bare_model_and_tuples(config, batch):
    model = build(config, "Model")
    labels = batch.pop("labels")
    outputs = model(**batch, decoder_input_ids=labels, output_hidden_states=True, output_attentions=True)
    encoder_layers, decoder_layers = config.layer_specs("encoder"), config.layer_specs("decoder")
    assert outputs.last_hidden_state.shape == (3, 7, 32)
    assert len(outputs.encoder_hidden_states) == len(encoder_layers) + 1
    assert len(outputs.decoder_hidden_states) == len(decoder_layers) + 1
    assert torch.equal(outputs.decoder_hidden_states[-1], outputs.last_hidden_state)
    for attentions, layers, lengths in (
        (outputs.encoder_attentions, encoder_layers, (13, 13)),
        (outputs.decoder_attentions, decoder_layers, (7, 7)),
        (outputs.cross_attentions, decoder_layers, (7, 13)),
    ):
        assert [tuple(weights.shape) for weights in attentions] == [(3, spec.num_heads, *lengths) for spec in layers]
        for weights in attentions:
            torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights.sum(-1)))
    values = model(**batch, decoder_input_ids=labels, return_dict=False)
    torch.testing.assert_close(values[0], outputs.last_hidden_state, rtol=1e-4, atol=1e-5)


def test_a_mask_with_queries_is_the_encoders_alone(model, batch):
    square = batch["attention_mask"][:, None, :].expand(-1, 13, -1)
    encoded = model.encoder(batch["input_ids"], square)
    expected = model(**batch, encoder_outputs=encoded).logits
    torch.testing.assert_close(expected, model(**batch).logits, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="fits the encoder alone"):
        model(**{**batch, "attention_mask": square})


def test_inputs_are_given_once(model, batch):
    with pytest.raises(ValueError, match="Give either `input_ids` or `inputs_embeds`"):
        model(**batch, inputs_embeds=model.shared(batch["input_ids"]))
    with pytest.raises(ValueError, match="Give either `decoder_input_ids` or `decoder_inputs_embeds`, not both"):
        model(**batch, decoder_input_ids=batch["labels"], decoder_inputs_embeds=model.shared(batch["labels"]))


def test_inputs_that_are_missing_are_named(make_config, batch):
    """Before anything is computed."""
    models = {
        suffix: getattr(t5_experimental, f"T5V11{suffix}")(make_config("t5.1.1"))
        for suffix in ("ForConditionalGeneration", "Model", "EncoderModel", "ForTokenClassification")
    }
    language, bare = models["ForConditionalGeneration"], models["Model"]
    language.encoder.forward = None  # nothing may call it
    ids = batch["input_ids"]
    for call, message in {
        lambda: language(input_ids=ids): r"The decoder has no inputs: give `labels` or `decoder_input_ids` \(or",
        lambda: language(labels=ids): r"The encoder has no inputs: give `encoder_outputs` or `input_ids` \(or",
        lambda: bare(input_ids=ids): r"The decoder has no inputs: give `decoder_input_ids` \(or",
        lambda: models["EncoderModel"](): r"The encoder has no inputs: give `input_ids` \(or",
        lambda: models["ForTokenClassification"](): r"The encoder has no inputs: give `input_ids` \(or",
        lambda: bare.decoder(): r"The decoder has no inputs: give `input_ids` \(or",
        lambda: language.generate(): "`generate` has no encoder inputs: give `input_ids`, `inputs_embeds` or",
    }.items():
        with pytest.raises(ValueError, match=message):
            call()
