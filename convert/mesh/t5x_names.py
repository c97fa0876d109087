# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""What T5X calls the parameters of a T5. Its arrays have the axes of Mesh TensorFlow's, whose rules therefore hold.

Layers have arrays of their own, as in "target/encoder/layers_3/mlp/wo/kernel", or share one with an axis for the layers
if they were scanned, as in "target/encoder/encoder/mlp/wo/kernel". The query kernels include the factor 1 / sqrt(d_kv),
as Mesh TensorFlow's do. Sources: t5x/examples/t5/network.py, t5x/examples/scalable_t5/network.py.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from ..errors import ConversionError
from ..tensors import Variable
from .matching import Match, Sorted
from .rules import SECTIONS, SLOT_DROP, Rule
from .scopes import Layout


_ATTENTION = {"query": "q", "key": "k", "value": "v", "out": "o"}
_BIAS = "SelfAttention.relative_attention_bias.weight"


def _attention(theirs: str, ours: str) -> dict[str, str]:
    return {f"{theirs}/{name}/kernel": f"{ours}.{letter}.weight" for name, letter in _ATTENTION.items()}


def _mlp(j: int) -> dict[str, str]:
    kernels = {f"mlp/{name}/kernel": f"layer.{j}.DenseReluDense.{name}.weight" for name in ("wi", "wi_0", "wi_1", "wo")}
    return {"pre_mlp_layer_norm/scale": f"layer.{j}.layer_norm.weight", **kernels}


# T5X's name of an array in a layer -> ours.
LAYERS: Mapping[str, Mapping[str, str]] = {
    "encoder": {
        "relpos_bias/rel_embedding": f"layer.0.{_BIAS}",
        "pre_attention_layer_norm/scale": "layer.0.layer_norm.weight",
        **_attention("attention", "layer.0.SelfAttention"),
        **_mlp(1),
    },
    "decoder": {
        "relpos_bias/rel_embedding": f"layer.0.{_BIAS}",
        "pre_self_attention_layer_norm/scale": "layer.0.layer_norm.weight",
        **_attention("self_attention", "layer.0.SelfAttention"),
        "pre_cross_attention_layer_norm/scale": "layer.1.layer_norm.weight",
        **_attention("encoder_decoder_attention", "layer.1.EncDecAttention"),
        **_mlp(2),
    },
}
TOP: Mapping[str, str] = {
    "token_embedder/embedding": "shared.weight",
    "encoder/encoder_norm/scale": "encoder.final_layer_norm.weight",
    "encoder/relpos_bias/rel_embedding": f"encoder.block.0.layer.0.{_BIAS}",
    "decoder/decoder_norm/scale": "decoder.final_layer_norm.weight",
    "decoder/relpos_bias/rel_embedding": f"decoder.block.0.layer.0.{_BIAS}",
    "decoder/logits_dense/kernel": "lm_head.weight",
}

_TARGET, _STATE, STEP = "target/", "state/", "state/step"
_PARAMETER_STATES = "state/param_states/"

# What T5X's Adafactor calls its slots -> what we call them (see `optimizer_slots`).
SLOTS_T5X: Mapping[str, str] = {"v": "v", "v_row": "vr", "v_col": "vc", "m": "m"}
_SLICE = re.compile(r"(?P<whole>[^\[]+)\[(?::, )*(?P<i>[0-9]+)\]")
_LAYER = re.compile(
    r"target/(?P<stack>encoder|decoder)/layers_(?P<i>0|[1-9][0-9]{0,5})/(?P<rest>[^\[]+)"
    r"|target/(?P<scanned>encoder|decoder)/(?:(?P=scanned)|layers)/(?P<rest2>[^\[]+)(?:\[:, (?P<i2>[0-9]+)\])?"
)

# Of the layers in a scanned array.
_SCAN_AXIS = 1

# Kernels whose last axis is "embed"; it is the first one of all others.
_TO_D_MODEL = re.compile("/(out|wo)/kernel$")

# Names of the first versions.
_ALIASES = {"relative_posemb/rel_embedding": "relpos_bias/rel_embedding"}

IsCopy = Callable[[str, str], bool]


@dataclass(frozen=True)
class SortedT5X(Sorted):
    """What becomes of every array of T5X.

    Attributes:
        scanned: name of the level at which the layers of a stack are scanned, by stack.
    """

    scanned: Mapping[str, str] = field(default_factory=dict)

    def stored_name(self, our_name: str, attention_section: str) -> str:
        """See `Sorted.stored_name`."""
        for theirs, ours in TOP.items():
            if ours == our_name:
                return _TARGET + theirs
        stack, _, i, rest = our_name.split(".", 3)
        theirs = next(name for name, ours in LAYERS[stack].items() if ours == rest)
        if stack in self.scanned:
            return f"{_TARGET}{stack}/{self.scanned[stack]}/{theirs}{_slice(_SCAN_AXIS, i)}"
        return f"{_TARGET}{stack}/layers_{i}/{theirs}"


def stacked(names: Iterable[str]) -> dict[str, int]:
    """Axis of the layers, by the name of an array of the model that holds all layers of a stack."""
    found = ((name, _LAYER.fullmatch(name)) for name in names)
    return {name: _SCAN_AXIS for name, match in found if match and match["scanned"]}


def stacked_slots(variables: Mapping[str, Variable]) -> dict[str, int]:
    """Axis of the layers, by the name of a slot that holds those of all layers of a stack.

    Of the kernel of a scanned layer, "embed" is averaged over in `v_col`, all axes else in `v_row`. That of the layers
    stays in both: it comes first unless "embed" is in front of it, or another axis that is left. Source: `FactorDim`
    and `standard_logical_factor_rules` in t5x/adafactor.py.
    """
    found: dict[str, int] = {}
    arrays = stacked(variables)
    for name in variables:
        array, kind = split_slot(name) or ("", "")
        if array not in arrays or is_unused_slot(name, variables):
            continue
        is_behind = kind not in ("vr", "vc") or (kind == "vc") == bool(_TO_D_MODEL.search(array))
        found[name] = _SCAN_AXIS if is_behind else 0
    return found


def sort_t5x(names: Iterable[str], is_copy: IsCopy) -> SortedT5X:
    """Applies the rules to all names, in which every layer has one of its own.

    Args:
        names: of all arrays.
        is_copy: whether two arrays are equal bit for bit.

    Raises:
        ConversionError: two arrays are the same parameter.
    """
    matches: dict[str, Match] = {}
    drops: dict[str, str] = {}
    unknown: list[str] = []
    scanned: dict[str, str] = {}
    for name in names:
        ours, level = _ours(name)
        if ours is None:
            if name == STEP or name.startswith(_STATE):
                drops[name] = "training step" if name == STEP else SLOT_DROP
            else:
                unknown.append(name)
            continue
        if ours in matches:
            raise ConversionError(
                f"{matches[ours].mesh} and {name} are both {ours}: the checkpoint mixes two models, convert one that a "
                "single run wrote."
            )
        section, rule = _rule(ours)
        matches[ours] = Match(name, ours, rule, section)
        scanned |= level
    for stack in LAYERS:
        drops |= _copied_tables(stack, matches, is_copy)
    return SortedT5X(Layout(), matches, drops, tuple(unknown), scanned)


def split_slot(name: str) -> tuple[str, str] | None:
    """The array of the model that a slot belongs to, and our name of the slot; None if Adafactor has none like it."""
    match = _SLICE.fullmatch(name)
    owner, _, ending = (match["whole"] if match else name).removeprefix(_PARAMETER_STATES).rpartition("/")
    if not name.startswith(_PARAMETER_STATES) or ending not in SLOTS_T5X:
        return None
    return _TARGET + owner + (_slice(_SCAN_AXIS, match["i"]) if match else ""), SLOTS_T5X[ending]


def join_slot(array: str, kind: str) -> str:
    """The inverse of `split_slot`; of an array of all layers, the slot of all of them."""
    ending = next(theirs for theirs, ours in SLOTS_T5X.items() if ours == kind)
    return f"{_PARAMETER_STATES}{array.removeprefix(_TARGET).partition('[')[0]}/{ending}"


def is_unused_slot(name: str, variables: Mapping[str, Variable]) -> bool:
    """Whether it is one that an array does not have: T5X always stores all four, those that it does not use with one
    number."""
    array, _ = split_slot(name) or ("", "")
    whole = variables.get(array, variables.get(array + _slice(_SCAN_AXIS, 0)))
    return variables[name].shape == (1,) and whole is not None and whole.shape != (1,)


def is_scanned(array: str) -> bool:
    """Whether it is a layer of an array that holds all layers of a stack."""
    return _SLICE.fullmatch(array) is not None


def _slice(axis: int, i: int | str) -> str:
    return f"[{':, ' * axis}{i}]"


def _ours(name: str) -> tuple[str | None, dict[str, str]]:
    """Our name, and the level of the scanned layers by their stack if it is one of those."""
    if name.startswith(_TARGET) and name.removeprefix(_TARGET) in TOP:
        return TOP[name.removeprefix(_TARGET)], {}
    match = _LAYER.fullmatch(name)
    if match is None or (match["scanned"] and match["i2"] is None):
        return None, {}
    stack, rest = match["stack"] or match["scanned"], match["rest"] or match["rest2"]
    ours = LAYERS[stack].get(_ALIASES.get(rest, rest))
    level = {match["scanned"]: name.split("/")[2]} if match["scanned"] else {}
    return (f"{stack}.block.{match['i'] or match['i2']}.{ours}" if ours else None), level


def _rule(our_name: str) -> tuple[str, Rule]:
    for section in ("common", "multi_head"):
        for rule in SECTIONS[section]:
            if rule.is_for(our_name):
                return section, rule
    raise KeyError(our_name)


def _copied_tables(stack: str, matches: dict[str, Match], is_copy: IsCopy) -> dict[str, str]:
    """Takes the tables of position biases out of the layers if all are that of the first: scanned layers have one each,
    also in a model that was converted from one with a table for the stack."""
    tables = [match for name, match in matches.items() if name.startswith(f"{stack}.") and name.endswith(_BIAS)]
    first = matches.get(f"{stack}.block.0.layer.0.{_BIAS}")
    others = [match for match in tables if match is not first]
    if first is None or not others or not all(is_copy(first.mesh, match.mesh) for match in others):
        return {}
    for match in others:
        del matches[match.ours]
    return {match.mesh: f"copy of {first.mesh}, equal bit for bit" for match in others}
