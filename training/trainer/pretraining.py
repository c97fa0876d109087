# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Options that only pre-training has."""

from dataclasses import dataclass, field

from ..errors import TrainingError
from .arguments import OF_DENOMINATOR, T5TrainingArguments
from .losses import LossDenominator


@dataclass
class PretrainingArguments(T5TrainingArguments):
    """How it is trained: the original's pre-training, unless said otherwise."""

    optimizer_preset: str | None = field(
        default="pretrain",
        metadata={
            "help": "Optimizer with its schedule, see training/optimizers.py; an empty string for --optim instead."
        },
    )
    z_loss: float = field(
        default=1e-4,
        metadata={"help": "Weight of the squared log-normalizer in the loss of training, as in the original."},
    )
    loss_denominator: LossDenominator = field(default="positions", metadata=OF_DENOMINATOR)
    max_grad_norm: float = field(
        default=0.0, metadata={"help": "Gradients are scaled down to this norm; 0 for never, as in the original."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_steps < 1:
            raise TrainingError("--max_steps is missing: the text is gone through over and over, so say when to stop.")
        if self.predict_with_generate:
            raise TrainingError("--predict_with_generate is for fine-tuning: pre-training has no texts to compare.")
