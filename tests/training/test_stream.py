# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Streaming of text: every document once, however a file is divided into ranges, and exact resumption."""

import json
import shutil
import tracemalloc
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from t5_experimental.training.data import documents
from t5_experimental.training.data.denoisers import Denoiser, IidDenoising, Mixture
from t5_experimental.training.data.documents import DocumentFile, Windows, find_files
from t5_experimental.training.data.objectives import PlainLM, SpanCorruption
from t5_experimental.training.data.stream import Place, StreamLoader, TextStream, restore, save_state
from t5_experimental.training.errors import TrainingError
from t5_experimental.training.models.loading import load_tokenizer


EOS = 1
LINE = st.sampled_from(["", " ", "\r", "a", "b b", "c\r", "é", "Δ" * 5])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Scratch folder that hypothesis may use over and over."""
    return tmp_path_factory.mktemp("text")


@pytest.fixture(scope="module")
def tokenizer(tiny_models):
    return load_tokenizer(str(tiny_models["t5_v1_1"]))


def by_paragraph(text: str) -> list[str]:
    """Documents as the whole text tells them."""
    documents, lines = [], []
    for line in [*text.split("\n"), ""]:
        if line.strip():
            lines.append(line)
        elif lines:
            documents, lines = [*documents, "\n".join(lines).strip()], []
    return documents


def numbered_documents(folder: Path, count: int, name: str = "text.txt") -> Path:
    """A file of documents, each with a number of its own in words that the tokenizer keeps apart."""
    path = folder / name
    path.write_text("\n\n".join(f"N{number:04d} " + "food " * (number * 7 % 40) for number in range(count)))
    return path


@given(st.lists(LINE, max_size=30), st.integers(1, 12), st.booleans())
@settings(deadline=None)
def test_every_range_has_its_own_documents(folder, lines, size, bom):
    text = "\n".join(lines)
    path = folder / "ranges.txt"
    path.write_bytes(("\ufeff" if bom else "").encode() + text.encode())
    for document_per_line, expected in (
        (False, by_paragraph(text)),
        (True, [line.strip() for line in lines if line.strip()]),
    ):
        file = DocumentFile(path, path.stat().st_size, document_per_line=document_per_line)
        windows = Windows([file], size, least=1)
        documents = [document for index in range(windows.count) for document in windows.documents(index)]
        assert documents == expected


@given(st.lists(st.lists(st.text("ab\n\u00e9", min_size=1, max_size=8), max_size=5), min_size=1, max_size=4), st.data())
@settings(deadline=None)
def test_several_files_are_one_text(folder, contents, data):
    files = []
    for number, texts in enumerate(contents):
        path = folder / f"part{number}.jsonl"
        path.write_text("".join(json.dumps({"text": text, "n": 1}) + "\n" for text in texts))
        files.append(DocumentFile(path, path.stat().st_size))
    if not any(file.size for file in files):
        return
    windows = Windows(files, data.draw(st.integers(1, 60)), data.draw(st.integers(1, 9)))
    documents = [document for index in range(windows.count) for document in windows.documents(index)]
    assert documents == [text.strip() for texts in contents for text in texts if text.strip()]


def mixture(sentinel):
    """Two denoisers that draw their chunks' lengths and noise."""
    spans = SpanCorruption(32, 9, EOS, 8, first_sentinel=sentinel)
    iid = IidDenoising(20, 20, EOS, 8, sentinel, sentinels=20)
    return Mixture(34, 20, EOS, 8, (Denoiser((5, 6), spans), Denoiser((7,), iid)))


def make_stream(tokenizer, path, workers=1, packed=False, window=4000, seed=3, mixed=False, **where):
    sentinel = tokenizer.convert_tokens_to_ids("<extra_id_0>")
    objective = mixture(sentinel) if mixed else SpanCorruption(32, 9, EOS, 8, first_sentinel=sentinel)
    files = find_files("train_file", [str(path)], "text", False)
    windows = Windows(files, window, least=workers * where.get("processes", 1))
    return TextStream(windows, tokenizer, objective, packed, seed, workers=workers, **where)


def test_the_first_worker_shows_how_far_the_first_window_is(tokenizer, tmp_path, capsys):
    path = numbered_documents(tmp_path, 100)
    rows = []
    for shown, where in ((True, {}), (False, {"silent": True}), (False, {"process": 1, "processes": 2})):
        stream = make_stream(tokenizer, path, window=2**20, **{"silent": False, **where})
        rows.append(next(iter(stream))[2]["input_ids"].tolist())
        assert ("Tokenizing the first text: 100%" in capsys.readouterr().err) == shown
    assert rows[0] == rows[1] != rows[2]


def test_every_pass_has_every_document_once(tokenizer, tmp_path):
    """Plain LM keeps the text whole; two processes of two workers share it."""
    path = numbered_documents(tmp_path, 300)
    windows = Windows(find_files("train_file", [str(path)], "text", False), 2**20, least=24)
    assert windows.count == 24  # a multiple of the shards, so that these end a pass together
    expected = sorted(path.read_text().split("\n\n"))
    orders = []
    for start in range(2):
        found = []
        for process in range(2):
            stream = TextStream(
                windows, tokenizer, PlainLM(200, 200, EOS, 1), False, 0, process, processes=2, workers=2
            )
            for worker in range(2):
                rows = stream._rows_of_shard(worker)
                for place, row in rows:
                    if place.windows == windows.count // 4 * (start + 1):
                        break
                    if place.windows >= windows.count // 4 * start:
                        labels = row["labels"]
                        found.append(tokenizer.decode(labels[labels > EOS]))
        assert sorted(text.strip() for text in found) == [text.strip() for text in expected]
        orders.append(found)
    assert orders[0] != orders[1]


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_resumes_exactly(workers, packed, mixed, tokenizer, tmp_path):
    path = numbered_documents(tmp_path, 150)

    def loader():
        return StreamLoader(make_stream(tokenizer, path, max(workers, 1), packed, mixed=mixed), 3, workers)

    whole = loader()
    expected = list(islice(whole, 40))
    assert whole.state.places[0].windows > 0  # beyond the first window
    for stop in (1, 7, 18):
        first = loader()
        done = list(islice(first, stop))
        (tmp_path / f"checkpoint-{stop}").mkdir(exist_ok=True)
        save_state(first, tmp_path / f"checkpoint-{stop}")
        second = loader()
        restore(second.stream, tmp_path / f"checkpoint-{stop}")
        second.state = second.stream.state
        rest = list(islice(second, 40 - stop))
        for batch, reference in zip([*done, *rest], expected, strict=True):
            assert batch.keys() == reference.keys()
            assert all(torch.equal(batch[name], reference[name]) for name in batch)
        assert second.state == whole.state


def test_a_resumption_that_forgets_its_place_is_noticed(tokenizer, tmp_path):
    """The comparison above discriminates: rows, windows and the worker's turn all matter."""
    path = numbered_documents(tmp_path, 150)

    def batches(**changes):
        stream = make_stream(tokenizer, path, 2)
        stream.state = stream.state._replace(**changes)
        loader = StreamLoader(stream, 3, 2)
        return [batch["input_ids"] for batch in islice(loader, 2)]

    def same(left, right):
        return all(map(torch.equal, left, right))

    start = batches()
    assert same(start, batches())
    for changes in (
        {"places": (Place(0, 3), Place())},
        {"places": (Place(1), Place())},
        {"next_worker": 1},
    ):
        assert not same(start, batches(**changes))


def test_rows_are_shuffled_and_follow_from_the_seed(tokenizer, tmp_path):
    path = numbered_documents(tmp_path, 100)

    def rows(seed):
        stream = make_stream(tokenizer, path, window=100_000, seed=seed)
        return np.stack([row["input_ids"] for _, _, row in islice(stream, 30)])

    in_order = np.stack([row["input_ids"] for row in islice(make_stream(tokenizer, path, window=100_000).once(), 30)])
    assert np.array_equal(rows(1), rows(1))
    assert not np.array_equal(rows(1), rows(2))
    assert not np.array_equal(rows(1), in_order)


def test_text_cannot_spell_special_tokens(tokenizer, tmp_path):
    path = tmp_path / "special.txt"
    path.write_text("food </s> food <extra_id_3> food <pad> food\n")
    row = next(
        TextStream(
            Windows(find_files("train_file", [str(path)], "text", False), 1000, 1),
            tokenizer,
            PlainLM(64, 64, EOS, 1),
            False,
            0,
        ).once()
    )
    ids = row["labels"][row["labels"] != -100]
    assert tokenizer.decode(ids[:-1]).split() == ["food"] * 4
    assert ids[-1] == EOS


def test_errors_of_workers_arrive_as_a_sentence(tokenizer, tmp_path):
    path = tmp_path / "broken.jsonl"
    path.write_text('{"text": "food"}\n' * 5 + "{\n")
    for workers in (0, 1):
        with pytest.raises(TrainingError, match=r"^.*broken.jsonl, line at byte 85: not JSON") as error:
            list(islice(StreamLoader(make_stream(tokenizer, path), 2, workers), 100))
        assert "\n" not in str(error.value)


def test_half_a_character_is_no_text(tokenizer, tmp_path):
    path = tmp_path / "half.jsonl"
    path.write_text('{"text": "food"}\n{"text": "a \\ud800"}\n')
    with pytest.raises(TrainingError, match=r"half.jsonl, line at byte 17: not Unicode text"):
        list(make_stream(tokenizer, path).once())


def test_resuming_with_other_settings_is_refused(tokenizer, tmp_path):
    path = numbered_documents(tmp_path, 20)
    (tmp_path / "checkpoint-1").mkdir()
    written = StreamLoader(make_stream(tokenizer, path), 2, 0)
    save_state(written, tmp_path / "checkpoint-1")
    with pytest.raises(TrainingError, match=r"another seed \(3 then, 4 now\): use the same"):
        restore(make_stream(tokenizer, path, seed=4), tmp_path / "checkpoint-1")
    with pytest.raises(TrainingError, match=r"has no stream-1.json"):
        restore(make_stream(tokenizer, path, process=1, processes=2), tmp_path / "checkpoint-1")


@pytest.fixture
def resume(tokenizer, tmp_path):
    """`resume(paths, vocabulary=..., ...)`: a stream of other files goes on where one of `a.txt` and `b/c.txt` was."""
    text = tmp_path / "text"
    (text / "b").mkdir(parents=True)
    paths = [numbered_documents(text, 20, "a.txt"), numbered_documents(text, 30, "b/c.txt")]

    def make(paths, tokenizer=tokenizer, column="text", per_line=False):
        files = find_files("train_file", [str(path) for path in paths], column, per_line)
        return TextStream(Windows(files, 4000, 1), tokenizer, PlainLM(64, 64, EOS, 1), False, seed=0)

    (tmp_path / "checkpoint-1").mkdir()
    save_state(StreamLoader(make(paths), 2, 0), tmp_path / "checkpoint-1")
    return lambda paths, **others: restore(make(paths, **others), tmp_path / "checkpoint-1")


def test_resuming_with_other_text_is_refused(resume, tmp_path):
    text = tmp_path / "text"
    paths = [text / "a.txt", text / "b" / "c.txt"]
    resume(paths)
    resume(paths, column="content")  # text files have no columns
    with pytest.raises(TrainingError, match=r"another --document_per_line \(False then, True now\): use the same"):
        resume(paths, per_line=True)
    with pytest.raises(TrainingError, match=r"another number of files \(2 then, 1 now\)"):
        resume(paths[:1])

    # The folder may be another one, as long as the files are the same.
    shutil.move(text, tmp_path / "moved")
    moved = [tmp_path / "moved" / "a.txt", tmp_path / "moved" / "b" / "c.txt"]
    resume(moved)
    renamed = moved[0].rename(tmp_path / "moved" / "b" / "a.txt")
    with pytest.raises(TrainingError, match=r"another file \(b/c.txt of ([\d,]+) bytes then, c.txt of \1 bytes now\)"):
        resume([renamed, moved[1]])
    content = renamed.read_text()
    moved[0].write_text(content + "food")
    with pytest.raises(TrainingError, match=r"another file \(a.txt of [\d,]+ bytes then, a.txt of"):
        resume(moved)
    moved[0].write_text(content.swapcase())
    with pytest.raises(TrainingError, match=r"another text of the files \([0-9a-f]{12} then, [0-9a-f]{12} now\): use"):
        resume(moved)
    state = tmp_path / "checkpoint-1" / "stream-0.json"
    record = json.loads(state.read_text())
    del record["settings"]["text of the files"]  # as earlier versions wrote it
    state.write_text(json.dumps(record))
    resume(moved)


def test_resuming_with_another_vocabulary_or_column_is_refused(resume, tokenizer, tiny_models, tmp_path):
    paths = [tmp_path / "text" / "a.txt", tmp_path / "text" / "b" / "c.txt"]
    other = load_tokenizer(str(tiny_models["t5_v1_1"]))
    resume(paths, tokenizer=other)
    # As many ids, and one of them another word.
    backend = json.loads(other.backend_tokenizer.to_str())
    backend["model"]["vocab"][100][0] += "x"
    other._tokenizer = type(other.backend_tokenizer).from_str(json.dumps(backend))
    with pytest.raises(TrainingError, match=r"another vocabulary \([0-9a-f]{12} then, [0-9a-f]{12} now\)"):
        resume(paths, tokenizer=other)

    path = tmp_path / "lines.jsonl"
    path.write_text('{"text": "food", "content": "drink"}\n')
    for column in ("text", "content"):
        windows = Windows(find_files("train_file", [str(path)], column, False), 10, 1)
        assert windows.settings()["--text_column"] == column


@pytest.mark.parametrize(
    ("name", "content", "per_line", "expected"),
    [
        ("text.txt", "food\n" * 300, False, r"text.txt has more than 0.001 MB from byte 0 on without a blank line"),
        ("later.txt", "a\n\n" + "b\n" * 600, False, r"later.txt has more than 0.001 MB from byte 3 on"),
        ("line.txt", "food " * 300, True, r"line.txt has a line of more than 0.001 MB at byte 0"),
        ("line.txt", "food " * 300, False, r"line.txt has a line of more than 0.001 MB at byte 0"),
        ("line.jsonl", json.dumps({"text": "food " * 300}), False, r"line.jsonl has a line of more than 0.001 MB"),
    ],
)
def test_documents_too_large_for_memory_are_refused(name, content, per_line, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "MOST_BYTES", 1000)
    path = tmp_path / name
    path.write_text(content)
    file = DocumentFile(path, path.stat().st_size, document_per_line=per_line)
    with pytest.raises(TrainingError, match=expected):
        list(file.read(0, file.size))
    # A range that begins behind it does not read it all at once, either.
    assert list(file.read(file.size - 1, file.size)) == []


def test_refusing_a_large_document_needs_little_memory(tmp_path):
    """A gigabyte without line breaks, of which at most the limit may be read at a time."""
    path = tmp_path / "hole.txt"
    with path.open("wb") as file:
        file.truncate(2**30)
    tracemalloc.start()
    with pytest.raises(TrainingError, match="has a line of more than 64 MB at byte 0"):
        find_files("train_file", [str(path)], "text", False)
    list(DocumentFile(path, 2**30).read(2**30 - 10, 2**30))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 * documents.MOST_BYTES
