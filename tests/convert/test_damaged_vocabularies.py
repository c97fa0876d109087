# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Vocabularies from which no tokenizer can be built: one sentence, before anything is written."""

import struct
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sentencepiece import sentencepiece_model_pb2

from t5_experimental import vocabulary
from t5_experimental.convert import pipeline
from t5_experimental.convert.errors import ConversionError
from t5_experimental.convert.output import safetensors_writer as writer
from t5_experimental.convert.output import tokenizer
from t5_experimental.convert.output.tokenizer import build_tokenizer, check_vocabulary


Edit = Callable[[Any], None]

TRIE_BYTES = struct.Struct("<I")


def piece(index: int, **fields: Any) -> Edit:
    def edit(model: Any) -> None:
        for name, value in fields.items():
            setattr(model.pieces[index], name, value)

    return edit


def charsmap(change: Callable[[bytes], bytes]) -> Edit:
    def edit(model: Any) -> None:
        spec = model.normalizer_spec
        spec.precompiled_charsmap = change(spec.precompiled_charsmap)

    return edit


def texts_are(texts: bytes) -> Edit:
    """Other texts behind the trie, into which its values then point."""
    return charsmap(lambda data: data[: 4 + TRIE_BYTES.unpack_from(data)[0]] + texts)


def joined(data: bytes) -> bytes:
    """A text's first character and the end of the text before it become one character of two bytes."""
    at = data.index(b"\0a", 4 + TRIE_BYTES.unpack_from(data)[0])
    return data[:at] + "é".encode() + data[at + 2 :]


def denormalizer(model: Any) -> None:
    model.denormalizer_spec.precompiled_charsmap = model.normalizer_spec.precompiled_charsmap


def sentinel_twice(model: Any) -> None:
    for n in reversed(range(100)):
        model.pieces.add(piece=f"<extra_id_{n}>", type=4)
    model.pieces.insert(50, sentencepiece_model_pb2.ModelProto.SentencePiece(piece="▁<extra_id_5>", type=4))


DAMAGES: dict[str, tuple[Edit, str]] = {
    "charsmap of three bytes": (charsmap(lambda data: b"abc"), "is damaged, sentencepiece says"),
    "charsmap cut off": (charsmap(lambda data: data[:-100]), "is damaged, sentencepiece says"),
    "a trie of 8 GB": (charsmap(lambda data: TRIE_BYTES.pack(2**32 - 4) + data[4:]), "is damaged, sentencepiece says"),
    "no trie": (charsmap(lambda data: TRIE_BYTES.pack(0) + data[4:]), "is damaged, sentencepiece says"),
    "values beyond the texts": (texts_are(b"a\0"), "is damaged, sentencepiece says"),
    "values within a character": (texts_are("é\0".encode() * 9999), "is damaged, sentencepiece says"),
    "texts that are no Unicode": (texts_are(b"\xff\0" * 40000), "normalization rules are not UTF-8"),
    "a value within a character": (charsmap(joined), "normalization rules are inconsistent"),
    "NaN": (piece(9, score=float("nan")), "the score of its piece 9, '.*', is nan"),
    "infinity": (piece(9, score=float("-inf")), "the score of its piece 9, '.*', is -inf"),
    "NaN of a special piece": (piece(1, score=float("nan")), "the score of its piece 1, '</s>', is nan"),
    "twice": (piece(9, piece="▁the"), "its pieces 9 and .* are both '▁the'|its pieces .* and 9 are both '▁the'"),
    "special piece twice": (piece(9, piece="<pad>"), "its pieces 0 and 9 are both '<pad>'"),
    "sentinel twice": (sentinel_twice, "sentinels other than"),
    "empty": (piece(9, piece=""), "its piece 9 is ''"),
    "empty special piece": (piece(1, piece=""), "its piece 1 is ''"),
    "NUL": (piece(9, piece="a\0"), r"its piece 9 is 'a\\x00'"),
    "eos that is a blank": (piece(1, piece=" "), "id 1 is ' ', which cannot be a special token"),
    "eos for a template": (piece(1, piece="$B"), r"id 1 is '\$B', which cannot be a special token"),
    "eos with a type": (piece(1, piece="a:1"), "id 1 is 'a:1', which cannot be a special token"),
    "terminal's own characters": (piece(9, type=4, piece="\x1b[31m"), "user-defined symbols"),
    "rules for what is decoded": (denormalizer, "denormalization rules"),
}


@pytest.fixture
def damaged(reference: Path, tmp_path: Path) -> Callable[[Edit], Path]:
    def write(edit: Edit) -> Path:
        data = (reference.parent / "data" / "restaurants.model").read_bytes()
        model = sentencepiece_model_pb2.ModelProto.FromString(data)
        edit(model)
        path = tmp_path / "vocabulary" / "sentencepiece.model"
        path.parent.mkdir()
        path.write_bytes(model.SerializeToString())
        return path

    return write


def assert_refused(result: SimpleNamespace, message: str) -> None:
    import re

    (sentence,) = result.err.splitlines()
    assert re.fullmatch(f"error: .*({message}).*\\.", sentence), sentence
    assert sentence.isprintable()
    assert result.status == 1


@pytest.mark.parametrize("case", DAMAGES)
@pytest.mark.parametrize("output_format", ["native", "stock-t5"])
def test_refused_before_anything_is_written(
    case: str,
    output_format: str,
    damaged: Callable[[Edit], Path],
    reference: Path,
    run: Callable[..., SimpleNamespace],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    edit, message = DAMAGES[case]
    monkeypatch.setattr(writer, "write_tensors", lambda *_: pytest.fail("weights are written"))
    source, path = reference / "golden" / "t5.1.1.tiny", damaged(edit)
    result = run("convert", source, tmp_path / "out", "--vocab", path, "--format", output_format)
    assert_refused(result, message)
    assert [path.name for path in tmp_path.iterdir()] == ["vocabulary"]


def test_pieces_that_are_no_unicode(reference: Path, tmp_path: Path) -> None:
    data = (reference.parent / "data" / "restaurants.model").read_bytes()
    path = tmp_path / "sentencepiece.model"
    path.write_bytes(data.replace("▁the".encode(), b"\xff\xfe\xfd\xfcab"[: len("▁the".encode())], 1))
    with pytest.raises(ConversionError, match="is not UTF-8"):
        check_vocabulary(path, 1152)


@pytest.mark.parametrize(
    ("edit", "end"),
    [
        (lambda units: units, True),
        (lambda units: units[:-256], False),
        (lambda units: units * 0, True),
        (lambda units: units | 0xFFFFFC00, False),
    ],
)
def test_a_trie_that_is_left(edit: Callable[[np.ndarray], np.ndarray], end: bool, reference: Path) -> None:
    proto = check_vocabulary(reference.parent / "data" / "restaurants.model", 1152).proto
    data = proto.normalizer_spec.precompiled_charsmap
    units = np.frombuffer(data, "<u4", TRIE_BYTES.unpack_from(data)[0] // 4, 4)
    values = vocabulary._trie_values(edit(units))
    assert (values is not None) == end
    if edit(units) is units:
        assert len(set(values.tolist())) == 14909


def test_a_huge_file_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "sentencepiece.model"
    with path.open("wb") as file:
        file.truncate(2**40)
    monkeypatch.setattr(vocabulary, "_MAX_BYTES", 1000)
    with pytest.raises(ConversionError, match="has more than 1,000 bytes, which no vocabulary has"):
        check_vocabulary(path, 1152)


def test_sentencepiece_that_is_not_installed(
    reference: Path, run: Callable[..., SimpleNamespace], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sentencepiece", None)
    path = reference.parent / "data" / "restaurants.model"
    result = run("convert", reference / "golden" / "t5.1.1.tiny", tmp_path / "out", "--vocab", path)
    assert_refused(result, r'sentencepiece, .*, is not installed: pip install "t5-experimental\[convert\]"')
    assert list(tmp_path.iterdir()) == []


class PanicException(BaseException):
    """As pyo3 names what a panic in Rust raises."""


@pytest.mark.parametrize("error", [PanicException("index out of\nbounds"), ValueError("no"), OSError("no")])
def test_whatever_the_library_raises_is_one_sentence(
    error: BaseException,
    reference: Path,
    run: Callable[..., SimpleNamespace],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of causes that are not known yet."""

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(tokenizer, "_build_backend", fail)
    monkeypatch.setattr(writer, "write_tensors", lambda *_: pytest.fail("weights are written"))
    path = reference.parent / "data" / "restaurants.model"
    result = run("convert", reference / "golden" / "t5.1.1.tiny", tmp_path / "out", "--vocab", path)
    assert_refused(result, "no tokenizer can be built from .*restaurants.model, the library says '.*'")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_stays_one(reference: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tokenizer, "_build_backend", interrupt)
    with pytest.raises(KeyboardInterrupt):
        build_tokenizer(check_vocabulary(reference.parent / "data" / "restaurants.model", 1152))


def test_texts_are_made_before_weights_are_written(
    reference: Path, run: Callable[..., SimpleNamespace], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokenizer, model card, configuration: what can fail fails first."""
    for name in ("write_tokenizer_files", "write_config"):

        def fail(*_: object) -> None:
            raise ConversionError("it cannot be.")

        with monkeypatch.context() as patch:
            patch.setattr(pipeline, name, fail)
            patch.setattr(writer, "write_tensors", lambda *_: pytest.fail("weights are written"))
            path = reference.parent / "data" / "restaurants.model"
            result = run("convert", reference / "golden" / "t5.1.1.tiny", tmp_path / "out", "--vocab", path)
            assert_refused(result, "it cannot be")
            assert list(tmp_path.iterdir()) == []


def test_the_configuration_is_written_last(reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing loads a folder without it."""
    written: list[str] = []
    write = Path.write_bytes
    monkeypatch.setattr(Path, "write_bytes", lambda path, data: written.append(path.name) or write(path, data))
    path = reference.parent / "data" / "restaurants.model"
    pipeline.convert(reference / "golden" / "t5.1.1.tiny", tmp_path / "out", vocab=path)
    assert written[-1] == "config.json"
    texts = {"README.md", "spiece.model", "tokenizer.json", "tokenizer_config.json", "generation_config.json"}
    assert texts < set(written)


def test_no_place_for_temporary_files(
    reference: Path, run: Callable[..., SimpleNamespace], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    result = run("convert", reference / "golden" / "t5.1.1.tiny", tmp_path / "out")
    assert_refused(result, "temporary files cannot be written .No such file or directory.: .*TMPDIR")
    assert list(tmp_path.iterdir()) == []
