# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Examples from files: text as it is written there, then token ids.

The readers are our own because those of `datasets` guess types: a column of dates or of numbers with leading zeros
would not come back as it was written, and the word "None" in a CSV file would be missing text.
"""

import csv
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Value
from datasets.exceptions import DatasetGenerationError
from pyarrow import ArrowInvalid, parquet
from transformers import PreTrainedTokenizerBase

from t5_experimental.training.errors import TrainingError
from t5_experimental.training.finetuning_arguments import DataArguments


# A row as its file has it, and where it stands there, for messages.
PlacedRow = tuple[str, dict[str, Any]]


def _json_lines(path: Path) -> Iterator[PlacedRow]:
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                # Numbers as they are written: 1.50 is not "1.5", nor is 1e3 "1000.0".
                row = json.loads(line, parse_int=str, parse_float=str)
            except json.JSONDecodeError as error:
                raise TrainingError(f"{where}: not JSON ({error}); write one object per line.") from error
            if not isinstance(row, dict):
                raise TrainingError(f"{where}: not a JSON object; write one object per line.")
            yield where, row


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


def _text(row: dict[str, Any], column: str, where: str) -> str:
    if column not in row:
        raise TrainingError(
            f"{where}: no column {column!r} among {sorted(row)}; name the columns with --input_column and "
            "--target_column."
        )
    value = row[column]
    if isinstance(value, str):
        return value
    # Parquet's numbers; of JSON's, only NaN and Infinity get here, and no text is meant by those.
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return str(value)
    raise TrainingError(f"{where}: column {column!r} holds {value!r}, which is not text; make it a string.")


def read_examples(path: Path, input_column: str, target_column: str) -> Iterator[dict[str, str]]:
    """Examples of a file, as `{"source": ..., "target": ...}`.

    Numbers become text: in CSV and JSON exactly what is written there; in Parquet, which stores no notation, Python's.

    Raises:
        TrainingError: the file is not what its ending says, lacks a column, or has an example that is not text.
    """
    try:
        for where, row in _READERS[path.suffix.lower()](path):
            yield {"source": _text(row, input_column, where), "target": _text(row, target_column, where)}
    except UnicodeDecodeError as error:
        raise TrainingError(f"{path} is not UTF-8 text ({error}): convert it to UTF-8.") from error


def _generate(path: str, columns: tuple[str, str], stamp: tuple[int, int]) -> Iterator[dict[str, str]]:
    # `stamp` is only here to be part of what `datasets` caches by: a file that has changed is read again.
    yield from read_examples(Path(path), *columns)


def load_examples(path: Path, input_column: str, target_column: str) -> Dataset:
    """The examples of a file, with columns `source` and `target`; see [`read_examples`].

    Raises:
        TrainingError: as of [`read_examples`], or the file has no example.
    """
    if next(read_examples(path, input_column, target_column), None) is None:
        raise TrainingError(f"{path} has no examples: give a file with at least one.")
    status = path.stat()
    try:
        return Dataset.from_generator(
            _generate,
            features=Features(source=Value("string"), target=Value("string")),
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


def load_features(path: Path, options: DataArguments, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """Token ids of a file's examples: `input_ids`, `attention_mask`, `labels`, cut off at the limits, not padded."""

    def tokenise(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        sources = [options.source_prefix + source for source in batch["source"]]
        features = tokenizer(sources, max_length=options.max_source_length, truncation=True)
        targets = tokenizer(text_target=batch["target"], max_length=options.max_target_length, truncation=True)
        return {
            "input_ids": features["input_ids"],
            "attention_mask": features["attention_mask"],
            "labels": targets["input_ids"],
        }

    examples = load_examples(path, options.input_column, options.target_column)
    return examples.map(tokenise, batched=True, remove_columns=examples.column_names)
