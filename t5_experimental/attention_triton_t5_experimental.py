# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Talking-heads attention on GPUs in Triton: exact, in memory proportional to n + m, imported only when it is used.

The kernels are in triton_kernels_t5_experimental.py, which also explains the algorithm. Tested in Triton's interpreter
and by compiling for GPUs; never run or timed on a GPU, so that attention_check_t5_experimental.py compares them with
the exact path before their first use.
"""

from typing import TYPE_CHECKING, Any, cast

import torch

from .triton_kernels_t5_experimental import (
    _Inputs,
    _key_gradients_kernel,
    _mix_gradients_kernel,
    _output_kernel,
    _query_gradients_kernel,
    _Rows,
    _rows_kernel,
    _Sizes,
    _value_gradients_kernel,
    is_interpreted,
)


if TYPE_CHECKING:
    from .attention_problem_t5_experimental import _Problem


# Queries and keys of a tile, and elements of a query, key or value that one step of a matmul reads: the minimum of
# Triton's matmuls, because tiles with all heads are large. With up to 32 heads in half precision, the compiler needs at
# most 90 KiB of shared memory, which every device since Ampere has.
_TILE = 16
_CHUNK = 16
# Elements of a tile of the output, or of a gradient, that one program sums up.
_MOST_SUMS = 2**14
_OPTIONS = {"num_warps": 8, "num_stages": 1}


def _tiles(length: int, tile: int = _TILE) -> int:
    """How many tiles cover a length."""
    return -(-length // tile)


def _padded(size: int) -> int:
    """The next power of two, at least 16."""
    return max(16, 1 << (size - 1).bit_length())


def _columns(heads: int, size: int) -> int:
    """Columns of an output or gradient that one program computes."""
    return max(16, min(_padded(size), _MOST_SUMS // (heads * _TILE)))


class _Launcher:
    """Runs the kernels on one problem.

    Args:
        problem: the inputs; its value is already scaled for dropout.
    """

    def __init__(self, problem: "_Problem"):
        self.problem = problem
        query, key, value = (self.readable(x) for x in (problem.query, problem.key, problem.value))
        mixes = problem.logits_projection, problem.weights_projection
        # Never None: plain attention does not use these kernels.
        logits_projection, weights_projection = (self.readable(cast(torch.Tensor, mix)).contiguous() for mix in mixes)
        heads, value_heads = weights_projection.shape
        self.batch, key_heads, self.query_length, key_size = query.shape
        self.key_length, value_size = value.shape[2:]
        visible, device = problem.visibility, query.device
        mask, segments = visible.mask, visible.query_segments
        past_length = torch.as_tensor(visible.past_length)
        if past_length.device != device:
            past_length = torch.full((), int(past_length), device=device)
        strides: tuple[int, ...] = (0, 0, 0, 0)
        if mask is not None:
            strides = mask.expand(self.batch, mask.shape[1], self.query_length, self.key_length).stride()
        padded = [_padded(count) for count in (key_heads, heads, value_heads)]
        is_tf32 = torch.backends.cuda.matmul.fp32_precision == "tf32"
        self.sizes = _Sizes(
            KEY_HEADS=key_heads,
            HEADS=heads,
            VALUE_HEADS=value_heads,
            KEY_HEADS_P=padded[0],
            HEADS_P=padded[1],
            VALUE_HEADS_P=padded[2],
            KEY_SIZE=key_size,
            VALUE_SIZE=value_size,
            KEY_COLUMNS=_columns(padded[0], key_size),
            VALUE_COLUMNS=_columns(padded[2], value_size),
            TILE=_TILE,
            CHUNK=_CHUNK,
            HAS_BIAS=problem.bias is not None,
            HAS_MASK=mask is not None,
            MASKED_HEADS=1 if mask is None or mask.shape[1] == 1 else padded[1],
            HAS_SEGMENTS=segments is not None and visible.key_segments is not None,
            CAUSAL=visible.causal,
            THRESHOLD=problem.threshold,
            PRECISION="tf32" if is_tf32 else "ieee",
        )
        self.inputs = _Inputs(
            query=query,
            key=key,
            value=value,
            logits_projection=logits_projection,
            weights_projection=weights_projection,
            diagonals=query if problem.bias is None else problem.bias,
            mask=query if mask is None else mask.to(device).view(torch.uint8),
            mask_strides=strides,
            query_segments=query if segments is None else segments.to(device).contiguous(),
            key_segments=query if visible.key_segments is None else visible.key_segments.to(device).contiguous(),
            past_length=past_length,
            query_length=self.query_length,
            key_length=self.key_length,
        )
        self.seed = 0 if problem.seed is None else int(problem.seed)
        self.query_tiles, self.key_tiles = map(_tiles, (self.query_length, self.key_length))

    @staticmethod
    def readable(tensor: torch.Tensor) -> torch.Tensor:
        """Converts a tensor for the kernels: Triton's interpreter, which runs on CPUs, has no bfloat16."""
        if is_interpreted() and tensor.dtype == torch.bfloat16:
            return tensor.float()
        return tensor

    def _launch(self, kernel: Any, grid: tuple[int, ...], *arguments: Any) -> None:
        with torch.cuda.device_of(self.problem.query):
            kernel[grid](self.inputs, *arguments, s=self.sizes, **_OPTIONS)

    def _sums(self, *shape: int) -> torch.Tensor:
        """Uninitialized, in float32, also if torch's default is another dtype."""
        return torch.empty(shape, dtype=torch.float32, device=self.problem.query.device)

    def rows(self, grad_output: torch.Tensor | None = None) -> _Rows:
        """See `_rows_kernel`."""
        shape = (self.batch, self.sizes.HEADS, self.query_length)
        rows = _Rows(*(self._sums(*shape) for _ in range(3)))
        gradients = self.problem.query if grad_output is None else grad_output
        self._launch(_rows_kernel, (self.query_tiles, self.batch), rows, gradients, self.seed, grad_output is not None)
        return rows

    def output(self, rows: _Rows) -> torch.Tensor:
        """O, `(b, hv, n, dv)`, transposed from `(b, n, hv, dv)`."""
        sizes = self.sizes
        output = self.inputs.query.new_empty(self.batch, self.query_length, sizes.VALUE_HEADS, sizes.VALUE_SIZE)
        grid = self.query_tiles, self.batch, _tiles(sizes.VALUE_SIZE, sizes.VALUE_COLUMNS)
        self._launch(_output_kernel, grid, rows, output, self.seed)
        return output.transpose(1, 2).to(self.problem.dtype)

    def gradients(self, rows: _Rows, grad_output: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Gradients of query, key and value."""
        problem, sizes = self.problem, self.sizes
        grads = [
            torch.empty_like(x.transpose(1, 2), dtype=problem.wide, memory_format=torch.contiguous_format)
            for x in (problem.query, problem.key, problem.value)
        ]
        key_groups = _tiles(sizes.KEY_SIZE, sizes.KEY_COLUMNS)
        value_groups = _tiles(sizes.VALUE_SIZE, sizes.VALUE_COLUMNS)
        grids = [
            (self.query_tiles, self.batch, key_groups),
            (self.key_tiles, self.batch, key_groups),
            (self.key_tiles, self.batch, value_groups),
        ]
        kernels = [_query_gradients_kernel, _key_gradients_kernel, _value_gradients_kernel]
        for kernel, grid, grad in zip(kernels, grids, grads, strict=True):
            self._launch(kernel, grid, rows, grad_output, grad, self.seed)
        query, key, value = (grad.transpose(1, 2) for grad in grads)
        return query, key, value * problem.scale

    def mix_gradients(self, rows: _Rows, grad_output: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Gradients of both projections and of the diagonals (empty without any)."""
        sizes, tile_diagonals = self.sizes, self.query_tiles + self.key_tiles - 1
        shapes = [
            (sizes.KEY_HEADS_P, sizes.HEADS_P),
            (sizes.HEADS_P, sizes.VALUE_HEADS_P),
            (sizes.HEADS_P, 2 * _TILE),
        ]
        logits_mix, weights_mix, diagonals = (self._sums(self.batch, tile_diagonals, *shape) for shape in shapes)
        grid = (tile_diagonals, self.batch)
        self._launch(_mix_gradients_kernel, grid, rows, grad_output, logits_mix, weights_mix, diagonals, self.seed)
        return (
            logits_mix.sum((0, 1))[: sizes.KEY_HEADS, : sizes.HEADS],
            weights_mix.sum((0, 1))[: sizes.HEADS, : sizes.VALUE_HEADS],
            self._joined(diagonals) if sizes.HAS_BIAS else logits_mix.new_empty(0),
        )

    def _joined(self, diagonals: torch.Tensor) -> torch.Tensor:
        """`(h, n + m - 1)` from `(b, diagonals of tiles, HEADS_P, 2 TILE)`: neighbors overlap by one tile."""
        early, late = diagonals.sum(0)[:, : self.sizes.HEADS].transpose(0, 1).split(_TILE, -1)
        total = torch.nn.functional.pad(early.flatten(1), (0, _TILE))
        total[:, _TILE:] += late.flatten(1)
        start = self.query_tiles * _TILE - self.query_length
        return total[:, start : start + self.query_length + self.key_length - 1]


def forward(problem: "_Problem") -> torch.Tensor:
    """O, `(b, hv, n, dv)`."""
    launcher = _Launcher(problem)
    return launcher.output(launcher.rows())


def backward(problem: "_Problem", grad_output: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Gradients of query, key, value, both projections and the diagonals (empty without any), in float32."""
    launcher = _Launcher(problem)
    grad_output = launcher.readable(grad_output).contiguous()
    rows = launcher.rows(grad_output)
    return *launcher.gradients(rows, grad_output), *launcher.mix_gradients(rows, grad_output)
