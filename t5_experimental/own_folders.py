# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Folders that this program creates and removes. It recognizes them by a file inside, and touches no others.

`MARK` is the first file written into a folder, and the last one removed from it. A finished folder has a JSON record
that lists all its files. Links to either do not count, and neither do names, or files that look like a model or a
checkpoint.
"""

import errno
import json
import os
import shutil
import stat
import time
from collections.abc import Iterable
from pathlib import Path


MARK = "t5-experimental.mark"
"""Name of the file that marks an unfinished folder."""

_MARK_TEXT = b"t5-experimental writes into this folder and removes it: put nothing of your own here.\n"

_MAX_RECORD_BYTES = 2**26

WINDOWS = os.name == "nt"

# On Windows a file that another program has open, such as a virus scanner, cannot be renamed, nor can its folder.
_TRIES = 10
_SECONDS_BETWEEN_TRIES = 0.5


def exists(path: Path) -> bool:
    """Whether a path exists, broken links included."""
    return os.path.lexists(path)


def begin(folder: Path) -> None:
    """Creates an unfinished folder, or marks an existing unfinished one again.

    Raises:
        FileExistsError: something else has that name.
    """
    if exists(folder) and why_not_unfinished(folder) is not None:
        raise FileExistsError(errno.EEXIST, "it was made by another program", str(folder))
    folder.mkdir(exist_ok=True)
    _mark(folder)


def remove(folder: Path) -> None:
    """Removes an unfinished or finished folder of this program; does not follow links in it.

    The folder is marked as unfinished until it is gone, so that an interrupted removal can be completed later.
    """
    _mark(folder)
    # First the files by which other programs recognize a model or a checkpoint.
    for path in sorted(folder.iterdir(), key=lambda path: path.name not in ("config.json", "checkpoint")):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != MARK:
            path.unlink()
    end(folder)
    folder.rmdir()


def end(folder: Path) -> None:
    """Removes the mark, after the record of a finished folder is written."""
    (folder / MARK).unlink(missing_ok=True)


def rename(folder: Path, name: Path) -> None:
    """Gives a folder a name that nothing has; on Windows, waits a moment for programs that have its files open.

    Raises:
        OSError: the system does not allow it.
    """
    for _ in range(_TRIES - 1 if WINDOWS else 0):
        try:
            os.rename(folder, name)
            return
        except PermissionError:
            time.sleep(_SECONDS_BETWEEN_TRIES)
    os.rename(folder, name)


def flush(folder: Path) -> None:
    """Flushes the files of a folder, and the names in it, to disk: they survive a power failure."""
    for path in (*folder.rglob("*"), folder):
        if path.is_file() or path.is_dir():  # opening a FIFO would wait for its writer
            flush_one(path)


def flush_one(path: Path) -> None:
    """Flushes a file's bytes, or the names in a folder, to disk."""
    is_folder = path.is_dir()
    if WINDOWS and is_folder:  # where folders cannot be opened
        return
    # Windows flushes what is open for writing; elsewhere reading is enough, and may be all that is allowed.
    handle = os.open(path, os.O_RDWR if WINDOWS else os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if not is_folder or error.errno not in (errno.EINVAL, errno.EBADF):  # network disks flush no folders
            raise
    finally:
        os.close(handle)


def is_marked(folder: Path) -> bool:
    """Whether this is an unfinished folder of this program with a complete mark."""
    return folder.is_dir() and not folder.is_symlink() and _content(folder / MARK) == _MARK_TEXT


def why_not_unfinished(folder: Path) -> str | None:
    """The reason why a path is not an unfinished folder of this program, as a clause; None if it is, or is missing.

    It is one if it has the mark, only the beginning of it, or no file at all. Another process may create or remove the
    folder at the same time.
    """
    try:
        why = _why_not_a_folder(folder)
        if why is not None:
            return why
        before = _content(folder / MARK)
        names = os.listdir(folder)
    except FileNotFoundError:
        return None
    after = _content(folder / MARK)
    if _MARK_TEXT in (before, after) or not names:
        return None
    if after is not None and names == [MARK] and _MARK_TEXT.startswith(after):
        return None
    return f"it has no file {MARK}, which this program writes first"


def why_not_finished(folder: Path, records: Iterable[str]) -> str | None:
    """The reason why an existing path is not just a finished folder of this program, as a clause; None if it is.

    Args:
        folder: the path.
        records: possible file names of the record, a JSON object whose `files` lists the names of all files.
    """
    why = _why_not_a_folder(folder)
    if why is not None:
        return why
    names = set(os.listdir(folder))
    records = [name for name in records if name in names]
    listed = [files for name in records if (files := _listed(folder / name)) is not None]
    if not listed:
        return f"its {records[0]} does not list its files" if records else "no record says that this program wrote it"
    others = sorted(names - set().union(*listed) - {MARK})
    return f"it holds {others[0]}, which this program did not write" if others else why_not_files(folder)


def why_not_files(folder: Path) -> str | None:
    """A clause about the first link, folder or other non-file in a folder; None if there are only files."""
    with os.scandir(folder) as entries:
        others = sorted(entry.name for entry in entries if not entry.is_file(follow_symlinks=False))
    return f"it holds {others[0]}, which is not a file, so this program did not write it" if others else None


def _mark(folder: Path) -> None:
    # If killed here, it leaves an empty folder or the beginning of the mark, which are recognized, too.
    if _content(folder / MARK) != _MARK_TEXT:
        (folder / MARK).write_bytes(_MARK_TEXT)


def _why_not_a_folder(folder: Path) -> str | None:
    mode = folder.lstat().st_mode
    if stat.S_ISLNK(mode):
        return "it is a link"
    return None if stat.S_ISDIR(mode) else "it is not a folder"


def _listed(record: Path) -> set[str] | None:
    """File names in a record; None if it is not a record."""
    content = _content(record)
    try:
        files = json.loads(content or b"")["files"]
        return (
            {*files, record.name} if isinstance(files, list) and all(isinstance(name, str) for name in files) else None
        )
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _content(path: Path) -> bytes | None:
    """Bytes of a file; None if it is missing, not a file, or too large for a record."""
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > _MAX_RECORD_BYTES:
            return None
        return path.read_bytes()
    except OSError:
        return None
