# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Configuration of the four families for transformers: architecture_t5_experimental.py has the fields, their defaults
and checks; here they learn to be saved, loaded and made from those of transformers' T5."""

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import transformers


# Before all that earlier releases do not have. Modules of a converted folder come here first, too.
if tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 17):
    raise ImportError(
        f"These models need transformers 5.17 or newer, and this is {transformers.__version__}: run "
        "pip install --upgrade 'transformers>=5.17,<6'."
    )

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .architecture_t5_experimental import (
    FAMILIES,
    HEAD_SIZE,
    LAYER_FIELDS,  # noqa: F401 - here and below: names that this module has always had
    MULTI_HEAD,
    STACKS,  # noqa: F401
    STOCK_DEFAULTS,
    TALKING_HEADS,  # noqa: F401
    LayerSpec,
    T5ExperimentalArchitecture,
    T5FirstLayersNarrowArchitecture,
    T5LMAdaptedArchitecture,
    T5TalkingHeadsArchitecture,
    T5V11Architecture,
)
from .saved_code_t5_experimental import (
    AUTO_CLASSES,  # noqa: F401
    auto_map,
    copy_code,
)


# Called when a configuration is created, until the list is cleared: registration.py adds the import of the model
# classes. The copy of this file in a converted folder leaves it empty, because its `auto_map` names the classes.
BEFORE_FIRST_USE: list[Callable[[], None]] = []


@strict
class T5ExperimentalConfig(T5ExperimentalArchitecture, PreTrainedConfig):
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
            1024}, {}, ...], "decoder": [...]}`. A missing stack has no overrides.
        relative_attention_type: `"bias_shared"`: each stack has one table of relative position biases for each number
            of softmax heads in it, held by the first layer with that number; or `"bias"`: every layer has one, as in
            umT5 (https://arxiv.org/abs/2304.09151). The names are the original's.
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

    Raises:
        huggingface_hub.errors.StrictDataclassError: the fields make no model, as for all configurations of
            transformers; the `ValueError` that says why is its cause.
    """

    keys_to_ignore_at_inference = ["past_key_values"]
    attribute_map = {
        "hidden_size": "d_model",
        "num_attention_heads": "num_heads",
        "num_hidden_layers": "num_layers",
        "head_dim": "d_kv",
    }

    def __new__(cls, *args: Any, **kwargs: Any) -> "T5ExperimentalConfig":
        # Not in `__init__`, which does not run when another process sends a configuration.
        for prepare in tuple(BEFORE_FIRST_USE):
            prepare()
        return super().__new__(cls)

    def __post_init__(self, **kwargs: Any) -> None:
        # transformers' T5 writes these two along with `feed_forward_proj`, and gives them precedence.
        self.take_activation(kwargs.pop("dense_act_fn", None), kwargs.pop("is_gated_act", None))
        self._complete()
        # `AutoModel` iterates over it, and fails if it is None.
        self.architectures = self.architectures or []
        # Not of the architecture, which checks itself there: a configuration is checked after its construction.
        PreTrainedConfig.__post_init__(self, **kwargs)
        self._complete_layers()

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | Path, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """As in transformers; the fields of its T5, mT5 and umT5 come as those of this class, which means the same by
        them, so that there is no warning of another type of model."""
        values, rest = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if values.get("model_type") in STOCK_DEFAULTS:
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

    def to_dict(self) -> dict[str, Any]:
        """All fields, without what is only known of the file that they came from."""
        values = super().to_dict()
        values.pop("_classifier_is_unsaid", None)
        return values

    def to_diff_dict(self) -> dict[str, Any]:
        """What is saved, see [`T5ExperimentalArchitecture.as_saved`]."""
        values = self.as_saved(super().to_diff_dict())
        return {name: value for name, value in values.items() if (name, value) != ("architectures", [])}

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> "T5ExperimentalConfig":
        """Returns this config; for the decoder alone, a copy with the decoder's `num_layers`, for static caches."""
        if not decoder or encoder or self.num_decoder_layers == self.num_layers:
            return self
        config = copy.deepcopy(self)
        config.num_layers = self._num_layers_of("decoder")
        return config

    def save_pretrained(self, save_directory: str | Path, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Saves `config.json`, and next to it the modeling code that `trust_remote_code=True` loads without our
        package. So folders that a trainer saves are as complete as those that the converter writes."""
        if isinstance(self, FAMILIES):
            self.auto_map = auto_map(self.class_prefix, self.architectures)
        folder = Path(save_directory)
        if folder.is_file():
            raise ValueError(f"{folder} is a file: give a folder to save into.")
        folder.mkdir(parents=True, exist_ok=True)
        copy_code(folder)
        super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)


def _understand_other_configurations(cls: type[T5ExperimentalConfig]) -> None:
    """Lets a class accept the fields of transformers' T5Config, and refuse those of other types of models."""
    make = cls.__init__

    @functools.wraps(make)
    def __init__(self: T5ExperimentalConfig, *args: Any, **kwargs: Any) -> None:
        make(self, *args, **_own_fields(type(self), kwargs))

    cls.__init__ = __init__  # type: ignore[method-assign]


def _own_fields(cls: type[T5ExperimentalConfig], values: dict[str, Any]) -> dict[str, Any]:
    """Converts the fields of one of our configurations, or of transformers' T5Config, MT5Config or UMT5Config.

    Raises:
        ValueError: they belong to another type of model.
    """
    model_type = values.get("model_type") or cls.model_type
    values = {name: value for name, value in values.items() if name != "model_type"}
    if model_type in STOCK_DEFAULTS:
        same = {"attention_type": MULTI_HEAD, "layer_overrides": {}}
        classifier = _stock_classifier(model_type, values)
        unsaid = {"_classifier_is_unsaid": True} if _classifier_is_unsaid(model_type, values) else {}
        return {**STOCK_DEFAULTS[model_type], **same, **values, **classifier, **unsaid}
    ours = {cls.model_type, T5ExperimentalConfig.model_type, *(other.model_type for other in CONFIG_CLASSES)}
    if model_type not in ours:
        raise ValueError(
            f"These are the fields of a configuration of type {model_type!r}, which {cls.__name__} does not support: "
            f"give those of transformers' T5 (type 't5', 'mt5' or 'umt5') or of one of {sorted(ours)}."
        )
    if values.get("d_kv", 0) is None and HEAD_SIZE in values:
        values["d_kv"] = values.pop(HEAD_SIZE)
    return values


def _stock_classifier(model_type: str, values: dict[str, Any]) -> dict[str, bool]:
    """Whether the classifier of a model of transformers is tied, and the decoder's output scaled before it.

    Before transformers 5, `tie_word_embeddings` says both, as the original scales the output only if it is tied; mT5
    has neither. transformers 5 writes `tie_word_embeddings: true` of all, and whether the output is scaled in
    `scale_decoder_outputs`, but of T5 alone.

    Raises:
        ValueError: transformers 5 has written the fields of a umT5, which say neither.
    """
    said, scales = values.get("tie_word_embeddings"), values.get("scale_decoder_outputs")
    says_all = str(values.get("transformers_version", "")).startswith("5.") and said is not False and scales is None
    if says_all and model_type == "umt5":
        raise ValueError(
            "These are the fields of a umT5 as transformers 5 writes them, which do not say whether the classifier is "
            "the embedding: set tie_word_embeddings to what it was before, which is false for Google's umT5."
        )
    if said is None or says_all:
        said = model_type != "mt5"
    tied = said is not False and scales is not False
    return {"tie_word_embeddings": tied, "scale_decoder_outputs": tied if scales is None else scales}


def _classifier_is_unsaid(model_type: str, values: dict[str, Any]) -> bool:
    """Whether only the stored weights tell if the classifier is the embedding: transformers 5 writes
    `tie_word_embeddings: true` of every T5, also of one that its own classes did not scale, as if it were untied."""
    if values.get("tie_word_embeddings") is False:
        return False
    if model_type == "mt5" and values.get("scale_decoder_outputs") is None:
        return str(values.get("transformers_version", "")).startswith("5.")
    return values.get("scale_decoder_outputs") is False


_understand_other_configurations(T5ExperimentalConfig)


@strict
class T5V11Config(T5V11Architecture, T5ExperimentalConfig):
    """t5.1.1: gated GELU, multi-head attention, all layers alike. Defaults are those of t5.1.1.base."""


@strict
class T5LMAdaptedConfig(T5LMAdaptedArchitecture, T5ExperimentalConfig):
    """t5.1.1.lm100k: t5.1.1 after 100,000 more steps of language modeling. Defaults are those of t5.1.1.lm100k.base."""


@strict
class T5TalkingHeadsConfig(T5TalkingHeadsArchitecture, T5ExperimentalConfig):
    """t5.1.th: talking-heads attention in all layers. Defaults are those of t5.1.th.base."""


@strict
class T5FirstLayersNarrowConfig(T5FirstLayersNarrowArchitecture, T5ExperimentalConfig):
    """t5.1.n4w10: the first four layers of each stack are half as wide as the other ten. Defaults are those of
    t5.1.n4w10.base.

    Without `layer_overrides`, the first four layers of each stack get half of `num_heads` and half of `d_ff`.
    """


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
