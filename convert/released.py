# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""The fifteen checkpoints that Google released: where they are, and what it takes to convert them."""

import difflib
from dataclasses import dataclass

from t5_experimental.presets import PRESETS

from .errors import ConversionError


BUCKET = "gs://t5-data"
VOCABULARY = f"{BUCKET}/vocabs/cc_all.32000.100extra/sentencepiece.model"
LICENCE = "apache-2.0"


# Steps at the end of pre-training; where none is stated, the checkpoint tells.
_STEPS = {"t5.1.1": 1_000_000, "t5.1.1.lm100k": 1_100_000}


@dataclass(frozen=True)
class Released:
    """A released checkpoint.

    Attributes:
        name: one of `PRESETS`.
        family: one of the four.
        source: address of its folder.
        vocabulary: address of its sentencepiece model.
        licence: as the Hugging Face hub calls it.
        step: training step, if it is stated anywhere but in the checkpoint.
    """

    name: str
    family: str
    source: str
    vocabulary: str
    licence: str
    step: int | None


def is_released(name: object) -> bool:
    """Whether it is the name of a released checkpoint."""
    return name in PRESETS


def resolve_released(name: str) -> Released:
    """Where a released checkpoint is.

    Raises:
        ConversionError: no checkpoint of that name was released.
    """
    if name not in PRESETS:
        close = difflib.get_close_matches(name, PRESETS, n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else "`t5-experimental presets` lists them."
        raise ConversionError(f"{name} is not the name of a released checkpoint: {hint}")
    family = name.rpartition(".")[0]
    source = f"{BUCKET}/pretrained_models/{name}"
    return Released(name, family, source, VOCABULARY, LICENCE, _STEPS.get(family))
