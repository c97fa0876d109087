# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""What kind of folder is written: our own model or transformers' stock T5, whole or the encoder alone."""

import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t5_experimental.architecture_t5_experimental import BIAS_SHARED
from t5_experimental.saved_code_t5_experimental import auto_map, copy_code

from ..errors import ConversionError


if TYPE_CHECKING:
    from t5_experimental.architecture_t5_experimental import T5ExperimentalArchitecture
    from t5_experimental.configuration_t5_experimental import T5ExperimentalConfig
    from t5_experimental.vocabulary import Vocabulary


NATIVE = "native"
STOCK = "stock-t5"
FORMATS = (NATIVE, STOCK)


@dataclass(frozen=True)
class OutputFormat:
    """Kind of the output folder.

    Attributes:
        name: "native" for our classes, "stock-t5" for those that transformers has.
        encoder_only: the folder is of an encoder without decoder and classifier.
    """

    name: str = NATIVE
    encoder_only: bool = False

    def __post_init__(self) -> None:
        if self.name not in FORMATS:
            raise ConversionError(f"the format {self.name!r} is unknown: use {' or '.join(FORMATS)}.")

    @property
    def is_stock(self) -> bool:
        """Whether the folder does without our code."""
        return self.name == STOCK

    @property
    def stacks(self) -> tuple[str, ...]:
        """Stacks that are written."""
        return ("encoder",) if self.encoder_only else ("encoder", "decoder")

    @property
    def class_suffix(self) -> str:
        """End of the model class's name."""
        return "EncoderModel" if self.encoder_only else "ForConditionalGeneration"

    def class_name(self, config: "T5ExperimentalArchitecture") -> str:
        """The model class that the folder is of."""
        return ("T5" if self.is_stock else config.class_prefix) + self.class_suffix

    def config(self, architecture: "T5ExperimentalArchitecture", dtype: str) -> "T5ExperimentalConfig":
        """transformers' configuration of our model.

        Args:
            architecture: of the model that is written.
            dtype: of its weights.
        """
        from t5_experimental import configuration_t5_experimental as configurations

        config_class: type[T5ExperimentalConfig] = getattr(configurations, f"{architecture.class_prefix}Config")
        return config_class(
            **vars(architecture), architectures=[architecture.class_prefix + self.class_suffix], dtype=dtype
        )

    def fields(self, config: "T5ExperimentalArchitecture", dtype: str) -> dict[str, Any]:
        """What config.json says, as far as it is of interest to a reader.

        Args:
            config: the architecture of what is written.
            dtype: of the weights.
        """
        return _stock_fields(config, dtype, self) if self.is_stock else _native_fields(config, dtype, self)

    def notes(self, config: "T5ExperimentalArchitecture") -> tuple[str, ...]:
        """What a user of the folder may wonder about, one sentence each."""
        if not self.is_stock or self.encoder_only or config.tie_word_embeddings:
            return ()
        return (
            "On loading, transformers 5 warns that it will NOT tie lm_head.weight to shared.weight: that is right, the "
            "classifier of this model is a separate matrix.",
            "Do not call tie_weights() or resize_token_embeddings() on it under transformers 5, nor use it with "
            "programs that do, such as lm_eval for seq2seq models: its T5 then replaces the classifier by the "
            "embedding without a word (transformers pull request 42815), and no field of a folder can prevent it. "
            "Convert to the format of this package for that, or use transformers 4.",
            "CTranslate2's converter (4.8.5) takes every T5 that transformers 5 loads for one whose classifier is the "
            "embedding, and scales the decoder's output: greedy decoding is the same, scores and beam search are not. "
            "Under transformers 4 (4.57.3) it converts exactly.",
        )


def check_expressible(output: OutputFormat, config: "T5ExperimentalArchitecture") -> None:
    """Raises if the format has no way to say what the model is.

    Args:
        output: the format asked for.
        config: the architecture of what is written.
    """
    if not output.is_stock:
        return
    specs = {spec for stack in output.stacks for spec in config.layer_specs(stack)}
    if any(spec.attention_type != "multi_head" for spec in specs):
        raise ConversionError(
            "stock T5 cannot express talking-heads attention: leave out --format, and load the folder with this "
            "package or with trust_remote_code=True."
        )
    if config.relative_attention_type != BIAS_SHARED:
        raise ConversionError(
            "stock T5 cannot express a table of position biases in every layer: leave out --format, and load the "
            "folder with this package or with trust_remote_code=True."
        )
    if len(specs) > 1:
        raise ConversionError(
            "stock T5 cannot express layers that differ in width: leave out --format, and load the folder with this "
            "package or with trust_remote_code=True."
        )


def write_config(output: OutputFormat, config: "T5ExperimentalArchitecture", dtype: str, folder: Path) -> None:
    """Writes the settings of generation and, as the last of all, without which nothing loads, config.json; for our own
    classes also the modelling code.

    Args:
        output: the format.
        config: the architecture of what is written.
        dtype: of the weights.
        folder: existing folder.
    """
    if not output.encoder_only:
        tokens = ("decoder_start_token_id", "eos_token_id", "pad_token_id")
        generation = {name: getattr(config, name) for name in tokens}
        _write_json({**generation, **_versions()}, folder / "generation_config.json")
    fields = output.fields(config, dtype)
    if not output.is_stock:
        copy_code(folder)
        fields["auto_map"] = auto_map(config.class_prefix, fields["architectures"])
    _write_json(fields, folder / "config.json")


def write_tokenizer_files(output: OutputFormat, vocabulary: "Vocabulary", folder: Path) -> None:
    """Writes the tokenizer; for stock T5 under the class name that its users have."""
    from .tokenizer import SENTINELS, write_tokenizer

    write_tokenizer(vocabulary, folder)
    if not output.is_stock:
        return
    pad, eos, unk = vocabulary.special
    # `additional_special_tokens` is understood by transformers 4 and 5; what 5 writes itself stops 4 from loading.
    fields = {
        "additional_special_tokens": [f"<extra_id_{n}>" for n in range(SENTINELS)],
        "eos_token": eos,
        "extra_ids": SENTINELS,
        "pad_token": pad,
        "tokenizer_class": "T5Tokenizer",
        "unk_token": unk,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")


def _native_fields(config: "T5ExperimentalArchitecture", dtype: str, output: OutputFormat) -> dict[str, Any]:
    """config.json of our own model as transformers writes it, without its import, which takes most of the time of
    converting a small checkpoint. A test compares the two."""
    own = {"architectures": [output.class_name(config)], "dtype": dtype, "model_type": config.model_type}
    return config.as_saved({**vars(config), **own, **_versions()})


def _versions() -> dict[str, str]:
    return {"transformers_version": version("transformers")}


def _write_json(fields: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _stock_fields(config: "T5ExperimentalArchitecture", dtype: str, output: OutputFormat) -> dict[str, Any]:
    """config.json of a stock T5; written out, because saving through transformers 5 would claim a shared classifier."""
    spec = config.layer_specs("encoder")[0]
    return {
        "architectures": [output.class_name(config)],
        "classifier_dropout": config.classifier_dropout,
        "d_ff": spec.d_ff,
        "d_kv": spec.d_k,
        "d_model": config.d_model,
        "decoder_start_token_id": config.decoder_start_token_id,
        "dropout_rate": config.dropout_rate,
        "dtype": dtype,
        "eos_token_id": config.eos_token_id,
        "feed_forward_proj": config.feed_forward_proj,
        "initializer_factor": config.initializer_factor,
        "is_encoder_decoder": not output.encoder_only,
        "layer_norm_epsilon": config.layer_norm_epsilon,
        "model_type": "t5",
        "num_decoder_layers": config.num_decoder_layers,
        "num_heads": spec.num_heads,
        "num_layers": config.num_layers,
        "pad_token_id": config.pad_token_id,
        "relative_attention_max_distance": config.relative_attention_max_distance,
        "relative_attention_num_buckets": config.relative_attention_num_buckets,
        # Both: transformers 4 reads the one, and transformers 5, which ties always, computes the other from it.
        "scale_decoder_outputs": config.scale_decoder_outputs,
        "tie_word_embeddings": config.tie_word_embeddings,
        "use_cache": not output.encoder_only,
        "vocab_size": config.vocab_size,
    }
