# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""The output folder takes its name when it is complete: until then it is a hidden sibling, and on error nothing.

For an output OUT there can be, in the folder that OUT is or will be in:

    .OUT.partial        what is being written; after a run that was killed, what `--resume` goes on with
    .OUT.partial.lock   held by the run that writes; the system lets go of it when that run ends, in whatever way
    .OUT.old            what OUT was, for the moment in which the new folder takes its name
"""

import errno
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from signal import SIGINT, SIGTERM

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
        raise ConversionError(_exists(output))
    # A mistyped path must not cost anybody's files.
    if not output.is_dir() or output.is_symlink() or (any(output.iterdir()) and not (output / "config.json").is_file()):
        raise ConversionError(
            f"{output} is not a converted folder, so --overwrite does not replace it: remove it yourself."
        )


@contextmanager
def finished_or_nothing(output: Path, overwrite: bool, resume: bool = False) -> Iterator[Path]:
    """A hidden folder beside the output, which takes its name on success and is removed on error or interrupt.

    Args:
        output: name of the folder.
        overwrite: replace what has that name.
        resume: keep what an earlier run, which ended before its time, has left in the hidden folder; and what this one
            leaves if it fails.

    Raises:
        ConversionError: another run writes the same output, or the disk does not take it.
    """
    output = output.absolute()
    folder, old = _partial(output), output.with_name(f".{output.name}.old")
    created = [parent for parent in output.parents if not parent.exists()]
    try:
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            with _locked(folder, output):
                _recover(output, old)
                # Somebody else may have finished it while this run waited, or the last one was killed while renaming.
                if output.exists() and not overwrite:
                    raise ConversionError(_exists(output))
                if output.exists() and old.exists():
                    raise ConversionError(
                        f"{old} is in the way, where {output} goes while it is replaced: remove or rename it."
                    )
                if folder.exists() and not resume:
                    print(f"Note: {folder.name}, which an earlier run left, is started over.", file=sys.stderr)
                    shutil.rmtree(folder)
                try:
                    folder.mkdir(exist_ok=True)
                    yield folder
                    if output.exists() and not overwrite:
                        raise ConversionError(f"{output} appeared while this conversion ran: choose another folder.")
                    _sync(folder)
                    with _uninterrupted(f"{output} is complete"):
                        _replace(folder, output, old)
                except BaseException as error:
                    if isinstance(error, KeyboardInterrupt) and folder.exists():
                        error.add_note(_left(resume))
                    if not resume:
                        shutil.rmtree(folder, ignore_errors=True)
                    raise
        except OSError as error:
            raise ConversionError(_os_error(error, output, resume)) from error
    except BaseException:
        for parent in created:
            try:
                parent.rmdir()
            except OSError:
                break
        raise


def _exists(output: Path) -> str:
    return f"{output} exists: choose another folder, or pass --overwrite to replace it."


def reclaimable(output: Path) -> int:
    """Bytes that an earlier run, which was killed, has left beside the output: they are kept or removed, never needed
    once more."""
    try:
        return sum(_disk_bytes(path.stat()) for path in _partial(output.absolute()).iterdir())
    except OSError:  # There is none, or another run is at work on it: whoever opens it next says so.
        return 0


def _disk_bytes(status: os.stat_result) -> int:
    """Bytes of disk that a file takes; one that is not written to its end yet has holes."""
    blocks = getattr(status, "st_blocks", None)
    return status.st_size if blocks is None else min(status.st_size, blocks * 512)


def _partial(output: Path) -> Path:
    return output.with_name(f".{output.name}.partial")


@contextmanager
def _locked(folder: Path, output: Path) -> Iterator[None]:
    from filelock import FileLock, Timeout

    lock = FileLock(folder.with_name(folder.name + ".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ConversionError(f"another run is writing {output}: wait for it, or choose another folder.") from error
    except OSError as error:
        Path(lock.lock_file).unlink(missing_ok=True)
        raise ConversionError(
            f"{output.parent} cannot be locked ({error.strerror or error}): choose an output on another disk."
        ) from error
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def _recover(output: Path, old: Path) -> None:
    """Ends a replacement in whose middle a run was killed; a folder that is not one of ours is let be."""
    if not (old / "config.json").is_file() and not (old / "checkpoint").is_file():
        return
    if output.exists():
        shutil.rmtree(old)
    else:
        old.rename(output)


@contextmanager
def _uninterrupted(note: str) -> Iterator[None]:
    """Lets an interrupt or a termination wait for the end of what is done in here.

    Args:
        note: what an interrupt that waited says of it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []
    handlers = {number: signal.signal(number, lambda n, _: arrived.append(n)) for number in (SIGINT, SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    try:
        for caught in arrived:
            signal.raise_signal(caught)
    except KeyboardInterrupt as interrupt:
        interrupt.add_note(note)
        raise


def _sync(folder: Path) -> None:
    """Waits until all is on the disk: what has its name survives a power failure, too."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


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


def _left(resume: bool) -> str:
    return "finished files are kept for --resume" if resume else "nothing was left behind"


def _os_error(error: OSError, output: Path, resume: bool) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk of {output} is full: make room or choose another disk; {_left(resume)}."
    return f"{output} cannot be written: {error.strerror or error}."
