# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Files in an output folder that no run wrote, and that one would replace."""

import re
from pathlib import Path

import t5_experimental

from .checkpoint_folders import ASIDE, EVALUATION, STATE, find_checkpoints
from .history import HISTORY


# What every run writes into its output folder, and what one that trains writes besides checkpoints. `config.json` is
# checked by itself. Tokenizers are not: scripts for transformers often put one there before they train.
_BY_ALL = r"(train|all|(eval|test)(_.+)?)_results\.json|predictions_.+\.jsonl"
_BY_TRAINING = r"README\.md|report\.html|generation_config\.json|(adapter_)?model(-\d{5}-of-\d{5})?\.safetensors"
_INDEX = "model.safetensors.index.json"


def find_foreign_file(folder: Path, trains: bool) -> str | None:
    """Name of a file that a run in this output folder would replace, though no run has written it.

    Training leaves a log, a checkpoint or its temporary folder before it puts other files in place, and an evaluation
    its record.

    Args:
        folder: the output folder.
        trains: whether the run trains, or only evaluates.
    """
    if not folder.is_dir() or _has_trained(folder):
        return None
    code = {path.name for path in Path(t5_experimental.__file__).parent.glob("*_t5_experimental.py")}
    has_evaluated = (folder / EVALUATION).exists()
    for name in sorted(path.name for path in folder.iterdir()):
        is_of_training = re.fullmatch(_BY_TRAINING, name) or name in {*code, _INDEX, STATE}
        is_of_all = re.fullmatch(_BY_ALL, name)
        if (trains and is_of_training) or (is_of_all and not has_evaluated):
            return name
    return None


def _has_trained(folder: Path) -> bool:
    """Whether a run that trains has been there; an imported prompt has a temporary folder with a name of its own."""
    signs = (folder / HISTORY, folder / ASIDE, *folder.glob(f"{ASIDE}-*"))
    return bool(find_checkpoints(folder)) or any(sign.exists() for sign in signs)
