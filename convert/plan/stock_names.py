# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""What transformers 4 called the parameters of T5 in Flax and in TensorFlow 2, and which of them are transposed.

Source: modeling_flax_t5.py, modeling_tf_t5.py and modeling_tf_pytorch_utils.py of transformers 4.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple


class StockName(NamedTuple):
    """A parameter.

    Attributes:
        ours: our name, which is PyTorch's, too.
        transposed: its shape is that of the transpose.
    """

    ours: str
    transposed: bool


_LINEAR = ("q", "k", "v", "o", "wi", "wi_0", "wi_1", "wo", "lm_head")
_TABLES = ("shared", "embed_tokens", "relative_attention_bias")
_NORMS = ("layer_norm", "final_layer_norm")

# Name of a module -> the name that its weight has in Flax; in TensorFlow 2.
_FLAX: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(_LINEAR, ("kernel",)),
    **dict.fromkeys(_TABLES, ("embedding",)),
    **dict.fromkeys(_NORMS, ("weight",)),
}
_TF2: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(_LINEAR, ("kernel",)),
    **dict.fromkeys(_TABLES, ("weight", "embeddings")),
    **dict.fromkeys(_NORMS, ("weight",)),
}

# The group of the Keras layer, the name of the model and that of the layer, which may all be left out.
_TF2_NAME = re.compile(
    r"(?:(?P<group>shared|encoder|decoder|lm_head)/)?(?:tf_[^/]+/)?"
    r"(?P<rest>(?:encoder|decoder)/(?:block|final_layer_norm|embed_tokens)/.+|(?:shared/)*shared/[^/]+|lm_head/[^/]+)"
)


def flax_name(stored: str) -> StockName | None:
    """Our name of a parameter, or None if it is none of a T5.

    Args:
        stored: names of its maps, as "encoder/block/0/layer/0/SelfAttention/q/kernel".
    """
    return _name(stored.split("/"), _FLAX)


def tf2_name(stored: str) -> StockName | None:
    """Our name of a parameter, or None if it is none of a T5.

    Args:
        stored: path of its dataset, as "encoder/tf_t5model/encoder/block_._0/layer_._0/SelfAttention/q/kernel:0".
    """
    match = _TF2_NAME.fullmatch(stored.removesuffix(":0").replace("_._", "/"))
    if match is None:
        return None
    group, parts = match["group"], match["rest"].split("/")
    if parts[0] == "shared":
        # Keras saves the embedding with every layer that it is given to.
        inside = [group, "embed_tokens"] if group in ("encoder", "decoder") else ["shared"]
        return _name([*inside, parts[-1]], _TF2)
    return _name(parts, _TF2) if group in (None, parts[0]) else None


def _name(parts: list[str], endings: Mapping[str, tuple[str, ...]]) -> StockName | None:
    if len(parts) < 2 or parts[-1] not in endings.get(parts[-2], ()):
        return None
    return StockName(".".join([*parts[:-1], "weight"]), parts[-1] == "kernel")
