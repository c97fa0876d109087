# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Batches of pairs, by transformers' collator."""

from typing import cast

import torch
from transformers import DataCollatorForSeq2Seq, PreTrainedModel, PreTrainedTokenizerBase

from t5_experimental.configuration_t5_experimental import T5ExperimentalConfig
from t5_experimental.loss_t5_experimental import shift_right


class DecoderInputs:
    """What the collator asks of a model, without its weights.

    Data workers that are not forked (on Python 3.14, macOS and Windows) each get a copy of the collator.

    Args:
        config: of the model.
    """

    def __init__(self, config: T5ExperimentalConfig):
        self._config = config

    def prepare_decoder_input_ids_from_labels(self, labels: torch.Tensor) -> torch.Tensor:
        """Decoder inputs `(batch, target)` that predict `labels` `(batch, target)`."""
        return shift_right(labels, self._config)


def pair_collator(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> DataCollatorForSeq2Seq:
    """Pads inputs and labels to the longest of a batch, and adds decoder inputs; keeps no weights."""
    return DataCollatorForSeq2Seq(tokenizer, model=DecoderInputs(cast(T5ExperimentalConfig, model.config)))
