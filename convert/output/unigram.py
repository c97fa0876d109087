# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""A T5 tokenizer as plain tables, for programs that have a tokenizer of their own."""

import base64
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConversionError


TOKENIZER_FILES = ("tokenizer.json", "spiece.model", "tokenizer_config.json")


@dataclass(frozen=True)
class Unigram:
    """Pieces of SentencePiece's unigram model, and how text is made ready for them.

    Attributes:
        pieces: with their scores, by id.
        added: ids of tokens that were added to them, such as the sentinels.
        special: ids of tokens that stand for no text, such as the end of a text.
        unknown: id of the piece for what no other covers; None if there is none.
        charsmap: SentencePiece's compiled table of normalization, or empty.
        joins_spaces: whether several spaces count as one.
        begins_with_space: whether a text begins with a space that it did not have.
    """

    pieces: tuple[tuple[str, float], ...]
    added: Mapping[int, str]
    special: frozenset[int]
    unknown: int | None
    charsmap: bytes
    joins_spaces: bool
    begins_with_space: bool


def read_unigram(folder: Path) -> Unigram | None:
    """The tokenizer of a folder, or None if it has none.

    Args:
        folder: of a model.

    Raises:
        ConversionError: it cannot be read, or is of another kind.
    """
    if not any((folder / name).exists() for name in TOKENIZER_FILES):
        return None
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # of any kind, by what is damaged
        reason = " ".join(str(error).split())
        raise ConversionError(f"the tokenizer of {folder} cannot be read ({reason:.500}): copy it again.") from error
    backend = getattr(tokenizer, "backend_tokenizer", None)
    parts = json.loads(backend.to_str()) if backend is not None else {"model": {}}
    if parts["model"].get("type") != "Unigram":
        raise ConversionError(
            f"the tokenizer of {folder}, {type(tokenizer).__name__}, is none of pieces with scores: move its files "
            "away to write the model alone."
        )
    normalizers = [*_parts(parts["normalizer"], "normalizers")]
    splits = [*_parts(parts["pre_tokenizer"], "pretokenizers")]
    special = (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id)
    return Unigram(
        pieces=tuple((piece, float(score)) for piece, score in parts["model"]["vocab"]),
        added={token["id"]: token["content"] for token in parts["added_tokens"]},
        special=frozenset(token for token in special if token is not None),
        unknown=parts["model"]["unk_id"],
        charsmap=b"".join(
            base64.b64decode(part["precompiled_charsmap"]) for part in normalizers if part["type"] == "Precompiled"
        ),
        joins_spaces=any(part["type"] == "WhitespaceSplit" for part in splits)
        or any(part["type"] == "Replace" and part["pattern"] == {"Regex": " {2,}"} for part in normalizers),
        begins_with_space=any(part["type"] == "Metaspace" and part["prepend_scheme"] != "never" for part in splits),
    )


def _parts(part: Mapping[str, Any] | None, inner: str) -> Iterator[Mapping[str, Any]]:
    """A part of a tokenizer, and if it is a sequence, those in it."""
    if part is not None:
        yield part
        for below in part.get(inner, ()):
            yield from _parts(below, inner)
