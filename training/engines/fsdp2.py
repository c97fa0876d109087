# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Parameters that FSDP2 shards by rows: means over them, and what needs the full tensors.

Such a parameter is torch's `DTensor`: it has the shape of the full tensor, and operations on it return results for the
full tensor while each process computes its own rows. Sums over rows and norms are all-reduced, a few values at a time.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, cast

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.fsdp import StateDictType
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from transformers import PreTrainedModel

from ..errors import TrainingError


# Attributes that FSDP1 and DeepSpeed's ZeRO-3 set on parameters that they have sharded.
_MARK_OF_ZERO3 = "ds_id"
_MARKS_OF_PARTS = ("_fsdp_flattened", _MARK_OF_ZERO3)


def share_embedding(model: PreTrainedModel) -> None:
    """Replaces all input embeddings of a model by one module, and keeps one name for it in state dicts.

    FSDP gathers a parameter when its module is called, so no two modules may hold it. When torch loads FSDP's
    checkpoints, it visits a module once but expects a value for every name.
    """
    embedding = model.get_input_embeddings()
    model.set_input_embeddings(embedding)
    modules = model.named_modules(remove_duplicate=False)
    first, *others = [f"{name}.weight" for name, module in modules if module is embedding]

    def forget(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
        for name in others:
            state.pop(prefix + name, None)

    def restore(module: nn.Module, state: dict[str, Any], prefix: str, *details: Any) -> None:
        if prefix + first in state:
            state.update(dict.fromkeys((prefix + name for name in others), state[prefix + first]))

    model.register_state_dict_post_hook(forget)
    model.register_load_state_dict_pre_hook(restore)


def use_full_checkpoints(accelerator: Accelerator) -> None:
    """Makes FSDP write full checkpoints regardless of the launcher's config: peft cannot save a sharded prompt."""
    plugin = accelerator.state.fsdp_plugin
    plugin.state_dict_config = plugin.optim_state_dict_config = None  # derived from the type where they are None
    plugin.set_state_dict_type(StateDictType.FULL_STATE_DICT)


@contextmanager
def saving_full_state(accelerator: Accelerator) -> Iterator[None]:
    """Inside, the trainer saves full state dicts even if FSDP's checkpoints are sharded; else it would save none."""
    plugin = accelerator.state.fsdp_plugin if accelerator.is_fsdp2 else None
    if plugin is None:
        yield
        return
    usual, plugin.state_dict_type = plugin.state_dict_type, StateDictType.FULL_STATE_DICT
    yield
    plugin.state_dict_type = usual


def full_copy(parameter: torch.Tensor) -> torch.Tensor:
    """A full copy of a parameter on the CPU, gathered from all processes; all processes call this."""
    if isinstance(parameter, DTensor):
        return cast(DTensor, parameter.detach()).full_tensor().cpu()
    if hasattr(parameter, _MARK_OF_ZERO3):
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter]):
            return parameter.detach().cpu().clone()
    return parameter.detach().cpu().clone()


def has_prompt(model: Any) -> bool:
    """Whether peft trains a soft prompt of this model."""
    return bool(getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False))


@contextmanager
def full_prompt(model: Any) -> Iterator[None]:
    """Inside, peft finds the full prompt; all processes call this.

    It would look rows up on the saving process alone, but the other processes hold some of them.
    """
    if not has_prompt(model):
        yield
        return
    rows = {name: full_copy(encoder.embedding.weight) for name, encoder in model.prompt_encoder.items()}
    model.get_prompt_embedding_to_save = rows.__getitem__
    try:
        yield
    finally:
        del model.get_prompt_embedding_to_save  # uncovers the method of the class


def refuse_parts(parameters: Iterable[torch.Tensor]) -> None:
    """Checks that every parameter is full, or sharded by rows.

    Raises:
        TrainingError: one is not.
    """
    for parameter in parameters:
        by_rows = not isinstance(parameter, DTensor) or all(
            isinstance(placement, Replicate) or placement == Shard(0) for placement in parameter.placements
        )
        if not by_rows or any(hasattr(parameter, mark) for mark in _MARKS_OF_PARTS):
            refuse()


def refuse() -> NoReturn:
    """Raises the error for parameters that are sharded without rows and columns."""
    raise TrainingError(
        "An engine has flattened and sharded the parameters, but this optimizer takes means over their rows and "
        "columns: choose --optimizer_preset adamw, or FSDP2 (training/configs/fsdp2.yaml)."
    )


def placed_with(state: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """Moves `state` to the parameter's device, and shards it like the parameter where it has as many rows.

    Every process passes the full state, unless it is a DTensor already. State with other rows is replicated.
    """
    if not isinstance(parameter, DTensor) or isinstance(state, DTensor):
        return state.to(parameter.device)
    mesh = parameter.device_mesh
    has_rows = state.shape[0] == parameter.shape[0]
    placements = parameter.placements if has_rows else [Replicate()] * mesh.ndim
    # Each process takes its rows from its own copy. Offloaded parameters are not on the device of their mesh.
    return distribute_tensor(state, mesh, placements, src_data_rank=None).to(parameter.device)


def reshaped(values: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """`values` in another shape. If that splits rows, sharded values are replicated first: shards might not end at the
    new boundaries."""
    if isinstance(values, DTensor) and shape[0] != values.shape[0]:
        values = values.redistribute(placements=[Replicate()] * values.device_mesh.ndim)
    return values.reshape(shape)


def mean_over(values: torch.Tensor, axis: int) -> torch.Tensor:
    """Mean over an axis, keeping it with size 1."""
    total = values.sum(axis, keepdim=True)
    if isinstance(total, DTensor):
        # torch's own mean would gather unevenly sharded rows before adding them up.
        total = total.redistribute(
            placements=[Replicate() if place.is_partial() else place for place in total.placements]
        )
    return total.div_(values.shape[axis])


def root_mean_square(values: torch.Tensor) -> torch.Tensor:
    """A scalar tensor, the same on all processes; computing it does not synchronize with the device."""
    norm = torch.linalg.vector_norm(values)
    return (norm.full_tensor() if isinstance(norm, DTensor) else norm) / math.sqrt(values.numel())
