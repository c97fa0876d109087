# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Metrics of predictions that are classes or numbers, as text: what scikit-learn and SciPy compute, times 100.

Every reference is an example of its own: an input that is there twice counts twice. Whitespace around a text does not
count. A prediction that is none of the references' classes is a wrong one. Source of the definitions: `accuracy_score`,
`f1_score` and `matthews_corrcoef` of scikit-learn; `pearsonr` and `spearmanr` of SciPy, as t5.evaluation.metrics calls
them. They take a few lines, for which neither package is worth a requirement.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from ..errors import TrainingError, shown


References = Sequence[Sequence[str]]

NOT_A_NUMBER = -1.0
"""What a prediction without a number counts as; as in the original's STS-B, whose scores start at 0."""


def _pairs(predictions: Sequence[str], references: References) -> Iterator[tuple[str, str]]:
    """Every reference, after the prediction for its input."""
    for text, texts in zip(predictions, references, strict=True):
        yield from ((text.strip(), other.strip()) for other in texts)


def accuracy(predictions: Sequence[str], references: References) -> dict[str, float]:
    """Share of the references that are predicted; `exact_match` asks for any of them instead."""
    hits = [text == other for text, other in _pairs(predictions, references)]
    return {"accuracy": 100 * sum(hits) / len(hits)}


def f1_binary(predictions: Sequence[str], references: References, positive: str) -> dict[str, float]:
    """F1 of one class, `positive`; all others are negative."""
    return {"f1_binary": 100 * _class_f1(list(_pairs(predictions, references)), positive.strip())}


def f1_macro(predictions: Sequence[str], references: References) -> dict[str, float]:
    """Mean over the references' classes of their F1."""
    pairs = list(_pairs(predictions, references))
    classes = {other for _, other in pairs}
    return {"f1_macro": 100 * math.fsum(_class_f1(pairs, name) for name in classes) / len(classes)}


def _class_f1(pairs: Sequence[tuple[str, str]], name: str) -> float:
    right = sum(text == other == name for text, other in pairs)
    predicted_or_there = sum((text == name) + (other == name) for text, other in pairs)
    return 2 * right / predicted_or_there if predicted_or_there else 0.0


def matthews(predictions: Sequence[str], references: References) -> dict[str, float]:
    """Matthews' correlation of two or more classes; 0 where it is not defined, since all predictions or all references
    are one class."""
    pairs = list(_pairs(predictions, references))
    predicted, there = (Counter(column) for column in zip(*pairs, strict=True))
    count, right = len(pairs), sum(text == other for text, other in pairs)
    covariance = right * count - sum(predicted[name] * there[name] for name in there)
    spreads = [count**2 - sum(number**2 for number in counts.values()) for counts in (predicted, there)]
    return {"matthews": 100 * covariance / math.sqrt(math.prod(spreads)) if all(spreads) else 0.0}


def pearson(predictions: Sequence[str], references: References) -> dict[str, float]:
    """Pearson's correlation of numbers; see [`NOT_A_NUMBER`]. 0 where all are equal, and it is not defined."""
    return {"pearson": 100 * _correlation(*_numbers(predictions, references))}


def spearman(predictions: Sequence[str], references: References) -> dict[str, float]:
    """Spearman's correlation of numbers, that of their ranks; as [`pearson`]."""
    return {"spearman": 100 * _correlation(*map(_ranks, _numbers(predictions, references)))}


def _numbers(predictions: Sequence[str], references: References) -> tuple[np.ndarray, np.ndarray]:
    pairs = [(_number(text), _number(other)) for text, other in _pairs(predictions, references)]
    left, right = np.array([[NOT_A_NUMBER if number is None else number for number in pair] for pair in pairs]).T
    return left, right


def _number(text: str) -> float | None:
    """A finite number in a text; None if there is none."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _ranks(numbers: np.ndarray) -> np.ndarray:
    """Ranks `(n,)` of numbers `(n,)`; equal ones share their mean rank."""
    _, places, counts = np.unique(numbers, return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts - 1) / 2)[places]


def scaled(numbers: np.ndarray) -> np.ndarray:
    """Numbers times a power of two that makes the largest about 1, so that no sum of squares is too large or too small
    for a float. The power loses no digit, and a correlation does not depend on it."""
    _, exponent = np.frexp(np.abs(numbers).max())
    return np.ldexp(numbers, -exponent)


def _correlation(left: np.ndarray, right: np.ndarray) -> float:
    if any(side.min() == side.max() for side in (left, right)):  # whose mean may be another number by its last digit
        return 0.0
    left, right = (scaled(side - side.mean()) for side in map(scaled, (left, right)))
    return float(np.clip(left @ right / (np.linalg.norm(left) * np.linalg.norm(right)), -1, 1))


def check_numbers(references: References, problem: str) -> None:
    """Refuses references that are not numbers; `problem` is the beginning of the message."""
    for text in (text for texts in references for text in texts):
        if _number(text) is None:
            raise TrainingError(f"{problem} has the target {shown(text)}: make it a number, or leave the metric out.")


def check_label(references: References, label: str, where: str) -> None:
    """Refuses a positive class that no reference has."""
    classes = {text.strip() for texts in references for text in texts}
    if label.strip() not in classes:
        raise TrainingError(
            f"--positive_label {label} is no target in {where}, which has {shown(sorted(classes))}: name one of them."
        )
