# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Loading a model for the commands that run it."""

from pathlib import Path
from typing import Any

from .errors import ConversionError
from .readable import in_a_line


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
