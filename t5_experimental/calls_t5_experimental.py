# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Whether a fast path may read a module's weight instead of calling the module, and may read values.

Fast paths (linear layers by oneDNN, single decoding steps, the chunked loss) bypass module calls. That is correct only
if the call does nothing else, and if nothing observes the call or its operators: hooks, adapters, quantizers, engines
that gather weights when a module is called, operator counters, function transforms. All fast paths ask here.
"""

from typing import Any

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn.modules import module as hooks_of_all_modules
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack


OPERATOR_AGNOSTIC = "_t5_experimental_operator_agnostic"
"""Attribute of torch modes that do not depend on which operators compute a linear layer."""


def is_transformed() -> bool:
    """Whether `torch.func` transforms or forward-mode AD are active, which only torch's own operators support."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def is_traced() -> bool:
    """Whether something compiles, traces or transforms the pass, so that shapes must not depend on values."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing() or is_transformed()


def may_read_values(values: torch.Tensor, wait: bool = True) -> bool:
    """Whether shapes and branches may depend on values here: of a plain tensor, in a pass that nothing traces, captures
    or transforms, on a device that does not compile every new shape.

    Args:
        values: the tensor to read.
        wait: whether the CPU may wait for a CUDA device to compute it.
    """
    if type(values) not in (torch.Tensor, nn.Parameter) or is_traced():
        return False
    device = values.device.type
    return device == "cpu" or (wait and device == "cuda" and not torch.cuda.is_current_stream_capturing())


def is_autocast(device: torch.device) -> bool:
    """Whether autocast is enabled there; on the meta device, which has none, torch's own question is an error."""
    return device.type != "meta" and torch.is_autocast_enabled(device.type)


def is_observed() -> bool:
    """Whether something observes or changes calls or operators everywhere: transforms, torch modes such as
    `FlopCounterMode`, global module hooks. For compilation see [`is_traced`]."""
    return not torch.compiler.is_compiling() and (
        is_transformed()
        or bool(hooks_of_all_modules._has_any_global_hook())
        or (torch._C._len_torch_dispatch_stack() > 0 and _any_observes(_get_current_dispatch_mode_stack()))
        or (torch._C._len_torch_function_stack() > 0 and _any_observes(_get_current_function_mode_stack()))
    )


def _any_observes(modes: list[Any]) -> bool:
    # `torch.set_default_device` enters a mode that only sets the device of new tensors.
    return not all(type(mode) is DeviceContext or getattr(mode, OPERATOR_AGNOSTIC, False) for mode in modes)


def is_untouched(module: nn.Module, *types: type[nn.Module]) -> bool:
    """Whether a module has one of `types` exactly (parametrizations and adapters create subclasses), and its call runs
    only the `forward` of its class. Check [`is_observed`], too."""
    attributes = vars(module)  # wrappers put their own `forward` here
    return (
        type(module) in types
        and "forward" not in attributes
        and "__call__" not in attributes
        and module._compiled_call_impl is None
        and not any(hooks_of(module))
    )


def hooks_of(module: nn.Module) -> tuple[Any, ...]:
    """The dictionaries of a module's hooks, empty if there are none; a module keeps the same objects."""
    return (
        module._forward_pre_hooks,
        module._forward_hooks,
        module._backward_pre_hooks,
        module._backward_hooks,
    )


def is_bare_linear(linear: nn.Module) -> bool:
    """Whether calling `linear` is `states @ linear.weight.T`, with a weight that is a plain tensor."""
    return (
        not is_observed()
        and is_untouched(linear, nn.Linear)
        and linear.bias is None
        # Read the weight last: DeepSpeed's ZeRO-3 then gathers it, and all processes must take part, however many rows
        # each of them has.
        and type(linear.weight) in (nn.Parameter, torch.Tensor)
    )
