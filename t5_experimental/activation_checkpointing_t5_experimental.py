# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Activation checkpointing that keeps attention outputs.

Activation checkpointing runs each block twice. Attention outputs are only as large as the block's input, but the most
expensive part per element, and more so for long sequences. If they are kept, the second pass recomputes only
projections, norms and feed-forward.
"""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.utils.checkpoint import create_selective_checkpoint_contexts

from .blockwise_attention_t5_experimental import attention_operator
from .calls_t5_experimental import OPERATOR_AGNOSTIC


# Kernels of `F.scaled_dot_product_attention` on CPUs and CUDA devices.
_KERNELS = (
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
)

OPTION = "keep_attention"
"""Our key in `gradient_checkpointing_kwargs`, next to the arguments of `torch.utils.checkpoint.checkpoint`."""


def _contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """Context managers of the two passes: the first saves attention outputs, the second reuses them."""
    kernels = [getattr(torch.ops.aten, name).default for name in _KERNELS if hasattr(torch.ops.aten, name)]
    contexts = create_selective_checkpoint_contexts([attention_operator(), *kernels])
    for mode in contexts:  # torch modes that do not touch other operators
        setattr(mode, OPERATOR_AGNOSTIC, True)
    return contexts


def with_kept_attention(function: Callable[..., Any]) -> Callable[..., Any]:
    """Applies [`OPTION`] to the checkpointing function that transformers made from its options.

    Raises:
        ValueError: the option is combined with reentrant checkpointing, which cannot keep anything.
    """
    options = dict(getattr(function, "keywords", {}))
    wanted = options.pop(OPTION, None)
    if wanted is None or not isinstance(function, functools.partial):
        return function
    if wanted and options.get("use_reentrant", False):
        raise ValueError(f'"{OPTION}" needs non-reentrant checkpointing: set "use_reentrant" to false.')
    options["use_reentrant"] = options.get("use_reentrant", False)
    if wanted:
        options["context_fn"] = _contexts
    return functools.partial(function.func, *function.args, **options)
