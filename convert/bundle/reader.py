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
from ..source.local_files import LocalFiles
from ..source.matrix import FileMatrix
from ..source.storage import Storage
from ..tensors import ArrayMatrix, Matrix, Variable, numpy_dtype
from .index import MAX_INDEX_BYTES, NUMERIC_DTYPES, Part, Tensor, read_index
from .sstable import Malformed


BLOCK_BYTES = 4 * 2**20


class TensorBundleReader:
    """`CheckpointReader` that streams a model of any size through little memory.

    The files must stay as they are while they are read; if they do not, that is noticed.

    Attributes:
        variables: all variables by name, in the order of their bytes in the files.
    """

    def __init__(self, prefix: Path, storage: Storage | None = None) -> None:
        """Reads and checks the index; touches no number.

        Args:
            prefix: path without ".index".
            storage: where the files are, of which the prefix is only the name then; a folder of this disk unless given.

        Raises:
            ConversionError: a file is missing or too short, or the index is damaged or of a kind that is not known.
        """
        self._prefix = prefix
        self._storage = storage
        self._expected: set[str] = set()
        self._files = LocalFiles()
        self._memory = np.empty(0, np.uint8)
        path = index_path(prefix)
        try:
            self._num_shards, tensors = self._read_index(path)
        except Malformed as error:
            place = path if storage is None else storage.place(path.name)
            raise ConversionError(f"{place} is not a readable checkpoint index: {error}; copy it again.") from error
        self._tensors = {tensor.variable.name: tensor for tensor in tensors}
        self._check_files()
        self.variables: Mapping[str, Variable] = {tensor.variable.name: tensor.variable for tensor in tensors}

    def expect(self, names: Iterable[str]) -> None:
        """See `CheckpointReader.expect`."""
        self._expected = set()
        if self._storage is not None:
            tensors = [self._numeric(name) for name in names]
            self._expected = {tensor.variable.name for tensor in tensors}
            parts = [part for tensor in tensors for part in tensor.parts]
            self._storage.expect([(self.data_file(part.shard).name, part.offset, part.size) for part in parts])

    def read(self, name: str) -> np.ndarray:
        """See `TensorReader.read`: the whole variable, verified, in memory of its own."""
        tensor = self._numeric(name)
        if name not in self._expected:
            self.expect([name])
        dtype = numpy_dtype(tensor.variable.dtype)
        try:
            result = np.empty(tensor.variable.shape, dtype)
        except MemoryError as error:
            raise ConversionError(f"{name} does not fit into memory: convert on a machine with more of it.") from error
        for part in tensor.parts:
            if part.region is None:
                _fill(result.reshape(-1).view(np.uint8), self._part_blocks(name, part, BLOCK_BYTES))
                continue
            piece = np.empty([end - start for start, end in part.region], dtype)
            _fill(piece.reshape(-1).view(np.uint8), self._part_blocks(name, part, BLOCK_BYTES))
            result[tuple(slice(start, end) for start, end in part.region)] = piece
        return result

    def blocks(self, name: str, max_bytes: int = BLOCK_BYTES) -> Iterator[np.ndarray]:
        """The bytes of a variable in order, each checked on its way, without holding more than a block in memory.

        Only a variable that is partitioned along another axis than the first is assembled in memory before.

        Args:
            name: a key of `variables`.
            max_bytes: most bytes of a block; rounded down to whole numbers, but at least one.

        Yields:
            uint8 [bytes], read-only, valid until the next one. The last block comes only if the variable's checksum is
            right; a partitioned variable has one for each slice.

        Raises:
            ConversionError: the bytes cannot be read or fail their checksum.
        """
        tensor = self._numeric(name)
        if name not in self._expected:
            self.expect([name])
        itemsize = numpy_dtype(tensor.variable.dtype).itemsize
        step = max(max_bytes // itemsize, 1) * itemsize
        if _contiguous(tensor):
            for part in tensor.parts:
                yield from self._part_blocks(name, part, step)
            return
        whole = self.read(name).reshape(-1).view(np.uint8)
        whole.flags.writeable = False
        for start in range(0, len(whole), step):
            yield whole[start : start + step]

    def open_matrix(self, name: str, rows: int) -> Matrix:
        """See `TensorReader.open_matrix`.

        What is in no single piece of a file of this disk is read into memory: a partitioned variable, and all that
        comes from a storage.
        """
        tensor = self._numeric(name)
        if self._storage is not None or len(tensor.parts) > 1 or tensor.parts[0].region is not None:
            return ArrayMatrix(self.read(name).reshape(rows, -1))
        self.check(name)
        (part,) = tensor.parts
        return FileMatrix(self._files, self.data_file(part.shard), part.offset, part.size // rows)

    def check(self, name: str) -> None:
        """See `TensorReader.check`."""
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

    def data_file(self, shard: int) -> Path:
        """Path of a data file."""
        return data_path(self._prefix, shard, self._num_shards)

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
                path, end = self.data_file(part.shard), part.offset + part.size
                size = self._local_size(path) if self._storage is None else self._storage.size(path.name)
                if end > size:
                    raise ConversionError(
                        f"{path} is cut off: it has {size} bytes, but {tensor.variable.name} ends at byte {end}; copy "
                        "it again."
                    )

    def _read_index(self, path: Path) -> tuple[int, list[Tensor]]:
        if self._storage is None:
            return read_index(self._load(path))
        try:
            return read_index(_load_from(self._storage, path.name))
        except Malformed:
            if not self._storage.refetch(path.name):
                raise
            return read_index(_load_from(self._storage, path.name))

    def _load(self, path: Path) -> bytes:
        size = self._local_size(path)
        if size > MAX_INDEX_BYTES:
            raise ConversionError(
                f"{path} has more than {MAX_INDEX_BYTES} bytes, which no T5 checkpoint needs: give a checkpoint of T5."
            )
        data = np.empty(size, np.uint8)
        self._files.fill(path, 0, data)
        return data.tobytes()

    def _local_size(self, path: Path) -> int:
        try:
            return self._files.size(path)
        except (OSError, ValueError) as error:
            raise ConversionError(f"{path} is missing: copy all files of the checkpoint into one folder.") from error

    def _part_blocks(self, name: str, part: Part, max_bytes: int) -> Iterator[np.ndarray]:
        """See `blocks`."""
        self._check_copy(part, max_bytes)
        crc = 0
        for start in range(0, max(part.size, 1), max_bytes):
            block = self._block(part, start, min(max_bytes, part.size - start))
            crc = google_crc32c.extend(crc, block)
            if start + max_bytes >= part.size and crc != part.crc32c:
                path = self.data_file(part.shard)
                raise ConversionError(
                    f"{name} fails its checksum: bytes {part.offset} to {part.offset + part.size} are not what was "
                    f"written in {path if self._storage is None else self._storage.place(path.name)}; copy the file "
                    "again."
                )
            if part.size:
                yield block

    def _check_copy(self, part: Part, max_bytes: int) -> None:
        """Has a copy of a file that is damaged fetched again, once, before any byte of the part is used."""
        if self._storage is None or not self._storage.keeps_copies:
            return
        crc = 0
        for start in range(0, part.size, max_bytes):
            crc = google_crc32c.extend(crc, self._block(part, start, min(max_bytes, part.size - start)))
        if crc != part.crc32c:
            self._storage.refetch(self.data_file(part.shard).name)

    def _block(self, part: Part, start: int, length: int) -> np.ndarray:
        """uint8 [length], read-only, valid until the next call."""
        path, offset = self.data_file(part.shard), part.offset + start
        if self._storage is not None:
            return np.frombuffer(self._storage.read(path.name, offset, length), np.uint8)
        if len(self._memory) < length:
            self._memory = np.empty(length, np.uint8)
        block = self._memory[:length]
        if length:
            self._files.fill(path, offset, block)
            # The disk fetches the next block while this one is used.
            self._files.will_need(path, offset + length, min(length, part.size - start - length))
        block.flags.writeable = False
        return block


def index_path(prefix: Path) -> Path:
    """Path of the index of a checkpoint."""
    return prefix.with_name(prefix.name + ".index")


def data_path(prefix: Path, shard: int, num_shards: int) -> Path:
    """Path of one of the data files of a checkpoint."""
    return prefix.with_name(f"{prefix.name}.data-{shard:05d}-of-{num_shards:05d}")


def _load_from(storage: Storage, name: str) -> bytes:
    size = storage.size(name)
    if size > MAX_INDEX_BYTES:
        raise ConversionError(
            f"{name} in {storage.describe()} has more than {MAX_INDEX_BYTES} bytes, which no T5 checkpoint needs: give "
            "a checkpoint of T5."
        )
    return bytes(storage.read(name, 0, size))


def _fill(target: np.ndarray, blocks: Iterator[np.ndarray]) -> None:
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
