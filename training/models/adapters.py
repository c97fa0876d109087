# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""peft adapters for all families: low-rank matrices (LoRA), and prompts before the input.

peft has a list of layers per model type, and guesses the size of a prompt; here, both are given explicitly. Its prefix
tuning is not supported: it gives all layers keys of one width, but narrow first layers have a different one.
"""

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ..errors import TrainingError, in_a_line


if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel, PromptTuningConfig


LORA_TARGETS = ("q", "v")
"""Default layers for LoRA: those of the paper (https://arxiv.org/abs/2106.09685, table 5), and of peft's list for
T5."""


def import_peft() -> Any:
    """The package `peft`, which the extra of that name installs.

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
    """Names of the layers that LoRA can adapt: all linear layers of encoder and decoder.

    Talking heads' mixing matrices and the position bias are not linear layers. The classifier over the vocabulary is
    left out, since its adapter would be larger than all others together.
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

    The scale of an adapter does not depend on its rank (alpha is the rank, as in section 4.1 of the paper), so another
    rank needs no other learning rate. The second matrix is initialized with zeros: an optimizer that scales updates by
    the size of a parameter, such as Adafactor with parameter scaling, hardly moves it.

    Args:
        model: encoder-decoder, without adapters.
        rank: of the matrices.
        targets: names of the layers, see [`lora_targets`]; they apply to both stacks.
        dropout: of the adapters' input in training.

    Raises:
        TrainingError: peft is not installed, the rank is not positive, or a layer does not exist.
    """
    peft = import_peft()
    if rank < 1:
        raise TrainingError(f"--lora_rank is {rank}: it must be at least 1.")
    known = lora_targets(model)
    if unknown := sorted(set(targets) - set(known)):
        raise TrainingError(
            f"LoRA cannot adapt {', '.join(unknown)}: the linear layers of this model are {', '.join(known)}."
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
    """Configuration of a prompt of `length` rows of `width` (`d_model`) before the encoder's input.

    Raises:
        TrainingError: peft is not installed.
    """
    peft = import_peft()
    return peft.PromptTuningConfig(
        task_type=peft.TaskType.SEQ_2_SEQ_LM,
        num_virtual_tokens=length,
        token_dim=width,
        # With two submodules, peft would train and save as many rows for the decoder, and never use them.
        num_transformer_submodules=1,
    )


def add_prompt(model: PreTrainedModel, rows: torch.Tensor) -> "PeftModel":
    """Freezes the model and adds a trainable prompt before its input; peft saves the prompt alone.

    The rows of the prompt are the encoder's first positions: the relative position bias counts from them, and all
    positions see them. So it is in the original (`prefix_prompt` and `create_prompt_encoder_mask` of
    google-research/prompt-tuning).

    Pass the attention mask of padded inputs to `generate`: peft passes embeddings on, which do not reveal padding.

    Args:
        model: for conditional generation; its parameters are frozen in place.
        rows: `(length, d_model)`, initial values of the prompt.

    Raises:
        TrainingError: peft is not installed.
    """
    adapted = import_peft().get_peft_model(model, prompt_config(*rows.shape))
    with torch.no_grad():
        adapted.prompt_encoder[adapted.active_adapter].embedding.weight.copy_(rows)
    return adapted


def load_adapter(
    model: PreTrainedModel, folder: str, trains: bool = False, dropout: float | None = None
) -> "PeftModel":
    """A model with an adapter of a folder, LoRA or a prompt, for evaluation, or to train it further.

    Args:
        model: without adapters.
        folder: of the adapter.
        trains: the adapter is trained further.
        dropout: of the input of LoRA in training, instead of the adapter's own.

    Raises:
        TrainingError: peft is not installed, or the adapter does not fit the model.
    """
    peft = import_peft()
    try:
        config = peft.PeftConfig.from_pretrained(folder)
        if dropout is not None:
            config.lora_dropout = dropout
        return peft.PeftModel.from_pretrained(model, folder, is_trainable=trains, config=config)
    except Exception as error:  # peft and torch raise many types for weights that do not fit
        raise TrainingError(f"The adapter of {folder} does not load: {in_a_line(error)}") from error
