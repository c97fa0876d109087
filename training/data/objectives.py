# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Pre-training objectives: which tokens of a text are inputs, and which are predicted.

These are the original's, from `t5/data/preprocessors.py`. Every random decision is an argument of the function that
applies it, so that tests can compare with the original for the same decisions; [`Objective.make`] draws them.

    raw text         a b c d e f g h         span corruption: "c d" and "h" are noise
    inputs           a b <0> e f g <1> </s>
    targets          <0> c d <1> h </s>
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np


Pair = tuple[np.ndarray, np.ndarray]


def span_corruption_lengths(
    inputs_length: int, noise_density: float = 0.15, mean_span_length: float = 3.0
) -> tuple[int, int]:
    """How much raw text fills inputs of a given length, and the length of its targets.

    Both count the end-of-sequence token. Source: `random_spans_helper`.

    Returns:
        Raw tokens and target tokens: (568, 114) for 512 inputs.
    """

    def lengths(tokens: int) -> tuple[int, int]:
        noise = round(tokens * noise_density)
        spans = round(noise / mean_span_length)
        return tokens - noise + spans + 1, noise + spans + 1

    tokens = inputs_length - 1
    while lengths(tokens + 1)[0] <= inputs_length:
        tokens += 1
    filled, targets_length = lengths(tokens)
    if noise_density == 0.5 and targets_length > filled:
        return tokens - 1, targets_length - 1
    return tokens, targets_length


def noise_counts(length: int, noise_density: float, mean_span_length: float) -> tuple[int, int]:
    """Number of noise tokens and of noise spans in `length` >= 2 tokens; in float32, so that halves round as there.

    Source: the first half of `random_spans_noise_mask`. Where there are more spans than other tokens to separate them,
    the original fails; here, there are as many spans as such tokens.
    """
    noise = int(np.round(np.float32(length) * np.float32(noise_density)))
    noise = min(max(noise, 1), length - 1)
    spans = max(int(np.round(np.float32(noise) / np.float32(mean_span_length))), 1)
    return noise, min(spans, length - noise)


def _segment_lengths(starts: np.ndarray) -> np.ndarray:
    """Lengths of segments. `starts` marks the first token of each, without the very first token."""
    return np.diff(np.flatnonzero(np.concatenate(([True], starts, [True]))))


def noise_spans_mask(length: int, noise_starts: np.ndarray, other_starts: np.ndarray) -> np.ndarray:
    """Which tokens are noise: alternating spans of text and noise, starting with text and ending with noise.

    Args:
        length: number of tokens; a single token gets the first part of the mask of two.
        noise_starts: booleans, one fewer than noise tokens: where a new span of noise begins.
        other_starts: the same for the other tokens, with as many spans.

    Returns:
        `(length,)`, booleans. Source: the second half of `random_spans_noise_mask`.
    """
    spans = np.stack((_segment_lengths(other_starts), _segment_lengths(noise_starts)), axis=1).ravel()
    return np.repeat(np.arange(len(spans)) % 2 == 1, spans)[:length]


def draw_starts(items: int, segments: int, rng: np.random.Generator) -> np.ndarray:
    """`items - 1` booleans, `segments - 1` of them true: a uniformly random way to split items into segments."""
    return rng.permutation(np.arange(items - 1) < segments - 1)


def replace_spans(tokens: np.ndarray, mask: np.ndarray, first_sentinel: int) -> np.ndarray:
    """Replaces every run of tokens where `mask` is true by a sentinel, counting down from the first.

    Source: `noise_span_to_unique_sentinel`, and with the mask inverted `nonnoise_span_to_unique_sentinel`.
    """
    follows = np.concatenate(([False], mask[:-1]))
    begins = mask & ~follows
    return np.where(begins, first_sentinel + 1 - np.cumsum(begins), tokens)[~(mask & follows)]


def prefix_length_bounds(length: int, noise_density: float = 0.5) -> tuple[int, int]:
    """Minimum and maximum number of prefix tokens, inclusive, for a text of `length` tokens.

    Source: `random_prefix_noise_mask`, which also calls the density `noise_density`.
    """
    most = length - 1
    fewest = int(np.round(np.float32(1 - 2 * noise_density) * np.float32(most)))
    return min(most, max(1, fewest)), most


def _with_end(tokens: np.ndarray, eos: int, limit: int) -> np.ndarray:
    """At most `limit` tokens, ending with `eos`. Source: seqio's `append_eos_after_trim`."""
    return np.append(tokens[: limit - 1], eos)


@dataclass(frozen=True)
class Objective(ABC):
    """How documents become pairs of inputs and targets.

    Attributes:
        inputs_length: maximum tokens of inputs, including the end-of-sequence token.
        targets_length: maximum tokens of targets, including the end-of-sequence token.
        eos: id of the end-of-sequence token.
        documents_together: number of documents to join before chunking, so that fewer chunks are short.
    """

    inputs_length: int
    targets_length: int
    eos: int
    documents_together: int

    @property
    @abstractmethod
    def chunk_length(self) -> int:
        """Raw tokens in one example; only the last chunk of joined documents has fewer."""

    @abstractmethod
    def make(self, tokens: np.ndarray, rng: np.random.Generator) -> Pair:
        """Inputs and targets of a chunk, both ending with `eos`."""

    def join(self, documents: list[np.ndarray]) -> np.ndarray:
        """Joins documents. Source: `reduce_concat_tokens`."""
        return np.concatenate(documents)

    def amount(self) -> str:
        """The text of an example, in words."""
        return f"{self.chunk_length} tokens of text"

    def chunks(self, documents: list[np.ndarray], rng: np.random.Generator) -> list[np.ndarray]:
        """Splits documents into chunks that contain every token once; `rng` is for objectives that choose lengths.

        Source: `reduce_concat_tokens` and `split_tokens`. The original first applies `select_random_chunk`, which keeps
        65,536 tokens of a longer document; it is left out here, so that nothing is lost.
        """
        tokens = self.join(documents)
        return [tokens[start : start + self.chunk_length] for start in range(0, len(tokens), self.chunk_length)]


@dataclass(frozen=True)
class SpanCorruption(Objective):
    """Replaces spans of the text by sentinels, and predicts them. T5 was pre-trained with this.

    Attributes:
        first_sentinel: id of `<extra_id_0>`; the others count down from it.
        noise_density: fraction of the tokens to predict.
        mean_span_length: mean number of tokens in a span.
    """

    first_sentinel: int
    noise_density: float = 0.15
    mean_span_length: float = 3.0

    @property
    def chunk_length(self) -> int:
        return span_corruption_lengths(self.inputs_length, self.noise_density, self.mean_span_length)[0]

    def make(self, tokens: np.ndarray, rng: np.random.Generator) -> Pair:
        length = max(len(tokens), 2)
        noise, spans = noise_counts(length, self.noise_density, self.mean_span_length)
        noise_starts, other_starts = draw_starts(noise, spans, rng), draw_starts(length - noise, spans, rng)
        mask = noise_spans_mask(len(tokens), noise_starts, other_starts)
        return self.corrupt(tokens, mask)

    def corrupt(self, tokens: np.ndarray, mask: np.ndarray) -> Pair:
        """Inputs and targets, where `mask` marks the tokens to predict."""
        inputs = replace_spans(tokens, mask, self.first_sentinel)
        targets = replace_spans(tokens, ~mask, self.first_sentinel)
        return _with_end(inputs, self.eos, self.inputs_length), _with_end(targets, self.eos, self.targets_length)


@dataclass(frozen=True)
class PrefixLM(Objective):
    """Reads the beginning and predicts the rest. The lm100k checkpoints were adapted with this.

    The original never joins documents here. It truncates a rest that is longer than the targets.

    Attributes:
        noise_density: half the largest fraction of tokens to predict, at most 0.5.
    """

    noise_density: float = 0.5

    @property
    def chunk_length(self) -> int:
        return self.inputs_length - 1

    def make(self, tokens: np.ndarray, rng: np.random.Generator) -> Pair:
        fewest, most = prefix_length_bounds(len(tokens), self.noise_density)
        return self.split(tokens, int(rng.integers(fewest, most + 1)))

    def split(self, tokens: np.ndarray, prefix_length: int) -> Pair:
        """Inputs and targets, split after `prefix_length` tokens."""
        inputs = _with_end(tokens[:prefix_length], self.eos, self.inputs_length)
        return inputs, _with_end(tokens[prefix_length:], self.eos, self.targets_length)


@dataclass(frozen=True)
class PlainLM(Objective):
    """Predicts all of the text; the encoder only reads an end-of-sequence token.

    Targets are those of `full_lm`, with `eos` at the end of documents instead of chunks; inputs are those of `lm`.
    """

    @property
    def chunk_length(self) -> int:
        return self.targets_length

    def join(self, documents: list[np.ndarray]) -> np.ndarray:
        return np.concatenate([np.append(document, self.eos) for document in documents])

    def make(self, tokens: np.ndarray, rng: np.random.Generator) -> Pair:
        return np.array([self.eos]), tokens
