# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""How rows become examples: by two columns that the user names, or as a task says."""

from dataclasses import dataclass
from typing import Any, ClassVar, TypedDict

from datasets import Features, List, Value

from ..errors import TrainingError, shown
from .cells import as_text
from .task_texts import TaskExample
from .tasks import TASKS


class Example(TypedDict):
    """An input, and its right targets."""

    source: str
    targets: list[str]


_TEXTS = List(Value("string"))


@dataclass(frozen=True)
class Columns:
    """Examples are two columns: the name of that of inputs, and of that of targets."""

    input_column: str
    target_column: str

    features: ClassVar[Features] = Features(source=Value("string"), targets=_TEXTS)

    @property
    def texts(self) -> tuple[str, ...]:
        """Columns that must be text."""
        return self.input_column, self.target_column

    def example(self, row: dict[str, Any], where: str) -> Example:
        """The example of a row; `where` is its position, for messages."""
        return _example(row, self.input_column, self.target_column, where)


@dataclass(frozen=True)
class TaskRows:
    """Examples are what a task makes of a row, given by its name."""

    task: str

    features: ClassVar[Features] = Features(
        source=Value("string"), targets=_TEXTS, answers=_TEXTS, group=Value("string"), label=Value("int64")
    )

    @property
    def texts(self) -> tuple[str, ...]:
        """Columns that must be text."""
        return TASKS[self.task].columns

    def example(self, row: dict[str, Any], where: str) -> TaskExample:
        """As for [`Columns`]; refuses rows without a label."""
        return TASKS[self.task].labeled(row, where)


Reading = Columns | TaskRows


def _example(row: dict[str, Any], input_column: str, target_column: str, where: str) -> Example:
    for column in (input_column, target_column):
        if column not in row:
            raise TrainingError(
                f"{where}: no column {column!r} among {shown(sorted(row))}; name the columns with --input_column and "
                "--target_column."
            )
    targets = row[target_column]
    if isinstance(targets, list) and not targets:
        raise TrainingError(f"{where}: column {target_column!r} is an empty list; give at least one text.")
    several = targets if isinstance(targets, list) else [targets]
    return {
        "source": as_text(row[input_column], input_column, where),
        "targets": [as_text(target, target_column, where) for target in several],
    }
