# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Fuzzing vocabularies: fields and bytes of sentencepiece's model files. Each is refused in a sentence, or a tokenizer
can be built from it, saved and used."""

import random
import struct
import unicodedata
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from t5_experimental import vocabulary
from t5_experimental.convert.errors import ConversionError
from t5_experimental.convert.output import tokenizer
from t5_experimental.convert.output.tokenizer import build_tokenizer, check_vocabulary


Attempt = Callable[[random.Random], None]

INPUTS = 1000
ROWS = 400
# Around limits of the formats, and what no field expects.
NUMBERS = [0, 1, 2, 3, 4, 5, 6, 7, 127, 128, 255, 256, 1023, 1024, 2**16, 2**31 - 1]
SCORES = [0.0, -0.0, 1.0, 1e38, -3.4e38, 1e-45, float("nan"), float("inf"), float("-inf")]
TEXTS = ["", " ", "▁", "▁▁", "a", "▁the", "<pad>", "</s>", "<unk>", "<s>", "$A", "$B:1", "a:7", "\0", "\x1b[31m", "\n"]
TEXTS += ["<extra_id_0>", "▁<extra_id_0>", "<extra_id_00>", "<extra_id_100>", "<extra_id_99999999999>", "<0x41>", "é"]
TEXTS += ["\ud7ff", "\U0010ffff", "x" * 5000]
INPUT = "The \uff46\uff55\uff4c\uff4c ﬁ ½ ① é e\u0301 がﾊﾞ <extra_id_0> ▁ x\x00 \x85  \ufdd0\ud7ff\U0010ffff</s>"


@pytest.fixture(scope="module")
def models(reference: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """One with the rules of T5's vocabularies, which are long, and one with few, which are mutated faster."""
    data = reference.parent / "data"
    whole = sentencepiece_model_pb2.ModelProto.FromString((data / "restaurants.model").read_bytes())
    rules = tmp_path_factory.mktemp("rules") / "rules.tsv"
    lines = [(c, unicodedata.normalize("NFKC", c)) for c in "\uff46\uff55\uff4cﬁ½①"] + [("e\u0301", "é"), ("\n", " ")]
    rules.write_text("".join("\t".join(" ".join(f"{ord(c):X}" for c in s) for s in line) + "\n" for line in lines))
    compiled = tmp_path_factory.mktemp("model") / "small"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the full fi house é 1 2 12"] * 50),
        model_prefix=str(compiled),
        vocab_size=30,
        hard_vocab_limit=False,
        normalization_rule_tsv=str(rules),
        minloglevel=3,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
    )
    small = sentencepiece_model_pb2.ModelProto.FromString(compiled.with_suffix(".model").read_bytes())
    with_sentinels = sentencepiece_model_pb2.ModelProto.FromString(small.SerializeToString())
    for n in reversed(range(100)):
        with_sentinels.pieces.add(piece=f"<extra_id_{n}>", score=0.0, type=4)
    return [whole, *[small] * 9, *[with_sentinels] * 3]


@pytest.fixture
def attempt(models: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Attempt:
    """Without the net under it: what passes the checks must not make the library fail."""
    monkeypatch.setattr(tokenizer, "_refusals", nullcontext)
    path = tmp_path / "sentencepiece.model"

    def try_one(generator: random.Random) -> None:
        model = type(models[0])()
        model.CopyFrom(generator.choice(models))
        for _ in range(generator.choice([0, 1, 1, 1, 2, 3])):
            generator.choice(MUTATIONS)(model, generator)
        data = model.SerializeToString()
        if generator.random() < 0.3:
            data = spoiled(data, generator)
        path.write_bytes(data)
        built = build_tokenizer(check_vocabulary(path, ROWS))
        ids = built(INPUT).input_ids
        assert ids[-1] == 1
        assert all(0 <= k < ROWS for k in ids)
        assert built.convert_tokens_to_ids(["<extra_id_0>", built.pad_token]) == [len(built) - 1, 0]
        built.decode(ids)
        built.backend_tokenizer.to_str()

    return try_one


def change_piece(model: Any, generator: random.Random) -> None:
    if not model.pieces:
        return
    count = len(model.pieces)
    piece = model.pieces[generator.choice([0, 1, 2, count - 1, generator.randrange(count)]) % count]
    field = generator.randrange(3)
    if field == 0:
        piece.piece = generator.choice([*TEXTS, generator.choice(model.pieces).piece])
    elif field == 1:
        piece.score = generator.choice([*SCORES, generator.uniform(-20, 0)])
    else:
        piece.type = generator.randint(1, 6)


def change_count(model: Any, generator: random.Random) -> None:
    what, count = generator.randrange(4), len(model.pieces)
    if what == 0:
        del model.pieces[generator.randint(0, count) :]
    elif what == 1 and count:
        del model.pieces[generator.randrange(count)]
    elif what == 2 and count:
        model.pieces.insert(generator.randint(0, count), generator.choice(model.pieces))
    else:
        for k in range(generator.choice([1, 100, 270, 400])):
            model.pieces.add(piece=f"more{k}", score=-1.0, type=generator.choice([1, 1, 1, 4]))


def change_spec(model: Any, generator: random.Random) -> None:
    """Any field of the specifications, by what the protocol says that it is."""
    spec = generator.choice([model.trainer_spec, model.normalizer_spec, model.denormalizer_spec])
    field = generator.choice(spec.DESCRIPTOR.fields)
    if field.enum_type is not None:
        value: Any = generator.choice([value.number for value in field.enum_type.values])
    else:
        value = {
            field.CPPTYPE_BOOL: bool(generator.getrandbits(1)),
            field.CPPTYPE_FLOAT: generator.choice(SCORES),
            field.CPPTYPE_STRING: generator.choice(TEXTS),
        }.get(field.cpp_type, generator.choice(NUMBERS))
    if field.type == field.TYPE_BYTES:
        value = generator.randbytes(generator.choice([0, 3, 4, 2000]))
    spec.ClearField(field.name)
    if isinstance(getattr(spec, field.name), (str, bytes, int, float)):
        setattr(spec, field.name, value)
    else:
        getattr(spec, field.name).append(value)


def change_rules(model: Any, generator: random.Random) -> None:
    data = bytearray(model.normalizer_spec.precompiled_charsmap)
    if len(data) < 2000:
        return
    end = min(4 + struct.unpack_from("<I", data)[0], len(data))
    what = generator.randrange(6)
    if what == 0:
        struct.pack_into("<I", data, 0, generator.choice([*NUMBERS, 2**32 - 4, 2**32 - 1, end, max(end - 1028, 0)]))
    elif what == 1:  # a unit of the trie
        at = 4 + generator.randrange(max((end - 4) // 4, 1)) * 4
        struct.pack_into(
            "<I", data, min(at, len(data) - 4), generator.choice([0, 2**32 - 1, generator.getrandbits(32)])
        )
    elif what == 2:  # a bit of one
        data[generator.randrange(4, max(end, 5))] ^= 1 << generator.randrange(8)
    elif what == 3:  # the texts
        data[end:] = generator.choice([b"", b"\0", b"a", b"\xff\0", "é\0".encode() * 400, bytes(data[end:-1])])
    elif what == 4 and end < len(data):
        data[generator.randrange(end, len(data))] = generator.getrandbits(8)
    else:
        del data[generator.randrange(len(data)) :]
    model.normalizer_spec.precompiled_charsmap = bytes(data)


MUTATIONS = [change_piece, change_piece, change_count, change_spec, change_rules, change_rules, change_rules]


def spoiled(data: bytes, generator: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(generator.choice([1, 1, 2, 8])):
        if not changed:
            break
        at = generator.randrange(len(changed))
        what = generator.randrange(4)
        if what == 0:
            changed[at] = generator.choice([0, 1, 0x0A, 0x7F, 0x80, 0xFF, generator.getrandbits(8)])
        elif what == 1:
            del changed[at:]
        elif what == 2:
            changed[at:at] = generator.choice([b"\x0a\x00", b"\x0a\xff\xff\xff\xff\x0f", b"\xff" * 12, changed[:30]])
        else:
            del changed[at : at + generator.randint(1, 20)]
    return bytes(changed)


def test_vocabularies(attempt: Attempt, fuzz: Callable[..., None]) -> None:
    fuzz(attempt, inputs=INPUTS, refusals=(ConversionError,))


@pytest.mark.parametrize("check", ["_check_pieces", "_check_features", "_check_loads", "_check_rules"])
def test_a_check_that_is_removed_is_missed(
    check: str, attempt: Attempt, fuzz: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """These inputs tell the checks from none."""
    monkeypatch.setattr(vocabulary, check, lambda *_: None)
    with pytest.raises(BaseException) as caught:  # panics in Rust are no exceptions
        fuzz(attempt, inputs=INPUTS, refusals=(ConversionError,))
    assert caught.value.__notes__[0].startswith("found by seed")
