"""t5.1.1 beside transformers' own T5, which is exact there when loaded from files: weights and outputs go both ways."""

import itertools
import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    BertConfig,
    LongT5Config,
    MT5Config,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
    T5ForSequenceClassification,
    UMT5Config,
)

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


@pytest.mark.parametrize("kind", ["t5", "mt5"])
def test_our_model_loads_a_stock_folder_without_the_classifier(kind, make_config, batch, tmp_path):
    """transformers 5 ties all classifiers, saves them once, and says of neither that it is untied."""
    torch.manual_seed(0)
    config, model = {
        "t5": (T5Config, T5ForConditionalGeneration),
        "mt5": (MT5Config, transformers.MT5ForConditionalGeneration),
    }[kind]
    sizes = {name: getattr(make_config("t5.1.1"), name) for name in ("vocab_size", "d_model", "d_kv", "d_ff")}
    more = {"num_layers": 2, "num_heads": 4, "feed_forward_proj": "gated-gelu", "decoder_start_token_id": 0}
    theirs = model(config(**sizes, **more, tie_word_embeddings=False)).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    assert "lm_head.weight" not in load_file(tmp_path / "theirs" / "model.safetensors")
    load = t5_experimental.T5V11ForConditionalGeneration.from_pretrained
    ours, info = load(tmp_path / "theirs", output_loading_info=True)
    assert not info["missing_keys"]
    assert ours.lm_head.weight is ours.shared.weight
    assert_same_outputs(ours, theirs, batch)
    ours.save_pretrained(tmp_path / "ours")
    assert "unsaid" not in (tmp_path / "ours" / "config.json").read_text()
    again = load(tmp_path / "ours")
    assert again.lm_head.weight is again.shared.weight
    assert_same_outputs(again, theirs, batch)
    fields = json.loads((tmp_path / "theirs" / "config.json").read_text())
    fields["architectures"] = ["T5Model"]  # without a head, its classifier is lost
    (tmp_path / "theirs" / "config.json").write_text(json.dumps(fields))
    _, info = load(tmp_path / "theirs", output_loading_info=True)
    assert info["missing_keys"] == {"lm_head.weight"}


def test_a_missing_classifier_of_our_own_stays_missing(model, tmp_path):
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    _, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert info["missing_keys"] == {"lm_head.weight"}


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


CONFIG_CLASSES = [
    t5_experimental.T5V11Config,
    t5_experimental.T5LMAdaptedConfig,
    t5_experimental.T5TalkingHeadsConfig,
    t5_experimental.T5FirstLayersNarrowConfig,
    t5_experimental.T5ExperimentalConfig,
]
FAMILIES = [config_class.__name__.removesuffix("Config") for config_class in CONFIG_CLASSES[:4]]


@pytest.mark.parametrize("config_class", CONFIG_CLASSES)
@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize("form", ["dict", "differences", "before transformers 5"])
def test_fields_of_a_stock_configuration_mean_what_they_mean_there(config_class, is_tied, form):
    stock_config = T5Config(num_heads=4, feed_forward_proj="gated-gelu", tie_word_embeddings=is_tied)
    fields = stock_config.to_diff_dict() if form == "differences" else stock_config.to_dict()
    assert fields.get("tie_word_embeddings", True) is True  # as transformers 5 always writes it
    if form == "before transformers 5":
        del fields["scale_decoder_outputs"], fields["tie_word_embeddings"]
        fields |= {} if is_tied else {"tie_word_embeddings": False}
    for config in (config_class(**fields), config_class.from_dict(fields)):
        assert config.tie_word_embeddings is config.scale_decoder_outputs is is_tied
        assert config.model_type == config_class.model_type
        expected = t5_experimental.LayerSpec("multi_head", 4, 4, 4, 64, 64, 2048)
        for stack in ("encoder", "decoder"):
            assert config.layer_specs(stack) == (expected,) * 6
        assert config.d_model == 512
    assert config_class(**{**fields, "tie_word_embeddings": False}).tie_word_embeddings is False


def test_fields_of_other_models_are_refused():
    for config_class, other in itertools.product(CONFIG_CLASSES, (LongT5Config, BertConfig)):
        with pytest.raises(ValueError, match=rf"of type '{other.model_type}', which {config_class.__name__} does not"):
            config_class(**other().to_dict())
    with pytest.raises(
        ValueError, match="of type 'bert', which T5V11Config does not support: give those of transformers' T5"
    ):
        t5_experimental.T5V11Model(BertConfig())
    assert t5_experimental.T5V11Config(**t5_experimental.T5LMAdaptedConfig().to_dict()).model_type == "t5_v1_1"


def test_fields_of_mt5_and_umt5_mean_what_they_meant_before_transformers_5():
    mt5 = t5_experimental.T5V11Config(**MT5Config().to_dict())
    assert (mt5.d_ff, mt5.num_heads, mt5.feed_forward_proj) == (1024, 6, "gated-gelu")
    assert mt5.relative_attention_type == "bias_shared"
    assert mt5.tie_word_embeddings is mt5.scale_decoder_outputs is False
    fields = UMT5Config().to_dict()
    with pytest.raises(ValueError, match="which do not say whether the classifier is the embedding: set tie_word_emb"):
        t5_experimental.T5V11Config(**fields)
    for said in ({"tie_word_embeddings": False}, {"transformers_version": "4.57.1"}):
        umt5 = t5_experimental.T5V11Config(**{**fields, **said})
        assert umt5.relative_attention_type == "bias"
        assert umt5.tie_word_embeddings is umt5.scale_decoder_outputs is ("transformers_version" in said)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("is_tied", [True, False])
def test_every_family_takes_a_stock_configuration(family, is_tied, stock_config, batch, tmp_path):
    """As it is, as the `config=` of a folder, and as what a folder of transformers' T5 holds."""
    torch.manual_seed(0)
    stock_config.scale_decoder_outputs = is_tied
    theirs = T5ForConditionalGeneration(stock_config).eval()
    if not is_tied:
        theirs.lm_head.weight = torch.nn.Parameter(torch.randn(1152, 32))
        theirs.all_tied_weights_keys.pop("lm_head.weight", None)
    theirs.save_pretrained(tmp_path)
    our_class = getattr(t5_experimental, f"{family}ForConditionalGeneration")
    made = our_class(AutoConfig.from_pretrained(tmp_path)).eval()
    made.load_state_dict(theirs.state_dict())
    loaded = our_class.from_pretrained(tmp_path)
    overridden = our_class.from_pretrained(tmp_path, config=stock_config)
    for ours in (made, loaded, overridden):
        assert type(ours.config).__name__ == f"{family}Config"
        assert (ours.lm_head.weight is ours.shared.weight) == is_tied
        assert_same_outputs(ours, theirs, batch)
    made.save_pretrained(tmp_path / "ours")
    assert_same_outputs(our_class.from_pretrained(tmp_path / "ours"), theirs, batch)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize(
    "suffix", ["Model", "EncoderModel", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering"]
)
def test_every_head_takes_a_stock_configuration(family, suffix, implementation, stock_config, batch):
    torch.manual_seed(0)
    theirs = getattr(transformers, f"T5{suffix}")(stock_config).eval()
    stock_config._attn_implementation = implementation
    ours = getattr(t5_experimental, f"{family}{suffix}")(stock_config).eval()
    assert ours.config._attn_implementation == implementation
    assert type(ours.config).__name__ == f"{family}Config"
    ours.load_state_dict(theirs.state_dict())
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    if suffix == "Model":
        inputs["decoder_input_ids"] = batch["labels"]
    if suffix in (
        "ForSequenceClassification",
        "ForQuestionAnswering",
    ):  # a padded row on the left is read elsewhere by transformers
        inputs = {name: tensor[:2] for name, tensor in inputs.items()}
    our_outputs, their_outputs = ours(**inputs), theirs(**inputs)
    name = next(name for name in ("logits", "start_logits", "last_hidden_state") if name in their_outputs)
    torch.testing.assert_close(our_outputs[name], their_outputs[name], rtol=1e-4, atol=1e-5)


def test_what_differs_in_a_call_with_labels(model, stock_config, batch, tmp_path):
    """The rows of docs/use.md."""
    model.save_pretrained(tmp_path)
    theirs = T5ForConditionalGeneration.from_pretrained(tmp_path, config=stock_config).eval()
    count = int((batch["labels"] != -100).sum())
    plain = {name: of(**batch).loss for name, of in (("ours", model), ("theirs", theirs))}
    torch.testing.assert_close(plain["ours"], plain["theirs"])
    torch.testing.assert_close(model(**batch, num_items_in_batch=2).loss, plain["ours"] * count / 2)
    torch.testing.assert_close(theirs(**batch, num_items_in_batch=2).loss, plain["theirs"])

    assert theirs(**batch).past_key_values is not None
    assert model(**batch).past_key_values is None
    assert model(**batch, use_cache=True).past_key_values is not None

    padded = torch.cat([torch.full_like(batch["labels"][:, :2], -100), batch["labels"]], 1)
    moved = model(**{**batch, "labels": padded}).loss
    torch.testing.assert_close(moved, plain["ours"])
    assert (theirs(**{**batch, "labels": padded}).loss - plain["theirs"]).abs() > 1e-3
