# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""The trainer of pre-training and LM adaptation."""

from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from ..data.stream import StreamLoader, save_state
from .trainer import T5Trainer


class PretrainingTrainer(T5Trainer):
    """Trains on the batches of a stream.

    Args:
        loader: of the stream. Each process already has its own part, and a batch counts as trained once it is handed
            out, so nothing may prefetch.
        kwargs: as for transformers' `Seq2SeqTrainer`.
    """

    def __init__(self, loader: StreamLoader, **kwargs: Any) -> None:
        super().__init__(train_dataset=loader.stream, **kwargs)
        self._loader = loader

    def get_train_dataloader(self) -> DataLoader:
        return self._loader

    def save_own_state(self, folder: Path) -> None:
        save_state(self._loader, folder)
