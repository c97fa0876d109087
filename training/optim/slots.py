# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""The original optimizer's state in a converted checkpoint, as `convert --with-optimizer` writes it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from t5_experimental.original import SLOTS_FILE, SlotsHeader

from ..errors import TrainingError


State = dict[str, torch.Tensor]


def read_slots(parameters: Mapping[str, torch.Tensor], folder: str | Path) -> tuple[int, dict[str, State]]:
    """Adafactor's states of those parameters that the file contains.

    Args:
        parameters: by their names in the folder's model; only their shapes matter.
        folder: written by `t5-experimental convert --with-optimizer`.

    Returns:
        The next training step, and states by name, in float32 on the CPU: `v` in the shape of the parameter, or `vr`
        and `vc` in that of the original's variable, with an axis of size 1 where the mean was taken.

    Raises:
        TrainingError: the file is missing, broken, or of a different model or optimizer.
    """
    path = _find(folder)
    try:
        step, states = _read(parameters, path)
    except (SafetensorError, KeyError, ValueError) as error:
        raise TrainingError(f"{path} is broken ({error!r}): convert the checkpoint again.") from error
    if not states:
        raise TrainingError(f"{path} has no state for any trained parameter: leave --optimizer_slots out.")
    return step, states


def slots_step(folder: str | Path) -> int:
    """The next training step according to the optimizer state in a converted checkpoint.

    Raises:
        TrainingError: the file is missing or broken.
    """
    path = _find(folder)
    try:
        with safe_open(path, "pt", backend="pread") as file:
            return int((file.metadata() or {})["step"])
    except (SafetensorError, KeyError, ValueError) as error:
        raise TrainingError(f"{path} is broken ({error!r}): convert the checkpoint again.") from error


def _find(folder: str | Path) -> Path:
    path = Path(folder) / SLOTS_FILE
    if not path.is_file():
        raise TrainingError(
            f"{folder} has no {SLOTS_FILE}, which holds the optimizer's state: convert the checkpoint with "
            "--with-optimizer, or leave --optimizer_slots out."
        )
    return path


def _read(parameters: Mapping[str, torch.Tensor], path: Path) -> tuple[int, dict[str, State]]:
    with safe_open(path, "pt", backend="pread") as file:
        header, slots = SlotsHeader.parse(file.metadata() or {}), set(file.keys())
        if header is None:
            raise TrainingError(f"{path} does not hold Adafactor's state: convert the checkpoint again.")
        if any(name.endswith(".m") for name in slots):
            raise TrainingError(
                f"{path} is from a run with momentum, which this Adafactor lacks: leave --optimizer_slots out."
            )
        states: dict[str, State] = {}
        for name, parameter in parameters.items():
            wanted = {f"{name}.{kind}" for kind in (("vr", "vc") if name in header.factored else ("v",))}
            if wanted <= slots:
                tensors = {slot.rpartition(".")[2]: file.get_tensor(slot) for slot in wanted}
                states[name] = _state_of_slots(name, parameter, tensors, header.factored.get(name), path)
    return header.step, states


def _state_of_slots(
    name: str, parameter: torch.Tensor, slots: Mapping[str, torch.Tensor], axes: Mapping[str, Any] | None, path: Path
) -> State:
    """State of a parameter, with axes of size 1 where means were taken."""
    if axes is None:
        shape, state = parameter.shape, dict(slots)
        expected = {"v": shape}
    else:
        shape = torch.Size(axes["shape"])
        state = {kind: slots[kind].unsqueeze(axes[axis]) for kind, axis in (("vr", "d0"), ("vc", "d1"))}
        expected = {
            kind: torch.Size([*shape[: axes[axis]], 1, *shape[axes[axis] + 1 :]])
            for kind, axis in (("vr", "d0"), ("vc", "d1"))
        }
    if shape.numel() != parameter.numel() or any(state[kind].shape != expected[kind] for kind in state):
        raise TrainingError(
            f"{path}: the state of {name} does not fit a parameter of shape {tuple(parameter.shape)}; the model is "
            "a different one, or was resized: leave --optimizer_slots out."
        )
    return {kind: tensor.float() for kind, tensor in state.items()}
