# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Rows of table files exactly as written: nothing is guessed, dropped or merged.

We have our own readers because those of `datasets` guess types: a column of dates or of numbers with leading zeros
would change, the word "None" in a CSV file would become missing text, and the second of two columns with the same name
would be renamed.
"""

import codecs
import csv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pyarrow import ArrowException, parquet

from ..errors import TrainingError, check_names, decode_line, in_a_line, parse_json_line


# A row of a file, and its position for messages.
PlacedRow = tuple[str, dict[str, Any]]

# Much more than any file's metadata needs; limits what a damaged file makes the reader allocate.
_FOOTER_LIMITS = {"thrift_string_size_limit": 2**26, "thrift_container_size_limit": 2**20}


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines of a UTF-8 file including line ends, numbered from 1, without a byte order mark."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            yield number, decode_line(line, f"{path}, line {number}")


def _json_lines(path: Path) -> Iterator[PlacedRow]:
    for number, line in _lines(path):
        if line.strip():
            where = f"{path}, line {number}"
            # Numbers as written: 1.50 is not "1.5", nor is 1e3 "1000.0".
            yield where, parse_json_line(line, where, parse_int=str, parse_float=str)


def _csv_rows(path: Path) -> Iterator[PlacedRow]:
    names: list[str] | None = None
    for where, cells in _csv_cells(path):
        if names is None:
            names = cells
            check_names(names, where)
        elif len(cells) != len(names):
            raise TrainingError(
                f"{where}: not as many cells as the first line has ({len(cells)}, and not {len(names)}); put text with "
                "commas or line breaks in quotation marks."
            )
        else:
            yield where, dict(zip(names, cells, strict=True))


def _csv_cells(path: Path) -> Iterator[tuple[str, list[str]]]:
    """The cells of each row that is not blank, and the line where it begins."""
    csv.field_size_limit(2**31 - 1)  # the default refuses documents of more than 128 KiB
    # Strict: the quotation mark that closes a cell comes before a comma or line break; others are doubled.
    rows = csv.reader((line for _, line in _lines(path)), strict=True)
    while True:
        first = rows.line_num + 1
        where = f"{path}, line {first}"
        try:
            cells = next(rows, None)
        except csv.Error as error:
            raise TrainingError(_csv_problem(where, first, rows.line_num, str(error))) from error
        if cells is None:
            return
        if cells:
            yield where, cells


def _csv_problem(where: str, first: int, last: int, problem: str) -> str:
    if problem == "unexpected end of data":
        return f"{where}: a quotation mark is opened there or in a line below it and never closed; close or double it."
    if problem.startswith("new-line character"):
        return f"{where}: a carriage return does not end a line; end lines with a line feed, or quote the cell."
    until = f" up to line {last}" if last > first else ""
    return (
        f"{where}: not CSV{until} ({problem}); a quotation mark inside a quoted cell is doubled, and one that opens a "
        "cell is closed."
    )


def _parquet_rows(path: Path) -> Iterator[PlacedRow]:
    number = 0
    try:
        with parquet.ParquetFile(path, **_FOOTER_LIMITS) as file:
            check_names(file.schema_arrow.names, str(path))
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", row
    # pyarrow passes on errors of C++ and Python for damage deep inside.
    except (ArrowException, OSError, ValueError, OverflowError, NotImplementedError, MemoryError) as error:
        raise TrainingError(f"{path} is not a Parquet file that can be read: {in_a_line(error)}.") from error


READERS: dict[str, Callable[[Path], Iterator[PlacedRow]]] = {
    ".jsonl": _json_lines,
    ".json": _json_lines,
    ".csv": _csv_rows,
    ".parquet": _parquet_rows,
}
