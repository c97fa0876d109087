# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""What an entry point says before it starts, for the user to check."""

import sys
from collections.abc import Mapping

from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames

from t5_experimental.training.arguments import T5TrainingArguments
from t5_experimental.training.trainer import T5Trainer


FLOAT16_WARNING = (
    "\nWARNING: --fp16 computes in float16, which ends at 65504; activations of T5 models go beyond that, and the loss "
    "becomes NaN: use --bf16 where the hardware has it, else --bf16 False without --fp16, which is float32.\n"
)


def warn_of_float16(training: T5TrainingArguments) -> None:
    """Says once that float16 does not suit T5, if that is what the run computes in."""
    if training.mixed_precision == "fp16" and training.process_index == 0:
        print(FLOAT16_WARNING, file=sys.stderr, flush=True)


def describe(trainer: T5Trainer, more: Mapping[str, str]) -> str:
    """What is about to happen: the model, how it is trained, and what else the entry point has to say, by heading."""
    model, args = trainer.plain_model(), trainer.args
    asked = trainer.accelerator.mixed_precision
    precision = {"no": "float32", "bf16": "bfloat16", "fp16": "float16"}.get(asked, asked)
    if args.device.type == "cpu" and asked == "no":
        precision += " (bfloat16 is slow on most CPUs; --bf16 True asks for it)"
    optimizer, schedule = OptimizerNames(args.optim).value, SchedulerType(args.lr_scheduler_type).value
    lines = {
        "model": f"{type(model).__name__} ({model.config.model_type}), {model.num_parameters():,} parameters",
        "dropout": f"{model.config.dropout_rate:g}",
        "precision": f"weights float32, computation {precision}",
        "optimizer": f"{optimizer}, learning rate {args.learning_rate:g}, schedule {schedule}",
        **more,
    }
    return "\n".join(f"{name:<10} {text}" for name, text in lines.items())


def describe_step(trainer: T5Trainer, tokens_per_example: float) -> str:
    """How much a step of the optimizer takes; `tokens_per_example` are target tokens."""
    args = trainer.args
    batch = args.train_batch_size * args.world_size * args.gradient_accumulation_steps
    tokens = f"about {batch * tokens_per_example:,.0f} target tokens"
    return f"{batch} examples on {args.world_size} process(es), {tokens}"
