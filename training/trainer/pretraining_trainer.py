# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""The trainer of pre-training and LM adaptation."""

from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from ..data.stream import StreamLoader, save_state
from .trainer import T5Trainer


class PretrainingTrainer(T5Trainer):
    """Trains on the batches of a stream as they come.

    Args:
        loader: of the stream. Every process has its own part already, and only what is handed out counts as trained
            on: nothing may fetch batches ahead.
        kwargs: as of transformers' `Seq2SeqTrainer`.
    """

    def __init__(self, loader: StreamLoader, **kwargs: Any) -> None:
        super().__init__(train_dataset=loader.stream, **kwargs)
        self._loader = loader

    def get_train_dataloader(self) -> DataLoader:
        return self._loader

    def save_own_state(self, folder: Path) -> None:
        save_state(self._loader, folder)
