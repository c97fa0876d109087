# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Options that only fine-tuning has."""

from dataclasses import dataclass, field
from pathlib import Path

from transformers import SchedulerType

from t5_experimental.training.arguments import T5TrainingArguments
from t5_experimental.training.errors import TrainingError


# File name endings that training/data.py has readers for.
DATA_FORMATS = (".jsonl", ".json", ".csv", ".parquet")


@dataclass
class DataArguments:
    """Which text it is trained on, and how much of it."""

    train_file: str = field(metadata={"help": "Training examples: .jsonl (or .json), .csv or .parquet."})
    validation_file: str | None = field(
        default=None, metadata={"help": "Examples to evaluate on at the end, and meanwhile with --eval_strategy."}
    )
    test_file: str | None = field(default=None, metadata={"help": "Examples to evaluate on at the end."})
    input_column: str = field(default="source", metadata={"help": "Column of the text that the encoder reads."})
    target_column: str = field(default="target", metadata={"help": "Column of the text to produce."})
    source_prefix: str = field(default="", metadata={"help": 'Put in front of every input, as "summarize: ".'})
    max_source_length: int = field(default=512, metadata={"help": "Inputs are cut off after this many tokens."})
    max_target_length: int = field(default=128, metadata={"help": "Targets are cut off after this many tokens."})

    def __post_init__(self) -> None:
        for option in ("train_file", "validation_file", "test_file"):
            if (name := getattr(self, option)) is not None:
                _check_data_file(option, Path(name))
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

    learning_rate: float = field(default=1e-3, metadata={"help": "Learning rate; T5 is fine-tuned with 1e-3."})
    lr_scheduler_type: SchedulerType | str = field(
        default="constant", metadata={"help": "Schedule of the learning rate; T5 is fine-tuned with a constant one."}
    )
