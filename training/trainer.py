# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""What fine-tuning adds to transformers' `Seq2SeqTrainer`: exact counts, a stop at non-finite numbers, the save, and
losses without the memory for all logits."""

import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch.distributed.tensor import DTensor
from transformers import (
    EvalPrediction,
    PreTrainedTokenizerBase,
    Seq2SeqTrainer,
)
from transformers.trainer_utils import EvalLoopOutput

from t5_experimental.tasks_t5_experimental import T5ExperimentalForConditionalGeneration
from t5_experimental.training.errors import TrainingError


class FinetuningTrainer(Seq2SeqTrainer):
    """`Seq2SeqTrainer` that counts every example once, saves no broken weights, and the final model all at once.

    A loss that is infinite or not a number ends the run at the next log or save, whichever comes first. Every process
    only sees the losses of its own examples, so they agree before one of them stops: the others would wait for it
    forever.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Stays on the device: reading it in every step would make the processor wait for each of them.
        self._losses_are_finite = torch.tensor(True, device=self.args.device)
        adapted = getattr(self.model, "get_base_model", None)
        base = self.model if adapted is None else adapted()
        # transformers' own T5, say, does not know the argument; and a smoother of the trainer's own wants logits.
        self._skips_logits = self.label_smoother is None and isinstance(base, T5ExperimentalForConditionalGeneration)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        if not self.args.logging_nan_inf_filter:
            self._losses_are_finite = self._losses_are_finite & torch.isfinite(loss)
        return loss

    def compute_loss(
        self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        # A step of training looks at no logits.
        if model.training and self._skips_logits:
            inputs = {**inputs, "skip_logits": True}
        return super().compute_loss(model, inputs, *args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        super().log(logs, start_time)
        # "loss", "train_loss" (of the whole run), "eval_loss", "test_loss"
        bad = [
            f"The {name} is {value}"
            for name, value in logs.items()
            if name.endswith("loss") and not math.isfinite(value)
        ]
        finite = self._losses_are_finite & torch.tensor(not bad, device=self.args.device)
        self._stop_unless(finite, bad[0] if bad else "A loss was infinite or not a number")

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        # Checkpoints come through here, too. The step before may have broken the weights after a loss that was fine.
        self._stop_unless(self._losses_are_finite, "A loss was infinite or not a number")
        self._stop_unless(self._weights_are_finite(), "A weight is infinite or not a number")
        super().save_model(output_dir, _internal_call)

    def _weights_are_finite(self) -> torch.Tensor:
        finite = torch.tensor(True, device=self.args.device)
        for weight in cast(torch.nn.Module, self.model).parameters():
            # Where engines cut the weights up, every process looks at its own part: DeepSpeed's ZeRO-3 keeps that
            # beside an emptied parameter, FSDP inside a distributed tensor.
            part = getattr(weight, "ds_tensor", weight)
            local = part.to_local() if isinstance(part, DTensor) else part
            finite = finite & torch.isfinite(local.detach()).all().to(finite.device)
        return finite

    def _stop_unless(self, finite: torch.Tensor, problem: str) -> None:
        """Ends the run on every process if `finite`, a scalar, is false on any; all processes call this."""
        if not self.accelerator.gather(finite.int().reshape(1)).all().item():
            raise TrainingError(
                f"{problem} at or before step {self.state.global_step}: nothing more is saved; lower --learning_rate, "
                "and use --bf16 or full precision instead of --fp16."
            )

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
