# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Examples come out of every file format as they went in."""

import csv
import json
from pathlib import Path

import pytest
from datasets import Dataset
from transformers import AutoTokenizer

from t5_experimental.training.data.arguments import DataArguments
from t5_experimental.training.data.examples import Cut, load_splits, make_split, read_examples
from t5_experimental.training.errors import TrainingError


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
    assert examples == [{"source": row["question"], "targets": [row["answer"]]} for row in ROWS]


# Notations that Python's own numbers would come back from as another text.
NUMBERS = ["7", "-0", "0.5", "1.50", "1e3", "1E-7", "0.1000000000000000055511151231257827", "9" * 5000]


@pytest.mark.parametrize("number", NUMBERS, ids=lambda number: number[:10])
def test_json_numbers_stay_as_written(number, tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text(f'{{"source": {number}, "target": "a", "score": NaN}}\n')
    assert list(read_examples(path, "source", "target")) == [{"source": number, "targets": ["a"]}]


def test_parquet_numbers_become_text(tmp_path):
    path = tmp_path / "data.parquet"
    Dataset.from_dict({"source": [7], "target": [0.5]}).to_parquet(path)
    assert list(read_examples(path, "source", "target")) == [{"source": "7", "targets": ["0.5"]}]


def test_features_and_cache(tiny_models, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    tokenizer = AutoTokenizer.from_pretrained(tiny_models["t5_v1_1"])
    path = tmp_path / "data.jsonl"
    path.write_text('{"source": "The Amber Anchor serves Thai food", "target": "by the harbour"}\n')
    options = DataArguments(train_file=str(path), source_prefix="say: ", max_source_length=4, max_target_length=32)
    split = make_split(load_splits(options)["train"], options, tokenizer)
    (row,) = split.pairs
    whole = tokenizer("say: The Amber Anchor serves Thai food").input_ids
    assert row["input_ids"] == [*whole[:3], tokenizer.eos_token_id]
    assert row["attention_mask"] == [1] * 4
    assert row["labels"] == tokenizer("by the harbour").input_ids
    assert row["labels"][-1] == tokenizer.eos_token_id
    assert split.cut == {"inputs": Cut(1, 1, len(whole), 0), "targets": Cut(0, 1, len(row["labels"]), 0)}

    path.write_text('{"source": "", "target": ""}\n{"source": "Thai", "target": ""}\n')
    split = make_split(load_splits(DataArguments(train_file=str(path)))["train"], DataArguments(), tokenizer)
    assert [cut.empty for cut in split.cut.values()] == [1, 2]

    path.write_text('{"source": "Thai", "target": "food"}\n')
    (row,) = make_split(load_splits(options)["train"], options, tokenizer).pairs
    assert row["labels"] == tokenizer("food").input_ids


ROWS_WITH_REFERENCES = [
    {"source": "a", "target": ["b", "c"]},
    {"source": "d", "target": "e"},
    {"source": "a", "target": "f"},
]


def test_several_references(tiny_models, tmp_path, monkeypatch):
    """Every pair is trained on; what is right for an input comes from all of its rows."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    tokenizer = AutoTokenizer.from_pretrained(tiny_models["t5_v1_1"])
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS_WITH_REFERENCES)))
    options = DataArguments(train_file=str(path))
    split = make_split(load_splits(options)["train"], options, tokenizer)
    pairs = [(tokenizer.decode(row["input_ids"][:-1]), tokenizer.decode(row["labels"][:-1])) for row in split.pairs]
    assert pairs == [("a", "b"), ("a", "c"), ("d", "e"), ("a", "f")]
    assert split.references() == {"a": ["b", "c", "f"], "d": ["e"]}


def test_datasets_by_name(tmp_path, monkeypatch):
    """A folder stands for a dataset of the hub."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "dataset"
    folder.mkdir()
    for name in ("train", "validation"):
        (folder / f"{name}.jsonl").write_text('{"in": "a", "out": ["b", "c"]}\n{"in": "d", "out": ["e"]}\n')
    options = DataArguments(dataset_name=str(folder), input_column="in", target_column="out")
    splits = load_splits(options)
    assert set(splits) == {"train", "eval"}
    assert list(splits["eval"]) == [{"source": "a", "targets": ["b", "c"]}, {"source": "d", "targets": ["e"]}]

    with pytest.raises(TrainingError, match=r"split train, row 1: no column 'source' among \['in', 'out'\]"):
        load_splits(DataArguments(dataset_name=str(folder)))
    with pytest.raises(TrainingError, match=r"--dataset_name .*none does not load"):
        load_splits(DataArguments(dataset_name=str(tmp_path / "none")))
    (folder / "train.jsonl").unlink()
    with pytest.raises(TrainingError, match=r"no examples to train on \(its splits are validation\)"):
        load_splits(options)
