# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""How many bytes of a model and its optimizer each process holds."""

from collections.abc import Iterator
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .hooks import hooks_for


def parameter_bytes(model: torch.nn.Module) -> tuple[int, int]:
    """Bytes of a model's parameters: those that this process (with XLA, each of its devices) holds, and the total.

    Small parameters, which DeepSpeed's ZeRO-3 does not shard again once it has gathered them, count twice: their shard
    is a separate tensor.
    """
    held = whole = 0
    for parameter in model.parameters():
        whole += getattr(parameter, "ds_numel", parameter.numel()) * parameter.element_size()
        for part in (parameter, getattr(parameter, "ds_tensor", None)):
            held += 0 if part is None else hooks_for(part.device).local_bytes(part)
    return held, whole


def optimizer_bytes(optimizer: Any) -> int:
    """Bytes of optimizer state that this process holds, without the copies of parameters that some engines keep."""
    while not isinstance(state := getattr(optimizer, "state", None), dict) or hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return sum(hooks_for(value.device).local_bytes(value) for value in _tensors(state))


def _tensors(values: dict[Any, Any]) -> Iterator[torch.Tensor]:
    for value in values.values():
        if isinstance(value, dict):
            yield from _tensors(value)
        elif isinstance(value, torch.Tensor):
            yield value


class SayPartsCallback(TrainerCallback):
    """Prints how much of the model the first process holds, once the engine has prepared it."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **unused: Any
    ) -> None:
        if state.is_world_process_zero:
            held, whole = parameter_bytes(model)
            who = hooks_for(next(model.parameters()).device).holder
            print(f"{'parts':<11} {who} holds {held:,} of {whole:,} bytes of parameters", flush=True)
