# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Metrics of the T5 paper's tasks, from 0 to 100: what a generated text means, and how it is counted.

Source: `t5/data/postprocessors.py` and `t5/evaluation/metrics.py` of t5 0.9.4, which calls scikit-learn and scipy.
There, some figures have names that mean other things elsewhere; here, each name means one thing: `f1_binary` is its
`f1` of classes, `squad_f1` its `f1` of words, `bleu_intl` its `bleu`, which tokenizes by `intl`.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from .class_metrics import scaled
from .metrics import f1, rouge, squad_words
from .task_texts import FALSE_TRUE, TaskExample


Scorer = Callable[[Sequence[TaskExample], Sequence[str]], dict[str, float]]

# Words that WSC's metric ignores.
_DETERMINERS = {
    *("a", "an", "few", "her", "his", "each", "every", "many", "much", "my", "our", "some", "that", "the", "their"),
    *("these", "this", "those", "which", "whose", "your"),
}


def accuracy(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Share of equal classes."""
    return 100 * float(np.mean(labels == predictions))


def f1_binary(labels: np.ndarray, predictions: np.ndarray) -> float:
    """F1 of class 1 of two, where a text that names no class counts as the wrong one. Source:
    `f1_score_with_invalid`."""
    return 100 * _f1(labels, np.where(predictions < 0, 1 - labels, predictions), 1)


def f1_of_three(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Mean of the F1 of three classes, and 0 for one that neither side has. Source: `mean_multiclass_f1`."""
    return 100 * float(np.mean([_f1(labels, predictions, kind) for kind in range(3)]))


def _f1(labels: np.ndarray, predictions: np.ndarray, kind: int) -> float:
    right, named = (
        np.sum((labels == kind) & (predictions == kind)),
        np.sum(labels == kind) + np.sum(predictions == kind),
    )
    return float(2 * right / named) if named else 0.0


def matthews(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Correlation of classes, where all texts that name none are one more class; 0 if a side has one class alone."""
    kinds = np.union1d(labels, predictions)
    left, right = labels[:, None] == kinds, predictions[:, None] == kinds
    covariance, *variances = (
        np.sum(np.mean(one & other, axis=0) - np.mean(one, axis=0) * np.mean(other, axis=0))
        for one, other in ((left, right), (left, left), (right, right))
    )
    spread = float(np.sqrt(np.prod(variances)))
    return 100 * float(covariance) / spread if spread > 1e-12 else 0.0


_OF_CLASSES: Mapping[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": accuracy,
    "f1_binary": f1_binary,
    "f1_macro": f1_of_three,
    "matthews": matthews,
}


def classes(names: Sequence[str], *figures: str) -> Scorer:
    """Scores classes that a text names exactly; any other text is of class -1. Source: `string_label_to_class_id`.

    Args:
        names: of the classes, by label.
        figures: names of metrics: accuracy, f1_binary, f1_macro (of three classes), matthews.
    """

    def score(examples: Sequence[TaskExample], predictions: Sequence[str]) -> dict[str, float]:
        labels = np.array([example["label"] for example in examples])
        found = np.array([names.index(text) if text in names else -1 for text in predictions])
        return {figure: _OF_CLASSES[figure](labels, found) for figure in figures}

    return score


def correlations(examples: Sequence[TaskExample], predictions: Sequence[str]) -> dict[str, float]:
    """Correlations of numbers, and of their ranks; a text that is no number counts as -1, and NaN means that a side
    has one number alone. Source: `string_to_float`, `pearson_corrcoef`, `spearman_corrcoef`."""
    targets = np.array([_number(example["targets"][0]) for example in examples])
    found = np.array([_number(text) for text in predictions])
    return {
        "pearson": 100 * _correlation(targets, found),
        "spearman": 100 * _correlation(_ranks(targets), _ranks(found)),
    }


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return -1.0


def _correlation(left: np.ndarray, right: np.ndarray) -> float:
    with np.errstate(invalid="ignore", divide="ignore"):
        left, right = (scaled(side - side.mean()) for side in map(scaled, (left, right)))
        return float(np.sum(left * right) / np.sqrt(np.sum(left**2) * np.sum(right**2)))


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1; equal values share the mean of theirs."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


def multirc(examples: Sequence[TaskExample], predictions: Sequence[str]) -> dict[str, float]:
    """F1 over all answers, and the share of questions whose answers are all judged right. Source:
    `multirc_f1_over_all_answers`, `mean_group_metric` of `all_match`."""
    questions: dict[str, list[bool]] = defaultdict(list)
    for example, text in zip(examples, predictions, strict=True):
        questions[example["group"]].append(text == example["targets"][0])
    share = 100 * float(np.mean([all(right) for right in questions.values()]))
    return {**classes(FALSE_TRUE, "f1_binary")(examples, predictions), "question_exact_match": share}


def squad(examples: Sequence[TaskExample], predictions: Sequence[str]) -> dict[str, float]:
    """Equal words, and F1 of words, of the best answer each, without case, punctuation and articles. Source: `squad`,
    also for ReCoRD, of which it counts a row once."""
    answers = [example["answers"] for example in examples]
    equal = [squad_words(text) in map(squad_words, texts) for text, texts in zip(predictions, answers, strict=True)]
    return {"squad_em": 100 * float(np.mean(equal)), "squad_f1": f1(predictions, answers)["f1"]}


def referents(examples: Sequence[TaskExample], predictions: Sequence[str]) -> dict[str, float]:
    """Share of nouns that are named if they are the right ones, and not if they are wrong. Source: `wsc_simple`."""
    labels = np.array([example["label"] for example in examples])
    named = [_names(text, example["targets"][0]) for text, example in zip(predictions, examples, strict=True)]
    return {"accuracy": accuracy(labels, np.array(named))}


def _names(text: str, referent: str) -> int:
    """1 if all words of one are in the other, 0 if not, -1 for a text without words."""
    text, referent = _without_determiners(text), _without_determiners(referent)
    if not text:
        return -1
    if ("'" in text) != ("'" in referent):  # "Bob" is not "Bob's hat"
        return 0
    words, others = set(text.split(" ")), set(referent.split(" "))
    return int(words <= others or others <= words)


def _without_determiners(text: str) -> str:
    return " ".join(word for word in text.strip().lower().split(" ") if word not in _DETERMINERS)


def summaries(examples: Sequence[TaskExample], predictions: Sequence[str]) -> dict[str, float]:
    """ROUGE-1, ROUGE-2 and ROUGE-Lsum, see [`~t5_experimental.training.data.metrics.rouge`]."""
    return rouge(predictions, [example["targets"] for example in examples])


def translations(examples: Sequence[TaskExample], predictions: Sequence[str]) -> dict[str, float]:
    """Corpus BLEU of sacrebleu with the tokenization `intl`. Source: `bleu`."""
    from sacrebleu.metrics import BLEU

    references = [example["targets"][0] for example in examples]
    return {"bleu_intl": BLEU(tokenize="intl").corpus_score(predictions, [references]).score}
