# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Options of the model: its folder or preset, dropout, adapters, prompts."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from t5_experimental.model_folders import FolderError, check_adapter, check_model, holds_adapter, model_and_adapter
from t5_experimental.presets import PRESETS

from ..errors import TrainingError, check_at_least, in_a_line


PROMPT_INITS = ("vocab", "labels", "random")


@dataclass
class PromptArguments:
    """Prompt."""

    prompt_length: int = field(default=100, metadata={"help": "Rows of the prompt."})
    prompt_init: str | None = field(
        default=None,
        metadata={
            "help": "Initial values: embeddings of common tokens (vocab), embeddings of the class labels followed by "
            "common tokens (labels), random values (random), or a prompt that is tuned further: a numpy file, or the "
            "folder of an adapter. Default: labels if there are any, else vocab."
        },
    )
    class_labels: str | None = field(
        default=None, metadata={"help": 'Class labels, the possible targets, separated by commas: "positive,negative".'}
    )
    import_prompt: str | None = field(
        default=None,
        metadata={
            "help": "Trains nothing: writes the prompt of this numpy file (float32, length x width) as an adapter."
        },
    )

    def __post_init__(self) -> None:
        check_at_least(self, 1, "prompt_length")
        if self.prompt_init is None:
            self.prompt_init = "vocab" if self.class_labels is None else "labels"
        if self.initial_prompt is not None and self.import_prompt is not None:
            raise TrainingError(
                "--import_prompt trains nothing: leave it or --prompt_init out, which tunes a prompt further."
            )
        if self.prompt_init == "labels" and self.class_labels is None:
            raise TrainingError("--prompt_init labels needs the labels: give --class_labels, too.")
        if self.prompt_init != "labels" and self.class_labels is not None:
            raise TrainingError(
                f"--class_labels is not for --prompt_init {self.prompt_init}: leave one of the two out."
            )

    def check_files(self) -> None:
        """Refuses a prompt that does not exist."""
        if (path := self.initial_prompt) is not None and not path.exists():
            raise TrainingError(
                f"--prompt_init {path} is not one of {', '.join(PROMPT_INITS)}, and no file: give one of these, an "
                ".npy file, or the folder of a prompt."
            )

    @property
    def initial_prompt(self) -> Path | None:
        """The prompt to start from; None if it is made anew."""
        return None if self.prompt_init is None or self.prompt_init in PROMPT_INITS else Path(self.prompt_init)

    @property
    def labels(self) -> list[str]:
        """The class labels as a list, stripped."""
        return [] if self.class_labels is None else [label.strip() for label in self.class_labels.split(",")]


class _Dropout:
    dropout_rate: float
    broadcast_dropout: bool

    def dropout_fields(self) -> dict[str, float | bool]:
        """Dropout fields of the model's configuration."""
        return {"dropout_rate": self.dropout_rate, "broadcast_dropout": self.broadcast_dropout}


@dataclass
class ModelArguments(_Dropout):
    """Model."""

    model_name_or_path: str = field(
        default="",
        metadata={
            "help": "Folder of a converted checkpoint, with its tokenizer, or of LoRA adapters to train further. "
            "Nothing is downloaded. Required, except with --preset."
        },
    )
    preset: str | None = field(
        default=None,
        metadata={"help": "With --estimate, instead of a folder: a released checkpoint, such as t5.1.1.xl."},
    )
    dropout_rate: float = field(
        default=0.1,
        metadata={"help": "Dropout in training. The checkpoints were pre-trained with 0 and fine-tuned with 0.1."},
    )
    broadcast_dropout: bool = field(
        default=False,
        metadata={"help": "Drop the same features and keys at all positions of a row, as the original does."},
    )

    def __post_init__(self) -> None:
        check_dropout_rate(self.dropout_rate)
        if self.preset is not None and self.preset not in PRESETS:
            raise TrainingError(f"--preset {self.preset} does not exist: choose one of {', '.join(PRESETS)}.")
        if bool(self.model_name_or_path) == (self.preset is not None):
            raise TrainingError(
                "Give either --model_name_or_path, the folder of a converted checkpoint, or, with --estimate, --preset."
            )

    def check_trains(self) -> None:
        """Refuses a preset, which has no weights to train."""
        if self.preset is not None:
            raise TrainingError(
                "--preset without --estimate: give --model_name_or_path; pretrain.py trains fresh weights of a preset."
            )

    def check_files(self) -> None:
        """Refuses a folder without a model, or adapters, which can be evaluated and trained further."""
        if self.preset is None and not holds_adapter(self.model_name_or_path):
            check_model_folder(self.model_name_or_path)


@dataclass
class EvaluatedModelArguments:
    """Model: what to evaluate, possibly with an adapter."""

    model_name_or_path: str = field(
        metadata={
            "help": "Folder of a model with its tokenizer, or of LoRA adapters or a prompt, which names its model. "
            "Nothing is downloaded."
        }
    )
    adapter_name_or_path: str | None = field(
        default=None, metadata={"help": "Folder of LoRA adapters or a prompt for --model_name_or_path."}
    )
    decoding_weights: str | None = field(
        default=None,
        metadata={
            "help": "int8: generate with weights that are rounded to 8 bits, LoRA adapters merged, which is faster on "
            "CPUs and changes some texts. Losses are computed without.",
            "choices": ["int8"],
        },
    )

    def check_files(self) -> None:
        """Refuses folders without a model or adapter."""
        model, adapter = self.folders()
        if adapter is not None:
            with folder_errors():
                check_adapter(adapter)
        check_model_folder(model)

    def folders(self) -> tuple[str, str | None]:
        """The folders of the model and of the adapter, or None without one.

        Raises:
            TrainingError: the folder of an adapter does not say where its model is.
        """
        with folder_errors():
            return model_and_adapter(
                self.model_name_or_path, self.adapter_name_or_path, ("--model_name_or_path", "--adapter_name_or_path")
            )


@contextmanager
def folder_errors() -> Iterator[None]:
    """Turns the library's errors about folders into those of training."""
    try:
        yield
    except FolderError as error:
        raise TrainingError(str(error)) from error


def check_model_folder(folder: str) -> None:
    """Refuses a `--model_name_or_path` without a model."""
    with folder_errors():
        check_model(folder)


def check_dropout_rate(rate: float) -> None:
    """Refuses a `--dropout_rate` that is out of range."""
    if not 0 <= rate < 1:
        raise TrainingError(f"--dropout_rate is {rate}: it must be at least 0 and less than 1.")


@dataclass
class PretrainingModelArguments(_Dropout):
    """What to train: a checkpoint, or a preset with fresh weights."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Folder of a converted checkpoint. Nothing is downloaded."}
    )
    preset: str | None = field(
        default=None,
        metadata={
            "help": "Fresh weights with the sizes of a released checkpoint, such as t5.1.1.small; `t5-experimental "
            "presets` lists all."
        },
    )
    config_overrides: str = field(
        default="{}", metadata={"help": 'Fields that differ from the preset, as JSON: {"d_model": 128}.'}
    )
    tokenizer_name: str | None = field(
        default=None,
        metadata={"help": "Folder of a tokenizer, or a sentencepiece model. Default: that of --model_name_or_path."},
    )
    dropout_rate: float = field(
        default=0.0, metadata={"help": "Dropout in training. The checkpoints were pre-trained with 0."}
    )
    broadcast_dropout: bool = field(
        default=False,
        metadata={"help": "Drop the same features and keys at all positions of a row, as the original does."},
    )

    def __post_init__(self) -> None:
        if (self.model_name_or_path is None) == (self.preset is None):
            raise TrainingError("Give either --model_name_or_path, to continue from, or --preset, for fresh weights.")
        if self.preset is not None:
            if self.preset not in PRESETS:
                raise TrainingError(f"--preset {self.preset} does not exist: choose one of {', '.join(PRESETS)}.")
        elif self.overrides():
            raise TrainingError("--config_overrides is for --preset; a checkpoint has its own configuration.")
        check_dropout_rate(self.dropout_rate)

    def check_trains(self) -> None:
        """Refuses a preset without a vocabulary, which only `--estimate` does not need."""
        if self.preset is not None and self.tokenizer_name is None:
            raise TrainingError("--preset needs a vocabulary: give --tokenizer_name, too.")

    def check_files(self) -> None:
        """Refuses a folder without a model, and a vocabulary that does not exist."""
        if self.model_name_or_path is not None:
            check_model_folder(self.model_name_or_path)
        if self.tokenizer_name is not None and not Path(self.tokenizer_name).exists():
            raise TrainingError(f"--tokenizer_name {self.tokenizer_name} does not exist: give a folder or a file.")

    def overrides(self) -> dict[str, Any]:
        """`config_overrides` as a dictionary."""
        try:
            overrides = json.loads(self.config_overrides)
        except (ValueError, RecursionError) as error:
            raise TrainingError(f"--config_overrides is not JSON ({in_a_line(error)}).") from error
        if not isinstance(overrides, dict):
            raise TrainingError('--config_overrides is not a JSON object such as {"d_model": 128}.')
        if own := sorted(set(overrides) & set(self.dropout_fields())):
            raise TrainingError(f"--config_overrides has {own[0]}, which has an option of its own: give --{own[0]}.")
        return overrides
