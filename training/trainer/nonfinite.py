# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""The first NaN or infinity of a run: recorded on the device, so that no step waits for it."""

import math
from collections.abc import Iterable, Sequence

import torch
from accelerate import Accelerator
from torch.distributed.tensor import DTensor

from ..engines.hooks import NEVER
from ..engines.xla import as_input


_NAMED = 3  # tensors that a message names; it counts the others


def non_finite(tensors: Iterable[torch.Tensor | None], device: torch.device) -> torch.Tensor:
    """Which of the tensors contain an infinity or NaN, as `(tensors,)` of bool on `device`.

    Missing or empty tensors do not. Where engines shard tensors, each process checks its own shard; FSDP keeps it
    inside a DTensor.
    """
    parts = [part.to_local() if isinstance(part, DTensor) else part for part in tensors]
    whole = {place: part.detach() for place, part in enumerate(parts) if part is not None and part.numel()}
    bad = torch.zeros(len(parts), dtype=torch.bool, device=device)
    if whole:
        # The largest absolute value is not finite if any value is not; this checks many tensors in few kernels.
        largest = torch._foreach_norm(list(whole.values()), math.inf)
        bad[list(whole)] = ~torch.stack([value.to(device) for value in largest]).isfinite()
    return bad


def named(names: Sequence[str], bad: torch.Tensor) -> str:
    """The names for which `bad` `(names,)` is true, as text; only the first few are listed, the others counted."""
    chosen = [name for name, is_bad in zip(names, bad.tolist(), strict=True) if is_bad]
    more = f" and {len(chosen) - _NAMED} more of {len(names)}" if len(chosen) > _NAMED else ""
    return ", ".join(chosen[:_NAMED]) + more


class FirstNonFinite:
    """The first step with a non-finite loss or gradient, and which of them were not finite.

    Args:
        names: of all parameters, in the order of their gradients in [`look`].
        device: where the losses are.
    """

    def __init__(self, names: Sequence[str], device: torch.device):
        self._names = tuple(names)
        self._step = torch.tensor(NEVER, device=device)
        self._loss = torch.tensor(False, device=device)
        self._gradients = torch.zeros(len(names), dtype=torch.bool, device=device)

    def look(self, step: int, loss: torch.Tensor, gradients: Iterable[torch.Tensor | None] | None = None) -> None:
        """Records a loss, a scalar, and gradients before clipping, of step number `step`, counted from 1.

        A step may be recorded several times, for example for each batch that it accumulates. Does not synchronize with
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
        """Whether nothing was recorded, as a scalar on the device."""
        return self._step == NEVER

    def describe(self, accelerator: Accelerator) -> str | None:
        """What the process with the earliest record found, or None; all processes call this."""
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
