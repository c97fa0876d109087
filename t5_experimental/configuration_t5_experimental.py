# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Configuration of all four families: one architecture described by data, and four sets of defaults.

A stack is a list of layers, and every layer has its own widths (`LayerSpec`). A family is nothing but a `model_type`
and the defaults of the released base size; any configuration class can describe any mix of widths and attention kinds.
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

# Auto class -> suffix of our class that it builds; the prefix is the family's. The registration and the `auto_map` of a
# saved folder are both made from this one table.
AUTO_CLASSES = {
    "AutoModel": "Model",
    "AutoModelForPreTraining": "ForConditionalGeneration",
    "AutoModelForSeq2SeqLM": "ForConditionalGeneration",
    "AutoModelForTextEncoding": "EncoderModel",
    "AutoModelForSequenceClassification": "ForSequenceClassification",
    "AutoModelForTokenClassification": "ForTokenClassification",
    "AutoModelForQuestionAnswering": "ForQuestionAnswering",
}

# The modules that travel inside saved folders, and how each of them begins.
_CODE = "*_t5_experimental.py"
_FIRST_LINE = b"# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.\n"

# Two names of transformers for one function, the tanh approximation.
_TANH_GELUS = {"gelu_new", "gelu_pytorch_tanh"}

# Known without asking transformers, whose list of activations takes seconds to import.
_USUAL_ACTIVATIONS = ("gelu_pytorch_tanh", "relu", "gelu_new", "silu")

# Far beyond what was ever trained: what says more is damaged, and must not be believed before anything is allocated.
_MOST_LAYERS = 2**12
_LARGEST = 2**31 - 1

# Called when a configuration object is made, until somebody clears the list: the package puts the import of its model
# classes here. A converted folder's copy of this file, whose `auto_map` names them, leaves it empty.
BEFORE_FIRST_USE: list[Callable[[], None]] = []


@dataclass(frozen=True)
class LayerSpec:
    """Widths of one layer: its self-attention, its encoder-decoder attention (decoder only) and its feed-forward.

    Attributes:
        attention_type: `"multi_head"` or `"talking_heads"`.
        num_heads: heads that the softmax runs over; the relative position bias has one column for each of them.
        num_key_heads: heads of queries and keys (equal to `num_heads` unless heads talk).
        num_value_heads: heads of values and of the output projection (equal to `num_heads` unless heads talk).
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


# What transformers' T5Config means by a field that is left out, and what it says of no layer.
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

# What a layer may override, by the name of the configuration field that it overrides.
LAYER_FIELDS = ("attention_type", "num_heads", "num_key_heads", "num_value_heads", "d_kv", "d_k", "d_v", "d_ff")


@strict
class T5ExperimentalConfig(PreTrainedConfig):
    r"""Architecture of a T5 encoder-decoder whose layers may differ in width and in kind of attention.

    Names are those of [`~transformers.T5Config`] wherever T5 has the thing.

    Args:
        vocab_size: rows of the embedding and of the classifier: 32,000 pieces and 100 sentinels, rounded up to a
            multiple of 128 by the original code.
        d_model: width of the residual stream.
        d_kv: size of one head; `d_k` and `d_v` are equal to it unless given.
        d_ff: hidden size of the feed-forward.
        num_layers: layers of the encoder.
        num_decoder_layers: layers of the decoder; as many as in the encoder unless given.
        num_heads: softmax heads of an attention; the only head count that plain multi-head attention has.
        attention_type: `"multi_head"`, or `"talking_heads"` (https://arxiv.org/abs/2003.02436), which mixes the heads
            by a learned matrix before the softmax and by another one after it.
        num_key_heads: talking heads: heads of queries and keys; `num_heads` unless given.
        num_value_heads: talking heads: heads of values; `num_heads` unless given.
        d_k: talking heads: size of one query or key head; `d_kv` unless given.
        d_v: talking heads: size of one value head; `d_kv` unless given.
        layer_overrides: what single layers have otherwise than the fields above: one dictionary per layer, `{"encoder":
            [{"num_heads": 6, "d_ff": 1024}, {}, ...], "decoder": [...]}`. A stack that is left out is uniform. Each
            stack has one relative position bias for each number of softmax heads that occurs in it, held by the first
            layer that has that number.
        relative_attention_num_buckets: buckets of the relative position bias.
        relative_attention_max_distance: distance in tokens from which on all positions share the last bucket.
        feed_forward_proj: `"gated-gelu"` (GELU in its tanh approximation, as in the original), `"relu"` (t5.1.0), or
            any other activation of transformers, with or without `gated-`. All names mean what they mean in
            transformers' T5: `"gelu"` alone is the exact one.
        dropout_rate: dropout of embeddings, attention weights, feed-forward and residual branches. 0.1 is the
            original's rate for fine-tuning; pre-training of these checkpoints used 0.
        broadcast_dropout: drop as the original does: all positions of a row share what is dropped. Hidden states lose
            features, attention weights lose keys (in all their queries), which equals masking the values. Examples
            that are packed into one row share it, too. False: every number for itself, as in transformers.
        layer_norm_epsilon: added to the mean square in the RMS norm.
        initializer_factor: multiplies the standard deviation of every initialiser.
        tie_word_embeddings: the classifier is the embedding matrix (t5.1.0). False for every family here: their
            classifier is a matrix of its own, and nothing ever ties it.
        scale_decoder_outputs: multiply the decoder's output by `d_model ** -0.5` before the classifier, as the original
            does exactly when the classifier is the embedding; follows `tie_word_embeddings` unless given.
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
        # Here rather than on initialisation: an object that comes from another process is not initialised once more.
        for prepare in tuple(BEFORE_FIRST_USE):
            prepare()
        return super().__new__(cls)

    def __post_init__(self, **kwargs: Any) -> None:
        # transformers' T5 writes these two beside `feed_forward_proj`, and believes them first.
        self._take_activation(kwargs.pop("dense_act_fn", None), kwargs.pop("is_gated_act", None))
        if self.num_decoder_layers is None:
            self.num_decoder_layers = self.num_layers
        if self.scale_decoder_outputs is None:
            self.scale_decoder_outputs = self.tie_word_embeddings
        super().__post_init__(**kwargs)

    def __init_subclass__(cls, *args: Any, **kwargs: Any) -> None:
        super().__init_subclass__(*args, **kwargs)
        _understand_other_configurations(cls)

    @classmethod
    def of_stock(cls, config: PreTrainedConfig) -> "T5ExperimentalConfig":
        """What a configuration of transformers' T5 says, as one of this class.

        Raises:
            ValueError: it is of another kind of model.
        """
        ours = cls(**config.to_dict())
        ours._attn_implementation = config._attn_implementation
        return ours

    def _take_activation(self, dense_act_fn: str | None, is_gated_act: bool | None) -> None:
        """Makes `feed_forward_proj` say what these two say, as far as they are given and say something else."""
        name = self.dense_act_fn if dense_act_fn is None else dense_act_fn
        is_gated = self.is_gated_act if is_gated_act is None else is_gated_act
        if is_gated == self.is_gated_act and (name == self.dense_act_fn or {name, self.dense_act_fn} <= _TANH_GELUS):
            return
        if is_gated and name == "gelu":
            name = "gelu_python"  # the same function: "gated-gelu" is the tanh form
        self.feed_forward_proj = f"gated-{name}" if is_gated else name

    @property
    def is_gated_act(self) -> bool:
        """Whether the feed-forward multiplies an activated projection by a linear one."""
        return self.feed_forward_proj.startswith("gated-")

    @property
    def dense_act_fn(self) -> str:
        """Name of the feed-forward's activation in transformers' `ACT2FN`; that of "gated-gelu" is the tanh
        approximation, as in the original and in transformers' T5."""
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
        """Widths of every layer of a stack, with all defaults filled in.

        Args:
            stack: `"encoder"` or `"decoder"`.

        Raises:
            ValueError: the overrides name an unknown field, are not one per layer, or contradict the kind of attention.
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
            # A plain layer among talking ones has only one head count and one head size, whatever the others have.
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
        """This config; for the decoder alone, one whose `num_layers` are the decoder's, as caches of fixed size read
        it."""
        if not decoder or encoder or self.num_decoder_layers == self.num_layers:
            return self
        config = copy.deepcopy(self)
        config.num_layers = self._num_layers_of("decoder")
        return config

    def validate_architecture(self) -> None:
        """Checks that every layer of both stacks is described without contradiction (called on construction and on
        save)."""
        if unknown := sorted(set(self.layer_overrides or {}) - set(STACKS)):
            raise ValueError(f"`layer_overrides` has the keys {unknown}: it may only have {list(STACKS)}.")
        for name in ("vocab_size", "d_model"):
            if not _is_size(size := getattr(self, name)):
                raise ValueError(f"`{name}` is {size!r:.80}: it must be {_SIZE}.")
        for name in ("dropout_rate", "classifier_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}: it must be at least 0 and less than 1.")
        if not 0 <= self.layer_norm_epsilon < math.inf:
            raise ValueError(
                f"`layer_norm_epsilon` is {self.layer_norm_epsilon}: it must be a finite number from 0 on."
            )
        # Both directions need at least one bucket for single distances, and room for the logarithmic ones after it.
        buckets, distance = self.relative_attention_num_buckets, self.relative_attention_max_distance
        if buckets < 4 or not buckets // 2 < distance <= _LARGEST:
            raise ValueError(
                f"`relative_attention_num_buckets` is {buckets!r:.80} and `relative_attention_max_distance` "
                f"{distance!r:.80}: there must be at least 4 buckets, and a distance greater than half their number "
                f"and of at most {_LARGEST}."
            )
        if not 0 <= self.initializer_factor <= _LARGEST:
            raise ValueError(f"`initializer_factor` is {self.initializer_factor!r:.80}: it must be a number from 0 on.")
        if not _is_activation(self.dense_act_fn):
            raise ValueError(
                f"`feed_forward_proj` is {self.feed_forward_proj!r}: use an activation of transformers such as 'relu', "
                "or 'gated-' and an activation, such as 'gated-gelu'."
            )
        for stack in STACKS:
            self.layer_specs(stack)

    def _remote_code_map(self) -> dict[str, str] | None:
        """The `auto_map` of a saved folder, or None for a class that is none of the families'."""
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
        """Saves `config.json` and, beside it, the modelling code that `trust_remote_code=True` loads without our
        package.

        The code travels with every `config.json`, so a folder that a trainer saves is as complete as one that the
        converter wrote.
        """
        if (code_map := self._remote_code_map()) is not None:
            self.auto_map = code_map
        folder = Path(save_directory)
        if folder.is_file():
            raise ValueError(f"{folder} is a file: give a folder to save into.")
        folder.mkdir(parents=True, exist_ok=True)
        if folder.resolve() != (code := Path(__file__).parent).resolve():
            if __name__.startswith("t5_experimental."):  # what travels in a folder is not all of it
                _remove_other_versions(folder)
            for source in sorted(code.glob(_CODE)):
                shutil.copyfile(source, folder / source.name)
        super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)


def _remove_other_versions(folder: Path) -> None:
    """Removes modules that another version of this package left in a folder and that this one does not have: nothing
    would import them, and an upload would take them along. A file that does not begin as ours do stays."""
    current = {source.name for source in Path(__file__).parent.glob(_CODE)}
    for path in folder.glob(_CODE):
        if path.name in current or path.is_symlink() or not path.is_file():
            continue
        with path.open("rb") as file:
            if file.readline() == _FIRST_LINE:
                path.unlink()


def _understand_other_configurations(cls: type[T5ExperimentalConfig]) -> None:
    """Lets a class be made of the fields of a stock T5's configuration, and of no other kind of model's."""
    make = cls.__init__

    @functools.wraps(make)
    def __init__(self: T5ExperimentalConfig, *args: Any, **kwargs: Any) -> None:
        make(self, *args, **_own_fields(type(self), kwargs))

    cls.__init__ = __init__  # type: ignore[method-assign]


def _own_fields(cls: type[T5ExperimentalConfig], values: dict[str, Any]) -> dict[str, Any]:
    """Fields as they are called and meant here, from those of one of our configurations or of transformers' T5.

    transformers 5 writes `tie_word_embeddings: true` for every T5 and keeps the truth in `scale_decoder_outputs`: the
    original rescales the decoder's output exactly when the classifier is the embedding. Releases before wrote no
    `scale_decoder_outputs`.

    Raises:
        ValueError: they are of another kind of model.
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
            f"These are the fields of a configuration of type {model_type!r}, which {cls.__name__} cannot describe: "
            f"give those of a T5 of transformers (type 't5') or of one of {sorted(ours)}."
        )
    return values


_understand_other_configurations(T5ExperimentalConfig)


@strict
class T5V11Config(T5ExperimentalConfig):
    """t5.1.1: gated GELU, plain multi-head attention, all layers alike. Defaults are t5.1.1.base's."""

    model_type = "t5_v1_1"


@strict
class T5LMAdaptedConfig(T5ExperimentalConfig):
    """t5.1.1.lm100k: t5.1.1 after 100,000 more steps on the LM objective. Defaults are t5.1.1.lm100k.base's."""

    model_type = "t5_lm_adapted"


@strict
class T5TalkingHeadsConfig(T5ExperimentalConfig):
    """t5.1.th: talking-heads attention everywhere. Defaults are t5.1.th.base's."""

    model_type = "t5_talking_heads"

    attention_type: Literal["multi_head", "talking_heads"] = TALKING_HEADS
    num_heads: int = 24
    d_kv: int = 32


@strict
class T5FirstLayersNarrowConfig(T5ExperimentalConfig):
    """t5.1.n4w10: the first four layers of each stack are half as wide as the other ten. Defaults are
    t5.1.n4w10.base's.

    Where `layer_overrides` is not given, the first four layers of each stack get half of `num_heads` and half of
    `d_ff`.
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
    """Name of a family's model class, as "T5V11Model" for the suffix "Model"."""
    return config_class.__name__.removesuffix("Config") + suffix


CONFIG_CLASSES: tuple[type[T5ExperimentalConfig], ...] = (
    T5V11Config,
    T5LMAdaptedConfig,
    T5TalkingHeadsConfig,
    T5FirstLayersNarrowConfig,
)

__all__ = [config_class.__name__ for config_class in CONFIG_CLASSES] + ["LayerSpec", "T5ExperimentalConfig"]
