# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""JSON arrays, TSV, packed files and folders of save_to_disk come as written, or are refused by file and line."""

import gzip
import json
import tracemalloc
from pathlib import Path

import pyarrow
import pytest
from datasets import Dataset, DatasetDict
from transformers import AutoTokenizer

from t5_experimental.training.data.arguments import DataArguments
from t5_experimental.training.data.documents import Windows, find_files
from t5_experimental.training.data.examples import load_splits, make_split, read_examples
from t5_experimental.training.errors import TrainingError


ROWS = [{"source": f"ärger {number}\n", "target": "007", "n": number} for number in range(3)]
EXPECTED = [(row["source"], ["007"]) for row in ROWS]


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def examples(path: Path) -> list[tuple[str, list[str]]]:
    return [(row["source"], row["targets"]) for row in read_examples(path, "source", "target")]


def zstandard(content: bytes) -> bytes:
    return pyarrow.compress(content, codec="zstd", asbytes=True)


# --- JSON arrays --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("indent", [None, 1], ids=["one line", "indented"])
@pytest.mark.parametrize("piece", [1, 7, 2**20])
def test_json_arrays(indent, piece, tmp_path, monkeypatch):
    """However many pieces they are read in."""
    monkeypatch.setattr("t5_experimental.training.data.json_arrays._PIECE", piece)
    path = tmp_path / "data.json"
    path.write_bytes(b"\xef\xbb\xbf \n" * (piece > 7) + json.dumps(ROWS, indent=indent, ensure_ascii=False).encode())
    assert examples(path) == EXPECTED


def test_json_numbers_in_arrays_stay_as_written(tmp_path):
    path = tmp_path / "data.json"
    path.write_text('[{"source": 1.50, "target": 1e3}]')
    assert examples(path) == [("1.50", ["1e3"])]


GOOD = '[{"source": "a", "target": "b"}'


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (GOOD, "line 1: the file ends within the array, and is truncated or lacks a ]"),
        (GOOD + ",\n", "line 2: the file ends within the array"),
        (GOOD + ',\n{"source": "a', "line 2: not JSON (Unterminated string"),
        (GOOD + ",\n]", "line 2: { is expected"),
        (GOOD + "\n{}]", "line 2: a comma or ] has to follow an object"),
        (GOOD + ",\n7]", "line 2: { is expected, since the array has objects alone"),
        (GOOD + "]\n[]", "line 2: the array has ended, and nothing may follow"),
        (GOOD + ',\n{"source":\n\n, "target": "b"}]', "line 4: not JSON in the object of line 2 (Expecting value)"),
        (GOOD + ',\n{"source": 1, "source": 2}]', "line 2: 'source' is there twice in one object"),
        (GOOD + ',\n{"source": "a"}]', "line 2: no column 'target' among ['source']"),
        (GOOD + ',\n{"a": ' + "[" * 100_000, "line 2: not JSON (nested too deeply)"),
        (GOOD + ',\n{"source": "\0"}]', "line 2: there is a NUL byte"),
        (b'[\n{"source": "\xe4"}]', "line 2: byte 13 is not UTF-8 text"),
        (b'[{"source": "x"},\r{"source": "\xe4"}]', "line 1: byte 31 is not UTF-8 text"),
    ],
)
def test_json_arrays_are_strict(content, expected, tmp_path):
    path = tmp_path / "data.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(TrainingError) as error:
        examples(path)
    assert f"{path}, {expected}" in str(error.value)


def test_what_is_wrong_in_an_object_is_found_without_reading_on(tmp_path, monkeypatch):
    monkeypatch.setattr("t5_experimental.training.data.json_arrays._MOST", 2**16)
    path = tmp_path / "data.json"
    path.write_text('[{"source": 1 1},' + ",".join(['{"source": "a", "target": "b"}'] * 10_000) + "]")
    with pytest.raises(TrainingError, match=r"line 1: not JSON \(Expecting ',' delimiter\)"):
        examples(path)


def test_a_json_array_is_not_held_in_memory(tmp_path):
    path = tmp_path / "data.json.gz"
    with gzip.open(path, "wt") as file:
        file.write("[" + ",".join(json.dumps({"source": "x" * 50_000, "target": "y"}) for _ in range(1000)) + "]")
    tracemalloc.start()
    assert sum(1 for _ in read_examples(path, "source", "target")) == 1000
    assert tracemalloc.get_traced_memory()[1] < 20e6  # of 50 MB
    tracemalloc.stop()


# --- TSV ----------------------------------------------------------------------------------------------------------


def test_tsv_as_it_is_written(tmp_path):
    """Quotation marks are text, as in GLUE's files."""
    path = tmp_path / "data.tsv"
    path.write_bytes(b'source\tn\ttarget\r\n"a, b\t1\t"c"\r\n\r\n\xc3\xa4\t2\t\r\n')
    assert examples(path) == [('"a, b', ['"c"']), ("ä", [""])]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'"a\tb"\tc\n', "line 2: not as many cells as the first line has (3, and not 2); a tab or a line break"),
        (b'"a\nb"\tc\n', "line 2: not as many cells as the first line has (1, and not 2)"),
        (b"a\tb\n\xff\tc\n", "line 3: byte 1 is not UTF-8 text"),
    ],
)
def test_tsv_is_strict(content, expected, tmp_path):
    path = tmp_path / "data.tsv"
    path.write_bytes(b"source\ttarget\n" + content)
    with pytest.raises(TrainingError) as error:
        examples(path)
    assert f"{path}, {expected}" in str(error.value)


# --- Packed files -------------------------------------------------------------------------------------------------

CONTENTS = {
    "jsonl": "\n".join(map(json.dumps, ROWS)),
    "json": json.dumps(ROWS),
    "csv": "source,target\n" + "".join(f'"{row["source"]}",007\n' for row in ROWS),
}


@pytest.mark.parametrize("format_name", CONTENTS)
@pytest.mark.parametrize(("ending", "pack"), [("gz", gzip.compress), ("ZST", zstandard)])
def test_packed_files(format_name, ending, pack, tmp_path):
    path = tmp_path / f"data.{format_name}.{ending}"
    content = CONTENTS[format_name].encode()
    path.write_bytes(pack(content[:50]) + pack(content[50:]))  # several members are one file
    assert examples(path) == EXPECTED


@pytest.mark.parametrize(("ending", "pack"), [("gz", gzip.compress), ("zst", zstandard)])
def test_damaged_packed_files_are_named(ending, pack, tmp_path):
    path = tmp_path / f"data.jsonl.{ending}"
    content = pack("\n".join(json.dumps(row | {"n": n * 7919 % 1013}) for n in range(999) for row in ROWS).encode())
    for damaged in (content[: len(content) // 2], content[:5], b"no such file", content + b"more"):
        path.write_bytes(damaged)
        with pytest.raises(TrainingError, match=rf"data.jsonl.{ending} cannot be unpacked \(.*\): it is damaged"):
            examples(path)


def test_a_line_that_unpacks_to_very_much_does_not_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("t5_experimental.training.data.tables._MOST_BYTES", 2**20)
    path = tmp_path / "data.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"source": "' + b"a" * 100_000_000))
    tracemalloc.start()
    with pytest.raises(TrainingError, match=r"data.jsonl.gz, line 1: more than 1 MB in one line; split it"):
        examples(path)
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


# --- Folders of save_to_disk --------------------------------------------------------------------------------------


def test_folders_of_save_to_disk(tmp_path):
    rows = Dataset.from_list(ROWS)
    one, several = tmp_path / "one", tmp_path / "several"
    rows.save_to_disk(one)
    DatasetDict(train=rows, validation=rows.select([1])).save_to_disk(several)
    named = load_splits(DataArguments(dataset_name=str(several)))
    given = load_splits(DataArguments(train_file=[str(one), str(several / "train")], test_file=str(one)))
    assert {split: examples["source"][:] for split, examples in named.items()} == {
        "train": [source for source, _ in EXPECTED],
        "eval": [EXPECTED[1][0]],
    }
    assert [len(given[split]) for split in ("train", "test")] == [6, 3]
    assert len(load_splits(DataArguments(dataset_name=str(one)))["train"]) == 3
    with pytest.raises(TrainingError, match=r"one, row 1: no column 'input' among"):
        load_splits(DataArguments(train_file=str(one), input_column="input"))
    rows.select([0]).save_to_disk(one / "later")  # not a part of it
    with pytest.raises(TrainingError, match=r"several has several splits: name the folder of one \(.*several/train, "):
        DataArguments(train_file=str(several)).check_files()


def test_damaged_folders_of_save_to_disk(tmp_path):
    folder = tmp_path / "saved"
    Dataset.from_list(ROWS).save_to_disk(folder)
    (arrow,) = folder.glob("*.arrow")
    arrow.write_bytes(arrow.read_bytes()[:100])
    with pytest.raises(TrainingError, match="saved cannot be read as a data set that save_to_disk wrote"):
        load_splits(DataArguments(train_file=str(folder)))
    (folder / "state.json").write_text("{}")
    with pytest.raises(TrainingError, match="saved cannot be read as a data set that save_to_disk wrote"):
        load_splits(DataArguments(dataset_name=str(folder)))
    (folder / "state.json").unlink()
    with pytest.raises(TrainingError, match="saved is a folder without a data set of save_to_disk: give files"):
        DataArguments(validation_file=str(folder)).check_files()


# --- Several files, and workers -----------------------------------------------------------------------------------


def test_several_files_and_patterns(tmp_path):
    for name in ("b1", "b2", "a"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"source": name, "target": "x"}))
    options = DataArguments(
        train_file=[str(tmp_path / "b*.jsonl"), str(tmp_path / "a.jsonl"), str(tmp_path / "b1.jsonl")]
    )
    options.check_files()
    assert load_splits(options)["train"]["source"][:] == ["a", "b1", "b2"]
    for names, problem in {
        ("c*.jsonl",): r"--train_file .*c\*.jsonl does not exist: give paths of data files, or patterns of them",
        ("b*.jsonl", "no.jsonl"): r"no.jsonl does not exist",
    }.items():
        with pytest.raises(TrainingError, match=problem):
            DataArguments(train_file=[str(tmp_path / name) for name in names]).check_files()
    (tmp_path / "b3.xml.gz").touch()
    with pytest.raises(TrainingError, match=r"b3.xml.gz has the unknown extension '.xml', which must tell the format"):
        DataArguments(train_file=str(tmp_path / "b*")).check_files()
    (tmp_path / "b3.parquet.gz").touch()
    with pytest.raises(TrainingError, match=r"b3.parquet.gz: Parquet packs its columns itself; unpack the file"):
        DataArguments(train_file=str(tmp_path / "*.parquet.gz")).check_files()


@pytest.mark.parametrize(("option", "split"), [("validation_file", "eval"), ("test_file", "test")])
def test_patterns_of_files_to_evaluate_on(option, split, tmp_path):
    for name in ("b1", "b2", "a"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"source": name, "target": "x"}))
    (tmp_path / "odd[1].jsonl").write_text(json.dumps({"source": "odd", "target": "x"}))
    names = ["odd[1].jsonl", "b*.jsonl", "a.jsonl", "b1.jsonl"]  # in this order, each once, as metrics
    options = DataArguments(**{option: [str(tmp_path / name) for name in names]})
    options.check_files()
    expected = [f"{split}_odd[1]", f"{split}_b1", f"{split}_b2", f"{split}_a"]
    assert list(options.evaluated_files()) == expected
    assert [rows["source"][0] for rows in load_splits(options, trains=False).values()] == ["odd", "b1", "b2", "a"]
    # One file of a pattern has the names of one file.
    assert list(DataArguments(**{option: str(tmp_path / "a*")}).evaluated_files()) == [split]
    with pytest.raises(
        TrainingError, match=rf"--{option} .*c\*.jsonl does not exist: give paths of data files, or patt"
    ):
        DataArguments(**{option: str(tmp_path / "c*.jsonl")}).check_files()
    (tmp_path / "b1.csv").touch()
    with pytest.raises(TrainingError, match=f"--{option} has two files b1, by whose names metrics and predictions"):
        DataArguments(**{option: str(tmp_path / "b*")}).check_files()


def test_workers_that_tokenize_change_nothing(tiny_models, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_models["t5_v1_1"])
    (tmp_path / "data.json").write_text(json.dumps(ROWS))
    alone = DataArguments(train_file=str(tmp_path / "data.json"))
    shared = DataArguments(train_file=str(tmp_path / "data.json"), preprocessing_num_workers=2)
    rows = load_splits(alone)["train"]
    splits = [make_split(rows, options, tokenizer) for options in (alone, shared)]
    assert splits[0].pairs.to_list() == splits[1].pairs.to_list()
    assert splits[0].cut == splits[1].cut
    with pytest.raises(TrainingError, match="--preprocessing_num_workers is 0: it must be at least 1"):
        DataArguments(preprocessing_num_workers=0)


# --- Text for pre-training ----------------------------------------------------------------------------------------

DOCUMENTS = [f"N{number} ärger\nüber " + "x" * (number + 1) for number in range(20)]


def documents_of(*paths: Path) -> list[str]:
    """What windows of 50 bytes have; the cache of datasets has the files that are rewritten."""
    windows = Windows(find_files("train_file", [str(path) for path in paths], "text", False), 50, 1)
    return [text for index in range(windows.count) for text in windows.documents(index)]


def test_all_formats_have_the_same_documents(tmp_path):
    rows = [{"n": number, "text": text} for number, text in enumerate(DOCUMENTS)]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress("\n\n".join(DOCUMENTS).encode()))
    (tmp_path / "b.jsonl.zst").write_bytes(zstandard(lines))
    (tmp_path / "c.json").write_text(json.dumps(rows))
    (tmp_path / "d.json.gz").write_bytes(gzip.compress(lines))
    (tmp_path / "e.csv").write_text("n,text\n" + "".join(f'1,"{text}"\n' for text in DOCUMENTS))
    Dataset.from_list(rows).save_to_disk(tmp_path / "f")
    Dataset.from_list(rows).to_parquet(tmp_path / "g.parquet")
    for path in sorted(tmp_path.iterdir()):
        if path.name != "cache":
            assert documents_of(path) == DOCUMENTS, path
    (tmp_path / "h.tsv").write_text("text\tn\n" + "".join(f"{text.splitlines()[0]}\t1\n" for text in DOCUMENTS))
    assert documents_of(tmp_path / "h.tsv") == [text.splitlines()[0] for text in DOCUMENTS]


def test_a_packed_text_is_unpacked_once_and_named_in_messages(tmp_path, capsys):
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress("\n\n".join(DOCUMENTS).encode()))
    capsys.readouterr()
    for count in (1, 0):
        assert documents_of(path) == DOCUMENTS
        assert capsys.readouterr().err.count("Unpacking a.txt.gz: 0.00B") == count
    (file,) = find_files("train_file", [str(path)], "text", False)
    assert Windows([file], 50, 1).settings()["files"] == [["a.txt.gz", len("\n\n".join(DOCUMENTS).encode())]]
    path.write_bytes(gzip.compress(b"changed"))
    assert documents_of(path) == ["changed"]
    path.write_bytes(gzip.compress(b"good\n\n\xff bad"))
    with pytest.raises(TrainingError, match=r"a.txt.gz, text from byte 6 on: byte 1 is not UTF-8"):
        documents_of(path)
    path.write_bytes(gzip.compress(b"text" * 1000)[:-20])
    with pytest.raises(TrainingError, match=r"a.txt.gz cannot be unpacked .*: it is damaged, truncated"):
        documents_of(path)
    assert not list((tmp_path / "cache").rglob("*.part"))  # nothing half-written is left, nor taken for the file


def test_tables_without_text(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("title,body\na,b\n")
    with pytest.raises(TrainingError, match=r"a.csv, line 2: no column 'text' among \['body', 'title'\]; name it with"):
        documents_of(path)
    (tmp_path / "b.json").write_text('[{"text": "a"},\n{"text": null}]')
    with pytest.raises(TrainingError, match=r"b.json, line 2: column 'text' holds None, which is not text"):
        documents_of(tmp_path / "b.json")
    with pytest.raises(TrainingError, match=r"--train_file .*/b does not exist: give paths of data files"):
        documents_of(tmp_path / "b")


def test_a_full_disk(tmp_path, monkeypatch):
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"text"))

    def fail(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("t5_experimental.training.data.rewriting.tqdm", fail)
    with pytest.raises(
        TrainingError, match=r"a.txt.gz cannot be unpacked to .* \(No space left on device\): make room"
    ):
        documents_of(tmp_path / "a.txt.gz")
    assert not list((tmp_path / "cache").rglob("*.part"))
