# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Examples come out of every file format as they went in."""

import csv
import json
from pathlib import Path

import pytest
from datasets import Dataset
from transformers import AutoTokenizer

from t5_experimental.training.data import load_features, read_examples
from t5_experimental.training.finetuning_arguments import DataArguments


# Text that readers which guess types would change: missing values, numbers, dates, quotes, line ends.
TEXTS = ["None", "NA", "007", "2020-01-01", 'a "quoted", text', "two\nlines", "", "ärger"]
ROWS = [{"question": text, "answer": text[::-1], "other": "x"} for text in TEXTS]


def write(path: Path) -> Path:
    if path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["other", "question", "answer"])
            writer.writeheader()
            writer.writerows(ROWS)
    elif path.suffix == ".parquet":
        Dataset.from_list(ROWS).to_parquet(path)
    else:
        path.write_text("\n".join(json.dumps(row) for row in ROWS), encoding="utf-8")
    return path


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "parquet"])
def test_text_is_not_changed(ending, tmp_path):
    examples = list(read_examples(write(tmp_path / f"data.{ending}"), "question", "answer"))
    assert examples == [{"source": row["question"], "target": row["answer"]} for row in ROWS]


# Notations that Python's own numbers would come back from as another text.
NUMBERS = ["7", "-0", "0.5", "1.50", "1e3", "1E-7", "0.1000000000000000055511151231257827", "9" * 5000]


@pytest.mark.parametrize("number", NUMBERS, ids=lambda number: number[:10])
def test_json_numbers_stay_as_written(number, tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text(f'{{"source": {number}, "target": "a", "score": NaN}}\n')
    assert list(read_examples(path, "source", "target")) == [{"source": number, "target": "a"}]


def test_parquet_numbers_become_text(tmp_path):
    path = tmp_path / "data.parquet"
    Dataset.from_dict({"source": [7], "target": [0.5]}).to_parquet(path)
    assert list(read_examples(path, "source", "target")) == [{"source": "7", "target": "0.5"}]


def test_features_and_cache(tiny_models, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    tokenizer = AutoTokenizer.from_pretrained(tiny_models["t5_v1_1"])
    path = tmp_path / "data.jsonl"
    path.write_text('{"source": "The Amber Anchor serves Thai food", "target": "by the harbour"}\n')
    options = DataArguments(train_file=str(path), source_prefix="say: ", max_source_length=4, max_target_length=32)
    (row,) = load_features(path, options, tokenizer)
    whole = tokenizer("say: The Amber Anchor serves Thai food").input_ids
    assert row["input_ids"] == [*whole[:3], tokenizer.eos_token_id]
    assert row["attention_mask"] == [1] * 4
    assert row["labels"] == tokenizer("by the harbour").input_ids
    assert row["labels"][-1] == tokenizer.eos_token_id

    path.write_text('{"source": "Thai", "target": "food"}\n')
    (row,) = load_features(path, options, tokenizer)
    assert row["labels"] == tokenizer("food").input_ids
