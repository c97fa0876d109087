# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""The tokenizer files: ids equal sentencepiece's for any text, sentinels are the highest ids, descending."""

import contextlib
import io
import random
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from transformers import AutoTokenizer

import t5_experimental
from t5_experimental.convert.errors import ConversionError
from t5_experimental.convert.output.tokenizer import build_tokenizer, check_vocabulary, write_tokenizer
from t5_experimental.vocabulary import Vocabulary


WORDS = ["the", "a", "house", "of", "light", "running", "jumped", "question", "answer", "naïve", "café", "Übung"]
WORDS += ["straße", "2024", "3.14", "(brackets)", "semi;colon", "日本語", "テスト", "слово", "мир", "don't", "e-mail"]
WORDS += ["<tag>", "</s>", "▁", "½", "ﬁ", "Ω"]

# Anything that a normaliser, a pre-tokenizer or a white-space rule could treat in its own way.
ODD = [" ", "  ", "\n", "\r\n", "\t", "\u00a0", "\u3000", "\u200b", "\u2028", "\x85", "\x0b", "\x00", "\xad", "\ufeff"]
ODD += ["é", "e\u0301", "▁", "ﬁ", "½", "①", "Ω", "🙂", "👩‍👧", "日", "テ", "x", "<", "</s", "<extra_id_", "."]

Train = Callable[..., Path]


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Train:
    """`train(**options)`: a small model as T5's are trained, on words of this module."""
    generator = random.Random(0)
    lines = [" ".join(generator.choice(WORDS) + generator.choice(["", ".", ","]) for _ in range(9)) for _ in range(600)]

    def call(**options: Any) -> Path:
        model = io.BytesIO()
        settings = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, **options}
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            vocab_size=180,
            hard_vocab_limit=False,
            minloglevel=3,
            **settings,
        )
        path = tmp_path_factory.mktemp("vocabulary") / "sentencepiece.model"
        path.write_bytes(model.getvalue())
        return path

    return call


@pytest.fixture(scope="module")
def plain(train: Train) -> Path:
    return train()


def edited(path: Path, target: Path, edit: Callable[[Any], None]) -> Path:
    """A copy of a model file with its protocol buffer changed."""
    model = sentencepiece_model_pb2.ModelProto.FromString(path.read_bytes())
    edit(model)
    target.write_bytes(model.SerializeToString())
    return target


def fill(count: int, sentinels: str = "") -> Callable[[Any], None]:
    """Adds pieces up to a count, and after them the sentinels written with a prefix if one is given."""

    def edit(model: Any) -> None:
        for k in range(len(model.pieces), count):
            model.pieces.add(piece=f"unused{k}x", score=-1000.0)
        if sentinels:
            for n in reversed(range(100)):
                model.pieces.add(piece=sentinels.replace("N", str(n)), score=0.0, type=4)

    return edit


def random_texts(count: int) -> list[str]:
    generator = random.Random(1)
    return ["".join(generator.choice(ODD + WORDS) for _ in range(generator.randint(0, 12))) for _ in range(count)]


def assert_same_ids(tokenizer: Any, path: Path, texts: list[str]) -> None:
    reference = sentencepiece.SentencePieceProcessor(model_file=str(path))
    for text in texts:
        text = text.replace("</s>", "").replace("<extra_id_0>", "")
        assert tokenizer(text).input_ids == [*reference.encode(text), 1], repr(text)


def test_ids_equal_sentencepieces(plain: Path) -> None:
    tokenizer = build_tokenizer(check_vocabulary(plain, 1152))
    assert_same_ids(tokenizer, plain, random_texts(3000))
    assert_same_ids(tokenizer, plain, ["", " ", "   ", "\n\n", " the  house ", "the\nhouse", "a" * 3000, "日本 語"])


def test_every_character(plain: Path) -> None:
    """All of Unicode's first plane between two words: white space that only one side takes for such would show."""
    tokenizer = build_tokenizer(check_vocabulary(plain, 1152))
    reference = sentencepiece.SentencePieceProcessor(model_file=str(plain))
    characters = [chr(c) for c in range(0x10000) if not 0xD800 <= c < 0xE000]
    texts = [f"the{character}house" for character in characters]
    ours = tokenizer(texts, add_special_tokens=False).input_ids
    theirs = reference.encode(texts)
    assert [c for c, a, b in zip(characters, ours, theirs, strict=True) if a != b] == []


def test_decomposed_letters(plain: Path) -> None:
    """Text as some file systems write it: letters and their marks apart."""
    texts = [
        "naïve café Übung",
        "Tiếng Việt là ngôn ngữ",
        "ガギグ がぎぐげご パピプ ﾊﾞﾄﾞ",
        "각하 한국어",
        "\uff5e full-width\uff5etilde",
    ]
    texts += [unicodedata.normalize(form, text) for text in texts for form in ("NFD", "NFKD")]
    assert_same_normalization(plain, texts)
    letters = [unicodedata.normalize("NFD", chr(code)) for code in range(0xC0, 0x2FFF)]
    assert_same_normalization(plain, [letter for letter in letters if len(letter) > 1])


def assert_same_normalization(path: Path, texts: list[str]) -> None:
    """Letters that a small vocabulary lacks all have one id, so the texts are compared before they become ids."""
    reference = sentencepiece.SentencePieceNormalizer(model_file=str(path))
    ours = build_tokenizer(check_vocabulary(path, 1152)).backend_tokenizer
    for text in texts:
        words = ours.pre_tokenizer.pre_tokenize_str(ours.normalizer.normalize_str(text))
        assert "".join(word for word, _ in words) == reference.normalize(text), repr(text)


@pytest.mark.parametrize(
    "options",
    [
        {"normalization_rule_name": "identity"},
        {"add_dummy_prefix": False},
        {"split_by_whitespace": False, "max_sentencepiece_length": 30},
    ],
)
def test_other_settings_of_sentencepiece(options: dict[str, Any], train: Train) -> None:
    path = train(**options)
    assert_same_ids(build_tokenizer(check_vocabulary(path, 1152)), path, random_texts(500))


@pytest.mark.parametrize("sentinels", ["", "<extra_id_N>", "▁<extra_id_N>"])
def test_the_released_sizes(sentinels: str, plain: Path, tmp_path: Path) -> None:
    """32,000 pieces without sentinels, and 32,100 with them: the ids are the same."""
    path = edited(plain, tmp_path / "sentencepiece.model", fill(32000, sentinels))
    vocabulary = check_vocabulary(path, 32128)
    assert len(vocabulary.proto.pieces) == (32100 if sentinels else 32000)
    folder = tmp_path / "out"
    folder.mkdir()
    t5_experimental.T5V11Config().save_pretrained(folder)
    write_tokenizer(vocabulary, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) == 32100
    assert tokenizer.convert_tokens_to_ids([f"<extra_id_{n}>" for n in range(100)]) == list(range(32099, 31999, -1))
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)
    assert {"<extra_id_0>", "<extra_id_99>"} <= set(tokenizer.all_special_tokens)
    assert_same_ids(tokenizer, plain, random_texts(300))
    ids = tokenizer("the <extra_id_0> house<extra_id_1>of").input_ids
    the, house, of = (tokenizer.convert_tokens_to_ids(word) for word in ("▁the", "▁house", "▁of"))
    assert ids == [the, 32099, house, 32098, of, 1]
    assert (folder / "spiece.model").read_bytes() == path.read_bytes()


def test_both_texts_of_a_pair_end(plain: Path) -> None:
    tokenizer = build_tokenizer(check_vocabulary(plain, 1152))
    one, two = (tokenizer(text, add_special_tokens=False).input_ids for text in ("the house", "a question"))
    assert tokenizer("the house", "a question").input_ids == [*one, 1, *two, 1]
    assert tokenizer.decode(one) == "the house"


def shuffle_sentinels(model: Any) -> None:
    fill(300, "<extra_id_N>")(model)
    model.pieces[-1].piece, model.pieces[-2].piece = model.pieces[-2].piece, model.pieces[-1].piece


def rename(index: int, **fields: Any) -> Callable[[Any], None]:
    def edit(model: Any) -> None:
        for name, value in fields.items():
            setattr(model.pieces[index], name, value)

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (fill(1053), "does not fit: its 1053 pieces and 100 sentinels need 1153 rows, but the embedding has 1152"),
        (fill(1053, "<extra_id_N>"), "does not fit: its 1153 pieces need 1153 rows, but the embedding has 1152"),
        (shuffle_sentinels, "sentinels other than"),
        (rename(0, type=1), "id 0 is '<pad>' where T5 has <pad>"),
        (rename(2, piece="x", type=1), "id 2 is 'x' where T5 has <unk>"),
        (rename(9, type=4), "user-defined symbols"),
        (rename(9, type=3), "control pieces"),
        (rename(9, type=5), "unused pieces"),
        (rename(9, type=6), "byte fallback"),
    ],
)
def test_vocabularies_that_do_not_fit(edit: Callable[[Any], None], message: str, plain: Path, tmp_path: Path) -> None:
    path = edited(plain, tmp_path / "bad.model", edit)
    with pytest.raises(ConversionError, match=message):
        check_vocabulary(path, 1152)


@pytest.mark.parametrize(
    "options",
    [{"model_type": "bpe"}, {"treat_whitespace_as_suffix": True}, {"remove_extra_whitespaces": False}],
)
def test_other_algorithms(options: dict[str, Any], train: Train) -> None:
    with pytest.raises(ConversionError, match="which no T5 vocabulary has"):
        check_vocabulary(train(**options), 1152)


def test_pad_and_eos_elsewhere(train: Train) -> None:
    with pytest.raises(ConversionError, match="pad 0, eos 1, unk 2"):
        check_vocabulary(train(pad_id=-1, eos_id=2, unk_id=0, bos_id=1), 1152)


@pytest.mark.parametrize("data", [b"", b"not a model at all", b"\x0a\xff\xff\xff\xff\x0f", b"\xff" * 40])
def test_files_that_are_no_vocabulary(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "sentencepiece.model"
    path.write_bytes(data)
    with pytest.raises(ConversionError, match=r"is not a sentencepiece model|holds no vocabulary"):
        check_vocabulary(path, 1152)


def test_truncated_files_never_crash(plain: Path, tmp_path: Path) -> None:
    data = plain.read_bytes()
    path = tmp_path / "sentencepiece.model"
    generator = random.Random(0)
    for length in [*range(40), *(generator.randrange(len(data)) for _ in range(60))]:
        path.write_bytes(data[:length])
        with contextlib.suppress(ConversionError):
            assert isinstance(check_vocabulary(path, 1152), Vocabulary)


def test_the_demos_vocabulary(reference: Path) -> None:
    path = reference.parent / "data" / "restaurants.model"
    assert_same_ids(build_tokenizer(check_vocabulary(path, 1152)), path, random_texts(300))
