# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Figures of generated texts, against values worked out by hand and other implementations."""

import math
import random
import statistics
import sys
from itertools import zip_longest

import pytest
from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.metrics.base import Metric

from t5_experimental.training.data.class_metrics import accuracy, f1_binary, f1_macro, matthews, pearson, spearman
from t5_experimental.training.data.metrics import (
    METRICS,
    SCORED,
    bleu,
    check_metrics,
    check_packages,
    check_references,
    chrf,
    compute_metrics,
    exact_match,
    f1,
    figures_of,
    rouge,
    score_example,
    squad,
)
from t5_experimental.training.data.task_metrics import correlations
from t5_experimental.training.errors import TrainingError


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


def random_texts(draws: random.Random, count: int) -> list[str]:
    return [
        " ".join(draws.choices(["the", "cat", "Sat.", "on", "mats", ","], k=draws.randrange(8))) for _ in range(count)
    ]


def test_bleu_and_chrf_are_sacrebleus_of_a_corpus_to_the_digit():
    draws = random.Random(0)
    predictions = random_texts(draws, 60)
    references = [random_texts(draws, draws.randrange(1, 7)) for _ in predictions]
    columns = list(zip_longest(*references))
    assert bleu(predictions, references)["bleu"] == BLEU().corpus_score(predictions, columns).score > 1
    assert chrf(predictions, references)["chrf"] == CHRF().corpus_score(predictions, columns).score > 1
    # Too short for pairs, or nothing in common.
    assert bleu(["cat"], [["cat"]])["bleu"] == BLEU().corpus_score(["cat"], [["cat"]]).score
    assert bleu(["cat"], [["dog"]]) == {"bleu": 0}


@pytest.mark.parametrize("metric", [bleu, chrf])
def test_an_input_with_many_references_does_not_multiply_those_of_the_others(metric, monkeypatch):
    looked_at = []
    corpus_score = Metric.corpus_score

    def score(self, hypotheses, references):
        looked_at.extend(text for column in references for text in column)
        return corpus_score(self, hypotheses, references)

    monkeypatch.setattr(Metric, "corpus_score", score)
    references = [["a cat sat here"]] * 200 + [[f"one dog of {number}" for number in range(200)]]
    assert metric(["a cat sat here"] * 200 + ["one dog of 7"], references)[metric.__name__] == pytest.approx(100)
    assert len(looked_at) <= 400


def test_rouge_takes_the_best_reference():
    figures = rouge(PREDICTIONS, REFERENCES)
    # "the cat sat on the mat today" has 6 of 7 words and 5 of 6 pairs of "a cat ..."; "a dog" one of two of "the dog".
    assert figures["rouge1"] == pytest.approx(100 * (6 / 7 + 1 / 2) / 2)
    assert figures["rouge2"] == pytest.approx(100 * (5 / 6 + 0) / 2)
    assert figures["rougeLsum"] == pytest.approx(figures["rouge1"])


def test_several_metrics_at_once():
    figures = compute_metrics(["exact_match", "f1"], ["a b"], [["a b"]])
    assert figures == {"exact_match": 100, "f1": 100}


def test_squad_is_squads_own():
    # Its script: case, punctuation, articles and spaces do not count for the exact match, either.
    assert squad(["The  Dog!", "cat"], [["dog"], ["dog", "a cat sat"]]) == {
        "squad_em": 50,
        "squad_f1": pytest.approx(100 * (1 + 2 / 3) / 2),
    }
    assert squad(["the"], [["a"]]) == {"squad_em": 100, "squad_f1": 0}  # nothing is left on either side
    assert f1(PREDICTIONS, REFERENCES)["f1"] == squad(PREDICTIONS, REFERENCES)["squad_f1"]


def test_chrf_is_sacrebleus():
    assert chrf(["a b c d e"], [["x", "a b c d e"]])["chrf"] == pytest.approx(100)
    # Of "cat" against "cut": 2 of 3 letters, 0 of 2 pairs, 0 of one triple; longer ones do not exist.
    assert chrf(["cat"], [["cut"]])["chrf"] == pytest.approx(100 * (2 / 3) / 3)
    from nltk.translate.chrf_score import sentence_chrf

    expected = sentence_chrf(REFERENCES[0][0], PREDICTIONS[0], beta=2.0)
    assert chrf(PREDICTIONS[:1], [REFERENCES[0][:1]])["chrf"] == pytest.approx(
        100 * expected, rel=1e-4
    )  # it adds an epsilon


# Three classes: rows are what is right, columns what is predicted: [[2, 1, 0], [0, 1, 1], [1, 0, 4]].
CLASSES = [("a", "a", 2), ("a", "b", 1), ("b", "b", 1), ("b", "c", 1), ("c", "a", 1), ("c", "c", 4)]


def test_classes_are_scikit_learns():
    rows = [(there, predicted) for there, predicted, count in CLASSES for _ in range(count)]
    references, predictions = [[there] for there, _ in rows], [f" {predicted} " for _, predicted in rows]
    assert accuracy(predictions, references) == {"accuracy": 70}
    # F1 of a class is 2 tp / (2 tp + fp + fn).
    each = {"a": 4 / (4 + 1 + 1), "b": 2 / (2 + 1 + 1), "c": 8 / (8 + 1 + 1)}
    assert f1_macro(predictions, references)["f1_macro"] == pytest.approx(100 * sum(each.values()) / 3)
    for name, value in each.items():
        assert f1_binary(predictions, references, name)["f1_binary"] == pytest.approx(100 * value)
    # Rows sum to 3, 2, 5 and columns to 3, 2, 5: (7 * 10 - 38) / sqrt((100 - 38) * (100 - 38)).
    assert matthews(predictions, references)["matthews"] == pytest.approx(100 * 32 / 62)
    # A prediction that is no class is wrong, and no class of its own for the mean.
    assert f1_macro(["a", "??"], [["a"], ["b"]]) == {"f1_macro": 50}
    assert f1_binary(["b", "b"], [["a"], ["b"]], "a") == {"f1_binary": 0}


def test_matthews_of_two_classes_is_the_phi_coefficient():
    # tp 6, fn 1, fp 3, tn 2: (6 * 2 - 3 * 1) / sqrt(9 * 7 * 5 * 3).
    table = [("1", "1", 6), ("0", "1", 1), ("1", "0", 3), ("0", "0", 2)]
    rows = [(predicted, [there]) for predicted, there, count in table for _ in range(count)]
    predictions, references = zip(*rows, strict=True)
    assert matthews(predictions, references)["matthews"] == pytest.approx(100 * 9 / 945**0.5)
    assert matthews(["1", "1"], [["0"], ["1"]]) == {"matthews": 0}


def test_an_input_that_is_there_twice_counts_twice_in_classes():
    assert accuracy(["a", "b"], [["a", "b", "b"], ["b"]]) == {"accuracy": 50}
    assert exact_match(["a", "b"], [["a", "b", "b"], ["b"]]) == {"exact_match": 100}


def test_correlations_are_scipys():
    predictions, references = ["1.0", "2", "2", "5", "x"], [["1"], ["3"], ["2"], ["1e1"], ["0"]]
    left, right = [1, 2, 2, 5, -1], [1, 3, 2, 10, 0]
    assert pearson(predictions, references)["pearson"] == pytest.approx(100 * statistics.correlation(left, right))
    # Ranks 2, 3.5, 3.5, 5, 1 and 2, 4, 3, 5, 1: those that are equal share the mean rank.
    ranked = statistics.correlation([2, 3.5, 3.5, 5, 1], [2, 4, 3, 5, 1])
    assert spearman(predictions, references)["spearman"] == pytest.approx(100 * ranked)
    assert pearson(["1", "1"], [["1"], ["2"]]) == {"pearson": 0}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("size", ["1e-320", "1e-200", "1", "1e200", "1e307"])
def test_correlations_of_numbers_of_any_size(size):
    """Neither their sums nor their squares leave the range of floats."""
    predictions, others = [f"{digit}{size[1:]}" for digit in "1151"], [f"{digit}{size[1:]}" for digit in "1013"]
    expected = 100 * statistics.correlation([1, 1, 5, 1], [1, 0, 1, 3])
    found = pearson(predictions, [[other] for other in others])["pearson"]
    assert found == pytest.approx(expected, rel=1e-3 if size == "1e-320" else 1e-12)  # of which floats have few digits
    assert pearson(predictions, [[text] for text in predictions])["pearson"] == pytest.approx(100)
    # All equal, also where their mean is another number by its last digit.
    assert pearson(["0.1"] * 3, [["1"], ["2"], ["3"]]) == {"pearson": 0}
    examples = [{"targets": [other]} for other in others]
    assert correlations(examples, predictions)["pearson"] == pytest.approx(found)


def test_examples_have_the_scores_that_are_defined_for_one():
    names = [name for name in METRICS if name not in ("pearson", "spearman", "f1_binary")]
    scores = score_example([*names, "my:own"], "the dog", ["a dog"])
    assert scores["squad_em"] == scores["squad_f1"] == scores["f1"] == 100
    assert scores["exact_match"] == scores["accuracy"] == 0
    assert scores["rouge1"] == pytest.approx(50)
    assert set(scores) == {*figures_of(SCORED)}
    # The figures of all are means of these, but for chrF.
    for name in set(SCORED) - {"chrf", "accuracy"}:
        both = [score_example([name], *row) for row in zip(PREDICTIONS, REFERENCES, strict=True)]
        whole = compute_metrics([name], PREDICTIONS, REFERENCES)
        assert whole == {key: pytest.approx(statistics.mean(row[key] for row in both)) for key in whole}


@pytest.mark.parametrize(
    ("names", "label", "message"),
    [
        (["blue"], None, "--metric blue does not exist: choose from bleu, .* or give your own as my_module:function"),
        (["my-module:f"], None, "does not exist"),
        (["bleu", "rouge", "bleu"], None, "--metric has bleu twice"),
        (["f1_binary"], None, "give --positive_label"),
        (["f1_macro"], "yes", "--positive_label has no effect without --metric f1_binary"),
    ],
)
def test_bad_names_are_refused(names, label, message):
    with pytest.raises(TrainingError, match=message):
        check_metrics(names, label)


def test_references_must_suit_the_metric():
    with pytest.raises(TrainingError, match="spearman correlates numbers, but --test_file x has the target 'two'"):
        check_references(["spearman"], [["1"], ["two"]], "--test_file x")
    with pytest.raises(TrainingError, match=r"--positive_label yes is no target in --test_file x.*\['0', '1'\]"):
        check_references(["f1_binary"], [["1"], ["0"]], "--test_file x", "yes")
    assert check_references(["f1_binary", "rouge"], [["1"], ["0"]], "x", "1") == [
        "f1_binary",
        "rouge1",
        "rouge2",
        "rougeLsum",
    ]


OWN = """
import numpy as np
CALLS = []

def lengths(predictions, references):
    CALLS.append((predictions, references))
    return {"length": np.float32(sum(map(len, predictions))), "most": max(map(len, references))}

def broken(predictions, references):
    return predictions[99]

def text(predictions, references):
    return {"bleu": "high"}

def taken(predictions, references):
    return {"bleu": 1.0}

def loss(predictions, references):
    return {"mine": 1.0, "loss": 1.0}

def array(predictions, references):
    return {"two": np.array([1.0, 2.0])}

constant = 3
"""


@pytest.fixture
def own_module(tmp_path, monkeypatch) -> str:
    """Name of a module with functions, in the working directory."""
    name = f"own_metrics_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(OWN)
    folder = tmp_path / f"folder_of_{name}"
    folder.mkdir()
    (folder / "inner.py").write_text("from math import pi\ndef metric(p, r):\n    return {'pi': pi}\n")
    (tmp_path / f"broken_{name}.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    return name


def test_own_functions_come_from_the_working_directory(own_module):
    path = list(sys.path)
    names = [f"{own_module}:lengths", "exact_match", f"folder_of_{own_module}.inner:metric"]
    check_metrics(names)
    check_packages(names)
    assert check_references(names, REFERENCES, "x") == ["exact_match", "length", "most", "pi"]
    figures = compute_metrics(names, PREDICTIONS, REFERENCES)
    assert figures == {"length": 33, "most": 3, "exact_match": 0, "pi": math.pi}
    assert all(type(value) is float for value in figures.values())
    assert sys.modules[own_module].CALLS[-1] == (PREDICTIONS, REFERENCES)
    assert sys.path == path


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("{}:missing", r"the module \S+ has no function missing; name one that it has"),
        ("{}:constant", "has no function constant"),
        ("{}_none:f", r"does not load \(ModuleNotFoundError: No module named"),
        ("broken_{}:f", r"does not load \(ZeroDivisionError: division by zero\)"),
        ("{}:broken", r"raised IndexError \(list index out of range\) for 2 predictions: correct the function"),
        ("{}:text", r"returned \{'bleu': 'high'\}: return a dictionary of numbers by name"),
        ("{}:taken", "names a figure bleu, as another metric does: rename it"),
        ("{}:loss", "names a figure loss, as the trainer does: rename it"),
        ("{}:array", r"returned \{'two': array\(\[1., 2.\]\)\}: return a dictionary of numbers by name"),
    ],
)
def test_own_functions_that_do_not_work(name, message, own_module):
    names = ["bleu", name.format(own_module)]
    check_metrics(names)

    def check():
        check_packages(names)
        check_references(names, REFERENCES, "x")

    with pytest.raises(TrainingError, match=message):
        check()
