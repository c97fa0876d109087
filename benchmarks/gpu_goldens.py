# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Section of `benchmarks/gpu.py`: outputs of the original code."""

import contextlib
import io
import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForSeq2SeqLM

from t5_experimental.self_check_t5_experimental import verdicts

from .gpu_attention import NO_TRITON, attention_by, failed_checks, has_triton
from .gpu_checksums import stand_in
from .gpu_report import Machine, Row, Section


GOLDEN = Path(__file__).resolve().parents[1] / "tests" / "reference" / "golden"
TINY_GOLDENS = ("t5.1.1.tiny", "t5.1.th.tiny")

# Largest error of a logit in float32. The tests allow 1e-5 on CPUs (3e-5 over long inputs), whose sums have another
# order than a GPU's.
LOGIT_TOLERANCE = 5e-5
# Error of all logits in bfloat16, relative to their norm.
BFLOAT16_TOLERANCE = 0.03

Converted = Callable[[str], Path]
"""Folder of a golden checkpoint by name; converts it at the first call."""


def golden_names() -> list[str]:
    return sorted(path.parent.name for path in GOLDEN.glob("*/golden.npz"))


def talks(name: str) -> bool:
    """Whether a golden model has talking heads."""
    return "th." in name or "mixed" in name


def goldens(section: Section, machine: Machine) -> None:
    """Logits and greedy tokens of the converted checkpoints against those that the original code wrote."""
    names = TINY_GOLDENS if machine.tiny else golden_names()
    with tempfile.TemporaryDirectory() as folder:
        converted = cache(partial(convert, Path(folder)))
        for name in names:
            for implementation in ("eager", "sdpa"):
                section.measure(
                    f"{name} float32 {implementation}", float32_row, converted, name, implementation, machine
                )
            section.measure(f"{name} bfloat16", bfloat16_row, converted, name, machine)
            if talks(name):
                if has_triton():
                    section.measure(f"{name} bfloat16 kernels", kernels_row, converted, name, machine)
                else:
                    section.leave_out(f"{name} bfloat16 kernels", NO_TRITON)


def convert(folder: Path, name: str) -> Path:
    """Converts a golden checkpoint with the command; returns its folder inside of another one."""
    stand_in()
    from t5_experimental.convert.cli import main

    output = folder / name
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        code = main(["convert", str(GOLDEN / name), str(output)])
    if code:
        raise RuntimeError(f"The conversion of {name} ended with {code}: {printed.getvalue()[-500:]}")
    return output


def load(folder: Path, machine: Machine, dtype: torch.dtype, implementation: str = "sdpa") -> Any:
    model = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=dtype, attn_implementation=implementation)
    return model.eval().to(machine.device)


@torch.no_grad()
def golden_logits(model: Any, arrays: dict[str, np.ndarray], machine: Machine) -> tuple[torch.Tensor, torch.Tensor]:
    """Our logits and the original's at the targets that are not padding, `(tokens, vocabulary)` in float64."""
    inputs, targets = (torch.from_numpy(arrays[name]).long() for name in ("inputs", "targets"))
    given = {"input_ids": inputs, "attention_mask": (inputs > 0).long(), "labels": targets}
    if "inputs_segmentation" in arrays:
        del given["attention_mask"]
        given["segment_ids"] = torch.from_numpy(arrays["inputs_segmentation"])
        given["decoder_segment_ids"] = torch.from_numpy(arrays["targets_segmentation"])
    logits = model(**{name: tensor.to(machine.device) for name, tensor in given.items()}).logits
    real = targets > 0
    return logits.cpu().double()[real], torch.from_numpy(arrays["logits"]).double()[real]


def arrays_of(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / name / "golden.npz") as arrays:
        return dict(arrays)


def float32_row(converted: Converted, name: str, implementation: str, machine: Machine) -> Row:
    arrays = arrays_of(name)
    model = load(converted(name), machine, torch.float32, implementation)
    ours, original = golden_logits(model, arrays, machine)
    row: Row = {"largest error": float((ours - original).abs().max())}
    if not row["largest error"] <= LOGIT_TOLERANCE:
        row["wrong"] = f"a logit differs by {row['largest error']:.1e}"
    if "greedy" in arrays:
        row["greedy equal"] = greedy_equal(model, arrays, machine)
        if row["greedy equal"] < 1:
            row["wrong"] = f"{1 - row['greedy equal']:.0%} of the greedy sequences differ"
    return row


def greedy_equal(model: Any, arrays: dict[str, np.ndarray], machine: Machine) -> float:
    """Share of the examples whose greedy tokens are the original's, up to the end-of-sequence token."""
    inputs = torch.from_numpy(arrays["inputs"]).long().to(machine.device)
    expected = arrays["greedy"].tolist()
    generated = model.generate(
        inputs, attention_mask=(inputs > 0).long(), max_new_tokens=len(expected[0]), do_sample=False
    )[:, 1:].tolist()
    pairs = zip(generated, expected, strict=True)
    return sum(up_to_end(ours) == up_to_end(original) for ours, original in pairs) / len(expected)


def up_to_end(ids: list[int]) -> list[int]:
    return ids[: ids.index(1) + 1] if 1 in ids else ids


def bfloat16_row(converted: Converted, name: str, machine: Machine, generates: bool = True) -> Row:
    arrays = arrays_of(name)
    model = load(converted(name), machine, torch.bfloat16)
    ours, original = golden_logits(model, arrays, machine)
    row: Row = {"relative error": float((ours - original).norm() / original.norm())}
    if not row["relative error"] <= BFLOAT16_TOLERANCE:
        row["wrong"] = f"the logits differ by {row['relative error']:.1e} of their norm"
    if generates and "greedy" in arrays:
        row["greedy equal"] = greedy_equal(model, arrays, machine)  # may differ where two logits are close
    return row


def compile_golden(name: str, machine: Machine) -> None:
    """What [`kernels_row`] compiles, for Triton's cache."""
    with tempfile.TemporaryDirectory() as folder:
        kernels_row(partial(convert, Path(folder)), name, machine)


def kernels_row(converted: Converted, name: str, machine: Machine) -> Row:
    before = set(verdicts())
    with attention_by("kernels"):
        row = bfloat16_row(converted, name, machine, generates=False)
    row["checks"] = len(set(verdicts()) - before)
    if failed := failed_checks():
        row["wrong"] = f"the kernels are off: {failed[0]}"
    return row
