# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Reads T5's vocabulary, a sentencepiece model file, with sentencepiece's own protocol buffer.

A vocabulary that passes these checks can be built into a tokenizer like T5's: unigram, with T5's special pieces and
sentinels.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


SENTINELS = 100
# Values of `ModelProto.SentencePiece.Type`, which cannot be imported where sentencepiece is not installed.
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)
_UNIGRAM = 1
_SPECIAL = (("<pad>", _CONTROL), ("</s>", _CONTROL), ("<unk>", _UNKNOWN))
_SENTINEL = re.compile(r"▁?<extra_id_(0|[1-9][0-9]{0,8})>")
# Characters with another meaning in the templates and decoders of tokenizers.
_NO_SPECIAL_TOKEN = re.compile(r"[\s▁:$]")
# Largest file to read: T5's vocabulary has 0.8 MB, mT5's with 250,000 pieces 4.3 MB.
_MAX_BYTES = 2**24

_NODES_AT_ONCE = 2**12


class VocabularyError(ValueError):
    """A file is not a T5 vocabulary; the message is one sentence that says what is wrong and what to do."""


@dataclass(frozen=True)
class Vocabulary:
    """A T5 vocabulary.

    Attributes:
        path: the sentencepiece model file.
        data: its bytes.
        proto: its content, a `ModelProto`.
        tokens: text and score of all ids, sentinels included; if the file has none, they come last, descending.
    """

    path: Path
    data: bytes
    proto: Any
    tokens: tuple[tuple[str, float], ...]

    @property
    def special(self) -> tuple[str, str, str]:
        """Texts of the ids 0 to 2: padding, end of sequence, unknown."""
        pad, eos, unk = (text for text, _ in self.tokens[:3])
        return pad, eos, unk

    def without_sentinels(self) -> bytes:
        """The file without sentinels: all other ids stay the same."""
        proto = type(self.proto)()
        proto.CopyFrom(self.proto)
        del proto.pieces[len(self.tokens) - SENTINELS :]
        return proto.SerializeToString()


def read_vocabulary(path: Path) -> Vocabulary:
    """Reads a sentencepiece model file, with or without the sentinels in it.

    Raises:
        VocabularyError: it cannot be read, is damaged, or is not a T5 vocabulary.
    """
    data = _read(path)
    proto = _parse(path, data)
    _check_pieces(path, proto.pieces)
    _check_features(path, proto)
    tokens = [(piece.piece, piece.score) for piece in proto.pieces]
    sentinels = [(int(m[1]), k) for k, (text, _) in enumerate(tokens) if (m := _SENTINEL.fullmatch(text))]
    if not sentinels:
        tokens += [(f"<extra_id_{n}>", 0.0) for n in reversed(range(SENTINELS))]
    elif sentinels != [(n, len(tokens) - 1 - n) for n in reversed(range(SENTINELS))]:
        raise VocabularyError(
            f"{path} has sentinels other than <extra_id_{SENTINELS - 1}> to <extra_id_0> as its last pieces: T5's "
            "vocabularies end in them, in this order."
        )
    # Some tools write them with a space before; in text they occur without.
    for n, k in sentinels:
        tokens[k] = (f"<extra_id_{n}>", tokens[k][1])
    _check_loads(path, data)
    _check_rules(path, proto.normalizer_spec.precompiled_charsmap)
    return Vocabulary(path, data, proto, tuple(tokens))


def _parse(path: Path, data: bytes) -> Any:
    try:
        from google.protobuf.message import DecodeError
        from sentencepiece import sentencepiece_model_pb2
    except ImportError as error:
        raise VocabularyError(
            f"{error.name or 'sentencepiece'}, which reads vocabularies, is not installed: pip install "
            '"t5-experimental[convert]".'
        ) from error
    try:
        proto = sentencepiece_model_pb2.ModelProto.FromString(data)  # type: ignore[attr-defined]
    except DecodeError as error:
        raise VocabularyError(f"{path} is not a sentencepiece model: give the file sentencepiece.model.") from error
    if not proto.pieces:
        raise VocabularyError(f"{path} holds no vocabulary: give the file sentencepiece.model.")
    return proto


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise VocabularyError(f"the vocabulary {path} cannot be read: {error.strerror}.") from error
    if len(data) > _MAX_BYTES:
        raise VocabularyError(
            f"{path} has more than {_MAX_BYTES:,} bytes, which no vocabulary has: give the file sentencepiece.model."
        )
    return data


def _check_pieces(path: Path, pieces: Any) -> None:
    ids: dict[str, int] = {}
    for k, piece in enumerate(pieces):
        text = piece.piece
        if not isinstance(text, str):  # protobuf returns invalid UTF-8 as bytes
            raise VocabularyError(f"{path} is damaged: its piece {k}, {text!r:.80}, is not UTF-8; copy it again.")
        if not text or "\0" in text:
            raise VocabularyError(f"{path} is damaged: its piece {k} is {text!r:.80}; copy it again.")
        if not math.isfinite(piece.score):
            raise VocabularyError(
                f"{path} is damaged: the score of its piece {k}, {text!r:.80}, is {piece.score}; copy it again."
            )
        if ids.setdefault(text, k) != k:
            raise VocabularyError(
                f"{path} is damaged: its pieces {ids[text]} and {k} are both {text!r:.80}; copy it again."
            )


def _check_features(path: Path, proto: Any) -> None:
    pieces, trainer, normalizer = proto.pieces, proto.trainer_spec, proto.normalizer_spec
    for k, (text, kind) in enumerate(_SPECIAL):
        have = pieces[k].piece if k < len(pieces) else "nothing"
        if k >= len(pieces) or pieces[k].type != kind:
            raise VocabularyError(
                f"{path} does not fit: id {k} is {have!r:.80} where T5 has {text} (pad 0, eos 1, unk 2)."
            )
        if _NO_SPECIAL_TOKEN.search(have):
            raise VocabularyError(
                f"{path} does not fit: id {k} is {have!r:.80}, which cannot be a special token of transformers (T5 has "
                f"{text})."
            )
    others = [piece for piece in pieces[3:] if not _SENTINEL.fullmatch(piece.piece)]
    kinds = {piece.type for piece in others}
    unsupported = {
        "an algorithm other than unigram": trainer.model_type != _UNIGRAM,
        "spaces that are not escaped": not normalizer.escape_whitespaces,
        "repeated spaces that are kept": not normalizer.remove_extra_whitespaces,
        "spaces at the end of words": trainer.treat_whitespace_as_suffix,
        "byte fallback": trainer.byte_fallback or _BYTE in kinds,
        "unused pieces": _UNUSED in kinds,
        "user-defined symbols": _USER_DEFINED in kinds,
        "control pieces besides pad and eos": not kinds <= {_NORMAL, _USER_DEFINED},
        "denormalization rules": bool(proto.denormalizer_spec.precompiled_charsmap),
    }
    for what, found in unsupported.items():
        if found:
            raise VocabularyError(
                f"{path} has {what}, which no T5 vocabulary has: give the one the model was trained with."
            )


def _check_loads(path: Path, data: bytes) -> None:
    """sentencepiece itself checks what no other library does, above all the compiled normalization rules."""
    from sentencepiece import SentencePieceProcessor

    try:
        SentencePieceProcessor(model_proto=data)
    except (RuntimeError, OSError) as error:
        raise VocabularyError(f"{path} is damaged, sentencepiece says {str(error)!r:.300}: copy it again.") from error


def _check_rules(path: Path, charsmap: bytes) -> None:
    """Checks what tokenizers relies on but sentencepiece does not check. Compiled rules are the length of a trie in
    bytes, the trie, and replacement texts; a value of the trie is the offset of a replacement in these texts."""
    end = 4 + int.from_bytes(charsmap[:4], "little")
    try:
        charsmap[end:].decode()
    except UnicodeDecodeError as error:
        raise VocabularyError(f"{path} is damaged: its normalization rules are not UTF-8; copy it again.") from error
    texts = np.frombuffer(charsmap, np.uint8)[end:]
    values = _trie_values(np.frombuffer(charsmap[4:end], "<u4")) if charsmap else np.empty(0, np.intp)
    # In UTF-8, no character begins with one of these bytes.
    if values is None or (values >= len(texts)).any() or (texts[values] & 0xC0 == 0x80).any():
        raise VocabularyError(f"{path} is damaged: its normalization rules are inconsistent; copy it again.")


def _trie_values(units: "np.ndarray") -> "np.ndarray | None":
    """All values that are reachable in a double-array trie; None if a transition leaves it.

    Source of the format: https://github.com/s-yata/darts-clone.

    Args:
        units: uint32 [units].
    """
    offsets = (units >> 10).astype(np.intp) << ((units & 0x200) >> 6).astype(np.intp)
    characters = np.arange(1, 256)
    seen = np.zeros(len(units), bool)
    values = [np.empty(0, np.intp)]
    waiting = offsets[:1]
    while len(waiting):
        if (waiting | 0xFF >= len(units)).any():
            return None
        seen[waiting] = True
        nodes, waiting = waiting[:_NODES_AT_ONCE], waiting[_NODES_AT_ONCE:]
        places = nodes[:, None] ^ characters
        places = places[units[places] & 0x800000FF == characters]
        nodes = places ^ offsets[places]
        ends = nodes[units[places] & 0x100 != 0]
        if (ends >= len(units)).any():
            return None
        values.append((units[ends] & 0x7FFFFFFF).astype(np.intp))
        waiting = np.concatenate([waiting, np.unique(nodes[~seen[np.minimum(nodes, len(units) - 1)]])])
    return np.concatenate(values)
