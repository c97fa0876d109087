# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""A dynamic cache with spare room for new keys and values."""

from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer


INITIAL_CAPACITY = 64
"""Initial capacity of a layer, in positions."""


def storage_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """Dtype of cached keys and values: on CPUs at least float32.

    With one query, `scaled_dot_product_attention` of torch 2.13 is up to five times slower on CPUs in half precision.
    """
    return torch.promote_types(dtype, torch.float32) if device.type == "cpu" else dtype


class GrowingLayer(DynamicLayer):
    """A layer of a dynamic cache that appends in place, and doubles its capacity when it is full.

    `keys` `(b, h, m, dk)` and `values` `(b, h, m, dv)` are the filled part of larger buffers, in [`storage_dtype`].
    """

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self._buffers: tuple[torch.Tensor, torch.Tensor] | None = None
        self._filled: tuple[Any, Any] = (None, None)
        self.keys: Any
        self.values: Any

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Appends `(b, h, n, dk)` and `(b, h, n, dv)`; returns all keys and values."""
        # A backward pass may need the current buffers, and an exported graph has no numbers for their capacity.
        if torch.is_grad_enabled() or torch.compiler.is_exporting():
            return super().update(key_states, value_states, *args, **kwargs)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        past = self.get_seq_length()
        new = key_states.shape[-2]
        buffers = self._own_buffers()
        if buffers is None or buffers[0].shape[-2] < past + new:
            # No spare room for the first positions: they may be the encoder's, which are all there will be.
            length = max(INITIAL_CAPACITY, 1 << (past + new - 1).bit_length() if past else new)
            buffers = _enlarged(self.keys, key_states, past, length), _enlarged(self.values, value_states, past, length)
        buffers[0].narrow(-2, past, new).copy_(key_states)
        buffers[1].narrow(-2, past, new).copy_(value_states)
        self._fill(buffers, past + new)
        return self.keys, self.values

    def _own_buffers(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The buffers, if they may be written to and keys and values still are their filled part."""
        if self.keys is not self._filled[0] or self.values is not self._filled[1] or self._buffers is None:
            return None
        # Tensors created in inference mode are read-only outside of it.
        return None if self._buffers[0].is_inference() and not torch.is_inference_mode_enabled() else self._buffers

    def _fill(self, buffers: tuple[torch.Tensor, torch.Tensor], length: int) -> None:
        self._buffers = buffers
        self.keys, self.values = self._filled = buffers[0].narrow(-2, 0, length), buffers[1].narrow(-2, 0, length)

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Replaces row `i` by row `beam_idx[i]`."""
        buffers = self._own_buffers()
        if buffers is None:
            super().reorder_cache(beam_idx)
        else:
            rows = beam_idx.to(buffers[0].device)
            self._fill((buffers[0].index_select(0, rows), buffers[1].index_select(0, rows)), self.get_seq_length())

    def crop(self, *args: Any, **kwargs: Any) -> None:
        """Removes the last positions; see the base class."""
        buffers = self._own_buffers()
        super().crop(*args, **kwargs)
        if buffers is not None:
            self._fill(buffers, self.keys.shape[-2])

    def offload(self) -> None:
        """Moves the filled part to the CPU."""
        self._buffers = None
        super().offload()

    def reset(self) -> None:
        """Removes all positions."""
        self._buffers = None
        super().reset()


def _enlarged(filled: torch.Tensor, states: torch.Tensor, past: int, length: int) -> torch.Tensor:
    """A buffer for `length` positions that begins with the `past` filled ones."""
    dtype = storage_dtype(states.dtype, states.device)
    buffer = states.new_empty((*states.shape[:-2], length, states.shape[-1]), dtype=dtype)
    if past:
        buffer.narrow(-2, 0, past).copy_(filled)
    return buffer


def growing(cache: Cache) -> Cache:
    """Gives an empty dynamic cache growing layers; does not change any other cache."""
    if type(cache) is not DynamicCache or cache.offloading:
        return cache
    if not cache.layers and cache.layer_class_to_replicate is DynamicLayer:
        cache.layer_class_to_replicate = GrowingLayer
    elif all(type(layer) is DynamicLayer and not layer.is_initialized for layer in cache.layers):
        cache.layers = [GrowingLayer() for _ in cache.layers]
    return cache
