# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Vocabularies for training: what no tokenizer can be built from is refused, and ids are the original's, whether
sentinels are in the file or not."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sentencepiece import sentencepiece_model_pb2

from t5_experimental.training.errors import TrainingError
from t5_experimental.training.models import fresh as fresh_models
from t5_experimental.training.models.fresh import load_any_tokenizer
from t5_experimental.training.models.loading import load_tokenizer

from .conftest import DATA


Edit = Callable[[Any], Any]


def piece(index: int, **fields: Any) -> Edit:
    return lambda model: [setattr(model.pieces[index], name, value) for name, value in fields.items()]


def algorithm(model: Any) -> None:
    model.trainer_spec.model_type = 2


def charsmap(model: Any) -> None:
    """Its values point into the middle of characters."""
    data = model.normalizer_spec.precompiled_charsmap
    end = 4 + struct.unpack_from("<I", data)[0]
    model.normalizer_spec.precompiled_charsmap = data[:end] + "é\0".encode() * 9999


def sentinels(text: str) -> Edit:
    return lambda model: [model.pieces.add(piece=text.format(n), type=4) for n in reversed(range(100))]


@pytest.fixture
def edited(tmp_path: Path) -> Callable[[Edit], str]:
    def write(edit: Edit) -> str:
        model = sentencepiece_model_pb2.ModelProto.FromString((DATA / "restaurants.model").read_bytes())
        edit(model)
        path = tmp_path / "sentencepiece.model"
        path.write_bytes(model.SerializeToString())
        return str(path)

    return write


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (charsmap, "is damaged, sentencepiece says"),
        (piece(9, score=float("nan")), "the score of its piece 9, '.*', is nan"),
        (piece(9, piece=""), "its piece 9 is ''"),
        (piece(9, piece="<pad>"), "its pieces 0 and 9 are both '<pad>'"),
        (algorithm, "has an algorithm other than unigram"),
        (piece(0, piece="[P]"), "other special pieces than T5Tokenizer"),
        (piece(2, piece="[U]"), "other special pieces than T5Tokenizer"),
        (piece(1, type=1), "id 1 is '</s>' where T5 has </s>"),
    ],
)
def test_vocabularies_that_do_not_do(edit: Edit, message: str, edited: Callable[[Edit], str]) -> None:
    with pytest.raises(TrainingError, match=f"--tokenizer_name: .*{message}"):
        load_any_tokenizer(edited(edit))


@pytest.mark.parametrize("text", ["<extra_id_{}>", "▁<extra_id_{}>"])
def test_sentinels_of_the_file_get_their_ids_once(text: str, edited: Callable[[Edit], str]) -> None:
    """As Google's cc_all.32000.100extra has them."""
    tokenizer = load_any_tokenizer(edited(sentinels(text)))
    plain = load_any_tokenizer(str(DATA / "restaurants.model"))
    assert tokenizer.get_vocab() == plain.get_vocab()
    assert tokenizer.convert_tokens_to_ids([f"<extra_id_{n}>" for n in (0, 99)]) == [278, 179]
    asked = "the house <extra_id_0> of<extra_id_99>"
    assert tokenizer(asked).input_ids == plain(asked).input_ids


class PanicException(BaseException):
    """As pyo3 names what a panic in Rust raises."""


@pytest.mark.parametrize("error", [PanicException("index out of\nbounds"), Exception("no")])
def test_whatever_the_library_raises(
    error: BaseException, edited: Callable[[Edit], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(fresh_models.AutoTokenizer, "from_pretrained", fail)
    with pytest.raises(TrainingError, match=r"no tokenizer can be built from .*: (index out of bounds|no)"):
        load_any_tokenizer(edited(lambda model: None))


@pytest.mark.parametrize("text", ["{", "[]", '{"model": {}}', '{"model": {"type": "Unigram", "vocab": []}}', "\udce9"])
def test_a_folders_tokenizer_that_is_damaged(text: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(text.encode(errors="surrogateescape"))
    for name in ("TokenizersBackend", "T5Tokenizer"):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name}))
        with pytest.raises(TrainingError, match=r"The tokenizer of .* does not load"):
            load_tokenizer(str(tmp_path))
