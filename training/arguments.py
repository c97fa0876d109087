# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Options that the entry points share, as dataclasses that the command line is parsed into."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

import torch
from transformers import Seq2SeqTrainingArguments
from transformers.integrations import (
    get_available_reporting_integrations,
    get_reporting_integration_callbacks,
    is_tensorboard_available,
)
from transformers.trainer_utils import SchedulerType, get_last_checkpoint
from transformers.training_args import OptimizerNames

from t5_experimental.training.errors import TrainingError
from t5_experimental.training.losses import LossDenominator, check_loss_options
from t5_experimental.training.optimizers import PRESETS, has_own_schedule


# What `--estimate` without a value means: the engine and the processes that there are.
LAUNCHED = "launched"

# Files that make a folder what it is, and are written last.
FINISHED = {"config.json": "a model", "adapter_config.json": "an adapter"}


@dataclass
class ModelArguments:
    """What is trained."""

    model_name_or_path: str = field(
        metadata={"help": "Folder of a converted checkpoint, with its tokenizer. Nothing is downloaded."}
    )
    dropout_rate: float = field(
        default=0.1,
        metadata={"help": "Dropout while training. The checkpoints were pre-trained with 0 and fine-tuned with 0.1."},
    )
    broadcast_dropout: bool = field(
        default=False,
        metadata={"help": "Drop the same features and keys at all positions of a row, as the original does."},
    )

    def __post_init__(self) -> None:
        check_model_folder(self.model_name_or_path)
        check_dropout_rate(self.dropout_rate)

    def dropout_fields(self) -> dict[str, float | bool]:
        """What the model's configuration shall say of dropout."""
        return {"dropout_rate": self.dropout_rate, "broadcast_dropout": self.broadcast_dropout}


def check_model_folder(folder: str) -> None:
    """Refuses a `--model_name_or_path` that holds no model."""
    if not (Path(folder) / "config.json").is_file():
        raise TrainingError(
            f"--model_name_or_path {folder} is not a model folder (it has no config.json): give a folder that "
            "`t5-experimental convert` wrote."
        )


def check_dropout_rate(rate: float) -> None:
    """Refuses a `--dropout_rate` that is none."""
    if not 0 <= rate < 1:
        raise TrainingError(f"--dropout_rate is {rate}: it must be at least 0 and less than 1.")


def bfloat16_is_fast(use_cpu: bool) -> bool:
    """Whether bfloat16 is worth being the default: on CUDA devices with circuits for it.

    On the CPU it is not. Most processors emulate it, so that it takes longer than float32 and is less exact.
    """
    return not use_cpu and torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def _checkpoint_to_resume(wanted: str | None, output_dir: Path) -> str | None:
    """Folder of the checkpoint that `--resume_from_checkpoint` means: a path, or "True" for the last one."""
    if wanted is None or wanted.lower() == "false":
        return None
    if wanted.lower() != "true":
        checkpoint = wanted
    else:
        last = get_last_checkpoint(output_dir) if output_dir.is_dir() else None
        if last is None:
            raise TrainingError(
                f"--resume_from_checkpoint {wanted} needs a checkpoint in --output_dir {output_dir}, which has none: "
                "leave the option out to start anew, or give the path of a checkpoint."
            )
        checkpoint = last
    # The trainer writes this file last, so it is also missing where a save was cut short.
    if not (Path(checkpoint) / "trainer_state.json").is_file():
        raise TrainingError(
            f"--resume_from_checkpoint {wanted}: {checkpoint} is not a whole checkpoint (it has no "
            "trainer_state.json); give the path of one that the trainer has finished."
        )
    return checkpoint


def _check_output(folder: Path) -> None:
    """Refuses a folder that cannot be written to or already holds a finished model; checkpoints may be there."""
    try:
        if folder.is_file():
            raise TrainingError(f"--output_dir {folder} is a file: give a folder.")
        for name, what in FINISHED.items():
            if (folder / name).exists():
                raise TrainingError(f"--output_dir {folder} already holds {what}: give another folder, or remove it.")
        # Tried out, since permissions alone do not tell. Nothing stays behind where another check fails, and the name
        # is random, so that processes that check at the same time do not meet.
        with TemporaryDirectory(dir=next(path for path in (folder, *folder.parents) if path.exists())):
            pass
    except OSError as error:
        raise TrainingError(
            f"--output_dir {folder} cannot be written to ({error.strerror}): give a folder where you may write."
        ) from error


def _check_reporters(names: list[str]) -> None:
    available = get_available_reporting_integrations()
    for name, reporter in zip(names, get_reporting_integration_callbacks(names), strict=True):
        if name in available:
            continue
        try:
            reporter()  # that list lacks some that do work; their constructors know
        except (ImportError, RuntimeError) as error:
            raise TrainingError(
                f"--report_to {name} needs a package that is not installed ({error}): install it, or leave it out."
            ) from error


@dataclass
class T5TrainingArguments(Seq2SeqTrainingArguments):
    """Transformers' own options, with the defaults that every training of these models shares, checked."""

    optim: OptimizerNames | str = field(default="adafactor", metadata={"help": "Optimizer; T5's is Adafactor."})
    optimizer_preset: str | None = field(
        default=None,
        metadata={
            "help": f"Instead of --optim and its schedule: {', '.join(PRESETS)}. `finetune` and `pretrain` are the "
            "original's Adafactor."
        },
    )
    optimizer_slots: str | None = field(
        default=None,
        metadata={
            "help": "Folder with the optimizer.safetensors that `t5-experimental convert --with-optimizer` wrote: the "
            "preset goes on from the original's state instead of a fresh one."
        },
    )
    learning_rate: float | None = field(  # type: ignore[assignment]  # the preset knows its own
        default=None, metadata={"help": "Learning rate. Default: the preset's own, and 1e-3 with --optim."}
    )
    logging_steps: float = field(default=50, metadata={"help": "Steps between two logs of the loss."})
    z_loss: float = field(
        default=0.0,
        metadata={"help": "Weight of the squared log-normaliser in the loss of training; the original's is 1e-4."},
    )
    loss_denominator: LossDenominator = field(
        default="tokens",
        metadata={
            "help": "What the summed loss of a step is divided by: the tokens to predict, or, as in the original, all "
            "target positions, padding included. Evaluation always divides by tokens."
        },
    )
    logging_nan_inf_filter: bool = field(
        default=False,
        metadata={
            "help": "Leave non-finite losses out of the log, and do not stop at them. Non-finite weights are not saved."
        },
    )
    bf16: bool | None = field(  # type: ignore[assignment]  # None only until __post_init__
        default=None,
        metadata={
            "help": "Compute in bfloat16 where that is safe, with float32 weights. Default: on CUDA devices that have "
            "it, unless another precision is asked for; not on the CPU, where it is slower than float32. "
            "--bf16 False is float32.",
            # What the parser gives to switches whose default is not None.
            "nargs": "?",
            "const": True,
        },
    )
    resume_from_checkpoint: str | None = field(
        default=None,
        metadata={"help": "Folder of the checkpoint to go on from, or True for the last one in --output_dir."},
    )
    report_to: None | str | list[str] = field(  # noqa: RUF036 - the parser wants transformers' own order
        default=None,
        metadata={"help": "Where logs go besides the report, as wandb. Default: tensorboard, if it is installed."},
    )
    estimate: str | None = field(
        default=None,
        metadata={
            "help": "Trains nothing, and loads no weights: prints how much memory each device would need, as "
            "launched or under ENGINE:PROCESSES, such as deepspeed_zero3:8.",
            "nargs": "?",
            "const": LAUNCHED,
        },
    )
    bf16_there: bool = field(default=False, init=False)
    """Whether the devices that `estimate` names compute in bfloat16: unless another precision is asked for."""
    command: str = field(default="", init=False)
    """The command line that these came from, to be shown in the report."""

    def __post_init__(self) -> None:
        if self.output_dir is None:
            raise TrainingError("--output_dir is missing: give the folder that the model shall be written to.")
        float32_wanted = self.bf16 is False
        if self.estimate not in (None, LAUNCHED):
            self.bf16_there, self.bf16 = not float32_wanted and not self.fp16, False
        if self.bf16 is None:
            # What `accelerate launch` was told; it says "no" when it was told nothing.
            unspecified = os.environ.get("ACCELERATE_MIXED_PRECISION", "no") == "no" and not self.fp16
            self.bf16 = unspecified and bfloat16_is_fast(self.use_cpu)
        self._check_amount()
        check_loss_options(self.z_loss, self.label_smoothing_factor)
        self._check_optimizer()
        if self.report_to is None:
            self.report_to = "tensorboard" if is_tensorboard_available() else "none"
        super().__post_init__()
        if float32_wanted and self.mixed_precision == "bf16":
            self.mixed_precision = "no"  # the launcher's word, but the script's own option counts more
        _check_output(Path(self.output_dir))
        self.resume_from_checkpoint = _checkpoint_to_resume(self.resume_from_checkpoint, Path(self.output_dir))
        _check_reporters(cast(list[str], self.report_to))

    def _check_amount(self) -> None:
        for option in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
            if (value := getattr(self, option)) < 1:
                raise TrainingError(f"--{option} is {value}: it must be at least 1.")
        if self.max_steps < 1 and self.num_train_epochs <= 0:
            raise TrainingError(
                f"--num_train_epochs is {self.num_train_epochs:g}, which trains nothing: it must be more than 0, or "
                "give --max_steps."
            )

    def _check_optimizer(self) -> None:
        self.optimizer_preset = self.optimizer_preset or None
        optim = OptimizerNames(self.optim)
        if self.optimizer_preset is not None and optim != OptimizerNames.ADAFACTOR:
            raise TrainingError(
                f"--optim {optim.value} and --optimizer_preset {self.optimizer_preset} exclude each other: leave one "
                "out, or give --optimizer_preset '' where a preset is the default."
            )
        if self.optimizer_preset is None:
            if self.optimizer_slots is not None:
                raise TrainingError("--optimizer_slots needs an optimizer that has them: give --optimizer_preset, too.")
            if self.learning_rate is None:
                self.learning_rate = 1e-3
        elif self.optimizer_preset not in PRESETS:
            raise TrainingError(
                f"--optimizer_preset {self.optimizer_preset} does not exist: choose one of {', '.join(PRESETS)}."
            )
        elif has_own_schedule(self.optimizer_preset) and 0 < self.warmup_steps < 1:
            raise TrainingError(
                f"--warmup_steps {self.warmup_steps} is a share of the run, which --optimizer_preset does not know: "
                "give a number of steps."
            )
        if self.warmup_steps and SchedulerType(self.lr_scheduler_type) == SchedulerType.CONSTANT:
            # The plain one does not know a warm-up.
            self.lr_scheduler_type = SchedulerType.CONSTANT_WITH_WARMUP
