# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Identifies the model that a run starts from. Checkpoints of adapters hold none of its weights, and those of a whole
model none as they were."""

import hashlib
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import PreTrainedModel

from ..engines.fsdp2 import full_copy


# How many tensors, and numbers of each, are looked at.
_TENSORS, _NUMBERS = 16, 256
_DIGEST = "base_model_digest"


def mark_base(model: PreTrainedModel) -> None:
    """Notes in a model which weights it has, before it gets adapters or is trained; all processes call this.

    A few numbers of a few tensors tell models apart, and depend neither on the folder nor on how an engine shards them.
    """
    # FSDP2 may have loaded weights in the first process alone, which sends them to the others later.
    found = [None if any(weight.is_meta for weight in model.parameters()) else _digest(model)]
    setattr(model, _DIGEST, (broadcast_object_list(found) if PartialState().num_processes > 1 else found)[0])


def _digest(model: PreTrainedModel) -> str:
    weights = sorted(model.named_parameters())
    digest = hashlib.sha256()
    for place in torch.linspace(0, len(weights) - 1, min(len(weights), _TENSORS)).long().tolist():
        name, weight = weights[place]
        numbers = full_copy(weight).reshape(-1)
        some = torch.linspace(0, len(numbers) - 1, min(len(numbers), _NUMBERS), dtype=torch.float64).long()
        digest.update(name.encode() + numbers[some].float().numpy().astype("<f4").tobytes())
    return digest.hexdigest()[:12]


def mark_as(model: PreTrainedModel, known: str) -> None:
    """Notes what is known of the weights that a model began with."""
    setattr(model, _DIGEST, known)


def base_digest(model: Any) -> str | None:
    """What [`mark_base`] has noted in the model, or in the one under its adapters; None if it has not."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return getattr(base, _DIGEST, None)
