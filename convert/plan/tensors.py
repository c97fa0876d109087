# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Tensors of the output, and the files that they are put into."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from t5_experimental.original import labels_of, shape_of

from ..mesh.axes import describe, rearrange
from ..tensors import Variable, numpy_dtype


if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Entry:
    """One tensor of the output.

    Attributes:
        name: our name.
        source: the Mesh variable.
        mesh_axes: the form in which the variable has its axes.
        our_axes: axes of our tensor.
        sizes: size of every label in them.
        dtype: dtype to write.
    """

    name: str
    source: Variable
    mesh_axes: str
    our_axes: str
    sizes: Mapping[str, int]
    dtype: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Our shape."""
        return shape_of(self.our_axes, self.sizes)

    @property
    def size(self) -> int:
        """Count of numbers."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes in the output."""
        return self.size * numpy_dtype(self.dtype).itemsize

    @property
    def is_copied(self) -> bool:
        """Whether our tensor has the variable's numbers in the variable's order."""
        return labels_of(self.mesh_axes) == labels_of(self.our_axes)

    @property
    def matrix(self) -> tuple[int, int] | None:
        """Rows and columns of the variable as a matrix, if our tensor is its transpose; else None."""
        have, want = labels_of(self.mesh_axes), labels_of(self.our_axes)
        for k in range(1, len(have)):
            if have[k:] + have[:k] == want:
                rows = math.prod(self.sizes[label] for label in have[:k])
                return rows, self.size // rows if rows else 0
        return None

    @property
    def transform(self) -> str:
        """What happens to the axes, in words."""
        return describe(self.mesh_axes, self.our_axes)

    def to_ours(self, array: "np.ndarray") -> "np.ndarray":
        """The variable with our axes: a view of shape `shape`."""
        return rearrange(array, self.mesh_axes, self.our_axes, self.sizes)


@dataclass(frozen=True)
class Shard:
    """One safetensors file.

    Attributes:
        filename: its name in the output folder.
        entries: its tensors in the order of their bytes.
        metadata: texts in its header.
    """

    filename: str
    entries: tuple[Entry, ...]
    metadata: Mapping[str, str] = field(default_factory=lambda: {"format": "pt"})

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return sum(entry.nbytes for entry in self.entries)


def in_file_order(entries: Iterable[Entry]) -> tuple[Entry, ...]:
    """Wider numbers first, so that every tensor begins at a multiple of its item size."""
    return tuple(sorted(entries, key=lambda entry: -numpy_dtype(entry.dtype).itemsize))


def model_shards(entries: Iterable[Entry], max_size: int) -> tuple[Shard, ...]:
    """Fills the model's files in the order of the source.

    Args:
        entries: the parameters in that order.
        max_size: bytes of tensors in one file, unless a single tensor is larger.
    """
    groups: list[list[Entry]] = [[]]
    filled = 0
    for entry in entries:
        if groups[-1] and filled + entry.nbytes > max_size:
            groups.append([])
            filled = 0
        groups[-1].append(entry)
        filled += entry.nbytes
    total = len(groups)
    names = [f"model-{k:05d}-of-{total:05d}.safetensors" for k in range(1, total + 1)]
    if total == 1:
        names = ["model.safetensors"]
    return tuple(Shard(name, in_file_order(group)) for name, group in zip(names, groups, strict=True))
