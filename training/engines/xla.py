# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Training through torch_xla (TPUs): fixed shapes, and programs that end at steps.

XLA compiles the operations between two marks into one program, and compiles again for each new combination of shapes.
So batches are padded to one shape, and texts are generated into buffers of a fixed length. Everything here is unused or
a no-op on other devices.
"""

import multiprocessing
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
import transformers.trainer
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, TrainerCallback
from transformers.cache_utils import DynamicCache, EncoderDecoderCache, StaticCache

from t5_experimental.loss_t5_experimental import IGNORE_INDEX

from ..errors import TrainingError


# Tokens between two checks whether all texts have ended; each check waits for the device.
_TOKENS_BETWEEN_CHECKS = 16


def is_xla(device: torch.device) -> bool:
    """Whether steps on the device are compiled by XLA."""
    return device.type == "xla"


def mark_step() -> None:
    """Ends a program: what was recorded is compiled, if it is new, and started, without waiting for it."""
    import torch_xla

    torch_xla.sync()


def as_input(number: int, device: torch.device) -> torch.Tensor:
    """An integer that changes in every step, as a scalar on the device.

    XLA merges equal scalars of a step into one input, so a counter needs a new program whenever it equals a constant;
    it does not merge vectors. On other devices, copying the integer would wait for the device.
    """
    return torch.tensor([number]).to(device)[0] if is_xla(device) else torch.full((), number, device=device)


# SPMD: one process drives all devices, and XLA shards each step among them. It propagates the sharding of tensors that
# have one, so sharding batches by examples, and weights and optimizer state by rows, amounts to FSDP: XLA gathers the
# weights that a device needs, and reduces gradients where they belong.


def enable_spmd() -> None:
    """Makes all devices compute every step together from now on.

    Raises:
        TrainingError: the launcher started one process per device.
    """
    if multiprocessing.parent_process() is not None:
        raise TrainingError(
            "--xla_spmd drives all devices from one process, but the launcher's config asks for one process per "
            "device: start with training/configs/single.yaml."
        )
    import numpy as np
    import torch_xla.distributed.spmd as spmd
    import torch_xla.runtime as runtime

    runtime.use_spmd()
    devices = runtime.global_runtime_device_count()
    spmd.set_global_mesh(spmd.Mesh(np.arange(devices), (devices,), ("rows",)))


def spmd_devices() -> int:
    """How many devices compute each step of this process together."""
    import torch_xla.runtime as runtime

    return runtime.global_runtime_device_count() if runtime.is_spmd() else 1


def shard_rows(tensor: torch.Tensor) -> None:
    """Shards a tensor by rows among the devices; its updated values inherit that."""
    import torch_xla.distributed.spmd as spmd

    spmd.mark_sharding(tensor, spmd.get_global_mesh(), ("rows", *[None] * (tensor.dim() - 1)))


def rows_held(tensor: torch.Tensor) -> int:
    """How many rows of a tensor each device holds; XLA pads uneven shards."""
    import torch_xla

    spec = torch_xla._XLAC._get_xla_sharding_spec(tensor)
    return -(-tensor.shape[0] // spmd_devices()) if "devices=[" in spec else tensor.shape[0]


class ShardCallback(TrainerCallback):
    """Shards weights and optimizer state, which may come from a checkpoint."""

    def on_train_begin(self, *unused: Any, model: Any = None, optimizer: Any = None, **more: Any) -> None:
        while hasattr(optimizer, "optimizer"):
            optimizer = optimizer.optimizer
        for parameter in model.parameters():
            shard_rows(parameter)
            for value in optimizer.state.get(parameter, {}).values():
                if torch.is_tensor(value) and value.dim() and value.shape[0] == parameter.shape[0]:
                    shard_rows(value)


class StepBoundaries(TrainerCallback):
    """Ends a program after each batch."""

    def on_step_end(self, *unused: Any, **also_unused: Any) -> None:
        mark_step()

    def on_substep_end(self, *unused: Any, **also_unused: Any) -> None:
        mark_step()


class FixedShapes:
    """A collator whose batches all have one shape.

    Padding does not affect results: the mask hides it, and its labels are ignored.

    Args:
        collate: makes the batch.
        rows: of every batch.
        lengths: of every row, by name of the tensor; tensors without a name here have a fixed length already.
        pad_token_id: of the tokenizer.
    """

    def __init__(self, collate: Callable[[list], Any], rows: int, lengths: Mapping[str, int], pad_token_id: int):
        self._collate, self._rows, self._lengths = collate, rows, lengths
        self._values = {"labels": IGNORE_INDEX, "input_ids": pad_token_id, "decoder_input_ids": pad_token_id}

    def __call__(self, features: list) -> dict[str, Any]:
        return {
            name: values if values is None else self._filled(name, values)
            for name, values in self._collate(features).items()
        }

    def _filled(self, name: str, values: torch.Tensor) -> torch.Tensor:
        rows, length = values.shape
        more = (0, self._lengths.get(name, length) - length, 0, self._rows - rows)
        return F.pad(values, more, value=self._values.get(name, 0))


class PlainLoader:
    """The loader inside accelerate's loader for XLA.

    accelerate's loader prefetches in threads, and its `end_of_dataloader` reflects the thread's progress: evaluation
    would truncate earlier batches to the size of the last one. It also ends a program with each batch, which would
    change random numbers. Prefetching saves little, since programs run while Python records the next one.

    Args:
        loader: accelerate's.
        device: where it sends batches.
    """

    def __init__(self, loader: DataLoader, device: torch.device):
        self.dataloader, self.device = cast(Any, loader).dataloader, device
        self.dataloader.rng_types = cast(Any, loader)._rng_types  # accelerate moved it out for its threads

    def __getattr__(self, name: str) -> Any:
        return getattr(self.dataloader, name)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.dataloader)

    def __len__(self) -> int:
        return len(self.dataloader)


@contextmanager
def skipping_plainly() -> Iterator[None]:
    """Inside, what transformers leaves of an epoch after skipping batches is a [`PlainLoader`], too."""
    usual = transformers.trainer.skip_first_batches

    def skip(loader: PlainLoader, batches: int) -> PlainLoader:
        return PlainLoader(usual(loader, batches), loader.device)

    transformers.trainer.skip_first_batches = skip
    try:
        yield
    finally:
        transformers.trainer.skip_first_batches = usual


@torch.no_grad()
def generate_greedily(
    model: PreTrainedModel, input_ids: torch.Tensor, generation_config: Any, **model_kwargs: Any
) -> torch.Tensor:
    """Greedy search in steps of one shape, for `generate(custom_generate=...)`: a few programs for each input shape.
    Transformers' own search, whose tensors grow, needs a program for every token.

    Args:
        model: encoder-decoder.
        input_ids: `(b, 1)`, the start token.
        generation_config: has the maximum length and the tokens that end a text.
        model_kwargs: what `generate` has prepared: `encoder_outputs`, and `attention_mask` `(b, m)` of the encoder's
            inputs. As named parameters, transformers would not pass them to the encoder.

    Returns:
        `(b, max_length)`, with the start token first, and padding after the token that ends a text.
    """
    encoder = {name: model_kwargs.get(name) for name in ("encoder_outputs", "attention_mask")}
    length, pad = generation_config.max_length, generation_config.pad_token_id
    places = torch.arange(length, device=input_ids.device)
    place = torch.zeros_like(places[0])
    ends = torch.as_tensor(generation_config.eos_token_id, device=input_ids.device).reshape(1, -1)
    finished = torch.zeros_like(input_ids, dtype=torch.bool)
    tokens, texts = input_ids, torch.where(places == 0, input_ids, pad)
    cache = EncoderDecoderCache(StaticCache(model.config, max_cache_len=length), DynamicCache())
    for count in range(1, length):
        outputs = model(decoder_input_ids=tokens, past_key_values=cache, use_cache=True, **encoder)
        tokens = torch.where(finished, pad, outputs.logits[:, -1].argmax(-1, keepdim=True))
        finished = finished | (tokens == ends).any(-1, keepdim=True)
        place = place + 1
        texts = torch.where(places == place, tokens, texts)
        mark_step()
        if count % _TOKENS_BETWEEN_CHECKS == 0 and bool(finished.all()):
            break
    return texts
