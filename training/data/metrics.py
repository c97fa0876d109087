# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Metrics of generated texts, each compared with any number of references, from 0 to 100 (correlations from -100).

What is computed for single examples, too, has a place in [`SCORED`]; the others are properties of all of them together.
Metrics of classes are in class_metrics.py, one's own in own_metrics.py.
"""

import importlib
import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from ..errors import TrainingError
from .class_metrics import accuracy, check_label, check_numbers, f1_binary, f1_macro, matthews, pearson, spearman
from .own_metrics import figures_of_own, is_own, load_own


References = Sequence[Sequence[str]]

_ROUGE_TYPES = ("rouge1", "rouge2", "rougeLsum")
# Of n-grams in sacrebleu's scores of a sentence.
_COUNTS = ("counts", "totals")
_SQUAD_FIGURES = ("squad_em", "squad_f1")


def bleu(predictions: Sequence[str], references: References) -> dict[str, float]:
    """Corpus BLEU with sacrebleu's defaults (case-sensitive, tokenization 13a).

    The counts of the sentences are added up here, which takes as long as there are references. `corpus_score` wants as
    many of every prediction: columns filled up with None, which are quadratic if one of many inputs has most of them.
    """
    from sacrebleu.metrics import BLEU

    sentences = BLEU(effective_order=True)  # which only silences a warning: counts do not depend on it
    scores = [sentences.sentence_score(text, texts) for text, texts in zip(predictions, references, strict=True)]
    counts, totals = ([*map(sum, zip(*(getattr(score, name) for score in scores), strict=True))] for name in _COUNTS)
    lengths = (sum(score.sys_len for score in scores), sum(score.ref_len for score in scores))
    return {"bleu": BLEU.compute_bleu(counts, totals, *lengths, smooth_method="exp").score}


def chrf(predictions: Sequence[str], references: References) -> dict[str, float]:
    """Corpus chrF2 with sacrebleu's defaults (six letters, no words); of one example, chrF of the sentence.

    As there, each prediction is compared with its best reference; finding it here takes as long as for [`bleu`].
    """
    from sacrebleu.metrics import CHRF

    metric = CHRF()

    def best(text: str, texts: Sequence[str]) -> str:
        return texts[0] if len(texts) == 1 else max(texts, key=lambda one: metric.sentence_score(text, [one]).score)

    found = [best(text, texts) for text, texts in zip(predictions, references, strict=True)]
    return {"chrf": metric.corpus_score(predictions, [found]).score}


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


def squad(predictions: Sequence[str], references: References) -> dict[str, float]:
    """SQuAD's exact match and word F1, ignoring case, punctuation and articles: means over predictions, each against
    its best reference.

    Source: `t5.evaluation.qa_utils`, as the original's `squad` calls it, and SQuAD 1.1's own script.
    """
    exact, overlap = [], []
    for text, texts in zip(predictions, references, strict=True):
        words, others = squad_words(text), [squad_words(other) for other in texts]
        exact.append(words in others)
        overlap.append(max(_word_f1(words, other) for other in others))
    figures = (sum(exact), sum(overlap))
    return {name: 100 * total / len(predictions) for name, total in zip(_SQUAD_FIGURES, figures, strict=True)}


def f1(predictions: Sequence[str], references: References) -> dict[str, float]:
    """The word F1 of [`squad`], by an older name; not the F1 of classes."""
    return {"f1": squad(predictions, references)["squad_f1"]}


def squad_words(text: str) -> list[str]:
    """Words as SQuAD compares them: without case, punctuation and articles."""
    without_punctuation = text.lower().translate(str.maketrans("", "", string.punctuation))
    return re.sub(r"\b(a|an|the)\b", " ", without_punctuation).split()


def _word_f1(words: list[str], reference: list[str]) -> float:
    same = (Counter(words) & Counter(reference)).total()
    return 2 * same / (len(words) + len(reference)) if same else 0.0


# `f1_binary` also takes the positive class.
METRICS: Mapping[str, Callable[..., dict[str, float]]] = {
    "bleu": bleu,
    "chrf": chrf,
    "rouge": rouge,
    "exact_match": exact_match,
    "squad": squad,
    "accuracy": accuracy,
    "f1_binary": f1_binary,
    "f1_macro": f1_macro,
    "matthews": matthews,
    "pearson": pearson,
    "spearman": spearman,
    "f1": f1,
}

SCORED = ("chrf", "rouge", "exact_match", "squad", "accuracy", "f1")
"""Metrics that are defined for a single example."""

_FIGURES = {"rouge": _ROUGE_TYPES, "squad": _SQUAD_FIGURES}
_PACKAGES = {"bleu": "sacrebleu", "chrf": "sacrebleu", "rouge": "rouge_score"}

# Examples on which one's own function is tried out.
_TRIED = 32
# Figures of every evaluation, which transformers' trainer names.
_OF_THE_TRAINER = frozenset(
    ("loss", "runtime", "samples_per_second", "steps_per_second", "model_preparation_time", "jit_compilation_time")
)


def check_metrics(names: Sequence[str], positive_label: str | None = None) -> None:
    """Refuses a name that is not a metric or is given twice, and a class for no metric or missing for one."""
    for place, name in enumerate(names):
        if name not in METRICS and not is_own(name):
            raise TrainingError(
                f"--metric {name} does not exist: choose from {', '.join(METRICS)}, or give your own as "
                "my_module:function."
            )
        if name in names[:place]:
            raise TrainingError(f"--metric has {name} twice: leave one out.")
    if "f1_binary" in names and positive_label is None:
        raise TrainingError("--metric f1_binary needs to know which class is positive: give --positive_label.")
    if positive_label is not None and "f1_binary" not in names:
        raise TrainingError("--positive_label has no effect without --metric f1_binary: give both, or none.")


def check_packages(names: Sequence[str]) -> None:
    """Refuses a metric whose package or module is missing."""
    for name in names:
        if is_own(name):
            load_own(name)
        elif name in _PACKAGES:
            try:
                importlib.import_module(_PACKAGES[name])
            except ImportError as error:
                raise TrainingError(
                    f"--metric {name} needs the package {_PACKAGES[name]}: install it, or this package with its extra "
                    "`training`."
                ) from error


def figures_of(names: Sequence[str]) -> list[str]:
    """Names of the values that [`compute_metrics`] returns for these metrics, those of one's own functions apart."""
    return [figure for name in names if not is_own(name) for figure in _FIGURES.get(name, (name,))]


def check_references(
    names: Sequence[str], references: References, where: str, positive_label: str | None = None
) -> list[str]:
    """Finds out before training whether the metrics can be computed; one's own functions are tried out.

    Args:
        names: of the metrics.
        references: of each input.
        where: the split, for messages.
        positive_label: the class that `f1_binary` looks for.

    Returns:
        Names of all values that [`compute_metrics`] returns.

    Raises:
        TrainingError: the references do not suit a metric, or an own function does not return figures.
    """
    if numeric := [name for name in ("pearson", "spearman") if name in names]:
        check_numbers(references, f"--metric {numeric[0]} correlates numbers, but {where}")
    if positive_label is not None:
        check_label(references, positive_label, where)
    figures = figures_of(names)
    some = references[:_TRIED]
    for name in filter(is_own, names):
        found = figures_of_own(name, [texts[0] for texts in some], some)
        if taken := sorted(set(found) & set(figures)):
            raise TrainingError(f"--metric {name} names a figure {taken[0]}, as another metric does: rename it.")
        if taken := sorted(set(found) & _OF_THE_TRAINER):
            raise TrainingError(f"--metric {name} names a figure {taken[0]}, as the trainer does: rename it.")
        figures += found
    return figures


def compute_metrics(
    names: Sequence[str], predictions: Sequence[str], references: References, positive_label: str | None = None
) -> dict[str, float]:
    """The values of all these metrics; each prediction has its own references, at least one."""
    figures: dict[str, float] = {}
    for name in names:
        if is_own(name):
            figures |= figures_of_own(name, predictions, references)
        elif name == "f1_binary":
            figures |= f1_binary(predictions, references, str(positive_label))
        else:
            figures |= METRICS[name](predictions, references)
    return figures


def score_example(names: Sequence[str], prediction: str, references: Sequence[str]) -> dict[str, float]:
    """The values of the metrics that are defined for a single example."""
    return {
        figure: value
        for name in names
        if name in SCORED
        for figure, value in METRICS[name]([prediction], [references]).items()
    }
