# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Files of this disk, read by position into memory of the caller's.

They are never mapped: the system ends a process that touches a mapped page which is not in its file any more, and no
exception is raised. A file that shrinks, grows or is written to while it is used is an error with a message. One that
is replaced by another of its name stays what it was as long as it is open.
"""

import os
import stat
import weakref
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import ConversionError


# A checkpoint of a thousand files must not use up what a process may have open.
MAX_OPEN_FILES = 64

# The first is where it exists: opening a FIFO waits for who writes to it.
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)


@dataclass(frozen=True)
class Identity:
    """What stays the same until a file is written to, or replaced."""

    device: int
    inode: int
    size: int
    modified: int

    @classmethod
    def of(cls, status: os.stat_result) -> "Identity":
        """That of a file with this status."""
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


class _OpenFile:
    """A descriptor that is closed when nothing refers to it any more."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, _FLAGS)
        weakref.finalize(self, os.close, self.descriptor)


class LocalFiles:
    """Some files, of which at most `MAX_OPEN_FILES` are open at a time."""

    def __init__(self) -> None:
        self._open: dict[Path, _OpenFile] = {}
        self._identities: dict[Path, Identity] = {}

    def size(self, path: Path) -> int:
        """Bytes of a file, which must stay as it is from the first call for it on.

        Raises:
            FileNotFoundError: there is none.
            OSError: the system says so.
            ConversionError: it is no file.
        """
        if path not in self._identities:
            self._identities[path] = self._identity(path, path.stat())
        return self._identities[path].size

    def identity(self, path: Path) -> Identity:
        """What tells a file from what it would be if it were written to. Raises as `size` does."""
        self.size(path)
        return self._identities[path]

    def fill(self, path: Path, offset: int, target: np.ndarray) -> None:
        """Fills an array with the bytes of a file.

        Args:
            path: of the file.
            offset: of the first byte.
            target: uint8 [bytes], or [rows, bytes]; the bytes of a row must be neighbors.

        Raises:
            ConversionError: it cannot be read, or is not what it was.
        """
        self.fill_rows(path, offset, 0, target.reshape(1, -1) if target.ndim == 1 else target)

    def fill_rows(self, path: Path, offset: int, distance: int, target: np.ndarray) -> None:
        """Fills each row of an array (uint8 [rows, bytes]) from the file, `distance` bytes behind
        where the row before began. Raises as `fill` does."""
        try:
            file = self._opened(path)
            for k in range(len(target)):
                self._read(path, file, offset + k * distance, memoryview(target[k]))
            if Identity.of(os.fstat(file.descriptor)) != self._identities[path]:
                raise ConversionError(_changed(path))
        except OSError as error:
            raise ConversionError(f"{path} cannot be read: {error.strerror or error}.") from error

    def will_need(self, path: Path, offset: int, size: int) -> None:
        """Lets the disk fetch bytes, if the system has the notion, while others are used."""
        if size > 0 and path in self._open and hasattr(os, "posix_fadvise"):
            with suppress(OSError):  # It is advice only.
                os.posix_fadvise(self._open[path].descriptor, offset, size, os.POSIX_FADV_WILLNEED)

    def is_current(self, path: Path) -> bool:
        """Whether a file that was used is still what has its name."""
        try:
            return self._identities.get(path) == Identity.of(path.stat())
        except OSError:
            return False

    def forget(self, path: Path) -> None:
        """Lets another file have this name from now on."""
        self._open.pop(path, None)
        self._identities.pop(path, None)

    def close(self) -> None:
        """Closes the files; they are opened again if they are needed."""
        self._open.clear()

    def _opened(self, path: Path) -> _OpenFile:
        if path not in self._open:
            self.size(path)
            while len(self._open) >= MAX_OPEN_FILES:
                del self._open[next(iter(self._open))]
            file = _OpenFile(path)
            if self._identity(path, os.fstat(file.descriptor)) != self._identities[path]:
                raise ConversionError(_changed(path))
            self._open[path] = file
        return self._open[path]

    def _identity(self, path: Path, status: os.stat_result) -> Identity:
        if not stat.S_ISREG(status.st_mode):
            raise ConversionError(f"{path} is not a file: copy all files into one folder.")
        return Identity.of(status)

    def _read(self, path: Path, file: _OpenFile, offset: int, target: memoryview) -> None:
        done = 0
        while done < len(target):
            count = read_at(file.descriptor, offset + done, target[done:])
            if not count:
                raise ConversionError(_changed(path))
            done += count


def read_at(descriptor: int, offset: int, target: memoryview) -> int:
    """Fills some of the target with bytes of an open file; returns how many, which are 0 at its end."""
    if hasattr(os, "preadv"):
        return os.preadv(descriptor, [target], offset)
    os.lseek(descriptor, offset, os.SEEK_SET)
    data = os.read(descriptor, len(target))
    target[: len(data)] = data
    return len(data)


def _changed(path: Path) -> str:
    return f"{path} changed while it was read: run the command again when nothing writes to it."
