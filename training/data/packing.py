# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Rows of fixed length: one example in each, or as many as fit.

Packs as the original does, in seqio's `trim_and_pack_dataset`: an example goes into the current row if inputs and
targets both fit there, otherwise into a new one. Segment ids number the examples of a row from 1 and are 0 at padding.
Positions, which restart in every example, are also the original's; models with relative positions do not use them.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from .objectives import Pair


@dataclass
class _Side:
    """Inputs or targets of the current row."""

    length: int
    examples: list[np.ndarray] = field(default_factory=list)

    def has_room(self, tokens: np.ndarray) -> bool:
        return sum(map(len, self.examples)) + len(tokens) <= self.length

    def finish(self, name: str) -> dict[str, np.ndarray]:
        """The row as arrays, padded with zeros; empties this side."""
        parts = {
            name: self.examples,
            f"{name}_segment_ids": [np.full(len(tokens), number) for number, tokens in enumerate(self.examples, 1)],
            f"{name}_positions": [np.arange(len(tokens)) for tokens in self.examples],
        }
        row = {key: np.zeros(self.length, dtype=np.int64) for key in parts}
        for key, arrays in parts.items():
            joined = np.concatenate(arrays)
            row[key][: len(joined)] = joined
        self.examples = []
        return row


def pack(
    pairs: Iterable[Pair], inputs_length: int, targets_length: int, most_examples: int | None = None
) -> Iterator[dict[str, np.ndarray]]:
    """Packs examples into rows, in their order.

    Args:
        pairs: inputs and targets, each with at least one token; they are truncated to the length of a row.
        inputs_length: of a row.
        targets_length: of a row.
        most_examples: maximum examples in a row; 1 disables packing.

    Yields:
        `inputs`, `inputs_segment_ids`, `inputs_positions`, `(inputs_length,)`, and the same for `targets`.

    Raises:
        ValueError: inputs or targets are empty, so that the segment ids of both sides would not match.
    """
    inputs, targets = _Side(inputs_length), _Side(targets_length)
    # The original packs each batch of this many examples separately, so the last row of each may have room left.
    batch = max(inputs_length, targets_length)
    for number, (source, target) in enumerate(pairs):
        if not len(source) or not len(target):
            raise ValueError("Examples without inputs or without targets cannot be packed: end both with a token.")
        source, target = source[:inputs_length], target[:targets_length]
        fits = inputs.has_room(source) and targets.has_room(target) and number % batch != 0
        if inputs.examples and (not fits or len(inputs.examples) == most_examples):
            yield inputs.finish("inputs") | targets.finish("targets")
        inputs.examples.append(source)
        targets.examples.append(target)
    if inputs.examples:
        yield inputs.finish("inputs") | targets.finish("targets")


def model_features(row: dict[str, np.ndarray], packed: bool) -> dict[str, np.ndarray]:
    """The model's arguments for a row: `input_ids` and `labels`, and segment ids if it is packed, else a mask."""
    labels = np.where(row["targets_segment_ids"] == 0, -100, row["targets"])
    features = {"input_ids": row["inputs"], "labels": labels}
    if packed:
        ids = {"segment_ids": row["inputs_segment_ids"], "decoder_segment_ids": row["targets_segment_ids"]}
        return features | ids
    return features | {"attention_mask": row["inputs_segment_ids"]}
