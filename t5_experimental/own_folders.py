# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Folders that this program makes and removes: it knows them again by a record inside, and touches no others.

While a folder is written, or removed, the first file in it is `MARK`, and the last to go. A finished folder has a
record in JSON that lists all its files. No link is followed to either of them, and nothing else counts: not a name, and
not what looks like a model or a checkpoint.
"""

import errno
import json
import os
import shutil
import stat
from collections.abc import Iterable
from pathlib import Path


MARK = "t5-experimental.mark"
"""The file by which an unfinished folder is known."""

_MARK_TEXT = b"t5-experimental writes into this folder and removes it: put nothing of your own here.\n"

_MAX_RECORD_BYTES = 2**26


def exists(path: Path) -> bool:
    """Whether there is anything of that name; a link that leads nowhere is something."""
    return os.path.lexists(path)


def begin(folder: Path) -> None:
    """Makes an unfinished folder, or marks one of this program's once more.

    Raises:
        FileExistsError: something else has that name.
    """
    if exists(folder) and why_not_unfinished(folder) is not None:
        raise FileExistsError(errno.EEXIST, "it was made by another program", str(folder))
    folder.mkdir(exist_ok=True)
    _mark(folder)


def remove(folder: Path) -> None:
    """Removes an unfinished or finished folder of this program, links in it but not what they lead to.

    It is known as unfinished until nothing of it is left, so that whatever ends this in the middle, it can go on.
    """
    _mark(folder)
    # First what others take a folder for a model or a checkpoint by.
    for path in sorted(folder.iterdir(), key=lambda path: path.name not in ("config.json", "checkpoint")):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != MARK:
            path.unlink()
    end(folder)
    folder.rmdir()


def end(folder: Path) -> None:
    """Takes the mark away, as from a folder whose record of a finished one is written."""
    (folder / MARK).unlink(missing_ok=True)


def is_marked(folder: Path) -> bool:
    """Whether it is an unfinished folder of this program with its whole mark."""
    return folder.is_dir() and not folder.is_symlink() and _content(folder / MARK) == _MARK_TEXT


def why_not_unfinished(folder: Path) -> str | None:
    """Why something is not an unfinished folder of this program: a clause; None if it is one, or is not there.

    It is one if it has the mark, or nothing but the beginning of it, or is empty. Another process may make or remove
    the folder meanwhile.
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
    """Why something that exists is not a finished folder of this program, and nothing else: a clause; None if it is.

    Args:
        folder: what is looked at.
        records: names of files, one of which is the record: JSON of a table whose `files` are the names of all files.
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
    """A clause about something in a folder that is no file but, say, a link or a folder; None if there is none."""
    with os.scandir(folder) as entries:
        others = sorted(entry.name for entry in entries if not entry.is_file(follow_symlinks=False))
    return f"it holds {others[0]}, which is not a file, so this program did not write it" if others else None


def _mark(folder: Path) -> None:
    # A program that is killed here leaves an empty folder, or the beginning of the mark, which are known, too.
    if _content(folder / MARK) != _MARK_TEXT:
        (folder / MARK).write_bytes(_MARK_TEXT)


def _why_not_a_folder(folder: Path) -> str | None:
    mode = folder.lstat().st_mode
    if stat.S_ISLNK(mode):
        return "it is a link"
    return None if stat.S_ISDIR(mode) else "it is not a folder"


def _listed(record: Path) -> set[str] | None:
    """Names that a record lists; None if it is none."""
    content = _content(record)
    try:
        files = json.loads(content or b"")["files"]
        return (
            {*files, record.name} if isinstance(files, list) and all(isinstance(name, str) for name in files) else None
        )
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _content(path: Path) -> bytes | None:
    """Bytes of a file; None if there is none, or something else, or one that is too large to be a record."""
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > _MAX_RECORD_BYTES:
            return None
        return path.read_bytes()
    except OSError:
        return None
