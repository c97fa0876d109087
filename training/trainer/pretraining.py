# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Options of pre-training."""

from dataclasses import dataclass, field
from typing import ClassVar

from ..errors import TrainingError
from .arguments import OF_DENOMINATOR, T5TrainingArguments
from .losses import LossDenominator


@dataclass
class PretrainingArguments(T5TrainingArguments):
    """How to train: the original's pre-training by default."""

    more_training: ClassVar[str] = "more --max_steps"

    optimizer_preset: str | None = field(
        default="pretrain",
        metadata={
            "help": "Optimizer with its schedule, see training/optim/presets.py; an empty string for --optim instead."
        },
    )
    z_loss: float = field(
        default=1e-4,
        metadata={"help": "Weight of the z-loss, the squared log-normalizer, in training, as in the original."},
    )
    loss_denominator: LossDenominator = field(default="positions", metadata=OF_DENOMINATOR)
    max_grad_norm: float = field(
        default=0.0, metadata={"help": "Gradients are clipped to this norm; 0 disables it, as in the original."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_steps < 1 and self.estimate is None:
            raise TrainingError("--max_steps is missing: the text is repeated endlessly, so give the steps to train.")
        if self.predict_with_generate:
            raise TrainingError("--predict_with_generate is for fine-tuning: pre-training has no texts to compare.")
