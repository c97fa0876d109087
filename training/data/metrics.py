# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Metrics of generated texts, each compared with any number of references, from 0 to 100."""

import importlib
import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..errors import TrainingError


References = Sequence[Sequence[str]]

_ROUGE_TYPES = ("rouge1", "rouge2", "rougeLsum")


def bleu(predictions: Sequence[str], references: References) -> dict[str, float]:
    """Corpus BLEU with sacrebleu's defaults (case-sensitive, tokenization 13a)."""
    from sacrebleu.metrics import BLEU

    most = max(map(len, references))
    # One list of all first references, one of all second ones, ...; sacrebleu skips None.
    columns: Any = [[texts[place] if place < len(texts) else None for texts in references] for place in range(most)]
    return {"bleu": BLEU().corpus_score(predictions, columns).score}


def rouge(predictions: Sequence[str], references: References) -> dict[str, float]:
    """Mean F-measures of ROUGE-1, ROUGE-2 and ROUGE-Lsum, each against the best reference.

    Source: `rouge` of t5.evaluation.metrics, whose bootstrap median is close to this mean.
    """
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(_ROUGE_TYPES)
    scores = [
        scorer.score_multi([_sentences_on_lines(other) for other in texts], _sentences_on_lines(text))
        for text, texts in zip(predictions, references, strict=True)
    ]
    return {kind: 100 * sum(score[kind].fmeasure for score in scores) / len(scores) for kind in _ROUGE_TYPES}


def _sentences_on_lines(text: str) -> str:
    return text.replace(" . ", " .\n")


def exact_match(predictions: Sequence[str], references: References) -> dict[str, float]:
    """Fraction of predictions that equal one of their references, ignoring surrounding whitespace."""
    hits = sum(text.strip() in map(str.strip, texts) for text, texts in zip(predictions, references, strict=True))
    return {"exact_match": 100 * hits / len(predictions)}


def f1(predictions: Sequence[str], references: References) -> dict[str, float]:
    """SQuAD's word F1, ignoring case, punctuation and articles: mean over predictions of the best reference's.

    Source: `t5.evaluation.qa_utils`, as the original's `squad` calls it.
    """
    scores = [
        max(_word_f1(squad_words(text), squad_words(other)) for other in texts)
        for text, texts in zip(predictions, references, strict=True)
    ]
    return {"f1": 100 * sum(scores) / len(scores)}


def squad_words(text: str) -> list[str]:
    """Words as SQuAD compares them: without case, punctuation and articles."""
    without_punctuation = text.lower().translate(str.maketrans("", "", string.punctuation))
    return re.sub(r"\b(a|an|the)\b", " ", without_punctuation).split()


def _word_f1(words: list[str], reference: list[str]) -> float:
    same = (Counter(words) & Counter(reference)).total()
    return 2 * same / (len(words) + len(reference)) if same else 0.0


METRICS: Mapping[str, Callable[[Sequence[str], References], dict[str, float]]] = {
    "bleu": bleu,
    "rouge": rouge,
    "exact_match": exact_match,
    "f1": f1,
}

_PACKAGES = {"bleu": "sacrebleu", "rouge": "rouge_score"}


def check_metrics(names: Sequence[str]) -> None:
    """Refuses a name that is not a metric."""
    for name in names:
        if name not in METRICS:
            raise TrainingError(f"--metric {name} does not exist: choose from {', '.join(METRICS)}.")


def check_packages(names: Sequence[str]) -> None:
    """Refuses a metric whose package is missing."""
    for name in names:
        if name in _PACKAGES:
            try:
                importlib.import_module(_PACKAGES[name])
            except ImportError as error:
                raise TrainingError(
                    f"--metric {name} needs the package {_PACKAGES[name]}: install it, or this package with its extra "
                    "`training`."
                ) from error


def figures_of(names: Sequence[str]) -> list[str]:
    """Names of the values that [`compute_metrics`] returns for these metrics."""
    return [figure for name in names for figure in (_ROUGE_TYPES if name == "rouge" else (name,))]


def compute_metrics(names: Sequence[str], predictions: Sequence[str], references: References) -> dict[str, float]:
    """The values of all these metrics; each prediction has its own references, at least one."""
    return {key: value for name in names for key, value in METRICS[name](predictions, references).items()}
