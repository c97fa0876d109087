# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""The output folder takes its name when it is complete: until then it is a hidden sibling, and on error nothing.

For an output OUT there can be, in the folder that OUT is or will be in:

    .OUT.partial        what is being written; after a run that was killed, what `--resume` goes on with
    .OUT.partial.lock   held by the run that writes; the system lets go of it when that run ends, in any way
    .OUT.old            what OUT was, for the moment in which the new folder takes its name

What has one of these names, or OUT's, and was not made by this program stops it: nothing of others is followed, removed
or renamed. `own_folders` says how a folder is known; a lock is an empty file.
"""

import errno
import json
import os
import signal
import stat
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from t5_experimental import own_folders

from ..errors import ConversionError
from ..readable import say
from ..signals import terminating_signals
from .paths import check_encodable
from .record import RECORD_FILENAME
from .unchanged import changed_files


if TYPE_CHECKING:
    from filelock import FileLock


# The record of a finished folder, by what the folder is called.
RECORDS = {"converted": RECORD_FILENAME, "exported": "export.json"}


def check_output(output: Path, kind: str, source: Path | None, overwrite: bool) -> None:
    """Raises if a folder of this name cannot or must not be written.

    Args:
        output: name of the folder.
        kind: of it, a key of `RECORDS`.
        source: folder of this disk that is read, if any.
        overwrite: replace what has that name.
    """
    check_encodable(output)
    origin = None if source is None else _resolved(source)
    try:
        place = output.resolve()
        if origin is not None and place in (origin, *origin.parents):
            what = "checkpoint" if kind == "converted" else "model"
            raise ConversionError(f"{output} holds the {what} itself: choose another folder for the output.")
        _check_replaceable(output, kind, overwrite)
        _check_places(output.absolute())
    except (OSError, RuntimeError) as error:  # RuntimeError: a link that leads back to itself.
        raise ConversionError(f"{output} cannot be written: {getattr(error, 'strerror', None) or error}.") from error


def _resolved(source: Path) -> Path:
    try:
        return source.resolve()
    except (OSError, RuntimeError) as error:  # RuntimeError: a link that leads back to itself.
        raise ConversionError(
            f"{source} cannot be read ({getattr(error, 'strerror', None) or error}): give another path."
        ) from error


@contextmanager
def finished_or_nothing(output: Path, kind: str, overwrite: bool, resume: bool = False) -> Iterator[Path]:
    """A hidden folder beside the output, which takes its name on success and is removed on error or interrupt.

    Args:
        output: name of the folder.
        kind: of it, a key of `RECORDS`; the record lists the folder's files when it is complete.
        overwrite: replace what has that name.
        resume: keep what an earlier run, which ended before its time, has left in the hidden folder; and what this one
            leaves if it fails.

    Raises:
        ConversionError: another run writes the same output, something is in the way, or the disk does not take it.
    """
    output = output.absolute()
    folder, old = _partial(output), _old(output)
    created = [parent for parent in output.parents if not parent.exists()]
    try:
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            with _locked(output):
                _check_places(output)
                _recover(output, old)
                # Another run may have finished it meanwhile, or the last one was killed while renaming.
                _check_replaceable(output, kind, overwrite)
                if own_folders.exists(folder) and not resume:
                    say(f"Note: {folder.name}, which an earlier run left, is started over.", to=sys.stderr)
                    own_folders.remove(folder)
                own_folders.begin(folder)
                try:
                    yield folder
                    _list_files(folder, RECORDS[kind])
                    own_folders.flush(folder)
                    with _uninterrupted(f"{output} is complete"):
                        _replace(folder, output, old, kind, overwrite)
                except BaseException as error:
                    if isinstance(error, KeyboardInterrupt) and folder.exists():
                        error.add_note(_left(resume))
                    if not resume:
                        _remove(folder)
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


def _check_replaceable(output: Path, kind: str, overwrite: bool) -> None:
    """Raises if the output's name is taken, but for a folder that is to be replaced; an empty one holds nothing."""
    if not own_folders.exists(output):
        return
    if not overwrite:
        raise ConversionError(f"{output} exists: choose another folder, or pass --overwrite to replace it.")
    # A mistyped path must not cost a user's files.
    why = None if _is_empty(output) else _why_not_ours(output, [RECORDS[kind]])
    if why is not None:
        raise ConversionError(
            f"{output} is not a folder that was {kind} and nothing else ({why}), so --overwrite does not replace it: "
            "move away what is yours, or choose another folder."
        )
    old = _old(output)
    if own_folders.exists(old) and not own_folders.is_marked(old) and not _is_ours(old):
        raise ConversionError(f"{old} is in the way, where {output} goes while it is replaced: remove or rename it.")


def _check_places(output: Path) -> None:
    """Raises if something of others is where this program works."""
    folder, lock = _partial(output), _lock(output)
    if own_folders.exists(folder):
        why = own_folders.why_not_unfinished(folder)
        if why is not None and _is_ours(folder):  # killed when it was complete
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


def _is_ours(folder: Path) -> bool:
    """Whether it is a finished folder, of any kind."""
    return _why_not_ours(folder, RECORDS.values()) is None


def _why_not_ours(folder: Path, records: Iterable[str]) -> str | None:
    """As `own_folders.why_not_finished`; weights that were trained since are the user's."""
    records = list(records)
    why = own_folders.why_not_finished(folder, records)
    if why is not None:
        return why
    for path in (folder / name for name in records if (folder / name).exists()):
        changed = changed_files(folder, json.loads(path.read_bytes()))
        if changed:
            return f"{changed[0]} is not the one that this program wrote"
    return None


def _is_empty(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink() and not any(path.iterdir())


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


def _disk_bytes(status: os.stat_result) -> int:
    """Bytes of disk that a file takes; one that is not written to its end yet has holes."""
    blocks = getattr(status, "st_blocks", None)
    return status.st_size if blocks is None else min(status.st_size, blocks * 512)


def _partial(output: Path) -> Path:
    return output.with_name(f".{output.name}.partial")


def _old(output: Path) -> Path:
    return output.with_name(f".{output.name}.old")


def _lock(output: Path) -> Path:
    return output.with_name(f".{output.name}.partial.lock")


@contextmanager
def _locked(output: Path) -> Iterator[None]:
    from filelock import FileLock, Timeout

    _check_places(output)
    lock = FileLock(_lock(output))
    was_there = own_folders.exists(_lock(output))
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ConversionError(f"another run is writing {output}: wait for it, or choose another folder.") from error
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


def _recover(output: Path, old: Path) -> None:
    """Ends a replacement in whose middle a run was killed; a folder that is not one of ours is let be."""
    if own_folders.is_marked(old):  # its removal had begun
        own_folders.remove(old)
    elif own_folders.exists(old) and _is_ours(old):
        if not own_folders.exists(output):
            own_folders.rename(old, output)
        elif _is_ours(output):
            own_folders.remove(old)


def _remove(folder: Path) -> None:
    """Removes a folder of this program as far as that is possible."""
    with suppress(OSError):
        own_folders.remove(folder)


def _list_files(folder: Path, record: str) -> None:
    """Has the record name all files of a complete folder, by which it is known to hold nothing else."""
    path, draft = folder / record, folder / f"{record}.draft"
    fields = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    fields["files"] = sorted({record, *os.listdir(folder)} - {own_folders.MARK})
    draft.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
    draft.replace(path)


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


def _replace(folder: Path, output: Path, old: Path, kind: str, overwrite: bool) -> None:
    """Gives the folder the output's name; what had it before goes last."""
    # It may have appeared, or got something of others, while this ran.
    _check_replaceable(output, kind, overwrite)
    own_folders.end(folder)
    if _is_empty(output):
        output.rmdir()
    if not own_folders.exists(output):
        own_folders.rename(folder, output)
        return
    own_folders.rename(output, old)
    try:
        own_folders.rename(folder, output)
    except BaseException:
        own_folders.rename(old, output)
        raise
    _remove(old)


def _left(resume: bool) -> str:
    return "finished files are kept for --resume" if resume else "nothing was left behind"


def _os_error(error: OSError, output: Path, resume: bool) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk of {output} is full: make room or choose another disk; {_left(resume)}."
    where = f" ({error.filename})" if error.filename not in (None, str(output)) else ""
    return f"{output} cannot be written: {error.strerror or error}{where}."
