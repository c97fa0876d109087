# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Tokenizer files for the output folder: transformers' tokenizer, with exactly the ids that sentencepiece gives.

The pipeline is written out step by step instead of leaving it to transformers' `T5Tokenizer`, which splits at any
Unicode white space: sentencepiece knows only the blank (after its normalisation), and U+0085, say, is a character.
"""

import re
import shutil
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import ConversionError
from .sentencepiece_model import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, SentencePieceModel, load


if TYPE_CHECKING:
    from tokenizers import normalizers
    from transformers import PreTrainedTokenizerBase


SENTINELS = 100
_SPECIAL = (("<pad>", CONTROL), ("</s>", CONTROL), ("<unk>", UNKNOWN))
# Characters that sentencepiece's rules (nmt_nfkc) treat otherwise than NFKC does: the full-width tilde and a deprecated
# combining mark. Each with a stand-in that no text may contain.
_KEPT = (("\uff5e", "\ufdd0"), ("\u0344", "\ufdd1"))
_SENTINEL = re.compile(r"▁?<extra_id_(\d+)>")


@dataclass(frozen=True)
class Vocabulary:
    """A vocabulary that fits the model.

    Attributes:
        path: the sentencepiece model file.
        model: what is in it.
        tokens: text and score of all ids, sentinels included: those of a file that has none come last, descending.
    """

    path: Path
    model: SentencePieceModel
    tokens: tuple[tuple[str, float], ...]


def check_vocabulary(path: Path, vocab_size: int) -> Vocabulary:
    """Reads a vocabulary and checks that it is one for the model.

    Args:
        path: sentencepiece model file, with or without the sentinels in it.
        vocab_size: rows of the embedding.

    Raises:
        ConversionError: it is no T5 vocabulary, or is larger than the embedding.
    """
    model = load(path)
    _check_features(path, model)
    sentinels = {int(m[1]): k for k, piece in enumerate(model.pieces) if (m := _SENTINEL.fullmatch(piece.text))}
    tokens = [(piece.text, piece.score) for piece in model.pieces]
    if not sentinels:
        tokens += [(f"<extra_id_{n}>", 0.0) for n in reversed(range(SENTINELS))]
    else:
        expected = {n: len(tokens) - 1 - n for n in range(SENTINELS)}
        if sentinels != expected:
            raise ConversionError(
                f"{path} has sentinels other than <extra_id_{SENTINELS - 1}> to <extra_id_0> as its last pieces: T5's "
                "vocabularies end in them, in this order."
            )
        # Some tools write them with the blank before; in text they are found without.
        for n, k in sentinels.items():
            tokens[k] = (f"<extra_id_{n}>", tokens[k][1])
    if len(tokens) > vocab_size:
        raise ConversionError(
            f"{path} does not fit: its {len(model.pieces)} pieces{'' if sentinels else ' and 100 sentinels'} need "
            f"{len(tokens)} rows, but the embedding has {vocab_size}."
        )
    return Vocabulary(path, model, tuple(tokens))


def _check_features(path: Path, model: SentencePieceModel) -> None:
    for k, (text, kind) in enumerate(_SPECIAL):
        if k >= len(model.pieces) or model.pieces[k].kind != kind:
            have = model.pieces[k].text if k < len(model.pieces) else "nothing"
            raise ConversionError(f"{path} does not fit: id {k} is {have!r} where T5 has {text} (pad 0, eos 1, unk 2).")
    unsupported = {
        "an algorithm other than unigram": not model.unigram,
        "blanks that are not escaped": not model.escape_whitespaces,
        "repeated blanks that are kept": not model.remove_extra_whitespaces,
        "blanks at the end of words": model.whitespace_as_suffix,
        "byte fallback": model.byte_fallback or any(piece.kind == BYTE for piece in model.pieces),
        "unused pieces": any(piece.kind == UNUSED for piece in model.pieces),
        "symbols defined by the user": any(
            piece.kind == USER_DEFINED and not _SENTINEL.fullmatch(piece.text) for piece in model.pieces
        ),
        "control pieces besides pad and eos": any(
            piece.kind not in (NORMAL, USER_DEFINED) and not _SENTINEL.fullmatch(piece.text)
            for piece in model.pieces[3:]
        ),
    }
    for what, found in unsupported.items():
        if found:
            raise ConversionError(
                f"{path} has {what}, which no T5 vocabulary has: give the one the model was trained with."
            )


def write_tokenizer(vocabulary: Vocabulary, folder: Path) -> None:
    """Writes `tokenizer.json`, `tokenizer_config.json` and a copy of the vocabulary as `spiece.model`."""
    build_tokenizer(vocabulary).save_pretrained(folder)
    shutil.copyfile(vocabulary.path, folder / "spiece.model")


def build_tokenizer(vocabulary: Vocabulary) -> "PreTrainedTokenizerBase":
    """The tokenizer as transformers runs it."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    model = vocabulary.model
    pad, eos, unk = (piece.text for piece in model.pieces[:3])
    backend = Tokenizer(models.Unigram(list(vocabulary.tokens), unk_id=2, byte_fallback=False))
    steps: list[normalizers.Normalizer] = []
    if model.charsmap:
        table = normalizers.Precompiled(model.charsmap)
        if _agrees_with_nfkc(table):
            # Precompiled looks characters up one by one and so misses most decomposed letters, which sentencepiece
            # composes (か and U+3099, say). NFKC composes them first.
            steps += [normalizers.Replace(kept, stand_in) for kept, stand_in in _KEPT]
            steps.append(normalizers.NFKC())
            steps += [normalizers.Replace(stand_in, kept) for kept, stand_in in _KEPT]
        steps.append(table)
    # sentencepiece removes "▁" at the end too, whether a blank became it or not.
    steps += [normalizers.Replace(Regex(r"\A +|[ ▁]+\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    # Not left to Metaspace, which puts no blank before a text that begins with one.
    if model.add_dummy_prefix:
        steps.append(normalizers.Prepend(" "))
    backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    # Words can be tokenised one by one (and remembered) unless a piece reaches beyond the end of a word.
    by_word = not any("▁" in piece.text[1:] for piece in model.pieces)
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="never", split=by_word)
    scheme = "always" if model.add_dummy_prefix else "never"
    backend.decoder = decoders.Metaspace(replacement="▁", prepend_scheme=scheme, split=by_word)
    backend.post_processor = processors.TemplateProcessing(
        single=["$A", eos], pair=["$A", eos, "$B", eos], special_tokens=[(eos, 1)]
    )
    sentinels = [f"<extra_id_{n}>" for n in range(SENTINELS)]
    backend.add_special_tokens([AddedToken(text, special=True) for text in (pad, eos, unk, *sentinels)])
    tokenizer_class: Any = PreTrainedTokenizerFast  # its constructor has no annotations
    tokenizer: PreTrainedTokenizerBase = tokenizer_class(
        tokenizer_object=backend,
        pad_token=pad,
        eos_token=eos,
        unk_token=unk,
        extra_special_tokens=sentinels,
        model_input_names=["input_ids", "attention_mask"],
    )
    return tokenizer


def _agrees_with_nfkc(table: "normalizers.Precompiled") -> bool:
    """Whether compiled rules do to every character what they do to its NFKC form; rules made by hand may not."""
    kept = {character for character, _ in _KEPT}
    characters = (chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000)
    for character in characters:
        composed = unicodedata.normalize("NFKC", character)
        settled = composed == character or character in kept
        if not settled and table.normalize_str(character) != table.normalize_str(composed):
            return False
    return True
