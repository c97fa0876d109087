"""Every activation means what it means in transformers' T5: in configurations, in stock folders, on every path."""

import json

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModelForSeq2SeqLM, T5Config, T5ForConditionalGeneration
from transformers.activations import ACT2FN

import t5_experimental
from t5_experimental import T5V11ForConditionalGeneration, decoding_session


PROJECTIONS = [prefix + name for name in sorted(ACT2FN) for prefix in ("", "gated-")]


def stock_model(**fields):
    """A stock T5 whose feed-forward reaches beyond where the forms of GELU are alike."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    model = T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0, **fields)).eval()
    for name, parameter in model.named_parameters():
        if ".wi" in name:
            parameter.data *= 2
    return model


@torch.no_grad()
def logits_of(model):
    """Of 160 inputs and 144 targets, all at once, and of the same targets one by one."""
    generator = torch.Generator().manual_seed(1)
    input_ids, ids = (torch.randint(3, 64, (2, length), generator=generator) for length in (80, 72))
    at_once = model(input_ids=input_ids, decoder_input_ids=ids, use_cache=False).logits
    outputs = model(input_ids=input_ids, decoder_input_ids=ids[:, :1], use_cache=True)
    steps, encoded = [outputs.logits], (outputs.encoder_last_hidden_state,)
    for step in range(1, 6):
        outputs = model(
            encoder_outputs=encoded, decoder_input_ids=ids[:, step, None], past_key_values=outputs.past_key_values
        )
        steps.append(outputs.logits)
    return at_once, torch.cat(steps, 1)


def assert_computes_the_same(ours, theirs, rtol=1e-4):
    for packed_limit in (0, ours.packed_decoder_limit):
        ours.packed_decoder_limit = packed_limit
        with decoding_session(ours):
            found = logits_of(ours)
        for our_logits, their_logits in zip(found, logits_of(theirs), strict=True):
            assert their_logits.isfinite().all()
            torch.testing.assert_close(our_logits, their_logits, rtol=0, atol=rtol * float(their_logits.abs().max()))


@pytest.mark.parametrize("proj", PROJECTIONS)
def test_a_stock_folder_computes_what_it_computed(proj, tmp_path):
    theirs = stock_model(feed_forward_proj=proj)
    theirs.save_pretrained(tmp_path)
    ours = T5V11ForConditionalGeneration.from_pretrained(tmp_path).eval()
    assert ours.config.feed_forward_proj == proj
    assert ours.config.is_gated_act == theirs.config.is_gated_act
    assert_computes_the_same(ours, theirs, rtol=2e-6 if "accurate" not in proj else 1e-5)


@pytest.mark.parametrize("proj", ["gelu", "gated-gelu", "gelu_10", "gated-quick_gelu"])
def test_our_folder_computes_what_stock_makes_of_its_configuration(proj, make_config, tmp_path):
    torch.manual_seed(0)
    config = make_config("t5.1.1", vocab_size=64, feed_forward_proj=proj, tie_word_embeddings=True)
    AutoModelForSeq2SeqLM.from_config(config).save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    theirs = T5ForConditionalGeneration.from_pretrained(tmp_path, config=T5Config(**fields)).eval()
    assert_computes_the_same(AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval(), theirs, rtol=2e-6)


@pytest.mark.parametrize(
    ("fields", "proj"),
    [
        ({"feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu"}, "gated-gelu_python"),
        ({"feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu_new"}, "gated-gelu"),
        ({"feed_forward_proj": "gated-gelu", "dense_act_fn": "silu"}, "gated-silu"),
        ({"feed_forward_proj": "relu", "dense_act_fn": "gelu"}, "gelu"),
        ({"feed_forward_proj": "relu", "dense_act_fn": "gelu_new", "is_gated_act": True}, "gated-gelu_new"),
        ({"feed_forward_proj": "gated-silu", "is_gated_act": False}, "silu"),
    ],
)
def test_what_overrides_the_projection_in_stock_does_so_here(fields, proj, make_config, tmp_path):
    """transformers writes `dense_act_fn` and `is_gated_act` beside `feed_forward_proj`, and believes them first."""
    theirs = stock_model(**fields)
    theirs.save_pretrained(tmp_path)
    ours = T5V11ForConditionalGeneration.from_pretrained(tmp_path).eval()
    assert ours.config.feed_forward_proj == proj
    assert_computes_the_same(ours, theirs, rtol=2e-6)
    assert make_config("t5.1.1", **fields).feed_forward_proj == proj


def test_an_override_that_names_nothing_is_refused(make_config):
    with pytest.raises(StrictDataclassError, match="'gated-foo': use an activation of transformers"):
        make_config("t5.1.1", dense_act_fn="foo")


def test_no_fused_path_takes_another_activation(make_config):
    """Exact classes alone: what is made from them may compute something else."""
    from transformers.activations import GELUTanh

    class Other(GELUTanh):
        def forward(self, states):
            return states.relu()

    torch.manual_seed(0)
    config = make_config("t5.1.1", vocab_size=64, tie_word_embeddings=True)
    model = AutoModelForSeq2SeqLM.from_config(config).eval()
    relu = AutoModelForSeq2SeqLM.from_config(
        t5_experimental.T5V11Config(**{**config.to_dict(), "feed_forward_proj": "gated-relu"})
    ).eval()
    relu.load_state_dict(model.state_dict())
    for module in model.modules():
        if hasattr(module, "wi_0"):
            module.act = Other()
    assert_computes_the_same(model, relu, rtol=2e-6)
