# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Examples from files or datasets, first as text exactly as written, then as token ids."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from datasets import (
    Dataset,
    DatasetBuilder,
    DownloadManager,
    Value,
    concatenate_datasets,
    load_dataset,
    load_dataset_builder,
)
from datasets.exceptions import DatasetGenerationError, DatasetsError
from transformers import PreTrainedTokenizerBase

from ..errors import TrainingError, in_a_line, shown
from .arguments import DataArguments
from .folders import is_saved, load_saved, stamp_of
from .mixing import MixtureSampler, Source
from .packed_rows import PackedRows, PackedSampler
from .readings import Columns, Example, Reading, TaskRows
from .tables import read_table
from .tasks import Task


def read_examples(path: Path, input_column: str, target_column: str, ending: str | None = None) -> Iterator[Example]:
    """Examples of a file, as `{"source": ..., "targets": [...]}`; the target column has a text, or a list of texts that
    are all right.

    Numbers become text: in CSV and JSON exactly as written; in Parquet, which stores no notation, as Python prints
    them.

    Args:
        path: the file.
        input_column: column of inputs.
        target_column: column of targets.
        ending: extension that tells the format, instead of the file's own.

    Raises:
        TrainingError: the file does not have the format of its extension, lacks a column, has one twice, or has an
            example that is not text.
    """
    yield from _read(path, Columns(input_column, target_column), ending)


def _read(path: Path, reading: Reading, ending: str | None) -> Iterator[Any]:
    for where, row in read_table(path, ending):
        yield reading.example(row, where)


def _generate(path: str, reading: Reading, ending: str | None, stamp: list[tuple[str, int, int]]) -> Iterator[Any]:
    # `stamp` only serves as a cache key for `datasets`: a file that has changed is read again.
    yield from _read(Path(path), reading, ending)


def load_examples(path: Path, input_column: str, target_column: str, ending: str | None = None) -> Dataset:
    """The examples of a file, with columns `source` and `targets`; arguments as for [`read_examples`].

    Raises:
        TrainingError: as for [`read_examples`], or the file has no example.
    """
    return _load(path, Columns(input_column, target_column), ending)


def _load(path: Path, reading: Reading, ending: str | None = None) -> Dataset:
    if next(_read(path, reading, ending), None) is None:
        raise TrainingError(f"{path} has no examples: give a file with at least one.")
    try:
        return Dataset.from_generator(
            _generate,
            features=reading.features,
            gen_kwargs={
                "path": str(path.resolve()),
                "reading": reading,
                "ending": ending,
                "stamp": stamp_of(path),
            },
        )
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, TrainingError):
            raise error.__cause__ from None
        raise


def load_named_examples(name: str, config: str | None, input_column: str, target_column: str) -> dict[str, Dataset]:
    """The examples of a dataset of the hub or of a local folder, by split, with columns `source` and `targets`.

    Splits are named as the dataset names them; only `train`, `validation` and `test` are read.

    Raises:
        TrainingError: the dataset does not exist, has no training split, or as for [`read_examples`].
    """
    wanted = {split: [split] for split in ("train", "validation", "test")}
    return _load_named(name, config, Columns(input_column, target_column), wanted)


def _load_named(name: str, config: str | None, reading: Reading, wanted: dict[str, list[str]]) -> dict[str, Dataset]:
    """The examples of those splits that exist of `wanted`: names that the dataset may give them, by ours."""
    if is_saved(Path(name)):
        return _load_saved(Path(name), config, reading, wanted)
    try:
        builder = load_dataset_builder(name, config)
        # pandas, which reads CSV for `datasets`, guesses types, renames columns and treats an extra cell as an index.
        is_csv = builder.name == "csv"
        files, splits = (_csv_files(name, builder), {}) if is_csv else ({}, load_dataset(name, config))
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        why = f"{error} ({error.__cause__})" if isinstance(error, DatasetGenerationError) else error
        raise TrainingError(
            f"--dataset_name {name} does not load: {in_a_line(why)}; give another, or files with --train_file."
        ) from error
    names = list(files or splits)
    if "train" in wanted:
        _check_training(name, bool(files.get("train") or len(splits.get("train", ()))), names)
    found = _found(wanted, names)
    if is_csv:
        return {
            ours: concatenate_datasets([_load(path, reading, ending=".csv") for path in files[split]])
            for ours, split in found.items()
        }
    for split in found.values() if builder.name == "json" else ():
        _check_types(f"--dataset_name {name}, split {split}", splits[split], reading.texts)
    return {ours: _examples_of(splits[split], f"{name}, split {split}", reading) for ours, split in found.items()}


def _check_training(name: str, has_examples: bool, splits: list[str]) -> None:
    if not has_examples:
        raise TrainingError(
            f"--dataset_name {name} has no examples to train on (its splits are {', '.join(splits)}): give another, or "
            "--train_file."
        )


def _found(wanted: dict[str, list[str]], names: list[str]) -> dict[str, str]:
    """The first of the wanted names of each split that is there."""
    present = {ours: [name for name in possible if name in names] for ours, possible in wanted.items()}
    return {ours: there[0] for ours, there in present.items() if there}


def _load_saved(path: Path, config: str | None, reading: Reading, wanted: dict[str, list[str]]) -> dict[str, Dataset]:
    """The same of a folder that `save_to_disk` wrote; a data set without splits is to train on."""
    if config is not None:
        raise TrainingError(f"--dataset_name {path} was written by save_to_disk: leave --dataset_config_name out.")
    saved = load_saved(path)
    folders = {"train": path} if isinstance(saved, Dataset) else {name: path / name for name in saved}
    rows = saved if isinstance(saved, Dataset) else saved.get("train", ())
    if "train" in wanted:
        _check_training(str(path), bool(len(rows)), list(folders))
    return {ours: _load(folders[split], reading) for ours, split in _found(wanted, list(folders)).items()}


def _csv_files(name: str, builder: DatasetBuilder) -> dict[str, list[Path]]:
    """Files by split, downloaded if they are remote."""
    config: Any = builder.config
    if (separator := config.delimiter or config.sep) != ",":
        raise TrainingError(
            f"--dataset_name {name} separates cells by {separator!r}: give the files with --train_file, separated by "
            "commas."
        )
    found = DownloadManager(dataset_name=name).download_and_extract(
        {str(split): list(files) for split, files in config.data_files.items()}
    )
    return {split: [Path(file) for file in files] for split, files in found.items()}


def _check_types(where: str, rows: Dataset, columns: tuple[str, ...]) -> None:
    """Refuses columns of JSON files that `datasets` has not read as text: its guess of the type is not reversible."""
    texts = (Value("string"), Value("large_string"))
    for column in columns:
        feature = rows.features.get(column, texts[0])
        if feature not in texts and getattr(feature, "feature", None) not in texts:
            raise TrainingError(
                f"{where}: column {column!r} is not text to `datasets`, which reads it as {shown(feature)} and does "
                "not keep what is written there: give the files with --train_file, which keeps it, or quote all values."
            )


def _examples_of(rows: Dataset, where: str, reading: Reading) -> Dataset:
    def convert(row: dict[str, Any], number: int) -> Any:
        return reading.example(row, f"{where}, row {number + 1}")

    return rows.map(convert, with_indices=True, remove_columns=rows.column_names, features=reading.features)


def load_splits(options: DataArguments, trains: bool = True) -> dict[str, Dataset]:
    """Examples, with columns `source` and `targets`, by the prefix of their metrics in the trainer: `train` if the run
    trains, and `eval` and `test` if they exist, or one for each of several files, see
    [`~t5_experimental.training.data.arguments.DataArguments.evaluated_files`]. With a task, they also have its
    columns. Of a mixture, `train` is missing; see [`~t5_experimental.training.data.splits.make_mixture`]."""
    if trains and options.dataset_name is None and options.train_file is None and options.mixture is None:
        raise TrainingError("There is nothing to train on: give --train_file, --dataset_name or --mixture.")
    task = options.chosen_task
    reading = Columns(options.input_column, options.target_column) if task is None else TaskRows(task.name)
    if options.dataset_name is not None:
        wanted = {"train": ["train"], "eval": ["validation"], "test": ["test"]} if task is None else task.splits()
        wanted = {split: names for split, names in wanted.items() if trains or split != "train"}
        splits = _load_named(options.dataset_name, options.dataset_config_name, reading, wanted)
    else:
        splits = {split: _load(file, reading) for split, file in options.evaluated_files().items()}
        if trains and options.train_file is not None:
            training = concatenate_datasets([_load(path, reading) for path in options.train_paths()])
            splits = {"train": training, **splits}
    if "train" in splits and task is not None and task.trains_on is not None:
        splits["train"] = _rows_to_train_on(splits["train"], task)
    return splits


def _rows_to_train_on(examples: Dataset, task: Task) -> Dataset:
    """Examples with the label that a task trains on."""
    labels = examples.with_format("numpy")["label"][:]
    kept = examples.select((labels == task.trains_on).nonzero()[0])
    if not len(kept):
        raise TrainingError(
            f"--task {task.name} trains on rows with label {task.trains_on} alone, and there are none: give others."
        )
    return kept


@dataclass(frozen=True)
class Split:
    """Examples for the trainer.

    Attributes:
        pairs: one row per input and target: `input_ids`, `attention_mask`, `labels`, truncated, not padded.
        examples: one row per example, as text: `source`, `targets`, and with a task the rest of a
            [`~t5_experimental.training.data.task_texts.TaskExample`].
        cut: of `inputs` and `targets`, the length of the longest and how many are truncated.
        sampler: of a mixture or packed rows, the order to train in.
        rows: packed rows.
        options: that the pairs were made with.
    """

    pairs: Dataset
    examples: Dataset
    cut: dict[str, "Cut"]
    sampler: MixtureSampler | PackedSampler | None = None
    rows: PackedRows | None = None
    options: DataArguments | None = None

    @property
    def mixture(self) -> MixtureSampler | None:
        """The order of a mixture, also if its rows are packed."""
        order = self.sampler.order if isinstance(self.sampler, PackedSampler) else self.sampler
        return order if order is not None and order.is_mixture else None

    @property
    def epoch(self) -> int:
        """Pairs in an epoch, or packed rows."""
        return len(self.pairs) if self.sampler is None else len(self.sampler)

    def mean_lengths(self, count: int) -> tuple[float, float]:
        """Mean tokens of inputs and of targets of the first pairs, or packed rows; of a mixture, of its first epoch."""
        first = range(min(count, len(self.pairs))) if self.sampler is None else islice(self.sampler, count)
        rows = [place if isinstance(place, tuple) else (place,) for place in first]
        sample = self.pairs.select([place for places in rows for place in places])[:]
        inputs, targets = (sum(map(len, sample[name])) / len(rows) for name in ("input_ids", "labels"))
        return inputs, targets

    def packed(self, limits: tuple[int, int], seed: int) -> "Split":
        """The same pairs in rows that several share; `limits` are the tokens of a row's inputs and targets."""
        size = len(self.pairs)
        order = self.sampler or MixtureSampler([Source("", size, size)], seed)
        assert isinstance(order, MixtureSampler)
        columns = (self.pairs[name] for name in ("input_ids", "labels"))
        inputs, targets = ([len(ids) for ids in column] for column in columns)
        sampler = PackedSampler(order, (inputs, targets), limits)
        return replace(self, sampler=sampler, rows=PackedRows(self.pairs, *limits))

    def references(self) -> dict[str, list[str]]:
        """Every distinct input with its references: the targets of all examples that have it."""
        right: dict[str, list[str]] = {}
        for row in self.examples:
            right.setdefault(row["source"], []).extend(row.get("answers", row["targets"]))
        return right


@dataclass(frozen=True)
class Cut:
    """What truncation does: `count` of `total` texts are longer than the limit, the longest has `longest` tokens, and
    `empty` texts have only the end-of-sequence token."""

    count: int
    total: int
    longest: int
    empty: int

    def __add__(self, other: "Cut") -> "Cut":
        longest = max(self.longest, other.longest)
        return Cut(self.count + other.count, self.total + other.total, longest, self.empty + other.empty)


def _token_ids(tokenizer: PreTrainedTokenizerBase, texts: list[str], limit: int) -> tuple[list[list[int]], list[int]]:
    """Ids, truncated before the end-of-sequence token, and the lengths before truncation."""
    whole = tokenizer(texts, verbose=False)["input_ids"]
    return [ids if len(ids) <= limit else [*ids[: limit - 1], ids[-1]] for ids in whole], [len(ids) for ids in whole]


def source_features(sources: list[str], options: DataArguments, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """The encoder's `input_ids` and `attention_mask` for a list of inputs."""
    ids, _ = _token_ids(tokenizer, [options.source_prefix + text for text in sources], options.max_source_length)
    return Dataset.from_dict({"input_ids": ids, "attention_mask": [[1] * len(row) for row in ids]})


def make_split(examples: Dataset, options: DataArguments, tokenizer: PreTrainedTokenizerBase) -> Split:
    """Token ids of examples with the columns `source` and `targets`."""

    def tokenize(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        sources = [options.source_prefix + source for source in batch["source"]]
        counts = [len(targets) for targets in batch["targets"]]
        all_inputs, all_input_lengths = _token_ids(tokenizer, sources, options.max_source_length)
        inputs = [ids for ids, count in zip(all_inputs, counts, strict=True) for _ in range(count)]
        texts = [target for targets in batch["targets"] for target in targets]
        labels, target_lengths = _token_ids(tokenizer, texts, options.max_target_length)
        return {
            "input_ids": inputs,
            "attention_mask": [[1] * len(ids) for ids in inputs],
            "labels": labels,
            "input_length": [n for n, count in zip(all_input_lengths, counts, strict=True) for _ in range(count)],
            "target_length": target_lengths,
        }

    workers = options.preprocessing_num_workers
    if workers is not None:
        workers = min(workers, len(examples))
        # The tokenizer's threads would not survive the fork of the workers.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    pairs = examples.map(tokenize, batched=True, remove_columns=examples.column_names, num_proc=workers)
    limits = {"input": options.max_source_length, "target": options.max_target_length}
    cut = {}
    for kind, limit in limits.items():
        lengths = pairs.with_format("numpy")[f"{kind}_length"][:]
        cut[f"{kind}s"] = Cut(int((lengths > limit).sum()), len(lengths), int(lengths.max()), int((lengths <= 1).sum()))
    return Split(pairs.remove_columns(["input_length", "target_length"]), examples, cut, options=options)
