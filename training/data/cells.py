# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Cells of a row as what a task needs; everything else is refused with file and line."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import TrainingError, check_unicode, shown


def as_text(value: Any, column: str, where: str) -> str:
    """A cell as text; `where` is the position of its row, for messages.

    Raises:
        TrainingError: it is neither text nor a finite number.
    """
    if isinstance(value, str):
        return check_unicode(value, where)
    # Parquet's numbers. Of JSON's, only NaN and Infinity get here, which are not meant as text.
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return str(value)
    raise TrainingError(f"{where}: column {column!r} holds {shown(value)}, which is not text; make it a string.")


@dataclass(frozen=True)
class Cells:
    """The cells of a row, or of an object inside one.

    Attributes:
        values: by name of the column.
        where: position of the row, for messages.
        reader: what reads the columns, for messages.
        inside: name of the column that the object is in, with a dot; empty for a row.
    """

    values: Mapping[str, Any]
    where: str
    reader: str
    inside: str = ""

    def __getitem__(self, column: str) -> Any:
        if column not in self.values:
            there = shown(sorted(self.values))
            raise TrainingError(
                f"{self.where}: no column {self.inside + column!r} among {there}, but {self.reader} reads it; rename "
                "or add it."
            )
        return self.values[column]

    def text(self, column: str) -> str:
        return as_text(self[column], self.inside + column, self.where)

    def texts(self, column: str) -> list[str]:
        """The texts of a list, which may be empty."""
        value = self[column]
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise self._wrong(column, "no list of texts; JSON lines and Parquet can hold lists")
        return [as_text(item, self.inside + column, self.where) for item in value]

    def object(self, column: str) -> "Cells":
        """The cells of an object."""
        value = self[column]
        if not isinstance(value, Mapping):
            raise self._wrong(column, "no object with columns of its own; JSON lines and Parquet can hold objects")
        return Cells(value, self.where, self.reader, f"{self.inside}{column}.")

    def integer(self, column: str) -> int:
        value = self[column]
        if isinstance(value, float) and value.is_integer():
            return int(value)
        # JSON lines and tables keep numbers as they are written, such as 1.0.
        found = None if isinstance(value, bool) else re.fullmatch(r"(-?\d{1,18})(\.0+)?", str(value))
        if found is None:
            raise self._wrong(column, "no integer")
        return int(found[1])

    def number(self, column: str) -> float:
        value = self[column]
        try:
            found = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            found = math.nan
        if not math.isfinite(found):
            raise self._wrong(column, "no number")
        return found

    def label(self, column: str, names: Sequence[str]) -> int:
        """Index of a class, given as such or by its name; -1 stands for no label."""
        value = self[column]
        if str(value) in names:
            return names.index(str(value))
        index = self.integer(column) if re.fullmatch(r"-?\d+(\.0+)?", str(value)) else len(names)
        if not -1 <= index < len(names):
            classes = ", ".join(f"{number} ({name})" for number, name in enumerate(names))
            raise self._wrong(column, f"none of the classes {classes}")
        return index

    def _wrong(self, column: str, what: str) -> TrainingError:
        value = shown(self.values[column])
        return TrainingError(f"{self.where}: column {self.inside + column!r} holds {value}, which is {what}.")
