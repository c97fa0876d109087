# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""What a checkpoint must have in common with the run that resumes from it, and the one thing that may change: the
learning rate.

transformers loads whatever state it finds: with another optimizer or model that ends in a traceback if the shapes
differ, and else in a mixture of two runs.
"""

import json
from collections.abc import Sized
from pathlib import Path
from typing import Any, cast

from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer
from transformers.trainer_utils import SchedulerType

from ..errors import TrainingError
from ..models.loading import vocabulary_digest
from ..optim.arguments import OptimizerArguments
from ..optim.slots import slots_step


RECORD = "run.json"
_RATE = "learning rate"
_SCHEDULE, _BY_STEP = "kind of schedule", "by the step"
_DATA = ("number of training examples", "--seed")
_NAMED = 3  # differences of a complaint; the others are counted

_SHAPE = (
    *("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_decoder_layers", "num_heads", "attention_type"),
    *("num_key_heads", "num_value_heads", "d_k", "d_v", "layer_overrides", "feed_forward_proj", "tie_word_embeddings"),
)
# Their state is more than the number of the step.
_STATEFUL_SCHEDULES = (SchedulerType.REDUCE_ON_PLATEAU, SchedulerType.GREEDY)


def write_record(trainer: Trainer, checkpoint: str) -> None:
    """Writes into a checkpoint what its state belongs to; one process calls this."""
    (Path(checkpoint) / RECORD).write_text(json.dumps(_record(trainer), indent=2) + "\n")


def check_resumption(trainer: Trainer, checkpoint: str) -> None:
    """Compares a run with the checkpoint that it resumes from, before anything of it is loaded.

    Raises:
        TrainingError: the checkpoint's state is not this run's.
    """
    before = _read(checkpoint)
    if not before:
        return
    now = json.loads(json.dumps(_record(trainer)))  # tuples are lists there
    may_differ = set(_DATA) if trainer.args.ignore_data_skip else set()
    if now[_SCHEDULE] == _BY_STEP:
        may_differ.add(_RATE)
    names = [name for name in now if name not in may_differ and before.get(name) != now[name]]
    if "family" in names:
        names = ["family"]  # all else follows from it
    if names:
        named = ", ".join(f"{name} ({before.get(name)} then, {now[name]} now)" for name in names[:_NAMED])
        more = f" and {len(names) - _NAMED} more settings" if len(names) > _NAMED else ""
        raise TrainingError(
            f"{checkpoint} was written with another {named}{more}: use the same, or start over in another --output_dir."
        )


def learning_rate_of(checkpoint: str) -> float | None:
    """The highest learning rate that a checkpoint was trained with, if it says so."""
    return _read(checkpoint).get(_RATE)


def use_learning_rate(scheduler: Any, learning_rate: float) -> None:
    """Lets a run go on with its own learning rate, where the state of a checkpoint brought along another one.

    Args:
        scheduler: of the optimizer, perhaps in accelerate's wrapper; both are loaded.
        learning_rate: the highest of the schedule, which all groups of parameters share.

    """
    scheduler = getattr(scheduler, "scheduler", scheduler)
    # Beside schedules that do not follow from the step alone, the rate must be the same.
    if not isinstance(scheduler, LambdaLR) or set(scheduler.base_lrs) == {learning_rate}:
        return
    scheduler.base_lrs = [learning_rate] * len(scheduler.base_lrs)
    for group, share in zip(scheduler.optimizer.param_groups, scheduler.lr_lambdas, strict=True):
        group["initial_lr"], group["lr"] = learning_rate, learning_rate * share(scheduler.last_epoch)
    scheduler._last_lr = [group["lr"] for group in scheduler.optimizer.param_groups]


def _read(checkpoint: str) -> dict[str, Any]:
    """A checkpoint's record; empty if it has none, as those of transformers' own trainer."""
    path = Path(checkpoint) / RECORD
    return json.loads(path.read_text()) if path.is_file() else {}


def _record(trainer: Trainer) -> dict[str, Any]:
    """What must be the same, by the name that a complaint gives it, and the learning rate."""
    model, args = cast(Any, trainer.model), trainer.args
    assert isinstance(args, OptimizerArguments)
    config = model.get_base_model().config if hasattr(model, "get_base_model") else model.config
    schedule = SchedulerType(args.lr_scheduler_type)
    record = {
        "family": config.model_type,
        **{name: getattr(config, name, None) for name in _SHAPE},
        **_record_of_adapters(model),
        "vocabulary": vocabulary_digest(cast(Any, trainer.processing_class)),
        "optimizer": args.chosen_optimizer().option,
        "step of --optimizer_slots": "none" if args.optimizer_slots is None else slots_step(args.optimizer_slots),
        "--weight_decay": args.weight_decay,
        **{f"--{name}": getattr(args, name) for name in ("adam_beta1", "adam_beta2", "adam_epsilon")},
        _SCHEDULE: schedule.value if schedule in _STATEFUL_SCHEDULES else _BY_STEP,
        _RATE: args.highest_learning_rate(),
    }
    if isinstance(trainer.train_dataset, Sized):  # streams have a record of their own
        seed = args.seed if args.data_seed is None else args.data_seed
        record |= zip(_DATA, (len(trainer.train_dataset), seed), strict=True)
    return record


def _record_of_adapters(model: Any) -> dict[str, Any]:
    adapters = getattr(model, "peft_config", None)
    if adapters is None:
        return {"kind of adapters": "none"}
    (adapter,) = adapters.values()
    size = {"--lora_rank": getattr(adapter, "r", None), "--prompt_length": getattr(adapter, "num_virtual_tokens", None)}
    targets = getattr(adapter, "target_modules", None)
    return {
        "kind of adapters": adapter.peft_type.value,
        **{name: value for name, value in size.items() if value is not None},
        **({} if targets is None else {"adapted layers": sorted(targets)}),
    }
