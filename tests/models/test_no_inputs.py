"""Examples with targets but without inputs: the encoder's output is 0 there, as in the original, on every path."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForSeq2SeqLM

from t5_experimental import attention_t5_experimental, original_loss
from t5_experimental import unpadding_t5_experimental as padding
from t5_experimental import visibility_t5_experimental as masks


UNPACKED = ("t5.1.1.tiny", "t5.1.th.tiny", "t5.1.n4w10.tiny", "t5.1.0.tiny")
PACKED = "t5.1.1.tiny-packed"
TOLERANCE = 1e-5


@pytest.fixture(params=["eager", "sdpa", "rows"])
def load(request, converted, monkeypatch):
    """`load(name)`: a converted checkpoint, by all pairs, torch's kernel, or blocks of rows even of few positions."""
    if request.param == "rows":
        monkeypatch.setattr(attention_t5_experimental, "_MIN_QUERIES", 1)
        monkeypatch.setattr(attention_t5_experimental, "_MIN_PAIRS", 1)
    implementation = "eager" if request.param == "eager" else "sdpa"

    def call(name):
        folder = converted(name)
        return AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=implementation)

    return call


@pytest.fixture(params=["tokens", "all positions"])
def counted(request, monkeypatch):
    """With padding left out, and with all positions computed, as in compiled models."""
    if request.param == "all positions":
        for module in (padding, masks):
            monkeypatch.setattr(module, "may_read_values", lambda values: False)


def inputs_of(arrays):
    input_ids, labels = (torch.from_numpy(arrays[key]).long() for key in ("inputs", "targets"))
    if "inputs_segmentation" not in arrays:
        return {"input_ids": input_ids, "attention_mask": (input_ids > 0).long(), "labels": labels}
    segments, decoder_segments = (torch.from_numpy(arrays[f"{side}_segmentation"]) for side in ("inputs", "targets"))
    return {"input_ids": input_ids, "segment_ids": segments, "labels": labels, "decoder_segment_ids": decoder_segments}


def score_error(logits, arrays):
    """Largest difference of a target's log-probability."""
    targets = torch.from_numpy(arrays["targets"]).long()
    scores = logits.detach().log_softmax(-1).gather(-1, targets[..., None]).squeeze(-1).numpy()
    return float(np.abs(scores - arrays["scores"])[arrays["targets"] > 0].max())


def up_to_eos(ids):
    rows = [row.tolist() for row in ids]
    return [row[: row.index(1) + 1] if 1 in row else row for row in rows]


@pytest.mark.usefixtures("counted")
@pytest.mark.parametrize("name", [*UNPACKED, PACKED])
def test_scores_and_loss_equal_the_originals(name, load, golden_without_inputs):
    arrays = golden_without_inputs(name)
    inputs = inputs_of(arrays)
    model = load(name).eval()
    logits = model(**inputs).logits  # with gradients, as blocks of rows are for these
    print(f"{name}: largest error of a log-probability {score_error(logits, arrays):.1e}")
    assert score_error(logits, arrays) < TOLERANCE
    assert float(original_loss(logits, inputs["labels"])) == pytest.approx(float(arrays["loss"]), rel=2e-6)
    for intermediate in ({"output_hidden_states": True}, {"output_attentions": True}):
        assert score_error(model(**inputs, **intermediate).logits, arrays) < TOLERANCE
    with torch.no_grad():
        assert score_error(model(**inputs).logits, arrays) < TOLERANCE


@pytest.mark.usefixtures("counted")
@pytest.mark.parametrize("name", UNPACKED)
def test_an_encoder_that_has_run_before(name, load, golden_without_inputs):
    arrays = golden_without_inputs(name)
    inputs = inputs_of(arrays)
    model = load(name).eval()
    encoded = model.encoder(inputs.pop("input_ids"), inputs["attention_mask"])
    assert score_error(model(**inputs, encoder_outputs=encoded).logits, arrays) < TOLERANCE
    assert score_error(model(**inputs, encoder_outputs=(encoded[0],)).logits, arrays) < TOLERANCE


@pytest.mark.usefixtures("counted")
@pytest.mark.parametrize("kwargs", [{}, {"use_cache": False}, {"cache_implementation": "static"}], ids=str)
@pytest.mark.parametrize("name", UNPACKED)
def test_greedy_tokens_equal_the_originals(name, kwargs, load, golden_without_inputs):
    arrays = golden_without_inputs(name)
    inputs = inputs_of(arrays)
    del inputs["labels"]
    length = arrays["greedy"].shape[1]
    options = {"max_new_tokens": length, "do_sample": False, "disable_compile": True}
    expected = up_to_eos(arrays["greedy"])
    assert up_to_eos(load(name).generate(**inputs, **options, **kwargs)[:, 1 : length + 1]) == expected
    assert len({token for row in expected for token in row}) > 2


def gradients(model, inputs):
    model.zero_grad()
    original_loss(model(**inputs).logits, inputs["labels"]).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.usefixtures("counted")
@pytest.mark.parametrize("name", ["t5.1.1", "mixed"])
@pytest.mark.parametrize("is_packed", [True, False])
def test_all_ways_have_the_same_gradients(is_packed, name, make_config, golden_without_inputs, monkeypatch):
    """In float64; those by all pairs are the original's, as its next step shows (test_optimizers.py)."""
    torch.manual_seed(0)
    model = AutoModelForSeq2SeqLM.from_config(make_config(name), attn_implementation="eager").double().eval()
    inputs = inputs_of(golden_without_inputs(PACKED if is_packed else "t5.1.1.tiny"))
    expected = gradients(model, inputs)
    assert all(gradient.isfinite().all() for gradient in expected.values())
    model.set_attn_implementation("sdpa")
    torch.testing.assert_close(gradients(model, inputs), expected, rtol=1e-9, atol=1e-11)
    monkeypatch.setattr(attention_t5_experimental, "_MIN_QUERIES", 1)
    monkeypatch.setattr(attention_t5_experimental, "_MIN_PAIRS", 1)
    torch.testing.assert_close(gradients(model, inputs), expected, rtol=1e-9, atol=1e-11)


def batches():
    """One row without inputs among others, with much padding and with little, and nothing but such rows."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 1000, (3, 12), generator=generator)
    labels = torch.randint(3, 1000, (3, 5), generator=generator)
    found = {}
    for name, lengths in {"much": [12, 0, 3], "little": [12, 0, 12], "all": [0, 0, 0]}.items():
        mask = (torch.arange(12) < torch.tensor(lengths)[:, None]).long()
        found[name] = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    return found


BATCHES = batches()


@pytest.mark.usefixtures("counted")
@pytest.mark.parametrize("name", BATCHES)
def test_a_row_without_inputs_is_one_whose_encoder_says_nothing(name, model):
    """Ids under the padding and their number do not matter, no gradient reaches the encoder from there, nor NaN."""
    batch = BATCHES[name]
    empty = batch["attention_mask"].sum(1) == 0
    zeros = torch.zeros(3, 4, model.config.d_model)
    expected = model(encoder_outputs=(zeros,), labels=batch["labels"]).logits[empty]
    embeds = model.shared(batch["input_ids"]).detach()
    embeds[empty] = float("nan")
    embeds.requires_grad_()
    given = {"inputs_embeds": embeds, **{key: batch[key] for key in ("attention_mask", "labels")}}
    outputs = model(**given)
    torch.testing.assert_close(outputs.logits[empty], expected, rtol=0, atol=1e-5)
    assert torch.equal(model(**batch).logits[empty], outputs.logits[empty])
    outputs = model(**batch)
    outputs.loss.backward()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.usefixtures("counted")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("architecture", ["t5.1.1", "mixed"])
@pytest.mark.parametrize("name", BATCHES)
def test_no_gradient_reaches_the_encoder_from_there(name, architecture, dtype, make_config):
    batch = BATCHES[name]
    torch.manual_seed(0)
    model = AutoModelForSeq2SeqLM.from_config(make_config(architecture)).to(dtype).train()
    embeds = model.shared(batch["input_ids"]).detach().requires_grad_()
    loss = model(inputs_embeds=embeds, attention_mask=batch["attention_mask"], labels=batch["labels"]).loss
    assert loss.isfinite()
    loss.backward()
    gradient = embeds.grad if embeds.grad is not None else torch.zeros_like(embeds)
    assert gradient.isfinite().all()
    assert gradient[batch["attention_mask"].sum(1) == 0].eq(0).all()
    if name != "all":
        assert gradient[0].ne(0).any()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("name", ["t5.1.1", "t5.1.th"])
def test_compiled_models(name, make_config):
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = AutoModelForSeq2SeqLM.from_config(make_config(name)).eval()
    compiled = torch.compile(model, backend="eager", dynamic=False, fullgraph=True)
    for batch in BATCHES.values():
        torch.testing.assert_close(compiled(**batch).logits, model(**batch).logits, rtol=0, atol=1e-5)
