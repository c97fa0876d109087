# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""What prompts begin with, and the import of released ones."""

import json
import os
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from transformers import AutoConfig, AutoModelForSeq2SeqLM, AutoTokenizer

from t5_experimental.training.errors import TrainingError
from t5_experimental.training.models import prompts
from t5_experimental.training.models.adapters import add_prompt
from t5_experimental.training.models.prompts import initial_rows, read_prompt, save_prompt


@pytest.fixture(scope="module")
def tokenizer(tiny_models):
    return AutoTokenizer.from_pretrained(tiny_models["t5_lm_adapted"])


@pytest.fixture(scope="module")
def embedding(tiny_models):
    return AutoModelForSeq2SeqLM.from_pretrained(tiny_models["t5_lm_adapted"]).shared.weight.detach()


def rows_of(kind, embedding, tokenizer, length=100, labels=(), seed=0):
    return initial_rows(kind, labels, embedding, tokenizer, length, torch.Generator().manual_seed(seed))


def drawn_ids(rows, embedding):
    """Ids of the tokens whose embeddings the rows are; fails if one is none."""
    return [int((embedding == row).all(1).nonzero().squeeze()) for row in rows]


def test_random_rows(embedding, tokenizer):
    rows = rows_of("random", embedding, tokenizer)
    assert rows.shape == (100, 32)
    assert rows.min() < -0.49
    assert rows.max() > 0.49
    assert rows.abs().max() <= 0.5
    assert torch.equal(rows, rows_of("random", embedding, tokenizer))
    assert not torch.equal(rows, rows_of("random", embedding, tokenizer, seed=1))


def test_rows_of_the_vocabulary(embedding, tokenizer, monkeypatch):
    ids = drawn_ids(rows_of("vocab", embedding, tokenizer), embedding)
    assert len(set(ids)) == 100
    assert min(ids) > 2  # padding, end of sequence, unknown
    assert max(ids) < len(tokenizer) - 100  # sentinels
    assert ids != drawn_ids(rows_of("vocab", embedding, tokenizer, seed=1), embedding)

    monkeypatch.setattr(prompts, "COMMON_TOKENS", 60)
    ids = drawn_ids(rows_of("vocab", embedding, tokenizer, length=60), embedding)
    assert sorted(ids) == list(range(3, 63))
    # Only where there are too few of them does one come twice.
    assert set(drawn_ids(rows_of("vocab", embedding, tokenizer, length=600), embedding)) == set(range(3, 63))


def test_rows_of_labels(embedding, tokenizer):
    labels = ["The", "Thai food"]
    ids = [tokenizer(label, add_special_tokens=False).input_ids for label in labels]
    assert [len(pieces) > 1 for pieces in ids] == [False, True]
    rows = rows_of("labels", embedding, tokenizer, length=6, labels=labels)
    assert torch.equal(rows[0], embedding[ids[0][0]])
    torch.testing.assert_close(rows[1], embedding[ids[1]].sum(0) / len(ids[1]))
    assert torch.equal(rows[2:], rows_of("vocab", embedding, tokenizer, length=6)[2:])


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["The", "日"], "the tokenizer does not know all of '日'"),
        (["The", ""], "has an empty label"),
        (["The"] * 7, "has 7 labels for a prompt of 6 rows: raise --prompt_length"),
    ],
)
def test_bad_labels(labels, expected, embedding, tokenizer):
    with pytest.raises(TrainingError, match=expected):
        rows_of("labels", embedding, tokenizer, length=6, labels=labels)


def write_prompt(path, rows):
    np.save(path, rows)
    return path


@pytest.mark.parametrize("model_type", ["t5_v1_1", "t5_lm_adapted", "t5_talking_heads", "t5_first_layers_narrow"])
def test_an_imported_prompt_is_the_prompt(model_type, tiny_models, tmp_path):
    folder = tiny_models[model_type]
    config = AutoConfig.from_pretrained(folder)
    rows = (np.random.default_rng(0).standard_normal((100, 32)) * 40).astype(np.float32)
    save_prompt(read_prompt(write_prompt(tmp_path / "x.npy", rows), config), str(folder), config, tmp_path / "adapter")
    assert {path.name for path in (tmp_path / "adapter").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    model = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    adapted = peft.PeftModel.from_pretrained(model, tmp_path / "adapter").eval()
    assert adapted.get_prompt(batch_size=1)[0].detach().numpy().tobytes() == rows.tobytes()

    # The original puts the prompt before the embedded input, and ones before the mask.
    ids = torch.tensor([[5, 6, 7, 1], [8, 1, 0, 0]])
    mask = (ids != 0).long()
    labels = torch.tensor([[9, 10, 1], [11, 1, -100]])
    expected = model(
        inputs_embeds=torch.cat([torch.from_numpy(rows).expand(2, -1, -1), model.shared(ids)], dim=1),
        attention_mask=torch.cat([torch.ones(2, 100, dtype=torch.long), mask], dim=1),
        labels=labels,
    )
    found = adapted(input_ids=ids, attention_mask=mask, labels=labels)
    assert torch.equal(found.logits, expected.logits)
    assert torch.equal(found.loss, expected.loss)


def test_an_imported_prompt_is_written_as_peft_would(tiny_models, tmp_path, monkeypatch):
    folder = tiny_models["t5_lm_adapted"]
    model = AutoModelForSeq2SeqLM.from_pretrained(folder)
    moved = []
    right = os.replace
    monkeypatch.setattr("os.replace", lambda source, target: moved.append(Path(target).name) or right(source, target))
    save_prompt(torch.ones(4, 32), str(folder), model.config, tmp_path / "ours")
    assert moved[-1] == "adapter_config.json"  # without it, nothing loads the folder
    add_prompt(model, torch.ones(4, 32)).save_pretrained(tmp_path / "theirs")
    ours, theirs = (json.loads((tmp_path / name / "adapter_config.json").read_text()) for name in ("ours", "theirs"))
    assert ours == theirs
    names = {path.name for path in (tmp_path / "theirs").iterdir()}
    assert names - {"README.md"} == {path.name for path in (tmp_path / "ours").iterdir()}


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (np.zeros((100, 768), np.float32), "rows of 768 numbers, but the model's width is 32"),
        (np.zeros((4, 32)), "holds float64, not float32"),
        (np.zeros((4, 32), ">f4"), "holds >f4, not float32"),
        (np.zeros(32, np.float32), "has the shape (32,)"),
        (np.zeros((2, 4, 32), np.float32), "has the shape (2, 4, 32)"),
        (np.zeros((0, 32), np.float32), "has the shape (0, 32)"),
        (np.full((4, 32), np.nan, np.float32), "infinite or NaN"),
        (np.full((4, 32), {}, object), "is not a numpy file of numbers"),
    ],
)
def test_bad_prompts(rows, expected, tiny_models, tmp_path):
    config = AutoConfig.from_pretrained(tiny_models["t5_lm_adapted"])
    with pytest.raises(TrainingError) as error:
        read_prompt(write_prompt(tmp_path / "x.npy", rows), config)
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_of_two_prompts(tiny_models, tmp_path):
    """The second one would be left out without a word."""
    config = AutoConfig.from_pretrained(tiny_models["t5_lm_adapted"])
    path = write_prompt(tmp_path / "x.npy", np.zeros((4, 32), np.float32))
    path.write_bytes(2 * path.read_bytes())
    with pytest.raises(TrainingError, match="has 640 bytes after the prompt, which may be another one"):
        read_prompt(path, config)


def test_files_that_are_no_prompts(tiny_models, tmp_path):
    config = AutoConfig.from_pretrained(tiny_models["t5_lm_adapted"])
    path = write_prompt(tmp_path / "x.npy", np.zeros((4, 32), np.float32))
    header = path.read_bytes()[:128]
    contents = {
        "empty": b"",
        "text": b"0 1 2\n",
        "pickle": b"\x80\x04N.",
        "short": path.read_bytes()[:-1],
        "boastful": header.replace(b"(4, 32), }      ", b"(4999999999, 2)}"),
        "beyond all bounds": header.replace(b"(4, 32), }" + b" " * 25, b"(" + b"9" * 31 + b",)}"),
        "open bracket": header.replace(b"(4, 32)", b"(4, 32 "),
        "no such type": header.replace(b"'<f4'", b"',f4'"),
        "names of two kinds": header.replace(b" 'fortran_order'", b"b'fortran_order'"),
        "no dictionary": header.replace(b"{'descr'", b"8'descr'"),
    }
    for name, content in contents.items():
        assert content != header, name
        path.write_bytes(content)
        with pytest.raises(TrainingError, match="is not a numpy file of numbers"):
            read_prompt(path, config)
    with pytest.raises(TrainingError, match=r"cannot be read \(No such file or directory\): give the path"):
        read_prompt(tmp_path / "none.npy", config)


@pytest.mark.parametrize("size", [0, 200, 1000])
def test_a_file_that_becomes_shorter_while_it_is_read(size, tiny_models, tmp_path, monkeypatch):
    path = write_prompt(tmp_path / "x.npy", np.ones((100, 32), np.float32))
    opened = np.lib.format.open_memmap

    def and_cut(*arguments, **options):
        rows = opened(*arguments, **options)
        os.truncate(path, size)
        return rows

    monkeypatch.setattr(np.lib.format, "open_memmap", and_cut)
    with pytest.raises(TrainingError, match=r"x\.npy was truncated while it was read: try again when nothing writes"):
        read_prompt(path, AutoConfig.from_pretrained(tiny_models["t5_lm_adapted"]))


def test_a_prompt_in_columns(tiny_models, tmp_path):
    rows = np.random.default_rng(0).standard_normal((100, 32)).astype(np.float32)
    path = write_prompt(tmp_path / "x.npy", np.asfortranarray(rows))
    assert np.array_equal(read_prompt(path, AutoConfig.from_pretrained(tiny_models["t5_lm_adapted"])).numpy(), rows)
