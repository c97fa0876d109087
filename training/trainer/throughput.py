# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Training speed, for logs and the progress bar."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import ProgressCallback, TrainerControl, TrainerState, TrainingArguments

from t5_experimental.loss_t5_experimental import IGNORE_INDEX


def count_tokens(inputs: dict[str, Any]) -> torch.Tensor:
    """Tokens of a batch that are not padding, inputs and targets together, as a scalar on its device."""
    labels, mask, segments = (inputs.get(name) for name in ("labels", "attention_mask", "segment_ids"))
    if mask is None:
        mask = segments if segments is not None else torch.ones_like(inputs["input_ids"])
    count = (mask != 0).sum()
    return count if labels is None else count + (labels != IGNORE_INDEX).sum()


class TokenMeter:
    """Counts tokens and the seconds of training on them, without synchronizing until they are read."""

    def __init__(self, device: torch.device):
        self._tokens = torch.tensor(0, device=device)
        self._started = time.perf_counter()
        self._paused = 0.0

    def add(self, inputs: dict[str, Any]) -> None:
        """Counts a batch."""
        self._tokens = self._tokens + count_tokens(inputs).to(self._tokens.device)

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Excludes what happens inside, such as evaluation and saving, from training time."""
        start = time.perf_counter()
        yield
        self._paused += time.perf_counter() - start

    def read(self) -> tuple[torch.Tensor, float]:
        """Tokens, a scalar, and seconds since the last call; resets both."""
        tokens, seconds = self._tokens, time.perf_counter() - self._started - self._paused
        self.__init__(tokens.device)  # type: ignore[misc]
        return tokens, seconds


def _bar(loader: Any, leave: bool) -> Any:
    """A progress bar for a pass over a loader, by examples: inputs to generate from, or pairs whose loss is needed."""
    rows = loader.dataset
    name = "Computing losses" if "labels" in rows[0] else "Generating"
    return tqdm(total=len(rows), desc=name, unit=" examples", leave=leave, dynamic_ncols=True)


class TokenProgressCallback(ProgressCallback):
    """The progress bar, showing the last loss and speed; each evaluation pass has its own, which counts examples."""

    _evaluated: Any = None

    def on_prediction_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        eval_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        if eval_dataloader is not self._evaluated:
            self._evaluated = eval_dataloader
            self.on_predict(args, state, control)  # closes the bar of the previous pass
            if state.is_world_process_zero:
                self.prediction_bar = _bar(eval_dataloader, leave=self.training_bar is None)
        if self.prediction_bar is not None:
            left = self.prediction_bar.total - self.prediction_bar.n
            self.prediction_bar.update(min(left, args.eval_batch_size * args.world_size))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().on_log(args, state, control, logs=logs, **kwargs)
        if self.training_bar is not None and logs is not None and "loss" in logs:
            shown = {"loss": f"{logs['loss']:.4g}"}
            if "tokens_per_second" in logs:
                shown["tokens/s"] = f"{logs['tokens_per_second']:,.0f}"
            self.training_bar.set_postfix(shown)
