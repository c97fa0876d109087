# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Figures of generated texts, against values worked out by hand and other implementations."""

import pytest

from t5_experimental.training.data.metrics import bleu, compute_metrics, exact_match, f1, rouge


PREDICTIONS = ["the cat sat on the mat today", "a dog"]
REFERENCES = [["a cat sat on the mat today", "the cat is here"], ["the big dog", "the dog", "puppy"]]


def test_exact_match_takes_any_reference():
    assert exact_match([" a ", "b", "c"], [["x", "a"], ["b."], ["C"]]) == {"exact_match": pytest.approx(100 / 3)}


def test_f1_is_squads():
    # Without articles: "dog" against "big dog" is 2/3, against "dog" 1; the first has 5 of 5 words in its reference.
    assert f1(PREDICTIONS, REFERENCES) == {"f1": 100}
    assert f1(["The Dog!"], [["big dog"]]) == {"f1": pytest.approx(200 / 3)}
    assert f1(["cat"], [["dog"]]) == {"f1": 0}
    assert f1(["dog dog cat"], [["dog bird"]]) == {"f1": pytest.approx(40)}  # a word counts as often as in both


def test_bleu_with_references_of_unequal_number():
    assert bleu(["a b c d e"], [["x", "a b c d e"]])["bleu"] == pytest.approx(100)
    from nltk.translate.bleu_score import corpus_bleu

    # The second has one reference, which is far longer: what it lacks must not count as one of length 0.
    predictions = [PREDICTIONS[0], "one two three four", "one two three four five six"]
    references = [
        REFERENCES[0],
        ["one two three four five six seven eight nine"],
        ["one two three four nine six", "two three", "two three four five"],
    ]
    expected = corpus_bleu([[text.split() for text in texts] for texts in references], [p.split() for p in predictions])
    assert bleu(predictions, references)["bleu"] == pytest.approx(100 * expected)


def test_rouge_takes_the_best_reference():
    figures = rouge(PREDICTIONS, REFERENCES)
    # "the cat sat on the mat today" has 6 of 7 words and 5 of 6 pairs of "a cat ..."; "a dog" one of two of "the dog".
    assert figures["rouge1"] == pytest.approx(100 * (6 / 7 + 1 / 2) / 2)
    assert figures["rouge2"] == pytest.approx(100 * (5 / 6 + 0) / 2)
    assert figures["rougeLsum"] == pytest.approx(figures["rouge1"])


def test_several_metrics_at_once():
    figures = compute_metrics(["exact_match", "f1"], ["a b"], [["a b"]])
    assert figures == {"exact_match": 100, "f1": 100}
