# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""An output that is one file takes its name when it is complete, as a folder does: until then it is in a hidden folder
beside it, see `beside`, and on error nothing."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from t5_experimental import own_folders

from .beside import remove, unfinished, uninterrupted


_FILENAME = "unfinished"


@contextmanager
def finished_file(output: Path, check: Callable[[], None]) -> Iterator[Path]:
    """A path for a file, which takes the output's name on success and is removed on error or interrupt.

    Args:
        output: the file to write, or to replace.
        check: raises if the output cannot or must not be written; it may have got its name while this runs.

    Raises:
        ConversionError: see `unfinished`.
    """
    output = output.absolute()
    with unfinished(output, check) as folder:
        yield folder / _FILENAME
        own_folders.flush(folder)
        with uninterrupted(f"{output} is complete"):
            check()
            (folder / _FILENAME).replace(output)
            remove(folder)
