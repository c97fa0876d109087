# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Options that only pre-training has."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from t5_experimental.presets import PRESETS
from t5_experimental.training.arguments import T5TrainingArguments, check_dropout_rate, check_model_folder
from t5_experimental.training.errors import TrainingError, in_a_line
from t5_experimental.training.losses import LossDenominator
from t5_experimental.training.objectives import (
    Objective,
    PlainLM,
    PrefixLM,
    SpanCorruption,
    noise_counts,
    span_corruption_lengths,
)


@dataclass
class PretrainingModelArguments:
    """What is trained: a checkpoint, or a preset with fresh weights."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Folder of a converted checkpoint. Nothing is downloaded."}
    )
    preset: str | None = field(
        default=None, metadata={"help": f"Fresh weights in the shape of a released checkpoint: {', '.join(PRESETS)}."}
    )
    config_overrides: str = field(
        default="{}", metadata={"help": 'What is otherwise than in the preset, as JSON: {"d_model": 128}.'}
    )
    tokenizer_name: str | None = field(
        default=None,
        metadata={"help": "Folder of a tokenizer, or a sentencepiece model. Default: that of --model_name_or_path."},
    )
    dropout_rate: float = field(
        default=0.0, metadata={"help": "Dropout while training. The checkpoints were pre-trained with 0."}
    )
    broadcast_dropout: bool = field(
        default=False,
        metadata={"help": "Drop the same features and keys at all positions of a row, as the original does."},
    )

    def __post_init__(self) -> None:
        if (self.model_name_or_path is None) == (self.preset is None):
            raise TrainingError("Give either --model_name_or_path, to go on with, or --preset, for fresh weights.")
        if self.preset is not None:
            if self.preset not in PRESETS:
                raise TrainingError(f"--preset {self.preset} does not exist: choose one of {', '.join(PRESETS)}.")
            if self.tokenizer_name is None:
                raise TrainingError("--preset needs a vocabulary: give --tokenizer_name, too.")
        else:
            check_model_folder(str(self.model_name_or_path))
            if self.overrides():
                raise TrainingError("--config_overrides is for --preset; a checkpoint has its own configuration.")
        if self.tokenizer_name is not None and not Path(self.tokenizer_name).exists():
            raise TrainingError(f"--tokenizer_name {self.tokenizer_name} does not exist: give a folder or a file.")
        check_dropout_rate(self.dropout_rate)

    def overrides(self) -> dict[str, Any]:
        """`config_overrides`, read."""
        try:
            overrides = json.loads(self.config_overrides)
        except (ValueError, RecursionError) as error:
            raise TrainingError(f"--config_overrides is not JSON ({in_a_line(error)}).") from error
        if not isinstance(overrides, dict):
            raise TrainingError('--config_overrides is not a JSON object such as {"d_model": 128}.')
        if own := sorted(set(overrides) & set(self.dropout_fields())):
            raise TrainingError(f"--config_overrides has {own[0]}, which is an option of its own: give --{own[0]}.")
        return overrides

    def dropout_fields(self) -> dict[str, float | bool]:
        """What the model's configuration shall say of dropout."""
        return {"dropout_rate": self.dropout_rate, "broadcast_dropout": self.broadcast_dropout}


@dataclass
class PretrainingDataArguments:
    """Which text it is trained on, and what is to be predicted."""

    train_file: list[str] = field(
        metadata={
            "help": "Text: .txt, or .jsonl (or .json) with --text_column. Several, also patterns as 'c4/*.jsonl'."
        }
    )
    validation_file: list[str] | None = field(
        default=None, metadata={"help": "Text to evaluate on at the end, and meanwhile with --eval_strategy."}
    )
    validation_rows: int = field(default=1000, metadata={"help": "So many rows of the validation files are used."})
    text_column: str = field(default="text", metadata={"help": "Where JSON lines have the text."})
    document_per_line: bool = field(
        default=False, metadata={"help": "Every line of .txt files is a document; otherwise blank lines separate them."}
    )
    objective: Literal["span_corruption", "prefix_lm", "lm"] = field(
        default="span_corruption",
        metadata={"help": "Predict spans that are left out, the rest of a text that begins, or all of it."},
    )
    noise_density: float | None = field(
        default=None,
        metadata={
            "help": "Share of the text that span_corruption predicts, default 0.15; for prefix_lm half the largest "
            "share, default 0.5."
        },
    )
    mean_noise_span_length: float | None = field(
        default=None, metadata={"help": "Tokens in a span that span_corruption leaves out, on average. Default: 3."}
    )
    max_source_length: int | None = field(
        default=None, metadata={"help": "Tokens of inputs. Default: 512; with lm there are none."}
    )
    max_target_length: int | None = field(
        default=None,
        metadata={
            "help": "Tokens of targets. Default: what span_corruption makes of full inputs, 114 of 512; otherwise as "
            "many as of inputs, or 512."
        },
    )
    documents_together: int | None = field(
        default=None,
        metadata={
            "help": "Documents that are joined before they are cut up, so that fewer examples are short. Default: "
            "the original's 128, and 1 with prefix_lm."
        },
    )
    pack: bool = field(
        default=False, metadata={"help": "Put as many short examples into a row as fit; they do not see each other."}
    )
    shuffle_megabytes: float = field(
        default=8.0,
        metadata={"help": "Parts of the text of this size come in random order, and so does what each holds."},
    )

    def __post_init__(self) -> None:
        for option in ("validation_rows", "max_source_length", "max_target_length", "documents_together"):
            if (value := getattr(self, option)) is not None and value < 1:
                raise TrainingError(f"--{option} is {value}: it must be at least 1.")
        if self.shuffle_megabytes <= 0:
            raise TrainingError(f"--shuffle_megabytes is {self.shuffle_megabytes}: it must be more than 0.")
        if self.mean_noise_span_length is not None:
            if self.mean_noise_span_length < 1:
                raise TrainingError(
                    f"--mean_noise_span_length is {self.mean_noise_span_length}: it must be at least 1."
                )
            if self.objective != "span_corruption":
                raise TrainingError(f"--objective {self.objective} has no spans: leave --mean_noise_span_length out.")
        if self.objective == "lm" and self.max_source_length is not None:
            raise TrainingError("--objective lm has no inputs: leave --max_source_length out.")
        if self.objective == "lm" and self.pack:
            raise TrainingError("--objective lm fills its rows anyway: leave --pack out.")
        if self.noise_density is not None:
            self._check_noise_density(self.noise_density)

    def _check_noise_density(self, density: float) -> None:
        if self.objective == "lm":
            raise TrainingError("--objective lm predicts everything: leave --noise_density out.")
        most = 0.5 if self.objective == "prefix_lm" else 0.9
        if not 0 < density <= most:
            raise TrainingError(
                f"--noise_density is {density}: with {self.objective} it must be more than 0 and at most {most}."
            )

    def make_objective(self, tokenizer: PreTrainedTokenizerBase) -> Objective:
        """What these options describe, for a vocabulary."""
        eos = tokenizer.eos_token_id
        if self.objective == "lm":
            return PlainLM(1, self.max_target_length or 512, eos, self.documents_together or 128)
        inputs = self.max_source_length or 512
        if self.objective == "prefix_lm":
            if min(inputs, self.max_target_length or inputs) < 3:
                raise TrainingError("--objective prefix_lm needs at least 3 tokens on both sides.")
            together = self.documents_together or 1
            return PrefixLM(inputs, self.max_target_length or inputs, eos, together, self.noise_density or 0.5)
        return self._span_corruption(inputs, tokenizer)

    def _span_corruption(self, inputs: int, tokenizer: PreTrainedTokenizerBase) -> SpanCorruption:
        density, mean = self.noise_density or 0.15, self.mean_noise_span_length or 3.0
        chunk, targets = span_corruption_lengths(inputs, density, mean)
        noise, spans = noise_counts(max(chunk, 2), density, mean)
        if noise + spans + 1 > targets:
            raise TrainingError(f"--max_source_length {inputs} is too short for a span to be left out: give more.")
        if round(noise / mean) > max(chunk, 2) - noise:
            raise TrainingError(
                f"--noise_density {density} in spans of {mean} leaves fewer tokens of text than spans: give a lower "
                "density or longer spans."
            )
        if self.max_target_length not in (None, targets):
            raise TrainingError(
                f"--max_target_length is {self.max_target_length}, but span corruption makes {targets} targets of "
                f"{inputs} inputs: leave the option out, or give {targets}."
            )
        first, count = _sentinels(tokenizer)
        if spans > count:
            raise TrainingError(
                f"{spans} spans in {inputs} inputs need as many sentinels, but the tokenizer has {count}: give a "
                "shorter --max_source_length or a longer --mean_noise_span_length."
            )
        return SpanCorruption(
            inputs, targets, tokenizer.eos_token_id, self.documents_together or 128, first, density, mean
        )


def _sentinels(tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    """Id of `<extra_id_0>`, and how many sentinels count down from it."""
    vocabulary = tokenizer.get_vocab()
    first = vocabulary.get("<extra_id_0>")
    if first is None:
        raise TrainingError("The tokenizer has no sentinels (<extra_id_0>), which span corruption needs.")
    count = 1
    while vocabulary.get(f"<extra_id_{count}>") == first - count:
        count += 1
    return first, count


@dataclass
class PretrainingArguments(T5TrainingArguments):
    """How it is trained: the original's pre-training, unless said otherwise."""

    optimizer_preset: str | None = field(
        default="pretrain",
        metadata={
            "help": "Optimizer with its schedule, see training/optimizers.py; an empty string for --optim instead."
        },
    )
    z_loss: float = field(
        default=1e-4,
        metadata={"help": "Weight of the squared log-normaliser in the loss of training, as in the original."},
    )

    loss_denominator: LossDenominator = field(
        default="positions",
        metadata={
            "help": "What the summed loss of a step is divided by: the tokens to predict, or, as in the original, all "
            "target positions, padding included. Evaluation always divides by tokens."
        },
    )
    max_grad_norm: float = field(
        default=0.0, metadata={"help": "Gradients are scaled down to this norm; 0 for never, as in the original."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_steps < 1:
            raise TrainingError("--max_steps is missing: the text is gone through over and over, so say when to stop.")
        if self.predict_with_generate:
            raise TrainingError("--predict_with_generate is for fine-tuning: pre-training has no texts to compare.")
