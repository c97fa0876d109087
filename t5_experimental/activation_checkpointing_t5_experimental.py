# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Activation checkpointing that keeps what attentions return.

A block that is checkpointed is computed twice. Of all that it computes, the outputs of its attentions are as small as
its input and take the longest per number, more so the longer the sequence: with them kept, the second pass is left with
projections, norms and feed-forward.
"""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.utils.checkpoint import create_selective_checkpoint_contexts

from .blockwise_attention_t5_experimental import attention_operator
from .calls_t5_experimental import LOOKS_AWAY


# Kernels of `F.scaled_dot_product_attention`, on processors and CUDA devices.
_KERNELS = (
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
)

OPTION = "keep_attention"
"""Of `gradient_checkpointing_kwargs`, beside those of `torch.utils.checkpoint.checkpoint`."""


def _contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """For the two passes: the first keeps what the attentions return, the second takes it from there."""
    kernels = [getattr(torch.ops.aten, name).default for name in _KERNELS if hasattr(torch.ops.aten, name)]
    contexts = create_selective_checkpoint_contexts([attention_operator(), *kernels])
    for mode in contexts:  # they are modes of torch, and let all but attentions pass
        setattr(mode, LOOKS_AWAY, True)
    return contexts


def with_kept_attention(function: Callable[..., Any]) -> Callable[..., Any]:
    """The checkpointing function that transformers made of its options, with [`OPTION`] put into effect.

    Raises:
        ValueError: the option goes along with reentrant checkpointing, which keeps nothing.
    """
    options = dict(getattr(function, "keywords", {}))
    wanted = options.pop(OPTION, None)
    if wanted is None or not isinstance(function, functools.partial):
        return function
    if wanted and options.get("use_reentrant", False):
        raise ValueError(f'"{OPTION}" needs checkpointing that is not reentrant: set "use_reentrant" to false.')
    options["use_reentrant"] = options.get("use_reentrant", False)
    if wanted:
        options["context_fn"] = _contexts
    return functools.partial(function.func, *function.args, **options)
