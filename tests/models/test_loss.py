"""Losses against plain formulas, and the conventions of trainers."""

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM

from t5_experimental import original_loss, token_losses
from t5_experimental.loss_t5_experimental import cross_entropy_loss


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
def test_token_losses_equal_the_definition(z_loss, label_smoothing):
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 3, 7, dtype=torch.float64) * 3, torch.randint(0, 7, (2, 3))
    expected = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), label_smoothing=label_smoothing, reduction="none"
    ).view(2, 3)
    expected = expected + z_loss * logits.exp().sum(-1).log() ** 2
    torch.testing.assert_close(
        token_losses(logits, labels, z_loss, label_smoothing).double(), expected, rtol=1e-5, atol=1e-6
    )


def test_the_originals_denominator_counts_padding():
    torch.manual_seed(0)
    logits = torch.randn(2, 4, 7)
    targets = torch.tensor([[3, 4, 0, 0], [2, 5, 6, -100]])
    losses = token_losses(logits, targets.clamp(min=0), z_loss=1e-4)
    expected = losses[targets > 0].sum()
    torch.testing.assert_close(original_loss(logits, targets), expected / 8)
    torch.testing.assert_close(original_loss(logits, targets, loss_denominator=2.0), expected / 2)


def test_cross_entropy_ignores_and_divides():
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 3, 7), torch.tensor([[1, 2, -100], [3, -100, -100]])
    expected = torch.nn.functional.cross_entropy(logits.view(-1, 7), labels.view(-1))
    torch.testing.assert_close(cross_entropy_loss(logits, labels), expected)
    torch.testing.assert_close(cross_entropy_loss(logits, labels, 6), expected / 2)
    torch.testing.assert_close(cross_entropy_loss(logits, labels, torch.tensor(6)), expected / 2)
    assert cross_entropy_loss(logits, torch.full((2, 3), -100)) == 0


def test_parts_of_a_batch_add_up_to_the_whole(make_config, batch):
    """What a trainer does that accumulates gradients: parts divided by the number of tokens of the whole step."""
    torch.manual_seed(0)
    model = AutoModelForSeq2SeqLM.from_config(make_config("t5.1.1")).eval()
    batch["labels"][1, 3:] = -100
    whole = model(**batch).loss
    count = (batch["labels"] != -100).sum()
    parts = [model(**{k: v[i : i + 1] for k, v in batch.items()}, num_items_in_batch=count).loss for i in range(3)]
    torch.testing.assert_close(sum(parts), whole)
