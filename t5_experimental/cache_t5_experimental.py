# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""The decoder's own keys and values, kept with room for those to come."""

from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer


ROOM = 64
"""Positions that a layer has room for at first."""


def storage_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """In what keys and values of a dtype are kept: on CPUs in at least float32.

    With one query, `scaled_dot_product_attention` of torch 2.13 takes a CPU up to five times as long in half precision.
    """
    return torch.promote_types(dtype, torch.float32) if device.type == "cpu" else dtype


class GrowingLayer(DynamicLayer):
    """A layer of a dynamic cache that writes new positions behind the old ones and copies none, until its room is full
    and doubles.

    `keys` `(b, h, m, dk)` and `values` `(b, h, m, dv)` are the filled part of the room, in [`storage_dtype`].
    """

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self._rooms: tuple[torch.Tensor, torch.Tensor] | None = None
        self._filled: tuple[Any, Any] = (None, None)
        self.keys: Any
        self.values: Any

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Appends `(b, h, n, dk)` and `(b, h, n, dv)`; returns all keys and values."""
        if torch.is_grad_enabled():  # a backward pass may need what is here now
            return super().update(key_states, value_states, *args, **kwargs)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        past = self.get_seq_length()
        new = key_states.shape[-2]
        rooms = self._own_rooms()
        if rooms is None or rooms[0].shape[-2] < past + new:
            # What comes all at once may be all that comes: the encoder's keys and values.
            length = max(ROOM, 1 << (past + new - 1).bit_length() if past else new)
            rooms = _enlarged(self.keys, key_states, past, length), _enlarged(self.values, value_states, past, length)
        rooms[0].narrow(-2, past, new).copy_(key_states)
        rooms[1].narrow(-2, past, new).copy_(value_states)
        self._fill(rooms, past + new)
        return self.keys, self.values

    def _own_rooms(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The rooms, if keys and values still are their filled part and they may be written to."""
        if self.keys is not self._filled[0] or self.values is not self._filled[1] or self._rooms is None:
            return None
        # Outside of inference mode, what was made inside is constant.
        return None if self._rooms[0].is_inference() and not torch.is_inference_mode_enabled() else self._rooms

    def _fill(self, rooms: tuple[torch.Tensor, torch.Tensor], length: int) -> None:
        self._rooms = rooms
        self.keys, self.values = self._filled = rooms[0].narrow(-2, 0, length), rooms[1].narrow(-2, 0, length)

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Row `i` becomes what row `beam_idx[i]` was."""
        rooms = self._own_rooms()
        if rooms is None:
            super().reorder_cache(beam_idx)
        else:
            rows = beam_idx.to(rooms[0].device)
            self._fill((rooms[0].index_select(0, rows), rooms[1].index_select(0, rows)), self.get_seq_length())

    def crop(self, *args: Any, **kwargs: Any) -> None:
        """Forgets the last positions; arguments as of the class that this extends."""
        rooms = self._own_rooms()
        super().crop(*args, **kwargs)
        if rooms is not None:
            self._fill(rooms, self.keys.shape[-2])

    def offload(self) -> None:
        """Moves the filled part to the CPU."""
        self._rooms = None
        super().offload()

    def reset(self) -> None:
        """Forgets everything."""
        self._rooms = None
        super().reset()


def _enlarged(filled: torch.Tensor, states: torch.Tensor, past: int, length: int) -> torch.Tensor:
    """Room for `length` positions that begins with the `past` filled ones."""
    dtype = storage_dtype(states.dtype, states.device)
    room = states.new_empty((*states.shape[:-2], length, states.shape[-1]), dtype=dtype)
    if past:
        room.narrow(-2, 0, past).copy_(filled)
    return room


def with_room(cache: Cache) -> Cache:
    """Gives an empty dynamic cache layers that grow; any other cache stays as it is."""
    if type(cache) is not DynamicCache or cache.offloading:
        return cache
    if not cache.layers and cache.layer_class_to_replicate is DynamicLayer:
        cache.layer_class_to_replicate = GrowingLayer
    elif all(type(layer) is DynamicLayer and not layer.is_initialized for layer in cache.layers):
        cache.layers = [GrowingLayer() for _ in cache.layers]
    return cache
