# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Kernels that multiply hidden states by a weight on a CPU, and which of them is the fastest on this one.

Processors differ: on some, oneDNN reads a weight in its own layout twice as fast as MKL, on others MKL is faster for a
row or two; some compute in bfloat16, some emulate it at a tenth of the speed. So nothing is decided by the processor's
name: [`choose`] times the candidates for a weight's shape and a number of rows, once in a process, in some
milliseconds. If `T5_EXPERIMENTAL_CPU_KERNELS` is set, nothing is timed: it names kernels, such as
`int8-fbgemm,float32-onednn`, of which the first that fits is taken.

int8 means weights in 8 bits with a scale for each output feature, and hidden states that are rounded to 8 bits with a
scale for each row before each product. torch's operators for that (`torch.ops.quantized`) are private in all but name.
They are used only if they multiply rightly here, see [`int8_range`].
"""

import math
import os
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from .onednn_t5_experimental import multiply, pack, supports


VARIABLE = "T5_EXPERIMENTAL_CPU_KERNELS"
"""Environment variable with names of kernels, separated by commas, the preferred first."""

PACKED_ROWS = 32
"""Number of rows for which oneDNN chooses its layout; fewer rows are as fast."""

MOST_ROWS = 256
"""Kernels are timed for at most this number of rows; more rows are as good as these."""

_MOST_FEATURES = 4096
"""Weights with more output features are timed with this number: the ranking is the same, and packing takes time."""

_GAIN = 0.9
"""A kernel must take less than this share of the first candidate's time to be preferred: others may disturb the
clock, and equal choices give equal digits."""

_ROUNDS = (4, 10)
"""Each kernel has at least and at most this number of turns."""

_MILLISECONDS = 30
"""No further turns after this time."""

_CACHE = 2**26
"""Bytes to read so that a weight is no longer in the CPU's cache: a model is larger than that."""

_INT8_ENGINES = ("fbgemm", "onednn")

_ENGINE_LOCK = threading.Lock()


class Kernel(NamedTuple):
    """One way to compute `states @ weight.T`.

    Attributes:
        name: begins with the dtype that it computes in.
        dtype: of the states that it takes, and of its outputs.
        pack: makes its own copy of a weight `(out, in)` in `dtype`.
        multiply: states `(..., in)` and that copy -> `(..., out)`.
    """

    name: str
    dtype: torch.dtype
    pack: Callable[[torch.Tensor], Any]
    multiply: Callable[[torch.Tensor, Any], torch.Tensor]

    @property
    def is_int8(self) -> bool:
        """Whether it rounds weights and states to 8 bits."""
        return self.name.startswith("int8")

    @property
    def fuses(self) -> bool:
        """Whether oneDNN adds residuals and multiplies gates in the same pass."""
        return "-onednn" in self.name and not self.is_int8

    @property
    def takes_weights(self) -> bool:
        """Whether it has no layout of its own, so that a weight in its dtype needs no copy."""
        return self.name.endswith(("-linear", "-plain"))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@cache
def linear_kernel(dtype: torch.dtype) -> Kernel:
    """torch's own product, with the weight as it is."""
    return Kernel(f"{_name(dtype)}-linear", dtype, lambda weight: weight, F.linear)


@cache
def onednn_kernel(dtype: torch.dtype) -> Kernel:
    """oneDNN with the weight in its layout for a few rows."""
    return Kernel(f"{_name(dtype)}-onednn", dtype, lambda weight: pack(weight, PACKED_ROWS), multiply)


@cache
def plain_kernel() -> Kernel:
    """oneDNN with a float32 weight as it is. Half precision needs none: there, [`linear_kernel`] is oneDNN's."""
    return Kernel("float32-onednn-plain", torch.float32, lambda weight: weight, multiply)


@cache
def int8_kernel(engine: str) -> Kernel | None:
    """An engine's product in 8 bits; None if this torch or processor has none that multiplies rightly."""
    bits = int8_range(engine)
    if bits is None:
        return None
    # Without instructions for products of 8 bits, sums of two overflow unless states have 7 bits.
    reduce_range = bits == 7

    def product(states: torch.Tensor, packed: Any) -> torch.Tensor:
        return torch.ops.quantized.linear_dynamic(states, packed, reduce_range=reduce_range)

    def multiply_int8(states: torch.Tensor, packed: Any) -> torch.Tensor:
        # Of NaN the operator finds no range, or a wrong one for all rows: rows with NaN are computed as zeros.
        if states.shape[:-1].numel() == 1:
            if _is_finite(states):
                return product(states, packed)
            return product(torch.zeros_like(states), packed).fill_(torch.nan)
        # The operator has one scale for all rows. So that a row hardly depends on which others there are:
        scales = states.abs().amax(-1, keepdim=True).clamp_(min=torch.finfo(torch.float32).tiny)
        scaled = states / scales
        if not _is_finite(scales):
            finite_rows = scales.isfinite()
            scaled = torch.where(finite_rows, scaled, 0)
            scales = torch.where(finite_rows, scales, torch.nan)
        return product(scaled, packed).mul_(scales)

    return Kernel(f"int8-{engine}", torch.float32, lambda weight: quantize(weight, engine), multiply_int8)


def _is_finite(tensor: torch.Tensor) -> bool:
    """Whether all elements are finite, found by their sum, which takes less time, unless it overflows."""
    return math.isfinite(tensor.sum().item()) or bool(tensor.isfinite().all())


def quantize(weight: torch.Tensor, engine: str) -> Any:
    """A float32 weight `(out, in)` in 8 bits, in the layout of an engine of `torch.backends.quantized`.

    Raises:
        ValueError: the weight has NaN or infinite values.
    """
    largest = weight.abs().amax(1)
    if not bool(largest.isfinite().all()):
        raise ValueError("A weight has NaN or infinite values, so it cannot be quantized to int8: decode in float.")
    scales = (largest / 127).clamp_(min=torch.finfo(torch.float32).tiny)
    integers = (weight / scales[:, None]).round_().clamp_(-127, 127).to(torch.int8)
    zeros = torch.zeros(len(scales), dtype=torch.long)
    with _ENGINE_LOCK, warnings.catch_warnings():
        # Quantized tensors will go in a later torch, see `int8_range`.
        warnings.simplefilter("ignore", UserWarning)
        before = torch.backends.quantized.engine
        try:
            torch.backends.quantized.engine = engine
            quantized = torch._make_per_channel_quantized_tensor(integers, scales.double(), zeros, 0)
            return torch.ops.quantized.linear_prepack(quantized, None)
        finally:
            torch.backends.quantized.engine = before


@cache
def int8_range(engine: str) -> int | None:
    """Bits of the states with which an engine multiplies rightly here, 8 or 7; None if it does not at all.

    A product whose sums are as large as they can be, and a random one, are compared with float64.
    """
    generator = torch.Generator().manual_seed(0)
    extreme = torch.ones(48, 160), torch.ones(3, 160)
    random = torch.randn(48, 160, generator=generator), torch.randn(3, 160, generator=generator)
    with torch.no_grad():
        for bits in (8, 7):
            try:
                if engine not in torch.backends.quantized.supported_engines:
                    return None
                errors = []
                for weight, states in (extreme, random):
                    packed = quantize(weight, engine)
                    product = torch.ops.quantized.linear_dynamic(states, packed, reduce_range=bits == 7)
                    exact = states.double() @ weight.double().t()
                    errors.append(float((product - exact).norm() / exact.norm()))
            except (AttributeError, RuntimeError, NotImplementedError):  # the operators are gone, or do not run here
                return None
            if all(error < 0.05 for error in errors):  # false for NaN
                return bits
    return None


def _allowed(groups: list[list[Kernel]]) -> list[list[Kernel]]:
    """The groups; only the first kernel that [`VARIABLE`] names, or else the first of all, if it is set."""
    names = [name.strip() for name in os.environ.get(VARIABLE, "").split(",")]
    if names == [""]:
        return groups
    kernels = [kernel for group in groups for kernel in group]
    named = [kernel for name in names for kernel in kernels if kernel.name == name]
    return [[*named, *kernels][:1]]


def float_kernels(*dtypes: torch.dtype, rows: int) -> list[list[Kernel]]:
    """Kernels of each dtype for a number of rows, the usually fastest first."""
    return _allowed([[*_onednn_kernels(dtype, rows), linear_kernel(dtype)] for dtype in dtypes])


def _onednn_kernels(dtype: torch.dtype, rows: int) -> list[Kernel]:
    if not supports(dtype):
        return []
    # For one row, weights as they are were the faster ones on an AMD EPYC; for two, those in oneDNN's layout.
    return [*([plain_kernel()] * (dtype == torch.float32 and rows == 1)), onednn_kernel(dtype)]


def kernels_without_copy(dtype: torch.dtype) -> list[list[Kernel]]:
    """Kernels that take weights of a dtype as they are."""
    return _allowed([_kernels_without_copy(dtype)])


def _kernels_without_copy(dtype: torch.dtype) -> list[Kernel]:
    return [*([plain_kernel()] * (dtype == torch.float32 and supports(dtype))), linear_kernel(dtype)]


def int8_kernels(dtype: torch.dtype | None = None) -> list[list[Kernel]]:
    """Kernels in 8 bits that are right here; empty if there are none.

    Args:
        dtype: of weights that float kernels may take as they are, where they are faster. In half precision there are
            none, as their results are of another dtype than those in 8 bits.
    """
    kernels = [kernel for engine in _INT8_ENGINES if (kernel := int8_kernel(engine)) is not None]
    others = _kernels_without_copy(dtype) if dtype == torch.float32 else []
    return _allowed([[*kernels, *others]]) if kernels else []


def bucket(rows: int) -> int:
    """The power of 2 up to [`MOST_ROWS`] that stands for a number of rows."""
    return min(MOST_ROWS, 1 << max(0, rows - 1).bit_length())


class Choice(NamedTuple):
    """The kernel for a weight's shape and a number of rows.

    Attributes:
        kernel: the fastest.
        shape: of the weight, `(out, in)`.
        rows: of the states.
        milliseconds: of a product, by name of the kernel; empty if there was nothing to choose.
    """

    kernel: Kernel
    shape: tuple[int, int]
    rows: int
    milliseconds: Mapping[str, float]

    def __str__(self) -> str:
        times = ", ".join(f"{name} {time:.3g} ms" for name, time in self.milliseconds.items())
        rows = f"{self.rows} row" + "s" * (self.rows > 1)
        return " x ".join(map(str, self.shape)) + f", {rows}: {self.kernel.name}" + f" ({times})" * bool(times)


def choose(groups: Sequence[Sequence[Kernel]], shapes: Sequence[tuple[int, int]], rows: int) -> list[Choice]:
    """The fastest kernel for each of several weights, all of one group.

    The first kernel and the first group are preferred unless others are clearly faster.

    Args:
        groups: candidates, for instance those of each dtype.
        shapes: `(out, in)` of the weights.
        rows: of the states.
    """
    rows = bucket(rows)
    kernels = [kernel for group in groups for kernel in group]
    times = {shape: _times(kernels, *shape, rows) for shape in set(shapes)}
    found = [{shape: _preferred(group, times[shape]) for shape in times} for group in groups]
    totals = [sum(times[shape].get(kernels[shape].name, 0) for shape in shapes) for kernels in found]
    best = totals.index(min(totals))
    best = best if totals[best] < _GAIN * totals[0] else 0
    return [Choice(found[best][shape], shape, rows, times[shape]) for shape in shapes]


def _preferred(kernels: Sequence[Kernel], times: Mapping[str, float]) -> Kernel:
    best = min(kernels, key=lambda kernel: times.get(kernel.name, 0))
    return best if times and times[best.name] < _GAIN * times[kernels[0].name] else kernels[0]


_TIMES: dict[tuple[Any, ...], Mapping[str, float]] = {}


def _times(kernels: Sequence[Kernel], out_features: int, in_features: int, rows: int) -> Mapping[str, float]:
    """Milliseconds of a product by each of several kernels, as found earlier in this process or now."""
    if len(kernels) == 1:
        return {}
    out_features = min(out_features, _MOST_FEATURES)
    key = (out_features, in_features, rows, torch.get_num_threads(), *(kernel.name for kernel in kernels))
    if key not in _TIMES:
        _TIMES[key] = _milliseconds(kernels, out_features, in_features, rows)
    return _TIMES[key]


@torch.no_grad()
def _milliseconds(kernels: Sequence[Kernel], out_features: int, in_features: int, rows: int) -> Mapping[str, float]:
    """Shortest time of a product by each kernel, with the weight in memory, as in a step of a model."""
    weight, states = torch.full((out_features, in_features), 0.5), torch.full((rows, in_features), 0.5)
    calls: dict[str, Callable[[], object]] = {}
    warm_up: dict[str, Callable[[], object]] = {}
    other = torch.full_like(weight, 0.5)  # for the warm-up; large, so what needs no copy shares it
    for kernel in kernels:
        typed = states.to(kernel.dtype)
        for mapping, matrix in ((calls, weight), (warm_up, other)):
            mapping[kernel.name] = partial(kernel.multiply, typed, kernel.pack(matrix.to(kernel.dtype)))
    return _shortest(calls, warm_up)


def _shortest(
    calls: Mapping[str, Callable[[], object]], warm_up: Mapping[str, Callable[[], object]] = MappingProxyType({})
) -> dict[str, float]:
    """Shortest time of each call in milliseconds. They take turns, so that they share what disturbs them.

    Args:
        calls: what is timed, by name.
        warm_up: what is called before. A step of a model uses the same kernel again and again, each time for another
            weight: its code is in the cache, the weight is not. After another kernel, int8 took twice as long.
    """
    times = dict.fromkeys(calls, float("inf"))
    others = torch.zeros(_CACHE, dtype=torch.uint8).view(torch.float32)
    least, most = _ROUNDS
    begin = time.perf_counter()
    for turn in range(most):
        if turn >= least and (time.perf_counter() - begin) * 1000 > _MILLISECONDS:
            break
        for name, call in calls.items():
            others.sum()
            if name in warm_up:
                warm_up[name]()
            start = time.perf_counter()
            call()
            times[name] = min(times[name], (time.perf_counter() - start) * 1000)
    return times


def is_emulated(dtype: torch.dtype) -> bool:
    """Whether this CPU multiplies many rows in bfloat16 or float16 slower than in float32, conversions included."""
    return dtype in (torch.bfloat16, torch.float16) and _float32_is_faster(dtype, torch.get_num_threads())


@cache
def _float32_is_faster(dtype: torch.dtype, threads: int) -> bool:
    groups = _allowed([[linear_kernel(dtype)], [linear_kernel(torch.float32)]])
    if len(groups) == 1:
        return groups[0][0].dtype == torch.float32
    with torch.no_grad():
        weight, states = torch.full((768, 768), 0.5, dtype=dtype), torch.full((256, 768), 0.5, dtype=dtype)
        calls = {"narrow": partial(F.linear, states, weight), "wide": partial(linear_in_float32, states, weight)}
        times = _shortest(calls)
    return times["wide"] < _GAIN * times["narrow"]


def linear_in_float32(states: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """`states @ weight.T` computed in float32, `(..., in)` and `(out, in)` -> `(..., out)` in the dtype of `states`."""
    return F.linear(states.float(), weight.float()).to(states.dtype)
