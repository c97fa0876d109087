# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Options of the optimizer and its learning rate: each option either has an effect or is refused."""

import json
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import Seq2SeqTrainingArguments, get_scheduler
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames

from ..errors import TrainingError, check_at_least
from .presets import (
    OptimizerChoice,
    build_optimizer,
    check_preset,
    has_own_schedule,
    plateau_of,
    preset_learning_rate,
)
from .slots import slots_step


_MOMENTS = ("adam_beta1", "adam_beta2", "adam_epsilon")
_WITHOUT_MOMENTS = (OptimizerNames.ADAFACTOR, OptimizerNames.SGD, OptimizerNames.ADAGRAD, OptimizerNames.RMSPROP)
_ADAMW = (OptimizerNames.ADAMW_TORCH, OptimizerNames.ADAMW_TORCH_FUSED)
# What transformers ignores for its own and torch's optimizers; optimizers of other packages check for themselves.
_UNUSED_WITH = {
    **dict.fromkeys(_MOMENTS, _WITHOUT_MOMENTS),
    "optim_args": (OptimizerNames.ADAFACTOR, *_ADAMW),
    "optim_target_modules": (*_WITHOUT_MOMENTS, *_ADAMW),
}
# Far above any use, and still a float32 when optimizers divide it by a correction of their means.
_HIGHEST_RATE = 1e30
_CONSTANT = (SchedulerType.CONSTANT, SchedulerType.CONSTANT_WITH_WARMUP)


@dataclass
class OptimizerArguments(Seq2SeqTrainingArguments):
    """Optimizer and learning rate: transformers' options and ours. None means that an option was not given."""

    default_schedule: ClassVar[SchedulerType] = SchedulerType.LINEAR

    optim: OptimizerNames | str = field(default="adafactor", metadata={"help": "Optimizer; T5's is Adafactor."})
    optimizer_preset: str | None = field(
        default=None,
        metadata={
            "help": "Optimizer preset, instead of --optim and its schedule: finetune, pretrain, adamw, rms_adamw. "
            "`finetune` and `pretrain` are the original's Adafactor."
        },
    )
    optimizer_slots: str | None = field(
        default=None,
        metadata={
            "help": "Folder with the optimizer.safetensors that `t5-experimental convert --with-optimizer` wrote: the "
            "preset resumes from the original's state instead of a fresh one."
        },
    )
    learning_rate: float | None = field(  # type: ignore[assignment]  # presets have their own
        default=None, metadata={"help": "Learning rate. Default: the preset's own, or 1e-3 with --optim."}
    )
    lr_scheduler_type: SchedulerType | None = field(  # type: ignore[assignment]  # None only until __post_init__
        default=None,
        metadata={
            "help": "Learning rate schedule, except for presets that have their own. Default: constant for "
            "fine-tuning, linear for pre-training."
        },
    )
    adam_beta1: float | None = field(  # type: ignore[assignment]  # None only until __post_init__
        default=None, metadata={"help": "Decay of AdamW's first moment. Default: 0.9."}
    )
    adam_beta2: float | None = field(  # type: ignore[assignment]  # None only until __post_init__
        default=None, metadata={"help": "Decay of AdamW's second moment. Default: 0.999."}
    )
    adam_epsilon: float | None = field(  # type: ignore[assignment]  # rms_adamw has its own
        default=None, metadata={"help": "AdamW's epsilon. Default: 1e-8, or 1e-6 with the preset rms_adamw."}
    )

    def chosen_optimizer(self) -> OptimizerChoice:
        """The optimizer that the options choose. Transformers' own Adafactor does not support sharded parameters."""
        optim = OptimizerNames(self.optim)
        knows_shards = self.optimizer_preset is not None or optim != OptimizerNames.ADAFACTOR
        return OptimizerChoice(self.optimizer_preset, optim.value, knows_shards)

    def build_preset(self, model: torch.nn.Module) -> tuple[torch.optim.Optimizer, LambdaLR | None]:
        """The preset's optimizer and schedule, see [`build_optimizer`]; there must be a preset."""
        assert self.optimizer_preset is not None
        return build_optimizer(
            self.optimizer_preset,
            model,
            learning_rate=self.learning_rate,
            warmup_steps=int(self.warmup_steps) or None,
            weight_decay=self.weight_decay,
            slots=self.optimizer_slots,
            moments=self.moments(),
        )

    def plateau(self) -> int | None:
        """Steps for which the original's schedule is constant; None for any other schedule."""
        if self.optimizer_preset is None:
            return None
        return plateau_of(self.optimizer_preset, int(self.warmup_steps) or None)

    def moments(self) -> dict[str, Any]:
        """`betas` and `eps` for a preset's AdamW; empty for Adafactor, and without `eps` where the preset's own
        applies."""
        if self.optimizer_preset is None or has_own_schedule(self.optimizer_preset):
            return {}
        epsilon = {} if self.adam_epsilon is None else {"eps": self.adam_epsilon}
        return {"betas": (self.adam_beta1, self.adam_beta2), **epsilon}

    def highest_learning_rate(self) -> float:
        """The learning rate that the schedule starts with, or rises to."""
        if self.learning_rate is not None:
            return self.learning_rate
        assert self.optimizer_preset is not None
        return preset_learning_rate(self.optimizer_preset, int(self.warmup_steps) or None)

    def check_slots(self) -> None:
        """Makes sure that `--optimizer_slots` can be read.

        Raises:
            TrainingError: there is no such file, or it is broken.
        """
        if self.optimizer_slots is not None:
            slots_step(self.optimizer_slots)

    def settle_optimizer(self) -> None:
        """Checks the options, but no files, and fills in defaults.

        Raises:
            TrainingError: an option has no effect with the others, or a number is out of range.
        """
        self.optimizer_preset = self.optimizer_preset or None
        self._check_numbers()
        if self.optimizer_preset is None:
            self._settle_optim()
        else:
            self._settle_preset(self.optimizer_preset)
        self.adam_beta1 = 0.9 if self.adam_beta1 is None else self.adam_beta1
        self.adam_beta2 = 0.999 if self.adam_beta2 is None else self.adam_beta2

    def _check_numbers(self) -> None:
        check_at_least(self, 0, "learning_rate", "weight_decay", "warmup_steps", "adam_epsilon")
        if self.learning_rate is not None and self.learning_rate > _HIGHEST_RATE:
            raise TrainingError(f"--learning_rate is {self.learning_rate:g}: it must be at most {_HIGHEST_RATE:g}.")
        for option in ("adam_beta1", "adam_beta2"):
            value = getattr(self, option)
            if value is not None and not 0 <= value < 1:
                raise TrainingError(f"--{option} is {value:g}: it must be at least 0 and less than 1.")

    def _refuse(self, options: tuple[str, ...], reason: str) -> None:
        """Refuses the first of the options that was given."""
        for option in options:
            if getattr(self, option) is not None:
                raise TrainingError(f"--{option} has no effect with {reason}")

    def _settle_optim(self) -> None:
        optim = OptimizerNames(self.optim)
        self._refuse(
            tuple(option for option, others in _UNUSED_WITH.items() if optim in others),
            f"--optim {optim.value}: leave it out, or choose an optimizer that has it.",
        )
        if self.optimizer_slots is not None:
            raise TrainingError("--optimizer_slots needs an optimizer that uses them: give --optimizer_preset, too.")
        if self.learning_rate is None:
            self.learning_rate = 1e-3
        if self.adam_epsilon is None:
            self.adam_epsilon = 1e-8
        self._settle_schedule()

    def _settle_preset(self, preset: str) -> None:
        if (optim := OptimizerNames(self.optim)) != OptimizerNames.ADAFACTOR:
            raise TrainingError(
                f"--optim {optim.value} and --optimizer_preset {preset} exclude each other: leave one out, or give "
                "--optimizer_preset '' where a preset is the default."
            )
        check_preset(preset, self.weight_decay)
        self._refuse(
            ("optim_args", "optim_target_modules"),
            f"--optimizer_preset {preset}: leave it out, or give --optim instead of the preset.",
        )
        if not has_own_schedule(preset):
            if self.optimizer_slots is not None:
                raise TrainingError(
                    f"--optimizer_slots is Adafactor's state, which --optimizer_preset {preset} cannot resume from: "
                    "choose finetune or pretrain, or leave the slots out."
                )
            self._settle_schedule()
            return
        self._refuse(
            ("lr_scheduler_type", "lr_scheduler_kwargs"),
            f"--optimizer_preset {preset}, which has its own schedule: leave it out, or choose another preset.",
        )
        self._refuse(_MOMENTS, f"--optimizer_preset {preset}, which is Adafactor: leave it out, or choose adamw.")
        if 0 < self.warmup_steps < 1:
            raise TrainingError(
                f"--warmup_steps {self.warmup_steps} is a fraction of the run, which --optimizer_preset does not "
                "support: give a number of steps."
            )
        self.lr_scheduler_type = SchedulerType.CONSTANT  # unused

    def _settle_schedule(self) -> None:
        schedule = SchedulerType(self.lr_scheduler_type or self.default_schedule)
        if schedule in _CONSTANT:
            self._refuse(
                ("lr_scheduler_kwargs",),
                "a constant learning rate: leave it out, or choose another --lr_scheduler_type.",
            )
        if self.warmup_steps and schedule == SchedulerType.CONSTANT:
            schedule = SchedulerType.CONSTANT_WITH_WARMUP  # the plain one ignores the warm-up
        self._check_schedule(schedule)
        self.lr_scheduler_type = schedule

    def _check_schedule(self, schedule: SchedulerType) -> None:
        """Tries to build the schedule with its settings."""
        settings: Any = self.lr_scheduler_kwargs
        rate = self.highest_learning_rate()
        try:
            if isinstance(settings, str):
                settings = json.loads(settings)
            get_scheduler(schedule, torch.optim.SGD([torch.zeros(1)], rate), 1, 10, settings)
        except (TypeError, ValueError) as error:
            if self.lr_scheduler_kwargs is None:
                raise TrainingError(
                    f"--lr_scheduler_type {schedule.value} needs --lr_scheduler_kwargs ({error}): give a JSON object "
                    "with the arguments of that schedule."
                ) from error
            raise TrainingError(
                f"--lr_scheduler_kwargs {self.lr_scheduler_kwargs} does not fit --lr_scheduler_type {schedule.value} "
                f"({error}): give a JSON object with the arguments of that schedule."
            ) from error
