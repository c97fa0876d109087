# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""The slots of a checkpoint, planned for `optimizer.safetensors`, whose form t5_experimental/original.py describes.

The Adafactor of T5X computes what Mesh TensorFlow's does. It differs in which axis it takes for the largest: of equal
ones the last, and of a kernel with an axis for the heads, or of a scanned layer, all but d_model's. Source:
t5x/adafactor.py.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from t5_experimental.original import SLOTS_FILE, SlotsHeader, labels_of, largest_dimensions, shape_of

from ..errors import ConversionError
from ..mesh.axes import fits
from ..mesh.rules import SLOT_DROP, SLOTS
from ..tensors import SAFETENSORS_DTYPES, Variable
from .plan import Plan
from .tensors import Entry, Shard, in_file_order


@dataclass(frozen=True)
class ParameterState:
    """Slots of one parameter.

    Attributes:
        entries: tensors to write.
        factored: what the header says of the parameter, or None if its state is not factored.
    """

    entries: tuple[Entry, ...]
    factored: Mapping[str, Any] | None


@dataclass(frozen=True)
class SlotNames:
    """How a program names its slots.

    Attributes:
        split: the variable that a slot belongs to, and the kind of slot; None for one of another optimizer.
        join: the slot's name, of a variable and a kind of slot.
        is_t5x: the program is T5X.
        is_unused: whether a slot is there and means nothing; of its name and all variables.
        is_scanned: whether a variable is a layer of a scanned array.
    """

    split: Callable[[str], tuple[str, str] | None]
    join: Callable[[str, str], str]
    is_t5x: bool = False
    is_unused: Callable[[str, Mapping[str, Variable]], bool] = lambda name, variables: False
    is_scanned: Callable[[str], bool] = lambda variable: False


def _split_mesh(name: str) -> tuple[str, str]:
    # The longest ending, as "_slot_v" does not end what "_slot_vr" ends.
    ending = next(ending for ending in SLOTS if name.endswith(ending))
    return name.removesuffix(ending), SLOTS[ending]


MESH_SLOTS = SlotNames(_split_mesh, lambda variable, kind: f"{variable}_slot_{kind}")


def find_slots(
    plan: Plan, variables: Mapping[str, Variable], names: SlotNames = MESH_SLOTS
) -> dict[str, ParameterState]:
    """Slots of every parameter.

    Args:
        plan: of the whole model.
        variables: all variables of the checkpoint.
        names: how its slots are named.

    Returns:
        Slots by our parameter name, in the plan's order.

    Raises:
        ConversionError: a slot is missing, too many, or of the wrong shape or dtype.
    """
    by_parameter: dict[str, dict[str, Variable]] = {entry.source.name: {} for entry in plan.entries}
    for name, reason in plan.drops.items():
        if reason == SLOT_DROP:
            found = names.split(name)
            if found is None:
                raise ConversionError(
                    f"{name} is no slot of Adafactor, the only optimizer that is known: leave out --with-optimizer."
                )
            owner, kind = found
            if names.is_unused(name, variables):
                continue
            if owner in plan.drops:
                raise ConversionError(
                    f"{name} is a slot of {owner}, which is left out ({plan.drops[owner]}): leave out --with-optimizer."
                )
            if owner not in by_parameter:
                raise ConversionError(
                    f"{name} is a slot of {owner}, which is not in the checkpoint: leave out --with-optimizer, or "
                    "convert one that a single run wrote."
                )
            if kind in by_parameter[owner]:
                raise ConversionError(
                    f"{name} and {by_parameter[owner][kind].name} are the same slot: leave out --with-optimizer."
                )
            by_parameter[owner][kind] = variables[name]
    if not any(by_parameter.values()):
        raise ConversionError(
            "the checkpoint has no slots of Adafactor, the only optimizer that is known: leave out --with-optimizer."
        )
    return {entry.name: _state(entry, by_parameter[entry.source.name], names) for entry in plan.entries}


def with_optimizer(plan: Plan, states: Mapping[str, ParameterState], step: int | None) -> Plan:
    """The plan with the file of the optimizer's state, for those parameters that are in the plan.

    Raises:
        ConversionError: the training step is unknown, without which nothing can be resumed.
    """
    if step is None:
        raise ConversionError(
            "the checkpoint has neither global_step nor a step in its name, which resuming needs: rename its files to "
            "end in -STEP, or leave out --with-optimizer."
        )
    present = {entry.name: states[entry.name] for entry in plan.entries}
    entries = [entry for state in present.values() for entry in state.entries]
    factored = {name: state.factored for name, state in present.items() if state.factored}
    metadata = SlotsHeader(step, factored).metadata()
    written = {entry.source.name for entry in entries}
    return replace(
        plan,
        optimizer=Shard(SLOTS_FILE, in_file_order(entries), metadata),
        drops={name: reason for name, reason in plan.drops.items() if name not in written},
    )


def _state(parameter: Entry, slots: Mapping[str, Variable], names: SlotNames) -> ParameterState:
    variable = parameter.source.name
    kinds = set(slots) - {"m"}
    if kinds not in ({"v"}, {"vr", "vc"}):
        wanted = {"v"} if kinds <= {"v"} else {"vr", "vc"}
        missing = " and ".join(names.join(variable, kind) for kind in sorted(wanted - kinds))
        if missing:
            raise ConversionError(
                f"{missing} is missing from the checkpoint, so the state of {parameter.name} cannot be resumed: leave "
                "out --with-optimizer."
            )
        both = (names.join(variable, kind).removeprefix(variable) for kind in ("v", "vr"))
        raise ConversionError(
            f"{variable} has both {' and '.join(both)}, but Adafactor keeps one or the other: the checkpoint mixes two "
            "runs, leave out --with-optimizer."
        )
    full = {
        kind: _slot(parameter, kind, slots[kind], parameter.mesh_axes, parameter.our_axes)
        for kind in ("v", "m")
        if kind in slots
    }
    if "v" in kinds:
        return ParameterState(tuple(full.values()), None)
    factored, (d0, d1), view = _factored(parameter, names)
    rest = {
        kind: _slot(parameter, kind, slots[kind], _without(parameter.mesh_axes, axis), _without(view, axis))
        for kind, axis in (("vr", d0), ("vc", d1))
    }
    return ParameterState((*rest.values(), *full.values()), factored)


def _factored(parameter: Entry, names: SlotNames) -> tuple[dict[str, Any], tuple[str, str], str]:
    """What the header says, the axes d0 and d1 by label, and all axes of ours among which those two are."""
    axes, shape = parameter.mesh_axes.split(), parameter.source.shape
    if len(axes) < 2:
        raise ConversionError(
            f"{parameter.source.name} has the slots of a factored state, but is of shape {list(shape)}: only two "
            "dimensions can be factored."
        )
    if names.is_t5x and (len(axes) > 2 or names.is_scanned(parameter.source.name)):
        if "d_model" not in axes:
            raise ConversionError(
                f"{parameter.source.name} has the slots of a factored state, but T5X factors kernels alone: leave out "
                "--with-optimizer."
            )
        d0, d1 = "*".join(axis for axis in axes if axis != "d_model"), "d_model"
    elif names.is_t5x:
        d1, d0 = (axes[k] for k in sorted(range(2), key=lambda k: shape[k]))
    else:
        d0, d1 = (axes[k] for k in largest_dimensions(shape)[:2])
    view = parameter.our_axes
    if not {d0, d1} <= set(view.split()):
        view = " ".join(labels_of(view))
    ours = view.split()
    header = {"shape": list(shape_of(view, parameter.sizes)), "d0": ours.index(d0), "d1": ours.index(d1)}
    return header, (d0, d1), view


def slot_variables(variable: Variable, kinds: Iterable[str], dtype: str) -> list[Variable]:
    """The slots that the original has for a variable.

    Args:
        variable: of the model.
        kinds: "v", "vr", "vc" or "m".
        dtype: of the slots.
    """
    endings = {kind: ending for ending, kind in SLOTS.items()}
    found = []
    for kind in kinds:
        shape = variable.shape
        if kind in ("vr", "vc"):
            left_out = largest_dimensions(shape)[kind == "vc"]
            shape = (*shape[:left_out], *shape[left_out + 1 :])
        found.append(Variable(variable.name + endings[kind], shape, dtype))
    return found


def _without(axes: str, axis: str) -> str:
    labels = {*labels_of(axis)}
    return " ".join(other for other in axes.split() if not {*labels_of(other)} <= labels)


def _slot(parameter: Entry, kind: str, source: Variable, mesh_axes: str, our_axes: str) -> Entry:
    if source.dtype not in SAFETENSORS_DTYPES:
        raise ConversionError(
            f"{source.name} has the dtype {source.dtype}, but slots are {', '.join(SAFETENSORS_DTYPES)}: leave out "
            "--with-optimizer."
        )
    wanted = shape_of(mesh_axes, parameter.sizes)
    if source.shape != wanted or not fits(mesh_axes, our_axes, parameter.sizes):
        raise ConversionError(
            f"{source.name} has the shape {list(source.shape)}, but {list(wanted)} is expected for a variable of shape "
            f"{list(parameter.source.shape)}: leave out --with-optimizer."
        )
    return Entry(f"{parameter.name}.{kind}", source, mesh_axes, our_axes, parameter.sizes, source.dtype)
