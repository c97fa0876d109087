# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""More pre-training objectives: iid denoising and deshuffling of the T5 paper, and UL2's mixture of denoisers.

As in `objectives.py`, every random decision is an argument of the function that applies it.

    raw text         a b c d e f g h        iid denoising: "c", "d" and "h" are noise, each drawn on its own
    inputs           a b <0> e f g <1> </s>
    targets          <0> c d <1> h </s>

    raw text         a b c d e              deshuffling
    inputs           d a e b c </s>
    targets          a b c d e </s>
"""

from dataclasses import dataclass

import numpy as np

from .objectives import Objective, Pair, PrefixLM, SpanCorruption, noise_counts, replace_spans, span_corruption_lengths


def iid_targets_length(inputs_length: int, noise_density: float) -> int:
    """Room for targets: the original's 192 for 512 inputs and a density of 0.15, in proportion.

    Source: `t5/models/gin/objectives/iid_15_u_u.gin`.
    """
    return min(inputs_length, int(np.ceil(2.5 * noise_density * inputs_length)))


@dataclass(frozen=True)
class IidDenoising(Objective):
    """As span corruption, but each token is noise by a draw of its own. Source: `iid_denoising`.

    A draw whose targets do not fit, or that needs more sentinels than there are, is repeated: the original trims such
    targets, and goes on with the ids of text below the last sentinel.

    Attributes:
        first_sentinel: id of `<extra_id_0>`; the others count down from it.
        sentinels: number of sentinels.
        noise_density: probability that a token is noise.
    """

    first_sentinel: int
    sentinels: int
    noise_density: float = 0.15

    @property
    def chunk_length(self) -> int:
        return self.inputs_length - 1

    def make(self, tokens: np.ndarray, rng: np.random.Generator) -> Pair:
        while not self.fits(mask := rng.random(len(tokens)) < self.noise_density):
            pass
        return self.corrupt(tokens, mask)

    def fits(self, mask: np.ndarray) -> bool:
        """Whether targets and sentinels suffice."""
        noise_spans, text_spans = (int(np.sum(side[1:] & ~side[:-1])) + int(side[0]) for side in (mask, ~mask))
        return max(noise_spans, text_spans) <= self.sentinels and mask.sum() + text_spans < self.targets_length

    def corrupt(self, tokens: np.ndarray, mask: np.ndarray) -> Pair:
        """Inputs and targets, where `mask` marks the tokens to predict."""
        inputs = replace_spans(tokens, mask, self.first_sentinel)
        targets = replace_spans(tokens, ~mask, self.first_sentinel)
        return np.append(inputs, self.eos), np.append(targets, self.eos)


@dataclass(frozen=True)
class Deshuffling(Objective):
    """Reads the tokens in any order, and predicts the text. Source: `permute_noise_tokens` as in `all_permute.gin`.

    The original never joins documents here.
    """

    @property
    def chunk_length(self) -> int:
        return self.inputs_length - 1

    def make(self, tokens: np.ndarray, rng: np.random.Generator) -> Pair:
        return self.shuffle(tokens, rng.permutation(len(tokens)))

    def shuffle(self, tokens: np.ndarray, order: np.ndarray) -> Pair:
        """Inputs and targets, where `order` says which token is at each position of the inputs."""
        return np.append(tokens[order], self.eos), np.append(tokens, self.eos)


@dataclass(frozen=True)
class Denoiser:
    """A part of [`Mixture`].

    Attributes:
        mode: ids that its inputs begin with.
        objective: makes the rest of them, and the targets.
    """

    mode: tuple[int, ...]
    objective: Objective


@dataclass(frozen=True)
class Mixture(Objective):
    """Several denoisers; each chunk is cut for one of them, all equally likely.

    The published code splits its documents into as many parts as there are denoisers, and samples from their examples
    with equal rates. It also prepends modes to full inputs, and trims the end; here, denoisers leave room for them.
    Source: `ul2_objective`, appendix of https://arxiv.org/abs/2205.05131.

    Attributes:
        denoisers: the parts.
    """

    denoisers: tuple[Denoiser, ...]

    @property
    def chunk_length(self) -> int:
        return max(denoiser.objective.chunk_length for denoiser in self.denoisers)

    def amount(self) -> str:
        lengths = [denoiser.objective.chunk_length for denoiser in self.denoisers]
        return f"{min(lengths):,} to {max(lengths):,} tokens of text"

    def chunks(self, documents: list[np.ndarray], rng: np.random.Generator) -> list[np.ndarray]:
        """As for other objectives, but each chunk begins with the index of its denoiser."""
        tokens, chunks, start = self.join(documents), list[np.ndarray](), 0
        while start < len(tokens):
            index = int(rng.integers(len(self.denoisers)))
            end = start + self.denoisers[index].objective.chunk_length
            chunks.append(np.concatenate(([index], tokens[start:end])))
            start = end
        return chunks

    def make(self, tokens: np.ndarray, rng: np.random.Generator) -> Pair:
        denoiser = self.denoisers[tokens[0]]
        inputs, targets = denoiser.objective.make(tokens[1:], rng)
        return np.concatenate((np.array(denoiser.mode, dtype=inputs.dtype), inputs)), targets


# Table 1 of the paper: modes with the mean length of spans and the density of noise. The S-denoiser is prefix LM, of a
# quarter of the text on average.
UL2_SPANS = (
    *(("[NLU]", mean, 0.15) for mean in (3.0, 8.0)),
    *(("[NLG]", mean, density) for mean, density in ((3.0, 0.5), (8.0, 0.5), (64.0, 0.15), (64.0, 0.5))),
)
UL2_PREFIX = ("[S2S]", 0.25)
UL2_MODES = ("[NLU]", "[S2S]", "[NLG]")


def ul2(
    modes: dict[str, tuple[int, ...]], inputs_length: int, eos: int, together: int, first_sentinel: int, sentinels: int
) -> Mixture | None:
    """UL2's seven denoisers, or None if the inputs are too short for them.

    A denoiser with more spans than sentinels, as with 128 spans in 512 inputs, gets shorter inputs.

    Args:
        modes: ids of each mode.
        inputs_length: maximum tokens of inputs, including the mode and the end-of-sequence token.
        eos: id of the end-of-sequence token.
        together: number of documents to join before chunking.
        first_sentinel: id of `<extra_id_0>`.
        sentinels: number of sentinels.
    """
    denoisers = []
    for mode, mean, density in UL2_SPANS:
        length = inputs_length - len(modes[mode])
        while length > 2 and _spans(length, density, mean) > sentinels:
            length -= 1
        chunk, targets = span_corruption_lengths(length, density, mean)
        noise, spans = noise_counts(max(chunk, 2), density, mean)
        # Too short for a single span of this length: the original would leave out one more, and trim the end.
        if noise + spans + 1 > targets:
            return None
        objective: Objective = SpanCorruption(length, targets, eos, together, first_sentinel, density, mean)
        denoisers.append(Denoiser(modes[mode], objective))
    mode, density = UL2_PREFIX
    length = inputs_length - len(modes[mode])
    denoisers.append(Denoiser(modes[mode], PrefixLM(length, length, eos, together, density)))
    targets = max(denoiser.objective.targets_length for denoiser in denoisers)
    return Mixture(inputs_length, targets, eos, together, tuple(denoisers))


def _spans(inputs_length: int, density: float, mean: float) -> int:
    return noise_counts(max(span_corruption_lengths(inputs_length, density, mean)[0], 2), density, mean)[1]
