# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""What training through torch_xla (TPUs) takes: equal shapes in all steps, and steps that end where they should.

XLA compiles what happens between two marks into one program, anew for every combination of shapes that it has not met.
So batches are filled up to one shape, and texts are generated into room of a fixed length. Everything here is a no-op
or unused on other devices.
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


# Tokens between two looks at whether all texts have ended: each of them waits for the device.
_TOKENS_UNATTENDED = 16


def is_xla(device: torch.device) -> bool:
    """Whether steps on the device are compiled by XLA."""
    return device.type == "xla"


def mark_step() -> None:
    """Ends a program: all that was recorded is compiled, if it is new, and started; nobody waits for it."""
    import torch_xla

    torch_xla.sync()


def as_input(number: int, device: torch.device) -> torch.Tensor:
    """A whole number that is another in every step, as a scalar on the device.

    XLA makes all equal scalars of a step one input, so that a counter takes a new program whenever it meets a constant;
    vectors it leaves apart. On other devices, sending the number would wait for the device.
    """
    return torch.tensor([number]).to(device)[0] if is_xla(device) else torch.full((), number, device=device)


# One process for all devices: XLA makes one program of a step and divides it among them (SPMD). It follows the
# divisions that some tensors are given, so that a batch divided by examples, and weights and optimizer divided by rows,
# are FSDP: XLA itself gathers what a device needs of a weight, and adds up gradients where they belong.


def spread_steps() -> None:
    """Has every step computed by all devices together, from now on.

    Raises:
        TrainingError: the process is one of those that a launcher starts for a device each.
    """
    if multiprocessing.parent_process() is not None:
        raise TrainingError(
            "--xla_spmd has one process drive all devices, and the launcher's configuration asks for one process for "
            "each: start with training/configs/single.yaml."
        )
    import numpy as np
    import torch_xla.distributed.spmd as spmd
    import torch_xla.runtime as runtime

    runtime.use_spmd()
    devices = runtime.global_runtime_device_count()
    spmd.set_global_mesh(spmd.Mesh(np.arange(devices), (devices,), ("rows",)))


def devices_of_a_step() -> int:
    """How many devices compute this process's steps together."""
    import torch_xla.runtime as runtime

    return runtime.global_runtime_device_count() if runtime.is_spmd() else 1


def spread(tensor: torch.Tensor) -> None:
    """Divides a tensor by its rows among the devices, now and in what is computed in its place."""
    import torch_xla.distributed.spmd as spmd

    spmd.mark_sharding(tensor, spmd.get_global_mesh(), ("rows", *[None] * (tensor.dim() - 1)))


def rows_held(tensor: torch.Tensor) -> int:
    """Of how many rows of a tensor each device holds; XLA fills up what does not come out even."""
    import torch_xla

    spec = torch_xla._XLAC._get_xla_sharding_spec(tensor)
    return -(-tensor.shape[0] // devices_of_a_step()) if "devices=[" in spec else tensor.shape[0]


class SpreadCallback(TrainerCallback):
    """Divides weights and the optimizer's state, which may come from a checkpoint."""

    def on_train_begin(self, *unused: Any, model: Any = None, optimizer: Any = None, **more: Any) -> None:
        while hasattr(optimizer, "optimizer"):
            optimizer = optimizer.optimizer
        for parameter in model.parameters():
            spread(parameter)
            for value in optimizer.state.get(parameter, {}).values():
                if torch.is_tensor(value) and value.dim() and value.shape[0] == parameter.shape[0]:
                    spread(value)


class RandomState:
    """What XLA's random numbers depend on, as it was when it was read.

    It changes with the end of every program, and so while a checkpoint is written: the run that has written one has to
    go on from what it wrote, as a run that resumes from the checkpoint does.
    """

    def __init__(self) -> None:
        import torch_xla.core.xla_model as xla_model

        self._state = xla_model.get_rng_state()

    def restore(self) -> None:
        """Goes back to it."""
        import torch_xla.core.xla_model as xla_model

        xla_model.set_rng_state(self._state)


class StepBoundaries(TrainerCallback):
    """Ends a program with each batch, wherever the batches come from."""

    def on_step_end(self, *unused: Any, **also_unused: Any) -> None:
        mark_step()

    def on_substep_end(self, *unused: Any, **also_unused: Any) -> None:
        mark_step()


class FixedShapes:
    """A collator whose batches all have one shape.

    What is filled in counts nowhere: it is hidden by the mask and has nothing to predict.

    Args:
        collate: makes the batch.
        rows: of every batch.
        lengths: of every row, by name of the tensor; what is not named has a fixed length already.
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
    """The loader inside the one that accelerate makes for XLA.

    accelerate's has threads that fetch batches ahead, and the state in which it says that the last batch has come is
    that of the thread: evaluation would take the batches before for the last one and cut them to its size. It also ends
    a program with each batch, and random numbers depend on how many there were. What the threads save is small, since
    programs run while Python records the next one.

    Args:
        loader: accelerate's.
        device: that it sends batches to.
    """

    def __init__(self, loader: DataLoader, device: torch.device):
        self.dataloader, self.device = cast(Any, loader).dataloader, device
        self.dataloader.rng_types = cast(Any, loader)._rng_types  # set aside for the threads' sake

    def __getattr__(self, name: str) -> Any:
        return getattr(self.dataloader, name)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.dataloader)

    def __len__(self) -> int:
        return len(self.dataloader)


@contextmanager
def skipping_plainly() -> Iterator[None]:
    """Where transformers goes on in the middle of an epoch meanwhile, what it skips batches of stays a plain loader."""
    usual = transformers.trainer.skip_first_batches

    def skip(loader: PlainLoader, batches: int) -> PlainLoader:
        return PlainLoader(usual(loader, batches), loader.device)

    transformers.trainer.skip_first_batches = skip
    try:
        yield
    finally:
        transformers.trainer.skip_first_batches = usual


def check_search(beams: int | None) -> None:
    """Refuses `--generation_num_beams`, for texts are searched greedily here.

    Raises:
        TrainingError: it is more than 1.
    """
    if beams is not None and beams > 1:
        raise TrainingError(
            f"--generation_num_beams {beams} cannot be had through torch_xla, where texts are searched greedily: leave "
            "it out, and evaluate the saved model elsewhere."
        )


@torch.no_grad()
def generate_greedily(
    model: PreTrainedModel, input_ids: torch.Tensor, generation_config: Any, **model_kwargs: Any
) -> torch.Tensor:
    """Greedy search in steps of one shape, for `generate(custom_generate=...)`: a handful of programs for each shape of
    inputs, where transformers' search, whose tensors grow, takes one for every token.

    Args:
        model: encoder and decoder.
        input_ids: `(b, 1)`, the start token.
        generation_config: says how long texts may get, and which tokens end them.
        model_kwargs: what `generate` has prepared: `encoder_outputs`, and `attention_mask` `(b, m)` of the encoder's
            inputs. By names of their own, transformers would take them away from the encoder.

    Returns:
        `(b, max_length)`, start token at the front, padding after the token that ends a text.
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
        if count % _TOKENS_UNATTENDED == 0 and bool(finished.all()):
            break
    return texts
