# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""What an entry point prints before it starts, for the user to check."""

import sys
from collections.abc import Mapping, Sized
from typing import cast

import torch
from transformers.trainer_utils import SchedulerType

from t5_experimental.original import VOCAB_DIVISOR

from ..optim.slots import slots_step
from ..trainer.arguments import T5TrainingArguments
from ..trainer.same_run import learning_rate_of
from ..trainer.trainer import T5Trainer


FLOAT16_WARNING = (
    "\nWARNING: --fp16 computes in float16, whose largest number is 65504; activations of T5 models exceed it, and the "
    "loss becomes NaN: use --bf16 if the hardware supports it, else --bf16 False without --fp16, which is float32.\n"
)


def warn_of_float16(training: T5TrainingArguments) -> None:
    """Warns once, from the first process, if the run computes in float16, which does not suit T5."""
    if training.mixed_precision == "fp16" and training.process_index == 0:
        print(FLOAT16_WARNING, file=sys.stderr, flush=True)


def describe_evaluation(trainer: T5Trainer, more: Mapping[str, str]) -> dict[str, str]:
    """Facts about a run without training by heading, before those of the entry point."""
    model, args = trainer.plain_model(), trainer.args
    generation = model.generation_config.to_diff_dict()
    settings = {name: value for name, value in generation.items() if not name.endswith(("_token_id", "_version"))}
    return {
        "class": f"{type(model).__name__} ({model.config.model_type}), {_describe_parameters(trainer)}",
        "engine": trainer.run.engine.describe(trainer.accelerator),
        "precision": f"weights float32, computation {_describe_precision(trainer)}",
        **_describe_vocabulary(trainer),
        **more,
        "batches": f"{args.eval_batch_size} examples on each of {args.world_size} process(es), sorted by length",
        "generation": ", ".join(f"{name} {value}" for name, value in sorted(settings.items())),
    }


def _describe_precision(trainer: T5Trainer) -> str:
    asked = trainer.accelerator.mixed_precision
    precision = {"no": "float32", "bf16": "bfloat16", "fp16": "float16"}.get(asked, asked)
    if trainer.args.device.type == "cpu" and asked == "no":
        precision += " (bfloat16 is slow on most CPUs; --bf16 True asks for it)"
    return precision


def describe(trainer: T5Trainer, more: Mapping[str, str]) -> dict[str, str]:
    """Facts about the run by heading: the model, how it is trained, and additional facts of the entry point."""
    model, args = trainer.plain_model(), trainer.args
    return {
        "model": f"{type(model).__name__} ({model.config.model_type}), {_describe_parameters(trainer)}",
        "engine": trainer.run.engine.describe(trainer.accelerator),
        "dropout": f"{model.config.dropout_rate:g}{', the same at all positions' * model.config.broadcast_dropout}",
        "precision": f"weights float32, computation {_describe_precision(trainer)}",
        "optimizer": _describe_optimizer(trainer),
        "clipping": f"gradients to norm {args.max_grad_norm:g}" if args.max_grad_norm else "none",
        "denominator": f"{args.loss_denominator} of a step",
        **_describe_vocabulary(trainer),
        **more,
        **({"beginning": trainer.run.beginning} if trainer.run.beginning else {}),
    }


def facts_as_text(facts: Mapping[str, str]) -> str:
    """The facts as lines to print."""
    return "\n".join(f"{name:<11} {text}" for name, text in facts.items())


def _describe_parameters(trainer: T5Trainer) -> str:
    parameters = list(cast(torch.nn.Module, trainer.model).parameters())
    # DeepSpeed's ZeRO-3 keeps the number of elements next to an empty parameter.
    sizes = [(getattr(parameter, "ds_numel", parameter.numel()), parameter.requires_grad) for parameter in parameters]
    total, trained = sum(size for size, _ in sizes), sum(size for size, is_trained in sizes if is_trained)
    return f"{total:,} parameters" + (f", {trained:,} of them trained" if trained < total else "")


def _describe_vocabulary(trainer: T5Trainer) -> dict[str, str]:
    """A line if there are more embedding rows than the original's padding to a multiple of 128 explains."""
    ids, rows = len(cast(Sized, trainer.processing_class)), trainer.plain_model().config.vocab_size
    if rows - ids < VOCAB_DIVISOR:
        return {}
    return {"vocabulary": f"{ids:,} ids for {rows:,} embedding rows: make sure that it is this model's own"}


def _describe_optimizer(trainer: T5Trainer) -> str:
    args = trainer.args
    chosen, decay = args.chosen_optimizer(), f", decay {args.weight_decay:g}" if args.weight_decay else ""
    name = chosen.optim if chosen.preset is None else f"preset {chosen.preset}"
    return f"{name}, {describe_learning_rate(trainer)}{decay}{_describe_slots(args)}"


def describe_learning_rate(trainer: T5Trainer) -> str:
    """The highest learning rate, also that of the checkpoint to resume from if it differs, and the schedule."""
    rate, checkpoint = trainer.args.highest_learning_rate(), trainer.run.checkpoint
    before = None if checkpoint is None else learning_rate_of(checkpoint)
    changed = "" if before in (None, rate) else f" ({before:g} up to the checkpoint)"
    return f"learning rate {rate:g}{changed}, schedule {_describe_schedule(trainer.args)}"


def _describe_schedule(args: T5TrainingArguments) -> str:
    steps, plateau = args.warmup_steps, args.plateau()
    if plateau is not None:
        return f"constant up to step {plateau:,}, then inverse square root"
    warmup = f", warm-up {steps:.0%} of the steps" if steps < 1 else f", warm-up {steps:,.0f} steps"
    return SchedulerType(args.lr_scheduler_type).value + (warmup if steps else "")


def _describe_slots(args: T5TrainingArguments) -> str:
    folder = args.optimizer_slots
    if folder is None:
        return ""
    step, plateau = slots_step(folder), args.plateau()
    there = "" if plateau is None else f" ({args.highest_learning_rate() * (plateau / max(step, plateau)) ** 0.5:.3g})"
    return f", from the state in {folder} of step {step:,}{there}"


def describe_step(trainer: T5Trainer, inputs: float, targets: float, what: str = "examples") -> str:
    """Size of an optimizer step; `inputs` and `targets` are mean tokens of `what` it consists of."""
    args = trainer.args
    batch = args.train_batch_size * args.world_size * args.gradient_accumulation_steps
    tokens = f"about {batch * inputs:,.0f} input and {batch * targets:,.0f} target tokens"
    return f"{batch} {what} on {args.world_size} process(es), {tokens}"
