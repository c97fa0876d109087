# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""How good generated texts are."""

from collections.abc import Callable
from typing import cast

import numpy as np
from transformers import EvalPrediction, PreTrainedTokenizerBase


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
