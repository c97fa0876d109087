# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""How the original numbers its layers: Mesh scopes such as "block_003/layer_001" <-> our layer and sublayer."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


SUBLAYERS: Mapping[str, tuple[str, ...]] = {
    "encoder": ("self_attention", "dense_relu_dense"),
    "decoder": ("self_attention", "enc_dec_attention", "dense_relu_dense"),
}

_KINDS = "|".join(SUBLAYERS["decoder"])
# As "%03d" writes it: every number in one way alone. No model has as many layers as more digits can count.
_NUMBER = "(?:[0-9]{3}|[1-9][0-9]{3,5})"
# "block_003/layer_001"; "layer_010" (`make_layer_stack.block_scope = False`); "block_003/self_attention" and
# "block_003/layer_000/self_attention" in old checkpoints, whose layers have names of their own.
SCOPE_PATTERN = rf"(?P<scope>(?:block_{_NUMBER}/)?(?:layer_{_NUMBER}(?:/(?:{_KINDS}))?|(?:{_KINDS})))"
_SCOPED = re.compile(rf"(encoder|decoder)/(?:(block_{_NUMBER})/)?(?:layer_({_NUMBER})|(?:{_KINDS}))/")
_NAMED = re.compile(rf"(encoder|decoder)/block_{_NUMBER}/(?:{_KINDS})/")


@dataclass(frozen=True)
class Layout:
    """How the original numbered and named its layers.

    A block holds whole layers of ours: one in t5.1.1 ("block_005/layer_001"), all of them in t5.1.n4w10
    ("block_000/layer_011"). Source: `make_layer_stack` in mesh_tensorflow/transformer/transformer.py.

    Attributes:
        layers_per_block: for each stack, Mesh layers in a block; None if the names have no block level.
        named_layers: layers have the names of their kinds instead of numbers, as in old checkpoints.
        legacy_norms: norms are called as in old checkpoints.
    """

    layers_per_block: Mapping[str, int | None] = field(default_factory=lambda: {"encoder": 2, "decoder": 3})
    named_layers: bool = False
    legacy_norms: bool = False

    @classmethod
    def of(cls, names: Iterable[str]) -> "Layout":
        """The numbering that the names show."""
        names = list(names)
        sizes: dict[str, dict[str | None, int]] = {stack: {} for stack in SUBLAYERS}
        for name in names:
            match = _SCOPED.match(name)
            if match:
                stack, block, layer = match.groups()
                count = int(layer) + 1 if layer else len(SUBLAYERS[stack])
                sizes[stack][block] = max(count, sizes[stack].get(block, 0))
        per_block: dict[str, int | None] = {}
        for stack, blocks in sizes.items():
            # The commonest size, so that one stray variable is reported as such instead of renumbering all others.
            common = Counter(size for block, size in blocks.items() if block).most_common()
            per_block[stack] = min((size for size, n in common if n == common[0][1]), default=None)
            if not blocks:
                per_block[stack] = len(SUBLAYERS[stack])
        named = any(_NAMED.match(name) for name in names)
        return cls(per_block, named, any(name.endswith("/layer_norm/scale") for name in names))

    def locate(self, stack: str, scope: str) -> tuple[int, int] | None:
        """Our layer and sublayer of a Mesh scope, or None if no layer of ours can be there."""
        levels = dict(re.findall(r"(block|layer)_([0-9]+)", scope))
        kind = re.search(rf"(?:{_KINDS})\Z", scope)
        sublayers = SUBLAYERS[stack]
        if kind and kind[0] not in sublayers:
            return None
        block = int(levels.get("block", 0))
        if "layer" not in levels:
            return (block, sublayers.index(kind[0])) if kind else None
        layer = int(levels["layer"])
        size = self.layers_per_block[stack]
        if "block" in levels and (size is None or layer >= size):
            return None
        i, j = divmod(block * (size or 0) + layer, len(sublayers))
        return None if kind and sublayers.index(kind[0]) != j else (i, j)

    def scope(self, stack: str, i: int, j: int) -> str:
        """Mesh scope of our sublayer j of layer i; the inverse of `locate`."""
        number = i * len(SUBLAYERS[stack]) + j
        size = self.layers_per_block[stack]
        if size is None:
            return f"layer_{number:03d}"
        block, layer = divmod(number, size)
        if self.named_layers:
            return f"block_{block:03d}/{SUBLAYERS[stack][j]}"
        return f"block_{block:03d}/layer_{layer:03d}"
