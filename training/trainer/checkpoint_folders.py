# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Folders of checkpoints: what makes one whole, which one a run resumes from, and how one takes its place.

A checkpoint is written aside. Its last file lists the others with their sizes; then everything is forced to the disk,
and a single rename puts the folder where it is looked for: whatever a run dies of, `checkpoint-N` is whole, or it is
not there. A file that was lost or cut short afterwards, as by an interrupted copy, shows in the sizes. Changed bytes do
not: reading some gigabytes for that at every start is not worth it.
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
from ..permissions import share_as_usual


ASIDE = "unfinished"
"""Folder inside the output folder where everything is written first; what is there is of no use to anybody."""

RECORD = "complete.json"
STATE = "trainer_state.json"

_NAME = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True)
class Record:
    """What a checkpoint says of itself.

    Attributes:
        files: size in bytes of each, by its path in the folder.
        processes: how many wrote it.
        examples: of all processes together in a step.
        engine: what spread parameters and optimizer over the processes, as `"DeepSpeed ZeRO-2"`; empty where each has
            them all.
        model_only: without the optimizer, as `--save_only_model` wants it.
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
    """Folders in there that are named as checkpoints are, the fewest steps first."""
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if _NAME.fullmatch(path.name) and path.is_dir()), key=steps_of)


def is_ours(checkpoint: Path) -> bool:
    """Whether it is a folder that this program wrote as a checkpoint, and may replace or remove; no link is one."""
    record = checkpoint / RECORD
    return checkpoint.is_dir() and not checkpoint.is_symlink() and record.is_file() and not record.is_symlink()


def check_aside(folder: Path) -> None:
    """Refuses a folder where something of others has the name of this program's unfinished work.

    Raises:
        TrainingError: it has.
    """
    aside = folder / ASIDE
    why = own_folders.why_not_unfinished(aside)
    if why is not None:
        raise TrainingError(
            f"{aside} is in the way, where checkpoints and models are written at first, and this program did not make "
            f"it ({why}): remove or rename it."
        )


def file_sizes(folder: Path) -> dict[str, int]:
    """Bytes of all files of a folder, by path in it."""
    return {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != RECORD
    }


def read_record(checkpoint: Path) -> Record | None:
    """What a checkpoint says of itself; nothing if another version or transformers' own trainer wrote it.

    Raises:
        ValueError, TypeError: the file is damaged.
    """
    path = checkpoint / RECORD
    return Record(**json.loads(path.read_text())) if path.is_file() else None


def damage(checkpoint: Path) -> str | None:
    """What a checkpoint lacks, or nothing."""
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
    return json.loads((checkpoint / STATE).read_text())


# Where a run begins.


def choose_checkpoint(wanted: str | None, folder: Path) -> tuple[str | None, str]:
    """Where a run begins.

    Args:
        wanted: `"auto"` is the newest checkpoint of the folder that is whole, if there is one, `"true"` insists on it,
            `"false"` or nothing starts over; else it is the path of a checkpoint.
        folder: that the run writes into.

    Returns:
        The checkpoint to resume from, or nothing; and what the user should know about the choice, which may be nothing.

    Raises:
        TrainingError: there is no such checkpoint, it is not whole, or it does not suffice to go on; or a run that is
            to start over would meet checkpoints of another one.
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
    newest, passed_over = _newest_whole(folder)
    if newest is None and choice == "true":
        seen = f" ({passed_over})" if passed_over else ""
        raise TrainingError(
            f"--resume_from_checkpoint {wanted} needs a checkpoint in --output_dir {folder}, which has none that is "
            f"whole{seen}: leave the option out to start over, or give the path of a checkpoint."
        )
    _check_places(folder, after=newest)
    if newest is None:
        return None, passed_over and f"starts over, since {passed_over}"
    _check_suffices(newest)
    return str(newest), f"resumes from {newest}" + (passed_over and f", since {passed_over}")


def where_it_goes_on(folder: Path, begun_from: str | None, goes_on: bool) -> str:
    """What the command of a run that has been ended would do now, as a sentence.

    Args:
        folder: that the run writes into.
        begun_from: the checkpoint that it went on from.
        goes_on: whether the command looks for the newest checkpoint in the folder.
    """
    newest, _ = _newest_whole(folder)
    if newest is None and begun_from is None:
        if any((folder / name).exists() for name in ("config.json", "adapter_config.json")):
            return f"The training was finished, and {folder} holds what it was for; only the evaluation is missing."
        return "No checkpoint had been written: the same command starts over."
    if goes_on or newest is None:
        return f"The same command resumes from {newest or begun_from}."
    return f"The same command without --resume_from_checkpoint resumes from {newest}."


def _newest_whole(folder: Path) -> tuple[Path | None, str]:
    """The newest checkpoint that is whole, and what is wrong with each that is newer."""
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
            "--output_dir, and the checkpoint as --model_name_or_path if its weights shall be trained further."
        )


def _check_places(folder: Path, after: Path | None) -> None:
    """Refuses what has the name of a checkpoint to come and is none of this program's, which would be replaced."""
    begin = steps_of(after) if after is not None and _NAME.fullmatch(after.name) else 0
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if _NAME.fullmatch(path.name) and steps_of(path) > begin and not is_ours(path):
            raise TrainingError(_in_the_way(path))


def _in_the_way(place: Path) -> str:
    return (
        f"{place} is in the way of a run that comes to that step, and is no checkpoint of this program (a folder "
        f"with a file {RECORD}): remove or rename it."
    )


def _check_no_checkpoints(folder: Path) -> None:
    if found := find_checkpoints(folder):
        raise TrainingError(
            f"--output_dir {folder} holds {found[-1].name} of an earlier run: give another folder or remove it to "
            "start over, or leave --resume_from_checkpoint out to go on."
        )


def check_same_run(checkpoint: Path, engine: str, processes: int, examples: int | None) -> None:
    """Refuses a checkpoint that other processes, or others in number, cannot resume from exactly.

    Args:
        checkpoint: to resume from.
        engine: as in [`Record`], now.
        processes: how many, now.
        examples: of all processes together in a step, now; nothing if the data do not depend on it.
    """
    record = read_record(checkpoint)
    if record is None:
        return
    if record.engine != engine:
        raise TrainingError(
            f"{checkpoint} was written {_with_engine(record.engine)}, and this run is {_with_engine(engine)}: resume "
            "with the same --config_file, or give the checkpoint as --model_name_or_path, which begins a new run."
        )
    if record.processes != processes and engine.startswith("DeepSpeed"):
        raise TrainingError(
            f"{checkpoint} was written by {record.processes} processes, and {engine} cannot deal its parts out to "
            f"{processes}: resume with as many as it was written by."
        )
    if examples is not None and record.examples != examples:
        raise TrainingError(
            f"{checkpoint} was written with {record.examples} examples in a step, and now there are {examples}: choose "
            "--per_device_train_batch_size and --gradient_accumulation_steps so that the number of processes times "
            "both is the same, or let the data start over with --ignore_data_skip."
        )


def _with_engine(engine: str) -> str:
    return f"with {engine}" if engine else "without DeepSpeed or FSDP"


# How a checkpoint takes its place.


def complete(folder: Path, record: Record) -> None:
    """Lists what has been written as all that there is, and has the disk hold it."""
    share_as_usual(folder)
    (folder / RECORD).write_text(json.dumps(asdict(record), indent=2) + "\n")
    force_to_disk(folder)


def force_to_disk(folder: Path) -> None:
    """Returns when all that is in a folder would outlast a power cut."""
    for path in (*folder.rglob("*"), folder):
        force(path)


def force(path: Path) -> None:
    """Returns when the bytes of a file, or the names in a folder, would outlast a power cut."""
    if os.name == "nt":  # where folders cannot be opened
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def put_in_place(written: Path, place: Path) -> None:
    """Renames a folder; a checkpoint that is in its place, as from before a run went back, goes.

    Raises:
        TrainingError: something else is in its place.
    """
    if own_folders.exists(place):
        if not is_ours(place):
            raise TrainingError(_in_the_way(place))
        replaced = written.with_name(f"replaced-{place.name}")
        os.replace(place, replaced)
        os.replace(written, place)
        shutil.rmtree(replaced, ignore_errors=True)
    else:
        os.replace(written, place)
    force(place.parent)


def remove_oldest(folder: Path, keep: int | None, newest: Path, best: str | None) -> None:
    """Removes checkpoints beyond the number to keep, but never the newest and the best one, nor what others wrote.

    transformers goes by the clock, or by the steps where that does not tell, and may take a damaged checkpoint that the
    run has gone back behind for the newest.

    Args:
        folder: of the checkpoints.
        keep: how many; nothing or 0 for all.
        newest: the last one that was written.
        best: path of the best one, if it is known.
    """
    if not keep or keep < 0:
        return
    kept = {newest.resolve(), *({Path(best).resolve()} if best else ())}
    found = [path for path in find_checkpoints(folder) if is_ours(path)]
    # Those of more steps are what the run has gone back behind.
    removable = sorted(
        (path for path in found if path.resolve() not in kept),
        key=lambda path: (steps_of(path) <= steps_of(newest), steps_of(path)),
    )
    gone = removable[: max(len(found) - max(keep, len(kept)), 0)]
    if not gone:
        return
    own_folders.begin(folder / ASIDE)
    for path in gone:
        # Renamed first, since half of a checkpoint may look whole to older versions.
        os.replace(path, folder / ASIDE / path.name)
    remove_aside(folder)


def remove_aside(folder: Path) -> None:
    """Removes this program's unfinished work in a folder, as far as that is possible.

    Raises:
        TrainingError: something of others has its name.
    """
    check_aside(folder)
    if own_folders.exists(folder / ASIDE):
        with suppress(OSError):
            own_folders.remove(folder / ASIDE)


def why_not_written(error: BaseException) -> str | None:
    """Why a save failed, if it is for the disk: no room, no access, a file that is too large.

    torch and safetensors write by themselves and complain in words of their own.
    """
    if isinstance(error, OSError):
        return error.strerror or str(error)
    text = str(error)
    for sign in ("I/O error:", "PytorchStreamWriter", "inline_container"):
        if sign in text:
            return text.partition("I/O error:")[2].strip() or "torch could not write its file"
    return None
