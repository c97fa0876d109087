# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Fetching announced bytes before they are asked for, a bounded number of blocks at a time.

While one block is converted, the next ones are on their way: a slow link is waited for only once.
"""

import concurrent.futures
from bisect import bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from .storage import Range


T = TypeVar("T")

BLOCK_BYTES = 16 * 2**20

# Blocks on their way besides the one in use: enough for 16 MiB per 100 ms, and at most 48 MiB with it.
DEPTH = 2

# Bytes between two ranges that are fetched, too: a second request costs more time.
GAP_BYTES = 256 * 2**10


@dataclass(frozen=True)
class Block:
    """Bytes that one request fetches.

    Attributes:
        name: file.
        start: first byte.
        stop: byte behind the last.
    """

    name: str
    start: int
    stop: int


Fetch = Callable[[Block], "concurrent.futures.Future[bytearray]"]


def blocks_of(ranges: Iterable[Range], block_bytes: int = BLOCK_BYTES, gap_bytes: int = GAP_BYTES) -> list[Block]:
    """Cuts ranges into blocks, and puts short neighbors into one.

    Args:
        ranges: bytes in the order in which they will be read; no two overlap.
        block_bytes: most bytes of a block.
        gap_bytes: most bytes between two ranges of one block.
    """
    blocks: list[Block] = []
    for name, offset, length in ranges:
        for start in range(offset, offset + length, block_bytes):
            stop = min(start + block_bytes, offset + length)
            last = blocks[-1] if blocks else None
            if last and last.name == name and 0 <= start - last.stop <= gap_bytes and stop - last.start <= block_bytes:
                blocks[-1] = Block(name, last.start, stop)
            else:
                blocks.append(Block(name, start, stop))
    return blocks


class ReadAhead:
    """Serves bytes out of a list of blocks, of which it keeps a window in memory.

    The window is the block that is read and the `depth` ones behind it. A block that leaves the window is given up,
    even when it is still on its way.
    """

    def __init__(self, fetch: Fetch, blocks: list[Block], depth: int = DEPTH) -> None:
        """Fetches nothing yet.

        Args:
            fetch: starts fetching a block; its future can be cancelled.
            blocks: as of `blocks_of`.
            depth: blocks to fetch ahead.
        """
        self._fetch = fetch
        self._blocks = blocks
        self._depth = depth
        self._pending: dict[int, concurrent.futures.Future[bytearray]] = {}
        self._places: dict[str, list[tuple[int, int]]] = {}
        for index, block in enumerate(blocks):
            self._places.setdefault(block.name, []).append((block.start, index))
        for places in self._places.values():
            places.sort()

    def take(self, name: str, start: int, stop: int) -> memoryview | None:
        """Bytes of a file, read-only; None if not all of them were announced."""
        indices = self._covering(name, start, stop)
        if indices is None:
            return None
        if len(indices) == 1:
            first = self._blocks[indices[0]].start
            return memoryview(self._wait(indices[0])).toreadonly()[start - first : stop - first]
        result = bytearray(stop - start)
        for index in indices:
            block = self._blocks[index]
            low, high = max(start, block.start), min(stop, block.stop)
            data = memoryview(self._wait(index))
            result[low - start : high - start] = data[low - block.start : high - block.start]
        return memoryview(result).toreadonly()

    def close(self) -> None:
        """Gives up what is on its way."""
        for future in self._pending.values():
            future.cancel()
        self._pending.clear()

    def _covering(self, name: str, start: int, stop: int) -> list[int] | None:
        """Indices of the blocks that hold the bytes, in the bytes' order."""
        places = self._places.get(name, [])
        k = bisect_right(places, (start, len(self._blocks))) - 1
        indices = []
        at = start
        while at < stop:
            if not 0 <= k < len(places):
                return None
            block = self._blocks[places[k][1]]
            if not block.start <= at < block.stop:
                return None
            indices.append(places[k][1])
            at = block.stop
            k += 1
        return indices or None

    def _wait(self, index: int) -> bytearray:
        window = range(index, min(index + self._depth + 1, len(self._blocks)))
        for other in [k for k in self._pending if k not in window]:
            self._pending.pop(other).cancel()
        for k in window:
            # A block that failed far ahead of its use gets its next chance when it is its turn.
            if k not in self._pending or (k == index and _failed(self._pending[k])):
                self._pending[k] = self._fetch(self._blocks[k])
        try:
            return wait(self._pending[index])
        except BaseException:
            # The others would go on trying, even if they are never asked for.
            self.close()
            raise


def wait(future: "concurrent.futures.Future[T]") -> T:
    """Result of a future; an interrupt from the keyboard gets through on every system, and cancels it."""
    try:
        while not concurrent.futures.wait([future], timeout=1).done:
            pass
        return future.result()
    except BaseException:
        future.cancel()
        raise


def _failed(future: "concurrent.futures.Future[bytearray]") -> bool:
    return future.done() and (future.cancelled() or future.exception() is not None)
