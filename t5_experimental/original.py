# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Facts about the original code that both converter and training use: sizes, axes of kernels, Adafactor's state.

**Axes** are labels separated by spaces; labels merged into one axis are joined by an asterisk, as in
"d_model num_heads*d_kv". A label is the name of a configuration field.

**Adafactor's state** is `optimizer.safetensors` next to the model. Every parameter `P` has either `P.v`, or `P.vr` and
`P.vc`, and also `P.m` if the run had momentum (beta1 > 0):

    P.v   decayed mean of the squared gradient, in the shape of P
    P.vr  the same, averaged over P's largest dimension d0
    P.vc  the same, averaged over P's second largest dimension d1
    P.m   decayed mean of the update, learning rate included, in the shape of P

Mesh has its own order of axes, and takes the first of equal dimensions as the larger one. So the header of the file
gives the indices of d0 and d1 among OUR axes for each factored parameter, under the key `factored`, as JSON:

    {"encoder.block.0.layer.0.SelfAttention.q.weight": {"shape": [384, 512], "d0": 1, "d1": 0}, ...}

`shape` is the shape of the parameter, unless Mesh factored one of several axes that we merge (heads and head size of a
3-D kernel): then view the parameter as `shape` first. The shape of `P.vr` is `shape` without entry `d0`, that of `P.vc`
without entry `d1`. With g the gradient in that shape, a step is

    vr = decay * vr + (1 - decay) * (g**2 + 1e-30).mean(d0)
    vc = decay * vc + (1 - decay) * (g**2 + 1e-30).mean(d1)
    x  = g * rsqrt(vr / vr.mean(d1)) * rsqrt(vc)        (vr and vc with d0 and d1 as axes of size 1)

Other keys: `step`, the next training step (from 0: decay = 1 - (step + 1)**-0.8), and `optimizer`. Which
parameters are factored depends on `min_dim_size_to_factor` of the run, 128 unless its gin file sets it.
Source: `AdafactorOptimizer` in mesh_tensorflow/optimize.py.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


# The original pads the rows of its embedding to a multiple of this.
VOCAB_DIVISOR = 128

# Adafactor factors the second moment if the two largest dimensions are at least this large.
FACTORED_FROM = 128

SLOTS_FILE = "optimizer.safetensors"

# Axes of the kernels of talking-heads attention, by our name: in the original and here.
TALKING_HEADS_AXES = {
    "q": ("d_model num_key_heads d_k", "num_key_heads*d_k d_model"),
    "k": ("d_model num_key_heads d_k", "num_key_heads*d_k d_model"),
    "v": ("d_model num_value_heads d_v", "num_value_heads*d_v d_model"),
    "o": ("num_value_heads d_v d_model", "d_model num_value_heads*d_v"),
}


def labels_of(axes: str) -> list[str]:
    """Labels in the order of the axes in memory."""
    return axes.replace("*", " ").split()


def shape_of(axes: str, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """Shape of the axes, for example (512, 384) for "d_model num_heads*d_kv".

    Args:
        axes: labels as described at the top of this module.
        sizes: size of every label.
    """
    return tuple(math.prod(sizes[label] for label in axis.split("*")) for axis in axes.split())


def padded_vocab_size(size: int) -> int:
    """Rows of the original's embedding for a vocabulary."""
    return -(-size // VOCAB_DIVISOR) * VOCAB_DIVISOR


def largest_dimensions(shape: Sequence[int]) -> list[int]:
    """Indices of the dimensions of a Mesh variable, the largest first; equal ones stay in order."""
    return sorted(range(len(shape)), key=lambda k: -shape[k])  # stable, in the original too


def factored_dimensions(shape: Sequence[int], factored_from: int = FACTORED_FROM) -> tuple[int, int] | None:
    """Adafactor's d0 and d1, the largest dimension of a Mesh variable and the second; None if it is not factored.

    Args:
        shape: of the variable, in the original's order of axes.
        factored_from: `min_dim_size_to_factor` of the run.
    """
    largest = largest_dimensions(shape)[:2]
    if len(largest) < 2 or shape[largest[1]] < factored_from:
        return None
    return largest[0], largest[1]


@dataclass(frozen=True)
class SlotsHeader:
    """Metadata of `optimizer.safetensors`.

    Attributes:
        step: next training step.
        factored: `shape`, `d0` and `d1` of every factored parameter, by its name.
    """

    step: int
    factored: Mapping[str, Mapping[str, Any]]

    def metadata(self) -> dict[str, str]:
        """The metadata that safetensors stores."""
        factored = json.dumps(self.factored, separators=(",", ":"))
        return {"format": "pt", "optimizer": "adafactor", "step": str(self.step), "factored": factored}

    @classmethod
    def parse(cls, metadata: Mapping[str, str]) -> "SlotsHeader | None":
        """Reads the metadata of a file; None if the file holds another optimizer's state.

        Raises:
            KeyError, ValueError: the metadata is broken.
        """
        if metadata.get("optimizer") != "adafactor":
            return None
        return cls(int(metadata["step"]), json.loads(metadata["factored"]))
