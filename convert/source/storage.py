# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""The folder of a checkpoint, on a disk or on a server, behind one small interface."""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ..errors import ConversionError
from ..tensors import Matrix
from .local_files import LocalFiles
from .matrix import FileMatrix


Range = tuple[str, int, int]
"""Name of a file, first byte, count of bytes."""


class FileMissing(ConversionError):
    """A file is not there; callers that can do without it catch this."""


class Storage(ABC):
    """A folder of files that do not change while it is used.

    Attributes:
        local_folder: path of a folder on this disk; None for a server.
        keeps_copies: files are copied to a disk of this machine, and may be damaged there: see `refetch`.
    """

    local_folder: Path | None = None
    keeps_copies = False

    @abstractmethod
    def list(self) -> list[str] | None:
        """Names of the files, sorted; None where the place cannot tell, as most web servers."""

    @abstractmethod
    def exists(self, name: str) -> bool:
        """Whether a file is there; works without `list`."""

    @abstractmethod
    def size(self, name: str) -> int:
        """Bytes of a file.

        Raises:
            FileMissing: it is not there.
            ConversionError: it cannot be read.
        """

    @abstractmethod
    def read(self, name: str, offset: int, length: int) -> memoryview:
        """Bytes of a file, read-only; valid as long as they are referenced.

        Raises:
            FileMissing: it is not there.
            ConversionError: it cannot be read, ends before, or changed since its size was first asked for.
        """

    @abstractmethod
    def place(self, name: str = "") -> str:
        """Where a file is, or the folder itself, in messages to the user: a full path or address."""

    @abstractmethod
    def describe(self) -> str:
        """Name of the folder for model cards and records: no path of this machine, no credential."""

    @abstractmethod
    def close(self) -> None:
        """Ends everything that runs in the background."""

    def fill(self, name: str, offset: int, target: np.ndarray) -> None:
        """Fills an array (uint8 [bytes]) with bytes of a file. Raises as `read` does."""
        target[...] = np.frombuffer(self.read(name, offset, len(target)), np.uint8)

    def open_matrix(self, name: str, offset: int, row_bytes: int) -> Matrix | None:
        """A matrix in a file whose columns can be read without the rest; None where each read takes too long."""
        return None

    def head(self, name: str, most: int) -> bytes:
        """The first bytes of a file, at most `most`. Raises as `read` does."""
        return bytes(self.read(name, 0, min(self.size(name), most)))

    def expect(self, ranges: Iterable[Range]) -> None:  # noqa: B027
        """Announces everything that is going to be read, in this order, and replaces what was announced before.

        Reading anything else stays possible; it only has to be waited for.
        """

    def will_need(self, name: str, offset: int, size: int) -> None:  # noqa: B027
        """Lets a disk fetch bytes while others are used."""

    def moved_to(self) -> tuple[str, ...]:
        """Folders, as `describe` names them, to which a server has redirected requests."""
        return ()

    def refetch(self, name: str) -> bool:
        """Gives up a copy of a file whose bytes turned out to be damaged, so that it is copied again to be read; False
        if it is no copy, or has been copied again already."""
        return False


class LocalStorage(Storage):
    """A folder on this machine's disk."""

    def __init__(self, folder: Path) -> None:
        self.local_folder: Path = folder
        self._files = LocalFiles()

    def list(self) -> list[str] | None:
        """See `Storage.list`."""
        try:
            return sorted(path.name for path in self.local_folder.iterdir() if path.is_file())
        except OSError as error:
            raise ConversionError(f"{self.local_folder} cannot be read: {error.strerror}.") from error

    def exists(self, name: str) -> bool:
        """See `Storage.exists`."""
        return os.path.isfile(self.place(name))  # Path's method raises for names that are too long

    def size(self, name: str) -> int:
        """See `Storage.size`."""
        path = self.local_folder / name
        try:
            return self._files.size(path)
        except (OSError, ValueError) as error:
            raise FileMissing(f"{path} is missing: copy all files of the checkpoint into one folder.") from error

    def read(self, name: str, offset: int, length: int) -> memoryview:
        """See `Storage.read`."""
        check_range(self, name, offset, length)
        data = np.empty(length, np.uint8)
        if length:
            self.fill(name, offset, data)
        return data.data.toreadonly()

    def head(self, name: str, most: int) -> bytes:
        """See `Storage.head`; also of files whose size says nothing, as in /proc."""
        try:
            with (self.local_folder / name).open("rb") as file:
                return file.read(most)
        except OSError as error:
            raise ConversionError(f"{self.place(name)} cannot be read: {error.strerror}.") from error

    def fill(self, name: str, offset: int, target: np.ndarray) -> None:
        """See `Storage.fill`."""
        self._files.fill(self.local_folder / name, offset, target)

    def open_matrix(self, name: str, offset: int, row_bytes: int) -> Matrix | None:
        """See `Storage.open_matrix`."""
        return FileMatrix(self._files, self.local_folder / name, offset, row_bytes)

    def will_need(self, name: str, offset: int, size: int) -> None:
        """See `Storage.will_need`."""
        self._files.will_need(self.local_folder / name, offset, size)

    def place(self, name: str = "") -> str:
        """See `Storage.place`."""
        return str(self.local_folder / name)

    def is_current(self, name: str) -> bool:
        """Whether a file that was read is still the one of that name."""
        return self._files.is_current(self.local_folder / name)

    def forget(self, name: str) -> None:
        """Lets another file have this name from now on."""
        self._files.forget(self.local_folder / name)

    def describe(self) -> str:
        """Name of the folder without what is above it."""
        return Path(os.path.abspath(self.local_folder)).name

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
