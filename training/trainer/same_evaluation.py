# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""What predictions that are already in a folder must share with the evaluation that goes on after them.

The batch size and the number of processes may change: they do not decide which texts are right.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from ..data.arguments import DataArguments
from ..data.examples import Split
from ..data.predictions import predictions_file, repair
from ..errors import TrainingError, in_a_line
from .checkpoint_folders import EVALUATION, write_aside
from .finetuning import FinetuningTrainer


_DATA = "data of "


def prepare_folder(
    trainer: FinetuningTrainer, splits: Mapping[str, Split], data: DataArguments, folders: Mapping[str, str]
) -> int:
    """Prepares the output folder for the predictions of an evaluation; all processes call this.

    Args:
        trainer: of the evaluation.
        splits: by prefix of the metrics.
        data: options of the splits.
        folders: of the weights, by what they are in messages.

    Returns:
        The number of predictions that are there already.

    Raises:
        TrainingError: predictions in the folder are of another evaluation, or not of this program.
    """
    folder = Path(str(trainer.args.output_dir))
    now = _record(trainer, splits, data, folders)
    before = _read(folder / EVALUATION)
    if before is None:
        for split in splits:
            if predictions_file(folder, split).exists():
                raise TrainingError(
                    f"{predictions_file(folder, split)} is in the way, and no record says that an evaluation wrote it: "
                    "remove it, or give another --output_dir."
                )
    else:
        # Only splits may be new, or be left out this time.
        changed = [
            name
            for name in {**before, **now}
            if before.get(name) != now.get(name) and not (name.startswith(_DATA) and (name in before) != (name in now))
        ]
        if changed:
            raise TrainingError(
                f"--output_dir {folder} holds predictions that were made with another {', '.join(changed)}: use the "
                "same, or give another folder."
            )
    trainer.accelerator.wait_for_everyone()
    if trainer.is_world_process_zero():
        folder.mkdir(parents=True, exist_ok=True)
        write_aside(folder, EVALUATION, json.dumps({**(before or {}), **now}, indent=2) + "\n")
        for split in splits:
            repair(predictions_file(folder, split))
    trainer.accelerator.wait_for_everyone()
    paths = [predictions_file(folder, split) for split in splits]
    return sum(path.read_bytes().count(b"\n") for path in paths if path.exists())


def _read(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise TrainingError(f"{path} is damaged ({in_a_line(error)}): give another --output_dir.") from error
    if not isinstance(record, dict):
        raise TrainingError(f"{path} is no record of an evaluation: give another --output_dir.")
    return record


def _record(
    trainer: FinetuningTrainer, splits: Mapping[str, Split], data: DataArguments, folders: Mapping[str, str]
) -> dict[str, Any]:
    """What must be the same, by its name in messages."""
    args = trainer.args
    options = {name: getattr(data, name) for name in ("task", "source_prefix", "max_source_length")}
    options |= {name: getattr(args, name) for name in ("metric", "positive_label", "bf16_full_eval", "fp16_full_eval")}
    generation = trainer.plain_model().generation_config.to_diff_dict()
    record = {
        **{name: _files(Path(folder)) for name, folder in folders.items()},
        **{f"--{name}": value for name, value in options.items()},
        "precision": trainer.accelerator.mixed_precision,
        "--decoding_weights": getattr(trainer.plain_model(), "decoding_weights", None),
        "generation settings": {name: generation[name] for name in sorted(generation)},
        "--seed": args.seed if generation.get("do_sample") else None,
        **{f"{_DATA}{split}": _digest(features, data) for split, features in splits.items()},
    }
    return cast(dict[str, Any], json.loads(json.dumps(record, default=str)))


def _files(folder: Path) -> dict[str, list[int]]:
    """Size and time of the files that a model is read from."""
    found = {}
    for path in sorted(folder.iterdir()):
        if path.suffix in (".safetensors", ".json", ".model") and not path.name.endswith("results.json"):
            status = path.stat()
            found[path.name] = [status.st_size, status.st_mtime_ns]
    return found


def _digest(split: Split, data: DataArguments) -> str:
    """Identifies the examples of a split, with the options that it has of its own, as a part of a mixture."""
    content: Any = split.references()
    if split.options is not None and split.options is not data:
        content = [content, split.options.task, split.options.source_prefix]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
