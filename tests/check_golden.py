# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Compares a converted folder with what the original Mesh TensorFlow code computed from the same checkpoint.

    python tests/check_golden.py FOLDER GOLDEN.npz

prints the largest difference of logits, the difference of the losses, both as shares of the largest logit, and whether
greedy decoding gives the same tokens; exits with 1 if any of them is off. Float32 keeps a fixed count of digits
of what logits are added up of, so that larger logits, as real sizes have, differ by more.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForSeq2SeqLM, GenerationMixin, PreTrainedModel

from t5_experimental import original_loss


TOLERANCE = 1e-5
EOS = 1


def logits_and_loss_error(model: PreTrainedModel, golden: dict[str, np.ndarray]) -> tuple[float, float]:
    """Largest difference of the logits at real target positions, and difference of the losses, as shares of the largest
    of the original's logits there."""
    inputs = torch.from_numpy(golden["inputs"]).long()
    targets = torch.from_numpy(golden["targets"]).long()
    with torch.no_grad():
        logits = model(input_ids=inputs, attention_mask=(inputs > 0).long(), labels=targets).logits
    expected = golden["logits"][golden["targets"] > 0]
    errors = np.abs(logits.numpy()[golden["targets"] > 0] - expected)
    loss_error = abs(float(original_loss(logits, targets)) - float(golden["loss"]))
    scale = float(np.abs(expected).max())
    return float(errors.max()) / scale, loss_error / scale


def until_eos(row: np.ndarray) -> list[int]:
    """A decoded row up to and including its first end-of-sequence token; the original fills the rest with anything."""
    ids = row.tolist()
    return ids[: ids.index(EOS) + 1] if EOS in ids else ids


def greedy_rows_equal(model: GenerationMixin, golden: dict[str, np.ndarray]) -> int:
    """How many rows greedy decoding gives exactly as the original's."""
    inputs = torch.from_numpy(golden["inputs"]).long()
    expected = golden["greedy"]
    output = model.generate(
        input_ids=inputs, attention_mask=(inputs > 0).long(), max_new_tokens=expected.shape[1], do_sample=False
    )
    decoded = output[:, 1:].numpy()  # without the start token
    return sum(until_eos(ours) == until_eos(theirs) for ours, theirs in zip(decoded, expected, strict=True))


def main(folder: str, golden_file: str) -> int:
    golden = dict(np.load(Path(golden_file)))
    model = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32).eval()
    logits_error, loss_error = logits_and_loss_error(model, golden)
    rows, equal = len(golden["greedy"]), greedy_rows_equal(model, golden)
    print(f"largest difference of logits  {logits_error:.2e} of the largest one  (at most {TOLERANCE:g})")
    print(f"difference of the loss        {loss_error:.2e} of the largest logit  (at most {TOLERANCE:g})")
    print(f"greedy decoding               {equal} of {rows} rows equal")
    return int(not (logits_error <= TOLERANCE and loss_error <= TOLERANCE and equal == rows))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
