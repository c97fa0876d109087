# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Tokenizer files for the output folder: transformers' tokenizer, with exactly the ids that sentencepiece gives.

The pipeline is written out step by step instead of leaving it to transformers' `T5Tokenizer`, which splits at any
Unicode white space: sentencepiece knows only the blank (after its normalisation), and U+0085, say, is a character.
"""

import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t5_experimental.vocabulary import SENTINELS, Vocabulary, VocabularyError, read_vocabulary

from ..errors import ConversionError


if TYPE_CHECKING:
    from tokenizers import Tokenizer, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerBase


# Characters that sentencepiece's rules (nmt_nfkc) treat otherwise than NFKC does: the full-width tilde and a deprecated
# combining mark. Each with a stand-in that no text may contain.
_KEPT = (("\uff5e", "\ufdd0"), ("\u0344", "\ufdd1"))


def check_vocabulary(path: Path, vocab_size: int) -> Vocabulary:
    """Reads a vocabulary and checks that it is one for the model.

    Args:
        path: sentencepiece model file, with or without the sentinels in it.
        vocab_size: rows of the embedding.

    Raises:
        ConversionError: it is no T5 vocabulary, or is larger than the embedding.
    """
    try:
        vocabulary = read_vocabulary(path)
    except VocabularyError as error:
        raise ConversionError(str(error)) from error
    pieces, rows = len(vocabulary.proto.pieces), len(vocabulary.tokens)
    if rows > vocab_size:
        raise ConversionError(
            f"{path} does not fit: its {pieces} pieces{' and 100 sentinels' if rows > pieces else ''} need {rows} "
            f"rows, but the embedding has {vocab_size}."
        )
    return vocabulary


def write_tokenizer(vocabulary: Vocabulary, folder: Path) -> None:
    """Writes `tokenizer.json`, `tokenizer_config.json` and a copy of the vocabulary as `spiece.model`."""
    build_tokenizer(vocabulary).save_pretrained(folder)
    (folder / "spiece.model").write_bytes(vocabulary.data)


def build_tokenizer(vocabulary: Vocabulary) -> "PreTrainedTokenizerBase":
    """The tokenizer as transformers runs it.

    Raises:
        ConversionError: the library refuses what sentencepiece takes.
    """
    from transformers import PreTrainedTokenizerFast

    with _refusals(vocabulary.path):
        backend = _build_backend(vocabulary)
        pad, eos, unk = vocabulary.special
        tokenizer_class: Any = PreTrainedTokenizerFast  # its constructor has no annotations
        tokenizer: PreTrainedTokenizerBase = tokenizer_class(
            tokenizer_object=backend,
            pad_token=pad,
            eos_token=eos,
            unk_token=unk,
            extra_special_tokens=[f"<extra_id_{n}>" for n in range(SENTINELS)],
            model_input_names=["input_ids", "attention_mask"],
        )
    return tokenizer


@contextmanager
def _refusals(path: Path) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        # What panics in Rust arrives as a `PanicException`, which is no `Exception` and cannot be imported.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ConversionError(
            f"no tokenizer can be built from {path}, the library says {str(error)!r:.300}: give the vocabulary that "
            "the model was trained with."
        ) from error


def _build_backend(vocabulary: Vocabulary) -> "Tokenizer":
    from tokenizers import AddedToken, Tokenizer, decoders, models, processors

    spec = vocabulary.proto.normalizer_spec
    pad, eos, unk = vocabulary.special
    # Words can be tokenised one by one (and remembered) unless a piece reaches beyond the end of a word.
    by_word = not any("▁" in text[1:] for text, _ in vocabulary.tokens)
    backend = Tokenizer(models.Unigram(list(vocabulary.tokens), unk_id=2, byte_fallback=False))
    backend.normalizer = _normalizer(spec, by_word)
    backend.pre_tokenizer = _pre_tokenizer(spec, by_word)
    scheme = "always" if spec.add_dummy_prefix else "never"
    backend.decoder = decoders.Metaspace(replacement="▁", prepend_scheme=scheme, split=by_word)
    backend.post_processor = processors.TemplateProcessing(
        single=["$A", eos], pair=["$A", eos, "$B", eos], special_tokens=[(eos, 1)]
    )
    sentinels = [f"<extra_id_{n}>" for n in range(SENTINELS)]
    backend.add_special_tokens([AddedToken(text, special=True) for text in (pad, eos, unk, *sentinels)])
    return backend


def _normalizer(spec: Any, by_word: bool) -> "normalizers.Normalizer":
    """What is done to characters alone: the texts of added tokens go through this, too, and are looked for in what
    comes out of it, so that it must not touch blanks or put any before a text."""
    from tokenizers import Regex, normalizers

    steps: list[normalizers.Normalizer] = []
    if spec.precompiled_charsmap:
        table = normalizers.Precompiled(spec.precompiled_charsmap)
        if _agrees_with_nfkc(spec.precompiled_charsmap):
            # Precompiled looks characters up one by one and so misses most decomposed letters, which sentencepiece
            # composes (か and U+3099, say). NFKC composes them first.
            steps += [normalizers.Replace(kept, stand_in) for kept, stand_in in _KEPT]
            steps.append(normalizers.NFKC())
            steps += [normalizers.Replace(stand_in, kept) for kept, stand_in in _KEPT]
        steps.append(table)
    if not by_word:
        # A pre-tokenizer would cut where it removes; no released vocabulary is of this kind.
        steps += [normalizers.Replace(Regex(r"\A +(?=▁)"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
        if spec.add_dummy_prefix:
            steps.append(normalizers.Replace(Regex(r"\A▁"), "▁▁"))
    return normalizers.Sequence(steps)


def _pre_tokenizer(spec: Any, by_word: bool) -> "pre_tokenizers.PreTokenizer":
    """What sentencepiece does to blanks, in every piece of text between added tokens."""
    from tokenizers import Regex, pre_tokenizers

    # sentencepiece removes "▁" at the end too, whether a blank became it or not.
    steps = [pre_tokenizers.Split(Regex(r"(?<![ ▁])[ ▁]+\z"), "removed")]
    if not spec.add_dummy_prefix:
        steps.append(pre_tokenizers.Split(Regex(r"\A +"), "removed"))
    elif by_word:
        # Metaspace puts no blank before what begins with one; cut off, these are the same pieces, and the rest gets it.
        steps.append(pre_tokenizers.Split(Regex(r"\A▁[ ▁]*"), "isolated"))
    if by_word:
        steps.append(pre_tokenizers.Split(Regex(" +(?= )"), "removed"))
    scheme = "always" if spec.add_dummy_prefix else "never"
    return pre_tokenizers.Sequence(
        [*steps, pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=by_word)]
    )


@lru_cache(maxsize=4)
def _agrees_with_nfkc(charsmap: bytes) -> bool:
    """Whether compiled rules do to every character what they do to its NFKC form; rules made by hand may not."""
    from tokenizers import normalizers

    table = normalizers.Precompiled(charsmap)
    return all(table.normalize_str(character) == table.normalize_str(composed) for character, composed in _composed())


@lru_cache(maxsize=1)
def _composed() -> tuple[tuple[str, str], ...]:
    """Characters that NFKC changes, and what it makes of them."""
    kept = {character for character, _ in _KEPT}
    characters = (chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000)
    pairs = ((character, unicodedata.normalize("NFKC", character)) for character in characters)
    return tuple((character, composed) for character, composed in pairs if composed != character not in kept)
