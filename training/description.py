# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""What an entry point says before it starts, for the user to check."""

import sys
from collections.abc import Mapping, Sized
from typing import cast

import torch
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames

from t5_experimental.training.arguments import T5TrainingArguments
from t5_experimental.training.trainer import T5Trainer


FLOAT16_WARNING = (
    "\nWARNING: --fp16 computes in float16, which ends at 65504; activations of T5 models go beyond that, and the loss "
    "becomes NaN: use --bf16 where the hardware has it, else --bf16 False without --fp16, which is float32.\n"
)


_ROWS_MULTIPLE = 128


def warn_of_float16(training: T5TrainingArguments) -> None:
    """Says once that float16 does not suit T5, if that is what the run computes in."""
    if training.mixed_precision == "fp16" and training.process_index == 0:
        print(FLOAT16_WARNING, file=sys.stderr, flush=True)


def describe(trainer: T5Trainer, more: Mapping[str, str]) -> dict[str, str]:
    """What is about to happen: the model, how it is trained, and what else the entry point has to say, by heading."""
    model, args = trainer.plain_model(), trainer.args
    asked = trainer.accelerator.mixed_precision
    precision = {"no": "float32", "bf16": "bfloat16", "fp16": "float16"}.get(asked, asked)
    if args.device.type == "cpu" and asked == "no":
        precision += " (bfloat16 is slow on most CPUs; --bf16 True asks for it)"
    return {
        "model": f"{type(model).__name__} ({model.config.model_type}), {_describe_parameters(trainer)}",
        "dropout": f"{model.config.dropout_rate:g}{', the same at all positions' * model.config.broadcast_dropout}",
        "precision": f"weights float32, computation {precision}",
        "optimizer": _describe_optimizer(args),
        "clipping": f"gradients to norm {args.max_grad_norm:g}" if args.max_grad_norm else "none",
        "denominator": f"{args.loss_denominator} of a step",
        **_describe_vocabulary(trainer),
        **more,
        **({"beginning": args.beginning} if args.beginning else {}),
    }


def facts_as_text(facts: Mapping[str, str]) -> str:
    """The facts as lines to print."""
    return "\n".join(f"{name:<11} {text}" for name, text in facts.items())


def _describe_parameters(trainer: T5Trainer) -> str:
    parameters = list(cast(torch.nn.Module, trainer.model).parameters())
    # Where DeepSpeed's ZeRO-3 has emptied a parameter, it keeps the number beside it.
    sizes = [(getattr(parameter, "ds_numel", parameter.numel()), parameter.requires_grad) for parameter in parameters]
    total, trained = sum(size for size, _ in sizes), sum(size for size, is_trained in sizes if is_trained)
    return f"{total:,} parameters" + (f", {trained:,} of them trained" if trained < total else "")


def _describe_vocabulary(trainer: T5Trainer) -> dict[str, str]:
    """A line if there are more embedding rows than filling up to a multiple of 128, as the original does, explains."""
    ids, rows = len(cast(Sized, trainer.processing_class)), trainer.plain_model().config.vocab_size
    if rows - ids < _ROWS_MULTIPLE:
        return {}
    return {"vocabulary": f"{ids:,} ids for {rows:,} embedding rows: make sure that it is this model's own"}


def _describe_optimizer(args: T5TrainingArguments) -> str:
    schedule = f", schedule {SchedulerType(args.lr_scheduler_type).value}"
    if args.optimizer_preset is None:
        return f"{OptimizerNames(args.optim).value}, learning rate {args.learning_rate:g}{schedule}"
    rate = "the preset's own learning rate" if args.learning_rate is None else f"learning rate {args.learning_rate:g}"
    slots = "" if args.optimizer_slots is None else f", from the state in {args.optimizer_slots}"
    return f"preset {args.optimizer_preset}, {rate}{slots}"


def describe_step(trainer: T5Trainer, tokens_per_example: float) -> str:
    """How much a step of the optimizer takes; `tokens_per_example` are target tokens."""
    args = trainer.args
    batch = args.train_batch_size * args.world_size * args.gradient_accumulation_steps
    tokens = f"about {batch * tokens_per_example:,.0f} target tokens"
    return f"{batch} examples on {args.world_size} process(es), {tokens}"
