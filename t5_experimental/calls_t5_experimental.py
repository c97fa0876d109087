# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Who looks on: whether a module's call may be replaced by its arithmetic.

Fast paths (products of oneDNN, decoding step by step, the loss without logits) use a module's weight and leave out its
call. That is right only as long as the call is nothing but the arithmetic, and as long as nothing wants to see the call
or the operators of torch that it consists of: hooks, adapters, quantizers, engines that bring weights when a module is
called, counters of operators, transforms of functions. All fast paths ask here.
"""

from typing import Any

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn.modules import module as hooks_of_all_modules
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack


LOOKS_AWAY = "_t5_experimental_looks_away"
"""Attribute of a mode to which it makes no difference which operators compute a product."""


def is_transformed() -> bool:
    """Whether functions are transformed (`torch.func`) or derived forward, for which only torch's own operators have
    rules."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def is_traced() -> bool:
    """Whether something compiles, traces or transforms the pass, so that no shape may depend on numbers."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing() or is_transformed()


def may_read_values(values: torch.Tensor, wait: bool = True) -> bool:
    """Whether shapes and branches may depend on the numbers in `values`: a plain tensor, in a pass that nothing traces,
    captures or transforms, on a device that does not compile every new shape.

    Args:
        values: what would be read.
        wait: whether the CPU may wait for a CUDA device to compute them.
    """
    if type(values) not in (torch.Tensor, nn.Parameter) or is_traced():
        return False
    device = values.device.type
    return device == "cpu" or (wait and device == "cuda" and not torch.cuda.is_current_stream_capturing())


def is_watched() -> bool:
    """Whether something may see or change single calls or operators wherever they occur: transforms, modes of torch
    (`FlopCounterMode`), hooks on all modules. A compiler asks for itself ([`is_traced`])."""
    return not torch.compiler.is_compiling() and (
        is_transformed()
        or bool(hooks_of_all_modules._has_any_global_hook())
        or (torch._C._len_torch_dispatch_stack() > 0 and _any_looks(_get_current_dispatch_mode_stack()))
        or (torch._C._len_torch_function_stack() > 0 and _any_looks(_get_current_function_mode_stack()))
    )


def _any_looks(modes: list[Any]) -> bool:
    # `torch.set_default_device` enters a mode, which only tells factories where to make tensors.
    return not all(type(mode) is DeviceContext or getattr(mode, LOOKS_AWAY, False) for mode in modes)


def is_untouched(module: nn.Module, *types: type[nn.Module]) -> bool:
    """Whether a module is of one of `types` (not of a subclass, as parametrizations and adapters make them), and its
    call runs nothing but its class's `forward`; [`is_watched`] comes on top of it."""
    attributes = vars(module)  # where wrappers put what is called instead
    return (
        type(module) in types
        and "forward" not in attributes
        and "__call__" not in attributes
        and module._compiled_call_impl is None
        and not any(hooks_of(module))
    )


def hooks_of(module: nn.Module) -> tuple[Any, ...]:
    """What holds a module's hooks, one empty where there are none of its kind; the objects stay the same."""
    return (
        module._forward_pre_hooks,
        module._forward_hooks,
        module._backward_pre_hooks,
        module._backward_hooks,
    )


def is_bare_linear(linear: nn.Module) -> bool:
    """Whether calling `linear` is `states @ linear.weight.T`, with a weight that is a plain tensor."""
    return (
        not is_watched()
        and is_untouched(linear, nn.Linear)
        and linear.bias is None
        # The look at the weight comes last: DeepSpeed's ZeRO-3 gathers it then, and all processes have to take part,
        # whatever the number of rows that each of them has.
        and type(linear.weight) in (nn.Parameter, torch.Tensor)
    )
