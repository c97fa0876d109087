# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Names of options on a command line, and what to answer to one that does not exist."""

import difflib
from collections.abc import Iterator, Sequence
from typing import NoReturn

from ..errors import TrainingError


# Options of older versions of transformers, or of its example scripts, that users may try.
_INSTEAD = {
    "evaluation_strategy": "it is --eval_strategy now",
    "group_by_length": "it is --train_sampling_strategy group_by_length now",
    "max_eval_samples": "give a --validation_file with fewer rows",
    "max_predict_samples": "give a --test_file with fewer rows",
    "max_train_samples": "give a --train_file with fewer rows, or --max_steps",
    "overwrite_output_dir": "remove the folder, or give another --output_dir",
    "per_gpu_train_batch_size": "it is --per_device_train_batch_size now",
    "pad_to_max_length": "batches are padded to their longest example",
    "num_beams": "it is --generation_num_beams",
    "text_column": "--input_column and --target_column name the columns",
    "summary_column": "it is --target_column",
    "val_max_target_length": "it is --generation_max_length",
    "warmup_ratio": "--warmup_steps takes a fraction now, such as 0.1",
}


def refuse_unknown(flag: str, names: Sequence[str]) -> NoReturn:
    """Raises for an option that is not among the names."""
    name = flag.removeprefix("--").replace("-", "_")
    hint = _INSTEAD.get(name) or f"the nearest is --{nearest(name, names)}"
    raise TrainingError(f"There is no option {flag}; {hint}, and --help-all lists all.")


def nearest(name: str, names: Sequence[str]) -> str:
    """The most similar of the names."""
    return difflib.get_close_matches(name, names, n=1, cutoff=0.0)[0]


def names_of(flags: Sequence[str], names: Sequence[str]) -> Iterator[str]:
    """Names of the options that flags set; `--use-cpu`, `--use_cpu` and `--no_use_cpu` set the same one."""
    for flag in flags:
        name = flag.partition("=")[0].removeprefix("--").replace("-", "_")
        if flag.startswith("--"):
            yield name if name in names else name.removeprefix("no_")
