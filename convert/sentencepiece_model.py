# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Reading a sentencepiece model file, through sentencepiece's own protocol buffer and past its own checks.

What passes both can be built into a tokenizer.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import ConversionError


# Largest file that is read: T5's vocabulary has 0.8 MB, mT5's of 250,000 pieces 4.3 MB.
_MAX_BYTES = 2**24


@dataclass(frozen=True)
class SentencePieceModel:
    """What is in a model file.

    Attributes:
        path: the file.
        data: its bytes.
        proto: what is in it, a `ModelProto`; the index of one of its `pieces` is an id.
    """

    path: Path
    data: bytes
    proto: Any


def load(path: Path) -> SentencePieceModel:
    """Reads a model file.

    Raises:
        ConversionError: there is no such file, it is not a sentencepiece model, or its pieces are damaged.
    """
    data = _read(path)
    try:
        from google.protobuf.message import DecodeError
        from sentencepiece import sentencepiece_model_pb2
    except ImportError as error:
        raise ConversionError(
            f"{error.name or 'sentencepiece'}, which reads vocabularies, is not installed: pip install "
            '"t5-experimental[convert]".'
        ) from error
    try:
        proto = sentencepiece_model_pb2.ModelProto.FromString(data)  # type: ignore[attr-defined]
    except DecodeError as error:
        raise ConversionError(f"{path} is not a sentencepiece model: give the file sentencepiece.model.") from error
    if not proto.pieces:
        raise ConversionError(f"{path} holds no vocabulary: give the file sentencepiece.model.")
    _check_pieces(path, proto.pieces)
    return SentencePieceModel(path, data, proto)


def check_loads(model: SentencePieceModel) -> None:
    """Lets sentencepiece itself load a model, which checks what no other library does, its compiled rules above all.

    Raises:
        ConversionError: it does not load.
    """
    from sentencepiece import SentencePieceProcessor

    try:
        SentencePieceProcessor(model_proto=model.data)
    except (RuntimeError, OSError) as error:
        raise ConversionError(
            f"{model.path} is damaged, sentencepiece says {str(error)!r:.300}: copy it again."
        ) from error


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise ConversionError(f"the vocabulary {path} cannot be read: {error.strerror}.") from error
    if len(data) > _MAX_BYTES:
        raise ConversionError(
            f"{path} has more than {_MAX_BYTES:,} bytes, which no vocabulary has: give the file sentencepiece.model."
        )
    return data


def _check_pieces(path: Path, pieces: Any) -> None:
    ids: dict[str, int] = {}
    for k, piece in enumerate(pieces):
        text = piece.piece
        if not isinstance(text, str):  # protobuf returns what is no UTF-8 as it is
            raise ConversionError(f"{path} is damaged: its piece {k}, {text!r:.80}, is not UTF-8; copy it again.")
        if not text or "\0" in text:
            raise ConversionError(f"{path} is damaged: its piece {k} is {text!r:.80}; copy it again.")
        if not math.isfinite(piece.score):
            raise ConversionError(
                f"{path} is damaged: the score of its piece {k}, {text!r:.80}, is {piece.score}; copy it again."
            )
        if ids.setdefault(text, k) != k:
            raise ConversionError(
                f"{path} is damaged: its pieces {ids[text]} and {k} are both {text!r:.80}; copy it again."
            )
