# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""From checked options to a run: everything that depends on the disk, the processes and the environment."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Generic, TypeVar, cast

import torch
from transformers import Seq2SeqTrainingArguments
from transformers.integrations import is_tensorboard_available

from ..engines.engine import Engine, engine_of, prepare_engine
from ..engines.lost_processes import join_on_cpu
from ..errors import TrainingError, in_a_line
from .arguments import LAUNCHED, T5TrainingArguments
from .checkpoint_folders import (
    check_aside,
    choose_checkpoint,
    damage,
    find_checkpoints,
    finished_step,
    goes_beyond,
    is_finished,
    steps_of,
)
from .foreign_files import find_foreign_file


# Files that make a folder loadable, and are written last.
FINISHED = {"config.json": "a model", "adapter_config.json": "an adapter"}

Options = TypeVar("Options", bound=tuple[Any, ...])


@dataclass(frozen=True)
class Run(Generic[Options]):
    """A run: its options, and what [`settle`] determined from them.

    Attributes:
        options: one object of each dataclass of options.
        engine: how the run uses several processes.
        checkpoint: the checkpoint to resume from; None to start over.
        beginning: a note for the user about the choice of the checkpoint; may be empty.
        resumes: whether the same command would resume from the newest checkpoint in the output folder.
        estimates_bf16: whether the devices that `--estimate` names compute in bfloat16.
        command: the command line, for the report.
        given: names of the options on it and in its recipe.
    """

    options: Options
    engine: Engine
    checkpoint: str | None = None
    beginning: str = ""
    resumes: bool = True
    estimates_bf16: bool = False
    command: str = ""
    given: frozenset[str] = frozenset()

    @property
    def training(self) -> T5TrainingArguments:
        """The training options among them."""
        return _training_of(self.options)


def _training_of(options: Iterable[Any]) -> T5TrainingArguments:
    return next(option for option in options if isinstance(option, T5TrainingArguments))


def settle(options: Options, command: str = "", given: frozenset[str] = frozenset()) -> Run[Options]:
    """Does everything that options need from outside themselves, in this order:

    1. Files that the options name exist.
    2. Defaults that depend on the machine: bfloat16, tensorboard.
    3. The engine has what it needs, and no option turns it off.
    4. Processes on CPUs join, with `--ddp_timeout`.
    5. Transformers' own `__post_init__`: device, process group, DeepSpeed.
    6. The engine, created here once, allows the optimizer.
    7. The output folder is writable, and has no model yet, or one that this run trains for more steps; and no file of
       another program that the run would replace.
    8. The checkpoint to resume from.
    9. Packages that the options need are installed.

    Args:
        options: one object of each dataclass of options, including the training options; changed in place.
        command: the command line, for the report.
        given: names of the options on it and in its recipe.

    Raises:
        TrainingError: a step fails. Nothing has been written by then.
    """
    training = _training_of(options)
    if hasattr(training, "deepspeed_plugin"):  # transformers sets it last, so these options are settled already
        return Run(options, engine_of(training), command=command, given=given)
    for option in options:
        if hasattr(option, "check_files"):
            option.check_files()
    wants_float32, estimates_bf16 = training.bf16 is False, training.bf16 is not False and not training.fp16
    _choose_defaults(training)
    prepare_engine(training, training.xla_spmd)
    if training.use_cpu:
        join_on_cpu(training.ddp_backend, training.ddp_timeout_delta)
    Seq2SeqTrainingArguments.__post_init__(training)
    if wants_float32 and training.mixed_precision == "bf16":
        training.mixed_precision = "no"  # the script's own option overrides the launcher
    engine = engine_of(training)
    engine.check(training.chosen_optimizer())
    folder = Path(str(training.output_dir))
    resumes = str(training.resume_from_checkpoint).lower() in ("auto", "true")
    checkpoint, beginning = None, ""
    if training.estimate is None:  # else nothing is written
        _check_output(folder, training, resumes, _trains(options))
        checkpoint, beginning = choose_checkpoint(training.resume_from_checkpoint, folder)
    training.check_packages()
    return Run(options, engine, checkpoint, beginning, resumes, estimates_bf16, command, given)


def _choose_defaults(training: T5TrainingArguments) -> None:
    if training.estimate not in (None, LAUNCHED):
        training.bf16 = False  # this machine says nothing about the estimated devices
    if training.bf16 is None:
        # The launcher's setting, which is "no" by default.
        unspecified = os.environ.get("ACCELERATE_MIXED_PRECISION", "no") == "no" and not training.fp16
        training.bf16 = unspecified and bfloat16_is_fast(training.use_cpu)
    if training.report_to is None:
        training.report_to = "tensorboard" if is_tensorboard_available() else "none"


def bfloat16_is_fast(use_cpu: bool) -> bool:
    """Whether bfloat16 should be the default: on CUDA devices with native support.

    Most CPUs emulate it, which is slower than float32 and less exact.
    """
    return not use_cpu and torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def _trains(options: Iterable[Any]) -> bool:
    """Whether the run trains, or only evaluates."""
    training = _training_of(options)
    if not training.may_only_evaluate:
        return True
    return cast(Any, training).trains(any(getattr(option, "has_training_data", False) for option in options))


def _check_output(folder: Path, training: T5TrainingArguments, resumes: bool, trains: bool) -> None:
    """Refuses a folder that cannot be written to, that has a finished model, or files of others that would be replaced.
    It may have checkpoints, a model whose run ended before the report, and one that has checkpoints to go on from for
    more steps or epochs."""
    try:
        if folder.is_file():
            raise TrainingError(f"--output_dir {folder} is a file: give a folder.")
        checkpoints = find_checkpoints(folder)
        goes_on = bool(checkpoints) and (not is_finished(folder) or steps_of(checkpoints[-1]) > finished_step(folder))
        for name, what in FINISHED.items():
            if not (folder / name).exists() or goes_on:
                continue
            if not checkpoints:
                raise TrainingError(
                    f"--output_dir {folder} already holds {what}, and no checkpoint to go on from: give another "
                    "folder; what it holds is trained further with --model_name_or_path."
                )
            whole = [checkpoint for checkpoint in checkpoints if damage(checkpoint) is None]
            if not whole:
                raise TrainingError(
                    f"--output_dir {folder} already holds {what}, and {checkpoints[-1].name} to go on from is damaged "
                    f"({damage(checkpoints[-1])}): give another folder."
                )
            if not resumes or not goes_beyond(whole[-1], training.max_steps, training.num_train_epochs):
                raise TrainingError(
                    f"--output_dir {folder} already holds {what}, and its run is finished: give "
                    f"{training.more_training} to go on from its last checkpoint, or another folder."
                )
        if (foreign := find_foreign_file(folder, trains)) is not None:
            raise TrainingError(
                f"--output_dir {folder} holds {in_a_line(foreign)}, which no run here has written and this one would "
                "replace: give another folder, or move the file."
            )
        check_aside(folder)
        # Tried out, since permissions alone do not tell. The folder is temporary, with a random name, so that several
        # processes can check at the same time.
        with TemporaryDirectory(dir=next(path for path in (folder, *folder.parents) if path.exists())):
            pass
    except OSError as error:
        raise TrainingError(
            f"--output_dir {folder} cannot be written to ({error.strerror}): give a folder that you can write to."
        ) from error
