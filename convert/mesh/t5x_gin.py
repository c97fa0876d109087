# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""What the `config.gin` of a run of T5X says that no shape tells: activation and dropout rate.

Source: `T5Config` in t5x/examples/t5/network.py.
"""

from collections.abc import Mapping
from dataclasses import replace

from ..errors import ConversionError
from ..readable import shown
from .architecture import Architecture, written_proj
from .gin_syntax import GinFile
from .gin_values import flag, integer, number


# Flax's activation -> Mesh TensorFlow's name of the same function; Flax's gelu is the tanh form, too.
_ACTIVATIONS: Mapping[str, str] = {
    "gelu": "gelu",
    "relu": "relu",
    "silu": "swish",
    "swish": "swish",
    "sigmoid": "sigmoid",
    "tanh": "tanh",
}


def with_t5x_gin(architecture: Architecture, gin: GinFile | None) -> Architecture:
    """The architecture that the shapes show, with what a run's file says.

    Args:
        architecture: from the shapes.
        gin: config.gin; None if there is none.

    Raises:
        ConversionError: the file contradicts the shapes, or has an activation that the models have not.
    """
    notes = [note for note in architecture.notes if "operative_config.gin" not in note]
    proj = architecture.feed_forward_proj
    version = "t5.1.1" if proj.startswith("gated") else "t5.1.0"
    assumed = f"{proj} is assumed, as in {version} (--feed-forward-proj sets another)"
    if gin is None:
        notes.append(f"No config.gin tells the feed-forward's activation: {assumed}.")
        return replace(architecture, notes=tuple(notes))
    is_bound, activations = gin.lookup("", "T5Config", "mlp_activations")
    if is_bound:
        proj = _proj(gin, activations, proj)
    else:
        notes.append(f"{gin.name} has no T5Config.mlp_activations: {assumed}.")
    _check(gin, architecture)
    is_bound, rate = gin.lookup("", "T5Config", "dropout_rate")
    dropout = number(gin, "T5Config.dropout_rate", rate, below=1) if is_bound else architecture.dropout_rate
    return replace(architecture, feed_forward_proj=proj, dropout_rate=dropout, notes=tuple(notes))


def _proj(gin: GinFile, activations: object, deduced: str) -> str:
    names = list(activations) if isinstance(activations, list | tuple) else []
    gated = len(names) == 2 and names[1] == "linear"
    if not names or names[0] not in _ACTIVATIONS or not (gated or len(names) == 1):
        raise ConversionError(
            f"{gin.name} sets T5Config.mlp_activations to {shown(activations)}, which the models cannot compute: they "
            f"have one of {', '.join(_ACTIVATIONS)}, alone or followed by 'linear'."
        )
    if gated != deduced.startswith("gated-"):
        raise ConversionError(
            f"{gin.name} contradicts the arrays: its T5Config.mlp_activations is {shown(activations)}, but the "
            f"checkpoint's feed-forward is {'not gated' if gated else 'gated'}."
        )
    return written_proj(_ACTIVATIONS[names[0]], gated)


def _check(gin: GinFile, architecture: Architecture) -> None:
    """Raises if the file contradicts the shapes."""
    spec = architecture.layers["encoder"][0]
    sizes = {
        "emb_dim": architecture.d_model,
        "num_heads": spec.num_heads,
        "head_dim": spec.d_k,
        "mlp_dim": spec.d_ff,
        "num_encoder_layers": len(architecture.layers["encoder"]),
        "num_decoder_layers": len(architecture.layers["decoder"]),
    }
    for name, size in sizes.items():
        is_bound, value = gin.lookup("", "T5Config", name)
        if is_bound and integer(gin, f"T5Config.{name}", value) != size:
            raise ConversionError(
                f"{gin.name} contradicts the arrays: its T5Config.{name} is {value}, but the checkpoint has {size}."
            )
    is_bound, value = gin.lookup("", "T5Config", "logits_via_embedding")
    if is_bound and flag(gin, "T5Config.logits_via_embedding", value) != architecture.tied:
        raise ConversionError(
            f"{gin.name} contradicts the arrays: its T5Config.logits_via_embedding is {value}, but the checkpoint "
            f"{'lacks' if architecture.tied else 'has'} decoder/logits_dense/kernel."
        )
