# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Models with fresh weights and the sizes of a released checkpoint, and the vocabulary to train them with."""

import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from t5_experimental.configuration_t5_experimental import T5ExperimentalConfig
from t5_experimental.original import padded_vocab_size
from t5_experimental.presets import preset_config
from t5_experimental.vocabulary import SENTINELS, VocabularyError, read_vocabulary

from ..errors import TrainingError
from .loading import check_vocabulary, load_tokenizer, refusals


def load_any_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Tokenizer of a folder, or of a sentencepiece file, with T5's 100 sentinels added.

    Raises:
        TrainingError: there is none, or it is not compatible with T5.
    """
    if not Path(name).is_file():
        return load_tokenizer(name, for_pairs=False)
    try:
        vocabulary = read_vocabulary(Path(name))
    except VocabularyError as error:
        raise TrainingError(f"--tokenizer_name: {error}") from error
    with TemporaryDirectory() as folder:
        # `T5Tokenizer` always adds sentinels, so those in the file would get ids twice.
        (Path(folder) / "spiece.model").write_bytes(vocabulary.without_sentinels())
        config = {"tokenizer_class": "T5Tokenizer", "extra_ids": SENTINELS}
        (Path(folder) / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
        with refusals(f"--tokenizer_name: no tokenizer can be built from {name}"):
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if tokenizer.convert_tokens_to_ids([text for text, _ in vocabulary.tokens]) != list(range(len(tokenizer))):
        raise TrainingError(
            f"--tokenizer_name: {name} has other special pieces than T5Tokenizer: train a vocabulary whose pad_piece "
            "is <pad>, eos_piece </s> and unk_piece <unk>."
        )
    return tokenizer


def fresh_config(
    preset: str, overrides: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase | None
) -> T5ExperimentalConfig:
    """Configuration with an embedding row for every token of a vocabulary.

    Args:
        preset: name of the released checkpoint whose sizes it has.
        overrides: fields of the configuration that differ.
        tokenizer: of the vocabulary; the number of rows is rounded up to a multiple of 128 unless `overrides` has it.
            None for the vocabulary of the released checkpoints.

    Raises:
        TrainingError: a field does not exist or does not fit, or the tokenizer's special ids are not T5's.
    """
    fields = {} if tokenizer is None else {"vocab_size": padded_vocab_size(len(tokenizer))}
    known = preset_config(preset).to_dict()
    if unknown := sorted(set(overrides) - set(known)):
        raise TrainingError(f"--config_overrides: the configuration has no field {unknown[0]!r}.")
    try:
        config = preset_config(preset, **{**fields, **overrides})
    except StrictDataclassError as error:  # wraps the configuration's own error
        raise TrainingError(f"--config_overrides: {error.__cause__ or error}") from error
    if tokenizer is not None:
        advice = "train the vocabulary with pad_id 0 and eos_id 1, and leave vocab_size out of --config_overrides"
        check_vocabulary(tokenizer, config, "The tokenizer", advice)
    return config


def fresh_model(preset: str, overrides: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Model in float32, initialized as the original initializes it; arguments and errors as for [`fresh_config`]."""
    return AutoModelForSeq2SeqLM.from_config(fresh_config(preset, overrides, tokenizer), dtype=torch.float32)
