# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Which loss a training step has besides plain cross-entropy; the model computes it."""

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import torch

from ..errors import TrainingError


# Divisor of a step's summed loss: the tokens to predict, or all target positions, padding included.
LossDenominator: TypeAlias = Literal["tokens", "positions"]


def check_loss_options(z_loss: float, label_smoothing: float) -> None:
    """Refuses a `--z_loss` or `--label_smoothing_factor` that is out of range.

    Raises:
        TrainingError: one of them is out of bounds.
    """
    if z_loss < 0:
        raise TrainingError(f"--z_loss is {z_loss}: it must be at least 0; the original's is 1e-4.")
    if not 0 <= label_smoothing < 1:
        raise TrainingError(f"--label_smoothing_factor is {label_smoothing}: it must be at least 0 and less than 1.")


def loss_arguments(z_loss: float, label_smoothing: float) -> dict[str, Any]:
    """Arguments of the model's forward pass in a training step, which does not need logits.

    The model smooths labels itself: transformers' trainer needs all logits for that, and also smooths in evaluation.
    """
    return {"skip_logits": True, "z_loss": z_loss, "smoothing": label_smoothing}


def with_all_positions(batch: Mapping[str, Any], length: int | None) -> dict[str, torch.Tensor]:
    """A batch for counting: `labels` in which no position is ignored.

    Args:
        batch: with `labels` `(batch, target)`.
        length: of a row in the original, which pads to the limit instead of the longest; None is `target`.
    """
    labels: torch.Tensor = batch["labels"]
    return {"labels": labels.new_zeros(len(labels), labels.shape[1] if length is None else length)}
