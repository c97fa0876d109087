# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Applying the name rules to a checkpoint: every variable is a parameter of ours, dropped for a reason, or unknown."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..errors import ConversionError
from .rules import DROPS, LEGACY_NORMS, SECTIONS, Rule
from .scopes import Layout


@dataclass(frozen=True)
class Match:
    """A Mesh variable, our name for it, and the rule (and its section) that says so."""

    mesh: str
    ours: str
    rule: Rule
    section: str


@dataclass(frozen=True)
class Sorted:
    """What becomes of every variable of a checkpoint.

    Attributes:
        layout: the numbering of its layers.
        matches: by our name, in the checkpoint's order.
        drops: reason by name of a variable that is left out on purpose.
        unknown: variables for which there is neither a rule nor a reason.
    """

    layout: Layout
    matches: Mapping[str, Match]
    drops: Mapping[str, str]
    unknown: tuple[str, ...]

    def stored_name(self, our_name: str, attention_section: str) -> str:
        """Name that the checkpoint's variable of our parameter would have; see `mesh_name`."""
        return mesh_name(our_name, attention_section, self.layout)


# Rules by what the names end in, which no placeholder is part of: few are left to be tried.
_BY_LAST_PART: dict[str, list[tuple[str, Rule]]] = {}
for _section, _rules in SECTIONS.items():
    for _rule in _rules:
        _BY_LAST_PART.setdefault(_rule.mesh.rpartition("/")[2], []).append((_section, _rule))


def match_name(mesh_name: str, layout: Layout) -> Match | None:
    """The rule of a Mesh variable and our name for it, or None if there is no rule."""
    for section, rule in _BY_LAST_PART.get(mesh_name.rpartition("/")[2], ()):
        ours = rule.to_ours(mesh_name, layout)
        if ours is not None:
            return Match(mesh_name, ours, rule, section)
    return None


def mesh_name(our_name: str, attention_section: str, layout: Layout) -> str:
    """Name that the original gives to the variable of our parameter; the inverse of `match_name`.

    Args:
        our_name: as "decoder.block.3.layer.2.DenseReluDense.wo.weight".
        attention_section: "multi_head" or "talking_heads", where the parameter is one of an attention.
        layout: numbering and style of names to use.
    """
    norms = LEGACY_NORMS if layout.legacy_norms else ()
    for rule in norms + SECTIONS["common"] + SECTIONS[attention_section]:
        name = rule.to_mesh(our_name, layout)
        if name is not None:
            return name
    raise KeyError(our_name)


def drop_reason(name: str, layout: Layout) -> str | None:
    """Why a variable is left out on purpose, or None if it is not."""
    for template, reason in DROPS.items():
        suffix = template.removeprefix("{variable}")
        if name == template or (
            suffix != template and name.endswith(suffix) and match_name(name.removesuffix(suffix), layout)
        ):
            return reason
    return None


def sort_names(names: Iterable[str]) -> Sorted:
    """Applies the rules to all names of a checkpoint.

    Raises:
        ConversionError: two variables are the same parameter.
    """
    names = list(names)
    layout = Layout.of(names)
    matches: dict[str, Match] = {}
    drops: dict[str, str] = {}
    unknown: list[str] = []
    for name in names:
        match = match_name(name, layout)
        if match is None:
            reason = drop_reason(name, layout)
            if reason:
                drops[name] = reason
            else:
                unknown.append(name)
        elif match.ours in matches:
            raise ConversionError(
                f"{matches[match.ours].mesh} and {name} are both {match.ours}: the checkpoint mixes two models, "
                "convert one that a single run wrote."
            )
        else:
            matches[match.ours] = match
    return Sorted(layout, matches, drops, tuple(unknown))
