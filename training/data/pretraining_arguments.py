# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Options of plain text, and the objective that they describe."""

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from transformers import PreTrainedTokenizerBase

from t5_experimental.vocabulary import SENTINELS

from ..errors import TrainingError, check_at_least
from .denoisers import UL2_MODES, Deshuffling, IidDenoising, Mixture, iid_targets_length, ul2
from .objectives import Objective, PlainLM, PrefixLM, SpanCorruption, noise_counts, span_corruption_lengths


@dataclass
class PretrainingDataArguments:
    """Which text to train on, and what to predict."""

    train_file: list[str] | None = field(
        default=None,
        metadata={
            "help": "Text: .txt, or the formats of fine-tuning with --text_column, packed or not, or folders of "
            "save_to_disk. Several files or patterns, as 'c4/*.jsonl.gz'. Required, except with --estimate."
        },
    )
    validation_file: list[str] | None = field(
        default=None, metadata={"help": "Text to evaluate on at the end, and during training with --eval_strategy."}
    )
    validation_rows: int = field(default=1000, metadata={"help": "Rows of the validation files to use."})
    text_column: str = field(default="text", metadata={"help": "Column of JSON and tables that has the text."})
    document_per_line: bool = field(
        default=False, metadata={"help": "Every line of .txt files is a document; otherwise blank lines separate them."}
    )
    objective: Literal["span_corruption", "prefix_lm", "lm", "iid_denoising", "deshuffling", "ul2"] = field(
        default="span_corruption",
        metadata={
            "help": "Predict spans that are left out, the rest of a text after a prefix, all of it, tokens that are "
            "left out each by its own draw, the order of shuffled tokens, or what UL2's seven denoisers leave out."
        },
    )
    noise_density: float | None = field(
        default=None,
        metadata={
            "help": "Fraction of the text that span_corruption and iid_denoising predict, default 0.15; for prefix_lm "
            "half the largest fraction, default 0.5."
        },
    )
    mean_noise_span_length: float | None = field(
        default=None, metadata={"help": "Mean tokens in a span that span_corruption leaves out. Default: 3."}
    )
    max_source_length: int | None = field(
        default=None, metadata={"help": "Tokens of inputs. Default: 512; none with lm."}
    )
    max_target_length: int | None = field(
        default=None,
        metadata={
            "help": "Tokens of targets. Default: what span_corruption or ul2 make of full inputs, 114 or 512 for 512; "
            "the original's 192 for 512 with iid_denoising; otherwise as many as of inputs, or 512."
        },
    )
    documents_together: int | None = field(
        default=None,
        metadata={
            "help": "Documents to join before chunking, so that fewer examples are short. Default: the original's "
            "128, and 1 with prefix_lm and deshuffling."
        },
    )
    pack: bool = field(
        default=False, metadata={"help": "Pack as many short examples into a row as fit; they do not see each other."}
    )
    shuffle_megabytes: float = field(
        default=8.0,
        metadata={"help": "Shuffle the text in windows of this size, and the examples within each window."},
    )

    def __post_init__(self) -> None:
        check_at_least(self, 1, "validation_rows", "max_source_length", "max_target_length", "documents_together")
        check_at_least(self, 1, "mean_noise_span_length")
        if self.shuffle_megabytes <= 0:
            raise TrainingError(f"--shuffle_megabytes is {self.shuffle_megabytes}: it must be more than 0.")
        if self.mean_noise_span_length is not None and self.objective != "span_corruption":
            spans = {"ul2": "spans of its own", "iid_denoising": "no mean length"}.get(self.objective, "no spans")
            raise TrainingError(f"--objective {self.objective} has {spans}: leave --mean_noise_span_length out.")
        if self.objective == "lm" and self.max_source_length is not None:
            raise TrainingError("--objective lm has no inputs: leave --max_source_length out.")
        if self.objective == "lm" and self.pack:
            raise TrainingError("--objective lm fills its rows without packing: leave --pack out.")
        if self.noise_density is not None:
            self._check_noise_density(self.noise_density)

    def _check_noise_density(self, density: float) -> None:
        if self.objective in ("lm", "deshuffling"):
            raise TrainingError(f"--objective {self.objective} predicts everything: leave --noise_density out.")
        if self.objective == "ul2":
            raise TrainingError("--objective ul2 has densities of its own: leave --noise_density out.")
        most = 0.9 if self.objective == "span_corruption" else 0.5
        if not 0 < density <= most:
            raise TrainingError(
                f"--noise_density is {density}: with {self.objective} it must be more than 0 and at most {most}."
            )

    def check_trains(self) -> None:
        """Refuses options without text to train on."""
        if not self.train_file:
            raise TrainingError("--train_file is missing: give the text to train on.")

    def make_objective(self, tokenizer: PreTrainedTokenizerBase | None) -> Objective:
        """The objective that these options describe, for a vocabulary; None is that of the released checkpoints, to
        which each of UL2's modes was added as one token."""
        eos = 1 if tokenizer is None else tokenizer.eos_token_id
        if self.objective == "lm":
            return PlainLM(1, self.max_target_length or 512, eos, self.documents_together or 128)
        inputs = self.max_source_length or 512
        if self.objective == "span_corruption":
            return self._span_corruption(inputs, eos, _sentinels(tokenizer))
        if min(inputs, self.max_target_length or inputs) < 3:
            raise TrainingError(f"--objective {self.objective} needs at least 3 tokens on both sides.")
        if self.objective == "iid_denoising":
            return self._iid_denoising(inputs, eos, _sentinels(tokenizer))
        if self.objective == "ul2":
            return self._ul2(inputs, eos, _modes(tokenizer), _sentinels(tokenizer))
        together = self.documents_together or 1
        if self.objective == "prefix_lm":
            return PrefixLM(inputs, self.max_target_length or inputs, eos, together, self.noise_density or 0.5)
        if self.max_target_length not in (None, inputs):
            raise TrainingError(
                f"--max_target_length is {self.max_target_length}, but deshuffling predicts all of {inputs} inputs: "
                f"leave the option out, or give {inputs}."
            )
        return Deshuffling(inputs, inputs, eos, together)

    def _iid_denoising(self, inputs: int, eos: int, sentinels: tuple[int, int]) -> IidDenoising:
        density, together = self.noise_density or 0.15, self.documents_together or 128
        targets, needed = self.max_target_length or iid_targets_length(inputs, density), 2 * density * inputs
        if targets < needed:
            raise TrainingError(
                f"--max_target_length is {targets}, but a density of {density} often makes more targets of {inputs} "
                f"inputs: give at least {math.ceil(needed)}."
            )
        first, count = sentinels
        spans = density * (1 - density) * inputs
        if spans + 1 > count:
            raise TrainingError(
                f"About {spans:.0f} spans in {inputs} inputs need as many sentinels, but the tokenizer has {count}: "
                "give a shorter --max_source_length or a lower --noise_density."
            )
        return IidDenoising(inputs, targets, eos, together, first, count, density)

    def _ul2(self, inputs: int, eos: int, modes: dict[str, tuple[int, ...]], sentinels: tuple[int, int]) -> Mixture:
        mixture = ul2(modes, inputs, eos, self.documents_together or 128, *sentinels)
        if mixture is None:
            raise TrainingError(f"--max_source_length {inputs} is too short for UL2's spans of 64 tokens: give 512.")
        if (self.max_target_length or mixture.targets_length) < mixture.targets_length:
            raise TrainingError(
                f"--max_target_length is {self.max_target_length}, but UL2 makes {mixture.targets_length} targets of "
                f"{inputs} inputs: leave the option out, or give at least as many."
            )
        return replace(mixture, targets_length=self.max_target_length or mixture.targets_length)

    def _span_corruption(self, inputs: int, eos: int, sentinels: tuple[int, int]) -> SpanCorruption:
        density, mean = self.noise_density or 0.15, self.mean_noise_span_length or 3.0
        chunk, targets = span_corruption_lengths(inputs, density, mean)
        noise, spans = noise_counts(max(chunk, 2), density, mean)
        if noise + spans + 1 > targets:
            raise TrainingError(f"--max_source_length {inputs} is too short to leave a span out: give more.")
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
        first, count = sentinels
        if spans > count:
            raise TrainingError(
                f"{spans} spans in {inputs} inputs need as many sentinels, but the tokenizer has {count}: give a "
                "shorter --max_source_length or a longer --mean_noise_span_length."
            )
        return SpanCorruption(inputs, targets, eos, self.documents_together or 128, first, density, mean)


def _sentinels(tokenizer: PreTrainedTokenizerBase | None) -> tuple[int, int]:
    """Id of `<extra_id_0>`, and the number of sentinels, whose ids count down from it."""
    if tokenizer is None:
        return 32_099, SENTINELS
    vocabulary = tokenizer.get_vocab()
    first = vocabulary.get("<extra_id_0>")
    if first is None:
        raise TrainingError("The tokenizer has no sentinels (<extra_id_0>), which span corruption needs.")
    count = 1
    while vocabulary.get(f"<extra_id_{count}>") == first - count:
        count += 1
    return first, count


def _modes(tokenizer: PreTrainedTokenizerBase | None) -> dict[str, tuple[int, ...]]:
    """Ids of each of UL2's modes."""
    if tokenizer is None:
        return {mode: (32_100 + place,) for place, mode in enumerate(UL2_MODES)}
    modes = {mode: tuple(tokenizer(mode, add_special_tokens=False)["input_ids"]) for mode in UL2_MODES}
    if len(set(modes.values())) < len(modes):
        raise TrainingError(
            f"The tokenizer spells {', '.join(modes)} alike, which tell UL2's denoisers apart: add them as tokens."
        )
    return modes
