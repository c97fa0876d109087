# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Training of low-rank adapters (LoRA, https://arxiv.org/abs/2106.09685) through peft instead of all weights."""

import torch
from transformers import PreTrainedModel

from t5_experimental.training.errors import TrainingError


# All products of the layers of every family; the heads' mixing matrices of talking heads and the embeddings stay.
TARGETS = ("q", "k", "v", "o", "wi", "wi_0", "wi_1", "wo")


def add_lora(model: PreTrainedModel, rank: int, dropout_rate: float) -> torch.nn.Module:
    """The model with adapters of this rank at attention and feed-forward, all else frozen.

    What the adapters add is multiplied by 2, peft's `lora_alpha` being twice the rank.
    """
    try:
        from peft import LoraConfig, TaskType, get_peft_model
    except ImportError as error:
        raise TrainingError(
            "--lora_rank needs the package peft: install it, or this package with its extra `peft`."
        ) from error
    names = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    config = LoraConfig(
        task_type=TaskType.SEQ_2_SEQ_LM,
        r=rank,
        lora_alpha=2 * rank,
        lora_dropout=dropout_rate,
        target_modules=sorted(names & set(TARGETS)),
    )
    return get_peft_model(model, config)
