# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""The output folder takes its name when it is complete: until then it is a temporary sibling, and on error nothing."""

import errno
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .checkpoint import Checkpoint
from .errors import ConversionError


def check_output(output: Path, checkpoint: Checkpoint, overwrite: bool) -> None:
    """Raises if a folder of this name cannot or must not be written."""
    source = checkpoint.prefix.parent.resolve()
    if checkpoint.storage is None and output.resolve() in (source, *source.parents):
        raise ConversionError(f"{output} holds the checkpoint itself: choose another folder for the output.")
    if not output.exists() and not output.is_symlink():
        return
    if not overwrite:
        raise ConversionError(f"{output} exists: choose another folder, or pass --overwrite to replace it.")
    # A mistyped path must not cost anybody's files.
    if not output.is_dir() or output.is_symlink() or (any(output.iterdir()) and not (output / "config.json").is_file()):
        raise ConversionError(
            f"{output} is not a converted folder, so --overwrite does not replace it: remove it yourself."
        )


@contextmanager
def finished_or_nothing(output: Path, overwrite: bool) -> Iterator[Path]:
    """A temporary folder beside the output, which takes its name on success and is removed on error or interrupt."""
    output = output.absolute()
    token = secrets.token_hex(4)
    folder = output.with_name(f".{output.name}.partial-{token}")
    created = [parent for parent in output.parents if not parent.exists()]
    try:
        try:
            folder.mkdir(parents=True)
            yield folder
            if output.exists() and not overwrite:
                raise ConversionError(f"{output} appeared while this conversion ran: choose another folder.")
            _replace(folder, output, output.with_name(f".{output.name}.old-{token}"))
        except OSError as error:
            raise ConversionError(_os_error(error, output)) from error
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        for parent in created:
            try:
                parent.rmdir()
            except OSError:
                break
        raise


def _replace(folder: Path, output: Path, old: Path) -> None:
    """Gives the folder the output's name; what had it before goes last."""
    if not output.exists():
        folder.rename(output)
        return
    output.rename(old)
    try:
        folder.rename(output)
    except BaseException:
        old.rename(output)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _os_error(error: OSError, output: Path) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk of {output} is full: make room or choose another disk; nothing was left behind."
    return f"{output} cannot be written: {error.strerror or error}."
