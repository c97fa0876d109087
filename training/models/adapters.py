# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Adapters of peft, for every family: low-rank matrices beside the weights (LoRA), and a prompt before the input.

peft knows the layers of the model types on a list of its own, and the size of a prompt by guessing; both are said here.
Its prefix tuning is left out: it gives all layers keys of one width, which the first layers narrow do not have.
"""

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ..errors import TrainingError


if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel, PromptTuningConfig


LORA_TARGETS = ("q", "v")
"""Layers that LoRA goes beside unless others are named: those of the paper (https://arxiv.org/abs/2106.09685, table 5),
and of peft's own list for T5."""


def import_peft() -> Any:
    """The package `peft`, which the extra of that name brings.

    Raises:
        TrainingError: it is not installed.
    """
    try:
        return importlib.import_module("peft")
    except ImportError as error:
        raise TrainingError(
            f'Adapters need the package peft, which does not load ({error}): pip install "t5-experimental[peft]".'
        ) from error


def lora_targets(model: PreTrainedModel) -> tuple[str, ...]:
    """Names of the layers that LoRA can go beside: all linear ones of encoder and decoder.

    The few numbers with which talking heads mix their heads are no linear layer, nor is the position bias; the
    classifier over the vocabulary is left out, since its adapter would be larger than all others together.
    """
    names = {
        name.rpartition(".")[2]
        for stack in (model.get_submodule("encoder"), model.get_submodule("decoder"))
        for name, module in stack.named_modules()
        if isinstance(module, nn.Linear)
    }
    return tuple(sorted(names))


def lora_config(
    model: PreTrainedModel, rank: int, targets: Sequence[str] = LORA_TARGETS, dropout: float = 0.0
) -> "LoraConfig":
    """Configuration of low-rank adapters for peft's `get_peft_model`.

    The adapter's product counts once whatever its rank (alpha is the rank, as in the paper's section 4.1), so that
    another rank needs no other learning rate. Its second matrix begins at zero: an optimizer that scales its steps by
    the size of a parameter, as Adafactor with parameter scaling, hardly moves it.

    Args:
        model: encoder and decoder, not adapted yet.
        rank: of the matrices.
        targets: names of the layers, see [`lora_targets`]; they hold for both stacks.
        dropout: of the adapters' input while training.

    Raises:
        TrainingError: peft is not installed, the rank is not positive, or there is no such layer.
    """
    peft = import_peft()
    if rank < 1:
        raise TrainingError(f"--lora_rank is {rank}: it must be at least 1.")
    known = lora_targets(model)
    if unknown := sorted(set(targets) - set(known)):
        raise TrainingError(
            f"LoRA cannot go beside {', '.join(unknown)}: the linear layers of this model are {', '.join(known)}."
        )
    return peft.LoraConfig(
        task_type=peft.TaskType.SEQ_2_SEQ_LM,
        r=rank,
        lora_alpha=rank,
        lora_dropout=dropout,
        target_modules=list(targets),
        bias="none",
    )


def prompt_config(length: int, width: int) -> "PromptTuningConfig":
    """Configuration of a prompt of `length` rows in front of the encoder's input, `width` (`d_model`) numbers each.

    Raises:
        TrainingError: peft is not installed.
    """
    peft = import_peft()
    return peft.PromptTuningConfig(
        task_type=peft.TaskType.SEQ_2_SEQ_LM,
        num_virtual_tokens=length,
        token_dim=width,
        # For two submodules peft trains and saves as many rows again, for the decoder, and never uses them.
        num_transformer_submodules=1,
    )


def add_prompt(model: PreTrainedModel, rows: torch.Tensor) -> "PeftModel":
    """The model, frozen, with a prompt before its input that is trained; peft saves the prompt alone.

    The encoder sees the prompt's rows in front of the embedded input, as its first positions: the relative position
    bias counts from them on, and the mask lets all positions see them. So does the original (`prefix_prompt` and
    `create_prompt_encoder_mask` of google-research/prompt-tuning).

    Give `generate` the attention mask of padded inputs: peft passes embeddings on, in which padding can no longer be
    told from text.

    Args:
        model: for conditional generation; its parameters are frozen in place.
        rows: `(length, d_model)`, what the prompt begins with.

    Raises:
        TrainingError: peft is not installed.
    """
    adapted = import_peft().get_peft_model(model, prompt_config(*rows.shape))
    with torch.no_grad():
        adapted.prompt_encoder[adapted.active_adapter].embedding.weight.copy_(rows)
    return adapted
