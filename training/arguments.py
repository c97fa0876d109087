# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Options of the entry points, as dataclasses that the command line is parsed into."""

from dataclasses import dataclass, field
from pathlib import Path

from transformers import SchedulerType, Seq2SeqTrainingArguments
from transformers.training_args import OptimizerNames

from t5_experimental.training.errors import TrainingError


# File name endings that training/data.py has readers for.
DATA_FORMATS = (".jsonl", ".json", ".csv", ".parquet")


@dataclass
class ModelArguments:
    """What is trained."""

    model_name_or_path: str = field(
        metadata={"help": "Folder of a converted checkpoint, with its tokenizer. Nothing is downloaded."}
    )
    dropout_rate: float = field(
        default=0.1,
        metadata={"help": "Dropout while training. The checkpoints were pre-trained with 0 and fine-tuned with 0.1."},
    )

    def __post_init__(self) -> None:
        if not (Path(self.model_name_or_path) / "config.json").is_file():
            raise TrainingError(
                f"--model_name_or_path {self.model_name_or_path} is not a model folder (it has no config.json): give "
                "a folder that `t5-experimental convert` wrote."
            )
        if not 0 <= self.dropout_rate < 1:
            raise TrainingError(f"--dropout_rate is {self.dropout_rate}: it must be at least 0 and less than 1.")


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
class FinetuningArguments(Seq2SeqTrainingArguments):
    """Transformers' own options, with the defaults that suit T5."""

    optim: OptimizerNames | str = field(default="adafactor", metadata={"help": "Optimizer; T5's is Adafactor."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Learning rate; T5 is fine-tuned with 1e-3."})
    lr_scheduler_type: SchedulerType | str = field(
        default="constant", metadata={"help": "Schedule of the learning rate; T5 is fine-tuned with a constant one."}
    )
    logging_steps: float = field(default=50, metadata={"help": "Steps between two logs of the loss."})
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Leave non-finite losses out of the log, and so do not stop at them."}
    )

    def __post_init__(self) -> None:
        if self.output_dir is None:
            raise TrainingError("--output_dir is missing: give the folder that the model shall be written to.")
        super().__post_init__()
        if Path(self.output_dir).is_file():
            raise TrainingError(f"--output_dir {self.output_dir} is a file: give a folder.")
        if (Path(self.output_dir) / "config.json").exists():
            raise TrainingError(
                f"--output_dir {self.output_dir} already holds a model: give another folder, or remove it."
            )
