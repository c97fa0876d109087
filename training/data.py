# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Examples from files or datasets: text as it is written there, then token ids.

The readers are our own because those of `datasets` guess types: a column of dates or of numbers with leading zeros
would not come back as it was written, and the word "None" in a CSV file would be missing text.
"""

import csv
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from datasets import Dataset, Features, List, Value, load_dataset
from datasets.exceptions import DatasetGenerationError, DatasetsError
from pyarrow import ArrowInvalid, parquet
from transformers import PreTrainedTokenizerBase

from t5_experimental.training.errors import TrainingError, check_unicode, parse_json_line
from t5_experimental.training.finetuning_arguments import DataArguments


# A row as its file has it, and where it stands there, for messages.
PlacedRow = tuple[str, dict[str, Any]]


class Example(TypedDict):
    """An input, and the texts that are right for it."""

    source: str
    targets: list[str]


_FEATURES = Features(source=Value("string"), targets=List(Value("string")))


def _json_lines(path: Path) -> Iterator[PlacedRow]:
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            # Numbers as they are written: 1.50 is not "1.5", nor is 1e3 "1000.0".
            yield where, parse_json_line(line, where, parse_int=str, parse_float=str)


def _csv_rows(path: Path) -> Iterator[PlacedRow]:
    csv.field_size_limit(2**31 - 1)  # the default refuses documents of more than 128 KiB
    with path.open(encoding="utf-8-sig", newline="") as lines:
        rows = csv.DictReader(lines)
        try:
            for row in rows:
                where = f"{path}, line {rows.line_num}"
                if None in row or None in row.values():
                    raise TrainingError(
                        f"{where}: not as many cells as the first line has; put text with commas in quotation marks."
                    )
                yield where, row
        except csv.Error as error:
            raise TrainingError(f"{path}, line {rows.line_num}: not CSV ({error}).") from error


def _parquet_rows(path: Path) -> Iterator[PlacedRow]:
    number = 0
    try:
        for batch in parquet.ParquetFile(path).iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield f"{path}, row {number}", row
    except ArrowInvalid as error:
        raise TrainingError(f"{path} is not a Parquet file: {error}") from error


_READERS: dict[str, Callable[[Path], Iterator[PlacedRow]]] = {
    ".jsonl": _json_lines,
    ".json": _json_lines,
    ".csv": _csv_rows,
    ".parquet": _parquet_rows,
}


def _text(value: Any, column: str, where: str) -> str:
    if isinstance(value, str):
        return check_unicode(value, where)
    # Parquet's numbers; of JSON's, only NaN and Infinity get here, and no text is meant by those.
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return str(value)
    raise TrainingError(f"{where}: column {column!r} holds {value!r}, which is not text; make it a string.")


def _example(row: dict[str, Any], input_column: str, target_column: str, where: str) -> Example:
    for column in (input_column, target_column):
        if column not in row:
            raise TrainingError(
                f"{where}: no column {column!r} among {sorted(row)}; name the columns with --input_column and "
                "--target_column."
            )
    targets = row[target_column]
    if isinstance(targets, list) and not targets:
        raise TrainingError(f"{where}: column {target_column!r} is an empty list; give at least one text.")
    several = targets if isinstance(targets, list) else [targets]
    return {
        "source": _text(row[input_column], input_column, where),
        "targets": [_text(target, target_column, where) for target in several],
    }


def read_examples(path: Path, input_column: str, target_column: str) -> Iterator[Example]:
    """Examples of a file, as `{"source": ..., "targets": [...]}`; a target is a text, or a list of texts that are all
    right.

    Numbers become text: in CSV and JSON exactly what is written there; in Parquet, which stores no notation, Python's.

    Raises:
        TrainingError: the file is not what its ending says, lacks a column, or has an example that is not text.
    """
    try:
        for where, row in _READERS[path.suffix.lower()](path):
            yield _example(row, input_column, target_column, where)
    except UnicodeDecodeError as error:
        raise TrainingError(f"{path} is not UTF-8 text ({error}): convert it to UTF-8.") from error


def _generate(path: str, columns: tuple[str, str], stamp: tuple[int, int]) -> Iterator[Example]:
    # `stamp` is only here to be part of what `datasets` caches by: a file that has changed is read again.
    yield from read_examples(Path(path), *columns)


def load_examples(path: Path, input_column: str, target_column: str) -> Dataset:
    """The examples of a file, with columns `source` and `targets`; see [`read_examples`].

    Raises:
        TrainingError: as of [`read_examples`], or the file has no example.
    """
    if next(read_examples(path, input_column, target_column), None) is None:
        raise TrainingError(f"{path} has no examples: give a file with at least one.")
    status = path.stat()
    try:
        return Dataset.from_generator(
            _generate,
            features=_FEATURES,
            gen_kwargs={
                "path": str(path.resolve()),
                "columns": (input_column, target_column),
                "stamp": (status.st_size, status.st_mtime_ns),
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
        TrainingError: there is no such dataset, it has no split to train on, or as of [`read_examples`].
    """
    try:
        splits = load_dataset(name, config)
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        raise TrainingError(f"--dataset_name {name} does not load: {' '.join(str(error).split())}") from error
    if "train" not in splits or not len(splits["train"]):
        raise TrainingError(
            f"--dataset_name {name} has no examples to train on (its splits are {', '.join(splits)}): give another, or "
            "--train_file."
        )

    def examples(split: str) -> Dataset:
        def convert(row: dict[str, Any], number: int) -> Example:
            return _example(row, input_column, target_column, f"{name}, split {split}, row {number + 1}")

        rows = splits[split]
        return rows.map(convert, with_indices=True, remove_columns=rows.column_names, features=_FEATURES)

    return {split: examples(split) for split in ("train", "validation", "test") if split in splits}


def load_splits(options: DataArguments) -> dict[str, Dataset]:
    """Examples, with columns `source` and `targets`, by the prefix that the trainer gives to their metrics: `train`,
    and `eval` and `test` if they are there."""
    columns = (options.input_column, options.target_column)
    if options.dataset_name is not None:
        splits = load_named_examples(options.dataset_name, options.dataset_config_name, *columns)
        return {"eval" if split == "validation" else split: examples for split, examples in splits.items()}
    if options.train_file is None:
        raise TrainingError("There is nothing to train on: give --train_file, or --dataset_name.")
    files = {"train": options.train_file, "eval": options.validation_file, "test": options.test_file}
    return {split: load_examples(Path(file), *columns) for split, file in files.items() if file is not None}


@dataclass(frozen=True)
class Split:
    """Examples as the trainer takes them.

    Attributes:
        pairs: a row for every input with every one of its targets: `input_ids`, `attention_mask`, `labels`, cut off at
            the limits, not padded.
        examples: a row for every example, text: `source`, `targets`.
        cut: how many tokens the longest has, and how many are cut off, of `inputs` and `targets`.
    """

    pairs: Dataset
    examples: Dataset
    cut: dict[str, "Cut"]

    def references(self) -> dict[str, list[str]]:
        """Every different input, and what is right for it: the targets of all examples that have it."""
        right: dict[str, list[str]] = {}
        for row in self.examples:
            right.setdefault(row["source"], []).extend(row["targets"])
        return right


@dataclass(frozen=True)
class Cut:
    """What a limit does to texts: `count` of `total` are longer than it, the longest has `longest` tokens; and how many
    are nothing but their end."""

    count: int
    total: int
    longest: int
    empty: int


def _token_ids(tokenizer: PreTrainedTokenizerBase, texts: list[str], limit: int) -> tuple[list[list[int]], list[int]]:
    """Ids, cut off at the limit but for the last one, which ends the text; and the lengths that they would have had."""
    whole = tokenizer(texts, verbose=False)["input_ids"]
    return [ids if len(ids) <= limit else [*ids[: limit - 1], ids[-1]] for ids in whole], [len(ids) for ids in whole]


def source_features(sources: list[str], options: DataArguments, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """What the encoder reads, `input_ids` and `attention_mask`, for a list of inputs."""
    ids, _ = _token_ids(tokenizer, [options.source_prefix + text for text in sources], options.max_source_length)
    return Dataset.from_dict({"input_ids": ids, "attention_mask": [[1] * len(row) for row in ids]})


def make_split(examples: Dataset, options: DataArguments, tokenizer: PreTrainedTokenizerBase) -> Split:
    """Token ids of examples with the columns `source` and `targets`."""

    def tokenise(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
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

    pairs = examples.map(tokenise, batched=True, remove_columns=examples.column_names)
    limits = {"input": options.max_source_length, "target": options.max_target_length}
    cut = {}
    for kind, limit in limits.items():
        lengths = pairs.with_format("numpy")[f"{kind}_length"][:]
        cut[f"{kind}s"] = Cut(int((lengths > limit).sum()), len(lengths), int(lengths.max()), int((lengths <= 1).sum()))
    return Split(pairs.remove_columns(["input_length", "target_length"]), examples, cut)
