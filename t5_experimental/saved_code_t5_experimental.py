# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""What a saved folder has besides weights, so that `trust_remote_code=True` loads it without this package: a copy of
the modules whose names end in `_t5_experimental.py`, and the `auto_map` of `config.json`, which names their classes."""

import shutil
from collections.abc import Sequence
from pathlib import Path


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


def auto_map(class_prefix: str, architectures: Sequence[str] | None) -> dict[str, str]:
    """Which class each Auto class builds; of an encoder alone, the encoder.

    Args:
        class_prefix: with which the names of the family's classes begin.
        architectures: names of model classes, as in `config.json`.
    """
    models = dict(AUTO_CLASSES)
    if architectures and all(name.endswith("EncoderModel") for name in architectures):
        models = dict.fromkeys(("AutoModel", "AutoModelForTextEncoding"), "EncoderModel")
    code_map = {auto: f"modeling_t5_experimental.{class_prefix}{suffix}" for auto, suffix in models.items()}
    return {"AutoConfig": f"configuration_t5_experimental.{class_prefix}Config", **code_map}


def copy_code(folder: Path) -> None:
    """Copies the modules into an existing folder, unless it is their own."""
    code = Path(__file__).parent
    if folder.resolve() == code.resolve():
        return
    if __name__.startswith("t5_experimental."):  # not from a converted folder's copy, which is incomplete
        _remove_other_versions(folder)
    for source in sorted(code.glob(_CODE)):
        shutil.copyfile(source, folder / source.name)


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
