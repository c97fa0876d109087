# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Architecture of the four families as plain data: fields, their defaults, and the sizes of all layers.

A stack is a list of layers, and each layer has its own sizes (`LayerSpec`). A family is only a `model_type` and the
defaults of the released base size; each can describe any mix of sizes and attention types.

configuration_t5_experimental.py makes transformers' configurations of these classes. This module imports neither torch
nor transformers, which take seconds, so that a command that only needs sizes starts at once.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal


MULTI_HEAD: Literal["multi_head"] = "multi_head"
TALKING_HEADS: Literal["talking_heads"] = "talking_heads"
BIAS_SHARED: Literal["bias_shared"] = "bias_shared"
BIAS: Literal["bias"] = "bias"

# Two names in transformers of the same function, the tanh approximation of GELU.
_TANH_GELUS = {"gelu_new", "gelu_pytorch_tanh"}

# Name of `d_kv` in the `config.json` of models that stock T5 must not load.
HEAD_SIZE = "head_size"

# What transformers' classes of this architecture take for a field that config.json lacks, by their type.
_STOCK_T5: Mapping[str, Any] = {
    "vocab_size": 32128,
    "d_model": 512,
    "d_kv": 64,
    "d_ff": 2048,
    "num_layers": 6,
    "num_heads": 8,
    "feed_forward_proj": "relu",
    "relative_attention_type": BIAS_SHARED,
}
_STOCK_MT5: Mapping[str, Any] = {
    **_STOCK_T5,
    "vocab_size": 250112,
    "d_ff": 1024,
    "num_layers": 8,
    "num_heads": 6,
    "feed_forward_proj": "gated-gelu",
}
STOCK_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "t5": _STOCK_T5,
    "mt5": _STOCK_MT5,
    "umt5": {**_STOCK_MT5, "relative_attention_type": BIAS},
}
STACKS = ("encoder", "decoder")

# Common activations, to avoid importing transformers' list, which takes seconds.
_USUAL_ACTIVATIONS = ("gelu_pytorch_tanh", "relu", "gelu_new", "silu")

# Far larger than any trained model: larger values come from damaged files, and are refused before any allocation.
_MOST_LAYERS = 2**12
_LARGEST = 2**31 - 1


@dataclass(frozen=True)
class LayerSpec:
    """Sizes of one layer: of self-attention, encoder-decoder attention (decoder only) and feed-forward.

    Attributes:
        attention_type: `"multi_head"` or `"talking_heads"`.
        num_heads: heads of the softmax, and of the relative position bias.
        num_key_heads: heads of queries and keys (differs from `num_heads` only with talking heads).
        num_value_heads: heads of values and of the output projection (see `num_key_heads`).
        d_k: size of one query or key head.
        d_v: size of one value head.
        d_ff: hidden size of the feed-forward.
    """

    attention_type: str
    num_heads: int
    num_key_heads: int
    num_value_heads: int
    d_k: int
    d_v: int
    d_ff: int


# Configuration fields that `layer_overrides` may override.
LAYER_FIELDS = ("attention_type", "num_heads", "num_key_heads", "num_value_heads", "d_kv", "d_k", "d_v", "d_ff")


@dataclass(kw_only=True, repr=False)
class T5ExperimentalArchitecture:
    """A T5 encoder-decoder whose layers may differ in size and type of attention; `T5ExperimentalConfig` explains the
    fields.

    Attributes:
        model_type: of the family, in `config.json`.
        class_prefix: with which the names of the family's configuration and models begin.

    Raises:
        ValueError: the fields make no model.
    """

    model_type: ClassVar[str] = "t5_experimental"
    class_prefix: ClassVar[str] = "T5Experimental"

    vocab_size: int = 32128
    d_model: int = 768
    d_kv: int = 64
    d_ff: int = 2048
    num_layers: int = 12
    num_decoder_layers: int | None = None
    num_heads: int = 12
    attention_type: Literal["multi_head", "talking_heads"] = MULTI_HEAD
    num_key_heads: int | None = None
    num_value_heads: int | None = None
    d_k: int | None = None
    d_v: int | None = None
    layer_overrides: dict[str, list[dict[str, Any]]] | None = None
    relative_attention_type: Literal["bias_shared", "bias"] = BIAS_SHARED
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    feed_forward_proj: str = "gated-gelu"
    dropout_rate: float | int = 0.1
    broadcast_dropout: bool = False
    layer_norm_epsilon: float = 1e-6
    initializer_factor: float | int = 1.0
    tie_word_embeddings: bool = False
    scale_decoder_outputs: bool | None = None
    classifier_dropout: float | int = 0.0
    is_encoder_decoder: bool = True
    is_decoder: bool = False
    use_cache: bool = True
    pad_token_id: int | None = 0
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = 1
    decoder_start_token_id: int | None = 0

    def __post_init__(self) -> None:
        self._complete()
        self._complete_layers()
        self.validate_architecture()

    def _complete(self) -> None:
        """Fills in the fields that follow from others."""
        if self.num_decoder_layers is None:
            self.num_decoder_layers = self.num_layers
        if self.scale_decoder_outputs is None:
            self.scale_decoder_outputs = self.tie_word_embeddings

    def _complete_layers(self) -> None:
        """Fills in `layer_overrides` where the layers of a family differ by default."""

    @property
    def is_gated_act(self) -> bool:
        """Whether the feed-forward is gated: `act(wi_0 x) * wi_1 x`."""
        return self.feed_forward_proj.startswith("gated-")

    @property
    def dense_act_fn(self) -> str:
        """Name of the feed-forward's activation in transformers' `ACT2FN`. For "gated-gelu" it is the tanh
        approximation of GELU, as in the original and in transformers' T5."""
        if self.feed_forward_proj == "gated-gelu":
            return "gelu_pytorch_tanh"
        return self.feed_forward_proj.removeprefix("gated-")

    def take_activation(self, dense_act_fn: str | None, is_gated_act: bool | None) -> None:
        """Updates `feed_forward_proj` if one of the two fields that transformers' T5 writes beside it, and gives
        precedence, is given and differs from it."""
        name = self.dense_act_fn if dense_act_fn is None else dense_act_fn
        is_gated = self.is_gated_act if is_gated_act is None else is_gated_act
        if is_gated == self.is_gated_act and (name == self.dense_act_fn or {name, self.dense_act_fn} <= _TANH_GELUS):
            return
        if is_gated and name == "gelu":
            name = "gelu_python"  # the same function: "gated-gelu" is the tanh form
        self.feed_forward_proj = f"gated-{name}" if is_gated else name

    def _num_layers_of(self, stack: str) -> int:
        name = "num_layers" if stack == "encoder" or self.num_decoder_layers is None else "num_decoder_layers"
        count: int = getattr(self, name)
        if not 1 <= count <= _MOST_LAYERS:
            raise ValueError(f"`{name}` is {count!r:.80}: it must be a positive integer of at most {_MOST_LAYERS}.")
        return count

    def layer_specs(self, stack: str) -> tuple[LayerSpec, ...]:
        """Sizes of all layers of a stack, with defaults filled in.

        Args:
            stack: `"encoder"` or `"decoder"`.

        Raises:
            ValueError: the overrides have an unknown field, are not one per layer, or contradict the attention type.
        """
        count = self._num_layers_of(stack)
        overrides = (self.layer_overrides or {}).get(stack)
        if overrides is None:
            overrides = [{}] * count
        if len(overrides) != count:
            raise ValueError(
                f"`layer_overrides` has {len(overrides)} entries for the {stack} of {count} layers: give one per "
                "layer, `{}` for a layer without overrides."
            )
        return tuple(self._layer_spec(stack, index, override) for index, override in enumerate(overrides))

    def bias_holders(self, stack: str) -> tuple[int, ...]:
        """For every layer of a stack, the index of the layer that holds its table of relative position biases.

        Args:
            stack: `"encoder"` or `"decoder"`.
        """
        # The original caches a shared table under its number of heads.
        counts = [spec.num_heads for spec in self.layer_specs(stack)]
        return tuple(
            i if self.relative_attention_type == BIAS else counts.index(heads) for i, heads in enumerate(counts)
        )

    def as_saved(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of `config.json`. If stock T5 would load the weights and leave out what it does not have,
        `d_kv`, which it needs, is under another name, so that it refuses.

        Args:
            values: the fields by name.
        """
        attention = {spec.attention_type for stack in STACKS for spec in self.layer_specs(stack)}
        if attention == {MULTI_HEAD} and self.relative_attention_type == BIAS_SHARED:
            return dict(values)
        return {**values, "d_kv": None, HEAD_SIZE: self.d_kv}

    def _layer_spec(self, stack: str, index: int, override: Mapping[str, Any]) -> LayerSpec:
        if unknown := sorted(set(override) - set(LAYER_FIELDS)):
            raise ValueError(
                f"`layer_overrides` for layer {index} of the {stack} has {unknown}: a layer can override "
                f"{list(LAYER_FIELDS)}."
            )
        value = {name: getattr(self, name) for name in LAYER_FIELDS}
        if override.get("attention_type") == MULTI_HEAD:
            # A multi-head layer in a model with talking heads has only one head count and one head size.
            value |= {"num_key_heads": None, "num_value_heads": None, "d_k": None, "d_v": None}
        value |= override
        heads = value["num_heads"]
        follows = {"num_key_heads": heads, "num_value_heads": heads, "d_k": value["d_kv"], "d_v": value["d_kv"]}
        value |= {name: default for name, default in follows.items() if value[name] is None}
        spec = LayerSpec(**{field.name: value[field.name] for field in fields(LayerSpec)})
        where = f"layer {index} of the {stack}"
        if spec.attention_type not in (MULTI_HEAD, TALKING_HEADS):
            raise ValueError(
                f"`attention_type` of {where} is {spec.attention_type!r}: use {MULTI_HEAD!r} or {TALKING_HEADS!r}."
            )
        for field in fields(spec):
            number = getattr(spec, field.name)
            if field.name != "attention_type" and not _is_size(number):
                raise ValueError(f"`{field.name}` of {where} is {number!r:.80}: it must be {_SIZE}.")
        if spec.attention_type == MULTI_HEAD and (
            (spec.num_key_heads, spec.num_value_heads) != (heads, heads) or spec.d_k != spec.d_v
        ):
            raise ValueError(
                f"{where} has plain multi-head attention, where query, key, softmax and value heads are the same: "
                "leave out `num_key_heads`, `num_value_heads`, `d_k` and `d_v`, or set "
                f'`attention_type="{TALKING_HEADS}"`.'
            )
        return spec

    def validate_architecture(self) -> None:
        """Checks all fields, and all layers of both stacks; transformers calls it on construction and on save."""
        if unknown := sorted(set(self.layer_overrides or {}) - set(STACKS)):
            raise ValueError(f"`layer_overrides` has the keys {unknown}: it may only have {list(STACKS)}.")
        for name in ("vocab_size", "d_model"):
            if not _is_size(size := getattr(self, name)):
                raise ValueError(f"`{name}` is {size!r:.80}: it must be {_SIZE}.")
        for name in ("dropout_rate", "classifier_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}: it must be at least 0 and less than 1.")
        if not 0 <= self.layer_norm_epsilon < math.inf:
            raise ValueError(f"`layer_norm_epsilon` is {self.layer_norm_epsilon}: it must be finite and at least 0.")
        if self.relative_attention_type not in (BIAS_SHARED, BIAS):
            raise ValueError(
                f"`relative_attention_type` is {self.relative_attention_type!r:.80}: use {BIAS_SHARED!r} or {BIAS!r}."
            )
        # Each direction needs at least one bucket for single distances, and then logarithmic ones.
        buckets, distance = self.relative_attention_num_buckets, self.relative_attention_max_distance
        if buckets < 4 or not buckets // 2 < distance <= _LARGEST:
            raise ValueError(
                f"`relative_attention_num_buckets` is {buckets!r:.80} and `relative_attention_max_distance` "
                f"{distance!r:.80}: there must be at least 4 buckets, and a distance greater than half their number "
                f"and of at most {_LARGEST}."
            )
        if not 0 <= self.initializer_factor <= _LARGEST:
            raise ValueError(f"`initializer_factor` is {self.initializer_factor!r:.80}: it must be at least 0.")
        if not _is_activation(self.dense_act_fn):
            raise ValueError(
                f"`feed_forward_proj` is {self.feed_forward_proj!r}: use an activation of transformers such as 'relu', "
                "or 'gated-' and an activation, such as 'gated-gelu'."
            )
        for stack in STACKS:
            self.layer_specs(stack)


@dataclass(kw_only=True, repr=False)
class T5V11Architecture(T5ExperimentalArchitecture):
    """t5.1.1, with the sizes of t5.1.1.base."""

    model_type: ClassVar[str] = "t5_v1_1"
    class_prefix: ClassVar[str] = "T5V11"


@dataclass(kw_only=True, repr=False)
class T5LMAdaptedArchitecture(T5ExperimentalArchitecture):
    """t5.1.1.lm100k, with the sizes of t5.1.1.lm100k.base."""

    model_type: ClassVar[str] = "t5_lm_adapted"
    class_prefix: ClassVar[str] = "T5LMAdapted"


@dataclass(kw_only=True, repr=False)
class T5TalkingHeadsArchitecture(T5ExperimentalArchitecture):
    """t5.1.th, with the sizes of t5.1.th.base."""

    model_type: ClassVar[str] = "t5_talking_heads"
    class_prefix: ClassVar[str] = "T5TalkingHeads"

    attention_type: Literal["multi_head", "talking_heads"] = TALKING_HEADS
    num_heads: int = 24
    d_kv: int = 32


@dataclass(kw_only=True, repr=False)
class T5FirstLayersNarrowArchitecture(T5ExperimentalArchitecture):
    """t5.1.n4w10, with the sizes of t5.1.n4w10.base."""

    model_type: ClassVar[str] = "t5_first_layers_narrow"
    class_prefix: ClassVar[str] = "T5FirstLayersNarrow"

    num_layers: int = 14

    def _complete_layers(self) -> None:
        if self.layer_overrides is None:
            narrow = {"num_heads": self.num_heads // 2, "d_ff": self.d_ff // 2}
            self.layer_overrides = {
                stack: [dict(narrow) if index < 4 else {} for index in range(self._num_layers_of(stack))]
                for stack in STACKS
            }


FAMILIES: tuple[type[T5ExperimentalArchitecture], ...] = (
    T5V11Architecture,
    T5LMAdaptedArchitecture,
    T5TalkingHeadsArchitecture,
    T5FirstLayersNarrowArchitecture,
)

_SIZE = f"a positive integer of at most {_LARGEST}"


def _is_size(number: Any) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and 1 <= number <= _LARGEST


def _is_activation(name: str) -> bool:
    """Whether transformers has an activation of this name."""
    if name in _USUAL_ACTIVATIONS:
        return True
    from transformers.activations import ACT2FN

    return name in ACT2FN
