# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Options of fine-tuning."""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import ClassVar

from transformers.trainer_utils import SchedulerType

from ..data.metrics import check_metrics, check_packages, figures_of
from ..data.own_metrics import is_own
from ..data.tasks import Task
from ..errors import TrainingError
from .arguments import OF_TRAINING_ALONE, T5TrainingArguments
from .losses import LossDenominator


# Options for the logits that transformers collects in an evaluation, with their defaults.
_OF_LOGITS = {"prediction_loss_only": False, "batch_eval_metrics": False, "eval_do_concat_batches": True}


def check_only_evaluates(given: Collection[str], more: Collection[str] = ()) -> None:
    """Refuses options, of those that the user gave, that have no effect on a run which does not train, and `more`."""
    if idle := sorted({*OF_TRAINING_ALONE, *more} & set(given)):
        raise TrainingError(f"--{idle[0]} has no effect on an evaluation, which trains nothing: leave it out.")


@dataclass
class FinetuningArguments(T5TrainingArguments):
    """Fine-tuning: the original's fine-tuning by default."""

    default_schedule: ClassVar[SchedulerType] = SchedulerType.CONSTANT  # T5's
    may_only_evaluate: ClassVar[bool] = True

    metric: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Metrics of generated texts, one or several: bleu, chrf, rouge, exact_match, squad, accuracy, "
            "f1_binary, f1_macro, matthews, pearson, spearman, f1 (the older name of squad's); your own as "
            "my_module:function, which gets predictions and lists of references and returns numbers by name. Examples "
            "with the same input are references of one text. Default: those of --task, else exact_match with "
            "--predict_with_generate, else none."
        },
    )
    positive_label: str | None = field(
        default=None, metadata={"help": "Target that is the positive class of --metric f1_binary."}
    )
    pack: bool = field(
        default=False,
        metadata={
            "help": "Pack as many training examples into a row of --max_source_length and --max_target_length as fit; "
            "they do not see each other. A batch counts rows."
        },
    )
    lora_rank: int = field(
        default=0, metadata={"help": "Train adapters of this rank (LoRA) instead of all weights; 0: all weights."}
    )
    merge_lora: bool = field(
        default=False, metadata={"help": "Merge the adapters, and write a full model instead of adapters alone."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_metrics(self.metric, self.positive_label)
        for option in _OF_LOGITS:
            if getattr(self, option) != _OF_LOGITS[option]:
                raise TrainingError(
                    f"--{option} does not apply to fine-tuning, which computes losses without logits and generates "
                    "texts separately: leave it out."
                )
        if self.lora_rank < 0:
            raise TrainingError(f"--lora_rank is {self.lora_rank}: it must be at least 1, or 0 for all weights.")
        if self.lora_rank and (chosen := self.chosen_optimizer()).is_original_adafactor:
            raise TrainingError(
                f"--lora_rank initializes matrices with zeros, and the Adafactor of {chosen.option} scales updates by "
                "the size of a parameter: choose adamw there, or leave the option out."
            )

    def trains(self, has_training_data: bool) -> bool:
        """Whether a run trains: not with `--do_train False`, nor if it has no training data but is told to evaluate."""
        if self.do_train is not None or not self.may_only_evaluate:
            return self.do_train is not False
        return has_training_data or not (self.do_eval or self.do_predict)

    def settle_metrics(self, task: Task | None, evaluated: Collection[str] = (), checks_later: bool = False) -> None:
        """Chooses the default metrics, those of a task if there is one; then `metric` is empty.

        Args:
            task: of the data.
            evaluated: prefixes of the metrics of several files; may be empty.
            checks_later: whether the metrics follow from the data, and --metric_for_best_model is checked with it.

        Raises:
            TrainingError: --metric_for_best_model is none of them. Own functions name theirs when they are called.
        """
        if self.predict_with_generate and not self.metric and task is None:
            self.metric = ["exact_match"]
        if checks_later or any(map(is_own, self.metric)):
            return
        figures = ["loss", *(figures_of(self.metric) if self.metric or task is None else task.figures)]
        files = [prefix.partition("_")[2] for prefix in evaluated if prefix.startswith("eval_")]
        self.check_best_metric([f"{file}_{figure}" for file in files for figure in figures] or figures)

    def check_packages(self) -> None:
        super().check_packages()
        check_packages(self.metric)


@dataclass
class EvaluationArguments(FinetuningArguments):
    """Evaluation: how to evaluate."""

    # Not options here: nothing is trained.
    pack: bool = field(default=False, init=False)
    lora_rank: int = field(default=0, init=False)
    merge_lora: bool = field(default=False, init=False)
    optimizer_preset: str | None = field(default=None, init=False)
    optimizer_slots: str | None = field(default=None, init=False)
    z_loss: float = field(default=0.0, init=False)
    loss_denominator: LossDenominator = field(default="tokens", init=False)
    estimate: str | None = field(default=None, init=False)
    early_stopping_patience: int | None = field(default=None, init=False)
    early_stopping_threshold: float = field(default=0.0, init=False)

    def trains(self, has_training_data: bool) -> bool:
        return False
