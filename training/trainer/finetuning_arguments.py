# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Options of fine-tuning."""

from dataclasses import dataclass, field
from typing import ClassVar

from transformers.trainer_utils import SchedulerType

from ..data.metrics import check_metrics, check_packages, figures_of
from ..data.tasks import Task
from ..errors import TrainingError
from .arguments import T5TrainingArguments


# Options for the logits that transformers collects in an evaluation, with their defaults.
_OF_LOGITS = {"prediction_loss_only": False, "batch_eval_metrics": False, "eval_do_concat_batches": True}


@dataclass
class FinetuningArguments(T5TrainingArguments):
    """Fine-tuning: the original's fine-tuning by default."""

    default_schedule: ClassVar[SchedulerType] = SchedulerType.CONSTANT  # T5's

    metric: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Metrics of generated texts: bleu, rouge, exact_match, f1, or several. Examples with the same "
            "input are references of one text. Default: those of --task, else exact_match with "
            "--predict_with_generate, else none."
        },
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
        check_metrics(self.metric)
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
        if self.merge_lora and not self.lora_rank:
            raise TrainingError("--merge_lora has no effect without --lora_rank: give both, or none.")

    def settle_metrics(self, task: Task | None) -> None:
        """Chooses the default metrics, those of a task if there is one; then `metric` is empty.

        Raises:
            TrainingError: --metric_for_best_model is none of them.
        """
        if self.predict_with_generate and not self.metric and task is None:
            self.metric = ["exact_match"]
        figures = figures_of(self.metric) if self.metric or task is None else task.figures
        self.check_best_metric(["loss", *figures])

    def check_packages(self) -> None:
        super().check_packages()
        check_packages(self.metric)
