# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Reading a sentencepiece model file: its pieces and how it normalises text.

The file is one protocol buffer message, of which a few fields are needed; they are read from the wire format, so that
neither sentencepiece nor protobuf has to be installed. Source of the field numbers: sentencepiece_model.proto.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .errors import ConversionError


NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
_UNIGRAM = 1


@dataclass(frozen=True)
class Piece:
    """An entry of the vocabulary.

    Attributes:
        text: the piece, with "▁" for a blank.
        score: its log probability.
        kind: one of the constants above.
    """

    text: str
    score: float
    kind: int


@dataclass(frozen=True)
class SentencePieceModel:
    """What is needed to tokenise as sentencepiece does.

    Attributes:
        pieces: the vocabulary; an index is an id.
        charsmap: compiled normalisation rules; empty for none.
        unigram: the algorithm is the unigram language model.
        add_dummy_prefix: a blank is put before the text.
        remove_extra_whitespaces: blanks at the ends and repeated blanks are removed.
        escape_whitespaces: blanks are written as "▁".
        whitespace_as_suffix: "▁" ends words instead of beginning them.
        byte_fallback: unknown characters become bytes.
    """

    pieces: tuple[Piece, ...]
    charsmap: bytes
    unigram: bool
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool
    escape_whitespaces: bool
    whitespace_as_suffix: bool
    byte_fallback: bool


def load(path: Path) -> SentencePieceModel:
    """Reads a model file.

    Raises:
        ConversionError: there is no such file, or it is not a sentencepiece model.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConversionError(f"the vocabulary {path} cannot be read: {error.strerror}.") from error
    try:
        model = _parse(data)
    except (IndexError, ValueError, TypeError, struct.error, KeyError) as error:
        raise ConversionError(f"{path} is not a sentencepiece model: give the file sentencepiece.model.") from error
    if not model.pieces:
        raise ConversionError(f"{path} holds no vocabulary: give the file sentencepiece.model.")
    return model


def _parse(data: bytes) -> SentencePieceModel:
    pieces = []
    trainer: dict[int, int] = {}
    normalizer: dict[int, int] = {}
    charsmap = b""
    for number, value in _fields(data):
        if number == 1:
            pieces.append(_piece(_message(value)))
        elif number == 2:
            trainer = {n: v for n, v in _fields(_message(value)) if isinstance(v, int)}
        elif number == 3:
            fields = dict(_fields(_message(value)))
            charsmap = _message(fields.get(2, b""))
            normalizer = {n: v for n, v in fields.items() if isinstance(v, int)}
    return SentencePieceModel(
        pieces=tuple(pieces),
        charsmap=charsmap,
        unigram=trainer.get(3, _UNIGRAM) == _UNIGRAM,
        add_dummy_prefix=bool(normalizer.get(3, 1)),
        remove_extra_whitespaces=bool(normalizer.get(4, 1)),
        escape_whitespaces=bool(normalizer.get(5, 1)),
        whitespace_as_suffix=bool(trainer.get(24, 0)),
        byte_fallback=bool(trainer.get(35, 0)),
    )


def _piece(data: bytes) -> Piece:
    fields = dict(_fields(data))
    kind = fields.get(3, NORMAL)
    if not isinstance(kind, int):
        raise ValueError("the type of a piece is a number")
    score = struct.unpack("<f", _message(fields.get(2, bytes(4))))[0]
    return Piece(_message(fields[1]).decode("utf-8"), score, kind)


def _message(value: bytes | int) -> bytes:
    if isinstance(value, int):
        raise ValueError("a number where bytes are expected")
    return value


def _fields(data: bytes) -> Iterator[tuple[int, bytes | int]]:
    """Field numbers and values of a message: varints as numbers, everything else as its bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire_type = key >> 3, key & 7
        if wire_type == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        size = {1: 8, 5: 4}.get(wire_type)
        if size is None:
            if wire_type != 2:
                raise ValueError(f"wire type {wire_type}")
            size, at = _varint(data, at)
        if at + size > len(data):
            raise ValueError("cut off")
        yield number, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a varint has at most ten bytes")
