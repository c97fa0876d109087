# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""What lies beside an output, a folder or a file, until it is complete.

For an output OUT there can be, in the folder that OUT is or will be in:

    .OUT.partial        a folder with what is being written; after a run that was killed, what the next one removes, or
                        goes on with (`--resume`)
    .OUT.partial.lock   held by the run that writes; the system lets go of it when that run ends, in any way

What has one of these names and was not made by this program stops it: nothing of others is followed, removed or
renamed. `own_folders` says how a folder is known; a lock is an empty file.
"""

import errno
import os
import signal
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from t5_experimental import own_folders

from ..errors import ConversionError
from ..readable import say
from ..signals import terminating_signals
from .ours import is_ours


if TYPE_CHECKING:
    from filelock import FileLock


@contextmanager
def unfinished(output: Path, check: Callable[[], None], resume: bool = False) -> Iterator[Path]:
    """The hidden folder of an output, locked and marked; it is removed on error or interrupt.

    Args:
        output: absolute path; missing folders above it are made, and removed on error.
        check: called before the folder is made, when no other run can write the output: raises if it must not be
            written.
        resume: keep what an earlier run, which ended before its time, has left in the folder; and what this one leaves
            if it fails.

    Raises:
        ConversionError: another run writes the same output, something is in the way, or the disk does not take it.
    """
    folder = _partial(output)
    created = [parent for parent in output.parents if not parent.exists()]
    try:
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            with _locked(output):
                check_places(output)
                check()
                # One that is complete, but for its name, has no list of finished files to go on with.
                if own_folders.exists(folder) and not (resume and own_folders.is_marked(folder)):
                    say(f"Note: {folder.name}, which an earlier run left, is started over.", to=sys.stderr)
                    own_folders.remove(folder)
                own_folders.begin(folder)
                try:
                    yield folder
                except BaseException as error:
                    if isinstance(error, KeyboardInterrupt) and folder.exists():
                        error.add_note(_left(resume))
                    if not resume:
                        remove(folder)
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


def check_places(output: Path) -> None:
    """Raises if something of others is where this program works.

    Args:
        output: absolute path.
    """
    folder, lock = _partial(output), _lock(output)
    if own_folders.exists(folder):
        why = own_folders.why_not_unfinished(folder)
        if why is not None and is_ours(folder):  # killed when it was complete
            why = None
        why = why or own_folders.why_not_files(folder)
        if why is not None:
            raise ConversionError(
                f"{folder} is in the way, where {output.name} is written at first, and this program did not make it "
                f"({why}): remove or rename it."
            )
    if own_folders.exists(lock):
        status = lock.lstat()
        if not stat.S_ISREG(status.st_mode) or status.st_size:
            raise ConversionError(
                f"{lock} is in the way, where this program locks {output.name}, and is not the empty file that it "
                "makes: remove or rename it."
            )


def reclaimable(output: Path) -> int:
    """Bytes that an earlier run, which was killed, has left beside the output: they are kept or removed, never needed
    once more."""
    folder = _partial(output.absolute())
    try:
        if own_folders.why_not_unfinished(folder) is not None:
            return 0
        return sum(_disk_bytes(path.lstat()) for path in folder.iterdir())
    except OSError:  # It is gone, or another run is at work on it: opening it says so.
        return 0


def remove(folder: Path) -> None:
    """Removes a folder of this program as far as that is possible."""
    with suppress(OSError):
        own_folders.remove(folder)


@contextmanager
def uninterrupted(note: str) -> Iterator[None]:
    """Lets an interrupt or a termination wait for the end of what is done in here.

    Args:
        note: what an interrupt that waited says of it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []
    ending = (signal.SIGINT, *terminating_signals())
    handlers = {number: signal.signal(number, lambda n, _: arrived.append(n)) for number in ending}
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


def _disk_bytes(status: os.stat_result) -> int:
    """Bytes of disk that a file takes; one that is not written to its end yet has holes."""
    blocks = getattr(status, "st_blocks", None)
    return status.st_size if blocks is None else min(status.st_size, blocks * 512)


def _partial(output: Path) -> Path:
    return output.with_name(f".{output.name}.partial")


def _lock(output: Path) -> Path:
    return output.with_name(f".{output.name}.partial.lock")


@contextmanager
def _locked(output: Path) -> Iterator[None]:
    from filelock import FileLock, Timeout

    check_places(output)
    lock = FileLock(_lock(output))
    was_there = own_folders.exists(_lock(output))
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ConversionError(f"another run is writing {output}: wait for it, or choose another output.") from error
    except OSError as error:
        if not was_there:
            with suppress(OSError):
                Path(lock.lock_file).unlink(missing_ok=True)
        raise ConversionError(
            f"{output.parent} cannot be locked ({error.strerror or error}): choose an output on another disk."
        ) from error
    try:
        yield
    finally:
        _unlock(lock)


def _unlock(lock: "FileLock") -> None:
    """Removes and releases a lock. In this order, no other run can have got the lock that is removed; Windows removes
    no open file, and therefore not the lock that another run has got."""
    path = Path(lock.lock_file)
    try:
        if not own_folders.WINDOWS:
            path.unlink(missing_ok=True)
    finally:
        lock.release()
    if own_folders.WINDOWS:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _left(resume: bool) -> str:
    return "finished files are kept for --resume" if resume else "nothing was left behind"


def _os_error(error: OSError, output: Path, resume: bool) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk of {output} is full: make room or choose another disk; {_left(resume)}."
    where = f" ({error.filename})" if error.filename not in (None, str(output)) else ""
    return f"{output} cannot be written: {error.strerror or error}{where}."
