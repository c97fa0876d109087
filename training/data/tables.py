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
from .folders import rows_of_folder
from .json_arrays import begins_array, rows_of_array
from .opening import format_of, opened


# A row of a file, and its position for messages.
PlacedRow = tuple[str, dict[str, Any]]

# Much more than any file's metadata needs; limits what a damaged file makes the reader allocate.
_FOOTER_LIMITS = {"thrift_string_size_limit": 2**26, "thrift_container_size_limit": 2**20}

# A packed file may unpack to a line that would fill the memory.
_MOST_BYTES = 2**28


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines of a UTF-8 file including line ends, numbered from 1, without a byte order mark."""
    with opened(path) as file:
        number = 0
        while line := file.readline(_MOST_BYTES + 1):
            number += 1
            where = f"{path}, line {number}"
            if len(line) > _MOST_BYTES:
                raise TrainingError(f"{where}: more than {_MOST_BYTES / 1e6:.0f} MB in one line; split it.")
            yield number, decode_line(line.removeprefix(codecs.BOM_UTF8) if number == 1 else line, where)


def _json_rows(path: Path) -> Iterator[PlacedRow]:
    return rows_of_array(path) if begins_array(path) else _json_lines(path)


def _json_lines(path: Path) -> Iterator[PlacedRow]:
    for number, line in _lines(path):
        if line.strip():
            where = f"{path}, line {number}"
            # Numbers as written: 1.50 is not "1.5", nor is 1e3 "1000.0".
            yield where, parse_json_line(line, where, parse_int=str, parse_float=str)


# Of `csv.reader`. Strict: the quotation mark that closes a cell comes before a comma or line break; others are doubled.
_CSV: dict[str, Any] = {"strict": True}
# As IANA registered it: every tab separates cells, every line break rows, and quotation marks are text.
_TSV: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE}


def _csv_rows(path: Path) -> Iterator[PlacedRow]:
    return _rows(path, _CSV, "put text with commas or line breaks in quotation marks")


def _tsv_rows(path: Path) -> Iterator[PlacedRow]:
    remedy = "a tab or a line break separates cells also within quotation marks: replace those inside texts by spaces"
    return _rows(path, _TSV, remedy)


def _rows(path: Path, dialect: dict[str, Any], remedy: str) -> Iterator[PlacedRow]:
    names: list[str] | None = None
    for where, cells in _cells(path, dialect):
        if names is None:
            names = cells
            check_names(names, where)
        elif len(cells) != len(names):
            raise TrainingError(
                f"{where}: not as many cells as the first line has ({len(cells)}, and not {len(names)}); {remedy}."
            )
        else:
            yield where, dict(zip(names, cells, strict=True))


def _cells(path: Path, dialect: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """The cells of each row that is not blank, and the line where it begins."""
    csv.field_size_limit(_MOST_BYTES)  # the default refuses documents of more than 128 KiB
    rows = csv.reader((line for _, line in _lines(path)), **dialect)
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
    if problem.startswith("field larger"):
        return f"{where}: more than {_MOST_BYTES / 1e6:.0f} MB in one cell; close its quotation mark, or split it."
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
    ".json": _json_rows,
    ".csv": _csv_rows,
    ".tsv": _tsv_rows,
    ".parquet": _parquet_rows,
}


def read_table(path: Path, ending: str | None = None) -> Iterator[PlacedRow]:
    """Rows of a file, or of a folder that `save_to_disk` of `datasets` wrote.

    Args:
        path: the file, possibly packed, or the folder.
        ending: extension that tells the format, instead of the file's own.

    Raises:
        TrainingError: it does not have this format, or a row would not come as written.
    """
    return rows_of_folder(path) if path.is_dir() else READERS[ending or format_of(path)](path)
