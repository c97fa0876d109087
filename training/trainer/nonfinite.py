# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Where a run first met a number that is none: kept on the device, so that no step has to wait for it."""

import math
from collections.abc import Iterable, Sequence

import torch
from accelerate import Accelerator
from torch.distributed.tensor import DTensor

from ..engines.hooks import NEVER
from ..engines.xla import as_input


_NAMED = 3  # tensors of a complaint that are named; the others are counted


def non_finite(tensors: Iterable[torch.Tensor | None], device: torch.device) -> torch.Tensor:
    """Which of the tensors hold an infinity or something that is not a number, as `(tensors,)` of bool on `device`.

    What is missing or empty holds none. Where engines cut tensors up, every process looks at its own part: FSDP keeps
    that inside a distributed tensor.
    """
    parts = [part.to_local() if isinstance(part, DTensor) else part for part in tensors]
    whole = {place: part.detach() for place, part in enumerate(parts) if part is not None and part.numel()}
    bad = torch.zeros(len(parts), dtype=torch.bool, device=device)
    if whole:
        # The largest absolute value is not finite exactly if one value is not; many tensors in few kernels.
        largest = torch._foreach_norm(list(whole.values()), math.inf)
        bad[list(whole)] = ~torch.stack([value.to(device) for value in largest]).isfinite()
    return bad


def named(names: Sequence[str], bad: torch.Tensor) -> str:
    """The names where `bad` `(names,)` is true, as text; all but the first few are only counted."""
    chosen = [name for name, is_bad in zip(names, bad.tolist(), strict=True) if is_bad]
    more = f" and {len(chosen) - _NAMED} more of {len(names)}" if len(chosen) > _NAMED else ""
    return ", ".join(chosen[:_NAMED]) + more


class FirstNonFinite:
    """The first step with a non-finite loss or gradient, and what it was that was not finite then.

    Args:
        names: of all parameters, in the order in which [`look`] gets their gradients.
        device: where the losses are.
    """

    def __init__(self, names: Sequence[str], device: torch.device):
        self._names = tuple(names)
        self._step = torch.tensor(NEVER, device=device)
        self._loss = torch.tensor(False, device=device)
        self._gradients = torch.zeros(len(names), dtype=torch.bool, device=device)

    def look(self, step: int, loss: torch.Tensor, gradients: Iterable[torch.Tensor | None] | None = None) -> None:
        """Takes note of a loss, a scalar, and of gradients, before they are clipped, in step number `step`, from 1.

        A step may be looked at several times, as for each of the batches that it accumulates. Reads nothing back from
        the device.
        """
        bad_loss = ~torch.isfinite(loss.to(self._loss.device))
        bad = self._gradients if gradients is None else non_finite(gradients, self._gradients.device)
        now = bad_loss if gradients is None else bad_loss | bad.any()
        this = as_input(step, self._step.device)
        is_first = now & (self._step >= this)
        self._step = torch.where(is_first, this, self._step)
        self._loss = torch.where(is_first, self._loss | bad_loss, self._loss)
        if gradients is not None:
            self._gradients = torch.where(is_first, bad, self._gradients)

    def all_finite(self) -> torch.Tensor:
        """Whether nothing was found, a scalar on the device."""
        return self._step == NEVER

    def describe(self, accelerator: Accelerator) -> str | None:
        """What the first of the processes to find something found, or None; all processes call this."""
        records = accelerator.gather(
            torch.cat([self._step.reshape(1), self._loss.reshape(1).long(), self._gradients.long()])[None]
        )
        step = records[:, 0].min()
        if step == NEVER:
            return None
        at_first = records[records[:, 0] == step].amax(0).cpu()
        loss, gradients = bool(at_first[1]), at_first[2:].bool()
        what = ["the loss"] if loss else []
        if gradients.any():
            what.append(f"the gradients of {named(self._names, gradients)}")
        return f"In step {step.item()}, {' and '.join(what)} became infinite or NaN"
