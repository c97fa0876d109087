# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""The one exception that a user of the converter meets, and loading a model, of which transformers raises many."""

from pathlib import Path
from typing import Any

from .readable import in_a_line
from .readable import message as one_line


class ConversionError(Exception):
    """A conversion cannot be done; the message is one sentence that says what is wrong and what to do about it.

    What it quotes from files is made readable here: control characters are escaped, and what is too long is cut.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class UnknownVariables(ConversionError):
    """A checkpoint has variables that no rule is for.

    Attributes:
        listed: one line on each.
    """

    def __init__(self, message: str, listed: list[str]) -> None:
        super().__init__(message)
        self.listed = listed


def load_model(model_class: Any, folder: str | Path, **options: Any) -> Any:
    """The model of a folder, all of whose weights are the folder's: transformers fills others with random numbers.

    Args:
        model_class: of transformers or of ours.
        folder: of the model.
        options: for `from_pretrained`.

    Raises:
        ConversionError: it does not load, or its tensors are not those of the class and of its config.json.
    """
    try:
        model, report = model_class.from_pretrained(
            folder,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # its own error does not name the parameters
            **options,
        )
    except Exception as error:  # the libraries raise many types for bad files
        raise ConversionError(f"{folder} does not load: {in_a_line(error)}") from error
    if mismatched := sorted(report["mismatched_keys"]):
        name, found, expected = mismatched[0]
        raise ConversionError(
            f"{name} of {folder} has the shape {list(found)}, and the model of its config.json {list(expected)}: copy "
            "both files from the same model."
        )
    if missing := sorted(report["missing_keys"]):
        raise ConversionError(
            f"{folder} has no tensor for {missing[0]}, which a {type(model).__name__} of its config.json has: save the "
            "whole model."
        )
    if unexpected := sorted(report["unexpected_keys"]):
        raise ConversionError(
            f"{folder} has a tensor {unexpected[0]!r:.200}, which a {type(model).__name__} of its config.json has not: "
            "copy both files from the same model."
        )
    return model
