# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Files of a server kept on disk, for the next run or for a link that breaks every hour."""

import errno
import hashlib
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ..errors import ConversionError
from ..tensors import Matrix
from .remote import RemoteStorage
from .storage import LocalStorage, Storage, check_range


# Files up to this size are kept with a checksum of ours, since no index has one of them: the vocabulary, say.
# They come with a single request, and are never continued.
_SMALL_BYTES = 2**24

# Another run that downloads the same file may take hours; one whose file does not grow is stuck.
_STUCK_SECONDS = 600


class CachedStorage(Storage):
    """A folder on a server that copies each file completely before anything of it is read, and never copies it twice.

    CACHE/HOST-FOLDER-HASH/VERSION.NAME is a complete file: it has this name only since then. A file of the same name
    with ".partial" behind it is the beginning of one, and a download goes on where it ends. A file that changed on the
    server has another version. Of several runs that need the same file one downloads it and the others wait.

    A disk may lose what it was given. Small files are compared with VERSION.NAME.sha256, and fetched again if they
    differ; of a server that tells no version they are fetched by every run. Of large ones the reader knows checksums,
    and calls `refetch`.
    """

    keeps_copies = True

    def __init__(self, remote: RemoteStorage, cache_dir: Path) -> None:
        """Writes nothing yet.

        Args:
            remote: where the files are.
            cache_dir: folder for all folders.
        """
        shown = remote.describe()
        readable = re.sub(r"[^\w.-]+", "-", shown.partition("://")[2])[-80:].strip("-.")
        self.folder = cache_dir.expanduser() / f"{readable}-{_digest(shown)}"
        self._remote = remote
        self._local = LocalStorage(self.folder)
        self._complete: dict[str, str] = {}
        self._fetched: set[str] = set()

    def list(self) -> list[str] | None:
        """See `Storage.list`."""
        return self._remote.list()

    def exists(self, name: str) -> bool:
        """See `Storage.exists`."""
        return self._remote.exists(name)

    def size(self, name: str) -> int:
        """See `Storage.size`."""
        return self._remote.size(name)

    def read(self, name: str, offset: int, length: int) -> memoryview:
        """See `Storage.read`; the first time it takes as long as downloading the file does."""
        check_range(self, name, offset, length)
        return self._local.read(self._stored(name), offset, length)

    def fill(self, name: str, offset: int, target: np.ndarray) -> None:
        """See `Storage.fill`."""
        self._local.fill(self._stored(name), offset, target)

    def open_matrix(self, name: str, offset: int, row_bytes: int) -> Matrix | None:
        """See `Storage.open_matrix`."""
        return self._local.open_matrix(self._stored(name), offset, row_bytes)

    def will_need(self, name: str, offset: int, size: int) -> None:
        """See `Storage.will_need`."""
        self._local.will_need(self._stored(name), offset, size)

    def describe(self) -> str:
        """See `Storage.describe`."""
        return self._remote.describe()

    def close(self) -> None:
        """See `Storage.close`."""
        self._local.close()
        self._remote.close()

    def moved_to(self) -> tuple[str, ...]:
        """See `Storage.moved_to`."""
        return self._remote.moved_to()

    def refetch(self, name: str) -> bool:
        """See `Storage.refetch`."""
        if name in self._fetched:
            return False
        self._fetched.add(name)
        path = self.folder / self._complete.pop(name)
        try:
            with self._locked(name, path):
                # Another run that found the same has put another file there.
                is_current = self._local.is_current(path.name)
                self._local.forget(path.name)  # Windows removes no open file.
                if is_current:
                    path.unlink()
        except OSError as error:
            raise ConversionError(f"{path} is damaged and cannot be removed: {error.strerror or error}.") from error
        return True

    def place(self, name: str = "") -> str:
        """See `Storage.place`."""
        again = ", although it was fetched again" if name in self._fetched else ""
        return f"{self.folder / self._complete[name]}{again}" if name in self._complete else self._remote.place(name)

    def _stored(self, name: str) -> str:
        """Name in the cache of a file, which is complete then."""
        if name not in self._complete:
            size = self._remote.size(name)
            stored = f"{_digest(f'{size} {self._remote.version(name)}')}.{name}"
            path = self.folder / stored
            try:
                if not self._is_kept(name, path, size):
                    self._download(name, path, size)
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise ConversionError(
                        f"the disk of {self.folder} is full: make room and run the command again, which goes on where "
                        "it stopped."
                    ) from error
                raise ConversionError(f"{self.folder} cannot be written: {error.strerror or error}.") from error
            self._complete[name] = stored
        return self._complete[name]

    def _is_kept(self, name: str, path: Path, size: int) -> bool:
        """Whether the cache has a file, and it is what it was."""
        if not path.is_file() or path.stat().st_size != size:
            return False
        return size > _SMALL_BYTES or (self._remote.version(name) is not None and _checksum(path) == _noted(path))

    def _download(self, name: str, path: Path, size: int) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.partial")
        with self._locked(name, path):
            if self._is_kept(name, path, size):
                return
            if size <= _SMALL_BYTES:
                partial.unlink(missing_ok=True)
            if not partial.exists():
                self._fetched.add(name)
            _append(self._remote, name, partial, size)
            if size <= _SMALL_BYTES:
                _note(path, _checksum(partial))
            os.replace(partial, path)

    @contextmanager
    def _locked(self, name: str, path: Path) -> Iterator[None]:
        """Waits until no other run downloads a file."""
        from filelock import FileLock, Timeout

        partial = path.with_name(f"{path.name}.partial")
        lock = FileLock(path.with_name(f"{path.name}.lock"))
        grown, since = -1, time.monotonic()
        while True:
            try:
                lock.acquire(timeout=1)
                break
            except Timeout:
                have = partial.stat().st_size if partial.exists() else 0
                if have != grown:
                    grown, since = have, time.monotonic()
                elif time.monotonic() - since > _STUCK_SECONDS:
                    raise ConversionError(
                        f"another process has been downloading {name} to {self.folder} for long without getting on: "
                        "end it, or choose another folder."
                    ) from None
        try:
            yield
        finally:
            lock.release()


def _append(remote: RemoteStorage, name: str, partial: Path, size: int) -> None:
    """Downloads what a partial file lacks."""
    with partial.open("ab") as file:
        at = file.tell()
        if at > size:
            at = file.truncate(0)
        free = shutil.disk_usage(partial.parent).free
        if free < size - at:
            raise ConversionError(
                f"{(size - at) / 1e9:.2f} GB are needed for {name}, but the disk of {partial.parent} has "
                f"{free / 1e9:.2f} GB free: make room or choose another folder."
            )
        remote.expect([(name, at, size - at)])
        try:
            while at < size:
                length = min(remote.block_bytes, size - at)
                file.write(remote.read(name, at, length))
                at += length
        finally:
            remote.close()
        file.flush()
        os.fsync(file.fileno())


def _checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _note(path: Path, checksum: str) -> None:
    """Notes the checksum of a file that is going to be there."""
    path.with_name(f"{path.name}.sha256").write_text(f"{checksum}\n", encoding="ascii")


def _noted(path: Path) -> str:
    """The noted checksum of a file, or nothing."""
    try:
        return path.with_name(f"{path.name}.sha256").read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()[:12]
