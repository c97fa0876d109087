# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""What the optimizers here share: parameters in groups, and means over parameters that may be sharded."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from typing import Any, TypeAlias

import torch
from torch.optim import Optimizer

from ..engines.fsdp2 import placed_with, refuse, refuse_parts
from .slots import State


_SCALE_EPSILON = 1e-3


_ParameterGroups: TypeAlias = Iterable[torch.Tensor] | Iterable[dict[str, Any]]


class _FullParameterOptimizer(Optimizer, ABC):
    """Base class of optimizers whose update of a value depends on the other values of its parameter.

    State has at least float32 precision, regardless of the parameter's dtype; `step` counts a parameter's updates and
    stays on the CPU. FSDP2 replaces parameters by DTensors between construction and the first step; their state becomes
    DTensors, too. So per-parameter data is indexed by the position in the groups.

    Attributes:
        first_states: initial states by position; parameters without one start with a fresh state.
    """

    def __init__(self, parameters: _ParameterGroups, defaults: dict[str, Any]):
        self._shapes: list[torch.Size] = []
        self.first_states: dict[int, State] = {}
        super().__init__(parameters, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        self._shapes += [parameter.shape for parameter in self.param_groups[-1]["params"]]

    def begin_with(self, states: Mapping[torch.Tensor, State]) -> None:
        """Sets initial states, including `step`, of parameters that have not been updated yet."""
        self.first_states = {
            place: dict(states[parameter])
            for place, (parameter, _) in enumerate(self._members())
            if parameter in states
        }

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Updates all parameters that have a gradient.

        Raises:
            TrainingError: an engine has flattened and sharded a parameter.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for place, (parameter, group) in enumerate(self._members()):
            if parameter.grad is not None:
                self._update(parameter, group, place)
        return loss

    def _members(self) -> Iterator[tuple[torch.Tensor, dict[str, Any]]]:
        """All parameters, each with its group, in the order of their positions."""
        for group in self.param_groups:
            for parameter in group["params"]:
                yield parameter, group

    def _update(self, parameter: torch.Tensor, group: Mapping[str, Any], place: int) -> None:
        state = self.state[parameter]
        if not state:
            # ZeRO-1 and 2 put flat shards there.
            if parameter.shape != self._shapes[place]:
                refuse()
            refuse_parts([parameter])
            first = self.first_states.pop(place, None) or self.fresh_state(parameter, group, place)
            state["step"] = first.pop("step", torch.tensor(0.0))
            state.update({name: placed_with(value, parameter) for name, value in first.items()})
        wide = torch.promote_types(parameter.dtype, torch.float32)
        values = parameter.to(wide)
        self.update(values, parameter.grad.to(wide), state, group)  # type: ignore[union-attr]
        state["step"] += 1
        if values is not parameter:
            parameter.copy_(values)

    @abstractmethod
    def fresh_state(self, parameter: torch.Tensor, group: Mapping[str, Any], place: int) -> State:
        """State, without `step`, of the parameter at a position before its first update."""

    @abstractmethod
    def update(self, values: torch.Tensor, gradient: torch.Tensor, state: State, group: Mapping[str, Any]) -> None:
        """Changes `values` and `state` in place; `state["step"]` is the number of previous updates."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        # torch has cast the states to the dtypes of the parameters, and has not moved `step`.
        saved = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        own = chain.from_iterable(group["params"] for group in self.param_groups)
        for place, (index, parameter) in enumerate(zip(saved, own, strict=True)):
            # accelerate loads the empty state of a new optimizer, which must not cost it what it begins with.
            if index in state_dict["state"]:
                self.first_states.pop(place, None)
                self.state[parameter] = {
                    name: value.to("cpu" if name == "step" else parameter.device, copy=True)
                    for name, value in state_dict["state"][index].items()
                }
