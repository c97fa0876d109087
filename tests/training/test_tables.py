# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Tables in which a value would be dropped, merged or renamed are refused, by file and line; others come as written."""

from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from t5_experimental.training.data.arguments import DataArguments
from t5_experimental.training.data.documents import DocumentFile, find_files
from t5_experimental.training.data.examples import load_splits, read_examples
from t5_experimental.training.errors import TrainingError


def examples(path: Path) -> list[tuple[str, list[str]]]:
    return [(row["source"], row["targets"]) for row in read_examples(path, "source", "target")]


GOOD = b"source,target\na,b\n"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        # All rows below the mark would be one cell.
        (GOOD + b'"c,d\ne,f\ng,h\n', "line 3: a quotation mark is opened there or in a line below it and never closed"),
        (GOOD + b'c,"d\ne,f\n\n', "line 3: a quotation mark is opened"),
        (GOOD + b'"c,d\n"e",f\n', "line 3: not CSV up to line 4 (',' expected after '\"')"),
        (GOOD + b'"c" d,e\n', "line 3: not CSV (',' expected after '\"')"),
        (b"source,target,target\na,b,c\n", "line 1: the column 'target' is there twice; rename or remove one"),
        (b"notes,notes,source,target\na,b,c,d\n", "line 1: the column 'notes' is there twice"),
        (GOOD + b"c,d,e\n", "line 3: not as many cells as the first line has (3, and not 2)"),
        (GOOD + b"c\n", "line 3: not as many cells as the first line has (1, and not 2)"),
        (GOOD + b'"c\nd"\n', "line 3: not as many cells"),  # where the row begins, not where it ends
        (GOOD + b" \n", "line 3: not as many cells"),
        (b" source,target\na,b\n", "line 2: no column 'source' among [' source', 'target']"),
        (GOOD + b"c\0,d\n", "line 3: there is a NUL byte"),
        (GOOD.decode().encode("utf-16-le"), "line 1: there is a NUL byte"),
        (GOOD.decode().encode("utf-16"), "line 1: byte 1 is not UTF-8 text"),
        (GOOD + "c\u00e4,d\n".encode("latin-1"), "line 3: byte 2 is not UTF-8 text"),
        (b"source,target\ra,b\r", "line 1: a carriage return does not end a line"),
    ],
)
def test_csv_is_strict(content, expected, tmp_path):
    path = tmp_path / "data.csv"
    path.write_bytes(content)
    with pytest.raises(TrainingError) as error:
        examples(path)
    assert f"{path}, {expected}" in str(error.value)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'\xef\xbb\xbf"source",target\r\n"a ""b"", c","d\ne"\r\n\r\n', [('a "b", c', ["d\ne"])]),
        (b'source,target\n"a\r\nb",c"d\n', [("a\r\nb", ['c"d'])]),
        (b'source,target\n"",""\n', [("", [""])]),
        # pandas writes its index without a name; such columns cannot be asked for.
        (b",source,target,,\n0,a,b,1,2\n", [("a", ["b"])]),
        (b"\nsource,target\na,b", [("a", ["b"])]),
    ],
)
def test_csv_as_it_is_written(content, expected, tmp_path):
    path = tmp_path / "data.csv"
    path.write_bytes(content)
    assert examples(path) == expected


GOOD_LINE = b'{"source": "a", "target": "b"}\n'


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            GOOD_LINE + b'{"source": "a", "target": "b", "target": "c"}\n',
            "line 2: 'target' is there twice in one object",
        ),
        (b'{"source": "a", "target": "b", "more": {"x": 1, "x": 2}}\n', "line 1: 'x' is there twice in one object"),
        (GOOD_LINE + b'{"source": ' + b"[" * 100_000, "line 2: not JSON (nested too deeply)"),
        (GOOD_LINE + b'{"source": "\0", "target": "b"}\n', "line 2: there is a NUL byte"),
        (GOOD_LINE + b'\xef\xbb\xbf{"source": "a", "target": "b"}\n', "line 2: not JSON (Unexpected UTF-8 BOM"),
        (GOOD_LINE + '{"source": "\u00e4", "target": "b"}\n'.encode("latin-1"), "line 2: byte 13 is not UTF-8 text"),
        (GOOD_LINE.decode().encode("utf-16"), "line 1: byte 1 is not UTF-8 text"),
        (GOOD_LINE.decode().encode("utf-32-le"), "line 1: there is a NUL byte"),
        (b'{"source": "a", "target": ' + b"[1], " * 1000 + b"}", "line 1: not JSON ("),
    ],
)
def test_json_lines_are_strict(content, expected, tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes(content)
    with pytest.raises(TrainingError) as error:
        examples(path)
    assert f"{path}, {expected}" in str(error.value)


def test_values_in_messages_are_short(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text('{"source": {"a": "%s"}, "target": "b"}' % ("x" * 100_000))
    with pytest.raises(TrainingError, match="which is not text") as error:
        examples(path)
    assert len(str(error.value)) < 1000
    path.write_text("{" + ", ".join(f'"column {number}": 1' for number in range(100_000)) + "}")
    with pytest.raises(TrainingError, match="no column 'source' among") as error:
        examples(path)
    assert len(str(error.value)) < 1000


def test_parquet_with_a_column_twice(tmp_path):
    path = tmp_path / "data.parquet"
    columns = [pyarrow.array([letter]) for letter in "abc"]
    parquet.write_table(pyarrow.Table.from_arrays(columns, names=["source", "target", "target"]), path)
    with pytest.raises(TrainingError, match=r"data.parquet: the column 'target' is there twice; rename or remove"):
        examples(path)


# --- Data sets ----------------------------------------------------------------------------------------------------


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    """`dataset(name=content)` makes a folder that `datasets` reads, and loads it as a run does."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "folder"
    folder.mkdir()

    def load(**files: bytes) -> list[tuple[str, list[str]]]:
        for name, content in files.items():
            (folder / name.replace("_", ".")).write_bytes(content)
        rows = load_splits(DataArguments(dataset_name=str(folder)))["train"]
        return [(row["source"], row["targets"]) for row in rows]

    return load


def test_csv_of_a_dataset_is_read_as_a_file_of_its_own(dataset):
    """pandas would make 7 of 007, nothing of NA, and an index of the first cell where a row has one too many."""
    assert dataset(train_csv=b"source,target\n007,NA\n1.50,2020-01-01\n") == [("007", ["NA"]), ("1.50", ["2020-01-01"])]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"source,target\na,b,c\n", r"train.csv, line 2: not as many cells"),
        (b"source,source,target\na,b,c\n", r"train.csv, line 1: the column 'source' is there twice"),
        (b'source,target\n"a,b\n', r"train.csv, line 2: a quotation mark is opened"),
    ],
)
def test_csv_of_a_dataset_is_strict(content, expected, dataset):
    with pytest.raises(TrainingError, match=expected):
        dataset(train_csv=content)


@pytest.mark.parametrize(
    "content",
    [
        b'{"source": 1.50, "target": "a"}\n',
        b'{"source": "2020-01-01", "target": "a"}\n',
        b'{"source": "1", "target": "a"}\n{"source": 2, "target": "a"}\n',
    ],
)
def test_types_that_datasets_has_guessed(content, dataset):
    """The number is 1.5 there, the text a time, and the text "1" a number."""
    with pytest.raises(TrainingError, match=r"column 'source' is not text to .*: give the files with --train_file"):
        dataset(train_jsonl=content)


def test_json_of_a_dataset_with_a_name_twice(dataset):
    with pytest.raises(TrainingError, match=r"does not load: .*specified twice"):
        dataset(train_jsonl=b'{"source": "a", "source": "b", "target": "c"}\n')


# --- Documents ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", "some text\n".encode("utf-16-le"), "there is a NUL byte"),
        ("a.txt", "some text\n".encode("utf-16"), "byte 1 is not UTF-8 text"),
        ("a.txt", b"one\r\rtwo\r\rthree\r", "its lines end with carriage returns alone"),
        ("a.jsonl", b'{"text": "a", "text": "b"}\n', "'text' is there twice in one object"),
        ("a.jsonl", b'{"text": "a", "more": [{"x": 1, "x": 2}]}\n', "'x' is there twice in one object"),
        ("a.jsonl", b"[" * 100_000, "not JSON (nested too deeply)"),
    ],
)
def test_documents_are_strict(name, content, expected, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(TrainingError) as error:
        find_files("train_file", [str(path)], "text", False)
    assert str(path) in str(error.value)
    assert expected in str(error.value)


def test_long_numbers_beside_the_text(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a", "number": %s}\n' % ("9" * 5000))
    assert list(DocumentFile(path, path.stat().st_size).read(0, 10)) == ["a"]
    path.write_text('{"text": 7}\n')
    with pytest.raises(TrainingError, match=r"holds 7\.0, which is not text"):
        list(DocumentFile(path, path.stat().st_size).read(0, 10))


def test_a_file_under_two_names_is_one(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("text\n")
    (tmp_path / "link.txt").symlink_to(tmp_path / "a.txt")
    monkeypatch.chdir(tmp_path)
    assert len(find_files("train_file", ["a.txt", str(tmp_path / "a.txt"), "*.txt"], "text", False)) == 1
