# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Parameters that FSDP2 has spread over processes, row by row: means over them, and what needs whole
ones.

Such a parameter is torch's `DTensor`: it has the shape of the whole, and what is computed of it is computed of the
whole, each process doing its rows. Sums over rows and norms are added up among the processes, a few numbers at a time.
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


# What FSDP1 and DeepSpeed's ZeRO-3 leave on parameters that they have cut up.
_MARK_OF_ZERO3 = "ds_id"
_MARKS_OF_PARTS = ("_fsdp_flattened", _MARK_OF_ZERO3)


def share_embedding(model: PreTrainedModel) -> None:
    """Makes one module of those that hold a model's input embedding, and leaves one name for it in state dicts.

    FSDP gathers a parameter when its module is called, and must not find it in two. And where torch loads FSDP's
    checkpoints it visits a module once, but expects a value for every name.
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


def keep_checkpoints_whole(accelerator: Accelerator) -> None:
    """FSDP's checkpoints are in one piece whatever the launcher was told: peft makes and takes no parts of a prompt."""
    plugin = accelerator.state.fsdp_plugin
    plugin.state_dict_config = plugin.optim_state_dict_config = None  # both follow from the type where they are None
    plugin.set_state_dict_type(StateDictType.FULL_STATE_DICT)


@contextmanager
def saving_whole(accelerator: Accelerator) -> Iterator[None]:
    """The trainer saves a model in one piece meanwhile, even if FSDP's checkpoints are in parts; it would save none."""
    plugin = accelerator.state.fsdp_plugin if accelerator.is_fsdp2 else None
    if plugin is None:
        yield
        return
    usual, plugin.state_dict_type = plugin.state_dict_type, StateDictType.FULL_STATE_DICT
    yield
    plugin.state_dict_type = usual


def whole(parameter: torch.Tensor) -> torch.Tensor:
    """A copy of a parameter on the CPU, put together from the rows of all processes; all processes call this."""
    if isinstance(parameter, DTensor):
        return cast(DTensor, parameter.detach()).full_tensor().cpu()
    if hasattr(parameter, _MARK_OF_ZERO3):
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter]):
            return parameter.detach().cpu().clone()
    return parameter.detach().cpu().clone()


def has_prompt(model: Any) -> bool:
    """Whether what is trained of a model are peft's rows in front of its input."""
    return bool(getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False))


@contextmanager
def whole_prompt(model: Any) -> Iterator[None]:
    """peft finds a prompt as a whole meanwhile; all processes call this.

    It would look its rows up on the process that saves alone, while the others hold some of them.
    """
    if not has_prompt(model):
        yield
        return
    rows = {name: whole(encoder.embedding.weight) for name, encoder in model.prompt_encoder.items()}
    model.get_prompt_embedding_to_save = rows.__getitem__
    try:
        yield
    finally:
        del model.get_prompt_embedding_to_save  # that of the class again


def refuse_parts(parameters: Iterable[torch.Tensor]) -> None:
    """Checks that every parameter is whole, or spread over processes by its rows.

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
    """Says that parameters are in parts that no mean of the whole can be taken of."""
    raise TrainingError(
        "An engine has cut the parameters into parts without rows and columns, but this optimizer takes means over "
        "these: choose --optimizer_preset adamw, or FSDP2 (training/configs/fsdp2.yaml)."
    )


def placed_with(state: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """`state`, which every process has as a whole unless it is distributed already, on the parameter's device.

    Of a parameter that is spread over processes, it is spread alike if it has as many rows, and else stays whole on
    every process.
    """
    if not isinstance(parameter, DTensor) or isinstance(state, DTensor):
        return state.to(parameter.device)
    mesh = parameter.device_mesh
    has_rows = state.shape[0] == parameter.shape[0]
    placements = parameter.placements if has_rows else [Replicate()] * mesh.ndim
    # Every process takes its rows of what it has. Offloaded parameters are not where their mesh is.
    return distribute_tensor(state, mesh, placements, src_data_rank=None).to(parameter.device)


def reshaped(values: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """`values` in another shape. If that takes rows apart, processes that have some of them get all: the parts may not
    end where they should."""
    if isinstance(values, DTensor) and shape[0] != values.shape[0]:
        values = values.redistribute(placements=[Replicate()] * values.device_mesh.ndim)
    return values.reshape(shape)


def mean_over(values: torch.Tensor, axis: int) -> torch.Tensor:
    """Mean over an axis, which stays with size 1."""
    total = values.sum(axis, keepdim=True)
    if isinstance(total, DTensor):
        # Not torch's own mean: of rows that are spread unevenly, it gathers all before it adds them up.
        total = total.redistribute(
            placements=[Replicate() if place.is_partial() else place for place in total.placements]
        )
    return total.div_(values.shape[axis])


def root_mean_square(values: torch.Tensor) -> torch.Tensor:
    """Scalar tensor, the same on all processes; nobody waits for the device to compute it."""
    norm = torch.linalg.vector_norm(values)
    return (norm.full_tensor() if isinstance(norm, DTensor) else norm) / math.sqrt(values.numel())
