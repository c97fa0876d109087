# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Writing safetensors files in place: headers first, then every tensor at its offset, block by block.

Format: eight bytes with the header's length, the header (JSON: dtype, shape and byte range of every tensor), the bytes
of the tensors without gaps. Source: https://github.com/huggingface/safetensors.
"""

import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO

import google_crc32c
import numpy as np

from t5_experimental.own_folders import MARK

from ..plan.plan import Plan
from ..plan.tensors import Entry, Shard
from ..tensors import CheckpointReader
from .blocks import VALID_BLOCKS, Transfer
from .resume import FILENAME, FinishedFiles, conversion_key
from .safetensors_format import INDEX_FILENAME, _header, _index


# A file has this behind its name until all of its bytes are on the disk.
_UNFINISHED = ".unfinished"

_CHECKED_BYTES = 2**24

# The disk gets them while others are read and written, rather than all at the end.
_SYNCED_BYTES = 2**26


def write_tensors(
    plan: Plan,
    reader: CheckpointReader,
    folder: Path,
    progress: Callable[[int], Any] = lambda _: None,
    allow_nonfinite: bool = False,
) -> dict[str, int]:
    """Writes all tensors of a plan, file by file, reading each tensor once and in the source's order.

    Files that an earlier call with the same plan and the same source has finished in this folder are kept, if the
    checksum of every tensor in them is right; all else is removed from it. `finished_files.FILENAME` in the folder
    lists what is finished; the caller that completes the folder removes that list.

    Args:
        plan: what goes where.
        reader: the source.
        folder: existing folder for these files alone.
        progress: called with the number of bytes written, or found written, since the last call.
        allow_nonfinite: write infinities and NaNs, too.

    Returns:
        Checksum (CRC-32C) of every tensor's bytes, by our name.

    Raises:
        ConversionError: a tensor cannot be read, is not what the plan says, or holds a number that does not fit its
            dtype.
    """
    finished = FinishedFiles(folder, conversion_key(plan, reader, allow_nonfinite=allow_nonfinite))
    checksums: dict[str, int] = {}
    missing: list[Shard] = []
    for shard in plan.files:
        known = finished.checksums(shard.filename)
        if known is not None and _is_intact(folder / shard.filename, shard, known):
            checksums.update(known)
            progress(shard.nbytes)
        else:
            missing.append(shard)
    kept = {shard.filename for shard in plan.files} - {shard.filename for shard in missing}
    for path in folder.iterdir():
        if path.name not in {*kept, FILENAME, MARK}:
            path.unlink()
    reader.expect([entry.source.name for shard in missing for entry in plan.in_source_order(shard.entries)])
    transfer = Transfer(reader, allow_nonfinite)
    for shard in missing:
        written = _write(shard, plan.in_source_order(shard.entries), transfer, folder, progress)
        finished.add(shard.filename, written)
        checksums |= written
    if len(plan.shards) > 1:
        (folder / INDEX_FILENAME).write_text(json.dumps(_index(plan), indent=2) + "\n", encoding="utf-8")
    return checksums


def _write(
    shard: Shard, entries: Iterable[Entry], transfer: Transfer, folder: Path, progress: Callable[[int], Any]
) -> dict[str, int]:
    """Writes one file, which has its name when its bytes are on the disk; returns its tensors' checksums."""
    header, offsets = _header(shard)
    path = folder / shard.filename
    unfinished = path.with_name(path.name + _UNFINISHED)
    try:
        with unfinished.open("wb", buffering=0) as file:
            file.truncate(len(header) + shard.nbytes)
            with _Background(file, progress) as background:
                background.write(0, np.frombuffer(header, np.uint8))
                for entry in entries:
                    at = len(header) + offsets[entry.name]
                    for block in transfer.blocks(entry):
                        background.write(at, block, entry.name)
                        at += block.nbytes
            os.fsync(file.fileno())
    except BaseException:
        # Makes room, if that is what was missing.
        unfinished.unlink(missing_ok=True)
        raise
    unfinished.replace(path)
    return {entry.name: background.checksums.get(entry.name, 0) for entry in shard.entries}


class _Background:
    """Writes and sums up in a second thread, while the next block is read and rearranged.

    Waiting for the disk is up to one more thread: writing would stand still meanwhile, and soon reading, too.

    Attributes:
        checksums: CRC-32C of what was written so far, by name.
    """

    def __init__(self, file: FileIO, progress: Callable[[int], Any]) -> None:
        self.checksums: dict[str, int] = {}
        self._file = file
        self._progress = progress
        self._unsynced = 0
        self._thread = ThreadPoolExecutor(1)
        self._waiting: deque[Future[None]] = deque()
        self._syncing_thread = ThreadPoolExecutor(1)
        self._syncing: Future[None] | None = None

    def __enter__(self) -> "_Background":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            while self._waiting and kind is None:
                self._waiting.popleft().result()
            if self._syncing and kind is None:
                self._syncing.result()
        finally:
            self._thread.shutdown(cancel_futures=True)
            self._syncing_thread.shutdown()

    def write(self, at: int, data: np.ndarray, name: str | None = None) -> None:
        """Puts bytes at a place in the file, sooner or later; waits if too many are waiting.

        Args:
            at: offset in the file.
            data: uint8 [bytes], which must stay as they are.
            name: tensor that they are the next bytes of.
        """
        while len(self._waiting) >= VALID_BLOCKS - 1:
            self._waiting.popleft().result()
        self._waiting.append(self._thread.submit(self._write, at, data, name))

    def _write(self, at: int, data: np.ndarray, name: str | None) -> None:
        self._file.seek(at)
        written = 0
        while written < len(data):  # the system may take less at a time
            written += self._file.write(data[written:].data)
        self._unsynced += len(data)
        if self._unsynced >= _SYNCED_BYTES and (self._syncing is None or self._syncing.done()):
            if self._syncing:
                self._syncing.result()  # the system tells of an error only once
            self._syncing = self._syncing_thread.submit(os.fsync, self._file.fileno())
            self._unsynced = 0
        if name is not None:
            self.checksums[name] = google_crc32c.extend(self.checksums.get(name, 0), data)
            self._progress(len(data))


def _is_intact(path: Path, shard: Shard, checksums: Mapping[str, int]) -> bool:
    """Whether a file is, byte for byte, the one that was finished."""
    header, offsets = _header(shard)
    try:
        with path.open("rb") as file:
            if file.seek(0, os.SEEK_END) != len(header) + shard.nbytes:
                return False
            file.seek(0)
            if file.read(len(header)) != header:
                return False
            return all(
                _checksum(file, len(header) + offsets[entry.name], entry.nbytes) == checksums[entry.name]
                for entry in shard.entries
            )
    except (OSError, KeyError):
        return False


def _checksum(file: BinaryIO, offset: int, size: int) -> int:
    file.seek(offset)
    checksum = 0
    while size > 0:
        data = file.read(min(size, _CHECKED_BYTES))
        checksum = google_crc32c.extend(checksum, data)
        size -= len(data) or size
    return checksum
