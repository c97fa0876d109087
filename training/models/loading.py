# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Models and tokenizers of converted folders, checked before training."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from t5_experimental.configuration_t5_experimental import T5ExperimentalConfig, T5V11Config
from t5_experimental.model_folders import check_tokenizer, is_stock
from t5_experimental.presets import preset_config

from ..errors import TrainingError, in_a_line
from .arguments import EvaluatedModelArguments, ModelArguments, folder_errors


def load_tokenizer(folder: str, for_pairs: bool = True) -> PreTrainedTokenizerBase:
    """Tokenizer of a model's folder.

    Args:
        folder: of the model.
        for_pairs: it has to end every text, by which a model learns to stop.
    """
    with folder_errors():
        check_tokenizer(folder)
    with refusals(f"The tokenizer of {folder} does not load"):
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        end = tokenizer("")["input_ids"][-1:]
    if for_pairs and end != [tokenizer.eos_token_id]:
        raise TrainingError(
            f"The tokenizer of {folder} does not end a text with its end-of-sequence token {tokenizer.eos_token!r}: "
            "convert the checkpoint again, or restore the post_processor in tokenizer.json."
        )
    return tokenizer


@contextmanager
def refusals(what: str) -> Iterator[None]:
    """Turns the errors of libraries that read a tokenizer's files into one line; each has exceptions of its own."""
    try:
        yield
    except BaseException as error:
        # A panic in Rust raises `PanicException`, which is not an `Exception` and cannot be imported.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise TrainingError(f"{what}: {in_a_line(error)}") from error


def vocabulary_digest(tokenizer: PreTrainedTokenizerBase | None) -> str | None:
    """Twelve digits that identify a vocabulary: pieces, scores and special tokens."""
    if tokenizer is None:
        return None
    backend = getattr(tokenizer, "backend_tokenizer", None)
    model = {} if backend is None else json.loads(backend.to_str())["model"]
    pieces = [model.get("vocab"), model.get("merges"), tokenizer.get_vocab()]
    return hashlib.sha256(json.dumps(pieces, sort_keys=True).encode()).hexdigest()[:12]


def config_to_estimate(options: ModelArguments) -> T5ExperimentalConfig:
    """The configuration, with the dropout of training, of the model that `--estimate` is about."""
    if options.preset is not None:
        return preset_config(options.preset, **options.dropout_fields())
    folder, _ = EvaluatedModelArguments(options.model_name_or_path).folders()
    return load_config(folder, **options.dropout_fields())


def load_config(folder: str, **fields: Any) -> T5ExperimentalConfig:
    """Configuration of a model's folder, with some fields replaced. That of transformers' T5, mT5 or umT5 becomes
    t5.1.1's, which loads the same weights and keeps a classifier of its own."""
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, **fields)
        with folder_errors():
            stock = is_stock(config, folder, "fine-tune it with transformers' own examples")
        return T5V11Config.from_pretrained(folder, local_files_only=True, **fields) if stock else config
    except TrainingError:
        raise
    except Exception as error:  # transformers raises many types for bad values
        # The configuration's own error may be wrapped in one that only says where it happened.
        reason = in_a_line(error.__cause__ if isinstance(error, StrictDataclassError) and error.__cause__ else error)
        raise TrainingError(f"The config.json of {folder} does not describe a model: {reason}") from error


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, config: T5ExperimentalConfig, whose: str, advice: str) -> None:
    """Refuses a tokenizer that does not fit a model.

    Args:
        tokenizer: the vocabulary.
        config: of the model.
        whose: name of the tokenizer, for the message.
        advice: what to do about it, for the message.
    """
    if len(tokenizer) > config.vocab_size:
        raise TrainingError(
            f"{whose} has {len(tokenizer)} ids, the model only {config.vocab_size} embedding rows: {advice}."
        )
    for name in ("pad_token_id", "eos_token_id"):
        if (of_tokenizer := getattr(tokenizer, name)) != (of_model := getattr(config, name)):
            raise TrainingError(f"{whose} has {name} {of_tokenizer}, the model {of_model}: {advice}.")


def load_model(
    folder: str,
    tokenizer: PreTrainedTokenizerBase,
    tokenizer_option: str | None = None,
    /,
    device_map: str | None = None,
    **fields: Any,
) -> PreTrainedModel:
    """Model of a folder, in float32, checked against the tokenizer.

    Args:
        folder: of the model.
        tokenizer: the folder's own, or the one that an option names.
        tokenizer_option: that option with its value, for messages.
        device_map: "meta" checks the files, but reads no weights.
        fields: of the configuration that differ.
    """
    config = load_config(folder, **fields)
    if tokenizer_option is None:
        advice = "the vocabulary is another model's, convert with the right one"
        check_vocabulary(tokenizer, config, f"The tokenizer of {folder}", advice)
    else:
        check_vocabulary(
            tokenizer, config, tokenizer_option, "give the model's own vocabulary, or leave the option out"
        )
    # Weights are updated in float32, regardless of the files: small updates vanish in bfloat16's 8 significant bits.
    try:
        model, report = AutoModelForSeq2SeqLM.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            device_map=device_map,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # its own error does not name the parameters
        )
    except Exception as error:  # the libraries raise many types for bad headers and indexes
        raise TrainingError(f"The weights of {folder} do not load: {in_a_line(error)}") from error
    if mismatched := sorted(report["mismatched_keys"]):
        name, found, expected = mismatched[0]
        raise TrainingError(
            f"The weights of {folder} do not fit its config.json: {name} has the shape {tuple(found)} and should have "
            f"{tuple(expected)}{f', and {len(mismatched) - 1} more differ' if len(mismatched) > 1 else ''}; copy both "
            "files from the same model, or convert it again."
        )
    if missing := sorted(report["missing_keys"]):
        raise TrainingError(
            f"{folder} lacks {len(missing)} weights, such as {missing[0]}: give a complete encoder-decoder model."
        )
    if unexpected := sorted(report["unexpected_keys"]):
        raise TrainingError(
            f"{folder} has {len(unexpected)} weights that the model of its config.json does not have, such as "
            f"{unexpected[0]}: copy both from the same model, or convert it again."
        )
    return model
