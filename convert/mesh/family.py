# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Which of the four families a checkpoint is, and the configuration of our model for it."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from t5_experimental.architecture_t5_experimental import (
    STACKS,
    TALKING_HEADS,
    LayerSpec,
    T5ExperimentalArchitecture,
    T5FirstLayersNarrowArchitecture,
    T5LMAdaptedArchitecture,
    T5TalkingHeadsArchitecture,
    T5V11Architecture,
)

from ..errors import ConversionError
from .architecture import Architecture
from .rules import FAMILY_SECTIONS


ARCHITECTURES: Mapping[str, type[T5ExperimentalArchitecture]] = {
    "t5.1.1": T5V11Architecture,
    "t5.1.1.lm100k": T5LMAdaptedArchitecture,
    "t5.1.th": T5TalkingHeadsArchitecture,
    "t5.1.n4w10": T5FirstLayersNarrowArchitecture,
}

FINE_TUNING_DROPOUT = 0.1


def choose_family(asked: str, architecture: Architecture, name: str) -> tuple[str, tuple[str, ...]]:
    """The family, and notes on what only a name told.

    Args:
        asked: a family, or "auto".
        architecture: what the model is made of.
        name: of the checkpoint's folder and prefix, which tell lm100k from t5.1.1; they are otherwise alike.

    Raises:
        ConversionError: the family asked for contradicts the variables.
    """
    specs = [spec for stack in STACKS for spec in architecture.layers[stack]]
    kinds = {spec.attention_type for spec in specs}
    uniform = len(set(specs)) == 1
    if asked != "auto":
        _check(asked, kinds, uniform)
        return asked, ()
    if TALKING_HEADS in kinds:
        if uniform:
            return "t5.1.th", ()
        return "t5.1.th", ("Layers differ in width or in kind of attention, and are listed in layer_overrides.",)
    if not uniform:
        return "t5.1.n4w10", ()
    if "lm100k" in name.lower():
        return "t5.1.1.lm100k", ()
    return "t5.1.1", (
        "The family is taken to be t5.1.1: t5.1.1.lm100k has the same variables, and the checkpoint's name does not "
        "say lm100k (--family sets it).",
    )


def _check(asked: str, kinds: set[str], uniform: bool) -> None:
    if not kinds <= set(FAMILY_SECTIONS[asked]):
        raise ConversionError(
            f"--family {asked} contradicts the checkpoint, which has talking heads: use t5.1.th or auto."
        )
    if asked == "t5.1.th" and TALKING_HEADS not in kinds:
        raise ConversionError("--family t5.1.th contradicts the checkpoint, which has no talking heads: use auto.")
    if asked in ("t5.1.1", "t5.1.1.lm100k") and not uniform:
        raise ConversionError(
            f"--family {asked} contradicts the checkpoint, whose layers differ in width: use t5.1.n4w10 or auto."
        )
    if asked == "t5.1.n4w10" and uniform:
        raise ConversionError("--family t5.1.n4w10 contradicts the checkpoint, whose layers are all alike: use auto.")


def build_architecture(
    family: str, architecture: Architecture, vocab_size: int, encoder_only: bool = False
) -> tuple[T5ExperimentalArchitecture, tuple[str, ...]]:
    """The architecture of our model, and notes on what it says otherwise than the checkpoint.

    Args:
        family: one of the four.
        architecture: what the model is made of.
        vocab_size: rows of the embedding.
        encoder_only: describe the encoder alone, as for the family's EncoderModel.

    Returns:
        An architecture with the fewest fields: what most layers have stands once, and only layers that have something
        else are overridden.

    Raises:
        ConversionError: a size is none that a model can have.
    """
    stacks = ("encoder",) if encoder_only else STACKS
    specs = [spec for stack in stacks for spec in architecture.layers[stack]]
    counts = Counter(specs)
    # The last of the commonest, so that a tie is decided for the wide layers.
    base = max(reversed(specs), key=lambda spec: counts[spec])
    dropout_rate, notes = _dropout(architecture.dropout_rate)
    fields: dict[str, Any] = dict(
        vocab_size=vocab_size,
        d_model=architecture.d_model,
        num_layers=len(architecture.layers["encoder"]),
        num_decoder_layers=None if encoder_only else len(architecture.layers["decoder"]),
        **_fields(base),
        layer_overrides=_overrides(family, architecture, base, stacks),
        relative_attention_type=architecture.relative_attention_type,
        relative_attention_num_buckets=architecture.buckets,
        feed_forward_proj=architecture.feed_forward_proj,
        dropout_rate=dropout_rate,
        layer_norm_epsilon=architecture.layer_norm_epsilon,
        tie_word_embeddings=architecture.tied,
        # As transformers' own T5EncoderModel says.
        is_encoder_decoder=not encoder_only,
        use_cache=not encoder_only,
    )
    try:
        built = ARCHITECTURES[family](**fields)
    except ValueError as error:
        raise ConversionError(f"the checkpoint's sizes make no model: {error}") from error
    for stack in stacks:
        assert built.layer_specs(stack) == architecture.layers[stack], stack
    return built, notes


def _dropout(rate: float | None) -> tuple[float, tuple[str, ...]]:
    if rate is None:
        return FINE_TUNING_DROPOUT, (f"dropout_rate is {FINE_TUNING_DROPOUT}, the original's rate for fine-tuning.",)
    if rate == 0:
        return FINE_TUNING_DROPOUT, (
            f"dropout_rate is {FINE_TUNING_DROPOUT}, the original's rate for fine-tuning; pre-training had none.",
        )
    return rate, ()


def _fields(spec: LayerSpec) -> dict[str, Any]:
    """Configuration fields of a layer's widths; None where a field follows from another one."""
    return {
        "attention_type": spec.attention_type,
        "num_heads": spec.num_heads,
        "num_key_heads": None if spec.num_key_heads == spec.num_heads else spec.num_key_heads,
        "num_value_heads": None if spec.num_value_heads == spec.num_heads else spec.num_value_heads,
        "d_kv": spec.d_k,
        "d_v": None if spec.d_v == spec.d_k else spec.d_v,
        "d_ff": spec.d_ff,
    }


def _overrides(
    family: str, architecture: Architecture, base: LayerSpec, stacks: tuple[str, ...]
) -> dict[str, list[dict[str, Any]]] | None:
    """What layers have otherwise than the base, for the stacks where any layer does."""
    overrides = {}
    for stack in stacks:
        rows = [_override(spec, base) for spec in architecture.layers[stack]]
        # The defaults of t5.1.n4w10 make the first layers narrow wherever nothing is given.
        if any(rows) or family == "t5.1.n4w10":
            overrides[stack] = rows
    return overrides or None


def _override(spec: LayerSpec, base: LayerSpec) -> dict[str, Any]:
    # A field that follows from another in this layer, but not in the base, is written out.
    spelled = {"num_key_heads": spec.num_key_heads, "num_value_heads": spec.num_value_heads, "d_v": spec.d_v}
    own, common = _fields(spec), _fields(base)
    return {name: spelled[name] if value is None else value for name, value in own.items() if value != common[name]}
