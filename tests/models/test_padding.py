"""Padding that is not computed: nothing changes where outputs are read, and the work is that of the tokens."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForSeq2SeqLM, AutoModelForTextEncoding

from t5_experimental import unpadding_t5_experimental as padding
from t5_experimental.unpadding_t5_experimental import Tokens, find_tokens, real_positions


@pytest.fixture
def plain(monkeypatch):
    """`plain(function)`: what it returns where every position is computed."""

    def call(function):
        with monkeypatch.context() as patch:
            patch.setattr(padding, "may_read_values", lambda values: False)
            return function()

    return call


@pytest.fixture
def found(monkeypatch):
    """All tokens that are found, in order, None where all positions are computed."""
    from t5_experimental import stack_t5_experimental

    results = []

    def spy(*arguments):
        results.append(find_tokens(*arguments))
        return results[-1]

    monkeypatch.setattr(stack_t5_experimental, "find_tokens", spy)
    return results


def ragged(lengths, length, left=()):
    """A mask of rows with these counts of tokens; the rows in `left` have their padding on the left."""
    mask = (torch.arange(length) < torch.tensor(lengths)[:, None]).long()
    for row in left:
        mask[row] = mask[row].flip(0)
    return mask


def labelled(lengths, length):
    labels = torch.randint(3, 1000, (len(lengths), length), generator=torch.Generator().manual_seed(3))
    return labels.masked_fill(ragged(lengths, length) == 0, -100)


MASKS = {
    "right": ragged([5, 9, 3], 13),
    "left": ragged([5, 9, 3], 13, left=(0, 1, 2)),
    "both": ragged([5, 13, 3], 13, left=(0,)),
    "holes": torch.tensor([[1, 0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0]] * 3),
    "an empty row": ragged([5, 0, 3], 13),
    "columns alone": ragged([6, 6, 6], 13),
}


def padded_batch(mask, labels):
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.randint(3, 1000, mask.shape, generator=generator) * mask
    return {"input_ids": input_ids, "attention_mask": mask, "labels": labels}


def loss_and_gradients(model, batch):
    model.zero_grad()
    torch.manual_seed(7)
    loss = model(**batch, skip_logits=True).loss
    loss.backward()
    return {"loss": loss.detach()} | {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_loss_and_gradients_are_the_same(mask, model, plain, found):
    """In digits that show the smallest difference of formulas; the decoder's rows end at their last label."""
    model.double()
    batch = padded_batch(mask, labelled([4, 7, 2], 9))
    expected = plain(lambda: loss_and_gradients(model, batch))
    torch.testing.assert_close(loss_and_gradients(model, batch), expected, rtol=1e-11, atol=1e-12)
    encoder, decoder, across = found[-3:]
    assert encoder.places.numel() == mask.sum()
    assert decoder.places.numel() == 13
    assert decoder.stop == 7
    assert across.places.numel() == mask.sum()


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("options", [None, {"use_reentrant": False}, {"use_reentrant": True}, {"keep_attention": True}])
@pytest.mark.parametrize("broadcast", [True, False])
@pytest.mark.parametrize("name", ["t5.1.1", "mixed"])
def test_gradient_checkpointing_and_dropout(name, broadcast, options, implementation, make_config, plain):
    """Long enough for attention by rows. Where positions share what is dropped, even the draws are the same: neither
    path has columns to leave out."""
    config = make_config(name, dropout_rate=0.3, broadcast_dropout=broadcast)
    torch.manual_seed(0)
    model = AutoModelForSeq2SeqLM.from_config(config, attn_implementation=implementation).double().train()
    batch = padded_batch(ragged([40, 140, 90], 140), labelled([130, 20, 50], 130))
    expected = loss_and_gradients(model, batch)
    if options is not None:
        model.gradient_checkpointing_enable(options)
        if options.get("use_reentrant"):
            model.enable_input_require_grads()
    torch.testing.assert_close(loss_and_gradients(model, batch), expected, rtol=1e-11, atol=1e-12)
    everywhere = plain(lambda: loss_and_gradients(model, batch))
    if broadcast:
        torch.testing.assert_close(everywhere, expected, rtol=1e-9, atol=1e-10)
    else:
        assert everywhere["loss"] != expected["loss"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_less_precise_numbers(dtype, model, plain):
    """Rounding differs with the number of rows of a product; bfloat16 has 8 significant bits."""
    model.to(dtype)
    batch = padded_batch(MASKS["both"], labelled([4, 7, 2], 9))
    expected = plain(lambda: model(**batch).logits).float()
    relative = (model(**batch).logits.float() - expected).norm() / expected.norm()
    assert relative < (1e-5 if dtype == torch.float32 else 0.02)


def test_the_original_without_gate_and_with_a_shared_classifier(make_config, plain):
    torch.manual_seed(0)
    config = make_config("t5.1.1", feed_forward_proj="relu", tie_word_embeddings=True, scale_decoder_outputs=True)
    model = AutoModelForSeq2SeqLM.from_config(config).eval().double()
    batch = padded_batch(MASKS["right"], labelled([4, 7, 2], 9))
    expected = plain(lambda: loss_and_gradients(model, batch))
    torch.testing.assert_close(loss_and_gradients(model, batch), expected, rtol=1e-11, atol=1e-12)


def segments_of(*rows):
    return torch.tensor(rows)


@pytest.mark.parametrize("has_empty_example", [False, True])
def test_packed_examples(has_empty_example, model, plain, found):
    """An example without inputs attends to padding, too, which is 0."""
    model.double()
    segment_ids = segments_of([1, 1, 1, 2, 2, 0, 0, 0], [1, 1, 3 if has_empty_example else 2, 0, 0, 0, 0, 0])
    batch = {
        "input_ids": torch.randint(3, 1000, segment_ids.shape, generator=torch.Generator().manual_seed(2)),
        "segment_ids": segment_ids,
        "decoder_segment_ids": segments_of([1, 1, 2, 0, 0], [1, 2, 2, 2, 0]),
        "labels": labelled([3, 4], 5),
    }
    expected = plain(lambda: loss_and_gradients(model, batch))
    torch.testing.assert_close(loss_and_gradients(model, batch), expected, rtol=1e-11, atol=1e-12)
    assert sum(tokens is not None for tokens in found) == 3


@pytest.mark.parametrize("kwargs", [{}, {"num_beams": 3}, {"use_cache": False}, {"cache_implementation": "static"}])
def test_generation_is_the_same(kwargs, model, plain, found):
    inputs = padded_batch(MASKS["both"], None)
    del inputs["labels"]
    options = {
        **kwargs,
        "max_new_tokens": 6,
        "min_new_tokens": 6,
        "output_logits": True,
        "return_dict_in_generate": True,
        "disable_compile": True,
    }
    expected = plain(lambda: model.generate(**inputs, **options))
    assert all(tokens is None for tokens in found)
    outputs = model.generate(**inputs, **options)
    assert torch.equal(outputs.sequences, expected.sequences)
    torch.testing.assert_close(torch.stack(outputs.logits), torch.stack(expected.logits), rtol=0, atol=1e-4)
    assert sum(tokens is not None for tokens in found) >= 2  # of the encoder, and of the keys and values of the prompt
    found.clear()
    model.generate(**inputs, **options, skip_padding=False)
    assert found[0] is None


def test_the_encoder_alone_computes_padding_unless_told(config, plain):
    torch.manual_seed(0)
    encoder = AutoModelForTextEncoding.from_config(config).eval()
    mask = MASKS["left"]
    inputs = {"input_ids": padded_batch(mask, None)["input_ids"], "attention_mask": mask}
    expected = plain(lambda: encoder(**inputs, skip_padding=True).last_hidden_state)
    assert torch.equal(encoder(**inputs).last_hidden_state, expected)
    skipped = encoder(**inputs, skip_padding=True).last_hidden_state
    assert skipped[mask == 0].eq(0).all()
    assert expected[mask == 0].ne(0).any()
    torch.testing.assert_close(skipped[mask == 1], expected[mask == 1], rtol=1e-5, atol=1e-5)
    whole = encoder(**inputs, skip_padding=True, output_hidden_states=True)
    assert torch.equal(whole.last_hidden_state, expected)


def test_a_mask_of_ones_and_no_mask_cost_nothing(make_config, found):
    model = AutoModelForSeq2SeqLM.from_config(make_config("t5.1.1"))
    ones = torch.ones(3, 13, dtype=torch.long)
    almost = ones.clone()
    almost[0, 11:] = 0
    for mask in (ones, almost, None, torch.ones(3, 13, 13), torch.zeros(3, 13)):
        encoder_mask = mask if mask is None or mask.ndim == 2 else None
        model(input_ids=ones, attention_mask=encoder_mask, labels=ones)
    assert found == [None] * len(found)
    assert len(found) > 0


def test_compiled_models_keep_their_shapes(make_config):
    """One graph for all masks, without a break; blocks that are compiled by themselves are not compiled anew either."""
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    torch.manual_seed(0)
    model = AutoModelForSeq2SeqLM.from_config(make_config("t5.1.1")).eval()
    batches = [padded_batch(MASKS[name], labelled([4, 7, 2], 9)) for name in ("right", "left", "holes")]
    expected = [model(**batch).loss for batch in batches]
    counter = CompileCounter()
    compiled = torch.compile(model, backend=counter, dynamic=False, fullgraph=True)
    torch.testing.assert_close([compiled(**batch).loss for batch in batches], expected)
    assert counter.frame_count == 1
    counter.clear()
    for block in (*model.encoder.block, *model.decoder.block):
        block.compile(backend=counter, dynamic=False, fullgraph=True)
    torch.testing.assert_close([model(**batches[0]).loss], expected[:1])
    graphs = counter.frame_count
    assert graphs > 0
    torch.testing.assert_close([model(**batch).loss for batch in batches], expected)
    assert counter.frame_count == graphs


def test_it_exports_and_has_shapes_without_numbers(make_config):
    """Nothing looks at the numbers of a mask there."""
    torch.manual_seed(0)
    model = AutoModelForSeq2SeqLM.from_config(make_config("t5.1.1")).eval()
    mask = MASKS["right"]
    batch = {**padded_batch(mask, None), "decoder_input_ids": torch.zeros(3, 2, dtype=torch.long), "use_cache": False}
    del batch["labels"]
    exported = torch.export.export(model, (), batch).module()
    other = {**batch, "attention_mask": MASKS["both"]}
    torch.testing.assert_close(exported(**other).logits, model(**other).logits)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        shapes = {name: mode.from_tensor(value) for name, value in batch.items() if name != "use_cache"}
        assert model(**shapes, use_cache=False).logits.shape == (3, 2, 1152)


def test_a_mask_that_does_not_fit_is_still_refused(make_config):
    model = AutoModelForSeq2SeqLM.from_config(make_config("t5.1.1"))
    ids = torch.ones(3, 13, dtype=torch.long)
    with pytest.raises(ValueError, match="does not fit 13 queries"):
        model(input_ids=ids, attention_mask=ragged([5, 9, 3], 14), labels=ids)


def test_tokens_go_and_come_back():
    mask = ragged([2, 3, 0], 6, left=(1,))[:, :5] > 0
    states = torch.randn(3, 5, 4)
    tokens = find_tokens(mask, states)
    assert (tokens.start, tokens.stop) == (0, 5)
    kept = states * mask[..., None]
    assert torch.equal(tokens.restore(tokens.gather(states)), kept)
    middle = torch.zeros(2, 6, dtype=torch.bool)
    middle[0, 2], middle[1, 3] = True, True
    tokens = find_tokens(middle, torch.zeros(2, 6, 1))
    assert tokens._replace(places=tokens.places.tolist()) == Tokens(2, 6, 2, 4, [0, 3])
    whole = tokens.whole()
    assert whole._replace(places=whole.places.tolist()) == Tokens(2, 6, 0, 6, [2, 9])
    assert whole.rows.tolist() == tokens.rows.tolist() == [0, 1]
    assert find_tokens(torch.zeros(2, 6, dtype=torch.bool), torch.zeros(2, 6, 1)) is None


def test_real_positions():
    assert real_positions(torch.tensor([[0, 1], [0, 0]]), None).tolist() == [[False, True], [False, False]]
    assert real_positions(None, torch.tensor([[2, 0]])).tolist() == [[True, False]]
    assert real_positions(torch.ones(1, 1, 1, 2), None) is None
    assert real_positions(torch.ones(1, 2), torch.ones(1, 2)) is None


def flops(model, batch, backward):
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(backward):
        if backward:
            model(**batch, skip_logits=True).loss.backward()
        else:
            model(**batch, skip_padding=True)
    return counter.get_total_flops()


@pytest.mark.parametrize("name", ["t5.1.1", "t5.1.th", "t5.1.n4w10"])
def test_a_half_padded_batch_costs_half(name, make_config, plain, monkeypatch):
    """A guard that does not depend on the machine. All but attention's own products, which rows of different length
    share, are proportional to the tokens; wide layers as in the released sizes make these few."""
    from t5_experimental import onednn_t5_experimental

    # The counter knows no products of oneDNN.
    monkeypatch.setattr(onednn_t5_experimental, "supports", lambda dtype: False)
    widths = {"d_model": 256, "d_ff": 1024, "d_kv": 8, "num_heads": 4}
    if name == "t5.1.n4w10":
        widths |= {"num_layers": 5}
    config = make_config(name, **widths)
    torch.manual_seed(0)
    model = AutoModelForSeq2SeqLM.from_config(config, attn_implementation="eager").train()
    encoder = AutoModelForTextEncoding.from_config(config, attn_implementation="eager").eval()
    half, full = ragged([16, 4, 12, 8, 2, 6], 16), torch.ones(6, 16, dtype=torch.long)
    assert half.sum() * 2 == full.sum()
    batches = {
        "half": padded_batch(half, labelled([8, 2, 5, 4, 1, 4], 8)),
        "full": padded_batch(full, labelled([8] * 6, 8)),
    }
    counts = {key: flops(model, batch, True) for key, batch in batches.items()}
    assert 0.5 < counts["half"] / counts["full"] < 0.53
    assert plain(lambda: flops(model, batches["half"], True)) > 0.9 * counts["full"]
    for batch in batches.values():
        del batch["labels"]
    counts = {key: flops(encoder, batch, False) for key, batch in batches.items()}
    assert 0.5 < counts["half"] / counts["full"] < 0.53
    assert plain(lambda: flops(encoder, batches["half"], False)) == counts["full"]
