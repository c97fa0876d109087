# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Checkpoint folders: which are complete, which one a run resumes from, and how one is put in place.

A checkpoint is written to a temporary folder. Its last file lists the others with their sizes; then everything is
flushed to disk, and one rename puts the folder in place: after a crash, `checkpoint-N` is either complete or absent.
The sizes reveal files that were lost or truncated later, for example by an interrupted copy. They do not reveal changed
bytes: reading some gigabytes for that at every start is not worth it.
"""

import json
import os
import re
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from t5_experimental import own_folders

from ..errors import TrainingError
from ..interruption import held_back
from ..permissions import share_as_usual


ASIDE = "unfinished"
"""Folder inside the output folder where everything is written first; its contents are temporary."""

RECORD = "complete.json"
STATE = "trainer_state.json"

EVALUATION = "evaluation.json"
"""Record of an evaluation without training in its output folder, see
[`~t5_experimental.training.trainer.same_evaluation`]."""

_NAME = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True)
class Record:
    """What a checkpoint records about itself.

    Attributes:
        files: size in bytes of each, by its path in the folder.
        processes: how many wrote it.
        examples: per step, of all processes together.
        engine: name of the engine that sharded parameters or optimizer, such as `"DeepSpeed ZeRO-2"`; empty if none
            did.
        model_only: without the optimizer, as with `--save_only_model`.
    """

    files: dict[str, int]
    processes: int
    examples: int
    engine: str
    model_only: bool


def steps_of(checkpoint: Path) -> int:
    """The number in the folder's name."""
    return int(checkpoint.name.rpartition("-")[2])


def find_checkpoints(folder: Path) -> list[Path]:
    """Folders in there that are named like checkpoints, sorted by step."""
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if _NAME.fullmatch(path.name) and path.is_dir()), key=steps_of)


def is_finished(folder: Path) -> bool:
    """Whether an output folder has the last files that a run writes."""
    return all((folder / name).exists() for name in ("report.html", "README.md"))


def finished_step(folder: Path) -> float:
    """The last step of the finished run in an output folder: later checkpoints are of a run that goes on from there.
    Infinite if the run is of a version that did not record it."""
    try:
        return float(json.loads((folder / STATE).read_text(encoding="utf-8"))["global_step"])
    except (OSError, ValueError, TypeError, KeyError):
        return float("inf")


def goes_beyond(checkpoint: Path, max_steps: int, epochs: float) -> bool:
    """Whether a run is longer than the one that wrote a checkpoint.

    Args:
        checkpoint: of a finished run; a damaged one is nothing to go on from.
        max_steps: of the run; not positive if epochs decide.
        epochs: of the run.
    """
    try:
        state = _read_state(checkpoint)
        if max_steps > 0:
            return max_steps > state["max_steps"]
        # Planned ones are rounded up, and more than those that --max_steps allowed.
        is_done = state["global_step"] >= state["max_steps"]
        return epochs > state["num_train_epochs"] or (is_done and epochs > state["epoch"])
    except (OSError, ValueError, TypeError, KeyError):
        return False


def is_ours(checkpoint: Path) -> bool:
    """Whether this is a checkpoint folder that this program wrote and may replace or remove; links never are."""
    record = checkpoint / RECORD
    return checkpoint.is_dir() and not checkpoint.is_symlink() and record.is_file() and not record.is_symlink()


def check_aside(folder: Path) -> None:
    """Refuses a folder in which the name of the temporary folder is taken.

    Raises:
        TrainingError: it is.
    """
    aside = folder / ASIDE
    why = own_folders.why_not_unfinished(aside)
    if why is not None:
        raise TrainingError(
            f"{aside} is in the way of temporary files of checkpoints and models, and this program did not make it "
            f"({why}): remove or rename it."
        )


def file_sizes(folder: Path) -> dict[str, int]:
    """Sizes in bytes of all files in a folder, by relative path."""
    return {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != RECORD
    }


def read_record(checkpoint: Path) -> Record | None:
    """A checkpoint's record; None if another version or transformers' own trainer wrote it.

    Raises:
        ValueError, TypeError: the file is damaged.
    """
    path = checkpoint / RECORD
    return Record(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint; None if it is complete."""
    for name, read in ((STATE, _read_state), (RECORD, read_record)):
        try:
            read(checkpoint)
        except FileNotFoundError:
            return f"it has no {name}"
        except (OSError, ValueError, TypeError):
            return f"its {name} cannot be read"
    record = read_record(checkpoint)
    if record is None:
        return None
    sizes = file_sizes(checkpoint)
    for name, size in record.files.items():
        if name not in sizes:
            return f"it has no {name}"
        if sizes[name] != size:
            return f"its {name} has {sizes[name]:,} bytes instead of {size:,}"
    return None


def _read_state(checkpoint: Path) -> Any:
    return json.loads((checkpoint / STATE).read_text(encoding="utf-8"))


# Where a run starts.


def choose_checkpoint(wanted: str | None, folder: Path) -> tuple[str | None, str]:
    """Chooses the checkpoint to resume from.

    Args:
        wanted: `"auto"` is the newest complete checkpoint of the folder, if there is one; `"true"` requires one;
            `"false"` or None starts from scratch; anything else is the path of a checkpoint.
        folder: the output folder.

    Returns:
        The checkpoint to resume from, or None; and a note about the choice for the user, which may be empty.

    Raises:
        TrainingError: the checkpoint does not exist, is not complete, or cannot be resumed; or a run that starts from
            scratch would meet checkpoints of another one.
    """
    choice = (wanted or "false").lower()
    if choice == "false":
        _check_no_checkpoints(folder)
        return None, ""
    if choice not in ("auto", "true"):
        if (problem := damage(Path(str(wanted)))) is not None:
            raise TrainingError(
                f"--resume_from_checkpoint {wanted} is not a complete checkpoint ({problem}): give the path of one "
                "that the trainer has finished."
            )
        _check_suffices(Path(str(wanted)))
        _check_places(folder, after=Path(str(wanted)))
        return wanted, f"resumes from {wanted}"
    newest, passed_over = _newest_complete(folder)
    if newest is None and choice == "true":
        seen = f" ({passed_over})" if passed_over else ""
        raise TrainingError(
            f"--resume_from_checkpoint {wanted} needs a checkpoint in --output_dir {folder}, which has no complete "
            f"one{seen}: leave the option out to start over, or give the path of a checkpoint."
        )
    _check_places(folder, after=newest)
    if newest is None:
        return None, passed_over and f"starts over, since {passed_over}"
    _check_suffices(newest)
    return str(newest), f"resumes from {newest}" + (passed_over and f", since {passed_over}")


def where_it_resumes(folder: Path, resumed_from: str | None, resumes: bool) -> str:
    """What the same command would do after its run was ended, as a sentence.

    Args:
        folder: the output folder.
        resumed_from: the checkpoint that the run resumed from.
        resumes: whether the command resumes from the newest checkpoint in the folder.
    """
    newest, _ = _newest_complete(folder)
    if newest is None and resumed_from is None:
        if any((folder / name).exists() for name in ("config.json", "adapter_config.json")):
            return f"Training was finished, and {folder} has its result; only the evaluation is missing."
        if (folder / EVALUATION).exists():
            return f"The same command goes on after the predictions that are in {folder}."
        return "No checkpoint had been written: the same command starts over."
    if resumes or newest is None:
        return f"The same command resumes from {newest or resumed_from}."
    return f"The same command without --resume_from_checkpoint resumes from {newest}."


def find_best(checkpoint: Path) -> tuple[str, Path | None]:
    """The best checkpoint up to one that a run resumes from, by the evaluations of the run that wrote both.

    A recorded path is that of the past: the folder may have been moved or copied since, or be addressed differently. So
    the one beside this checkpoint counts first.

    Returns:
        Its name, empty if no evaluation was compared; and where it is, or None if it is gone or damaged.
    """
    state = _read_state(checkpoint)
    step, recorded = state.get("best_global_step"), state.get("best_model_checkpoint")
    name = f"checkpoint-{step}" if step else Path(recorded or "").name
    if not name:
        return "", None
    if step == state["global_step"]:
        return name, checkpoint  # by any name
    places = [checkpoint.parent / name, *([Path(recorded)] if recorded and Path(recorded).name == name else ())]
    return name, next((place for place in places if place.is_dir() and damage(place) is None), None)


def _newest_complete(folder: Path) -> tuple[Path | None, str]:
    """The newest complete checkpoint, and what is wrong with each newer one."""
    problems: list[str] = []
    for checkpoint in reversed(find_checkpoints(folder)):
        problem = damage(checkpoint)
        if problem is None:
            return checkpoint, " and ".join(problems)
        problems.append(f"{checkpoint.name} is not a complete checkpoint ({problem})")
    return None, " and ".join(problems)


def _check_suffices(checkpoint: Path) -> None:
    record = read_record(checkpoint)
    if record is not None and record.model_only:
        raise TrainingError(
            f"{checkpoint} was written with --save_only_model, so a run cannot resume from it: give another "
            "--output_dir, and the checkpoint as --model_name_or_path to train its weights further."
        )


def _check_places(folder: Path, after: Path | None) -> None:
    """Refuses files with the name of a future checkpoint that this program did not write: they would be replaced."""
    begin = steps_of(after) if after is not None and _NAME.fullmatch(after.name) else 0
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if _NAME.fullmatch(path.name) and steps_of(path) > begin and not is_ours(path):
            raise TrainingError(_in_the_way(path))


def _in_the_way(place: Path) -> str:
    return (
        f"{place} is in the way of a run that reaches that step, and is not a checkpoint of this program (a folder "
        f"with a file {RECORD}): remove or rename it."
    )


def _check_no_checkpoints(folder: Path) -> None:
    if found := find_checkpoints(folder):
        raise TrainingError(
            f"--output_dir {folder} holds {found[-1].name} of an earlier run: give another folder or remove it to "
            "start over, or leave --resume_from_checkpoint out to resume."
        )


def check_same_run(checkpoint: Path, engine: str, processes: int, examples: int | None) -> None:
    """Refuses a checkpoint that the engine, or this number of processes, cannot resume from exactly.

    Args:
        checkpoint: to resume from.
        engine: of this run, as in [`Record`].
        processes: of this run.
        examples: per step of this run, of all processes together; None if the data do not depend on it.
    """
    record = read_record(checkpoint)
    if record is None:
        return
    if record.engine != engine:
        raise TrainingError(
            f"{checkpoint} was written {_with_engine(record.engine)}, and this run is {_with_engine(engine)}: resume "
            "with the same --config_file, or give the checkpoint as --model_name_or_path, which starts a new run."
        )
    if record.processes != processes and engine.startswith("DeepSpeed"):
        raise TrainingError(
            f"{checkpoint} was written by {record.processes} processes, and {engine} cannot reshard it for "
            f"{processes}: resume with as many processes as wrote it."
        )
    if examples is not None and record.examples != examples:
        raise TrainingError(
            f"{checkpoint} was written with {record.examples} examples per step, but now there are {examples}: choose "
            "--per_device_train_batch_size and --gradient_accumulation_steps so that their product with the number of "
            "processes is the same, or restart the data with --ignore_data_skip."
        )


def _with_engine(engine: str) -> str:
    return f"with {engine}" if engine else "without DeepSpeed or FSDP"


# How a checkpoint is put in place.


def complete(folder: Path, record: Record) -> None:
    """Records all files that have been written, and flushes them to disk."""
    share_as_usual(folder)
    (folder / RECORD).write_text(json.dumps(asdict(record), indent=2) + "\n", encoding="utf-8")
    own_folders.flush(folder)


def put_in_place(written: Path, place: Path) -> None:
    """Renames a folder, replacing a checkpoint of ours, as after a run went back to an earlier one.

    Raises:
        TrainingError: something else has that name.
    """
    if own_folders.exists(place):
        if not is_ours(place):
            raise TrainingError(_in_the_way(place))
        replaced = written.with_name(f"replaced-{place.name}")
        own_folders.rename(place, replaced)
        own_folders.rename(written, place)
        shutil.rmtree(replaced, ignore_errors=True)
    else:
        own_folders.rename(written, place)
    own_folders.flush_one(place.parent)


def remove_oldest(folder: Path, keep: int | None, newest: Path, best: str | None) -> None:
    """Removes checkpoints beyond the number to keep, but never the newest, the best, or those that others wrote.

    transformers sorts by modification time, or else by steps, and may take a damaged checkpoint, which the run skipped,
    for the newest.

    Args:
        folder: the output folder.
        keep: how many; None or 0 for all.
        newest: the last one that was written.
        best: path of the best one, if known.
    """
    if not keep or keep < 0:
        return
    kept = {newest.resolve(), *({Path(best).resolve()} if best else ())}
    found = [path for path in find_checkpoints(folder) if is_ours(path)]
    # Those with more steps are what the run skipped when it went back.
    removable = sorted(
        (path for path in found if path.resolve() not in kept),
        key=lambda path: (steps_of(path) <= steps_of(newest), steps_of(path)),
    )
    gone = removable[: max(len(found) - max(keep, len(kept)), 0)]
    if not gone:
        return
    own_folders.begin(folder / ASIDE)
    for path in gone:
        # Renamed first: older versions may take a partly removed checkpoint for a complete one.
        own_folders.rename(path, folder / ASIDE / path.name)
    remove_aside(folder)


def remove_aside(folder: Path) -> None:
    """Removes the temporary folder, as far as possible.

    Raises:
        TrainingError: this program did not make it.
    """
    check_aside(folder)
    if own_folders.exists(folder / ASIDE):
        with suppress(OSError):
            own_folders.remove(folder / ASIDE)


def write_aside(folder: Path, name: str, text: str) -> None:
    """Writes a file of an output folder, atomically."""
    with held_back():
        own_folders.begin(folder / ASIDE)
        (folder / ASIDE / name).write_text(text, encoding="utf-8")
        os.replace(folder / ASIDE / name, folder / name)
        remove_aside(folder)


def why_not_written(error: BaseException) -> str | None:
    """Why a save failed, if the disk is the reason: no room, no access, a file too large. None for any other error.

    torch and safetensors write their files themselves and raise errors of their own.
    """
    if isinstance(error, OSError):
        return error.strerror or str(error)
    text = str(error)
    for sign in ("I/O error:", "PytorchStreamWriter", "inline_container"):
        if sign in text:
            return text.partition("I/O error:")[2].strip() or "torch could not write its file"
    return None
