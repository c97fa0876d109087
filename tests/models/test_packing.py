"""Packed batches: examples that share a row do not see each other, in the encoder, in the decoder and across."""

import pytest
import torch

from t5_experimental import original_loss


@pytest.fixture
def packed():
    """Three examples in two rows, the second row with padding at its end; and the examples alone."""
    generator = torch.Generator().manual_seed(2)
    sources = [torch.randint(3, 1000, (length,), generator=generator) for length in (5, 6, 8)]
    targets = [torch.randint(3, 1000, (length,), generator=generator) for length in (4, 2, 3)]

    def rows(examples, length):
        ids, segments = torch.zeros(2, length, dtype=torch.long), torch.zeros(2, length, dtype=torch.long)
        first, second, third = examples
        ids[0, : len(first)], segments[0, : len(first)] = first, 1
        ids[0, len(first) : len(first) + len(second)], segments[0, len(first) : len(first) + len(second)] = second, 2
        ids[1, : len(third)], segments[1, : len(third)] = third, 1
        return ids, segments

    input_ids, segment_ids = rows(sources, 11)
    labels, decoder_segment_ids = rows(targets, 6)
    batch = {
        "input_ids": input_ids,
        "segment_ids": segment_ids,
        "labels": labels.masked_fill(decoder_segment_ids == 0, -100),
        "decoder_segment_ids": decoder_segment_ids,
    }
    return batch, sources, targets


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_packed_logits_equal_those_of_examples_alone(model, packed, implementation):
    model.set_attn_implementation(implementation)
    batch, sources, targets = packed
    logits = model(**batch).logits
    for source, target, place in zip(sources, targets, ((0, 0), (0, 4), (1, 0)), strict=True):
        alone = model(input_ids=source[None], labels=target[None]).logits[0]
        row, start = place
        torch.testing.assert_close(logits[row, start : start + len(target)], alone, rtol=1e-4, atol=1e-5)


def test_packed_loss_is_the_sum_over_examples(model, packed):
    batch, sources, targets = packed
    packed_sum = original_loss(model(**batch).logits, batch["labels"], loss_denominator=1.0)
    alone = [
        original_loss(model(input_ids=s[None], labels=t[None]).logits, t[None], loss_denominator=1.0)
        for s, t in zip(sources, targets, strict=True)
    ]
    torch.testing.assert_close(packed_sum, sum(alone))


def test_without_segment_ids_examples_do_see_each_other(model, packed):
    """The check above discriminates."""
    batch, _, targets = packed
    mixed = model(input_ids=batch["input_ids"], labels=batch["labels"]).logits
    assert (mixed - model(**batch).logits)[0, : len(targets[0])].abs().max() > 1e-2


def test_each_packed_example_begins_with_the_start_token(model, packed):
    batch, _, targets = packed
    shifted = model.prepare_decoder_input_ids_from_labels(batch["labels"], batch["decoder_segment_ids"])
    assert shifted[0].tolist() == [0, *targets[0][:-1].tolist(), 0, *targets[1][:-1].tolist()]
    assert shifted[1].tolist() == [0, *targets[2][:-1].tolist(), 0, 0, 0]


def test_one_kind_of_segment_ids_alone_is_refused(model, packed):
    batch = packed[0]
    del batch["decoder_segment_ids"]
    with pytest.raises(ValueError, match="need both `segment_ids` and `decoder_segment_ids`"):
        model(**batch)


def test_segment_ids_and_padding_mask_agree(model, batch):
    """One example per row: segment ids of 1 and 0 say what the padding mask says."""
    expected = model(**batch).logits
    mask = batch.pop("attention_mask")
    ones = torch.ones_like(batch["labels"])
    segmented = model(**batch, segment_ids=mask, decoder_segment_ids=ones).logits
    torch.testing.assert_close(segmented, expected, rtol=1e-4, atol=1e-5)
