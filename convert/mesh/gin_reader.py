# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Meaning of `operative_config.gin`: the architecture of both stacks, and refusal of what our models cannot express.

Source of classes, parameters and defaults: mesh_tensorflow/transformer/{transformer,transformer_layers}.py, 0.1.21.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from t5_experimental.architecture_t5_experimental import BIAS, BIAS_SHARED, MULTI_HEAD, TALKING_HEADS, LayerSpec

from ..errors import ConversionError
from ..readable import joined, shown
from .architecture import ACTIVATIONS, BUCKETS, Architecture, written_proj
from .gin_syntax import GinFile, Reference
from .gin_values import MAX_SIZE, flag, integer, items, names, number
from .scopes import SUBLAYERS


# Layers of ours in one stack; the largest released model has 24.
MAX_LAYERS = 1024

# Class -> (sublayer it can be, kind of attention, class whose parameters it takes over where it has none of its own).
LAYER_CLASSES: Mapping[str, tuple[str, str, str | None]] = {
    "SelfAttention": ("self_attention", MULTI_HEAD, None),
    "EncDecAttention": ("enc_dec_attention", MULTI_HEAD, "SelfAttention"),
    "TalkingHeadsSelfAttention": ("self_attention", TALKING_HEADS, None),
    "TalkingHeadsEncDecAttention": ("enc_dec_attention", TALKING_HEADS, "TalkingHeadsSelfAttention"),
    "DenseReluDense": ("dense_relu_dense", "", None),
}

# Defaults of the original for what an architecture is made of; an operative config states them, a hand-cut one may not.
_DEFAULTS: Mapping[tuple[str, str], Any] = {
    ("SelfAttention", "num_heads"): 8,
    ("SelfAttention", "key_value_size"): 128,
    ("SelfAttention", "relative_attention_num_buckets"): 32,
    # Not the original's, which is None: that a model has no tables is said of the variables.
    ("SelfAttention", "relative_attention_type"): BIAS_SHARED,
    ("TalkingHeadsSelfAttention", "key_heads_dims"): (("heads", 12),),
    ("TalkingHeadsSelfAttention", "softmax_heads_dims"): (("heads", 12),),
    ("TalkingHeadsSelfAttention", "value_heads_dims"): (("heads", 12),),
    ("TalkingHeadsSelfAttention", "key_size"): 64,
    ("TalkingHeadsSelfAttention", "value_size"): 64,
    ("TalkingHeadsSelfAttention", "relative_attention_num_buckets"): 32,
    ("TalkingHeadsSelfAttention", "relative_attention_type"): BIAS_SHARED,
    ("DenseReluDense", "hidden_size"): 4096,
    ("DenseReluDense", "activation"): "relu",
}

# The only values, of parameters that change what a model computes, with which it is one of ours. References are written
# by their name. A parameter that is not bound is not checked: the variables' names and shapes still are.
_EXPRESSIBLE: Mapping[tuple[str, str], tuple[Any, ...]] = {
    ("run", "model_type"): ("bitransformer",),
    ("make_bitransformer", "encoder_name"): ("encoder",),
    ("make_bitransformer", "decoder_name"): ("decoder",),
    ("make_bitransformer", "bitransformer_cls"): ("Bitransformer",),
    ("make_layer_stack", "layer_stack_cls"): ("LayerStack",),
    ("Bitransformer", "shared_embedding"): (True,),
    ("Unitransformer", "positional_embedding"): (False,),
    ("Unitransformer", "sinusoid_positional_embedding"): (False,),
    ("Unitransformer", "input_full_attention"): (False,),
    ("Unitransformer", "ensemble"): (None, 0),
    ("VocabEmbedding", "scale_variable_like_classifier_weights"): (False,),
    ("get_vocab_embedding_cls", "cls"): ("VocabEmbedding",),
    ("unit_scaling_convention", "value"): (False,),
    # The deprecated spelling; the code of today ignores it in favour of sublayer_rms_norm.epsilon.
    ("LayerStack", "norm_epsilon"): (None, 1e-6),
    ("LayerStack", "sublayers_initial"): (["sublayer_dropout"], ["sublayer_legacy_dropout"], None),
    ("LayerStack", "sublayers_per_layer"): (
        ["sublayer_rms_norm", "sublayer_call_layer", "sublayer_dropout", "sublayer_residual"],
        ["sublayer_legacy_rms_norm", "sublayer_call_layer", "sublayer_legacy_dropout", "sublayer_residual"],
        None,
    ),
    ("LayerStack", "sublayers_final"): (
        ["sublayer_rms_norm", "sublayer_dropout"],
        ["sublayer_legacy_final_rms_norm", "sublayer_legacy_dropout"],
        None,
    ),
}

# The same for layers, where a layer's own keywords count too.
_LAYER_EXPRESSIBLE: Mapping[tuple[str, str], tuple[Any, ...]] = {
    ("SelfAttention", "num_memory_heads"): (0,),
    ("SelfAttention", "shared_kv"): (False,),
    ("SelfAttention", "attention_func"): (None,),
    ("SelfAttention", "attention_kwargs"): (None, {}),
    ("SelfAttention", "keep_query_heads_dims"): (False,),
    ("SelfAttention", "fold_scaling_into_initializer"): (True,),
    ("SelfAttention", "use_hyperprompt"): (False,),
    ("SelfAttention", "hyperprompt_length_encoder"): (None, 0),
    ("SelfAttention", "hyperprompt_length_decoder"): (None, 0),
    ("SelfAttention", "relative_attention_type"): (BIAS_SHARED, BIAS),
    ("EncDecAttention", "relative_attention_type"): (None,),
    ("TalkingHeadsSelfAttention", "dynamic_projections"): (None, [], ()),
    ("TalkingHeadsSelfAttention", "relative_attention_type"): (BIAS_SHARED, BIAS),
    ("TalkingHeadsEncDecAttention", "relative_attention_type"): (None,),
    ("DenseReluDense", "use_bias"): (False,),
}

_SAME_EVERYWHERE = (
    "Unitransformer.d_model",
    "relative_attention_num_buckets",
    "relative_attention_type",
    "DenseReluDense.activation",
    "sublayer_rms_norm.epsilon",
)


def read_architecture(gin: GinFile) -> Architecture:
    """The architecture that a gin file describes.

    Raises:
        ConversionError: it describes something that our models cannot express; the message names the parameter.
    """
    _refuse(gin)
    layers: dict[str, tuple[LayerSpec, ...]] = {}
    facts: dict[str, set[Any]] = {name: set() for name in _SAME_EVERYWHERE}
    for stack in SUBLAYERS:
        layers[stack] = _layers(gin, stack, facts)
        d_model = _required(gin, stack, "Unitransformer", "d_model")
        facts["Unitransformer.d_model"].add(integer(gin, f"{stack}/Unitransformer.d_model", d_model))
        bound, epsilon = gin.lookup(stack, "sublayer_rms_norm", "epsilon")
        epsilon = number(gin, "sublayer_rms_norm.epsilon", epsilon) if bound else 1e-6
        facts["sublayer_rms_norm.epsilon"].add(epsilon)
    d_model, buckets, bias_type, activation, epsilon = (_only(gin, name, values) for name, values in facts.items())
    architecture = Architecture(
        d_model=d_model,
        layers=layers,
        buckets=buckets,
        feed_forward_proj=activation,
        tied=_tied(gin),
        layer_norm_epsilon=epsilon,
        relative_attention_type=bias_type,
    )
    rates = set(_dropout_rates(gin))
    if len(rates) > 1:
        note = f"{gin.name} has several dropout rates ({joined(sorted(rates))}); our models have one, the highest."
        return replace(architecture, dropout_rate=max(rates), notes=(note,))
    return replace(architecture, dropout_rate=rates.pop() if rates else None)


def _tied(gin: GinFile) -> bool:
    parameter = "shared_embedding_and_softmax_weights"
    bound, value = gin.lookup("decoder", "Unitransformer", parameter)
    return bound and flag(gin, f"decoder/Unitransformer.{parameter}", value)


def _refuse(gin: GinFile) -> None:
    for (scope, configurable, parameter), raw in gin.bindings.items():
        allowed = _EXPRESSIBLE.get((configurable, parameter))
        if allowed is not None and scope in ("", "encoder", "decoder"):
            _check(gin, "/".join(filter(None, (scope, configurable))), parameter, gin.resolve(raw), allowed)


def _check(gin: GinFile, where: str, parameter: str, value: Any, allowed: tuple[Any, ...]) -> None:
    plain = names(value)
    if not any(plain == choice and type(plain) is type(choice) for choice in allowed):
        choices = [choice for choice in allowed if isinstance(choice, str)] or allowed[:1]
        raise ConversionError(
            f"{gin.name} sets {where}.{parameter} = {shown(plain)}, which our models cannot express (only "
            f"{' or '.join(map(repr, choices))})."
        )


def _required(gin: GinFile, scope: str, configurable: str, parameter: str) -> Any:
    bound, value = gin.lookup(scope, configurable, parameter)
    if not bound:
        raise ConversionError(
            f"{gin.name} does not set {scope}/{configurable}.{parameter}: restore the run's whole file, or move it "
            "away to have the architecture deduced from the variables."
        )
    return value


def _layers(gin: GinFile, stack: str, facts: dict[str, set[Any]]) -> tuple[LayerSpec, ...]:
    """Widths of every layer; those that `num_layers` repeats are read once."""
    known: dict[tuple[tuple[str, int], ...], LayerSpec] = {}
    result = []
    for i, group in enumerate(_groups(gin, stack)):
        key = tuple((name, id(keywords)) for name, keywords in group)
        if key not in known:
            known[key] = _layer(gin, stack, i, group, facts)
        result.append(known[key])
    return tuple(result)


def _groups(gin: GinFile, stack: str) -> list[list[tuple[str, Mapping[str, Any]]]]:
    """Layers of ours as lists of (class, keywords), one entry per sublayer."""
    where = f"{stack}/make_layer_stack"
    size = len(SUBLAYERS[stack])
    listed = items(gin, f"{where}.layers", _required(gin, stack, "make_layer_stack", "layers"))
    most = MAX_LAYERS * size
    count = integer(gin, f"{where}.num_layers", _required(gin, stack, "make_layer_stack", "num_layers"), most=most)
    if len(listed) * count > most:
        raise ConversionError(
            f"{gin.name} gives the {stack} more than {MAX_LAYERS} layers ({where}.num_layers = {count}): no T5 has as "
            "many."
        )
    specs = [_parse_layer(gin, stack, item) for item in listed] * count
    for k, (name, _) in enumerate(specs):
        if name not in LAYER_CLASSES:
            raise ConversionError(f"{gin.name} gives the {stack} a layer of class {name}, which no model here has.")
        if LAYER_CLASSES[name][0] != SUBLAYERS[stack][k % size]:
            raise ConversionError(
                f"{gin.name} has {name} as sublayer {k} of the {stack}, whose layers can only be "
                f"{', then '.join(SUBLAYERS[stack])}."
            )
    if len(specs) % size or not specs:
        raise ConversionError(
            f"{gin.name} ends the {stack} in the middle of a layer: make_layer_stack.layers is cut off."
        )
    return [specs[k : k + size] for k in range(0, len(specs), size)]


def _parse_layer(gin: GinFile, stack: str, item: Any) -> tuple[str, Mapping[str, Any]]:
    """An entry of `make_layer_stack.layers`: a class, or a sequence of a class, keywords and a name in any order."""
    parts = item if isinstance(item, list | tuple) else [item]
    classes = [part.name for part in parts if isinstance(part, Reference)]
    keywords = [part for part in parts if isinstance(part, dict)]
    strange = [part for part in parts if not isinstance(part, Reference | dict | str)]
    if len(classes) != 1 or strange:
        raise ConversionError(
            f"{gin.name} has {shown(names(item))} among the layers of the {stack}: one class per layer is expected, "
            "with keywords and a name or without."
        )
    return classes[0], keywords[-1] if keywords else {}


def _layer(
    gin: GinFile, stack: str, i: int, group: Iterable[tuple[str, Mapping[str, Any]]], facts: dict[str, set[Any]]
) -> LayerSpec:
    """Widths of one layer; what must be the same in all layers is added to the facts."""
    attentions = []
    d_ff = 0
    for name, keywords in group:
        layer = _Layer(gin, stack, name, keywords)
        layer.refuse()
        if name == "DenseReluDense":
            d_ff = layer.width("hidden_size")
            facts["DenseReluDense.activation"].add(_feed_forward_proj(gin, layer.value("activation")))
        else:
            attentions.append(layer.attention())
            if LAYER_CLASSES[name][0] == "self_attention":
                facts["relative_attention_num_buckets"].add(layer.width("relative_attention_num_buckets", *BUCKETS))
                facts["relative_attention_type"].add(layer.value("relative_attention_type"))
    if len(set(attentions)) > 1:
        raise ConversionError(
            f"{gin.name} gives layer {i} of the {stack} a self-attention and an encoder-decoder attention of different "
            "kinds or widths, which our models cannot express."
        )
    return LayerSpec(*attentions[0], d_ff)


class _Layer:
    """One sublayer: its keywords, then its class's bindings, then its parent class's, then the original's defaults."""

    def __init__(self, gin: GinFile, stack: str, name: str, keywords: Mapping[str, Any]) -> None:
        self._gin, self._stack, self._name, self._keywords = gin, stack, name, keywords
        self._parent = LAYER_CLASSES[name][2]

    def _bound(self, parameter: str) -> tuple[bool, Any]:
        if parameter in self._keywords:
            return True, self._keywords[parameter]
        # An encoder-decoder attention passes its own relative_attention_type (default None) to its parent.
        inherits = self._parent and parameter != "relative_attention_type"
        for name in (self._name, self._parent) if inherits else (self._name,):
            bound, value = self._gin.lookup(self._stack, str(name), parameter)
            if bound:
                return True, value
        return False, None

    def value(self, parameter: str) -> Any:
        """Value of a parameter that tells a width or an activation."""
        bound, value = self._bound(parameter)
        return value if bound else _DEFAULTS[self._parent or self._name, parameter]

    def width(self, parameter: str, least: int = 1, most: int = MAX_SIZE) -> int:
        """Value of a parameter that is a number of heads or a size."""
        return integer(self._gin, f"{self._stack}/{self._name}.{parameter}", self.value(parameter), least, most)

    def refuse(self) -> None:
        """Raises for what our models cannot express."""
        rules = {p: v for (name, p), v in _LAYER_EXPRESSIBLE.items() if name == self._parent}
        rules |= {p: v for (name, p), v in _LAYER_EXPRESSIBLE.items() if name == self._name}
        for parameter, allowed in rules.items():
            bound, value = self._bound(parameter)
            if bound:
                _check(self._gin, f"{self._stack}/{self._name}", parameter, value, allowed)

    def attention(self) -> tuple[str, int, int, int, int, int]:
        """The attention part of a `LayerSpec`."""
        kind = LAYER_CLASSES[self._name][1]
        if kind == MULTI_HEAD:
            heads, size = self.width("num_heads"), self.width("key_value_size")
            return kind, heads, heads, heads, size, size
        (keys, key_heads), (softmax, heads), (values, value_heads) = (
            self._heads(parameter) for parameter in ("key_heads_dims", "softmax_heads_dims", "value_heads_dims")
        )
        if softmax in (keys, values):
            # The original then mixes over fewer heads, or not at all.
            raise ConversionError(
                f"{self._gin.name} calls the softmax heads of {self._stack}/{self._name} {softmax!r} like its key or "
                "value heads, so that they do not mix: our models cannot express that."
            )
        return kind, heads, key_heads, value_heads, self.width("key_size"), self.width("value_size")

    def _heads(self, parameter: str) -> tuple[str, int]:
        where = f"{self._stack}/{self._name}.{parameter}"
        match self.value(parameter):
            case [[str(name), size]]:
                return name, integer(self._gin, where, size)
            case dims:
                raise ConversionError(
                    f"{self._gin.name} sets {where} = {shown(names(dims))}, which our models cannot express (only one "
                    "name and size)."
                )


def _feed_forward_proj(gin: GinFile, value: Any) -> str:
    match names(value):
        case str(name) | [str(name)] if name in ACTIVATIONS:
            return written_proj(name, gated=False)
        case [str(name), "linear"] if name in ACTIVATIONS:
            return written_proj(name, gated=True)
    raise ConversionError(
        f"{gin.name} sets DenseReluDense.activation = {shown(names(value))}, which our models cannot express (one of "
        f"{', '.join(ACTIVATIONS)}, alone or in a list with 'linear' after it)."
    )


def _dropout_rates(gin: GinFile) -> Iterable[float]:
    configurables = ("sublayer_dropout", "DenseReluDense", "SelfAttention", "TalkingHeadsSelfAttention", "LayerStack")
    for (scope, configurable, parameter), raw in gin.bindings.items():
        if parameter == "dropout_rate" and configurable in configurables:
            rate = gin.resolve(raw)
            if rate is not None:
                yield number(gin, "/".join(filter(None, (scope, f"{configurable}.{parameter}"))), rate, below=1)


def _only(gin: GinFile, what: str, values: set[Any]) -> Any:
    if len(values) != 1:
        listed = joined(sorted(values, key=str))
        raise ConversionError(f"{gin.name} sets {what} to {listed} in different layers: our models have one for all.")
    return values.pop()
