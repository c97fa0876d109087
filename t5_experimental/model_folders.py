# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Folders that users name: a model with its tokenizer, or an adapter of peft, which names its model."""

import json
import os
from pathlib import Path

from .architecture_t5_experimental import STOCK_DEFAULTS


CONFIG = "config.json"
# What peft writes.
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# Without these files, transformers silently builds a tokenizer with an empty vocabulary.
_TOKENIZERS = ("tokenizer.json", "spiece.model")


class FolderError(ValueError):
    """A folder is not what it is given for; the message is one sentence that says what is wrong and what to do."""


def _has(folder: str | Path, name: str) -> bool:
    # Not by `Path.is_file`, which raises for a name that is too long.
    return os.path.isfile(os.path.join(folder, name))


def holds_adapter(folder: str | Path) -> bool:
    """Whether it is the folder of an adapter, and not of a model."""
    return not _has(folder, CONFIG) and _has(folder, ADAPTER_CONFIG)


def model_and_adapter(folder: str, adapter: str | None, options: tuple[str, str]) -> tuple[str, str | None]:
    """The folders of the model and of the adapter, or None without one; files of the model are not looked for.

    Args:
        folder: of a model, or of an adapter, which names its model.
        adapter: folder of an adapter for the model.
        options: what the command line calls the two, for messages.

    Raises:
        FolderError: the folder of an adapter does not say where its model is, or there are two adapters.
    """
    if not holds_adapter(folder):
        return folder, adapter
    if adapter is not None:
        raise FolderError(f"{folder} holds an adapter, and {options[1]} names another: give the model's folder.")
    return _model_of(Path(folder), options), folder


def _model_of(adapter: Path, options: tuple[str, str]) -> str:
    """The folder of the model that an adapter names."""
    path = adapter / ADAPTER_CONFIG
    try:
        model = json.loads(path.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise FolderError(f"{path} does not name a model ({error}): give {options[0]} and {options[1]}.") from error
    if not isinstance(model, str) or not _has(model, CONFIG):
        raise FolderError(
            f"{adapter} is an adapter for {model!r:.200}, which is no model folder here: give the model's folder as "
            f"{options[0]}, and {options[1]} {adapter}."
        )
    return model


def check_model(folder: str) -> None:
    """Raises a [`FolderError`] if there is no model."""
    if not _has(folder, CONFIG):
        raise FolderError(
            f"{folder} is not a model folder (it has no {CONFIG}): give a folder that `t5-experimental convert` wrote."
        )


def check_adapter(folder: str) -> None:
    """Raises a [`FolderError`] if there is no adapter."""
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if not _has(folder, name):
            raise FolderError(
                f"{folder} is not a folder of an adapter (it has no {name}): give one that a run of this package or "
                "peft has written."
            )


def check_tokenizer(folder: str) -> None:
    """Raises a [`FolderError`] if a model has no tokenizer."""
    if not any(_has(folder, name) for name in _TOKENIZERS):
        raise FolderError(f"{folder} has no tokenizer: convert the checkpoint with --vocab sentencepiece.model.")


def is_stock(config: object, folder: str, instead: str) -> bool:
    """Whether a configuration is one of transformers' T5, mT5 or umT5, and not one of ours.

    Args:
        config: a transformers configuration.
        folder: that it is from, for the message.
        instead: what to do with another model, for the message.

    Raises:
        FolderError: it is another model's.
    """
    from .configuration_t5_experimental import T5ExperimentalConfig  # here: it imports transformers

    model_type = getattr(config, "model_type", None)
    if model_type not in STOCK_DEFAULTS and not isinstance(config, T5ExperimentalConfig):
        raise FolderError(f"{folder} holds a model of type {model_type!r}, which is no T5: {instead}.")
    return model_type in STOCK_DEFAULTS
