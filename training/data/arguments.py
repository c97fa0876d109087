# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Options of the data: files, columns, lengths."""

import math
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from transformers import PreTrainedTokenizerBase

from ..errors import TrainingError, check_at_least
from .denoisers import UL2_MODES, Deshuffling, IidDenoising, Mixture, iid_targets_length, ul2
from .mixture_file import DataMixture, Entry, read_mixture
from .objectives import Objective, PlainLM, PrefixLM, SpanCorruption, noise_counts, span_corruption_lengths
from .opening import format_of, stem_of
from .patterns import check_format, find_paths
from .tasks import Task, find_task


# Options that a task replaces.
_OF_COLUMNS = ("source_prefix", "input_column", "target_column")
# Options that all parts of a mixture share.
_OF_ALL_PARTS = ("max_source_length", "max_target_length", "preprocessing_num_workers")
# File extensions that training/data/tables.py reads.
DATA_FORMATS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")


# Formats as model cards name them; all others are JSON.
_KINDS = {".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}
# Options with files to evaluate on, and the prefix of their metrics.
_EVALUATED = {"validation_file": "eval", "test_file": "test"}


@dataclass
class DataArguments:
    """Data: which text to train on, and how much of it."""

    train_file: list[str] | None = field(
        default=None,
        metadata={
            "help": "Training examples: .jsonl, .json (lines or one array), .csv, .tsv or .parquet, the first four "
            "also packed (.gz, .zst), or folders of save_to_disk. Several files or patterns, as 'data/*.jsonl'."
        },
    )
    validation_file: list[str] | None = field(
        default=None,
        metadata={
            "help": "Examples to evaluate on at the end, and during training with --eval_strategy. Metrics of several "
            "files have the files' names, as eval_NAME_loss."
        },
    )
    test_file: list[str] | None = field(
        default=None, metadata={"help": "Examples to evaluate on at the end; one file or several."}
    )
    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "Instead of files: a dataset of the hub, or a local folder that datasets.load_dataset reads or "
            "save_to_disk wrote, with the split train and, optionally, validation and test."
        },
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of the dataset."})
    mixture: str | None = field(
        default=None,
        metadata={
            "help": "Instead of training files or a dataset: a YAML file of several, each with its own columns, prefix "
            "or task, and how often each is drawn."
        },
    )
    input_column: str = field(default="source", metadata={"help": "Column of the encoder's text."})
    target_column: str = field(
        default="target", metadata={"help": "Column of the target text, or of a list of texts that are all right."}
    )
    source_prefix: str = field(default="", metadata={"help": 'Prepended to every input, such as "summarize: ".'})
    task: str | None = field(
        default=None,
        metadata={
            "help": "Task of the T5 paper, such as glue_mrpc, squad or wmt14_ende: makes texts of the columns that the "
            "hub gives its data set, exactly as the original, and computes its metrics. Replaces --input_column, "
            "--target_column and --source_prefix."
        },
    )
    max_source_length: int = field(default=512, metadata={"help": "Inputs are truncated to this many tokens."})
    max_target_length: int = field(default=128, metadata={"help": "Targets are truncated to this many tokens."})
    preprocessing_num_workers: int | None = field(
        default=None, metadata={"help": "Processes that tokenize the examples. Default: one, with a thread per core."}
    )

    def __post_init__(self) -> None:
        if isinstance(self.train_file, str):
            self.train_file = [self.train_file]
        for option in _EVALUATED:
            if isinstance(name := getattr(self, option), str):
                setattr(self, option, [name])
            self._check_names(option)
        for option in ("train_file", *_EVALUATED):
            if getattr(self, option) is not None and self.dataset_name is not None:
                raise TrainingError(f"--{option} and --dataset_name exclude each other: leave one of them out.")
        for option in ("train_file", "dataset_name"):
            if getattr(self, option) is not None and self.mixture is not None:
                raise TrainingError(f"--{option} and --mixture exclude each other: leave one of them out.")
        if self.dataset_config_name is not None and self.dataset_name is None:
            raise TrainingError("--dataset_config_name has no effect without --dataset_name: give both, or none.")
        for option in ("input_column", "target_column"):
            if not getattr(self, option).strip():
                raise TrainingError(f"--{option} is empty: name a column of the data.")
        check_at_least(self, 1, "max_source_length", "max_target_length", "preprocessing_num_workers")
        self.chosen_task: Task | None = None if self.task is None else find_task(self.task)
        if self.task is not None:
            self.check_task({name for name in _OF_COLUMNS if getattr(self, name) != getattr(DataArguments, name)})

    def check_task(self, given: Collection[str]) -> None:
        """Refuses options, of those that the user gave, that a task replaces, and a task whose packages are missing."""
        if self.chosen_task is None:
            return
        if unused := [name for name in _OF_COLUMNS if name in given]:
            raise TrainingError(
                f"--task {self.task} makes its texts of its own columns, so that --{unused[0]} has no effect: leave "
                "one of them out."
            )
        self.chosen_task.check_packages()

    def _check_names(self, option: str) -> None:
        stems = [stem_of(Path(name)) for name in getattr(self, option) or ()]
        if same := [stem for place, stem in enumerate(stems) if stem in stems[:place]]:
            raise TrainingError(
                f"--{option} has two files {same[0]}, by whose names metrics and predictions would be told apart: "
                "rename one."
            )

    def check_files(self) -> None:
        """Refuses data files that do not exist or have an unknown format."""
        for path in self.train_paths():
            check_format("train_file", path, DATA_FORMATS)
        for entry, options in self.parts():
            try:
                options.check_files()
            except TrainingError as error:
                raise TrainingError(f"{entry.where}: {error}") from error
        for option in _EVALUATED:
            for name in getattr(self, option) or ():
                _check_data_file(option, Path(name))

    def parts(self) -> list[tuple[Entry, "DataArguments"]]:
        """The parts of --mixture, each with the options to read it with: its own, and the lengths and workers of these.

        Raises:
            TrainingError: the file does not describe a mixture, or a part's options contradict each other.
        """
        parts = []
        for entry in () if self.mixture is None else self.read_mixture().entries:
            try:
                options = DataArguments(**entry.options, **{name: getattr(self, name) for name in _OF_ALL_PARTS})
                options.check_task(entry.options)
            except TrainingError as error:
                raise TrainingError(f"{entry.where}: {error}") from error
            parts.append((entry, options))
        return parts

    def read_mixture(self) -> DataMixture:
        """What the file of --mixture describes."""
        return read_mixture(Path(str(self.mixture)))

    def check_mixture(self, given: Collection[str]) -> None:
        """Refuses options, of those that the user gave, that each part of a mixture has of its own."""
        own = [entry.where for entry, options in self.parts() if options.validation_file is not None]
        if own and self.validation_file is not None:
            raise TrainingError(f"--validation_file has no effect beside that of {own[0]}: leave one of them out.")
        if self.mixture is None or self.validation_file is not None or self.test_file is not None:
            return
        if unused := [name for name in (*_OF_COLUMNS, "task") if name in given]:
            raise TrainingError(
                f"--{unused[0]} has no effect on a mixture, whose parts have their own: write it into {self.mixture}."
            )

    def train_paths(self) -> list[Path]:
        """The files of --train_file, sorted by name; patterns that match nothing are refused."""
        return find_paths("train_file", self.train_file or ())

    def evaluated_files(self) -> dict[str, Path]:
        """The files to evaluate on, by the prefix of their metrics: `eval` and `test`, or `eval_NAME` if there are
        several."""
        found: dict[str, Path] = {}
        for option, split in _EVALUATED.items():
            names = getattr(self, option) or ()
            found |= {f"{split}_{stem_of(Path(name))}" if len(names) > 1 else split: Path(name) for name in names}
        return found

    def sources(self) -> dict[str, dict[str, str]]:
        """Where the examples of each split are from, by the prefix of their metrics, as model cards say it."""
        splits = {"eval": "validation", "test": "test"}
        if self.dataset_name is not None:
            name = Path(self.dataset_name).name
            source = {"dataset_type": (self.hub_names() or [name])[0], "dataset_name": name}
            source |= {} if self.dataset_config_name is None else {"dataset_config": self.dataset_config_name}
            return {prefix: {**source, "dataset_split": split} for prefix, split in splits.items()}
        return {
            prefix: {
                "dataset_type": _KINDS.get(format_of(file), "arrow" if file.is_dir() else "json"),
                "dataset_name": file.name,
                "dataset_split": splits[prefix.partition("_")[0]],
            }
            for prefix, file in self.evaluated_files().items()
        } | {
            f"{prefix}_{entry.name}": source
            for entry, options in self.parts()
            for prefix, source in options.sources().items()
        }

    def hub_names(self) -> list[str]:
        """Names of data sets at the hub, those that are local folders apart."""
        names = [self.dataset_name, *(options.dataset_name for _, options in self.parts())]
        return [name for name in names if name is not None and not Path(name).exists()]


def _check_data_file(option: str, path: Path) -> None:
    if not path.exists():
        raise TrainingError(f"--{option} {path} does not exist: give the path of a data file.")
    check_format(option, path, DATA_FORMATS)


@dataclass
class EvaluationDataArguments(DataArguments):
    """Data: which texts to evaluate on."""

    # Not options here.
    train_file: list[str] | None = field(default=None, init=False)
    mixture: str | None = field(default=None, init=False)


@dataclass
class PretrainingDataArguments:
    """Which text to train on, and what to predict."""

    train_file: list[str] = field(
        metadata={
            "help": "Text: .txt, or the formats of fine-tuning with --text_column, packed or not, or folders of "
            "save_to_disk. Several files or patterns, as 'c4/*.jsonl.gz'."
        }
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

    def make_objective(self, tokenizer: PreTrainedTokenizerBase) -> Objective:
        """The objective that these options describe, for a vocabulary."""
        eos = tokenizer.eos_token_id
        if self.objective == "lm":
            return PlainLM(1, self.max_target_length or 512, eos, self.documents_together or 128)
        inputs = self.max_source_length or 512
        if self.objective == "span_corruption":
            return self._span_corruption(inputs, tokenizer)
        if min(inputs, self.max_target_length or inputs) < 3:
            raise TrainingError(f"--objective {self.objective} needs at least 3 tokens on both sides.")
        if self.objective == "iid_denoising":
            return self._iid_denoising(inputs, tokenizer)
        if self.objective == "ul2":
            return self._ul2(inputs, tokenizer)
        together = self.documents_together or 1
        if self.objective == "prefix_lm":
            return PrefixLM(inputs, self.max_target_length or inputs, eos, together, self.noise_density or 0.5)
        if self.max_target_length not in (None, inputs):
            raise TrainingError(
                f"--max_target_length is {self.max_target_length}, but deshuffling predicts all of {inputs} inputs: "
                f"leave the option out, or give {inputs}."
            )
        return Deshuffling(inputs, inputs, eos, together)

    def _iid_denoising(self, inputs: int, tokenizer: PreTrainedTokenizerBase) -> IidDenoising:
        density, together = self.noise_density or 0.15, self.documents_together or 128
        targets, needed = self.max_target_length or iid_targets_length(inputs, density), 2 * density * inputs
        if targets < needed:
            raise TrainingError(
                f"--max_target_length is {targets}, but a density of {density} often makes more targets of {inputs} "
                f"inputs: give at least {math.ceil(needed)}."
            )
        first, count = _sentinels(tokenizer)
        spans = density * (1 - density) * inputs
        if spans + 1 > count:
            raise TrainingError(
                f"About {spans:.0f} spans in {inputs} inputs need as many sentinels, but the tokenizer has {count}: "
                "give a shorter --max_source_length or a lower --noise_density."
            )
        return IidDenoising(inputs, targets, tokenizer.eos_token_id, together, first, count, density)

    def _ul2(self, inputs: int, tokenizer: PreTrainedTokenizerBase) -> Mixture:
        modes = {mode: tuple(tokenizer(mode, add_special_tokens=False)["input_ids"]) for mode in UL2_MODES}
        if len(set(modes.values())) < len(modes):
            raise TrainingError(
                f"The tokenizer spells {', '.join(modes)} alike, which tell UL2's denoisers apart: add them as tokens."
            )
        together, (first, count) = self.documents_together or 128, _sentinels(tokenizer)
        mixture = ul2(modes, inputs, tokenizer.eos_token_id, together, first, count)
        if mixture is None:
            raise TrainingError(f"--max_source_length {inputs} is too short for UL2's spans of 64 tokens: give 512.")
        if (self.max_target_length or mixture.targets_length) < mixture.targets_length:
            raise TrainingError(
                f"--max_target_length is {self.max_target_length}, but UL2 makes {mixture.targets_length} targets of "
                f"{inputs} inputs: leave the option out, or give at least as many."
            )
        return replace(mixture, targets_length=self.max_target_length or mixture.targets_length)

    def _span_corruption(self, inputs: int, tokenizer: PreTrainedTokenizerBase) -> SpanCorruption:
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
    """Id of `<extra_id_0>`, and the number of sentinels, whose ids count down from it."""
    vocabulary = tokenizer.get_vocab()
    first = vocabulary.get("<extra_id_0>")
    if first is None:
        raise TrainingError("The tokenizer has no sentinels (<extra_id_0>), which span corruption needs.")
    count = 1
    while vocabulary.get(f"<extra_id_{count}>") == first - count:
        count += 1
    return first, count
