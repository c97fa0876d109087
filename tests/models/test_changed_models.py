# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Models that users take apart, or send elsewhere: fewer or more layers, pickles, the meta device."""

import copy
import os
import pickle
import subprocess
import sys

import pytest
import torch
from transformers import AutoModel, AutoModelForSeq2SeqLM, T5Config, T5ForConditionalGeneration

from t5_experimental import decoding_session
from tests.support.quick_imports import QUICKLY


IDS = torch.tensor([[5, 6, 7, 1], [8, 9, 1, 0]])


@pytest.mark.parametrize("name", ["t5.1.1", "t5.1.th"])
def test_the_first_layers_alone(name, make_config):
    """As a model that has no others; what such a model computes, other tests compare."""
    torch.manual_seed(0)
    whole = AutoModelForSeq2SeqLM.from_config(make_config(name, num_layers=3)).eval()
    short = AutoModelForSeq2SeqLM.from_config(make_config(name, num_layers=2)).eval()
    short.load_state_dict({name: whole.state_dict()[name] for name in short.state_dict()})
    del whole.encoder.block[-1]
    whole.decoder.block = whole.decoder.block[:2]
    whole.config.num_layers = whole.config.num_decoder_layers = 2
    calls = {"input_ids": IDS, "attention_mask": IDS.ne(0).long()}
    assert torch.equal(whole(**calls, labels=IDS).logits, short(**calls, labels=IDS).logits)
    assert torch.equal(whole.generate(**calls, max_new_tokens=5), short.generate(**calls, max_new_tokens=5))


def test_one_more_layer(make_config):
    """As a model that was built with it; it uses the table of the first layer."""
    short, long = (AutoModel.from_config(make_config("t5.1.1", num_layers=layers)).eval() for layers in (2, 3))
    short.encoder.block.append(copy.deepcopy(long.encoder.block[2]))
    long.encoder.load_state_dict(short.encoder.state_dict())
    expected = long.encoder(input_ids=IDS).last_hidden_state
    assert torch.equal(short.encoder(input_ids=IDS).last_hidden_state, expected)


def test_hooks_see_padding_only_with_hidden_states(make_config):
    """As docs/use.md says."""
    model = AutoModel.from_config(make_config("t5.1.1")).eval()
    seen = []
    model.encoder.block[0].register_forward_hook(lambda module, inputs, output: seen.append(output[0].shape))
    padded = torch.tensor([[5, 6, 7, 1], [1, 0, 0, 0]])
    calls = {"input_ids": padded, "attention_mask": padded.ne(0).long(), "decoder_input_ids": IDS}
    model(**calls)
    model(**calls, output_hidden_states=True)
    assert seen == [(1, 5, model.config.d_model), (2, 4, model.config.d_model)]


def test_tables_that_were_removed(make_config):
    """The first layers of n4w10 have a table for their number of heads, the others one for theirs."""
    model = AutoModel.from_config(make_config("t5.1.n4w10")).eval()
    assert model.encoder.bias_holders == (0, 1, 1)
    model.encoder.block = model.encoder.block[1:]
    assert model.encoder.bias_holders == [0, 0]
    assert model.encoder(input_ids=IDS).last_hidden_state.isfinite().all()
    model.encoder.block = model.encoder.block[1:]
    with pytest.raises(
        ValueError, match="Block 0 has no table of relative position biases, nor has an earlier one of 4"
    ):
        model.encoder(input_ids=IDS)


REMOTE = """
import pickle, sys
from transformers import AutoModelForSeq2SeqLM
model, again = (AutoModelForSeq2SeqLM.from_pretrained(sys.argv[1], trust_remote_code=True) for _ in range(2))
assert type(model).__module__.startswith("transformers_modules"), type(model)
assert getattr(sys.modules[type(model).__module__], type(model).__name__) is type(model) is type(again)
pickle.dumps(model)
"""


@pytest.mark.slow
def test_remote_code_pickles(make_config, tmp_path):
    AutoModelForSeq2SeqLM.from_config(make_config("t5.1.1")).save_pretrained(tmp_path / "model")
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")}
    command = [sys.executable, "-c", QUICKLY + REMOTE, str(tmp_path / "model")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_models_can_be_pickled(model):
    assert len(pickle.dumps(model)) > sum(parameter.nbytes for parameter in model.parameters())


def test_shapes_on_the_meta_device(model):
    logits = model.to("meta")(input_ids=IDS.to("meta"), labels=IDS.to("meta")).logits
    assert logits.shape == (*IDS.shape, model.config.vocab_size)


def test_dummy_inputs(model):
    assert model(**model.dummy_inputs).logits.isfinite().all()
    assert model.get_encoder()(input_ids=model.dummy_inputs["input_ids"]).last_hidden_state.isfinite().all()


@pytest.mark.parametrize("weights", [None, "int8"])
def test_a_session_needs_a_model_of_this_package(weights):
    stock = T5ForConditionalGeneration(T5Config(vocab_size=32, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2))
    for model in (stock, torch.nn.Linear(2, 2), None):
        with pytest.raises(TypeError, match="needs a model of t5_experimental, and this is a"):
            decoding_session(model, weights).__enter__()


def test_a_mask_that_changes_in_a_session(model):
    """A loop of one's own may hide positions of the source between two steps."""

    @torch.no_grad()
    def logits(in_place: bool) -> list[torch.Tensor]:
        mask = torch.ones_like(IDS)
        encoded = model.get_encoder()(input_ids=IDS, attention_mask=mask)
        calls = {"encoder_outputs": encoded, "use_cache": True, "decoder_input_ids": IDS[:, :1]}
        cache, found = model(**calls, attention_mask=mask).past_key_values, []
        for hidden in (3, 1):
            mask = mask if in_place else mask.clone()
            mask[:, hidden:] = 0
            found.append(model(**calls, attention_mask=mask, past_key_values=cache).logits)
        return found

    expected = logits(in_place=False)
    with decoding_session(model) as session:
        found = logits(in_place=True)
    assert session.decode.steps == 2
    torch.testing.assert_close(found, expected)
