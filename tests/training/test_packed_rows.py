# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Packing in fine-tuning: every example in its turn, the loss of the same examples in rows of their own, and the same
rows for all processes and after a resumption."""

import json
import re
from itertools import chain, islice
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, DataCollatorForSeq2Seq

from t5_experimental.training.data.arguments import DataArguments
from t5_experimental.training.data.examples import load_splits, make_split
from t5_experimental.training.data.mixing import MixtureSampler, Source
from t5_experimental.training.data.packed_rows import PackedCollator, PackedSampler
from t5_experimental.training.data.splits import make_mixture


LENGTHS = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 4)), min_size=1, max_size=12)


@given(LENGTHS, st.integers(1, 15), st.integers(0, 3))
@settings(deadline=None)
def test_every_example_in_its_turn(lengths, draws, seed):
    limits = (6, 4)
    inputs, targets = map(list, zip(*lengths, strict=True))
    order = MixtureSampler([Source("a", len(lengths), draws)], seed)
    sampler = PackedSampler(order, (inputs, targets), limits)
    rows = []
    for epoch in range(4):
        sampler.set_epoch(epoch)
        found = list(sampler)
        assert len(found) == len(sampler)  # of every epoch, so that all have as many steps
        rows += found
    for row, following in zip(rows, [*rows[1:], None], strict=True):
        used = [sum(of_side[place] for place in row) for of_side in (inputs, targets)]
        assert used[0] <= limits[0]
        assert used[1] <= limits[1]
        if following:  # its first example did not fit
            assert used[0] + inputs[following[0]] > limits[0] or used[1] + targets[following[0]] > limits[1]
    packed = list(chain.from_iterable(rows))
    turns = chain.from_iterable(map(order.rows_of, range(len(packed) // draws + 1)))
    assert packed == list(islice(turns, len(packed)))
    again = PackedSampler(order, (inputs, targets), limits)
    again.set_epoch(3)
    assert list(again) == rows[-len(again) :]


@pytest.fixture
def examples(tmp_path) -> Path:
    """Twelve examples of different lengths."""
    path = tmp_path / "data.jsonl"
    rows = [{"source": "food " * (n * 5 % 9 + 1) + str(n), "target": "cheap " * (n * 7 % 4 + 1)} for n in range(12)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_loss_is_that_of_rows_of_their_own(examples, tiny_models, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    options = DataArguments(train_file=str(examples), max_source_length=40, max_target_length=24)
    for folder in tiny_models.values():
        tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
        split = make_split(load_splits(options)["train"], options, tokenizer)
        collate = PackedCollator(DataCollatorForSeq2Seq(tokenizer, model=model))
        packed = split.packed((40, 24), seed=0)
        rows = list(packed.sampler)
        assert 1 < len(rows) < 12
        alone = [split.pairs[place] for place in chain.from_iterable(rows)]
        batches = [collate([packed.rows[row] for row in rows]), collate(alone)]
        assert batches[0]["input_ids"].shape == (len(rows), 40)
        with torch.no_grad():
            losses = [model(**batch).loss.item() for batch in batches]
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)


_SHOW_ROWS = """
from t5_experimental.training.trainer.finetuning import FinetuningTrainer
step = FinetuningTrainer.training_step
def show(self, model, inputs, *args, **kwargs):
    rows = self.processing_class.batch_decode(inputs["input_ids"], skip_special_tokens=True)
    print(f"ROWS {self.state.global_step} {'|'.join(rows)}", flush=True)
    return step(self, model, inputs, *args, **kwargs)
FinetuningTrainer.training_step = show
"""


def rows_of(printed: str) -> list[tuple[str, ...]]:
    """What was trained on in each step, by all processes."""
    found: dict[int, list[str]] = {}
    for line in printed.splitlines():
        if line.startswith("ROWS "):
            _, step, rows = line.split(" ", 2)
            found.setdefault(int(step), []).extend(rows.split("|"))
    return [tuple(sorted(found[step])) for step in sorted(found)]


def test_the_same_rows_on_several_processes_and_after_a_resumption(examples, forked, tiny_models, tmp_path):
    mixture = tmp_path / "mixture.yaml"
    mixture.write_text(f"entries: [{{name: a, train_file: {examples}}}, {{name: b, train_file: {examples}}}]")
    options = {
        "model_name_or_path": tiny_models["t5_v1_1"],
        "train_file": None,
        "mixture": mixture,
        "pack": True,
        "max_source_length": 40,
        "max_target_length": 22,
        "report_to": "none",
        "max_steps": 6,
        "save_steps": 5,
    }
    runs = {}
    for processes, more in ((1, {}), (2, {}), (2, {"resume_from_checkpoint": tmp_path / "2" / "checkpoint-5"})):
        name = "resumed" if more else str(processes)
        sizes = {"per_device_train_batch_size": 4 // processes, "output_dir": tmp_path / name}
        outcome = forked(processes=processes, hook=_SHOW_ROWS, **options, **sizes, **more)
        assert outcome.returncode == 0, outcome.stderr
        runs[name] = rows_of(outcome.stdout)
    assert "mixture     a 50.0 % (12 of 12 examples), b 50.0 %" in outcome.stdout
    rows, each = re.search(
        r"^rows        (\d+) in an epoch, with (.*) packed examples each$", outcome.stdout, re.M
    ).groups()
    assert (int(rows), each) == (16, "1.5")  # four steps
    assert "step        4 rows on 2 process(es), about " in outcome.stdout
    assert len(runs["1"]) == 6  # into the second epoch
    assert runs["1"] == runs["2"]
    assert runs["resumed"] == runs["1"][5:]
    again = {"resume_from_checkpoint": tmp_path / "1" / "checkpoint-5", "output_dir": tmp_path / "other"}
    outcome = forked(**{**options, "pack": False}, per_device_train_batch_size=4, **again)
    assert "was written with another --pack ([40, 22] then, None now)" in outcome.stderr


def test_packing_alone_is_no_mixture(examples, tiny_models, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    options = DataArguments(train_file=str(examples))
    tokenizer = AutoTokenizer.from_pretrained(tiny_models["t5_v1_1"])
    packed = make_split(load_splits(options)["train"], options, tokenizer).packed((40, 24), seed=0)
    assert packed.mixture is None
    assert packed.sampler.record() == {"--pack": [40, 24]}


def test_a_mixture_is_packed_in_its_order(examples, tiny_models, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    mixture = tmp_path / "mixture.yaml"
    mixture.write_text(f"limit: 5\nentries: [{{name: a, train_file: {examples}}}, {{name: b, train_file: {examples}}}]")
    tokenizer = AutoTokenizer.from_pretrained(tiny_models["t5_v1_1"])
    split = make_mixture(DataArguments(mixture=str(mixture)), tokenizer, seed=1)["train"]
    packed = split.packed((512, 128), seed=1)
    assert list(chain.from_iterable(packed.sampler))[:10] == list(split.sampler)
    assert packed.mixture is split.sampler
    assert packed.epoch == 1
