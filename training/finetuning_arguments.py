# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Options that only fine-tuning has."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from transformers.trainer_utils import SchedulerType

from t5_experimental.training.arguments import T5TrainingArguments
from t5_experimental.training.errors import TrainingError
from t5_experimental.training.metrics import check_metrics, figures_of


# File name endings that training/data.py has readers for.
DATA_FORMATS = (".jsonl", ".json", ".csv", ".parquet")


# Options of how transformers collects the logits of an evaluation, with their defaults.
_OF_LOGITS = {"prediction_loss_only": False, "batch_eval_metrics": False, "eval_do_concat_batches": True}


@dataclass
class DataArguments:
    """Which text it is trained on, and how much of it."""

    train_file: str | None = field(
        default=None, metadata={"help": "Training examples: .jsonl (or .json), .csv or .parquet."}
    )
    validation_file: str | None = field(
        default=None, metadata={"help": "Examples to evaluate on at the end, and meanwhile with --eval_strategy."}
    )
    test_file: str | None = field(default=None, metadata={"help": "Examples to evaluate on at the end."})
    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "Instead of files: a dataset of the hub, or a local folder that datasets.load_dataset reads, with "
            "the splits train and, if it has them, validation and test."
        },
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Which of the dataset's configurations."})
    input_column: str = field(default="source", metadata={"help": "Column of the text that the encoder reads."})
    target_column: str = field(
        default="target", metadata={"help": "Column of the text to produce, or of a list of texts that are all right."}
    )
    source_prefix: str = field(default="", metadata={"help": 'Put in front of every input, as "summarize: ".'})
    max_source_length: int = field(default=512, metadata={"help": "Inputs are cut off after this many tokens."})
    max_target_length: int = field(default=128, metadata={"help": "Targets are cut off after this many tokens."})

    def __post_init__(self) -> None:
        for option in ("train_file", "validation_file", "test_file"):
            if (name := getattr(self, option)) is not None:
                if self.dataset_name is not None:
                    raise TrainingError(f"--{option} and --dataset_name exclude each other: leave one of them out.")
                _check_data_file(option, Path(name))
        if self.dataset_config_name is not None and self.dataset_name is None:
            raise TrainingError("--dataset_config_name is of no use without --dataset_name: give both, or none.")
        for option in ("input_column", "target_column"):
            if not getattr(self, option).strip():
                raise TrainingError(f"--{option} is empty: name a column of the data.")
        for option in ("max_source_length", "max_target_length"):
            if getattr(self, option) < 1:
                raise TrainingError(f"--{option} is {getattr(self, option)}: it must be at least 1.")


def _check_data_file(option: str, path: Path) -> None:
    if not path.is_file():
        raise TrainingError(f"--{option} {path} does not exist: give the path of a data file.")
    if path.suffix.lower() not in DATA_FORMATS:
        raise TrainingError(
            f"--{option} {path} has the unknown ending {path.suffix!r}: the format is told by it, and must be one of "
            f"{', '.join(DATA_FORMATS)}."
        )


@dataclass
class FinetuningArguments(T5TrainingArguments):
    """How it is trained: the original's fine-tuning, unless said otherwise."""

    default_schedule: ClassVar[SchedulerType] = SchedulerType.CONSTANT  # T5's

    metric: list[str] = field(
        default_factory=list,
        metadata={
            "help": "What generated texts are judged by, when examples are evaluated: bleu, rouge, exact_match, f1, or "
            "several. Examples with the same input are references of one text. Default: exact_match with "
            "--predict_with_generate, else none."
        },
    )
    lora_rank: int = field(
        default=0, metadata={"help": "Train adapters of this rank (LoRA) instead of all weights; 0: all weights."}
    )
    merge_lora: bool = field(
        default=False, metadata={"help": "Write a whole model with the adapters added in, and not adapters alone."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_metrics(self.metric)
        if self.predict_with_generate and not self.metric:
            self.metric = ["exact_match"]
        for option in _OF_LOGITS:
            if getattr(self, option) != _OF_LOGITS[option]:
                raise TrainingError(
                    f"--{option} has no place in fine-tuning, where losses are computed without logits and texts are "
                    "generated apart from them: leave it out."
                )
        self.check_best_metric(["loss", *figures_of(self.metric)])
        if self.lora_rank < 0:
            raise TrainingError(f"--lora_rank is {self.lora_rank}: it must be at least 1, or 0 for all weights.")
        if self.lora_rank and self.optimizer_preset in ("finetune", "pretrain"):
            raise TrainingError(
                f"--lora_rank begins with matrices of zeros, and the Adafactor of --optimizer_preset "
                f"{self.optimizer_preset} scales its steps by the size of a parameter: choose adamw "
                "there, or leave the option out."
            )
        if self.merge_lora and not self.lora_rank:
            raise TrainingError("--merge_lora is of no use without --lora_rank: give both, or none.")
