# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Takes one Adafactor step from a converted checkpoint's slots, and compares the next loss with the original's.

    python tests/check_next_step.py FOLDER GOLDEN.npz [LEARNING_RATE]

prints the relative differences of the loss before and after the step, and of the change that the step makes; exits with
1 if the loss after it is off by more than 1e-4. FOLDER was converted with `--with-optimizer`. The learning rate is that
of the golden data, by default 0.03.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForSeq2SeqLM

from t5_experimental import original_loss
from t5_experimental.training.optim.presets import build_optimizer, load_slots


TOLERANCE = 1e-4
LEARNING_RATE = 0.03


def losses(folder: str, golden: dict[str, np.ndarray], learning_rate: float) -> tuple[float, float]:
    """The loss of the golden batch, before and after a step."""
    model = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32).eval()
    optimizer, _ = build_optimizer("finetune", model, learning_rate=learning_rate)
    load_slots(optimizer, model, Path(folder))
    inputs, targets = (torch.from_numpy(golden[name]).long() for name in ("inputs", "targets"))
    batch = {"input_ids": inputs, "attention_mask": (inputs > 0).long(), "labels": targets}
    before = original_loss(model(**batch).logits, targets)
    before.backward()
    optimizer.step()
    with torch.no_grad():
        return float(before), float(original_loss(model(**batch).logits, targets))


def main(folder: str, golden_file: str, learning_rate: float = LEARNING_RATE) -> int:
    golden = dict(np.load(Path(golden_file)))
    before, after = losses(folder, golden, float(learning_rate))
    expected = [float(golden[name]) for name in ("loss", "loss_after_step")]
    error = abs(after / expected[1] - 1)
    change = abs((after - before) / (expected[1] - expected[0]) - 1)
    print(f"loss before the step   {before:.6f}, relative difference {abs(before / expected[0] - 1):.1e}")
    print(f"loss after the step    {after:.6f}, relative difference {error:.1e}  (at most {TOLERANCE:g})")
    print(f"change by the step     {after - before:.6f}, relative difference {change:.1e}")
    return int(not error <= TOLERANCE)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
