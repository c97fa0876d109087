# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Losses: transformers' mean over target tokens, and the original's, with z-loss and another denominator.

Both can start from logits, or from hidden states in chunks, so that the logits of all tokens never exist at once. The
decoder's inputs are the labels, shifted right.
"""

from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .calls_t5_experimental import is_autocast, may_read_values
from .configuration_t5_experimental import T5ExperimentalConfig
from .onednn_t5_experimental import matmul


IGNORE_INDEX = -100

# Tokens in a chunk: their logits are 33 MB in float32 with T5's vocabulary. Smaller chunks make CPU matmuls slower.
_CHUNK = 256


# On a Xeon with torch 2.13, the first loss of one process in six was off by up to 5e-5, and all later ones were exact.
# It looks as if MKL computes its first exponentials with less precision if two threads ask at once. One small call
# before avoids that.
torch.logsumexp(torch.zeros(1, 64, device="cpu"), -1)


def _widened(logits: torch.Tensor) -> torch.Tensor:
    """Logits in at least float32."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _losses_and_normalizers(
    logits: torch.Tensor, labels: torch.Tensor, z_loss: float, label_smoothing: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """[`token_losses`] of logits in at least float32, and `logsumexp(logits)`, both `(...)`."""
    log_z = logits.logsumexp(-1)
    losses = log_z - (1 - label_smoothing) * logits.gather(-1, labels[..., None]).squeeze(-1)
    if label_smoothing:
        losses = losses - label_smoothing * logits.mean(-1)
    if z_loss:
        losses = losses + z_loss * log_z.square()
    return losses, log_z


def token_losses(
    logits: torch.Tensor, labels: torch.Tensor, z_loss: float = 0.0, label_smoothing: float = 0.0
) -> torch.Tensor:
    """Cross-entropy of every token, in at least float32.

    Args:
        logits: `(..., vocab)`.
        labels: `(...)`, a valid token id everywhere, also where the caller ignores the loss.
        z_loss: weight of `logsumexp(logits) ** 2`, which keeps the logits from drifting; pre-training used 1e-4.
        label_smoothing: share of the target distribution that is uniform over the vocabulary.

    Returns:
        `(...)`.
    """
    return _losses_and_normalizers(_widened(logits), labels, z_loss, label_smoothing)[0]


class _ClassifiedLosses(torch.autograd.Function):
    """Linear layer and [`token_losses`] in chunks of tokens.

    The backward pass recomputes the logits except those of the last chunk, which are saved: the memory of one chunk is
    needed anyway, and small batches have only one. Matmuls run in `dtype`; the softmax and the sum of the weight's
    gradient are in at least float32.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_states: torch.Tensor,
        weight: torch.Tensor,
        labels: torch.Tensor,
        z_loss: float,
        label_smoothing: float,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        """`hidden_states` `(tokens, d)`, `weight` `(vocab, d)`, `labels` `(tokens,)` -> `(tokens,)`."""
        wide = torch.promote_types(dtype, torch.float32)
        losses, log_z = hidden_states.new_empty(2, len(labels), dtype=wide)
        logits = losses.new_empty(0)
        with torch.autocast(labels.device.type, enabled=False):
            kernel = weight.to(dtype)
            for start in range(0, len(labels), _CHUNK):
                rows = slice(start, start + _CHUNK)
                logits = matmul(hidden_states[rows].to(dtype), kernel).to(wide)
                losses[rows], log_z[rows] = _losses_and_normalizers(logits, labels[rows], z_loss, label_smoothing)
        ctx.save_for_backward(hidden_states, weight, labels, log_z, logits)
        ctx.z_loss, ctx.label_smoothing, ctx.dtype = z_loss, label_smoothing, dtype
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_losses: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """`(tokens,)` -> gradients of hidden states and weight, if needed."""
        hidden_states, weight, labels, log_z, last_logits = ctx.saved_tensors
        needs_states, needs_weight = ctx.needs_input_grad[:2]
        dtype, wide = ctx.dtype, log_z.dtype
        grad_states = torch.empty_like(hidden_states) if needs_states else None
        grad_weight = torch.zeros_like(weight, dtype=wide) if needs_weight else None
        with torch.autocast(labels.device.type, enabled=False):
            kernel = weight.to(dtype)
            for start in range(0, len(labels), _CHUNK):
                rows = slice(start, start + _CHUNK)
                states = hidden_states[rows].to(dtype)
                logits = matmul(states, kernel).to(wide) if rows.stop < len(labels) else last_logits
                # d loss / d logits = (1 + 2 z log_z) softmax - (1 - s) onehot - s / vocab
                grad = logits.sub(log_z[rows, None]).exp_()
                if ctx.z_loss:
                    grad.mul_(1 + 2 * ctx.z_loss * log_z[rows, None])
                if ctx.label_smoothing:
                    grad.sub_(ctx.label_smoothing / grad.shape[-1])
                hit = torch.full_like(log_z[rows, None], ctx.label_smoothing - 1)
                grad = grad.scatter_add_(-1, labels[rows, None], hit).mul_(grad_losses[rows, None]).to(dtype)
                if grad_states is not None:
                    grad_states[rows] = matmul(grad, kernel.t())
                if grad_weight is not None and dtype == wide:
                    grad_weight.addmm_(grad.t(), states)
                elif grad_weight is not None:
                    grad_weight.add_(grad.t() @ states)
        return grad_states, None if grad_weight is None else grad_weight.to(weight.dtype), None, None, None, None


@torch.compiler.disable
def chunked_token_losses(
    hidden_states: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """[`token_losses`] of `hidden_states @ weight.T`, without the memory for the logits of all tokens.

    Logits exist for a few hundred tokens at a time, and the backward pass recomputes them. Under autocast, matmuls run
    in its dtype. Compiled models run this function eagerly.

    Args:
        hidden_states: `(..., d)`.
        weight: `(vocab, d)`.
        labels: `(...)`, -100 for ignored tokens; on the CPU their logits are not computed.
        z_loss: see [`token_losses`].
        label_smoothing: see [`token_losses`].

    Returns:
        `(...)` in at least float32, 0 for ignored tokens. Only first derivatives are supported.
    """
    device = hidden_states.device
    dtype = torch.get_autocast_dtype(device.type) if is_autocast(device) else hidden_states.dtype
    labels = labels.to(hidden_states.device)
    states, flat_labels = hidden_states.flatten(0, -2), labels.flatten()
    counts = flat_labels != IGNORE_INDEX
    if may_read_values(counts, wait=False):
        places = counts.nonzero().squeeze(-1)
        losses = _ClassifiedLosses.apply(states[places], weight, flat_labels[places], z_loss, label_smoothing, dtype)
        return losses.new_zeros(counts.shape).index_put((places,), losses).view(labels.shape)
    losses = _ClassifiedLosses.apply(states, weight, flat_labels.where(counts, 0), z_loss, label_smoothing, dtype)
    return losses.where(counts, 0).view(labels.shape)


def mean_of_counted(
    losses: torch.Tensor, labels: torch.Tensor, num_items_in_batch: int | torch.Tensor | None = None
) -> torch.Tensor:
    """Sum of `losses`, of any shape, divided by `num_items_in_batch` or else by the number of `labels` that are not
    `-100`. Trainers with gradient accumulation or several processes pass the number of tokens of the whole step. 0 if
    all labels are ignored and there is no divisor."""
    total = losses.sum()
    if num_items_in_batch is None:
        return total / (labels != IGNORE_INDEX).sum().clamp(min=1).to(total.device)
    return total / torch.as_tensor(num_items_in_batch, device=total.device)


def cross_entropy_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    num_items_in_batch: int | torch.Tensor | None = None,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """Cross-entropy summed over the tokens that are not `-100`, divided by their number.

    Args:
        logits: `(batch, length, vocab)`.
        labels: `(batch, length)`, -100 for ignored tokens.
        num_items_in_batch: divisor, see [`mean_of_counted`].
        z_loss: see [`token_losses`].
        label_smoothing: see [`token_losses`].

    Returns:
        Scalar in at least float32; 0 if all tokens are ignored and there is no divisor.
    """
    labels = labels.to(logits.device)
    if z_loss:
        counts = labels != IGNORE_INDEX
        losses = token_losses(logits, labels.where(counts, 0), z_loss, label_smoothing).where(counts, 0)
    else:
        losses = F.cross_entropy(
            _widened(logits).flatten(0, -2),
            labels.flatten(),
            ignore_index=IGNORE_INDEX,
            reduction="sum",
            label_smoothing=label_smoothing,
        )
    return mean_of_counted(losses, labels, num_items_in_batch)


def original_loss(
    logits: torch.Tensor,
    targets: torch.Tensor,
    z_loss: float = 1e-4,
    label_smoothing: float = 0.0,
    loss_denominator: float | None = None,
) -> torch.Tensor:
    """The training loss of the original code.

    It sums over real targets, and divides by the number of all positions of the batch, padding included. The original's
    evaluation loss is the same with `z_loss=0`. Source: `Unitransformer._compute_loss` in
    mesh_tensorflow/transformer/transformer.py.

    Args:
        logits: `(batch, length, vocab)`.
        targets: `(batch, length)`, 0 at padding; ids below 0, such as -100, are ignored, too.
        z_loss: weight of the squared log-normalizer.
        label_smoothing: share of the target distribution that is uniform over the vocabulary.
        loss_denominator: divisor, instead of the number of positions.

    Returns:
        Scalar in at least float32.
    """
    targets = targets.to(logits.device)
    losses = token_losses(logits, targets.clamp(min=0), z_loss, label_smoothing)
    denominator = targets.numel() if loss_denominator is None else loss_denominator
    return (losses * (targets > 0)).sum() / denominator


def shift_right(
    labels: torch.Tensor, config: T5ExperimentalConfig, segment_ids: torch.Tensor | None = None
) -> torch.Tensor:
    """Decoder inputs `(batch, length)` that predict `labels`: the labels shifted right, behind the start token.

    Args:
        labels: `(batch, length)`, -100 where the loss ignores a position.
        config: has the start token and the one of padding.
        segment_ids: `(batch, length)`, packed examples; each gets a start token of its own.

    Raises:
        ValueError: the config lacks one of the tokens.
    """
    start, pad = config.decoder_start_token_id, config.pad_token_id
    if start is None or pad is None:
        raise ValueError(
            "`decoder_start_token_id` and `pad_token_id` must be set in the config to shift labels; T5 uses 0."
        )
    shifted = F.pad(labels[..., :-1], (1, 0), value=start)
    shifted = shifted.masked_fill(shifted == IGNORE_INDEX, pad)
    if segment_ids is not None:
        is_first = segment_ids != F.pad(segment_ids[..., :-1], (1, 0), value=-1)
        shifted = shifted.masked_fill(is_first, start)
    return shifted
