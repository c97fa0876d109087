# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""What a config.json of transformers' T5 means, and our configuration of the same model.

Until transformers 4, `tie_word_embeddings` said two things: whether the classifier is the embedding, and whether the
decoder's output is scaled before it. transformers 5 writes true for every T5, and keeps the second meaning alone, in
`scale_decoder_outputs`; of mT5 it says neither and never scales, of umT5 neither and always scales.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, get_type_hints

from t5_experimental.architecture_t5_experimental import STOCK_DEFAULTS, T5ExperimentalArchitecture

from ..errors import ConversionError
from ..mesh.family import ARCHITECTURES
from ..readable import joined, shown


class Classifier(Enum):
    """What of `lm_head.weight` is stored."""

    ABSENT = "absent"
    COPY = "a copy of the embedding"
    OWN = "a matrix of its own"


# Fields that our configuration has, too, with the same meaning; `dense_act_fn` and `is_gated_act` repeat another.
_TAKEN = (
    *STOCK_DEFAULTS["t5"],
    "num_decoder_layers",
    "relative_attention_num_buckets",
    "relative_attention_max_distance",
    "dropout_rate",
    "layer_norm_epsilon",
    "initializer_factor",
    "classifier_dropout",
    "dense_act_fn",
    "is_gated_act",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "decoder_start_token_id",
)

# Fields that are decided anew, are said elsewhere in the folder, or have no meaning for a T5.
_PASSED_OVER = {
    "_name_or_path",
    "architectures",
    "dtype",
    "gradient_checkpointing",
    "is_decoder",
    "is_encoder_decoder",
    "model_type",
    "n_positions",
    "output_past",
    "scale_decoder_outputs",
    "task_specific_params",
    "tie_word_embeddings",
    "tokenizer_class",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}

# What transformers writes of any model; a test compares it with the release that is installed.
_OF_ANY_MODEL = {
    "_name_or_path",
    "architectures",
    "chunk_size_feed_forward",
    "dtype",
    "id2label",
    "is_encoder_decoder",
    "label2id",
    "model_type",
    "output_attentions",
    "output_hidden_states",
    "problem_type",
    "return_dict",
    "transformers_version",
}

_RELATIVES = {
    "longt5": "LongT5, whose encoder attends to near positions and to summaries of the others",
    "switch_transformers": "Switch Transformers, whose feed-forward layers are mixtures of experts",
    "t5gemma": "T5Gemma, which has the layers of Gemma",
    "pix2struct": "Pix2Struct, whose encoder reads images",
}


@dataclass(frozen=True)
class StockModel:
    """What a config.json says.

    Attributes:
        family: "t5.1.1" or "t5.1.1.lm100k".
        architecture: of our model.
        notes: what is not as one might expect, one sentence each.
    """

    family: str
    architecture: T5ExperimentalArchitecture
    notes: tuple[str, ...]


def check_type(fields: Mapping[str, Any], place: str) -> None:
    """Raises unless a config.json is of transformers' T5, mT5 or umT5, which are nearly one architecture.

    Args:
        fields: its content.
        place: of the file, for messages.
    """
    kind = fields.get("model_type")
    if isinstance(kind, str) and kind in STOCK_DEFAULTS:
        if fields.get("quantization_config") is not None:
            raise ConversionError(f"{place} says that the weights are quantized: convert the folder of the original.")
        return
    ours = [architecture.model_type for architecture in ARCHITECTURES.values()]
    if kind in ours:
        raise ConversionError(
            f"{place} is of a model of this package (type {kind!r}), which needs no conversion: load its folder as it "
            "is, or write a checkpoint of the original from it with `t5-experimental export`."
        )
    what = _RELATIVES.get(kind) if isinstance(kind, str) else None
    raise ConversionError(
        f"{place} is of {what or f'a model of type {shown(kind)}, not of a T5'}: these classes cannot express it, give "
        "a folder of type 't5', 'mt5' or 'umt5'."
    )


def read_model(
    fields: Mapping[str, Any],
    place: str,
    name: str,
    classifier: Classifier,
    dtype: str,
    family: str = "auto",
    d_kv: int | None = None,
    feed_forward_proj: str | None = None,
    encoder_only: bool = False,
) -> StockModel:
    """Our configuration of a model of transformers.

    Args:
        fields: content of its config.json, see `check_type`.
        place: of that file, for messages.
        name: of the folder, which alone tells T5's LM adaptation.
        classifier: what is stored of one.
        dtype: dtype of the weights that are written.
        family: "auto", or one of the two whose layers are all alike.
        d_kv: see `pipeline.inspect`.
        feed_forward_proj: see `pipeline.inspect`.
        encoder_only: describe the encoder alone.

    Raises:
        ConversionError: the fields describe no model, contradict the stored classifier, or are not what is asked for.
    """
    chosen = _family(family, name)
    if d_kv is not None and d_kv != fields.get("d_kv", 64):
        raise ConversionError(f"{place} says that d_kv is {shown(fields.get('d_kv', 64))}: leave out --d-kv.")
    own = {key: fields[key] for key in _TAKEN if key in fields}
    notes = _left_out(fields)
    if feed_forward_proj is not None:
        own = {key: value for key, value in own.items() if key not in ("dense_act_fn", "is_gated_act")}
        own["feed_forward_proj"] = feed_forward_proj
    tied, scaled, more = (True, False, ()) if encoder_only else _classifier(fields, place, classifier)
    values: dict[str, Any] = {
        **STOCK_DEFAULTS[fields["model_type"]],
        **own,
        # As transformers' own T5EncoderModel says.
        "is_encoder_decoder": not encoder_only,
        "use_cache": not encoder_only and fields.get("use_cache", True),
        "tie_word_embeddings": tied and not encoder_only,
        "scale_decoder_outputs": scaled,
    }
    if encoder_only:
        values["num_decoder_layers"] = None
    try:
        architecture = _build(ARCHITECTURES[chosen], values)
    except (TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ConversionError(f"{place} describes no model ({reason:.1000}): copy it again.") from error
    return StockModel(chosen, architecture, (*notes, *more))


def _build(architecture: type[T5ExperimentalArchitecture], values: Mapping[str, Any]) -> T5ExperimentalArchitecture:
    """An architecture from the fields of a file, whose types are checked as those of a configuration are: importing
    that would take longer than converting a small model."""
    from huggingface_hub.dataclasses import type_validator

    types = get_type_hints(architecture)
    activation = {"dense_act_fn": str | None, "is_gated_act": bool | None}
    for name, value in values.items():
        type_validator(name, value, {**types, **activation}[name])
    own = {name: value for name, value in values.items() if name not in activation}
    built = architecture(**own)
    built.take_activation(values.get("dense_act_fn"), values.get("is_gated_act"))
    built.validate_architecture()
    return built


def _family(asked: str, name: str) -> str:
    if asked == "auto":
        return "t5.1.1.lm100k" if re.search("lm100k|lm[-_]?adapt", name.lower()) else "t5.1.1"
    if asked not in ("t5.1.1", "t5.1.1.lm100k"):
        raise ConversionError(
            f"--family {asked} contradicts the folder: all layers of transformers' T5 are alike, use t5.1.1, "
            "t5.1.1.lm100k or auto."
        )
    return asked


def _left_out(fields: Mapping[str, Any]) -> tuple[str, ...]:
    names = sorted(fields.keys() - {*_TAKEN, *_PASSED_OVER, *_OF_ANY_MODEL})
    return (f"Of config.json, these fields are not taken over: {joined(names)}.",) if names else ()


def _classifier(fields: Mapping[str, Any], place: str, stored: Classifier) -> tuple[bool, bool, tuple[str, ...]]:
    """Whether the classifier is the embedding, whether the decoder's output is scaled before it, and notes."""
    said, scale = fields.get("tie_word_embeddings"), fields.get("scale_decoder_outputs")
    if said not in (None, True, False) or scale not in (None, True, False):
        raise ConversionError(
            f"{place} has tie_word_embeddings = {shown(said)} and scale_decoder_outputs = {shown(scale)}: both must be "
            "true or false."
        )
    is_mt5 = fields["model_type"] == "mt5"
    # What transformers 5 has written says nothing about the classifier; what is stored does.
    if said is not False and (scale is not None or (is_mt5 and _is_from_transformers_5(fields))):
        tied, scaled = stored is not Classifier.OWN, bool(scale)
        note = f"The classifier is {stored.value}: transformers 5 writes tie_word_embeddings = true of every T5."
        return tied, scaled, () if tied == scaled else (note,)
    if fields["model_type"] == "umt5" and said is not False and _is_from_transformers_5(fields):
        raise ConversionError(
            f"{place} was written by transformers 5, which says tie_word_embeddings = true of every umT5 and scales "
            "its output: set tie_word_embeddings there to what it was before (false for Google's umT5), and "
            "scale_decoder_outputs to true if the model was trained with transformers 5, else to false."
        )
    tied = (not is_mt5) if said is None else said
    if tied and stored is Classifier.OWN:
        raise ConversionError(
            f"{place} says that the classifier is the embedding (tie_word_embeddings), but lm_head.weight is stored "
            "and differs from it: set tie_word_embeddings to false there if the stored classifier is right, or remove "
            "lm_head.weight from the weights."
        )
    if not tied and stored is Classifier.ABSENT:
        raise ConversionError(
            f"lm_head.weight is missing, but {place} says that the classifier is a matrix of its own "
            "(tie_word_embeddings is false): copy all files of the folder; --encoder-only converts the encoder alone."
        )
    return tied, tied if scale is None else scale, ()


def _is_from_transformers_5(fields: Mapping[str, Any]) -> bool:
    match = re.match(r"(\d{1,4})\.", str(fields.get("transformers_version", "")))
    return match is not None and int(match[1]) >= 5
