# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Rules between the variable names of Mesh TensorFlow and our parameter names, as data that serves both directions.

A rule is a pair of templates and the axes on both sides. Placeholders: `{stack}` is encoder or decoder, `{i}` and `{j}`
are our layer and its sublayer, and a Mesh scope such as "block_003/layer_001" is written as the sublayer that it must
lead to: `{self_attention}`, `{enc_dec_attention}`, `{dense_relu_dense}`, or `{sublayer}` for any of them.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from t5_experimental.original import TALKING_HEADS_AXES

from .scopes import SCOPE_PATTERN, SUBLAYERS, Layout


@dataclass(frozen=True)
class Rule:
    """One Mesh variable, or one per layer, and the parameter that it becomes.

    Attributes:
        mesh: template of the Mesh name.
        ours: template of our name.
        mesh_axes: axes of the Mesh variable; what follows the first are other forms that the original can write.
        our_axes: axes of our parameter.
        needs: property of the model or the layer without which there is no such parameter: "untied", "gated", "ungated"
            or "bias" (the first layer of its stack with that number of softmax heads).
    """

    mesh: str
    ours: str
    mesh_axes: tuple[str, ...]
    our_axes: str
    needs: str = ""

    @cached_property
    def place(self) -> str | None:
        """Placeholder of the Mesh scope: a kind of sublayer, "sublayer" for any, or None outside of the layers."""
        found = [name for name in re.findall(r"{(\w+)}", self.mesh) if name != "stack"]
        return found[0] if found else None

    def stacks(self) -> tuple[str, ...]:
        """Stacks that the rule is for."""
        return tuple(stack for stack in SUBLAYERS if self.mesh.startswith(("{stack}/", stack + "/")))

    @cached_property
    def _mesh_pattern(self) -> re.Pattern[str]:
        return _compile(self.mesh, {"stack": "(?P<stack>encoder|decoder)"}, SCOPE_PATTERN)

    @cached_property
    def _our_pattern(self) -> re.Pattern[str]:
        numbers = {"i": r"(?P<i>0|[1-9][0-9]{0,5})", "j": r"(?P<j>[0-9])"}
        return _compile(self.ours, {"stack": "(?P<stack>encoder|decoder)", **numbers}, "")

    def is_for(self, our_name: str) -> bool:
        """Whether it is the rule of our parameter, as far as its name tells."""
        return self._our_pattern.fullmatch(our_name) is not None

    def to_ours(self, mesh_name: str, layout: Layout) -> str | None:
        """Our name of a Mesh variable, or None if the rule is not for it."""
        match = self._mesh_pattern.fullmatch(mesh_name)
        if match is None:
            return None
        stack = mesh_name.partition("/")[0]
        i = j = None
        if self.place:
            where = layout.locate(stack, match["scope"])
            if where is None or self.place not in ("sublayer", SUBLAYERS[stack][where[1]]):
                return None
            i, j = where
        return self.ours.format(stack=stack, i=i, j=j)

    def to_mesh(self, our_name: str, layout: Layout) -> str | None:
        """Mesh name of our parameter, or None if the rule is not for it."""
        match = self._our_pattern.fullmatch(our_name)
        if match is None:
            return None
        stack = our_name.partition(".")[0]
        fill = {"stack": stack}
        if self.place:
            groups = match.groupdict()
            i = int(groups["i"])
            j = int(groups["j"])
            if j >= len(SUBLAYERS[stack]) or self.place not in ("sublayer", SUBLAYERS[stack][j]):
                return None
            fill[self.place] = layout.scope(stack, i, j)
        return self.mesh.format(**fill)


def _compile(template: str, patterns: Mapping[str, str], default: str) -> re.Pattern[str]:
    parts = re.split(r"{(\w+)}", template)
    return re.compile("".join(patterns.get(p, default) if k % 2 else re.escape(p) for k, p in enumerate(parts)))


def _attention(
    kind: str, ours: str, mesh_class: str, rows: Iterable[tuple[str, str, tuple[str, ...], str]]
) -> list[Rule]:
    stack = "decoder" if kind == "enc_dec_attention" else "{stack}"
    prefix = f"{stack}/{{{kind}}}/{mesh_class}/"
    target = f"{stack}.block.{{i}}.layer.{{j}}.{ours}."
    return [
        Rule(prefix + mesh, target + name, mesh_axes, our_axes, needs="bias" if "buckets" in our_axes else "")
        for mesh, name, mesh_axes, our_axes in rows
    ]


_FEED_FORWARD = ("{stack}/{dense_relu_dense}/DenseReluDense/", "{stack}.block.{i}.layer.{j}.DenseReluDense.")
_INWARD, _OUTWARD = ("d_model d_ff",), ("d_ff d_model",)
EMBEDDING = Rule("shared/embedding", "shared.weight", ("vocab_size d_model",), "vocab_size d_model")
CLASSIFIER = Rule("decoder/logits/kernel", "lm_head.weight", ("d_model vocab_size",), "vocab_size d_model", "untied")
FINAL_NORM = Rule("{stack}/rms_norm/scale", "{stack}.final_layer_norm.weight", ("d_model",), "d_model")
_NORM = Rule(
    "{stack}/{sublayer}/rms_norm/scale", "{stack}.block.{i}.layer.{j}.layer_norm.weight", ("d_model",), "d_model"
)
_COMMON = (
    EMBEDDING,
    CLASSIFIER,
    FINAL_NORM,
    _NORM,
    Rule(_FEED_FORWARD[0] + "wi/kernel", _FEED_FORWARD[1] + "wi.weight", _INWARD, "d_ff d_model", needs="ungated"),
    Rule(_FEED_FORWARD[0] + "wi_0/kernel", _FEED_FORWARD[1] + "wi_0.weight", _INWARD, "d_ff d_model", needs="gated"),
    Rule(_FEED_FORWARD[0] + "wi_1/kernel", _FEED_FORWARD[1] + "wi_1.weight", _INWARD, "d_ff d_model", needs="gated"),
    Rule(_FEED_FORWARD[0] + "wo/kernel", _FEED_FORWARD[1] + "wo.weight", _OUTWARD, "d_model d_ff"),
)

# The second form is that of `combine_dims = False`.
_PLAIN_INWARD = (("d_model num_heads*d_kv", "d_model num_heads d_kv"), "num_heads*d_kv d_model")
_PLAIN_OUTWARD = (("num_heads*d_kv d_model", "num_heads d_kv d_model"), "d_model num_heads*d_kv")
_PLAIN_ROWS = [(letter, f"{letter}.weight", *_PLAIN_INWARD) for letter in "qkv"] + [("o", "o.weight", *_PLAIN_OUTWARD)]
# A single head has no axis of its own in the original.
_BIAS = (("num_heads buckets", "buckets"), "buckets num_heads")
_BIAS_ROW = ("relative_attention_bias", "relative_attention_bias.weight", *_BIAS)

_TALKING_ROWS = [
    *(
        (f"{mesh}/kernel", f"{ours}.weight", (TALKING_HEADS_AXES[ours][0],), TALKING_HEADS_AXES[ours][1])
        for mesh, ours in (("q", "q"), ("k", "k"), ("v", "v"), ("y", "o"))
    ),
    ("logits/kernel", "logits_projection.weight", ("num_key_heads num_heads",), "num_key_heads num_heads"),
    ("weights/kernel", "weights_projection.weight", ("num_heads num_value_heads",), "num_heads num_value_heads"),
]

# What the deprecated sublayers call their norms.
LEGACY_NORMS = (
    Rule("{stack}/final_layer_norm/scale", FINAL_NORM.ours, ("d_model",), "d_model"),
    Rule("{stack}/{sublayer}/layer_norm/scale", _NORM.ours, ("d_model",), "d_model"),
)

SECTIONS: Mapping[str, tuple[Rule, ...]] = {
    "common": _COMMON,
    "multi_head": (
        *_attention("self_attention", "SelfAttention", "SelfAttention", [*_PLAIN_ROWS, _BIAS_ROW]),
        *_attention("enc_dec_attention", "EncDecAttention", "EncDecAttention", _PLAIN_ROWS),
    ),
    "talking_heads": (
        *_attention("self_attention", "SelfAttention", "TalkingHeadsSelfAttention", [*_TALKING_ROWS, _BIAS_ROW]),
        *_attention("enc_dec_attention", "EncDecAttention", "TalkingHeadsEncDecAttention", _TALKING_ROWS),
    ),
    # Names that older code wrote, read but never written: norms of the deprecated sublayers, kernels of dense layers.
    "legacy": (
        *LEGACY_NORMS,
        Rule("{stack}/layer_norm/scale", FINAL_NORM.ours, ("d_model",), "d_model"),
        *(
            rule
            for kind, name in (("self_attention", "SelfAttention"), ("enc_dec_attention", "EncDecAttention"))
            for rule in _attention(kind, name, name, [(f"{row[0]}/kernel", *row[1:]) for row in _PLAIN_ROWS])
        ),
    ),
}

# Sections that may occur in a checkpoint of the family.
FAMILY_SECTIONS: Mapping[str, tuple[str, ...]] = {
    "t5.1.1": ("common", "multi_head", "legacy"),
    "t5.1.1.lm100k": ("common", "multi_head", "legacy"),
    "t5.1.th": ("common", "talking_heads", "multi_head", "legacy"),
    "t5.1.n4w10": ("common", "multi_head", "legacy"),
}

# Endings of Adafactor's slots -> what we call the slot (see `optimizer`).
SLOTS: Mapping[str, str] = {"_slot_v": "v", "_slot_vr": "vr", "_slot_vc": "vc", "_slot_m": "m"}
SLOT_DROP = "optimizer slot"

# What a checkpoint holds besides the model; `{variable}` is a variable that a rule above maps.
GLOBAL_STEP = "global_step"
DROPS: Mapping[str, str] = {
    GLOBAL_STEP: "training step",
    **{"{variable}" + ending: SLOT_DROP for ending in SLOTS},
}
