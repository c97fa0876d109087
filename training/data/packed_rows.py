# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Packing in fine-tuning: as many examples as fit share a row, in the order in which they are trained on.

The examples of all epochs are one sequence, which is packed greedily, as the original packs its stream. An epoch is as
many rows as hold the examples of the first one; the last of them also has examples of the next epoch, if they fit. So
every epoch has the same number of steps, and the rows follow from the seed. Later epochs pack a little better or worse:
within an epoch nothing is skipped, but a run may end some examples before or after the end of its last one.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count, islice
from typing import Any

import numpy as np
from datasets import Dataset
from torch.utils.data import Dataset as MapDataset
from torch.utils.data import Sampler
from transformers import default_data_collator

from .mixing import MixtureSampler
from .packing import model_features, pack


class PackedRows(MapDataset):
    """Rows as the model takes them; a row is asked for by the places of its examples.

    Args:
        pairs: examples, with `input_ids` and `labels`.
        inputs_length: of a row.
        targets_length: of a row.
    """

    def __init__(self, pairs: Dataset, inputs_length: int, targets_length: int):
        self.pairs, self._lengths = pairs, (inputs_length, targets_length)

    def __len__(self) -> int:
        """Examples, not rows."""
        return len(self.pairs)

    def __getitem__(self, places: Sequence[int]) -> dict[str, np.ndarray]:
        examples = self.pairs[list(places)]
        sides = zip(examples["input_ids"], examples["labels"], strict=True)
        pairs = ((np.array(inputs), np.array(targets)) for inputs, targets in sides)
        (row,) = pack(pairs, *self._lengths)
        return model_features(row, packed=True)


class PackedSampler(Sampler[tuple[int, ...]]):
    """The places of the examples of each row of an epoch.

    Args:
        order: of the examples.
        lengths: tokens of the inputs of each example, and of the targets.
        limits: tokens of a row's inputs and targets; no example is longer.
    """

    def __init__(self, order: MixtureSampler, lengths: tuple[list[int], list[int]], limits: tuple[int, int]):
        self.order, self._lengths, self._limits = order, lengths, limits
        self.epoch = 0
        self._rows = sum(1 for _ in self._packed(order.rows_of(0)))

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch of the next iteration, counted from 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self._rows

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        begin = self.epoch * self._rows
        endless = (place for epoch in count() for place in self.order.rows_of(epoch))
        return islice(self._packed(endless), begin, begin + self._rows)

    def _packed(self, places: Iterable[int]) -> Iterator[tuple[int, ...]]:
        (inputs, targets), (most_inputs, most_targets) = self._lengths, self._limits
        row, source, target = list[int](), 0, 0
        for place in places:
            source, target = source + inputs[place], target + targets[place]
            if row and (source > most_inputs or target > most_targets):
                yield tuple(row)
                row, source, target = [], inputs[place], targets[place]
            row.append(place)
        if row:
            yield tuple(row)

    def describe(self) -> str:
        """Rows of an epoch, and examples of a row."""
        return f"{len(self):,} in an epoch, with {len(self.order) / len(self):.1f} packed examples each"

    def sizes(self) -> list[int]:
        """Examples of each part of the mixture."""
        return self.order.sizes()

    def record(self) -> dict[str, Any]:
        """What the rows depend on, the seed apart, by option; JSON-serializable."""
        return {**self.order.record(), "--pack": list(self._limits)}


class PackedCollator:
    """Stacks packed rows; other features, such as those to evaluate on, go to another collator."""

    def __init__(self, otherwise: Callable[[list[Any]], Any]):
        self._otherwise = otherwise

    def __call__(self, features: list[Any]) -> Any:
        return default_data_collator(features) if "segment_ids" in features[0] else self._otherwise(features)
