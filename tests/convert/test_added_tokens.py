# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Tokens that users add are found and read back as by transformers' `T5Tokenizer`, whose users these folders have."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken
from transformers import AutoTokenizer, T5Tokenizer

from t5_experimental import T5V11Config
from t5_experimental.convert.output.format import NATIVE, STOCK, OutputFormat, write_tokenizer_files
from t5_experimental.convert.output.tokenizer import check_vocabulary


Folders = dict[str, Path]

TOKENS: dict[str, list[Any]] = {
    "plain": ["<tk>"],
    "word": ["food"],
    "blanks": ["the  restaurant", "in town "],
    "blank first": [" xyz"],
    "special": [AddedToken("<tk>", special=True, normalized=False)],
    "special, normalized": [AddedToken("<tk>", special=True)],
    "lstrip": [AddedToken("<tk>", lstrip=True)],
    "rstrip": [AddedToken("<tk>", rstrip=True)],
    "both strips": [AddedToken("<tk>", lstrip=True, rstrip=True, normalized=False)],
    "single word": [AddedToken("xyz", single_word=True)],
    "not normalized": [AddedToken("ﬁ<tk>", normalized=False)],
    "normalized": [AddedToken("ﬁ<tk>", normalized=True)],
    "block": ["▁<tk>"],
    "block behind": ["<tk>▁"],
    "several": ["<tk>", "<tk><tk>", AddedToken("<s>", special=True), "xyz"],
}
PARTS = ["hello", "the", "restaurant", " ", "  ", " ", ".", "ﬁ", "é", "<tk>", "xyz", "food", "in town", "<s>"]
PARTS += ["<extra_id_0>", "</s>"]


@pytest.fixture(scope="module")
def folders(reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """What the converter writes, what is saved of it, and the judge: sentencepiece's file alone."""
    path = reference.parent / "data" / "restaurants.model"
    made = {kind: tmp_path_factory.mktemp(kind) for kind in (NATIVE, STOCK, "saved", "judge")}
    vocabulary = check_vocabulary(path, 1152)
    for kind in (NATIVE, STOCK):
        write_tokenizer_files(OutputFormat(kind), vocabulary, made[kind])
    T5V11Config(vocab_size=1152).save_pretrained(made[NATIVE])
    AutoTokenizer.from_pretrained(made[NATIVE]).save_pretrained(made["saved"])
    shutil.copyfile(path, made["judge"] / "spiece.model")
    config = {"tokenizer_class": "T5Tokenizer", "extra_ids": 100}
    (made["judge"] / "tokenizer_config.json").write_text(json.dumps(config))
    return made


def texts(count: int = 300) -> list[str]:
    generator = random.Random(0)
    fixed = ["hello<tk>", "hello<tk>world <tk> the<tk>", " <tk>", "<tk>", "<tk> ", "the  restaurant", "xyz xyzxyz xyz."]
    fixed += ["the▁<tk>the", "the <tk>▁the", "the restaurant in town  ", "a xyz", "the\n<tk>\tthe"]
    return fixed + ["".join(generator.choices(PARTS, k=generator.randint(1, 9))) for _ in range(count)]


def assert_same(ours: Any, judge: Any, wanted: list[str]) -> None:
    assert len(ours) == len(judge)
    for text in wanted:
        ids, expected = ours(text).input_ids, judge(text).input_ids
        assert ids == expected, (text, ours.convert_ids_to_tokens(ids), judge.convert_ids_to_tokens(expected))
        for skip in (True, False):
            assert ours.decode(ids, skip_special_tokens=skip) == judge.decode(ids, skip_special_tokens=skip), text
        assert [ours.decode([k]) for k in ids] == [judge.decode([k]) for k in ids], text


@pytest.mark.parametrize("tokens", TOKENS.values(), ids=TOKENS)
@pytest.mark.parametrize("kind", [NATIVE, STOCK, "saved"])
def test_added_tokens_are_t5tokenizers(kind: str, tokens: list[Any], folders: Folders, tmp_path: Path) -> None:
    ours, judge = AutoTokenizer.from_pretrained(folders[kind]), AutoTokenizer.from_pretrained(folders["judge"])
    assert type(judge) is T5Tokenizer
    for tokenizer in (ours, judge):
        assert tokenizer.add_tokens(tokens) == len(tokens)
    assert_same(ours, judge, texts())
    ours.save_pretrained(tmp_path)
    for options in ({}, {"use_fast": False}, {"use_fast": True}):
        assert_same(AutoTokenizer.from_pretrained(tmp_path, **options), judge, texts(30))


@pytest.mark.parametrize("kind", [NATIVE, STOCK, "saved"])
def test_added_special_tokens_are_t5tokenizers(kind: str, folders: Folders, tmp_path: Path) -> None:
    ours, judge = AutoTokenizer.from_pretrained(folders[kind]), AutoTokenizer.from_pretrained(folders["judge"])
    for tokenizer in (ours, judge):
        tokenizer.add_special_tokens({"bos_token": "<s>", "sep_token": "<tk>"})
    assert_same(ours, judge, texts())
    ours.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert (again.bos_token, again.sep_token_id) == ("<s>", judge.sep_token_id)
    assert_same(again, judge, texts(30))


def test_an_added_token_is_found_within_a_word(folders: Folders) -> None:
    """The report's own words."""
    tokenizer = AutoTokenizer.from_pretrained(folders[NATIVE])
    tokenizer.add_tokens(["<tk>"])
    ids = tokenizer("the<tk>", add_special_tokens=False).input_ids
    assert tokenizer.convert_ids_to_tokens(ids) == ["▁the", "<tk>"]
    assert tokenizer.decode(ids) == "the<tk>"


def test_tokens_added_to_a_folder_that_an_older_version_wrote_stay(folders: Folders, tmp_path: Path) -> None:
    """Ids of added tokens are in the folder, by every way to find them."""
    tokenizer = AutoTokenizer.from_pretrained(folders[NATIVE])
    tokenizer.add_tokens(["<tk>"])
    tokenizer.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).convert_tokens_to_ids("<tk>") == len(tokenizer) - 1


@pytest.mark.parametrize("kind", [NATIVE, STOCK, "saved"])
def test_special_tokens_have_t5tokenizers_settings(kind: str, folders: Folders) -> None:
    ours, judge = AutoTokenizer.from_pretrained(folders[kind]), AutoTokenizer.from_pretrained(folders["judge"])

    def described(tokenizer: Any) -> dict[int, Any]:
        return {k: token.__getstate__() for k, token in tokenizer.added_tokens_decoder.items()}

    assert described(ours) == described(judge)
    assert set(ours.all_special_tokens) == set(judge.all_special_tokens)
