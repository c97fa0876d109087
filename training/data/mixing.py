# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""The order in which the examples of several sources are trained on.

An epoch has as many draws as the mixture counts examples, and each source gets its share of them exactly, rounded. A
source goes through all of its examples in a new random order before any comes again, across epochs. All of this follows
from the seed and the number of the epoch, so that every process computes the same order, and a resumed run goes on at
the very row. (The original draws a source at random for each example; the shares are the same on average.)
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from ..errors import TrainingError
from .mixture_file import DataMixture


# Keeps the draws of the order of an epoch apart from those of a source.
_EPOCH, _SOURCE = 0, 1


def quotas(mixture: DataMixture, counts: Sequence[int]) -> list[int]:
    """Draws of each source in an epoch; their sum is the number of examples that the mixture counts.

    Args:
        mixture: the rates.
        counts: examples of each source.

    Raises:
        TrainingError: a source's rate is so low that an epoch has none of its examples.
    """
    rates = np.array([mixture.rate_of(place, count) for place, count in enumerate(counts)])
    total = sum(map(mixture.counted, counts))
    exact = total * (rates / rates.max()) / (rates / rates.max()).sum()
    draws = np.floor(exact).astype(int)
    # The largest remainders are rounded up; of equal ones, the first.
    draws[np.argsort(draws - exact, kind="stable")[: total - draws.sum()]] += 1
    for entry, number in zip(mixture.entries, draws, strict=True):
        if number < 1:
            raise TrainingError(
                f"{entry.where}: the rate of {entry.name!r} gives it no example of the {total:,} in an epoch; give a "
                "higher one, or leave it out."
            )
    return draws.tolist()


@dataclass(frozen=True)
class Source:
    """A part of a mixture: how many examples it has, and how many draws of an epoch it gets."""

    name: str
    count: int
    draws: int


class MixtureSampler(Sampler[int]):
    """Rows of an epoch, out of the rows of all sources one after the other.

    Args:
        sources: in the order of their rows; a single one without a name is no mixture, but shuffled.
        seed: of all draws.
    """

    def __init__(self, sources: Sequence[Source], seed: int):
        self.sources, self.seed, self.epoch = tuple(sources), seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch of the next iteration, counted from 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        return sum(source.draws for source in self.sources)

    def __iter__(self) -> Iterator[int]:
        return iter(self.rows_of(self.epoch))

    def rows_of(self, epoch: int) -> list[int]:
        """Rows of an epoch, in their order."""
        first, rows = 0, list[np.ndarray]()
        for place, source in enumerate(self.sources):
            rows.append(first + self._drawn(place, source, epoch))
            first += source.count
        order = np.random.default_rng((self.seed, _EPOCH, epoch)).permutation(len(self))
        return np.concatenate(rows)[order].tolist()

    def _drawn(self, place: int, source: Source, epoch: int) -> np.ndarray:
        """What an epoch draws of a source: a part of an endless sequence of passes over it."""
        begin, end = epoch * source.draws, (epoch + 1) * source.draws
        passes = range(begin // source.count, -(-end // source.count))
        orders = [
            np.random.default_rng((self.seed, _SOURCE, place, number)).permutation(source.count) for number in passes
        ]
        skipped = begin - passes[0] * source.count
        return np.concatenate(orders)[skipped : skipped + source.draws]

    @property
    def is_mixture(self) -> bool:
        """Whether the sources are parts of a mixture."""
        return bool(self.sources[0].name)

    def describe(self) -> str:
        """The effective shares."""
        return (
            ", ".join(
                f"{source.name} {100 * source.draws / len(self):.1f} % ({_amount(source)})" for source in self.sources
            )
            + f" in an epoch of {len(self):,}"
        )

    def sizes(self) -> list[int]:
        """Examples of each source."""
        return [source.count for source in self.sources]

    def record(self) -> dict[str, Any]:
        """What the order depends on, the seed apart, by option; JSON-serializable."""
        parts = [[source.name, source.count, source.draws] for source in self.sources]
        return {"--mixture": parts} if self.is_mixture else {}


def _amount(source: Source) -> str:
    if source.draws <= source.count:
        return f"{source.draws:,} of {source.count:,} examples"
    return f"{source.count:,} examples, {source.draws / source.count:.3g} times each"
