# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""What a trainer does differently on some devices: one object per device, whose methods do nothing on most of them."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader
from transformers import TrainerCallback

from ..errors import TrainingError
from .xla import (
    FixedShapes,
    PlainLoader,
    ShardCallback,
    StepBoundaries,
    generate_greedily,
    is_xla,
    rows_held,
    shard_rows,
    skipping_plainly,
    spmd_devices,
)


NEVER = 2**40
"""More steps than any run has."""


class DeviceHooks:
    """The hooks of CPUs and CUDA devices, which need nothing special.

    Args:
        device: the device that the run computes on.

    Attributes:
        adamw: arguments of `torch.optim.AdamW` that suit the device.
        generation: arguments of `generate` that suit the device.
        holder: what holds parameters, for messages.
    """

    adamw: Mapping[str, Any] = {"fused": True}
    generation: Mapping[str, Any] = {}
    holder = "this process"

    def __init__(self, device: torch.device):
        self.device = device

    def callbacks(self) -> list[TrainerCallback]:
        """Callbacks that the trainer needs."""
        return []

    def prepare_collator(
        self, collate: Callable[[list], Any], rows: int, lengths: Mapping[str, int], tokenizer: Any
    ) -> Callable[[list], Any]:
        """The collator of a loader whose batches have at most `rows` rows; `lengths` limits each tensor by name."""
        return collate

    def prepare_loader(self, loader: DataLoader) -> DataLoader:
        """The loader, after accelerate has prepared it."""
        return loader

    def skipping_batches(self) -> AbstractContextManager[None]:
        """Wraps an epoch, where transformers may skip the first batches."""
        return nullcontext()

    def prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """A batch on the device."""
        return inputs

    def save_random_state(self) -> None:
        """Notes the random state that a checkpoint is about to record."""

    def restore_random_state(self) -> None:
        """Returns to the state that the last checkpoint recorded, if writing it has changed the state."""

    def steps_between_checks(self, processes: int) -> int:
        """Steps after which the trainer looks for non-finite values, besides at logs and saves: 1 where that is free.

        Elsewhere a look waits for the device or for other processes.
        """
        return 1 if self.device.type == "cpu" and processes == 1 else 10

    def check_search(self, beams: int | None) -> None:
        """Refuses a `--generation_num_beams` that the device does not support.

        Raises:
            TrainingError: it does not.
        """

    def local_bytes(self, tensor: torch.Tensor) -> int:
        """Bytes of a tensor that this process holds; with SPMD, each of its devices."""
        local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        return local.numel() * local.element_size()


class XLAHooks(DeviceHooks):
    """Training through torch_xla, see [`~t5_experimental.training.engines.xla`]."""

    # XLA has no fused kernel; with its step on the device, AdamW does not need a new program in each step.
    adamw = {"fused": False, "capturable": True}
    generation = {"custom_generate": generate_greedily}
    holder = "each device"

    def __init__(self, device: torch.device):
        super().__init__(device)
        self._is_spmd = spmd_devices() > 1
        self._random_state: Any = None

    def callbacks(self) -> list[TrainerCallback]:
        return [*([ShardCallback()] if self._is_spmd else []), StepBoundaries()]

    def prepare_collator(
        self, collate: Callable[[list], Any], rows: int, lengths: Mapping[str, int], tokenizer: Any
    ) -> Callable[[list], Any]:
        return FixedShapes(collate, rows, lengths, tokenizer.pad_token_id)

    def prepare_loader(self, loader: DataLoader) -> Any:
        return PlainLoader(loader, self.device)

    def skipping_batches(self) -> AbstractContextManager[None]:
        return skipping_plainly()

    def prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        if self._is_spmd:
            for values in inputs.values():
                if isinstance(values, torch.Tensor) and values.dim():
                    shard_rows(values)
        return inputs

    # XLA's random state changes at the end of every program, so also while a checkpoint is written. The run that wrote
    # it must continue from the state in it, as a run that resumes from it does.

    def save_random_state(self) -> None:
        import torch_xla.core.xla_model as xla_model

        self._random_state = xla_model.get_rng_state()

    def restore_random_state(self) -> None:
        if self._random_state is not None:
            import torch_xla.core.xla_model as xla_model

            xla_model.set_rng_state(self._random_state)
            self._random_state = None

    def steps_between_checks(self, processes: int) -> int:
        return NEVER  # each check needs a program of its own

    def check_search(self, beams: int | None) -> None:
        if beams is not None and beams > 1:
            raise TrainingError(
                f"--generation_num_beams {beams} does not work through torch_xla, which only runs greedy search: leave "
                "it out, and evaluate the saved model elsewhere."
            )

    def local_bytes(self, tensor: torch.Tensor) -> int:
        if not tensor.dim():
            return super().local_bytes(tensor)
        return rows_held(tensor) * tensor[0].numel() * tensor.element_size()


def hooks_for(device: torch.device) -> DeviceHooks:
    """The hooks of a device."""
    return XLAHooks(device) if is_xla(device) else DeviceHooks(device)
