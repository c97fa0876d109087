"""Converted by the real command, loaded by the Auto classes, compared with what the original code computed.

The mutation checks at the end break one thing each, and see the comparison fail.
"""

from functools import partialmethod

import numpy as np
import pytest
import torch
from transformers import AutoModelForSeq2SeqLM

from t5_experimental import original_loss
from t5_experimental.attention_t5_experimental import T5TalkingHeadsAttention


FAMILIES = ("t5.1.1.tiny", "t5.1.th.tiny", "t5.1.n4w10.tiny")
# Uneven head counts, both families' traits at once, a shared classifier, bfloat16 variables, old names, a table of
# biases in every layer, long inputs.
VARIANTS = (
    "t5.1.th.tiny-uneven",
    "t5.1.mixed.tiny",
    "t5.1.0.tiny",
    "t5.1.1.tiny-bfloat16",
    "t5.1.1.tiny-legacy",
    "t5.1.1.tiny-biases",
    "t5.1.1.tiny-long",
)
DECODED = (*FAMILIES, *VARIANTS)
ALL = (*DECODED, "t5.1.1.tiny-packed")
TOLERANCE = 1e-5
# Over 200 positions float32 itself is less exact than that: computed in float64, our logits still differ from the
# original's by 1.6e-5, which is its own rounding.
TOLERANCES = {"t5.1.1.tiny-long": 3e-5}


def load(folder, **kwargs):
    return AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32, **kwargs).eval()


def inputs_of(arrays):
    """What the original saw, as our arguments: padding is id 0, packed examples have segment ids."""
    input_ids = torch.from_numpy(arrays["inputs"]).long()
    labels = torch.from_numpy(arrays["targets"]).long()
    if "inputs_segmentation" not in arrays:
        return {"input_ids": input_ids, "attention_mask": (input_ids > 0).long(), "labels": labels}
    return {
        "input_ids": input_ids,
        "segment_ids": torch.from_numpy(arrays["inputs_segmentation"]),
        "labels": labels,
        "decoder_segment_ids": torch.from_numpy(arrays["targets_segmentation"]),
    }


@torch.no_grad()
def logit_error(model, arrays):
    """Largest difference of a logit at the targets that are not padding."""
    logits = model(**inputs_of(arrays)).logits.numpy()
    return float(np.abs(logits - arrays["logits"])[arrays["targets"] > 0].max())


def up_to_eos(ids):
    """Rows without what follows their first end-of-sequence token: the original goes on until all rows have one."""
    rows = [row.tolist() for row in ids]
    return [row[: row.index(1) + 1] if 1 in row else row for row in rows]


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ALL)
def test_logits_equal_the_originals(name, implementation, converted, golden, record_property):
    model = load(converted(name), attn_implementation=implementation)
    error = logit_error(model, golden(name))
    record_property("logit_error", error)
    print(f"{name} {implementation}: largest logit error {error:.2e}")
    assert error < TOLERANCES.get(name, TOLERANCE)


@pytest.mark.parametrize("name", ALL)
def test_loss_equals_the_originals(name, converted, golden):
    arrays = golden(name)
    inputs = inputs_of(arrays)
    with torch.no_grad():
        logits = load(converted(name))(**inputs).logits
    assert float(original_loss(logits, inputs["labels"])) == pytest.approx(float(arrays["loss"]), rel=2e-6)
    without_z_loss = float(original_loss(logits, inputs["labels"], z_loss=0.0))
    assert without_z_loss != pytest.approx(float(arrays["loss"]), rel=2e-6)


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("name", DECODED)
def test_greedy_tokens_equal_the_originals(name, use_cache, converted, golden):
    arrays = golden(name)
    inputs = inputs_of(arrays)
    length = arrays["greedy"].shape[1]
    generated = load(converted(name)).generate(
        inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        max_new_tokens=length,
        do_sample=False,
        use_cache=use_cache,
    )
    expected = up_to_eos(arrays["greedy"])
    assert up_to_eos(generated[:, 1 : length + 1]) == expected
    assert len({token for row in expected for token in row}) > 3


def test_the_uneven_checkpoint_is_uneven(converted):
    """No two head axes of it can be swapped unnoticed."""
    spec = load(converted("t5.1.th.tiny-uneven")).config.layer_specs("decoder")[0]
    assert len({spec.num_key_heads, spec.num_heads, spec.num_value_heads}) == 3
    assert spec.d_k != spec.d_v


def test_the_shared_classifier_is_shared(converted):
    model = load(converted("t5.1.0.tiny"))
    assert model.config.tie_word_embeddings
    assert model.config.scale_decoder_outputs
    assert model.lm_head.weight is model.shared.weight


def drop_a_transpose(model):
    weights = (block.layer[0].SelfAttention.q.weight for block in model.encoder.block)
    square = next(weight for weight in weights if weight.shape[0] == weight.shape[1])  # no shape gives it away
    square.data = square.data.t().clone()


def swap_softmax_and_value_heads(model):
    weight = model.decoder.block[0].layer[1].EncDecAttention.weights_projection.weight
    weight.data = weight.data.t().clone()


def share_one_bias_table(model):
    for stack in (model.encoder, model.decoder):
        narrow = stack.block[0].layer[0].SelfAttention.relative_attention_bias.weight
        wide = stack.block[4].layer[0].SelfAttention.relative_attention_bias.weight
        wide.data = narrow.data.repeat(1, wide.shape[1] // narrow.shape[1])


def share_the_first_bias_table(model):
    for stack in (model.encoder, model.decoder):
        tables = [block.layer[0].SelfAttention.relative_attention_bias for block in stack.block]
        for table in tables[1:]:
            table.weight.data = tables[0].weight.data


def tie_the_classifier(model):
    model.lm_head.weight = model.shared.weight


def rescale_the_decoder(model):
    model.config.scale_decoder_outputs = not model.config.scale_decoder_outputs


def scale_the_logits(model):
    for module in model.modules():
        if hasattr(module, "spec"):
            module.q.weight.data *= module.spec.d_k**-0.5


def use_exact_gelu(model):
    for module in model.modules():
        if hasattr(module, "wi_0"):
            module.act = torch.nn.GELU()


def make_the_decoder_bias_bidirectional(model):
    attention = model.decoder.block[0].layer[0].SelfAttention
    original = attention.self_attention_bias
    attention.self_attention_bias = lambda visible, bidirectional, device: original(visible, True, device)


MUTATIONS = [
    ("t5.1.1.tiny", drop_a_transpose),
    ("t5.1.1.tiny", tie_the_classifier),
    ("t5.1.1.tiny", scale_the_logits),
    ("t5.1.1.tiny", use_exact_gelu),
    ("t5.1.1.tiny", make_the_decoder_bias_bidirectional),
    ("t5.1.th.tiny", drop_a_transpose),
    ("t5.1.th.tiny", swap_softmax_and_value_heads),
    ("t5.1.th.tiny", tie_the_classifier),
    ("t5.1.n4w10.tiny", drop_a_transpose),
    ("t5.1.n4w10.tiny", share_one_bias_table),
    ("t5.1.n4w10.tiny", tie_the_classifier),
    ("t5.1.1.tiny-biases", share_the_first_bias_table),
    ("t5.1.0.tiny", rescale_the_decoder),
    ("t5.1.1.tiny", rescale_the_decoder),
]


@pytest.mark.parametrize(("name", "mutate"), MUTATIONS, ids=lambda value: getattr(value, "__name__", value))
def test_a_broken_model_fails_the_comparison(name, mutate, converted, golden):
    model = load(converted(name))
    mutate(model)
    assert logit_error(model, golden(name)) > 10 * TOLERANCE


def test_bias_before_the_first_mix_fails_the_comparison(converted, golden, monkeypatch):
    """The position bias alone is moved there; the mask stays on the softmax heads."""

    def attend(self, query, key, value, attention_bias, output_attentions, before=True):
        logits = query @ key.transpose(-1, -2)
        hidden = torch.zeros((), dtype=torch.bool) if attention_bias is None else attention_bias < -1e30
        bias = 0 if attention_bias is None else attention_bias.masked_fill(hidden, 0)
        logits = self.logits_projection(logits + bias) if before else self.logits_projection(logits) + bias
        weights = logits.masked_fill(hidden, -1e30).softmax(-1)
        return self.weights_projection(weights) @ value, None

    model = load(converted("t5.1.th.tiny"), attn_implementation="eager")
    monkeypatch.setattr(T5TalkingHeadsAttention, "attend", partialmethod(attend, before=False))
    assert logit_error(model, golden("t5.1.th.tiny")) < TOLERANCE
    monkeypatch.setattr(T5TalkingHeadsAttention, "attend", attend)
    assert logit_error(model, golden("t5.1.th.tiny")) > 100 * TOLERANCE


def test_ignoring_segments_fails_the_comparison(converted, golden):
    arrays = golden("t5.1.1.tiny-packed")
    del arrays["inputs_segmentation"]
    assert logit_error(load(converted("t5.1.1.tiny-packed")), arrays) > 100 * TOLERANCE


def test_a_wrong_far_bucket_fails_the_comparison(converted, golden):
    """Positions further apart than any short input reaches."""
    model = load(converted("t5.1.1.tiny-long"))
    table = model.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight
    for bucket in (15, 31):  # the last bucket of each direction
        original = table.data.clone()
        table.data[bucket] += 0.1
        assert logit_error(model, golden("t5.1.1.tiny-long")) > 10 * TOLERANCE
        table.data = original
