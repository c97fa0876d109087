"""t5.1.1 beside transformers' own T5, which is exact there when loaded from files: weights and outputs go both ways."""

import json

import pytest
import torch
from transformers import T5Config, T5EncoderModel, T5ForConditionalGeneration, T5ForSequenceClassification

import t5_experimental


@pytest.fixture
def model(make_config):
    torch.manual_seed(0)
    return t5_experimental.T5V11ForConditionalGeneration(make_config("t5.1.1")).eval()


@pytest.fixture
def stock_config(make_config):
    config = make_config("t5.1.1")
    names = ("vocab_size", "d_model", "d_kv", "d_ff", "num_heads", "num_layers")
    return T5Config(
        **{name: getattr(config, name) for name in names},
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        decoder_start_token_id=0,
    )


def assert_same_outputs(ours, theirs, batch):
    arguments = {**batch, "output_hidden_states": True}
    our_outputs, their_outputs = ours(**arguments), theirs(**arguments)
    torch.testing.assert_close(our_outputs.logits, their_outputs.logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(our_outputs.loss, their_outputs.loss)
    # At padding, too: image models read the encoder's states there.
    for name in ("encoder_hidden_states", "decoder_hidden_states"):
        for our_states, their_states in zip(our_outputs[name], their_outputs[name], strict=True):
            torch.testing.assert_close(our_states, their_states, rtol=1e-4, atol=1e-5)


def test_stock_t5_loads_our_folder(model, stock_config, batch, tmp_path):
    model.save_pretrained(tmp_path)
    theirs = T5ForConditionalGeneration.from_pretrained(tmp_path, config=stock_config).eval()
    assert_same_outputs(model, theirs, batch)
    theirs.generation_config = model.generation_config
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "max_new_tokens": 8}
    for kwargs in ({}, {"num_beams": 3}, {"do_sample": True}):
        torch.manual_seed(5)
        ours = model.generate(**inputs, **kwargs)
        torch.manual_seed(5)
        assert torch.equal(ours, theirs.generate(**inputs, **kwargs))


def test_our_model_loads_a_stock_folder(make_config, stock_config, batch, tmp_path):
    torch.manual_seed(0)
    theirs = T5ForConditionalGeneration(stock_config).eval()
    theirs.lm_head.weight = torch.nn.Parameter(torch.randn(1152, 32))
    theirs.all_tied_weights_keys.pop("lm_head.weight", None)
    theirs.save_pretrained(tmp_path)
    # transformers writes that the classifier is shared, though it is not.
    assert json.loads((tmp_path / "config.json").read_text())["tie_word_embeddings"] is True
    ours, info = t5_experimental.T5V11ForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert ours.config.layer_specs("encoder") == make_config("t5.1.1").layer_specs("encoder")
    assert not ours.config.tie_word_embeddings
    assert not ours.config.scale_decoder_outputs
    assert_same_outputs(ours, theirs, batch)
    ours.load_state_dict(theirs.state_dict())
    assert_same_outputs(ours, theirs, batch)
    ours.resize_token_embeddings(1160)
    assert ours.lm_head.weight.data_ptr() != ours.shared.weight.data_ptr()
    assert torch.equal(ours.lm_head.weight[:1152], theirs.lm_head.weight)


def test_our_model_loads_a_stock_folder_with_a_shared_classifier(stock_config, batch, tmp_path):
    """t5.1.0 as transformers has it."""
    torch.manual_seed(0)
    names = ("vocab_size", "d_model", "d_kv", "d_ff", "num_heads", "num_layers", "decoder_start_token_id")
    theirs = T5ForConditionalGeneration(T5Config(**{name: getattr(stock_config, name) for name in names})).eval()
    theirs.save_pretrained(tmp_path)
    ours = t5_experimental.T5V11ForConditionalGeneration.from_pretrained(tmp_path)
    assert ours.config.feed_forward_proj == "relu"
    assert ours.config.tie_word_embeddings
    assert ours.config.scale_decoder_outputs
    assert ours.lm_head.weight is ours.shared.weight
    assert_same_outputs(ours, theirs, batch)


def test_stock_encoder_loads_our_folder(model, stock_config, batch, tmp_path):
    model.save_pretrained(tmp_path)
    theirs = T5EncoderModel.from_pretrained(tmp_path, config=stock_config).eval()
    ours = t5_experimental.T5V11EncoderModel.from_pretrained(tmp_path)
    inputs = (batch["input_ids"], batch["attention_mask"])
    torch.testing.assert_close(ours(*inputs).last_hidden_state, theirs(*inputs).last_hidden_state)
    assert torch.equal(ours(*inputs, return_dict=False)[0], ours(*inputs).last_hidden_state)


def test_classification_equals_stock(make_config, stock_config, batch):
    torch.manual_seed(0)
    theirs = T5ForSequenceClassification(stock_config).eval()
    ours = t5_experimental.T5V11ForSequenceClassification(make_config("t5.1.1")).eval()
    ours.load_state_dict(theirs.state_dict())
    arguments = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    labels = torch.tensor([0, 1, 1])
    # Its decoder attends to padding on the left (the third row), so it gets that example alone.
    right = {name: tensor[:2] for name, tensor in arguments.items()}
    our_outputs, their_outputs = ours(**right, labels=labels[:2]), theirs(**right, labels=labels[:2])
    torch.testing.assert_close(our_outputs.logits, their_outputs.logits)
    torch.testing.assert_close(our_outputs.loss, their_outputs.loss)
    alone = theirs(batch["input_ids"][2:, 4:]).logits
    torch.testing.assert_close(ours(**arguments).logits[2:], alone)


def test_parameter_names_are_stock_names(model, stock_config):
    theirs = T5ForConditionalGeneration(stock_config)
    ours = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert ours == {name: tuple(tensor.shape) for name, tensor in theirs.state_dict().items()}
