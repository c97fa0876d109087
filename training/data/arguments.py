# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Options of pairs of texts: files, columns, lengths. Those of plain text are in pretraining_arguments.py."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import TrainingError, check_at_least
from .mixture_file import DataMixture, Entry, read_mixture
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
            "help": "Examples to evaluate on at the end, and during training with --eval_strategy; files or patterns. "
            "Metrics of several files have the files' names, as eval_NAME_loss."
        },
    )
    test_file: list[str] | None = field(
        default=None, metadata={"help": "Examples to evaluate on at the end; files or patterns."}
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

    @property
    def has_training_data(self) -> bool:
        """Whether there is something to train on."""
        return any(source is not None for source in (self.train_file, self.dataset_name, self.mixture))

    def __post_init__(self) -> None:
        if isinstance(self.train_file, str):
            self.train_file = [self.train_file]
        for option in _EVALUATED:
            if isinstance(name := getattr(self, option), str):
                setattr(self, option, [name])
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

    def check_files(self) -> None:
        """Refuses data files that do not exist, have an unknown format, or could not be told apart."""
        for path in self.train_paths():
            check_format("train_file", path, DATA_FORMATS)
        for entry, options in self.parts():
            try:
                options.check_files()
            except TrainingError as error:
                raise TrainingError(f"{entry.where}: {error}") from error
        for option in _EVALUATED:
            paths = self._evaluated_paths(option)
            for path in paths:
                check_format(option, path, DATA_FORMATS)
            _check_names(option, paths)

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
            paths = self._evaluated_paths(option)
            found |= {f"{split}_{stem_of(path)}" if len(paths) > 1 else split: path for path in paths}
        return found

    def _evaluated_paths(self, option: str) -> list[Path]:
        """The files of an option in its order, those of a pattern sorted by name; each once."""
        paths: dict[Path, Path] = {}
        for pattern in getattr(self, option) or ():
            for path in find_paths(option, [pattern]):
                paths.setdefault(path.resolve(), path)
        return list(paths.values())

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
            entry.prefix(prefix): source
            for entry, options in self.parts()
            for prefix, source in options.sources().items()
        }

    def hub_names(self) -> list[str]:
        """Names of data sets at the hub, those that are local folders apart."""
        names = [self.dataset_name, *(options.dataset_name for _, options in self.parts())]
        return [name for name in names if name is not None and not Path(name).exists()]


def _check_names(option: str, paths: Sequence[Path]) -> None:
    stems = [stem_of(path) for path in paths]
    if same := [stem for place, stem in enumerate(stems) if stem in stems[:place]]:
        raise TrainingError(
            f"--{option} has two files {same[0]}, by whose names metrics and predictions would be told apart: rename "
            "one."
        )


@dataclass
class EvaluationDataArguments(DataArguments):
    """Data: which texts to evaluate on."""

    # Not options here.
    train_file: list[str] | None = field(default=None, init=False)
    mixture: str | None = field(default=None, init=False)
