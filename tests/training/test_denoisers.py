# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""iid denoising, deshuffling and UL2's denoisers: equal to the original's given the same random decisions."""

from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5_experimental.training.data import denoisers
from t5_experimental.training.data.denoisers import UL2_MODES, Deshuffling, IidDenoising, Mixture, iid_targets_length
from t5_experimental.training.data.objectives import PrefixLM, SpanCorruption, replace_spans
from t5_experimental.training.data.pretraining_arguments import PretrainingDataArguments
from t5_experimental.training.errors import TrainingError


EOS = 1
FIRST_SENTINEL = 32099
IID = IidDenoising(512, 192, EOS, 128, FIRST_SENTINEL, 100)
SHORT = replace(IID, inputs_length=17, targets_length=17)
DESHUFFLING = Deshuffling(64, 64, EOS, 1)
MODES = {mode: (5, 6, number) for number, mode in enumerate(UL2_MODES, 7)}
UL2 = denoisers.ul2(MODES, 256 + 3, EOS, 128, FIRST_SENTINEL, 100)


@pytest.fixture(scope="module")
def recorded(reference):
    """The examples that t5 made under a name: chunk, inputs, targets."""
    with np.load(reference / "objectives.npz") as file:
        arrays = dict(file)

    def rows(name):
        return np.split(arrays[name], np.cumsum(arrays[f"{name}_lengths"])[:-1])

    def examples(name, objective):
        documents, together = rows(f"{name}_documents"), objective.documents_together
        groups = [documents[start : start + together] for start in range(0, len(documents), together)]
        chunks = [chunk for group in groups for chunk in objective.chunks(group, np.random.default_rng(0))]
        return list(zip(chunks, rows(f"{name}_inputs"), rows(f"{name}_targets"), strict=True))

    return examples


def mask_of(inputs, targets):
    """Which tokens of the text are noise, read off an example: its spans are what sentinels separate in the targets."""
    runs = np.split(targets[:-1], np.flatnonzero(targets[:-1] > 32000))
    spans = [len(run) - int(run[0] > 32000) for run in runs if len(run)]
    spans = iter([span for span in spans if span])
    return np.concatenate([np.full(next(spans) if token > 32000 else 1, token > 32000) for token in inputs[:-1]])


def differ(examples, corrupt) -> int:
    return sum(
        not all(map(np.array_equal, corrupt(chunk, mask_of(inputs, targets)), (inputs, targets)))
        for chunk, inputs, targets in examples
    )


@pytest.mark.parametrize(("name", "objective"), [("iid", IID), ("short", SHORT)])
def test_iid_denoising_is_the_originals(name, objective, recorded):
    examples = recorded(name, objective)
    assert len(examples) > 10
    assert differ(examples, objective.corrupt) == 0
    assert all(objective.fits(mask_of(inputs, targets)) for _, inputs, targets in examples)
    if name == "short":  # noise comes first in some, where the targets have no sentinel before it
        assert any(inputs[0] == FIRST_SENTINEL != targets[0] for _, inputs, targets in examples)


def test_deshuffling_is_the_originals(recorded):
    examples = recorded("deshuffled", DESHUFFLING)
    assert len(examples) > 10
    for chunk, inputs, targets in examples:
        order = [int(np.flatnonzero(chunk == token)[0]) for token in inputs[:-1]]
        for ours, expected in zip(DESHUFFLING.shuffle(chunk, np.array(order)), (inputs, targets), strict=True):
            np.testing.assert_array_equal(ours, expected)
    assert any(not np.array_equal(inputs, targets) for _, inputs, targets in examples)


@pytest.mark.parametrize("number", range(6))
def test_ul2s_span_denoisers_are_the_originals(number, recorded):
    objective = UL2.denoisers[number].objective
    assert isinstance(objective, SpanCorruption)
    assert objective.inputs_length == 256
    examples = recorded(f"ul2_{number}", objective)
    assert differ(examples, objective.corrupt) == 0
    assert max(len(inputs) for _, inputs, _ in examples) == 256


def test_ul2s_prefix_denoiser_is_the_originals(recorded):
    objective = UL2.denoisers[6].objective
    assert isinstance(objective, PrefixLM)
    for chunk, inputs, targets in recorded("ul2_6", replace(objective, documents_together=1)):
        for ours, expected in zip(objective.split(chunk, len(inputs) - 1), (inputs, targets), strict=True):
            np.testing.assert_array_equal(ours, expected)
    draws = [len(objective.make(np.arange(255), np.random.default_rng(seed))[1]) - 1 for seed in range(400)]
    assert np.mean(draws) == pytest.approx(255 / 4, rel=0.1)
    assert (min(draws), max(draws)) <= (5, 128)


def text_first(tokens, mask, first_sentinel):
    """Sentinels counted as if the text came first."""
    return replace_spans(np.append(3, tokens), np.append(~mask[:1], mask), first_sentinel)[1:]


def test_differences_are_noticed(recorded, monkeypatch):
    examples = recorded("short", SHORT)
    monkeypatch.setattr(denoisers, "replace_spans", text_first)
    assert differ(examples, IID.corrupt) > 0
    other = UL2.denoisers[0].objective
    with pytest.raises(ValueError, match="zip"):
        recorded("ul2_2", other)


def test_paper_table():
    settings = [
        (denoiser.mode[2], denoiser.objective.mean_span_length, denoiser.objective.noise_density)
        for denoiser in UL2.denoisers[:6]
    ]
    assert settings == [(7, 3, 0.15), (7, 8, 0.15), (9, 3, 0.5), (9, 8, 0.5), (9, 64, 0.15), (9, 64, 0.5)]
    assert (UL2.denoisers[6].mode[2], UL2.denoisers[6].objective.noise_density) == (8, 0.25)
    assert iid_targets_length(512, 0.15) == 192


def test_denoisers_are_equally_likely_and_drawn_by_the_chunks_draws():
    documents = [np.arange(3, 20_000)] * 40
    chunks = UL2.chunks(documents, np.random.default_rng(0))
    counts = np.bincount([chunk[0] for chunk in chunks], minlength=7)
    assert counts.min() > len(chunks) / 7 * 0.8
    again = UL2.chunks(documents, np.random.default_rng(0))
    assert [chunk.tolist() for chunk in again] == [chunk.tolist() for chunk in chunks]
    other = UL2.chunks(documents, np.random.default_rng(1))
    assert [chunk[0] for chunk in other] != [chunk[0] for chunk in chunks[: len(other)]]


def test_more_spans_than_sentinels_shorten_a_denoiser():
    full = denoisers.ul2(MODES, 512, EOS, 128, FIRST_SENTINEL, 1000)
    short = denoisers.ul2(MODES, 512, EOS, 128, FIRST_SENTINEL, 100)
    lengths = [[part.objective.inputs_length for part in mixture.denoisers] for mixture in (full, short)]
    assert lengths == [[509] * 7, [509, 509, 403, 509, 509, 509, 509]]
    assert denoisers.ul2(MODES, 180, EOS, 128, FIRST_SENTINEL, 100) is None


class SpellsAlike:
    """A tokenizer whose vocabulary has no brackets or capitals."""

    eos_token_id = EOS

    def __call__(self, text, add_special_tokens):
        return {"input_ids": [2]}


def test_modes_that_a_vocabulary_cannot_spell_are_refused():
    data = PretrainingDataArguments(train_file=["a.txt"], objective="ul2")
    with pytest.raises(TrainingError, match=r"spells \[NLU\], \[S2S\], \[NLG\] alike, which tell"):
        data.make_objective(SpellsAlike())


def test_draws_that_do_not_fit_are_repeated():
    tight = IidDenoising(512, 120, EOS, 128, FIRST_SENTINEL, 60)
    rng = np.random.default_rng(0)
    for _ in range(50):
        inputs, targets = tight.make(np.arange(3, 514), rng)
        assert len(targets) <= 120
        assert max((inputs > 32000).sum(), (targets > 32000).sum()) <= 60


# --- Nothing of the text is lost ----------------------------------------------------------------------------------

documents_of_tokens = st.lists(st.integers(1, 400), min_size=1, max_size=12)
seeds = st.integers(0, 2**32 - 1)


def numbered(lengths):
    """Documents of these lengths, with every token another one."""
    ends = np.cumsum(lengths)
    return np.split(np.arange(ends[-1]) + 3, ends[:-1])


def read_back(inputs, targets):
    """The text of an example with noise: `inputs` with the spans of `targets`."""
    mask = mask_of(inputs, targets)
    text, noise = inputs[:-1][inputs[:-1] <= 32000], targets[:-1][targets[:-1] <= 32000]
    tokens = np.zeros(len(mask), dtype=int)
    tokens[mask], tokens[~mask] = noise, text
    return tokens.tolist()


@given(documents_of_tokens, seeds)
@settings(deadline=None)
def test_iid_denoising_and_deshuffling_lose_nothing(lengths, seed):
    documents, rng = numbered(lengths), np.random.default_rng(seed)
    text = np.concatenate(documents).tolist()
    pairs = [IID.make(chunk, rng) for chunk in IID.chunks(documents, rng)]
    assert list(chain.from_iterable(read_back(*pair) for pair in pairs)) == text
    shuffled = [DESHUFFLING.make(chunk, rng) for chunk in DESHUFFLING.chunks(documents, rng)]
    for objective, sides in (
        (IID, pairs),
        (DESHUFFLING, shuffled),
    ):
        assert all(i[-1] == t[-1] == EOS for i, t in sides)
        assert all(len(i) <= objective.inputs_length and len(t) <= objective.targets_length for i, t in sides)
    assert np.concatenate([targets[:-1] for _, targets in shuffled]).tolist() == text
    assert all(sorted(inputs[:-1]) == sorted(targets[:-1]) for inputs, targets in shuffled)


@given(documents_of_tokens, seeds)
@settings(deadline=None)
def test_ul2_loses_nothing(lengths, seed):
    documents, rng = numbered(lengths), np.random.default_rng(seed)
    text, mixture = [], UL2
    assert isinstance(mixture, Mixture)
    for chunk in mixture.chunks(documents, rng):
        inputs, targets = mixture.make(chunk, rng)
        denoiser = mixture.denoisers[chunk[0]]
        assert inputs[:3].tolist() == list(denoiser.mode)
        assert len(inputs) <= mixture.inputs_length == 259
        assert len(targets) <= mixture.targets_length
        if isinstance(denoiser.objective, PrefixLM):
            text += [*inputs[3:-1].tolist(), *targets[:-1].tolist()]
        else:
            text += read_back(inputs[3:], targets)
    assert text == np.concatenate(documents).tolist()
