# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Losses: transformers' usual mean over target tokens, and the original's with z-loss and its own denominator."""

import torch
from torch.nn import functional as F


IGNORE_INDEX = -100


def token_losses(
    logits: torch.Tensor, labels: torch.Tensor, z_loss: float = 0.0, label_smoothing: float = 0.0
) -> torch.Tensor:
    """Cross-entropy of every token, in float32.

    Args:
        logits: `(..., vocab)`.
        labels: `(...)`, a token id everywhere; what the caller does not count may hold any valid id.
        z_loss: weight of `logsumexp(logits) ** 2`, which keeps the logits from drifting; pre-training used 1e-4.
        label_smoothing: share of the target distribution that is spread evenly over the vocabulary.

    Returns:
        `(...)`.
    """
    logits = logits.float()
    log_z = logits.logsumexp(-1)
    losses = log_z - (1 - label_smoothing) * logits.gather(-1, labels[..., None]).squeeze(-1)
    if label_smoothing:
        losses = losses - label_smoothing * logits.mean(-1)
    if z_loss:
        losses = losses + z_loss * log_z.square()
    return losses


def cross_entropy_loss(
    logits: torch.Tensor, labels: torch.Tensor, num_items_in_batch: int | torch.Tensor | None = None
) -> torch.Tensor:
    """Cross-entropy summed over the tokens that are not `-100`, divided by their number.

    Args:
        logits: `(batch, length, vocab)`.
        labels: `(batch, length)`, -100 where nothing is to be predicted.
        num_items_in_batch: divisor instead of the number of tokens here: a trainer that accumulates gradients or runs
            several processes passes the number of tokens of the whole step.

    Returns:
        Scalar in float32; 0 if no token counts and no divisor is given.
    """
    labels = labels.to(logits.device)
    total = F.cross_entropy(logits.float().flatten(0, -2), labels.flatten(), ignore_index=IGNORE_INDEX, reduction="sum")
    if num_items_in_batch is None:
        count = (labels != IGNORE_INDEX).sum().clamp(min=1)
    else:
        count = torch.as_tensor(num_items_in_batch, device=total.device)
    return total / count


def original_loss(
    logits: torch.Tensor,
    targets: torch.Tensor,
    z_loss: float = 1e-4,
    label_smoothing: float = 0.0,
    loss_denominator: float | None = None,
) -> torch.Tensor:
    """The loss that the original code trains with.

    The sum runs over the real targets, the divisor counts all positions of the batch, padding included. Its evaluation
    loss is the same with `z_loss=0`. Source: `Unitransformer._compute_loss` in
    mesh_tensorflow/transformer/transformer.py.

    Args:
        logits: `(batch, length, vocab)`.
        targets: `(batch, length)`, 0 at padding; ids of 0 and below (-100, too) do not count.
        z_loss: weight of the squared log-normaliser.
        label_smoothing: share of the target distribution that is spread evenly over the vocabulary.
        loss_denominator: divisor instead of the number of positions.

    Returns:
        Scalar in float32.
    """
    targets = targets.to(logits.device)
    losses = token_losses(logits, targets.clamp(min=0), z_loss, label_smoothing)
    denominator = targets.numel() if loss_denominator is None else loss_denominator
    return (losses * (targets > 0)).sum() / denominator
