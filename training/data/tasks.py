# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""The tasks of the T5 paper by name: the columns they read, the texts they make, the metrics they are measured by.

Names are those of `t5/data/tasks.py` without their version: `glue_mrpc_v002` is `glue_mrpc` here. XSum and WSC with
marked spans, for which the original has preprocessors but no task, are `xsum` and `super_glue_wsc_marked`.
"""

import difflib
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import TrainingError
from . import task_metrics as metrics
from . import task_texts as texts
from .cells import Cells
from .task_texts import FALSE_TRUE, Converter, TaskExample


ROUGE = ("rouge1", "rouge2", "rougeLsum")
SQUAD = ("squad_em", "squad_f1")
# Packages of metrics.
_PACKAGES = {"rouge1": "rouge_score", "bleu_intl": "sacrebleu"}


@dataclass(frozen=True)
class Task:
    """A task.

    Attributes:
        name: of the task.
        columns: of text, in the rows themselves, that it reads.
        converter: makes texts of a row.
        score: compares predictions with examples.
        figures: names of the values that `score` returns.
        validation: split of the data set on the hub to evaluate on.
        test_is_labeled: whether the data set's test split has targets.
        trains_on: the label of the rows to train on, if not on all.
    """

    name: str
    columns: tuple[str, ...]
    converter: Converter = field(repr=False)
    score: metrics.Scorer = field(repr=False)
    figures: tuple[str, ...]
    validation: str = "validation"
    test_is_labeled: bool = False
    trains_on: int | None = None

    def convert(self, row: Mapping[str, Any], where: str) -> TaskExample:
        """The texts of a row; of a row without a label, the target is the original's `<unk>`.

        Args:
            row: cells by column.
            where: position of the row, for messages.

        Raises:
            TrainingError: the row lacks a column, or has a cell that the task cannot read.
        """
        return self.converter(Cells(row, where, f"--task {self.name}"))

    def labeled(self, row: Mapping[str, Any], where: str) -> TaskExample:
        """As [`Task.convert`], for training and evaluation.

        Raises:
            TrainingError: as there, or the row has no label.
        """
        example = self.convert(row, where)
        if example["label"] < 0:
            raise TrainingError(
                f"{where}: the row has no label or answer, as in the test splits of benchmarks, which are neither to "
                "train nor to evaluate on; give a file with labels."
            )
        return example

    def splits(self) -> dict[str, list[str]]:
        """Names that splits of a data set may have, by the prefix of their metrics; only those with labels."""
        splits = {"train": ["train"], "eval": [self.validation, "validation"]}
        return splits | ({"test": ["test"]} if self.test_is_labeled else {})

    def describe(self) -> str:
        """The task in a line."""
        rows = "" if self.trains_on is None else f"; trains on rows with label {self.trains_on} alone"
        return f"{self.name}, measured by {', '.join(self.figures)}{rows}"

    def check_packages(self) -> None:
        """Refuses a task whose metrics need a package that is missing."""
        package = _PACKAGES.get(self.figures[0])
        if package is not None and importlib.util.find_spec(package) is None:
            raise TrainingError(
                f"--task {self.name} needs the package {package}: install it, or this package with its extra "
                "`training`."
            )


def _classes(
    name: str, columns: str, names: Sequence[str], figures: str = "accuracy", benchmark: str = "", **more: Any
) -> Task:
    """A task of GLUE or SuperGLUE with classes.

    Args:
        name: of the task.
        columns: in the order of the text.
        names: of the classes, by label.
        figures: names of its metrics.
        benchmark: as the text names it; empty for the end of the name.
        more: of [`Task`].
    """
    read, measured = tuple(columns.split()), tuple(figures.split())
    converter = texts.glue(benchmark or name.rpartition("glue_")[2], read, names)
    return Task(name, read, converter, metrics.classes(names, *measured), measured, **more)


_ENTAILMENT = ("entailment", "not_entailment")
_MNLI = ("hypothesis premise", ("entailment", "neutral", "contradiction"))
_WSC = ("text", "span1_text", "span2_text")
_MULTIRC = ("question", "answer", "paragraph")
_SUMMARIES = {"cnn_dailymail": ("article", "highlights"), "xsum": ("document", "summary")}
_TRANSLATIONS = {
    **dict.fromkeys(("wmt14_ende", "wmt19_ende", "wmt_t2t_ende"), ("de", "German")),
    **dict.fromkeys(("wmt14_enfr", "wmt15_enfr"), ("fr", "French")),
    "wmt16_enro": ("ro", "Romanian"),
}

_TASKS = (
    _classes("glue_cola", "sentence", ("unacceptable", "acceptable"), "matthews"),
    _classes("glue_sst2", "sentence", ("negative", "positive")),
    _classes(
        "glue_mrpc",
        "sentence1 sentence2",
        ("not_equivalent", "equivalent"),
        "f1_binary accuracy",
        test_is_labeled=True,
    ),
    _classes("glue_qqp", "question1 question2", ("not_duplicate", "duplicate"), "f1_binary accuracy"),
    Task("glue_stsb", ("sentence1", "sentence2"), texts.stsb, metrics.correlations, ("pearson", "spearman")),
    _classes("glue_mnli", *_MNLI, validation="validation_matched"),
    _classes("glue_mnli_mismatched", *_MNLI, benchmark="mnli", validation="validation_mismatched"),
    _classes("glue_qnli", "question sentence", _ENTAILMENT),
    _classes("glue_rte", "sentence1 sentence2", _ENTAILMENT),
    _classes("glue_wnli", "sentence1 sentence2", _ENTAILMENT[::-1]),
    _classes("super_glue_boolq", "passage question", FALSE_TRUE),
    _classes("super_glue_cb", "hypothesis premise", ("entailment", "contradiction", "neutral"), "f1_macro accuracy"),
    _classes("super_glue_copa", "choice1 choice2 premise question", ("choice1", "choice2")),
    Task("super_glue_multirc", _MULTIRC, texts.multirc, metrics.multirc, ("f1_binary", "question_exact_match")),
    Task("super_glue_record", ("passage", "query"), texts.record, metrics.squad, SQUAD),
    _classes("super_glue_rte", "hypothesis premise", _ENTAILMENT),
    _classes("super_glue_wic", "sentence1 sentence2 word", FALSE_TRUE),
    Task("super_glue_wsc", _WSC, texts.wsc, metrics.referents, ("accuracy",), trains_on=1),
    Task("super_glue_wsc_marked", _WSC, texts.wsc_marked, metrics.classes(FALSE_TRUE, "accuracy"), ("accuracy",)),
    Task("squad", ("question", "context"), texts.squad, metrics.squad, SQUAD),
    *(
        Task(name, columns, texts.summary(*columns), metrics.summaries, ROUGE, test_is_labeled=True)
        for name, columns in _SUMMARIES.items()
    ),
    *(
        Task(name, (), texts.translation(*language), metrics.translations, ("bleu_intl",), test_is_labeled=True)
        for name, language in _TRANSLATIONS.items()
    ),
)

TASKS: Mapping[str, Task] = {task.name: task for task in _TASKS}


def find_task(name: str) -> Task:
    """The task of this name.

    Raises:
        TrainingError: there is none.
    """
    if name not in TASKS:
        nearest = difflib.get_close_matches(name, TASKS, n=1, cutoff=0.0)[0]
        raise TrainingError(f"--task {name} does not exist; the nearest is {nearest}, and all are {', '.join(TASKS)}.")
    return TASKS[name]
