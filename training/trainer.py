# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""What fine-tuning adds to transformers' `Seq2SeqTrainer`: exact counts, a stop at non-finite losses, the save."""

import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from transformers import (
    EvalPrediction,
    PreTrainedTokenizerBase,
    Seq2SeqTrainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import EvalLoopOutput

from t5_experimental.training.errors import TrainingError


class FinetuningTrainer(Seq2SeqTrainer):
    """`Seq2SeqTrainer` that evaluates every example once, and whose final model appears all at once."""

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        # Several processes fill up the last batch with examples from the front. Seq2SeqTrainer would count them again.
        self.gather_function = self.accelerator.gather_for_metrics
        return super().evaluation_loop(*args, **kwargs)

    def save_finished_model(self) -> None:
        """Writes model and tokenizer into the output folder; all processes call this.

        The files are written aside and moved when all are there, `config.json` last: without it, nothing loads the
        folder. The trainer's own `training_args.bin` is a pickle that loading does not need, and is left out.
        """
        folder = Path(str(self.args.output_dir))
        aside = folder / "unfinished"
        if self.is_world_process_zero():
            shutil.rmtree(aside, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self.save_model(str(aside))
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero():
            (aside / "training_args.bin").unlink(missing_ok=True)
            for path in sorted(aside.iterdir(), key=lambda path: path.name == "config.json"):
                os.replace(path, folder / path.name)
            aside.rmdir()
        self.accelerator.wait_for_everyone()

    def leave_process_group(self) -> None:
        """Ends the communication between the processes; the last thing that a run does.

        The data-parallel wrapper of the model goes first. If it were the group's last owner, it would wait for gloo's
        threads while it holds the interpreter lock, and these may be waiting for that lock to release the tensors of
        their last collective: the process hangs then (seen with torch 2.13 on the CPU, one run in four). Left to the
        end of the interpreter, one run in twenty aborts.
        """
        self.model_wrapped = cast(torch.nn.Module, self.model)
        self.accelerator.free_memory()
        self.accelerator.end_training()


class StopAtNonFiniteLoss(TrainerCallback):
    """Ends the run at the first logged loss that is infinite or not a number, before that step's checkpoint."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        for name, value in (logs or {}).items():
            # "loss", "train_loss" (of the whole run), "eval_loss", "test_loss"
            if name.endswith("loss") and not math.isfinite(value):
                raise TrainingError(
                    f"The {name} is {value} at or before step {state.global_step}: nothing more is saved; lower "
                    "--learning_rate, and use --bf16 or full precision instead of --fp16."
                )


def exact_match(tokenizer: PreTrainedTokenizerBase) -> Callable[[EvalPrediction], dict[str, float]]:
    """A metric for the trainer: the share of examples whose generated text is the target, space at both ends aside."""

    def decode(ids: np.ndarray) -> list[str]:
        # Rows of unequal length come filled up with -100.
        texts = tokenizer.batch_decode(np.where(ids < 0, tokenizer.pad_token_id, ids), skip_special_tokens=True)
        return [text.strip() for text in texts]

    def compute(prediction: EvalPrediction) -> dict[str, float]:
        predicted = decode(cast(np.ndarray, prediction.predictions))
        expected = decode(cast(np.ndarray, prediction.label_ids))
        return {"exact_match": sum(map(str.__eq__, predicted, expected)) / len(expected)}

    return compute
