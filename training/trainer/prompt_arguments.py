# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Options of prompt tuning."""

from dataclasses import dataclass, field, replace
from typing import ClassVar

from ..optim.presets import OptimizerChoice
from .finetuning_arguments import FinetuningArguments


@dataclass
class PromptTrainingArguments(FinetuningArguments):
    """How to tune: as in https://arxiv.org/abs/2104.08691 by default."""

    may_only_evaluate: ClassVar[bool] = False  # a prompt that is there already is evaluated by evaluate.py

    learning_rate: float = field(default=0.3, metadata={"help": "Learning rate; the paper's is 0.3."})
    weight_decay: float = field(
        default=1e-5, metadata={"help": "Fraction of the prompt that a step removes; the paper's is 1e-5."}
    )
    per_device_train_batch_size: int = field(
        default=32, metadata={"help": "Examples per device and step; the paper's total is 32."}
    )
    max_grad_norm: float = field(default=0.0, metadata={"help": "Gradients are clipped to this norm; 0 disables it."})
    # Not options here: a prompt stands in front of a row, and not of each example; the prompt is the adapter, and no
    # optimizer preset is meant for one.
    pack: bool = field(default=False, init=False)
    lora_rank: int = field(default=0, init=False)
    merge_lora: bool = field(default=False, init=False)
    optimizer_preset: str | None = field(default=None, init=False)
    optimizer_slots: str | None = field(default=None, init=False)

    def chosen_optimizer(self) -> OptimizerChoice:
        """Here, `--optim adafactor` is [`~t5_experimental.training.optim.adafactor.PromptAdafactor`]."""
        return replace(super().chosen_optimizer(), knows_shards=True)
