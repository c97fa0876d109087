# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""What Windows forbids and lacks, pretended on another system.

Files that are open can be neither removed, renamed nor replaced, and no folder that holds one can be renamed; only
files that are open for writing can be flushed; folders cannot be opened; a rename never replaces anything; and there is
no `pread`, and no signal but a few. Source: the documentation of Python's `os` and of Microsoft's
`MoveFileExW`, `DeleteFileW`, `FlushFileBuffers`.
"""

import errno
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest import mock

from t5_experimental import own_folders


SIGBREAK = signal.SIGUSR2
"""Stands for the signal of Ctrl-Break and of a window that is closed, which has another number here."""

_LACKING = ("preadv", "pread", "pwrite", "posix_fadvise", "geteuid")


@contextmanager
def windows_rules() -> Iterator[None]:
    """Inside, this process is treated as Windows would treat it."""
    unlink, rename, replace, fsync, opened = os.unlink, os.rename, os.replace, os.fsync, os.open

    def checked_unlink(path: Any, *, dir_fd: int | None = None) -> None:
        _check_closed(path)
        unlink(path, dir_fd=dir_fd)

    def checked_rename(source: Any, target: Any, **options: Any) -> None:
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, "it exists already", os.fspath(target))
        _check_closed(source)
        rename(source, target, **options)

    def checked_replace(source: Any, target: Any, **options: Any) -> None:
        if os.path.isdir(target):
            raise PermissionError(errno.EACCES, "a folder cannot be replaced", os.fspath(target))
        _check_closed(source)
        _check_closed(target)
        replace(source, target, **options)

    def checked_fsync(descriptor: int) -> None:
        flags = Path(f"/proc/self/fdinfo/{descriptor}").read_text(encoding="ascii").split("flags:")[1].split()[0]
        if int(flags, 8) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "it is open for reading alone")
        fsync(descriptor)

    def checked_open(path: Any, flags: int, *others: Any, **options: Any) -> int:
        if "dir_fd" not in options and os.path.isdir(path):
            raise PermissionError(errno.EACCES, "a folder cannot be opened", os.fspath(path))
        return opened(path, flags, *others, **options)

    with (
        mock.patch.multiple(
            os, unlink=checked_unlink, remove=checked_unlink, rename=checked_rename, replace=checked_replace
        ),
        mock.patch.multiple(os, fsync=checked_fsync, open=checked_open),
        mock.patch.object(own_folders, "WINDOWS", True),
        mock.patch.object(shutil, "_use_fd_functions", False),
        mock.patch.object(signal, "SIGBREAK", SIGBREAK, create=True),
        _without(os, _LACKING),
        _without(signal, ("SIGCHLD", "SIGHUP", "SIGPIPE", "SIGUSR1")),
    ):
        yield


@contextmanager
def _without(module: Any, names: tuple[str, ...]) -> Iterator[None]:
    had = {name: getattr(module, name) for name in names if hasattr(module, name)}
    for name in had:
        delattr(module, name)
    try:
        yield
    finally:
        for name, value in had.items():
            setattr(module, name, value)


def _open_files() -> Iterator[str]:
    for entry in os.scandir("/proc/self/fd"):
        with suppress(OSError):
            yield os.readlink(entry.path)


def _check_closed(path: Any) -> None:
    """Raises if a file, or anything in a folder, is open or mapped in this process."""
    place = Path(os.path.abspath(os.fspath(path)))
    for held in map(Path, _open_files()):
        if held == place or place in held.parents:
            raise PermissionError(errno.EACCES, f"{held.name} is open", str(place))
    if any(f" {place}{end}" in Path("/proc/self/maps").read_text(encoding="utf-8") for end in ("\n", "/")):
        raise PermissionError(errno.EACCES, "it is mapped", str(place))
