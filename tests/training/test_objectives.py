# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Objectives: equal to the original's given the same random decisions, and nothing of the text is lost."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5_experimental.training.data import objectives
from t5_experimental.training.data.objectives import (
    PlainLM,
    PrefixLM,
    SpanCorruption,
    draw_starts,
    noise_counts,
    noise_spans_mask,
    prefix_length_bounds,
    replace_spans,
    span_corruption_lengths,
)


EOS = 1
FIRST_SENTINEL = 32099  # of T5's 32,100 ids; its models have 28 more rows, which no token uses
SPAN_CORRUPTION = SpanCorruption(512, 114, EOS, 128, first_sentinel=FIRST_SENTINEL)
PREFIX_LM = PrefixLM(32, 32, EOS, 1)


@pytest.fixture(scope="module")
def recorded(reference):
    """What t5 and seqio made; `recorded(name)` gives one array, or a list if its rows are of unequal length."""
    with np.load(reference / "objectives.npz") as file:
        arrays = dict(file)

    def get(name):
        if f"{name}_lengths" not in arrays:
            return arrays[name]
        return np.split(arrays[name], np.cumsum(arrays[f"{name}_lengths"])[:-1])

    return get


def masks_differ(recorded, mask_of) -> int:
    """How many of the recorded masks `mask_of` does not make from the recorded decisions."""
    rows = zip(
        recorded("mask_settings"),
        recorded("mask"),
        recorded("mask_noise_starts"),
        recorded("mask_other_starts"),
        strict=True,
    )
    return sum(
        not np.array_equal(mask_of(int(row[0]), noise != 0, other != 0), mask != 0) for row, mask, noise, other in rows
    )


def joined_and_cut(documents, together, length):
    """Documents joined in groups and cut, without the code under test."""
    chunks = []
    for start in range(0, len(documents), together):
        tokens = np.concatenate(documents[start : start + together])
        chunks += [tokens[place : place + length] for place in range(0, len(tokens), length)]
    return chunks


def all_chunks(objective, documents):
    together = objective.documents_together
    groups = [documents[start : start + together] for start in range(0, len(documents), together)]
    return [chunk for group in groups for chunk in objective.chunks(group, np.random.default_rng(0))]


def test_lengths_are_the_originals(recorded):
    assert span_corruption_lengths(512) == (568, 114)
    settings, results = recorded("lengths_settings"), recorded("lengths_results")
    for (length, density, mean), expected in zip(settings, results, strict=True):
        assert span_corruption_lengths(int(length), density, mean) == tuple(expected)


def test_counts_are_the_originals(recorded):
    for length, density, mean, noise, spans in recorded("mask_settings"):
        assert noise_counts(max(int(length), 2), density, mean) == (noise, spans)


def test_masks_are_the_originals(recorded):
    assert masks_differ(recorded, noise_spans_mask) == 0


def span_examples(recorded):
    """Every recorded example of span corruption: its chunk, its mask as read off the example, inputs and targets."""
    chunks = joined_and_cut(recorded("span_documents"), 128, 568)
    for chunk, inputs, targets in zip(chunks, recorded("span_inputs"), recorded("span_targets"), strict=True):
        # Both alternate spans and sentinels; where the inputs have a sentinel, the mask has a span of the targets'.
        spans = np.diff(np.append(np.flatnonzero(targets > 32000), len(targets) - 1)) - 1
        mask = [np.full(spans[FIRST_SENTINEL - token] if token > 32000 else 1, token > 32000) for token in inputs[:-1]]
        yield chunk, np.concatenate(mask), inputs, targets


def examples_differ(recorded, corrupt) -> int:
    return sum(
        not all(map(np.array_equal, corrupt(chunk, mask), (inputs, targets)))
        for chunk, mask, inputs, targets in span_examples(recorded)
    )


def test_span_corruption_is_the_originals(recorded):
    documents = recorded("span_documents")
    chunks = all_chunks(SPAN_CORRUPTION, documents)
    for ours, expected in zip(chunks, joined_and_cut(documents, 128, 568), strict=True):
        np.testing.assert_array_equal(ours, expected)
    assert examples_differ(recorded, SPAN_CORRUPTION.corrupt) == 0
    whole = [(len(i), len(t)) for chunk, _, i, t in span_examples(recorded) if len(chunk) == 568]
    assert len(whole) > 5
    assert set(whole) == {(512, 114)}


def starting_with_noise(length, noise, other):
    return noise_spans_mask(length, other, noise)


def one_span_fewer(length, noise, other):
    """The number of spans is off by one: the first boundary is missing in both."""
    return noise_spans_mask(length, *(starts & (np.cumsum(starts) != 1) for starts in (noise, other)))


def ascending(tokens, mask, first_sentinel):
    replaced = replace_spans(tokens, mask, first_sentinel)
    sentinels = replaced > 32000
    return np.where(sentinels, 2 * first_sentinel - replaced, replaced)


def from_the_padded_size(tokens, mask, first_sentinel):
    return replace_spans(tokens, mask, 32127)


@pytest.mark.parametrize("mutant", [starting_with_noise, one_span_fewer])
def test_wrong_masks_are_noticed(mutant, recorded):
    assert masks_differ(recorded, mutant) > 100


@pytest.mark.parametrize("mutant", [ascending, from_the_padded_size])
def test_wrong_sentinels_are_noticed(mutant, recorded, monkeypatch):
    monkeypatch.setattr(objectives, "replace_spans", mutant)
    assert examples_differ(recorded, SPAN_CORRUPTION.corrupt) > 5


@pytest.mark.parametrize("name", ["prefix", "trimmed"])
def test_prefix_lm_is_the_originals(name, recorded):
    inputs_length, targets_length = recorded(f"{name}_limits")
    objective = dataclasses.replace(PREFIX_LM, inputs_length=inputs_length, targets_length=targets_length)
    chunks = all_chunks(objective, recorded(f"{name}_documents"))
    examples = zip(chunks, recorded(f"{name}_inputs"), recorded(f"{name}_targets"), strict=True)
    for chunk, inputs, targets in examples:
        made = objective.split(chunk, len(inputs) - 1)
        np.testing.assert_array_equal(made[0], inputs)
        np.testing.assert_array_equal(made[1], targets)


def test_prefix_lengths_are_the_originals(recorded):
    for (length, density), expected in zip(recorded("prefix_bounds_settings"), recorded("prefix_bounds"), strict=True):
        assert prefix_length_bounds(int(length), density) == tuple(expected)


def test_plain_lm_is_the_originals(recorded):
    objective = PlainLM(64, 64, EOS, 128)
    chunks = all_chunks(objective, recorded("lm_documents"))
    for chunk, expected in zip(chunks, recorded("lm_targets"), strict=True):
        inputs, targets = objective.make(chunk, np.random.default_rng(0))
        assert inputs.tolist() == [EOS]
        np.testing.assert_array_equal(targets, expected)


LIVE = "t5 and seqio, which make this comparison with new random decisions, are not installed"


def test_new_decisions_are_carried_out_as_in_the_original():
    preprocessors = pytest.importorskip("t5.data.preprocessors", reason=LIVE)
    tf, seqio = pytest.importorskip("tensorflow"), pytest.importorskip("seqio")
    rng = np.random.default_rng()
    for _ in range(20):
        length, seeds = int(rng.integers(2, 1200)), rng.integers(0, 2**31, (2, 2)).astype(np.int32)
        expected = preprocessors.random_spans_noise_mask(length, 0.15, seeds).numpy()
        noise, spans = noise_counts(length, 0.15, 3.0)
        starts = [
            seqio.stateless_shuffle(tf.cast(tf.range(items - 1) < spans - 1, tf.int32), seed).numpy() != 0
            for items, seed in zip((noise, length - noise), seeds, strict=True)
        ]
        np.testing.assert_array_equal(noise_spans_mask(length, *starts), expected)


# --- Properties ---------------------------------------------------------------------------------------------------

documents_of_tokens = st.lists(
    st.integers(1, 90).map(lambda length: np.arange(length) % 900 + 3), min_size=1, max_size=12
)
seeds = st.integers(0, 2**32 - 1)


def numbered(documents):
    """The same documents, with every token another one."""
    ends = np.cumsum([len(document) for document in documents])
    return np.split(np.arange(ends[-1]) + 3, ends[:-1])


def read_back(inputs, targets, first_sentinel):
    """The text that an example of span corruption was made from."""
    spans, span = {}, []
    for token in targets[:-1]:
        if token > 10_000:
            spans[token] = span = []
        else:
            span.append(token)
    return [token for place in inputs[:-1] for token in (spans.pop(place) if place > 10_000 else [place])], spans


@pytest.mark.parametrize(("density", "mean"), [(0.15, 3.0), (0.5, 1.0), (0.8, 4.0), (0.8, 1.5), (0.9, 1.0)])
def test_every_span_of_noise_has_text_before_it(density, mean):
    """Or two spans would be one, and sentinels and targets fewer than counted; no length is too short for it."""
    rng = np.random.default_rng(0)
    for length in range(2, 100):
        noise, spans = noise_counts(length, density, mean)
        mask = noise_spans_mask(length, draw_starts(noise, spans, rng), draw_starts(length - noise, spans, rng))
        begins = mask & ~np.concatenate(([False], mask[:-1]))
        assert (len(mask), mask.sum(), begins.sum()) == (length, noise, spans)
        assert not mask[0]


def test_short_ends_with_more_spans_than_text_lose_nothing():
    """As densities of a half with spans of one token make them; the original fails there."""
    objective = SpanCorruption(64, 64, EOS, 4, 20_000, 0.5, 1.0)
    for length in range(1, 12):
        chunk = np.arange(10, 10 + length)
        tokens, _ = read_back(*objective.make(chunk, np.random.default_rng(length)), 20_000)
        assert tokens == chunk.tolist()


@given(
    documents_of_tokens,
    seeds,
    # The last one asks for as many spans as there are tokens of text, the most that can be kept apart.
    st.sampled_from([(40, 0.15, 3.0), (64, 0.5, 2.0), (16, 0.3, 1.0), (64, 0.5, 1.0)]),
)
@settings(deadline=None)
def test_span_corruption_loses_nothing(documents, seed, setting):
    inputs_length, density, mean = setting
    documents = numbered(documents)
    chunk_length, targets_length = span_corruption_lengths(inputs_length, density, mean)
    objective = SpanCorruption(inputs_length, targets_length, EOS, 4, 20_000, density, mean)
    rng = np.random.default_rng(seed)
    text = []
    for chunk in all_chunks(objective, documents):
        inputs, targets = objective.make(chunk, rng)
        assert inputs[-1] == targets[-1] == EOS
        noise, spans = noise_counts(max(len(chunk), 2), density, mean)
        # Fewer spans than asked for leave room: as many as there are tokens of text.
        if len(chunk) == chunk_length and spans < chunk_length - noise:
            assert (len(inputs), len(targets)) in {(inputs_length, targets_length), (inputs_length - 1, targets_length)}
        elif len(chunk) > 1:
            assert (len(inputs), len(targets)) == (len(chunk) - noise + spans + 1, noise + spans + 1)
        tokens, left = read_back(inputs, targets, 20_000)
        text += tokens
        for side in (inputs, targets):
            sentinels = side[side > 10_000]
            assert sentinels.tolist() == list(range(20_000, 20_000 - len(sentinels), -1))
        assert set(left) <= {20_000}
        assert not any(left.values())
    assert text == np.concatenate(documents).tolist()


@given(documents_of_tokens, seeds)
@settings(deadline=None)
def test_language_modelling_loses_nothing(documents, seed):
    documents, rng = numbered(documents), np.random.default_rng(seed)
    pairs = [PREFIX_LM.make(chunk, rng) for chunk in all_chunks(PREFIX_LM, documents)]
    assert np.concatenate([np.append(i[:-1], t[:-1]) for i, t in pairs]).tolist() == np.concatenate(documents).tolist()
    assert all(i[-1] == t[-1] == EOS and len(i) <= 32 and len(t) <= 32 for i, t in pairs)

    objective = PlainLM(32, 32, EOS, 3)
    targets = np.concatenate([objective.make(chunk, rng)[1] for chunk in all_chunks(objective, documents)])
    assert targets.tolist() == np.concatenate([np.append(document, EOS) for document in documents]).tolist()


@given(st.integers(1, 50), st.data())
@settings(deadline=None)
def test_segments_are_neither_empty_nor_too_many(items, data):
    segments = data.draw(st.integers(1, items))
    starts = draw_starts(items, segments, np.random.default_rng(data.draw(seeds)))
    assert len(starts) == items - 1
    assert starts.sum() == segments - 1


def test_every_segmentation_is_as_likely():
    rng = np.random.default_rng(0)
    drawn = [tuple(draw_starts(5, 3, rng)) for _ in range(3000)]
    counts = [drawn.count(way) for way in set(drawn)]
    assert len(counts) == 6
    assert min(counts) > 400  # 500 expected, with a standard deviation of 20
