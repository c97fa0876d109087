# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Configuration of the four families: one architecture with four sets of defaults.

A stack is a list of layers, and each layer has its own sizes (`LayerSpec`). A family is only a `model_type` and the
defaults of the released base size; any configuration class can describe any mix of sizes and attention types.
"""

import copy
import functools
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


MULTI_HEAD: Literal["multi_head"] = "multi_head"
TALKING_HEADS: Literal["talking_heads"] = "talking_heads"
STACKS = ("encoder", "decoder")

# Auto class -> suffix of the model class that it builds, after the family's prefix. Both the registration and the
# `auto_map` of saved folders come from this table.
AUTO_CLASSES = {
    "AutoModel": "Model",
    "AutoModelForPreTraining": "ForConditionalGeneration",
    "AutoModelForSeq2SeqLM": "ForConditionalGeneration",
    "AutoModelForTextEncoding": "EncoderModel",
    "AutoModelForSequenceClassification": "ForSequenceClassification",
    "AutoModelForTokenClassification": "ForTokenClassification",
    "AutoModelForQuestionAnswering": "ForQuestionAnswering",
}

# The modules that are copied into saved folders, and their first line.
_CODE = "*_t5_experimental.py"
_FIRST_LINE = b"# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.\n"

# Two names in transformers of the same function, the tanh approximation of GELU.
_TANH_GELUS = {"gelu_new", "gelu_pytorch_tanh"}

# Common activations, to avoid importing transformers' list, which takes seconds.
_USUAL_ACTIVATIONS = ("gelu_pytorch_tanh", "relu", "gelu_new", "silu")

# Far larger than any trained model: larger values come from damaged files, and are refused before any allocation.
_MOST_LAYERS = 2**12
_LARGEST = 2**31 - 1

# Called when a configuration is created, until the list is cleared: registration.py adds the import of the model
# classes. The copy of this file in a converted folder leaves it empty, because its `auto_map` names the classes.
BEFORE_FIRST_USE: list[Callable[[], None]] = []


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


# Defaults of transformers' T5Config, and of fields that it does not have.
_STOCK_T5_DEFAULTS = {
    "d_model": 512,
    "d_kv": 64,
    "d_ff": 2048,
    "num_layers": 6,
    "num_heads": 8,
    "feed_forward_proj": "relu",
    "attention_type": MULTI_HEAD,
    "layer_overrides": {},
}

# Configuration fields that `layer_overrides` may override.
LAYER_FIELDS = ("attention_type", "num_heads", "num_key_heads", "num_value_heads", "d_kv", "d_k", "d_v", "d_ff")


@strict
class T5ExperimentalConfig(PreTrainedConfig):
    r"""Configuration of a T5 encoder-decoder whose layers may differ in size and type of attention.

    Names are those of [`~transformers.T5Config`] where it has the field.

    Args:
        vocab_size: rows of the embedding and of the classifier: 32,000 pieces and 100 sentinels, which the original
            rounds up to a multiple of 128.
        d_model: width of the residual stream.
        d_kv: size of one head; default of `d_k` and `d_v`.
        d_ff: hidden size of the feed-forward.
        num_layers: layers of the encoder.
        num_decoder_layers: layers of the decoder; `num_layers` by default.
        num_heads: softmax heads of an attention; in multi-head attention, also all other heads.
        attention_type: `"multi_head"`, or `"talking_heads"` (https://arxiv.org/abs/2003.02436), which mixes the
            heads by learned matrices before and after the softmax.
        num_key_heads: talking heads only: heads of queries and keys; `num_heads` by default.
        num_value_heads: talking heads only: heads of values; `num_heads` by default.
        d_k: talking heads only: size of one query or key head; `d_kv` by default.
        d_v: talking heads only: size of one value head; `d_kv` by default.
        layer_overrides: fields of single layers, one dictionary per layer, `{"encoder": [{"num_heads": 6, "d_ff":
            1024}, {}, ...], "decoder": [...]}`. A missing stack has no overrides. Each stack has one relative position
            bias for each number of softmax heads in it, held by the first layer with that number.
        relative_attention_num_buckets: buckets of the relative position bias.
        relative_attention_max_distance: this distance in tokens and all larger ones share the last bucket.
        feed_forward_proj: `"gated-gelu"` (GELU in its tanh approximation, as in the original), `"relu"` (t5.1.0), or
            any other activation of transformers, with or without `gated-`. All names have the same meaning as in
            transformers' T5: `"gelu"` alone is the exact GELU.
        dropout_rate: dropout of embeddings, attention weights, feed-forward and residual branches. 0.1 is the
            original's rate for fine-tuning; pre-training of these checkpoints used 0.
        broadcast_dropout: as in the original, all positions of a row share one dropout mask, even if several examples
            are packed in it. Dropout then drops features of hidden states, and keys of attention weights (for all
            queries), by masking the values. False: drop every element independently, as in transformers.
        layer_norm_epsilon: added to the mean square in the RMS norm.
        initializer_factor: multiplies the standard deviation of all initial weights.
        tie_word_embeddings: tie the classifier to the embedding (t5.1.0). False for all families here, whose classifier
            is a separate matrix.
        scale_decoder_outputs: multiply the decoder's output by `d_model ** -0.5` before the classifier; the original
            does so if the classifier is tied. `tie_word_embeddings` by default.
        classifier_dropout: dropout of the classification heads.
    """

    model_type = "t5_experimental"
    keys_to_ignore_at_inference = ["past_key_values"]
    attribute_map = {
        "hidden_size": "d_model",
        "num_attention_heads": "num_heads",
        "num_hidden_layers": "num_layers",
        "head_dim": "d_kv",
    }

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

    def __new__(cls, *args: Any, **kwargs: Any) -> "T5ExperimentalConfig":
        # Not in `__init__`, which does not run when another process sends a configuration.
        for prepare in tuple(BEFORE_FIRST_USE):
            prepare()
        return super().__new__(cls)

    def __post_init__(self, **kwargs: Any) -> None:
        # transformers' T5 writes these two along with `feed_forward_proj`, and gives them precedence.
        self._take_activation(kwargs.pop("dense_act_fn", None), kwargs.pop("is_gated_act", None))
        if self.num_decoder_layers is None:
            self.num_decoder_layers = self.num_layers
        if self.scale_decoder_outputs is None:
            self.scale_decoder_outputs = self.tie_word_embeddings
        super().__post_init__(**kwargs)

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | Path, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """As in transformers; the fields of its T5 come as those of this class, which means the same by them, so that
        there is no warning of another type of model."""
        values, rest = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if values.get("model_type") == "t5":
            values = {**_own_fields(cls, values), "model_type": cls.model_type}
        return values, rest

    def __init_subclass__(cls, *args: Any, **kwargs: Any) -> None:
        super().__init_subclass__(*args, **kwargs)
        _understand_other_configurations(cls)

    @classmethod
    def of_stock(cls, config: PreTrainedConfig) -> "T5ExperimentalConfig":
        """Converts a configuration of transformers' T5.

        Raises:
            ValueError: it is the configuration of another type of model.
        """
        ours = cls(**config.to_dict())
        ours._attn_implementation = config._attn_implementation
        return ours

    def _take_activation(self, dense_act_fn: str | None, is_gated_act: bool | None) -> None:
        """Updates `feed_forward_proj` if one of the arguments is given and differs from it."""
        name = self.dense_act_fn if dense_act_fn is None else dense_act_fn
        is_gated = self.is_gated_act if is_gated_act is None else is_gated_act
        if is_gated == self.is_gated_act and (name == self.dense_act_fn or {name, self.dense_act_fn} <= _TANH_GELUS):
            return
        if is_gated and name == "gelu":
            name = "gelu_python"  # the same function: "gated-gelu" is the tanh form
        self.feed_forward_proj = f"gated-{name}" if is_gated else name

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

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> "T5ExperimentalConfig":
        """Returns this config; for the decoder alone, a copy with the decoder's `num_layers`, for static caches."""
        if not decoder or encoder or self.num_decoder_layers == self.num_layers:
            return self
        config = copy.deepcopy(self)
        config.num_layers = self._num_layers_of("decoder")
        return config

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

    def _remote_code_map(self) -> dict[str, str] | None:
        """The `auto_map` of a saved folder; None for a class outside the four families."""
        family = next((base for base in type(self).__mro__ if base in CONFIG_CLASSES), None)
        if family is None:
            return None
        models = dict(AUTO_CLASSES)
        if self.architectures and all(name.endswith("EncoderModel") for name in self.architectures):
            models = dict.fromkeys(("AutoModel", "AutoModelForTextEncoding"), "EncoderModel")
        code_map = {
            auto: f"modeling_t5_experimental.{model_class_name(family, suffix)}" for auto, suffix in models.items()
        }
        return {"AutoConfig": f"configuration_t5_experimental.{family.__name__}", **code_map}

    def save_pretrained(self, save_directory: str | Path, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Saves `config.json`, and next to it the modeling code that `trust_remote_code=True` loads without our
        package. So folders that a trainer saves are as complete as those that the converter writes."""
        if (code_map := self._remote_code_map()) is not None:
            self.auto_map = code_map
        folder = Path(save_directory)
        if folder.is_file():
            raise ValueError(f"{folder} is a file: give a folder to save into.")
        folder.mkdir(parents=True, exist_ok=True)
        if folder.resolve() != (code := Path(__file__).parent).resolve():
            if __name__.startswith("t5_experimental."):  # not from a converted folder's copy, which is incomplete
                _remove_other_versions(folder)
            for source in sorted(code.glob(_CODE)):
                shutil.copyfile(source, folder / source.name)
        super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)


def _remove_other_versions(folder: Path) -> None:
    """Removes modules that another version of this package saved and this one no longer has: they are unused, but an
    upload would include them. Keeps files without our first line."""
    current = {source.name for source in Path(__file__).parent.glob(_CODE)}
    for path in folder.glob(_CODE):
        if path.name in current or path.is_symlink() or not path.is_file():
            continue
        with path.open("rb") as file:
            if file.readline() == _FIRST_LINE:
                path.unlink()


def _understand_other_configurations(cls: type[T5ExperimentalConfig]) -> None:
    """Lets a class accept the fields of transformers' T5Config, and refuse those of other types of models."""
    make = cls.__init__

    @functools.wraps(make)
    def __init__(self: T5ExperimentalConfig, *args: Any, **kwargs: Any) -> None:
        make(self, *args, **_own_fields(type(self), kwargs))

    cls.__init__ = __init__  # type: ignore[method-assign]


def _own_fields(cls: type[T5ExperimentalConfig], values: dict[str, Any]) -> dict[str, Any]:
    """Converts the fields of one of our configurations, or of transformers' T5Config.

    transformers 5 writes `tie_word_embeddings: true` for every T5; whether the classifier is really tied follows from
    `scale_decoder_outputs`, as the original scales the decoder's output only then. Earlier releases do not write
    `scale_decoder_outputs`.

    Raises:
        ValueError: they belong to another type of model.
    """
    model_type = values.get("model_type") or cls.model_type
    values = {name: value for name, value in values.items() if name != "model_type"}
    if model_type == "t5":
        scales = values.get("scale_decoder_outputs")
        tied = values.get("tie_word_embeddings", True) is not False and scales is not False
        values = {**_STOCK_T5_DEFAULTS, **values, "tie_word_embeddings": tied}
        return values | {"scale_decoder_outputs": tied if scales is None else scales}
    ours = {cls.model_type, T5ExperimentalConfig.model_type, *(other.model_type for other in CONFIG_CLASSES)}
    if model_type not in ours:
        raise ValueError(
            f"These are the fields of a configuration of type {model_type!r}, which {cls.__name__} does not support: "
            f"give those of transformers' T5 (type 't5') or of one of {sorted(ours)}."
        )
    return values


_understand_other_configurations(T5ExperimentalConfig)


@strict
class T5V11Config(T5ExperimentalConfig):
    """t5.1.1: gated GELU, multi-head attention, all layers alike. Defaults are those of t5.1.1.base."""

    model_type = "t5_v1_1"


@strict
class T5LMAdaptedConfig(T5ExperimentalConfig):
    """t5.1.1.lm100k: t5.1.1 after 100,000 more steps of language modeling. Defaults are those of t5.1.1.lm100k.base."""

    model_type = "t5_lm_adapted"


@strict
class T5TalkingHeadsConfig(T5ExperimentalConfig):
    """t5.1.th: talking-heads attention in all layers. Defaults are those of t5.1.th.base."""

    model_type = "t5_talking_heads"

    attention_type: Literal["multi_head", "talking_heads"] = TALKING_HEADS
    num_heads: int = 24
    d_kv: int = 32


@strict
class T5FirstLayersNarrowConfig(T5ExperimentalConfig):
    """t5.1.n4w10: the first four layers of each stack are half as wide as the other ten. Defaults are those of
    t5.1.n4w10.base.

    Without `layer_overrides`, the first four layers of each stack get half of `num_heads` and half of `d_ff`.
    """

    model_type = "t5_first_layers_narrow"

    num_layers: int = 14

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.layer_overrides is None:
            narrow = {"num_heads": self.num_heads // 2, "d_ff": self.d_ff // 2}
            self.layer_overrides = {
                stack: [dict(narrow) if index < 4 else {} for index in range(self._num_layers_of(stack))]
                for stack in STACKS
            }


_SIZE = f"a positive integer of at most {_LARGEST}"


def _is_size(number: Any) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and 1 <= number <= _LARGEST


def _is_activation(name: str) -> bool:
    """Whether transformers has an activation of this name."""
    if name in _USUAL_ACTIVATIONS:
        return True
    from transformers.activations import ACT2FN

    return name in ACT2FN


def model_class_name(config_class: type[T5ExperimentalConfig], suffix: str) -> str:
    """Name of a family's model class, such as "T5V11Model" for the suffix "Model"."""
    return config_class.__name__.removesuffix("Config") + suffix


CONFIG_CLASSES: tuple[type[T5ExperimentalConfig], ...] = (
    T5V11Config,
    T5LMAdaptedConfig,
    T5TalkingHeadsConfig,
    T5FirstLayersNarrowConfig,
)

__all__ = [config_class.__name__ for config_class in CONFIG_CLASSES] + ["LayerSpec", "T5ExperimentalConfig"]
