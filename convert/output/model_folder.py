# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Folders of models of ours, or of stock T5, as what other formats are written from."""

from collections.abc import Mapping
from dataclasses import fields as fields_of
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t5_experimental.architecture_t5_experimental import HEAD_SIZE, STOCK_DEFAULTS
from t5_experimental.original import SLOTS_FILE

from ..errors import ConversionError
from ..mesh.parameters import Parameter
from ..mesh.rules import SLOTS
from ..tensors import Variable
from .json_files import read_json
from .safetensors_reader import weight_files
from .unchanged import changed_files


if TYPE_CHECKING:
    from t5_experimental.configuration_t5_experimental import T5ExperimentalConfig


# What transformers may save beside the one matrix that these are, and a bias of old releases that nothing reads.
_IGNORED = (
    "encoder.embed_tokens.weight",
    "decoder.embed_tokens.weight",
    "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",
)

# What transformers' T5 says beside `feed_forward_proj`.
_STOCK_FIELDS = ("dense_act_fn", "is_gated_act")

WITHOUT_SLOTS = f"convert again, or move {SLOTS_FILE} away to export the model alone"


def read_config(folder: Path) -> "T5ExperimentalConfig":
    """The configuration of a folder of ours, or of stock T5.

    Raises:
        ConversionError: it has none, or that of another model.
    """
    from t5_experimental.configuration_t5_experimental import CONFIG_CLASSES, T5V11Config

    path = folder / "config.json"
    # A stock T5 is a t5.1.1, or a t5.1.0, which differs from it in what the configuration says.
    classes = {config_class.model_type: config_class for config_class in CONFIG_CLASSES}
    classes |= dict.fromkeys(STOCK_DEFAULTS, T5V11Config)
    try:
        fields = read_json(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ConversionError(f"{folder} has no config.json: give a folder that the converter wrote.") from error
    except (OSError, ValueError) as error:
        raise ConversionError(f"{path} cannot be read ({error}): convert again.") from error
    model_type = fields.get("model_type")
    if not isinstance(model_type, str) or model_type not in classes:
        raise ConversionError(
            f"{folder} holds a model of type {model_type!r:.80}, which is no T5: give a folder that the converter "
            "wrote."
        )
    try:
        return classes[model_type].from_dict(_known(fields))
    except Exception as error:  # transformers raises any kind for the values of its own fields
        # Around what the configuration says itself there may be an exception that says where it was said.
        reason = " ".join(str(error.__cause__ or error).split())
        reason = reason if reason.isprintable() else repr(reason)  # it may quote the file
        advice = "correct it" if model_type in STOCK_DEFAULTS else "convert again"
        raise ConversionError(f"{path} describes no model ({reason.rstrip('.'):.1000}): {advice}.") from error


def _known(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that say what the model is; of any other, transformers makes an attribute."""
    from t5_experimental.architecture_t5_experimental import T5ExperimentalArchitecture

    known = {
        "model_type",
        "transformers_version",
        HEAD_SIZE,
        *_STOCK_FIELDS,
        *(field.name for field in fields_of(T5ExperimentalArchitecture)),
    }
    return {name: value for name, value in fields.items() if name in known}


def sort_tensors(
    folder: Path, tensors: Mapping[str, Variable], wanted: Mapping[str, Parameter], tied: bool
) -> dict[str, list[str]]:
    """Kinds of the optimizer's slots, by parameter; raises unless the tensors are those of the model and its slots."""
    ignored = (*_IGNORED, *(("lm_head.weight",) if tied else ()))
    slots: dict[str, list[str]] = {}
    for name, parameter in wanted.items():
        if name not in tensors:
            # transformers 5 saves every classifier as the embedding, and does not say so.
            advice = "convert it first, if transformers 5 saved it, or " if name == "lm_head.weight" else ""
            raise ConversionError(
                f"{folder} has no tensor {name}, which the model of its config.json has: {advice}save the whole model, "
                "with adapters merged into it."
            )
        if tensors[name].shape != parameter.shape:
            raise ConversionError(
                f"{name} has the shape {list(tensors[name].shape)}, but {list(parameter.shape)} is expected: the "
                f"config.json of {folder} contradicts the tensors."
            )
    for name in tensors:
        owner, _, kind = name.rpartition(".")
        if owner in wanted and kind in SLOTS.values():
            slots.setdefault(owner, []).append(kind)
        elif name not in wanted and name not in ignored:
            raise ConversionError(
                f"{folder} has a tensor {name!r:.200}, which the model of its config.json has not: only the language "
                "model itself can be exported."
            )
    for name, parameter in wanted.items() if slots else ():
        # Only of two dimensions or more, a state can be factored.
        complete = ({"v"}, {"vr", "vc"}) if len(parameter.mesh_shape) > 1 else ({"v"},)
        if {*slots.get(name, ())} - {"m"} not in complete:
            raise ConversionError(f"{SLOTS_FILE} lacks a slot of {name}: {WITHOUT_SLOTS}.")
    return slots


def slots_are_stale(folder: Path, record: Mapping[str, Any]) -> bool:
    """Whether the optimizer's state is that of the conversion, and the weights are not, as of a model that was trained
    and saved to its folder; `record` is that of the conversion."""
    if not (folder / SLOTS_FILE).is_file():
        return False
    changed = changed_files(folder, record)
    return SLOTS_FILE not in changed and any(path.name in changed for path in weight_files(folder))
