# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Writing a TensorFlow checkpoint (a "tensor bundle", version 2) without TensorFlow; `tensor_bundle` reads it.

Names, dtypes and shapes come first, so that every tensor has its place; then the bytes of each, block by block and in
any order; the index last, so that a checkpoint that is cut off has none. Sources: see `bundle_index` and `sstable`.
"""

import os
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import google_crc32c
import numpy as np

from ..tensors import Variable
from .index import NUMERIC_DTYPES, Part, Tensor, variable_nbytes, write_index
from .reader import BLOCK_BYTES, data_path, index_path


class BundleWriter:
    """Writes one checkpoint; a context manager, which writes the index on leaving unless there was an error.

        with BundleWriter(folder / "model.ckpt-7", [variables]) as writer:
            for variable in variables:
                writer.write(variable.name, blocks_of(variable))

    No more than a block of the caller's and the index are in memory.
    """

    def __init__(self, prefix: Path, files: Sequence[Iterable[Variable]]) -> None:
        """Plans every tensor's place.

        Args:
            prefix: path without ".index", in an existing folder.
            files: for each data file its variables, in the order of their bytes; TensorFlow sorts them by name.

        Raises:
            ValueError: two variables have the same name, or one is of a dtype that is not of numbers.
        """
        self._prefix = prefix
        self._tensors: dict[str, Tensor] = {}
        self._sizes: list[int] = []
        self._written: set[str] = set()
        self._open = ExitStack()
        self._files: list[BinaryIO] = []
        for shard, variables in enumerate(files):
            end = 0
            for variable in variables:
                if variable.name in self._tensors:
                    raise ValueError(f"two variables are called {variable.name}: give each a name of its own")
                if variable.dtype not in NUMERIC_DTYPES.values():
                    raise ValueError(f"{variable.name} is of type {variable.dtype}: use one of NUMERIC_DTYPES")
                size = variable_nbytes(variable)
                self._tensors[variable.name] = Tensor(variable, (Part(shard, end, size, 0),))
                end += size
            self._sizes.append(end)

    @property
    def nbytes(self) -> int:
        """Bytes of all data files."""
        return sum(self._sizes)

    @property
    def parts(self) -> dict[str, list[tuple[int, int]]]:
        """By the name of each data file, CRC-32C and bytes of its tensors, one behind the other."""
        names = [data_path(self._prefix, shard, len(self._sizes)).name for shard in range(len(self._sizes))]
        found: dict[str, list[tuple[int, int]]] = {name: [] for name in names}
        for tensor in self._tensors.values():
            for part in tensor.parts:
                found[names[part.shard]].append((part.crc32c, part.size))
        return found

    def __enter__(self) -> "BundleWriter":
        for shard, size in enumerate(self._sizes):
            path = data_path(self._prefix, shard, len(self._sizes))
            file: BinaryIO = self._open.enter_context(path.open("wb"))
            # Its full size from the start: what is never written stays a hole.
            file.truncate(size)
            self._files.append(file)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._open:
            if error is None:
                self._finish()

    def write(self, name: str, blocks: Iterable[bytes | memoryview]) -> int:
        """Writes the bytes of a tensor.

        Args:
            name: of an announced variable.
            blocks: its bytes in C order, little-endian, one block behind the other, each of any size and used up before
                the next is asked for.

        Returns:
            CRC-32C of them.

        Raises:
            KeyError: the variable was not announced.
            ValueError: the blocks have more or fewer bytes than it.
        """
        part = self._begin(name)
        file = self._files[part.shard]
        file.seek(part.offset)
        crc = written = 0
        for block in blocks:
            data = np.frombuffer(block, np.uint8)
            written += len(data)
            if written > part.size:
                break
            file.write(data.data)
            crc = google_crc32c.extend(crc, data)
        if written != part.size:
            raise ValueError(f"{name} has {part.size} bytes, but its blocks have {written} or more")
        return self._end(name, crc)

    def write_zeros(self, name: str) -> int:
        """Leaves a tensor as zeros: its bytes are a hole in the file, which takes no disk, and its checksum is right.

        Args:
            name: of an announced variable that was not written.

        Returns:
            CRC-32C of the zeros.

        Raises:
            KeyError: the variable was not announced.
        """
        return self._end(name, zeros_crc32c(self._begin(name).size))

    def _begin(self, name: str) -> Part:
        if name in self._written:
            raise ValueError(f"{name} is written already")
        return self._tensors[name].parts[0]

    def _end(self, name: str, crc: int) -> int:
        tensor = self._tensors[name]
        self._tensors[name] = replace(tensor, parts=(replace(tensor.parts[0], crc32c=crc),))
        self._written.add(name)
        return crc

    def _finish(self) -> None:
        if missing := [name for name in self._tensors if name not in self._written]:
            raise ValueError(f"{len(missing)} tensors were announced but not written, first {missing[0]}")
        for file in self._files:
            file.flush()
            os.fsync(file.fileno())
        with index_path(self._prefix).open("wb") as index:
            index.write(write_index(len(self._files), self._tensors.values()))
            index.flush()
            os.fsync(index.fileno())


def write_state_file(prefix: Path) -> None:
    """Writes the file `checkpoint` beside a checkpoint, by which TensorFlow finds the newest in a folder."""
    lines = (f'{key}: "{prefix.name}"\n' for key in ("model_checkpoint_path", "all_model_checkpoint_paths"))
    prefix.with_name("checkpoint").write_text("".join(lines), encoding="utf-8")


@cache
def zeros_crc32c(size: int) -> int:
    """CRC-32C of that many zero bytes, of which only a block is ever in memory."""
    zeros = _zero_block()
    crc = 0
    for start in range(0, size, len(zeros)):
        crc = google_crc32c.extend(crc, zeros[: size - start])
    return crc


@cache
def _zero_block() -> bytes:
    return bytes(BLOCK_BYTES)
