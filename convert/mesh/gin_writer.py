# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""`operative_config.gin` of a configuration: what the original code needs to build the model; `gin_config` reads it."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from t5_experimental.architecture_t5_experimental import MULTI_HEAD
from t5_experimental.original import VOCAB_DIVISOR

from ..errors import ConversionError
from .architecture import ACTIVATIONS, original_activation, written_proj
from .gin_reader import LAYER_CLASSES
from .scopes import SUBLAYERS, Layout


if TYPE_CHECKING:
    from t5_experimental.architecture_t5_experimental import LayerSpec, T5ExperimentalArchitecture


_LAYERS = "@mesh_tensorflow.transformer.transformer_layers."

# The original has no parameter for this.
_MAX_DISTANCE = 128

_TEMPLATE = """# The model of this checkpoint, written by t5-experimental; optimizer, data and mesh are up to the run.
import mesh_tensorflow.transformer.transformer
import mesh_tensorflow.transformer.transformer_layers
import mesh_tensorflow.transformer.utils

dropout_rate = {dropout_rate}

get_variable_dtype.master_dtype = '{dtype}'

Bitransformer.shared_embedding = True
Unitransformer.d_model = {d_model}
Unitransformer.ensemble = None
Unitransformer.input_full_attention = False
Unitransformer.max_length = 512
Unitransformer.positional_embedding = False
Unitransformer.shared_embedding_and_softmax_weights = {tied}
Unitransformer.sinusoid_positional_embedding = False
Unitransformer.vocab_divisor = {vocab_divisor}
VocabEmbedding.scale_variable_like_classifier_weights = False
unit_scaling_convention.value = False

{sublayers}
sublayer_rms_norm.epsilon = {epsilon}
sublayer_dropout.dropout_rate = %dropout_rate

DenseReluDense.activation = {activation}
DenseReluDense.dropout_rate = %dropout_rate
DenseReluDense.use_bias = False
{attentions}
{stacks}"""

_SUBLAYERS = """LayerStack.dropout_rate = None
LayerStack.norm_epsilon = None
LayerStack.sublayers_initial = [@transformer.sublayer_dropout]
LayerStack.sublayers_per_layer = [
    @transformer.sublayer_rms_norm,
    @transformer.sublayer_call_layer,
    @transformer.sublayer_dropout,
    @transformer.sublayer_residual,
]
LayerStack.sublayers_final = [@transformer.sublayer_rms_norm, @transformer.sublayer_dropout]"""

# Both being set is what makes the original call its norms as old checkpoints do; the number itself is not used.
_LEGACY_SUBLAYERS = """LayerStack.dropout_rate = %dropout_rate
LayerStack.norm_epsilon = 1e-06"""

_ATTENTION = """
{self}.dropout_rate = %dropout_rate
{self}.relative_attention_num_buckets = {buckets}
{self}.relative_attention_type = {bias_type!r}
{cross}.relative_attention_type = None
"""


def check_expressible(config: "T5ExperimentalArchitecture") -> None:
    """Raises if the original code cannot build the model that a configuration describes."""
    if not config.is_encoder_decoder:
        raise ConversionError("it is an encoder without decoder, which the original cannot restore: export the whole.")
    if config.relative_attention_max_distance != _MAX_DISTANCE:
        raise ConversionError(
            f"its relative_attention_max_distance is {config.relative_attention_max_distance}, but the original knows "
            f"only {_MAX_DISTANCE}: this model cannot be exported."
        )
    if config.scale_decoder_outputs != config.tie_word_embeddings:
        raise ConversionError(
            "its scale_decoder_outputs differs from tie_word_embeddings, but the original scales the decoder's output "
            "exactly when the classifier is the embedding: this model cannot be exported."
        )
    _activation(config)


def natural_layout(config: "T5ExperimentalArchitecture") -> Layout:
    """The numbering of the released checkpoints: a block per layer if all are alike, else all layers in one block."""
    return Layout(
        {
            stack: len(kinds) * (1 if len(set(specs)) == 1 else len(specs))
            for stack, kinds in SUBLAYERS.items()
            for specs in [config.layer_specs(stack)]
        }
    )


def can_be_written(layout: Layout, config: "T5ExperimentalArchitecture") -> bool:
    """Whether the original can number and name the layers of a model like that: its blocks must be alike."""
    for stack, kinds in SUBLAYERS.items():
        specs = config.layer_specs(stack)
        count = layout.layers_per_block[stack]
        if count is None:
            continue
        size = count // len(kinds)
        if count % len(kinds) or not size or specs != specs[:size] * (len(specs) // size):
            return False
        if layout.named_layers and size > 1:
            return False
    return not layout.named_layers or None not in layout.layers_per_block.values()


def operative_config(config: "T5ExperimentalArchitecture", layout: Layout, dtype: str) -> str:
    """Text of the file.

    Args:
        config: a model that `check_expressible` lets pass.
        layout: numbering of its layers, one that `can_be_written`.
        dtype: dtype of the variables, "float32" or "bfloat16".
    """
    attentions = {spec.attention_type for stack in SUBLAYERS for spec in config.layer_specs(stack)}
    classes = [[_class_name(kind, attention) for kind in SUBLAYERS["decoder"][:2]] for attention in sorted(attentions)]
    return _TEMPLATE.format(
        dropout_rate=float(config.dropout_rate),
        dtype=dtype,
        d_model=config.d_model,
        tied=config.tie_word_embeddings,
        vocab_divisor=1 if config.vocab_size % VOCAB_DIVISOR else VOCAB_DIVISOR,
        sublayers=_LEGACY_SUBLAYERS if layout.legacy_norms else _SUBLAYERS,
        epsilon=config.layer_norm_epsilon,
        activation=_activation(config),
        attentions="".join(
            _ATTENTION.format(
                self=own,
                cross=cross,
                buckets=config.relative_attention_num_buckets,
                bias_type=config.relative_attention_type,
            )
            for own, cross in classes
        ),
        stacks="\n".join(_stack(config, stack, layout) for stack in SUBLAYERS),
    )


def _activation(config: "T5ExperimentalArchitecture") -> Any:
    """The original's value for `feed_forward_proj`."""
    original = original_activation(config.feed_forward_proj)
    if original is None:
        known = ", ".join(written_proj(theirs, config.is_gated_act) for theirs in ACTIVATIONS)
        raise ConversionError(
            f"its feed_forward_proj is {config.feed_forward_proj}, which the original does not have (only {known}): "
            "this model cannot be exported."
        )
    return [original, "linear"] if config.is_gated_act else repr(original)


def _stack(config: "T5ExperimentalArchitecture", stack: str, layout: Layout) -> str:
    """Widths of most layers as bindings, what others have as their own keywords."""
    specs = config.layer_specs(stack)
    count = layout.layers_per_block[stack]
    size = len(specs) if count is None else count // len(SUBLAYERS[stack])
    common = _common_widths(specs, stack)
    lines = [
        f"{stack}/{name}.{parameter} = {value!r}"
        for name, widths in common.items()
        for parameter, value in widths.items()
    ]
    layers = ",\n".join(
        f"    {item}" for spec in specs[:size] for item in _layers(spec, stack, common, layout.named_layers)
    )
    return "\n".join(
        (
            *lines,
            f"{stack}/make_layer_stack.block_scope = {count is not None}",
            f"{stack}/make_layer_stack.num_layers = {len(specs) // size}",
            f"{stack}/make_layer_stack.layers = [\n{layers},\n]\n",
        )
    )


def _common_widths(specs: tuple["LayerSpec", ...], stack: str) -> dict[str, Mapping[str, Any]]:
    """Parameters of most layers, by the class that takes them."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for spec in specs:
        for kind in SUBLAYERS[stack]:
            name = _class_name(kind, spec.attention_type)
            # Encoder-decoder attentions take theirs from the self-attention.
            found.setdefault(LAYER_CLASSES[name][2] or name, []).append(_widths(kind, spec))
    return {name: _commonest(widths) for name, widths in found.items()}


def _commonest(items: list[Mapping[str, Any]]) -> Mapping[str, Any]:
    return max(items, key=lambda item: items.count(item))


def _layers(spec: "LayerSpec", stack: str, common: Mapping[str, Mapping[str, Any]], named: bool) -> Iterator[str]:
    """Entries of `make_layer_stack.layers` for one layer of ours."""
    for kind in SUBLAYERS[stack]:
        name = _class_name(kind, spec.attention_type)
        usual = common[LAYER_CLASSES[name][2] or name]
        own = {parameter: value for parameter, value in _widths(kind, spec).items() if usual[parameter] != value}
        parts = [*([repr(kind)] if named else []), *([repr(own)] if own else []), _LAYERS + name]
        yield parts[0] if len(parts) == 1 else f"({', '.join(parts)})"


def _class_name(kind: str, attention_type: str) -> str:
    """The original's class of a sublayer."""
    return next(
        name
        for name, (sublayer, attention, _) in LAYER_CLASSES.items()
        if sublayer == kind and attention in ("", attention_type)
    )


def _widths(kind: str, spec: "LayerSpec") -> dict[str, Any]:
    """Parameters of a sublayer's class that say how wide it is."""
    if kind == "dense_relu_dense":
        return {"hidden_size": spec.d_ff}
    if spec.attention_type == MULTI_HEAD:
        return {"num_heads": spec.num_heads, "key_value_size": spec.d_k}
    return {
        "key_heads_dims": [("key_heads", spec.num_key_heads)],
        "softmax_heads_dims": [("heads", spec.num_heads)],
        "value_heads_dims": [("value_heads", spec.num_value_heads)],
        "key_size": spec.d_k,
        "value_size": spec.d_v,
    }
