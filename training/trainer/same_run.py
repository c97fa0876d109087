# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""What a checkpoint must share with the run that resumes from it.

The learning rate may change, and what no state depends on: dropout, losses, clipping, how often something is saved.

transformers loads any state it finds: with another optimizer or model, that ends in a traceback if shapes differ, and
otherwise silently mixes two runs.
"""

import json
from collections.abc import Sized
from pathlib import Path
from typing import Any, cast

from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer
from transformers.trainer_utils import SchedulerType

from ..data.digests import digest_of_pairs
from ..errors import TrainingError
from ..models.loading import vocabulary_digest
from ..optim.arguments import OptimizerArguments
from ..optim.slots import slots_step
from .base_model import base_digest, mark_as


RECORD = "run.json"
_RATE = "learning rate"
_SCHEDULE, _BY_STEP = "kind of schedule", "by the step"
_COUNT, _TEXT = "number of training examples", "text of the training examples"
_EVALUATED = "text of the validation examples"
_LENGTHS = ("--max_source_length", "--max_target_length")
_DATA = (_COUNT, "--seed", "--mixture", "--pack", *_LENGTHS, _TEXT)
_BASE = "base model"
_BEST = ("--metric_for_best_model", "--greater_is_better", _EVALUATED)
# What records of earlier versions lack, or those of runs that it does not matter for.
_MAY_LACK = {*_LENGTHS, _TEXT, _BASE, *_BEST}
# What the text follows from.
_OF_TEXT = {_COUNT, "--mixture", *_LENGTHS, "vocabulary"}
_NAMED = 3  # differences that a message names; it counts the others

_SHAPE = (
    *("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_decoder_layers", "num_heads", "attention_type"),
    *("num_key_heads", "num_value_heads", "d_k", "d_v", "layer_overrides", "feed_forward_proj", "tie_word_embeddings"),
)
# Schedules whose state is more than the step.
_STATEFUL_SCHEDULES = (SchedulerType.REDUCE_ON_PLATEAU, SchedulerType.GREEDY)


def write_record(trainer: Trainer, checkpoint: str) -> None:
    """Records in a checkpoint which run its state belongs to; one process calls this."""
    (Path(checkpoint) / RECORD).write_text(json.dumps(_record(trainer), indent=2) + "\n", encoding="utf-8")


def check_resumption(trainer: Trainer, checkpoint: str) -> None:
    """Compares a run with the checkpoint that it resumes from, before loading anything from it.

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
    may_differ |= _MAY_LACK - set(before)
    if _BASE in before and before[_BASE] != now.get(_BASE) and _began_from_itself(trainer, checkpoint):
        may_differ.add(_BASE)
        mark_as(cast(Any, trainer.model), before[_BASE])  # for the checkpoints to come
    names = [name for name in now if name not in may_differ and before.get(name) != now[name]]
    if "family" in names:
        names = ["family"]  # the other differences follow from it
    if _OF_TEXT & set(names):
        names = [name for name in names if name not in (_TEXT, _EVALUATED)]
    if names:
        named = ", ".join(f"{name} ({before.get(name)} then, {now[name]} now)" for name in names[:_NAMED])
        more = f" and {len(names) - _NAMED} more settings" if len(names) > _NAMED else ""
        raise TrainingError(
            f"{checkpoint} was written with another {named}{more}: use the same, or start over in another --output_dir."
        )


def _began_from_itself(trainer: Trainer, checkpoint: str) -> bool:
    """Whether the model that was given is of this run: a checkpoint, which holds all weights, or the output folder."""
    args, given = trainer.args, getattr(cast(Any, trainer).run.options[0], "model_name_or_path", None)
    if given is None or hasattr(trainer.model, "peft_config"):
        return False
    folder, places = Path(given).resolve(), (Path(checkpoint).resolve(), Path(str(args.output_dir)).resolve())
    return any(folder == place or place in folder.parents for place in places)


def learning_rate_of(checkpoint: str) -> float | None:
    """The highest learning rate that a checkpoint was trained with, if recorded."""
    return _read(checkpoint).get(_RATE)


def use_learning_rate(scheduler: Any, learning_rate: float) -> None:
    """Applies this run's learning rate after a checkpoint has restored its own.

    Args:
        scheduler: of the optimizer, possibly in accelerate's wrapper.
        learning_rate: the highest of the schedule, shared by all parameter groups.

    """
    scheduler = getattr(scheduler, "scheduler", scheduler)
    # Schedules that depend on more than the step must keep their learning rate.
    if not isinstance(scheduler, LambdaLR) or set(scheduler.base_lrs) == {learning_rate}:
        return
    scheduler.base_lrs = [learning_rate] * len(scheduler.base_lrs)
    for group, share in zip(scheduler.optimizer.param_groups, scheduler.lr_lambdas, strict=True):
        group["initial_lr"], group["lr"] = learning_rate, learning_rate * share(scheduler.last_epoch)
    scheduler._last_lr = [group["lr"] for group in scheduler.optimizer.param_groups]


def _read(checkpoint: str) -> dict[str, Any]:
    """A checkpoint's record; empty if it has none, for example if transformers' own trainer wrote it."""
    path = Path(checkpoint) / RECORD
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _record(trainer: Trainer) -> dict[str, Any]:
    """What must be the same, by its name in messages, and the learning rate."""
    model, args = cast(Any, trainer.model), trainer.args
    assert isinstance(args, OptimizerArguments)
    config = model.get_base_model().config if hasattr(model, "get_base_model") else model.config
    schedule = SchedulerType(args.lr_scheduler_type)
    record = {
        "family": config.model_type,
        **{name: getattr(config, name, None) for name in _SHAPE},
        **_record_of_adapters(model),
        **_record_of_best(trainer),
        "vocabulary": vocabulary_digest(cast(Any, trainer.processing_class)),
        "optimizer": args.chosen_optimizer().option,
        "step of --optimizer_slots": "none" if args.optimizer_slots is None else slots_step(args.optimizer_slots),
        "--weight_decay": args.weight_decay,
        **{f"--{name}": getattr(args, name) for name in ("adam_beta1", "adam_beta2", "adam_epsilon")},
        _SCHEDULE: schedule.value if schedule in _STATEFUL_SCHEDULES else _BY_STEP,
        _RATE: args.highest_learning_rate(),
    }
    if (base := base_digest(model)) is not None:
        record[_BASE] = base
    if isinstance(trainer.train_dataset, Sized):  # streams have their own record
        seed = args.seed if args.data_seed is None else args.data_seed
        order = getattr(trainer, "order", None)
        record |= {_COUNT: len(trainer.train_dataset), "--seed": seed, "--mixture": None, "--pack": None}
        record |= {} if order is None else order.record()
        lengths = getattr(trainer, "fixed_lengths", {})
        limits = zip(_LENGTHS, (lengths.get(name) for name in ("input_ids", "labels")), strict=True)
        record |= {name: limit for name, limit in limits if limit is not None}
        text = digest_of_pairs(trainer.train_dataset, () if order is None else order.sizes())
        record |= {} if text is None else {_TEXT: text}
    return record


def _record_of_best(trainer: Trainer) -> dict[str, Any]:
    """What the best metric so far was measured by and on, if one is kept: a checkpoint restores its value."""
    args, rows = trainer.args, trainer.eval_dataset
    if args.metric_for_best_model is None:
        return {}
    sets = rows if isinstance(rows, dict) else {"": rows}
    measured = {name: digest_of_pairs(part) for name, part in sets.items()}
    values = (args.metric_for_best_model.removeprefix("eval_"), bool(args.greater_is_better), list(measured.values()))
    return dict(zip(_BEST, values, strict=True))


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
