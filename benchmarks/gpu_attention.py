# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Section of `benchmarks/gpu.py`: attention with all head counts of the presets."""

import contextlib
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch.nn import functional as F

from t5_experimental import PRESETS, attention_t5_experimental, preset_config
from t5_experimental import blockwise_attention_t5_experimental as blockwise
from t5_experimental.attention_t5_experimental import dense_bias, softmax_with_bias
from t5_experimental.blockwise_attention_t5_experimental import blockwise_attention, kernels_are_right
from t5_experimental.configuration_t5_experimental import TALKING_HEADS
from t5_experimental.self_check_t5_experimental import verdicts
from t5_experimental.visibility_t5_experimental import Visibility

from .gpu_report import Machine, Row, Section


# Error of the output or a gradient in half precision, as a multiple of that of all pairs at once in the same dtype.
KERNEL_TOLERANCE = 3.0

RESULTS = ("output", "query", "key", "value", "logits_projection", "weights_projection", "diagonals")
NO_TRITON = "Triton is not installed"

Sizes = tuple[int, int, int, int, int]
Inputs = list[torch.Tensor]


def has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


@contextlib.contextmanager
def attention_by(implementation: str) -> Iterator[None]:
    """Lets talking heads compute in blocks of "rows" or by the "kernels", if these pass their check, also where the
    library would not try them: on small problems, and with other releases of torch."""
    with contextlib.ExitStack() as stack:
        for limit in ("_MIN_QUERIES", "_MIN_PAIRS"):
            stack.enter_context(mock.patch.object(attention_t5_experimental, limit, 1))

        def uses_triton(heads: int, dtype: torch.dtype, device: torch.device) -> bool:
            is_supported = dtype in blockwise._TRITON_DTYPES and heads <= blockwise._TRITON_MOST_HEADS
            return implementation == "kernels" and is_supported

        stack.enter_context(mock.patch.object(blockwise, "uses_triton", uses_triton))
        yield


def failed_checks() -> list[str]:
    """Why kernels are off, if any are."""
    return [why for why in verdicts().values() if why is not None]


def dtypes(machine: Machine) -> tuple[torch.dtype, ...]:
    return (torch.bfloat16,) if machine.tiny else (torch.bfloat16, torch.float16)


def shape_of(machine: Machine) -> tuple[int, int, int]:
    """Examples, queries and keys."""
    return (1, 8, 16) if machine.tiny else (4, 512, 512)


def compile_attention(sizes: Sizes, dtype: torch.dtype, machine: Machine) -> None:
    """What the rows of the kernels compile, for Triton's cache."""
    check_row(sizes, dtype, machine)
    errors_row(sizes, dtype, machine)
    speed_row(by_kernels, sizes, dtype, shape_of(machine), machine)


def head_counts() -> dict[str, list[Sizes]]:
    """Head counts and sizes of all layers of all presets, by type of attention, from few heads to many."""
    found: dict[str, set[Sizes]] = {}
    for preset in PRESETS:
        config = preset_config(preset)
        for stack in ("encoder", "decoder"):
            for spec in config.layer_specs(stack):
                sizes = spec.num_key_heads, spec.num_heads, spec.num_value_heads, spec.d_k, spec.d_v
                found.setdefault(spec.attention_type, set()).add(sizes)
    return {kind: sorted(sizes) for kind, sizes in found.items()}


def kernels(section: Section, machine: Machine) -> None:
    """Talking heads by the kernels, in blocks of rows and eager; plain attention by torch's kernels and eager."""
    counts = {kind: sizes[:1] if machine.tiny else sizes for kind, sizes in head_counts().items()}
    shape = shape_of(machine)
    for sizes in counts.pop(TALKING_HEADS):
        for dtype in dtypes(machine):
            item = f"talking heads {sizes[1]}, {str(dtype).removeprefix('torch.')}"
            if has_triton():
                section.measure(f"{item}, check", check_row, sizes, dtype, machine)
                section.measure(f"{item}, kernels, errors", errors_row, sizes, dtype, machine)
            else:
                section.leave_out(f"{item}, kernels", NO_TRITON)
            for name, attend in (("kernels", by_kernels), ("rows", by_rows), ("eager", eager)):
                if name != "kernels" or has_triton():
                    section.measure(f"{item}, {name}", speed_row, attend, sizes, dtype, shape, machine)
    for sizes in (sizes for others in counts.values() for sizes in others):
        for name, attend in (("sdpa", fused), ("eager", plain_eager)):
            item = f"plain {sizes[1]}, bfloat16, {name}"
            section.measure(item, speed_row, attend, sizes, torch.bfloat16, shape, machine)


def random_inputs(sizes: Sizes, dtype: torch.dtype, shape: tuple[int, int, int], machine: Machine) -> Inputs:
    """Query, key, value, both projections and diagonals, rounded to `dtype`."""
    (key_heads, heads, value_heads, key_size, value_size), (batch, n, m) = sizes, shape
    shapes = [
        ((batch, key_heads, n, key_size), key_size**-0.25),
        ((batch, key_heads, m, key_size), key_size**-0.25),
        ((batch, value_heads, m, value_size), 1.0),
        ((key_heads, heads), key_heads**-0.5),
        ((heads, value_heads), heads**-0.5),
        ((heads, n + m - 1), 1.0),
    ]
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(size, generator=generator) * scale).to(machine.device, dtype) for size, scale in shapes]


def padded(shape: tuple[int, int, int], machine: Machine) -> Visibility:
    """As in an encoder: the last example is padded by a quarter."""
    batch, n, m = shape
    mask = torch.ones(batch, 1, 1, m, dtype=torch.bool, device=machine.device)
    mask[-1, ..., m - m // 4 :] = False
    return Visibility(n, m, mask)


def by_kernels(*inputs: Any) -> torch.Tensor:
    return blockwise_attention(*inputs, rows=blockwise.USE_TRITON)


def by_rows(query: torch.Tensor, key: torch.Tensor, *inputs: Any) -> torch.Tensor:
    rows = blockwise.block_rows(query.shape[1], query.shape[2], key.shape[2], query.dtype, query.device)
    return blockwise_attention(query, key, *inputs, rows=rows)


def eager(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    logits_mix: torch.Tensor,
    weights_mix: torch.Tensor,
    diagonals: torch.Tensor,
    visible: Visibility,
) -> torch.Tensor:
    """All pairs at once, as in `T5TalkingHeadsAttention`."""
    logits = torch.einsum("binm,io->bonm", query @ key.transpose(-1, -2), logits_mix)
    weights = softmax_with_bias(logits, dense_bias(diagonals, visible))
    return torch.einsum("binm,io->bonm", weights, weights_mix) @ value


def fused(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *others: Any) -> torch.Tensor:
    *_, diagonals, visible = others
    return F.scaled_dot_product_attention(query, key, value, dense_bias(diagonals, visible), scale=1.0)


def plain_eager(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *others: Any) -> torch.Tensor:
    *_, diagonals, visible = others
    return softmax_with_bias(query @ key.transpose(-1, -2), dense_bias(diagonals, visible)) @ value


def check_row(sizes: Sizes, dtype: torch.dtype, machine: Machine) -> Row:
    """The library's own check, which decides whether the kernels are used."""
    if kernels_are_right(sizes, dtype, machine.device):
        return {"passes": True, "used by default": blockwise.uses_triton(max(sizes[:3]), dtype, machine.device)}
    return {"passes": False, "wrong": failed_checks()[-1]}


def errors_row(sizes: Sizes, dtype: torch.dtype, machine: Machine) -> Row:
    """Errors of kernels and eager against eager in float64, relative to the norm: the largest of all results."""
    # Of no other kernels than the larger shape: lengths that 16 divides are compiled alike.
    shape = (1, 5, 18) if machine.tiny else (2, 160, 208)
    inputs, visible = random_inputs(sizes, dtype, shape, machine), padded(shape, machine)
    exact = with_gradients(eager, [tensor.double() for tensor in inputs], visible)
    errors = {
        name: {
            result: float((tensor.double() - exact[result]).norm() / exact[result].norm())
            for result, tensor in with_gradients(attend, inputs, visible).items()
        }
        for name, attend in (("kernels", by_kernels), ("eager", eager))
    }
    largest = {name: max(by_result.values()) for name, by_result in errors.items()}
    row: Row = {f"{name} error": error for name, error in largest.items()}
    if not largest["kernels"] <= KERNEL_TOLERANCE * largest["eager"]:
        row["wrong"] = f"an error is {largest['kernels'] / largest['eager']:.1f} times that of eager"
    return {**row, "errors": errors}


def with_gradients(attend: Callable[..., torch.Tensor], inputs: Inputs, visible: Visibility) -> dict[str, torch.Tensor]:
    """Output and gradients by name."""
    inputs = [tensor.detach().requires_grad_() for tensor in inputs]
    output = attend(*inputs, visible)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(2)).to(output.device, output.dtype)
    return dict(zip(RESULTS, (output.detach(), *torch.autograd.grad(output, inputs, weights)), strict=True))


def speed_row(
    attend: Callable[..., torch.Tensor],
    sizes: Sizes,
    dtype: torch.dtype,
    shape: tuple[int, int, int],
    machine: Machine,
) -> Row:
    """Milliseconds and TFLOP/s of both passes, counted as all pairs at once, and the memory at the peak."""
    inputs, visible = random_inputs(sizes, dtype, shape, machine), padded(shape, machine)
    is_plain = attend in (fused, plain_eager)
    inputs = [tensor.requires_grad_(not is_plain or index not in (3, 4)) for index, tensor in enumerate(inputs)]
    trained = [tensor for tensor in inputs if tensor.requires_grad]
    weights = torch.ones(shape[0], sizes[2], shape[1], sizes[4], device=machine.device, dtype=dtype)
    machine.reset_peak_memory()
    with torch.no_grad():
        forward = machine.seconds(lambda: attend(*inputs, visible), rounds=10)
    both = machine.seconds(lambda: torch.autograd.grad(attend(*inputs, visible), trained, weights), rounds=10)
    mixes = (None, None) if is_plain else (inputs[3].shape, inputs[4].shape)
    flops = blockwise._flops(inputs[0].shape, inputs[1].shape, inputs[2].shape, *mixes)
    backward = max(both - forward, 1e-9)
    return {
        "forward ms": forward * 1e3,
        "forward TFLOP/s": flops / forward / 1e12,
        "backward ms": backward * 1e3,
        "backward TFLOP/s": 2 * flops / backward / 1e12,
        "peak MiB": None if (peak := machine.peak_memory()) is None else peak // 2**20,
    }
