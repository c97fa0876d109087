# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Where the files of a checkpoint's folder are, seen through one small interface: a disk, or a server far away."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import numpy as np

from ..errors import ConversionError
from .local_files import LocalFiles


_MAX_TEXT_BYTES = 2**24

Range = tuple[str, int, int]
"""Name of a file, first byte, count of bytes."""


class FileMissing(ConversionError):
    """A file is not there; who can do without it catches this."""


class Storage(Protocol):
    """A folder of files that do not change while it is used.

    Attributes:
        keeps_copies: files are copied to a disk of this machine, and may be damaged there: see `refetch`.
    """

    keeps_copies: bool

    def list(self) -> list[str] | None:
        """Names of the files, sorted; None where the place cannot tell, as most web servers."""

    def exists(self, name: str) -> bool:
        """Whether a file is there; works without `list`."""

    def size(self, name: str) -> int:
        """Bytes of a file.

        Raises:
            FileMissing: it is not there.
            ConversionError: it cannot be read.
        """

    def read(self, name: str, offset: int, length: int) -> memoryview:
        """Bytes of a file, read-only; valid as long as they are referenced.

        Raises:
            FileMissing: it is not there.
            ConversionError: it cannot be read, ends before, or changed since its size was first asked for.
        """

    def text(self, name: str) -> str:
        """All of a small text file. Raises as `read` does."""

    def expect(self, ranges: Iterable[Range]) -> None:
        """Announces everything that is going to be read, in this order, and replaces what was announced before.

        Reading anything else stays possible; it only has to be waited for.
        """

    def moved_to(self) -> tuple[str, ...]:
        """Folders, as `describe` names them, to which a server has redirected requests."""

    def refetch(self, name: str) -> bool:
        """Gives up a copy of a file whose bytes turned out to be damaged, so that it is copied again to be read; False
        if it is no copy, or has been copied again already."""

    def place(self, name: str) -> str:
        """Where the bytes of a file were read, for messages about damage."""

    def describe(self) -> str:
        """Name for messages and model cards: no path of this machine, no credential."""

    def close(self) -> None:
        """Ends everything that runs in the background."""


def read_text(storage: Storage, name: str) -> str:
    """Implements `Storage.text` on top of the other methods."""
    size = storage.size(name)
    if size > _MAX_TEXT_BYTES:
        raise ConversionError(f"{name} in {storage.describe()} has {size} bytes, so it is not the text it should be.")
    return bytes(storage.read(name, 0, size)).decode("utf-8", errors="replace")


class LocalStorage:
    """A folder on this machine's disk."""

    keeps_copies = False

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files = LocalFiles()

    def list(self) -> list[str] | None:
        """See `Storage.list`."""
        try:
            return sorted(path.name for path in self.folder.iterdir() if path.is_file())
        except OSError as error:
            raise ConversionError(f"{self.folder} cannot be read: {error.strerror}.") from error

    def exists(self, name: str) -> bool:
        """See `Storage.exists`."""
        return (self.folder / name).is_file()

    def size(self, name: str) -> int:
        """See `Storage.size`."""
        path = self.folder / name
        if not path.is_file():
            raise FileMissing(f"{path} is missing: copy all files of the checkpoint into one folder.")
        return self._files.size(path)

    def read(self, name: str, offset: int, length: int) -> memoryview:
        """See `Storage.read`."""
        check_range(self, name, offset, length)
        data = np.empty(length, np.uint8)
        if length:
            self._files.fill(self.folder / name, offset, data)
        return data.data.toreadonly()

    def text(self, name: str) -> str:
        """See `Storage.text`."""
        return read_text(self, name)

    def expect(self, ranges: Iterable[Range]) -> None:
        """The operating system reads ahead by itself."""

    def moved_to(self) -> tuple[str, ...]:
        """Disks do not redirect."""
        return ()

    def refetch(self, name: str) -> bool:
        """The files are no copies."""
        return False

    def place(self, name: str) -> str:
        """See `Storage.place`."""
        return str(self.folder / name)

    def is_current(self, name: str) -> bool:
        """Whether a file that was read is still the one of that name."""
        return self._files.is_current(self.folder / name)

    def forget(self, name: str) -> None:
        """Lets another file have this name from now on."""
        self._files.forget(self.folder / name)

    def describe(self) -> str:
        """Name of the folder without what is above it."""
        return Path(os.path.abspath(self.folder)).name

    def close(self) -> None:
        """Closes the files; bytes that were read stay as they are."""
        self._files.close()


def check_range(storage: Storage, name: str, offset: int, length: int) -> None:
    """Raises if bytes are not inside of their file."""
    size = storage.size(name)
    if offset < 0 or length < 0 or offset + length > size:
        raise ConversionError(
            f"{name} in {storage.describe()} is cut off: it has {size} bytes, but bytes {offset} to {offset + length} "
            "are needed; copy it again."
        )
