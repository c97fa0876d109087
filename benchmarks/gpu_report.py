# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""What `benchmarks/gpu.py` writes: rows of sections, rewritten after each of them, with budgets and failures."""

import gc
import os
import statistics
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .common import write_json


# Dense bfloat16 by matmul units, half of what the data sheets state for sparse matrices: nvidia.com, data sheets of
# H200 and H100 (1,979 TFLOP/s with sparsity; PCIe 1,513) and of A100 (312 without). The first name that begins the
# device's name counts.
PEAK_FLOPS = {
    "NVIDIA H200": 989.5e12,
    "NVIDIA H100 PCIe": 756.5e12,
    "NVIDIA H100 80GB HBM3": 989.5e12,
    "NVIDIA A100": 312e12,
}

Row = dict[str, Any]
"""Figures of one item by name. With `wrong`, a sentence, it counts as failed."""


@dataclass(frozen=True)
class Machine:
    """Where the sections run, and how large.

    Attributes:
        device: "cuda" or "cpu".
        tiny: models, shapes and rounds for a test.
    """

    device: torch.device
    tiny: bool

    @property
    def peak_flops(self) -> float | None:
        """FLOP/s in bfloat16 by the data sheet; None if the device is not in [`PEAK_FLOPS`]."""
        if self.device.type != "cuda":
            return None
        name = torch.cuda.get_device_name(self.device)
        return next((peak for known, peak in PEAK_FLOPS.items() if name.startswith(known)), None)

    def facts(self) -> Row:
        """Of the GPU, for the report."""
        if self.device.type != "cuda":
            return {"name": "CPU", "peak_flops": None}
        properties = torch.cuda.get_device_properties(self.device)
        return {
            "name": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "memory_bytes": properties.total_memory,
            "multiprocessors": properties.multi_processor_count,
            "cuda": torch.version.cuda,
            "peak_flops": self.peak_flops,
        }

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, call: Callable[[], object], rounds: int, warm_up: int = 2) -> float:
        """Median time of a call, waiting for the device."""
        if self.tiny:
            rounds, warm_up = 1, 0
        times = []
        for turn in range(warm_up + rounds):
            self.synchronize()
            start = time.perf_counter()
            call()
            self.synchronize()
            if turn >= warm_up:
                times.append(time.perf_counter() - start)
        return statistics.median(times)

    def reset_peak_memory(self) -> None:
        if self.device.type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak_memory(self) -> int | None:
        """Bytes that tensors took at most since the last reset; None on the CPU."""
        return torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else None


class Report:
    """All sections, as OUTPUT.json and OUTPUT.txt; both are whole at any time.

    Args:
        output: path without suffix.
        settings: of the run.
        machine: where it runs.
    """

    def __init__(self, output: Path, settings: Row, machine: Machine):
        self.output, self.start = output, time.perf_counter()
        self.content: Row = {"settings": settings, "device": machine.facts(), "sections": {}}
        self.write()

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.start

    def say(self, text: str) -> None:
        print(f"[{self.elapsed:6.1f} s] {text}", flush=True)

    def section(self, name: str, budget: float) -> "Section":
        return Section(self, name, budget)

    def write(self) -> None:
        """Rewrites both files."""
        partial = self.output.with_name(self.output.name + ".partial")
        write_json(partial, self.content)
        os.replace(partial, self.output.with_suffix(".json"))
        partial.write_text(self.as_text())
        os.replace(partial, self.output.with_suffix(".txt"))

    def failures(self) -> int:
        return sum(len(section["failures"]) for section in self.content["sections"].values())

    def as_text(self) -> str:
        """A table for each section."""
        device = self.content["device"]
        parts = [f"{device['name']}, torch {torch.__version__}"]
        for name, section in self.content["sections"].items():
            lines = [f"{name}: {section['status']}, {section['seconds']:.1f} s", *_table(section["rows"])]
            lines += [f"  FAILED {failure['item']}: {failure['error']}" for failure in section["failures"]]
            lines += [f"  left out {left['item']}: {left['why']}" for left in section["left out"]]
            parts.append("\n".join(lines))
        return "\n\n".join(parts) + "\n"


class Section:
    """Rows of one section. As a context, it ends with its status, and an error in it ends only itself.

    Args:
        report: that it belongs to.
        name: of the section.
        budget: seconds after which nothing more is begun.
    """

    def __init__(self, report: Report, name: str, budget: float):
        self.report, self.name, self.budget = report, name, budget
        self.start, self.longest = time.perf_counter(), 0.0
        self.content: Row = {"status": "running", "seconds": 0.0, "rows": [], "failures": [], "left out": []}
        report.content["sections"][name] = self.content

    def __enter__(self) -> "Section":
        self.report.say(f"{self.name}: at most {self.budget:.0f} s")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, Exception):
            self._failed("the section itself", error)
        incomplete = "interrupted" if error is not None and not isinstance(error, Exception) else None
        status = "failed" if self.content["failures"] else "incomplete" if self.content["left out"] else "ok"
        self._finish(incomplete or status)
        return error is None or isinstance(error, Exception)

    @property
    def left(self) -> float:
        """Seconds of the budget that are left."""
        return self.budget - (time.perf_counter() - self.start)

    def leave_out(self, item: str, why: str) -> None:
        self.content["left out"].append({"item": item, "why": why})
        self.report.say(f"{self.name}: {item}: left out, {why}")

    def measure(self, item: str, call: Callable[..., Row], *arguments: object) -> Row | None:
        """Adds the row that `call(*arguments)` returns; None if it failed, or no longer fits, by the longest so far."""
        if self.left < self.longest or self.left <= 0:
            self.leave_out(item, f"{self.left:.0f} s are left and an item took up to {self.longest:.0f} s")
            return None
        start = time.perf_counter()
        row = None
        try:
            row = call(*arguments)
        except Exception as error:
            self._failed(item, error)
        taken = time.perf_counter() - start
        self.longest = max(self.longest, taken)
        if row is not None:
            row = {"item": item, **row, "took": round(taken, 2)}
            self.content["rows"].append(row)
            if "wrong" in row:
                self.content["failures"].append({"item": item, "error": row["wrong"], "traceback": None})
            figures = ", ".join(
                f"{name} {_shown(value)}" for name, value in row.items() if name not in ("item", "errors")
            )
            self.report.say(f"{self.name}: {item}: {figures}")
        self._finish("running")
        return row

    def _failed(self, item: str, error: Exception) -> None:
        first, *_ = [*str(error).strip().splitlines(), ""]
        self.content["failures"].append(
            {
                "item": item,
                "error": f"{type(error).__name__}: {first}",
                "traceback": "".join(traceback.format_exception(error)),
            }
        )
        self.report.say(f"{self.name}: {item}: FAILED, {type(error).__name__}: {first}")

    def _finish(self, status: str) -> None:
        self.content.update(status=status, seconds=round(time.perf_counter() - self.start, 2))
        if torch.cuda.is_initialized():
            gc.collect()  # tensors in circles
            torch.cuda.empty_cache()
        self.report.write()


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "-" if value is None else str(value)


def _table(rows: list[Row]) -> list[str]:
    """Lines of a table with aligned columns; figures that are tables themselves are in the JSON alone."""
    names = list(dict.fromkeys(name for row in rows for name, value in row.items() if not isinstance(value, dict)))
    cells = [names, *([_shown(row.get(name)) for name in names] for row in rows)] if rows else []
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in cells]
