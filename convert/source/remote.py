# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Reading a checkpoint's folder on a server as if it were here: range requests, second tries, blocks fetched ahead."""

import asyncio
import concurrent.futures
import sys
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any
from urllib.parse import unquote, urlsplit

from ..errors import ConversionError
from .patience import Patience, Rate
from .read_ahead import BLOCK_BYTES, DEPTH, Block, ReadAhead, blocks_of, wait
from .storage import FileMissing, Range, Storage, check_range
from .transports import Answer, Forbidden, Timeouts, Transient, Transport, WebTransport


SCHEMES = ("gs", "s3", "https", "http")

# After this much progress a broken connection gets as many tries as a new one.
_PROGRESS_BYTES = 256 * 2**10


class RemoteStorage(Storage):
    """A folder on a server.

    Requests run on the event loop of fsspec's own thread, so that nothing here has to be stopped: what is not awaited
    any more is cancelled there.
    """

    def __init__(
        self,
        folder: str,
        patience: Patience | None = None,
        block_bytes: int = BLOCK_BYTES,
        depth: int = DEPTH,
    ) -> None:
        """Opens no connection.

        Args:
            folder: address, one of `SCHEMES`.
            patience: for failures.
            block_bytes: most bytes of a request.
            depth: blocks to fetch ahead.

        Raises:
            ConversionError: the address is none, or a package is missing.
        """
        self.url = folder
        self._label = label(folder)
        self._patience = patience or Patience()
        self.block_bytes = block_bytes
        self._depth = depth
        self._transport = _transport(folder, self._patience.timeouts, self._label)
        self._files: dict[str, tuple[int, str | None]] = {}
        self._ahead: ReadAhead | None = None
        self._has_answered = False
        self._noted: set[str] = set()
        self._addresses: dict[str, None] = {}

    def list(self) -> list[str] | None:
        """See `Storage.list`."""
        return wait(self._start(_in_time(self._transport.names(), self._patience.timeouts.head)))

    def exists(self, name: str) -> bool:
        """See `Storage.exists`."""
        try:
            self.size(name)
        except FileMissing:
            return False
        except Forbidden:
            # S3 says so of files that do not exist, to users who may not list the folder.
            if urlsplit(self.url).scheme != "s3":
                raise
            return name in (self.list() or [])
        return True

    def size(self, name: str) -> int:
        """See `Storage.size`."""
        return self._file(name)[0]

    def version(self, name: str) -> str | None:
        """What changes whenever the file does, if the server tells."""
        return self._file(name)[1]

    def read(self, name: str, offset: int, length: int) -> memoryview:
        """See `Storage.read`."""
        check_range(self, name, offset, length)
        if not length:
            return memoryview(b"")
        data = self._ahead.take(name, offset, offset + length) if self._ahead else None
        if data is None:
            only = self._read_ahead([(name, offset, length)])
            try:
                data = only.take(name, offset, offset + length)
            finally:
                only.close()
        assert data is not None
        return data

    def expect(self, ranges: Iterable[Range]) -> None:
        """See `Storage.expect`."""
        self.close()
        self._ahead = self._read_ahead(ranges)

    def moved_to(self) -> tuple[str, ...]:
        """See `Storage.moved_to`."""
        return tuple(self._addresses)

    def place(self, name: str = "") -> str:
        """See `Storage.place`."""
        return f"{self._label}/{name}" if name else self._label

    def describe(self) -> str:
        """See `Storage.describe`."""
        return self._label

    def close(self) -> None:
        """See `Storage.close`."""
        if self._ahead:
            self._ahead.close()
            self._ahead = None

    def _read_ahead(self, ranges: Iterable[Range]) -> ReadAhead:
        return ReadAhead(
            lambda block: self._start(self._fetch(block)), blocks_of(ranges, self.block_bytes), self._depth
        )

    def _start(self, work: Any) -> "concurrent.futures.Future[Any]":
        return asyncio.run_coroutine_threadsafe(work, self._transport.loop)

    def _file(self, name: str) -> tuple[int, str | None]:
        if name not in self._files:
            self._files[name] = wait(self._start(self._probe(name)))
        return self._files[name]

    async def _probe(self, name: str) -> tuple[int, str | None]:
        """Size and version, out of the answer to a request for one byte: not every server answers HEAD."""

        async def ask() -> tuple[int, str | None]:
            async with self._transport.get(name, 0, 1) as answer:
                self._note_address(answer)
                async for _ in answer.chunks:
                    break  # A connection can be used again only when everything sent was read.
                return answer.size, answer.version

        return await self._patiently(name, ask, lambda: 0)

    async def _fetch(self, block: Block) -> bytearray:
        data = bytearray(block.stop - block.start)
        done = 0

        async def ask() -> None:
            nonlocal done
            async with self._transport.get(block.name, block.start + done, block.stop) as answer:
                self._check_same(block.name, answer)
                self._note_address(answer)
                rate = Rate(self._patience)
                async for chunk in answer.chunks:
                    rate.check(len(chunk))
                    # A server that ignores the range's end sends more than it was asked for.
                    chunk = chunk[: len(data) - done]
                    data[done : done + len(chunk)] = chunk
                    done += len(chunk)
                    if done == len(data):
                        return
            raise Transient(f"only {done} of {len(data)} bytes came")

        await self._patiently(block.name, ask, lambda: done)
        return data

    async def _patiently(self, name: str, ask: Callable[[], Awaitable[Any]], progress: Callable[[], int]) -> Any:
        """Asks until there is an answer, or too many failures in a row."""
        failures = 0
        before = progress()
        while True:
            try:
                result = await ask()
                self._has_answered = True
                self._noted.clear()
                return result
            except Transient as error:
                failures = 1 if progress() - before >= _PROGRESS_BYTES else failures + 1
                before = progress()
                is_mute = bool(error.waited) and not self._has_answered
                if failures >= (self._patience.mute_tries if is_mute else self._patience.tries):
                    raise ConversionError(
                        f"{name} in {self._label} cannot be read: {error} ({failures} tries); try again later."
                    ) from error
                if error.waited:
                    self._note(f"{self._label}: {error}; asking again, {self._patience.tries - failures} more times.")
                await asyncio.sleep(self._patience.pause(failures, error.retry_after))

    def _note(self, text: str) -> None:
        """Tells the user why it takes so long; of blocks that are fetched at the same time, one does."""
        if text not in self._noted:
            self._noted.add(text)
            print(f"Note: {text}", file=sys.stderr, flush=True)

    def _note_address(self, answer: Answer) -> None:
        if answer.address:
            self._addresses[label(answer.address.partition("?")[0].rpartition("/")[0])] = None

    def _check_same(self, name: str, answer: Answer) -> None:
        size, version = self._files.get(name, (answer.size, answer.version))
        if answer.size != size or (version and answer.version and answer.version != version):
            raise ConversionError(
                f"{name} in {self._label} changed while it was read: convert when nothing writes to it."
            )


async def _in_time(names: Awaitable[Sequence[str] | None], seconds: float) -> list[str] | None:
    """A list of names; None if it takes longer: only messages get better by it."""
    try:
        found = await asyncio.wait_for(names, seconds)
    except TimeoutError:
        return None
    return None if found is None else list(found)


def label(url: str) -> str:
    """An address as it may be shown and stored: without user, password, and what follows a question mark."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{unquote(parts.path).rstrip('/')}"


def is_remote(source: object) -> bool:
    """Whether the user means a server: `source` is an address rather than a path."""
    return "://" in str(source)


def _transport(folder: str, timeouts: Timeouts, shown: str) -> Transport:
    parts = urlsplit(folder)
    if parts.scheme not in SCHEMES or not parts.netloc:
        raise ConversionError(
            f"{shown} is not an address that can be read: it begins with one of "
            f"{', '.join(f'{scheme}://' for scheme in SCHEMES)} and a host or bucket."
        )
    if parts.scheme in ("https", "http"):
        return WebTransport(folder, timeouts, shown)
    from .object_stores import AmazonTransport, GoogleTransport

    return (GoogleTransport if parts.scheme == "gs" else AmazonTransport)(folder, timeouts, shown)
