# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Weights for FSDP2: each process reads only its own shard of the safetensors files.

Otherwise every process would load the full model into host memory before accelerate shards it: 45 GB for t5.1.1.xxl,
times the number of GPUs. Here the model is created on the meta device, sharded as accelerate shards it, and filled by
torch's reader of distributed checkpoints, which reads slices of the files. It reads with `pread`: torch would map the
files, and the kernel kills a process that touches a mapped page of a truncated file. DeepSpeed's ZeRO-3 needs none of
this: transformers loads for it on the first process alone, from mapped files, and shards module by module.
"""

from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed.checkpoint as dcp
from accelerate import Accelerator
from accelerate.utils.fsdp_utils import fsdp2_apply_ac, fsdp2_canonicalize_names, fsdp2_prepare_model
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.distributed.checkpoint import HuggingFaceStorageReader
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.fsdp import CPUOffloadPolicy
from torch.futures import Future
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from ..errors import TrainingError, in_a_line
from .engine import Engine


class PartsReader(HuggingFaceStorageReader):
    """torch's reader of a model's safetensors files, with `pread` instead of memory maps."""

    def read_metadata(self) -> Metadata:
        tensors: dict[str, Any] = {}
        self._paths: dict[str, str] = {}
        for path in sorted(Path(self.path).glob("*.safetensors")):
            with opened(path) as file:
                for name in file.keys():  # noqa: SIM118 - not a dictionary
                    part = file.get_slice(name)
                    size = torch.Size(part.get_shape())
                    # An empty slice knows the dtype without reading a byte.
                    dtype = part[:0].dtype if size else file.get_tensor(name).dtype
                    chunk = ChunkStorageMetadata(torch.Size([0] * len(size)), size)
                    tensors[name] = TensorStorageMetadata(TensorProperties(dtype=dtype), size, [chunk])
                    self._paths[name] = str(path)
        places = {MetadataIndex(name, torch.Size([0] * len(found.size))): name for name, found in tensors.items()}
        return Metadata(tensors, storage_data=places, storage_meta=StorageMeta(load_id=self.load_id))

    def read_data(self, plan: dcp.LoadPlan, planner: dcp.LoadPlanner) -> Future[None]:
        wanted: dict[str, list[ReadItem]] = {}
        for item in plan.items:
            wanted.setdefault(self._paths[item.storage_index.fqn], []).append(item)
        for path, items in wanted.items():
            with opened(path) as file:
                for item in items:
                    target = planner.resolve_tensor(item).detach()
                    target.copy_(_part(file, item).reshape(target.shape))
                    planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done


def _part(file: Any, item: ReadItem) -> torch.Tensor:
    name = item.storage_index.fqn
    if not item.lengths:
        return cast(torch.Tensor, file.get_tensor(name))
    begins = zip(item.storage_offsets, item.lengths, strict=True)
    return cast(torch.Tensor, file.get_slice(name)[tuple(slice(begin, begin + length) for begin, length in begins)])


def opened(path: str | Path) -> Any:
    """A safetensors file opened so that truncation raises an error instead of killing the process."""
    return safe_open(path, "pt", backend="pread")


def reads_in_parts(engine: Engine, folder: str) -> bool:
    """Whether each process can read only its own shard of the weights in a model's folder.

    torch's reader takes all safetensors files of a folder, so the folder must not contain any others.
    """
    if not engine.reads_in_parts:
        return False
    names = {path.name for path in Path(folder).glob("*.safetensors")}
    return names == {SAFE_WEIGHTS_NAME} or (SAFE_WEIGHTS_NAME not in names and _has_index(folder) and bool(names))


def _has_index(folder: str) -> bool:
    return (Path(folder) / SAFE_WEIGHTS_INDEX_NAME).is_file()


def is_empty(model: nn.Module) -> bool:
    """Whether a model is still on the meta device."""
    return any(parameter.is_meta for parameter in model.parameters())


def shard_and_load(model: nn.Module, folder: str, accelerator: Accelerator) -> None:
    """Shards a model on the meta device and reads its weights, each process its own shard; all processes call this.

    Call this before the optimizer is created: accelerate, which would shard the model later, identifies parameters by
    their address in memory, which those on the meta device do not have.

    Args:
        model: with all parameters on the meta device.
        folder: of the model.
        accelerator: with a plugin for FSDP2; it will leave the model as it is when it prepares it.

    Raises:
            TrainingError: the files lack a weight, or have one of a different shape.
    """
    plugin = accelerator.state.fsdp_plugin
    plugin.set_auto_wrap_policy(model)
    if plugin.activation_checkpointing:
        fsdp2_apply_ac(accelerator, model)
        plugin.activation_checkpointing = False  # accelerate would apply it again
    plugin.cpu_ram_efficient_loading = False  # nothing is left to broadcast
    fsdp2_prepare_model(accelerator, model)
    is_offloaded = isinstance(plugin.cpu_offload, CPUOffloadPolicy)
    model.to_empty(device="cpu" if is_offloaded else accelerator.device)
    cast(Any, model).tie_weights()
    weights = fsdp2_canonicalize_names(dict(model.named_parameters()))  # each once, under its name in the files
    try:
        dcp.load(weights, storage_reader=PartsReader(folder))
    except (dcp.CheckpointException, SafetensorError, OSError, RuntimeError, ValueError) as error:
        # torch's own message contains a traceback of every process.
        causes = error.failures.values() if isinstance(error, dcp.CheckpointException) else ()
        reason = in_a_line(next((cause for cause, _ in causes), error))
        raise TrainingError(f"The weights of {folder} do not load: {reason}") from error
