# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Reading a TensorFlow checkpoint (a "tensor bundle", version 2) without TensorFlow.

PREFIX.index is a table (see `sstable`): the empty key holds what is true of the whole checkpoint, every other key is a
variable's name, or names one slice of a partitioned variable, and its value says where the bytes are in which
PREFIX.data-0000k-of-0000n. Everything that the index says is checked before any of these bytes is read.
Source: tensorflow/core/util/tensor_bundle.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import google_crc32c
import numpy as np

from ..errors import ConversionError
from ..source.storage import LocalStorage, Storage
from ..tensors import ArrayMatrix, Matrix, Memory, Variable, numpy_dtype
from .index import MAX_INDEX_BYTES, NUMERIC_DTYPES, Part, Tensor, read_index
from .sstable import Malformed


BLOCK_BYTES = 4 * 2**20

# Read and summed up at a time: what was read is still in the processor's cache.
_SUMMED_BYTES = 2**19


class TensorBundleReader:
    """`CheckpointReader` that streams a model of any size through little memory.

    The files must stay as they are while they are read; if they do not, that is noticed.

    Attributes:
        variables: all variables by name, in the order of their bytes in the files.
    """

    def __init__(self, prefix: Path, storage: Storage | None = None) -> None:
        """Reads and checks the index; touches no number.

        Args:
            prefix: path without ".index"; with a storage, its last part counts.
            storage: the folder; unless given, that of the prefix on this disk.

        Raises:
            ConversionError: a file is missing or too short, or the index is damaged or of a kind that is not known.
        """
        self._prefix = prefix
        self._storage = LocalStorage(prefix.parent) if storage is None else storage
        self._expected: set[str] = set()
        self._memory = np.empty(0, np.uint8)
        index = index_path(prefix).name
        try:
            self._num_shards, tensors = self._read_index(index)
        except Malformed as error:
            place = self._storage.place(index)
            raise ConversionError(f"{place} is not a readable checkpoint index: {error}; copy it again.") from error
        self._tensors = {tensor.variable.name: tensor for tensor in tensors}
        self._check_files()
        self.variables: Mapping[str, Variable] = {tensor.variable.name: tensor.variable for tensor in tensors}

    def expect(self, names: Iterable[str]) -> None:
        """See `CheckpointReader.expect`."""
        tensors = [self._numeric(name) for name in names]
        self._expected = {tensor.variable.name for tensor in tensors}
        parts = [part for tensor in tensors for part in tensor.parts]
        self._storage.expect([(self.data_file(part.shard), part.offset, part.size) for part in parts])

    def read(self, name: str) -> np.ndarray:
        """See `TensorReader.read`: the whole variable, verified, as a new array."""
        tensor = self._numeric(name)
        self._announce(name)
        dtype = numpy_dtype(tensor.variable.dtype)
        try:
            result = np.empty(tensor.variable.shape, dtype)
        except MemoryError as error:
            raise ConversionError(f"{name} does not fit into memory: convert on a machine with more of it.") from error
        for part in tensor.parts:
            if part.region is None:
                _put(result.reshape(-1).view(np.uint8), self._part_blocks(name, part, BLOCK_BYTES))
                continue
            piece = np.empty([end - start for start, end in part.region], dtype)
            _put(piece.reshape(-1).view(np.uint8), self._part_blocks(name, part, BLOCK_BYTES))
            result[tuple(slice(start, end) for start, end in part.region)] = piece
        return result

    def blocks(self, name: str, max_bytes: int = BLOCK_BYTES, memory: Memory | None = None) -> Iterator[np.ndarray]:
        """The bytes of a variable in order, each checked on its way, without holding more than a block in memory.

        Only a variable that is partitioned along another axis than the first is assembled in memory before.

        Args:
            name: a key of `variables`.
            max_bytes: most bytes of a block; rounded down to complete elements, but at least one.
            memory: for the blocks; else they are read-only, in memory of the reader's own.

        Yields:
            uint8 [bytes], valid until the next one. The last block comes only if the variable's checksum is right; a
            partitioned variable has one for each slice.

        Raises:
            ConversionError: the bytes cannot be read or fail their checksum.
        """
        tensor = self._numeric(name)
        self._announce(name)
        itemsize = numpy_dtype(tensor.variable.dtype).itemsize
        step = max(max_bytes // itemsize, 1) * itemsize
        if _contiguous(tensor):
            for part in tensor.parts:
                yield from self._part_blocks(name, part, step, memory)
            return
        whole = self.read(name).reshape(-1).view(np.uint8)
        whole.flags.writeable = False
        for start in range(0, len(whole), step):
            block = whole[start : start + step]
            if memory is not None:
                block = memory(len(block))
                block[...] = whole[start : start + step]
            yield block

    def open_matrix(self, name: str, rows: int) -> Matrix:
        """See `TensorReader.open_matrix`.

        It is read into memory where it is in no single piece of a file, or the storage gives no part of it fast.
        """
        tensor = self._numeric(name)
        matrix = None
        if len(tensor.parts) == 1 and tensor.parts[0].region is None:
            (part,) = tensor.parts
            matrix = self._storage.open_matrix(self.data_file(part.shard), part.offset, part.size // rows)
        if matrix is None:
            return ArrayMatrix(self.read(name).reshape(rows, -1))
        self.check(name)
        return matrix

    def check(self, name: str) -> None:
        """See `TensorReader.check`."""
        self._announce(name)
        for part in self._numeric(name).parts:
            for _ in self._part_blocks(name, part, BLOCK_BYTES):
                pass

    def checksums(self, name: str) -> tuple[int, ...]:
        """See `CheckpointReader.checksums`; not masked."""
        return tuple(part.crc32c for part in self.parts(name))

    def parts(self, name: str) -> tuple[Part, ...]:
        """Where the bytes of a variable are.

        Raises:
            ConversionError: there is no such variable.
        """
        return self._find(name).parts

    def data_file(self, shard: int) -> str:
        """Name of a data file."""
        return data_path(self._prefix, shard, self._num_shards).name

    def _announce(self, name: str) -> None:
        """Has the storage fetch a variable's bytes, unless it was told already."""
        if name not in self._expected:
            self.expect([name])

    def _find(self, name: str) -> Tensor:
        if name not in self._tensors:
            raise ConversionError(f"{self._prefix.name} holds no variable {name}: choose one of {len(self._tensors)}.")
        return self._tensors[name]

    def _numeric(self, name: str) -> Tensor:
        tensor = self._find(name)
        if tensor.variable.dtype not in NUMERIC_DTYPES.values():
            raise ConversionError(
                f"{name} in {self._prefix.name} is of type {tensor.variable.dtype}, which is not converted: leave it "
                "out when saving the checkpoint."
            )
        return tensor

    def _check_files(self) -> None:
        """Raises unless every byte that the index speaks of is there."""
        for tensor in self._tensors.values():
            for part in tensor.parts:
                file, end = self.data_file(part.shard), part.offset + part.size
                size = self._storage.size(file)
                if end > size:
                    raise ConversionError(
                        f"{self._storage.place(file)} is cut off: it has {size} bytes, but {tensor.variable.name} ends "
                        f"at byte {end}; copy it again."
                    )

    def _read_index(self, name: str) -> tuple[int, list[Tensor]]:
        try:
            return read_index(self._load(name))
        except Malformed:
            if not self._storage.refetch(name):
                raise
            return read_index(self._load(name))

    def _load(self, name: str) -> bytes:
        size = self._storage.size(name)
        if size > MAX_INDEX_BYTES:
            raise ConversionError(
                f"{self._storage.place(name)} has more than {MAX_INDEX_BYTES} bytes, which no T5 checkpoint needs: "
                "give a checkpoint of T5."
            )
        return bytes(self._storage.read(name, 0, size))

    def _part_blocks(self, name: str, part: Part, max_bytes: int, memory: Memory | None = None) -> Iterator[np.ndarray]:
        """See `blocks`."""
        self._check_copy(part, max_bytes)
        crc = 0
        for start in range(0, max(part.size, 1), max_bytes):
            length = min(max_bytes, part.size - start)
            block = self._own_memory(length) if memory is None else memory(length)
            crc = self._fill(block, part, start, crc)
            if start + max_bytes >= part.size and crc != part.crc32c:
                raise ConversionError(
                    f"{name} fails its checksum: bytes {part.offset} to {part.offset + part.size} are not what was "
                    f"written in {self._storage.place(self.data_file(part.shard))}; copy the file again."
                )
            block.flags.writeable = memory is not None
            if part.size:
                yield block

    def _check_copy(self, part: Part, max_bytes: int) -> None:
        """Has a copy of a file that is damaged fetched again, once, before any byte of the part is used."""
        if not self._storage.keeps_copies:
            return
        crc = 0
        for start in range(0, part.size, max_bytes):
            crc = self._fill(self._own_memory(min(max_bytes, part.size - start)), part, start, crc)
        if crc != part.crc32c:
            self._storage.refetch(self.data_file(part.shard))

    def _own_memory(self, size: int) -> np.ndarray:
        """uint8 [size]; what was there before is lost."""
        if len(self._memory) < size:
            self._memory = np.empty(size, np.uint8)
        return self._memory[:size]

    def _fill(self, target: np.ndarray, part: Part, start: int, crc: int) -> int:
        """Fills the target (uint8) with bytes of a part; returns the checksum that goes on with them."""
        file, offset, size = self.data_file(part.shard), part.offset + start, len(target)
        for at in range(0, size, _SUMMED_BYTES):
            piece = target[at : at + _SUMMED_BYTES]
            self._storage.fill(file, offset + at, piece)
            crc = google_crc32c.extend(crc, piece)
        # The disk fetches the next block while this one is used.
        self._storage.will_need(file, offset + size, min(size, part.size - start - size))
        return crc


def index_path(prefix: Path) -> Path:
    """Path of the index of a checkpoint."""
    return prefix.with_name(prefix.name + ".index")


def data_path(prefix: Path, shard: int, num_shards: int) -> Path:
    """Path of one of the data files of a checkpoint."""
    return prefix.with_name(f"{prefix.name}.data-{shard:05d}-of-{num_shards:05d}")


def _put(target: np.ndarray, blocks: Iterator[np.ndarray]) -> None:
    """Copies blocks one behind the other; both are uint8 of the same size."""
    at = 0
    for block in blocks:
        target[at : at + len(block)] = block
        at += len(block)


def _contiguous(tensor: Tensor) -> bool:
    """Whether the variable's bytes are those of its parts one behind the other: no axis but the first is cut."""
    shape = tensor.variable.shape
    return all(
        part.region is None or list(part.region[1:]) == [(0, size) for size in shape[1:]] for part in tensor.parts
    )
