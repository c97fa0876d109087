# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""What a model is made of, and its deduction from the shapes of a checkpoint's variables."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from t5_experimental.architecture_t5_experimental import BIAS, BIAS_SHARED, MULTI_HEAD, TALKING_HEADS, LayerSpec

from ..errors import ConversionError
from ..readable import joined
from ..tensors import Variable
from .matching import Sorted
from .scopes import SUBLAYERS


# Mesh's activation -> names of the same function in transformers, the one that we write first. Mesh's gelu is the tanh
# form, transformers' "gelu" is not.
ACTIVATIONS: Mapping[str, tuple[str, ...]] = {
    "relu": ("relu",),
    "gelu": ("gelu_pytorch_tanh", "gelu_new", "gelu_python_tanh", "gelu_fast", "gelu_accurate"),
    "swish": ("silu", "swish"),
    "sigmoid": ("sigmoid",),
    "tanh": ("tanh",),
}


def written_proj(activation: str, gated: bool) -> str:
    """Mesh's activation as the configuration writes it."""
    if gated:
        return "gated-gelu" if activation == "gelu" else f"gated-{ACTIVATIONS[activation][0]}"
    return ACTIVATIONS[activation][0]


def original_activation(proj: str) -> str | None:
    """Mesh's name of an activation that the configuration writes, or None if Mesh has none like it."""
    if proj == "gated-gelu":
        return "gelu"
    name = proj.removeprefix("gated-")
    return next((original for original, ours in ACTIVATIONS.items() if name in ours), None)


_TABLES_NOTE = "Every layer has a table of position biases of its own, as in umT5."

# Least and greatest number of buckets of the position bias: both directions need one for single distances and some for
# longer ones, all of them within the 128 positions that the original tells apart.
BUCKETS = (4, 255)


@dataclass(frozen=True)
class Architecture:
    """A model, as a gin file or the shapes of its variables describe it.

    Attributes:
        d_model: width of the residual stream.
        layers: widths of every layer, by stack.
        buckets: buckets of the relative position bias.
        feed_forward_proj: activation as the configuration writes it, as "gated-gelu".
        tied: the classifier is the embedding.
        dropout_rate: the training run's; None if nothing tells.
        layer_norm_epsilon: added to the mean square in the norms.
        relative_attention_type: whether every layer has a table of position biases, see the configuration.
        notes: what was assumed, one sentence each.
    """

    d_model: int
    layers: Mapping[str, tuple[LayerSpec, ...]]
    buckets: int
    feed_forward_proj: str
    tied: bool
    dropout_rate: float | None = None
    layer_norm_epsilon: float = 1e-6
    relative_attention_type: Literal["bias_shared", "bias"] = BIAS_SHARED
    notes: tuple[str, ...] = ()


class Shapes:
    """Sizes of axes, looked up by our parameter name and the label that the rule gives to the axis."""

    def __init__(self, variables: Mapping[str, Variable], names: Sorted) -> None:
        self._variables = variables
        self.names = names
        # Which sections the self-attention of a layer has variables of; an entry for every layer that has any at all.
        self._layers: dict[str, dict[int, set[str]]] = {stack: {} for stack in SUBLAYERS}
        for name, match in names.matches.items():
            place = re.match(r"(\w+)\.block\.(\d+)\.layer\.\d+\.(?P<attention>SelfAttention\.)?", name)
            if place:
                sections = self._layers[place[1]].setdefault(int(place[2]), set())
                if place["attention"]:
                    sections.add(match.section)

    def __contains__(self, our_name: str) -> bool:
        return our_name in self.names.matches

    def axes(self, our_name: str, section: str = "multi_head") -> dict[str, int]:
        """Size of every axis of a variable: labels joined by an asterisk stay joined.

        Raises:
            ConversionError: the checkpoint lacks the variable, or it has another number of axes.
        """
        if our_name not in self:
            name = self.names.stored_name(our_name, section)
            raise ConversionError(f"{name} is missing from the checkpoint: a model cannot be without it.")
        match = self.names.matches[our_name]
        shape = self._variables[match.mesh].shape
        for form in match.rule.mesh_axes:
            axes = form.split()
            if len(axes) == len(shape):
                return dict(zip(axes, shape, strict=True))
        raise ConversionError(
            f"{match.mesh} has the shape {list(shape)}, but should have the axes "
            f"[{match.rule.mesh_axes[0].replace(' ', ', ')}]."
        )

    def layer_count(self, stack: str) -> int:
        """Layers of a stack, all of which have variables.

        Raises:
            ConversionError: there are none, or a number is left out.
        """
        present = self._layers[stack]
        if not present:
            raise ConversionError(
                f"the checkpoint has no {stack} layers: only encoder-decoder models with two stacks are converted."
            )
        missing = next((i for i in range(len(present)) if i not in present), None)
        if missing is not None:
            name = self.names.stored_name(f"{stack}.block.{missing}.layer.0.layer_norm.weight", MULTI_HEAD)
            raise ConversionError(
                f"{name} is missing from the checkpoint, as is all of layer {missing} of the {stack}, though it has "
                f"layer {max(present)}."
            )
        return len(present)

    @property
    def gated(self) -> bool:
        """Whether the feed-forward has two inward projections."""
        return any(name.endswith(".wi_0.weight") for name in self.names.matches)

    def attention_section(self, stack: str, i: int) -> str:
        """Kind of attention in a layer, which is also the name of its rules' section."""
        sections = self._layers[stack].get(i, set())
        if TALKING_HEADS not in sections:
            return MULTI_HEAD
        if len(sections) > 1:
            raise ConversionError(
                f"the self-attention of layer {i} of the {stack} has variables of talking heads and of plain ones: the "
                "checkpoint mixes two models, convert one that a single run wrote."
            )
        return TALKING_HEADS


def deduce(shapes: Shapes, d_kv: int | None = None) -> Architecture:
    """The architecture that the variables show; the usual activation is assumed, as no shape tells it.

    Args:
        shapes: the checkpoint's variables.
        d_kv: size of one head of plain attention, where no bias table tells it.

    Raises:
        ConversionError: a needed variable is missing, or something cannot be told from the variables and was not given.
    """
    embedding = shapes.axes("shared.weight")
    layers, buckets, own_tables, tableless = {}, set(), 0, 0
    for stack in SUBLAYERS:
        heads = _HeadCounts(shapes, stack, d_kv)
        count = shapes.layer_count(stack)
        layers[stack] = tuple(_layer(shapes, stack, i, heads) for i in range(count))
        buckets |= heads.buckets
        counts = [spec.num_heads for spec in layers[stack]]
        # One that is shared is that of the first layer with its number of heads.
        own_tables += sum(counts.index(counts[i]) != i for i in heads.tables)
        tableless += len(counts) - len(heads.tables)
    if len(buckets) > 1:
        listed = joined(sorted(buckets))
        raise ConversionError(f"the bias tables have {listed} buckets: our models have one number for all.")
    if buckets and not min(BUCKETS) <= min(buckets) <= max(BUCKETS):
        raise ConversionError(
            f"the bias tables have {buckets.pop()} buckets: our models can have {min(BUCKETS)} to {max(BUCKETS)}."
        )
    # The majority decides, so that a table too many, or one that is missing, is called by its name.
    in_every_layer = own_tables > tableless
    proj = "gated-gelu" if shapes.gated else "relu"
    notes = (
        f"No operative_config.gin tells the feed-forward's activation: {proj} is assumed, as in "
        f"{'t5.1.1' if shapes.gated else 't5.1.0'} (--feed-forward-proj sets another).",
    )
    return Architecture(
        d_model=embedding["d_model"],
        layers=layers,
        # Without a table there is nothing to deduce; the missing table itself is reported when the plan is made.
        buckets=buckets.pop() if buckets else 32,
        feed_forward_proj=proj,
        tied="lm_head.weight" not in shapes,
        relative_attention_type=BIAS if in_every_layer else BIAS_SHARED,
        notes=(*notes, _TABLES_NOTE) if in_every_layer else notes,
    )


def with_options(
    architecture: Architecture, shapes: Shapes, d_kv: int | None, feed_forward_proj: str | None
) -> Architecture:
    """The architecture with what the user says in addition.

    Raises:
        ConversionError: that contradicts the variables or the gin file, or names no activation.
    """
    sizes = {s.d_k for stack in SUBLAYERS for s in architecture.layers[stack] if s.attention_type == MULTI_HEAD}
    if d_kv is not None and sizes - {d_kv}:
        raise ConversionError(
            f"--d-kv {d_kv} contradicts the checkpoint, whose heads are of size {', '.join(map(str, sorted(sizes)))}: "
            "leave it out."
        )
    if feed_forward_proj is None:
        return architecture
    original = original_activation(feed_forward_proj)
    if original is None:
        known = ", ".join(written_proj(name, shapes.gated) for name in ACTIVATIONS)
        raise ConversionError(f"--feed-forward-proj {feed_forward_proj} is not in the original: use one of {known}.")
    if shapes.gated != feed_forward_proj.startswith("gated-"):
        raise ConversionError(
            f"--feed-forward-proj {feed_forward_proj} contradicts the checkpoint, whose feed-forward is "
            f"{'gated' if shapes.gated else 'not gated'}: use {written_proj(original, shapes.gated)}."
        )
    note = f"The feed-forward's activation is {feed_forward_proj}, as the user said."
    notes = [n for n in architecture.notes if "--feed-forward-proj" not in n]
    return replace(architecture, feed_forward_proj=feed_forward_proj, notes=(*notes, note))


class _HeadCounts:
    """Number of heads in the columns of plain attention, from the bias tables of one stack."""

    def __init__(self, shapes: Shapes, stack: str, d_kv: int | None) -> None:
        self._shapes = shapes
        self._stack = stack
        self._given = d_kv
        self.buckets: set[int] = set()
        self.tables: list[int] = []
        self._by_columns: dict[int, int] = {}
        for i in range(shapes.layer_count(stack)):
            table = f"{stack}.block.{i}.layer.0.SelfAttention.relative_attention_bias.weight"
            if table in shapes:
                axes = shapes.axes(table)
                self.tables.append(i)
                self.buckets.add(axes["buckets"])
                if shapes.attention_section(stack, i) == MULTI_HEAD:
                    self._by_columns.setdefault(self._columns(i)["num_heads*d_kv"], axes.get("num_heads", 1))

    def _columns(self, i: int) -> dict[str, int]:
        axes = self._shapes.axes(f"{self._stack}.block.{i}.layer.0.SelfAttention.q.weight")
        if "num_heads" in axes:
            return {**axes, "num_heads*d_kv": axes["num_heads"] * axes["d_kv"]}
        return axes

    def plain(self, i: int) -> tuple[int, int]:
        """Heads and head size of a layer with plain attention."""
        axes = self._columns(i)
        if "num_heads" in axes:
            return axes["num_heads"], axes["d_kv"]
        columns = axes["num_heads*d_kv"]
        name = self._shapes.names.matches[f"{self._stack}.block.{i}.layer.0.SelfAttention.q.weight"].mesh
        heads = self._by_columns.get(columns)
        sizes = {c // h for c, h in self._by_columns.items() if c % h == 0}
        if heads and columns % heads:
            raise ConversionError(
                f"{name} has {columns} columns, which cannot be those of the {heads} heads of its bias table: the "
                "checkpoint is not one of a single model."
            )
        size = columns // heads if heads else self._given or (sizes.pop() if len(sizes) == 1 else None)
        if size is None:
            raise ConversionError(
                f"no bias table tells how many heads the {columns} columns of {name} are: pass --d-kv N, a head's size."
            )
        if columns % size:
            raise ConversionError(f"{name} has {columns} columns, which is no multiple of the head size {size}.")
        return columns // size, size


def _layer(shapes: Shapes, stack: str, i: int, heads: _HeadCounts) -> LayerSpec:
    """Widths of one layer. That its other attention agrees is checked with all other shapes, when the plan is made."""
    block = f"{stack}.block.{i}.layer"
    inward = f"{block}.{len(SUBLAYERS[stack]) - 1}.DenseReluDense.wi"
    d_ff = shapes.axes(inward + ".weight" if inward + ".weight" in shapes else inward + "_0.weight")["d_ff"]
    kind = shapes.attention_section(stack, i)
    if kind == MULTI_HEAD:
        count, size = heads.plain(i)
        return LayerSpec(kind, count, count, count, size, size, d_ff)
    keys, values, mix = (
        shapes.axes(f"{block}.0.SelfAttention.{name}.weight", kind) for name in ("q", "v", "logits_projection")
    )
    return LayerSpec(
        kind, mix["num_heads"], keys["num_key_heads"], values["num_value_heads"], keys["d_k"], values["d_v"], d_ff
    )
