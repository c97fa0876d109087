# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Packing of examples into rows: seqio's rows, every example once, and losses that are those of the examples alone."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForSeq2SeqLM

from t5_experimental.training.data.packing import model_features, pack


FAMILIES = ("t5.1.1", "t5.1.1.lm100k", "t5.1.th", "t5.1.n4w10")


def split(arrays, name):
    return np.split(arrays[name], np.cumsum(arrays[f"{name}_lengths"])[:-1])


@pytest.fixture(scope="module")
def recorded(reference):
    with np.load(reference / "objectives.npz") as arrays:
        return dict(arrays)


def test_rows_are_the_originals(recorded):
    pairs = list(zip(split(recorded, "pack_inputs"), split(recorded, "pack_targets"), strict=True))
    assert max(len(target) for _, target in pairs) > 12  # some are cut off
    rows = list(pack(pairs, 32, 12))
    for name in rows[0]:
        np.testing.assert_array_equal(np.stack([row[name] for row in rows]), recorded[f"packed_{name}"], name)
    assert max(row["targets_segment_ids"].max() for row in rows) > 2


@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 6)), max_size=60),
    st.integers(9, 30),
    st.integers(6, 12),
    st.sampled_from([None, 1, 2]),
)
@settings(deadline=None)
def test_every_example_comes_once_in_its_order(lengths, inputs_length, targets_length, most_examples):
    pairs = [(np.full(n, 3 + i), np.full(m, 3 + i)) for i, (n, m) in enumerate(lengths)]
    unpacked = []
    for row in pack(pairs, inputs_length, targets_length, most_examples):
        count = row["inputs_segment_ids"].max()
        assert 1 <= count == row["targets_segment_ids"].max() <= (most_examples or 60)
        for name in ("inputs", "targets"):
            assert len(row[name]) == {"inputs": inputs_length, "targets": targets_length}[name]
            assert not row[name][row[f"{name}_segment_ids"] == 0].any()
            for number in range(1, count + 1):
                positions = row[f"{name}_positions"][row[f"{name}_segment_ids"] == number]
                assert positions.tolist() == list(range(len(positions)))
        unpacked += [
            tuple(row[name][row[f"{name}_segment_ids"] == number] for name in ("inputs", "targets"))
            for number in range(1, count + 1)
        ]
    assert [(i.tolist(), t.tolist()) for i, t in unpacked] == [(i.tolist(), t.tolist()) for i, t in pairs]


def test_empty_sides_are_refused():
    with pytest.raises(ValueError, match="end both with a token"):
        list(pack([(np.array([], dtype=int), np.array([1]))], 8, 8))


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_of_a_packed_batch_is_the_sum_over_its_examples(family, make_config):
    torch.manual_seed(0)
    model = AutoModelForSeq2SeqLM.from_config(make_config(family)).eval()
    rng = np.random.default_rng(3)
    pairs = [(rng.integers(3, 1000, n), rng.integers(3, 1000, m)) for n, m in ((9, 3), (4, 5), (6, 2), (12, 8), (3, 1))]

    def batches(packed):
        rows = list(pack(pairs, 20, 10, None if packed else 1))
        features = [model_features(row, packed) for row in rows]
        return {name: torch.tensor(np.stack([f[name] for f in features])) for name in features[0]}

    packed, alone = batches(packed=True), batches(packed=False)
    assert len(packed["labels"]) < len(alone["labels"]) == len(pairs)
    total = model(**packed, num_items_in_batch=1).loss
    parts = [model(**{n: t[i : i + 1] for n, t in alone.items()}, num_items_in_batch=1).loss for i in range(len(pairs))]
    torch.testing.assert_close(total, sum(parts))
    # And it notices when examples of a row see each other.
    mixed = {name: ids.clamp(max=1) if "segment_ids" in name else ids for name, ids in packed.items()}
    assert abs(model(**mixed, num_items_in_batch=1).loss - total) > 1e-2
