# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""A trainer that writes complete checkpoints and models or none, and resumes as if it had never stopped.

transformers' own trainer loses some state when it resumes: the losses since the last log, so that the next log averages
fewer steps; the losses of the entire run, whose mean is `train_loss`; and, for the checkpoint of the last step, that no
step is left.
"""

import json
import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any, cast

import torch
from transformers import (
    EarlyStoppingCallback,
    Seq2SeqTrainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from t5_experimental import own_folders
from t5_experimental.own_folders import flush, flush_one

from ..engines.fsdp2 import saving_full_state
from ..errors import ProcessError, TrainingError
from ..interruption import check, held_back
from ..permissions import share_as_usual
from .arguments import T5TrainingArguments
from .checkpoint_folders import (
    ASIDE,
    STATE,
    Record,
    check_same_run,
    complete,
    file_sizes,
    find_best,
    find_checkpoints,
    finished_step,
    is_finished,
    put_in_place,
    remove_aside,
    remove_oldest,
    why_not_written,
)
from .history import HistoryCallback, finite, restore_logs, write_state
from .settle import FINISHED, Run, settle


_LOSSES = "losses.json"


class SavingTrainer(Seq2SeqTrainer):
    """`Seq2SeqTrainer` that writes to a temporary folder and renames, see
    [`~t5_experimental.training.trainer.checkpoint_folders`].

    Args:
        model: to train.
        args: a settled run, or options, which are settled here.
        kwargs: as for transformers' `Seq2SeqTrainer`.
    """

    def __init__(self, model: Any = None, *, args: T5TrainingArguments | Run[Any], **kwargs: Any) -> None:
        self.run = args if isinstance(args, Run) else settle((args,))
        super().__init__(model, self.run.training, **kwargs)
        self._aside: Path | None = None  # while a checkpoint is written
        self._best: Path | None = None  # of the checkpoints before the one to resume from
        self._losses_begin = 0  # after this step
        self.add_callback(_RestoreLosses(self))
        self.add_callback(_UseOwnIntervals())
        if (patience := self.run.training.early_stopping_patience) is not None:
            begin = None if self.run.checkpoint is None else Path(self.run.checkpoint)
            self.add_callback(_StopEarly(patience, self.run.training.early_stopping_threshold, begin))
        self.add_callback(_EndWhenTold())
        self.add_callback(HistoryCallback())

    # Resuming.

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        checkpoint = Path(resume_from_checkpoint) if isinstance(resume_from_checkpoint, str) else None
        self._check_checkpoint(checkpoint)
        self.losses_to_restore = None if checkpoint is None else checkpoint / _LOSSES
        self._clear(Path(str(self.args.output_dir)))
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _check_checkpoint(self, checkpoint: Path | None) -> None:
        step = -1 if checkpoint is None else json.loads((checkpoint / STATE).read_text(encoding="utf-8"))["global_step"]
        steps = self.accelerator.gather(torch.tensor([step], device=self.args.device))
        if len(found := set(steps.tolist())) > 1:
            seen = " and ".join("no checkpoint" if step < 0 else f"one of step {step}" for step in sorted(found))
            raise TrainingError(
                f"The processes do not agree on where to resume, they see {seen}: give an --output_dir that all "
                "machines share."
            )
        if checkpoint is not None:
            examples = None if self.args.ignore_data_skip else self._examples()
            check_same_run(checkpoint, self._sharded_by(), self.args.world_size, examples)
            name, self._best = find_best(checkpoint)
            if self.args.load_best_model_at_end and name and self._best is None:
                raise TrainingError(
                    f"The best checkpoint so far, {name}, is not beside {checkpoint}, and --load_best_model_at_end "
                    "needs it: put it back, or give --load_best_model_at_end False."
                )

    def _init_training_state(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        # Of a path where it is no longer; and of intervals and batches, which are this run's own: see `check_same_run`.
        with _without_warnings("The best checkpoint ", "Warning: The following arguments do not match"):
            begin = super()._init_training_state(*args, **kwargs)
        self.state.best_model_checkpoint = None if self._best is None else str(self._best)
        restore_logs(self.state)
        return begin

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        try:
            return super()._determine_best_metric(metrics, trial)
        except KeyError as error:  # one's own metric may have other figures for other texts
            raise TrainingError(
                f"--metric_for_best_model {self.args.metric_for_best_model} is not among the figures of this "
                f"evaluation, which are {', '.join(sorted(metrics))}: return the same names in every call."
            ) from error

    def _examples(self) -> int:
        """Per step, of all processes together."""
        args = self.args
        return args.train_batch_size * args.gradient_accumulation_steps * args.world_size

    def _sharded_by(self) -> str:
        """The engine that shards optimizer or parameters, as in [`Record`]; empty if none does."""
        return self.run.engine.name if self.run.engine.shards_state else ""

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # transformers would train for one more step before it checks.
        self.control.should_training_stop |= self.state.global_step >= self.state.max_steps
        if not self.control.should_training_stop:
            super()._run_epoch(*args, **kwargs)

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        # With a limit of 1, transformers removes all checkpoints but the best: also those that this program did not
        # write, and the last, from which the same command goes on.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            return super()._finalize_training(*args, **kwargs)
        finally:
            self.args.save_total_limit = limit

    # Losses.

    def losses(self) -> dict[str, Any]:
        """Sums of losses: those not logged yet, one per process, and the logged ones; all processes call this."""
        sums = self.accelerator.gather(self._tr_loss.detach().reshape(1)).tolist()
        return {
            "since_log": sums,
            "logged_until": self._globalstep_last_logged,
            "logged": self._total_loss_scalar,
            "begin": self._losses_begin,
        }

    def restore_losses(self) -> None:
        """Restores the sums of a checkpoint; without them, sums start at this run."""
        path = self.losses_to_restore
        self._losses_begin = self.state.global_step
        if path is None or not path.is_file():
            return
        losses = json.loads(path.read_text(encoding="utf-8"))
        since_log = losses["since_log"]
        # With another number of processes, the mean is used; only the mean is ever logged.
        mine = since_log[self.args.process_index] if len(since_log) == self.args.world_size else fmean(since_log)
        self._tr_loss += mine
        self._globalstep_last_logged, self._total_loss_scalar = losses["logged_until"], losses["logged"]
        self._losses_begin = losses["begin"]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "train_loss" in logs:
            logs["train_loss"] = self._total_loss_scalar / max(self.state.global_step - self._losses_begin, 1)
        super().log(logs, start_time)

    # Checkpoints.

    def save_own_state(self, folder: Path) -> None:
        """Writes what else a checkpoint needs; all processes call this."""

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        output = Path(self._get_output_dir(trial))
        place = output / f"checkpoint-{self.state.global_step}"
        written = output / ASIDE / place.name
        losses = self.losses()
        with self.writing(place.name, output):
            self._aside = written.parent
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._aside = None
            self.save_own_state(written)
            if self.state.best_model_checkpoint == str(written):
                self.state.best_model_checkpoint = str(place)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                write_state(self.state, written / STATE)
                (written / _LOSSES).write_text(json.dumps(losses) + "\n", encoding="utf-8")
                complete(written, self._record(written))
                with held_back():
                    put_in_place(written, place)
        if self.args.should_save:
            with held_back():
                remove_oldest(output, self.args.save_total_limit, place, self.state.best_model_checkpoint)
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            super()._push_from_checkpoint(str(place))

    def _record(self, folder: Path) -> Record:
        args = self.args
        return Record(file_sizes(folder), args.world_size, self._examples(), self._sharded_by(), args.save_only_model)

    def _get_output_dir(self, trial: Any) -> str:
        return super()._get_output_dir(trial) if self._aside is None else str(self._aside)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Does nothing yet: the checkpoint is pushed once it is in place."""

    # Writing.

    @contextmanager
    def writing(self, what: str, folder: Path) -> Iterator[None]:
        """Creates the temporary folder `ASIDE` in a folder, for writing `what`, and removes it afterwards; all
        processes do this.

        Raises:
            ProcessError: the write failed, for example because the disk is full.
            TrainingError: the name of the temporary folder is taken.
        """
        try:
            self._clear(folder, create=True)
            yield
        except BaseException as error:
            if self.args.should_save:
                remove_aside(folder)
            why = why_not_written(error)
            if why is None:
                raise
            output = Path(str(self.args.output_dir))
            last = find_checkpoints(output)
            then = f"resumes from {last[-1].name}" if last else "starts over"
            raise ProcessError(
                f"{what} cannot be written ({why}): make room in {output} and run the same command again, which {then}."
            ) from error
        if self.args.should_save:
            remove_aside(folder)

    def _clear(self, folder: Path, create: bool = False) -> None:
        """Removes what a run that died left in a folder; with `create`, creates the temporary folder."""
        if self.args.should_save:
            remove_aside(folder)
            if create:
                folder.mkdir(parents=True, exist_ok=True)
                own_folders.begin(folder / ASIDE)
        self.accelerator.wait_for_everyone()

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        super().save_model(output_dir, _internal_call)
        model = cast(Any, self.accelerator.unwrap_model(cast(torch.nn.Module, self.model)))
        if self.args.should_save and hasattr(model, "peft_config"):  # peft saves the adapter alone
            model.get_base_model().generation_config.save_pretrained(output_dir or str(self.args.output_dir))

    def save_finished_model(self) -> None:
        """Writes model and tokenizer into the output folder; all processes call this.

        The files are written to a temporary folder and moved once all are on disk, `config.json` (for adapters
        `adapter_config.json`) last: without it, nothing loads the folder. The trainer's own `training_args.bin`, a
        pickle that loading does not need, is left out.
        """
        folder = Path(str(self.args.output_dir))
        aside = folder / ASIDE
        with self.writing("The model", folder):
            with saving_full_state(self.accelerator):
                self.save_model(str(aside))
            self.accelerator.wait_for_everyone()
            if self.is_world_process_zero():
                (aside / "training_args.bin").unlink(missing_ok=True)
                share_as_usual(aside)
                flush(aside)
                with held_back():
                    for path in sorted(aside.iterdir(), key=lambda path: path.name in FINISHED):
                        if path.name != own_folders.MARK:
                            os.replace(path, folder / path.name)
                flush_one(folder)
        self.accelerator.wait_for_everyone()

    def save_metrics(self, split: str, metrics: dict[str, Any], combined: bool = True) -> None:
        super().save_metrics(split, finite(metrics), combined)

    def save_state(self) -> None:
        """Writes the trainer's state, with its log and best step, into the output folder; all processes call this."""
        folder = Path(str(self.args.output_dir))
        with self.writing(STATE, folder):
            if self.is_world_process_zero():
                write_state(self.state, folder / ASIDE / STATE)
                with held_back():
                    os.replace(folder / ASIDE / STATE, folder / STATE)
        self.accelerator.wait_for_everyone()


@contextmanager
def _without_warnings(*begins: str) -> Iterator[None]:
    """Drops what transformers' trainer logs that begins like one of these."""

    def passes(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(begins)

    loggers = [logging.getLogger(f"transformers.{name}") for name in ("trainer", "trainer_utils")]
    for logger in loggers:
        logger.addFilter(passes)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(passes)


class _RestoreLosses(TrainerCallback):
    """Restores losses right after transformers has reset its sums."""

    def __init__(self, trainer: SavingTrainer):
        self._trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **unused: Any
    ) -> None:
        self._trainer.restore_losses()


class _UseOwnIntervals(TrainerCallback):
    """Logs, evaluates and saves as this run is told: transformers keeps the intervals of the checkpoint. A run that
    would end before its first log has ten, for a curve."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **unused: Any
    ) -> None:
        state.compute_steps(args, state.max_steps)
        if state.logging_steps > state.max_steps:
            state.logging_steps = max(1, state.max_steps // 10)


class _StopEarly(EarlyStoppingCallback):
    """Counts on from what the checkpoint has counted; evaluations without the metric, of other data, do not count.

    A run that had stopped, and died before its report, stops at once. One that was finished goes on.
    """

    def __init__(
        self, early_stopping_patience: int, early_stopping_threshold: float | None, checkpoint: Path | None = None
    ):
        super().__init__(early_stopping_patience, early_stopping_threshold)
        self._checkpoint = checkpoint
        self._counted_until = -1
        self._trains = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **unused: Any
    ) -> None:
        super().on_train_begin(args, state, control, **unused)
        self._trains, self._counted_until = True, state.global_step
        stored = cast(dict[str, Any], state.stateful_callbacks or {}).get(type(self).__name__)
        if stored:
            self.early_stopping_patience_counter = stored["attributes"]["early_stopping_patience_counter"]
        if self.early_stopping_patience_counter >= self.early_stopping_patience and self._is_of_unfinished_run(
            args, state
        ):
            control.should_training_stop = True

    def _is_of_unfinished_run(self, args: TrainingArguments, state: TrainerState) -> bool:
        """Whether the checkpoint is of the run that this one is to end, and not of one to go on from."""
        folder, checkpoint = Path(str(args.output_dir)), self._checkpoint
        if checkpoint is None or checkpoint.resolve().parent != folder.resolve():
            return False
        return not is_finished(folder) or state.global_step > finished_step(folder)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: Any, **unused: Any
    ) -> None:
        wanted = f"eval_{str(args.metric_for_best_model).removeprefix('eval_')}"
        # After a checkpoint, --eval_on_start repeats an evaluation.
        if self._trains and wanted in metrics and state.global_step > self._counted_until:
            super().on_evaluate(args, state, control, metrics, **unused)

    def check_metric_value(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metric_value: float
    ) -> None:
        if math.isfinite(metric_value):
            super().check_metric_value(args, state, control, metric_value)
        else:  # even if there is nothing to compare with yet
            self.early_stopping_patience_counter += 1

    def on_train_end(self, *unused: Any, **more: Any) -> None:
        self._trains = False


class _EndWhenTold(TrainerCallback):
    """Ends a run whose signal was lost: Python drops exceptions that are raised during cleanup."""

    def on_step_begin(self, *unused: Any, **more: Any) -> None:
        check()

    def on_prediction_step(self, *unused: Any, **more: Any) -> None:
        check()
