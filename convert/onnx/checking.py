# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Comparing the files with torch: every graph at two sizes, with padding, as ONNX Runtime computes it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..errors import ConversionError
from .graphs import (
    ALONE,
    ENCODER,
    FIRST_STEP,
    MERGED,
    NEXT_STEP,
    Graph,
    encoder_graph,
    first_step_graph,
    next_step_graph,
)
from .merging import CONDITION


TOLERANCES = {"float32": 1e-4, "float16": 2e-2}
"""By dtype, the largest difference that is taken for rounding, as a part of the largest number of an output."""

# Batch, length of inputs, positions of the decoder in the first step and in the next.
SIZES = ((1, 5, 1, 1), (3, 40, 17, 2))


@dataclass(frozen=True)
class Case:
    """What a graph has to compute.

    Attributes:
        graph: name of it.
        sizes: batch and length of the inputs.
        inputs: by name.
        outputs: torch's, by name.
    """

    graph: str
    sizes: tuple[int, int]
    inputs: Mapping[str, np.ndarray]
    outputs: Mapping[str, np.ndarray]


@torch.no_grad()
def cases(model: nn.Module, encoder_only: bool) -> list[Case]:
    """What torch computes.

    Args:
        model: in evaluation mode.
        encoder_only: there is no decoder.
    """
    return [case for sizes in SIZES for case in _cases(model, encoder_only, *sizes)]


def _cases(model: Any, encoder_only: bool, batch: int, source: int, target: int, more: int) -> Iterator[Case]:
    generator = torch.Generator().manual_seed(source)

    def ids(length: int) -> torch.Tensor:
        return torch.randint(2, model.config.vocab_size, (batch, length), generator=generator)

    def case(name: str, graph: Graph, *inputs: torch.Tensor) -> Case:
        outputs = graph.module(*inputs)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        arrays = [[x.contiguous().numpy() for x in group] for group in (inputs, outputs)]
        given, expected = (
            dict(zip(names, group, strict=True))
            for names, group in zip((graph.inputs, graph.outputs), arrays, strict=True)
        )
        return Case(name, (batch, source), given, expected)

    mask = torch.ones(batch, source, dtype=torch.long)
    mask[-1, source // 2 :] = 0
    encoder = case(ALONE if encoder_only else ENCODER, encoder_graph(model), ids(source), mask)
    yield encoder
    if encoder_only:
        return
    states = torch.from_numpy(encoder.outputs["last_hidden_state"])
    first = case(FIRST_STEP, first_step_graph(model), ids(target), states, mask)
    yield first
    cache = [torch.from_numpy(array) for name, array in first.outputs.items() if name != "logits"]
    yield case(NEXT_STEP, next_step_graph(model), ids(more), mask, *cache)


def check(folder: Path, wanted: Sequence[Case], dtype: str) -> float:
    """Runs the files of a folder.

    Args:
        folder: with the files.
        wanted: from `cases`.
        dtype: of the files, a key of `TOLERANCES`.

    Returns:
        The largest difference, as a part of the largest number of an output.

    Raises:
        ConversionError: a file does not load, or an output is another one.
    """
    import onnxruntime

    worst = 0.0
    files = {case.graph: _file_of(folder, case.graph) for case in wanted}
    for file in sorted(set(files.values())):
        try:
            session = onnxruntime.InferenceSession(file, _options(), providers=["CPUExecutionProvider"])
            for case in (case for case in wanted if files[case.graph] == file):
                worst = max(worst, _largest_difference(session, case, file, TOLERANCES[dtype]))
        except ConversionError:
            raise
        except Exception as error:  # its classes are made in C++, and derive from no common one
            raise ConversionError(
                f"onnxruntime {onnxruntime.__version__} does not run {file.name} ({error}): try another --opset, or "
                "other versions of onnxscript and onnxruntime."
            ) from error
        del session  # before the next file is loaded
    return worst


def _options() -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return options


def _file_of(folder: Path, graph: str) -> Path:
    path = folder / f"{graph}.onnx"
    return path if path.exists() else folder / f"{MERGED}.onnx"


def _largest_difference(session: Any, case: Case, file: Path, tolerance: float) -> float:
    found = dict(
        zip([output.name for output in session.get_outputs()], session.run(None, feeds(session, case)), strict=True)
    )
    worst = 0.0
    for name, expected in case.outputs.items():
        wide = expected.astype(np.float64)
        difference = np.abs(found[name] - wide).max() / max(np.abs(wide).max(), np.finfo(np.float32).tiny)
        if not difference <= tolerance:  # NaN, too
            batch, length = case.sizes
            raise ConversionError(
                f"{file.name} computes other numbers than torch: at batch {batch} and length {length}, {name} differs "
                f"by {difference:.1e} of its largest, where {tolerance:.0e} is taken for rounding. Nothing was "
                "written: try another --opset, or other versions of onnxscript and onnxruntime."
            )
        worst = max(worst, float(difference))
    return worst


def feeds(session: Any, case: Case) -> dict[str, np.ndarray]:
    """Inputs of a session for a case: a merged decoder also wants those that it does not read."""
    given = dict(case.inputs)
    for wanted in session.get_inputs():
        if wanted.name == CONDITION:
            given[wanted.name] = np.array([case.graph == NEXT_STEP])
        elif wanted.name not in given:
            dtype = np.float16 if wanted.type == "tensor(float16)" else np.float32
            sizes = [size if isinstance(size, int) else 1 for size in wanted.shape]
            given[wanted.name] = np.zeros([case.sizes[0], *sizes[1:]], dtype)
    return given
