# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Run by several processes: steps of an optimizer on parameters that are spread by rows, beside the same steps on whole
ones. Each process prints its largest differences and how many collectives a step took."""

import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode

from t5_experimental.training.engines import fsdp2 as sharding
from t5_experimental.training.optim import adafactor as adafactor_module
from t5_experimental.training.optim.adafactor import Adafactor, Axes
from t5_experimental.training.optim.rms_adamw import RMSScaledAdamW


FACTORED = 6
STEPS = 3

# Shape, and how the original has it: its shape with all axes, and their order.
SHAPES: dict[str, tuple[tuple[int, ...], Axes]] = {
    "rows for all": ((12, 8), Axes((12, 8), (0, 1))),
    "fewer rows for the last": ((10, 7), Axes((10, 7), (1, 0))),
    "columns are more": ((7, 10), Axes((7, 10), (0, 1))),
    "square": ((8, 8), Axes((8, 8), (0, 1))),
    "square, turned": ((8, 8), Axes((8, 8), (1, 0))),
    "not factored": ((5, 20), Axes((5, 20), (0, 1))),
    "no rows for some": ((2, 9), Axes((2, 9), (1, 0))),
    "a vector": ((11,), Axes((11,), (0,))),
    "one number": ((1,), Axes((1,), (0,))),
    # Talking heads: (heads * d, d_model) and (d_model, heads * d).
    "means over heads": ((7 * 6, 5), Axes((7, 6, 5), (2, 0, 1))),
    "means over heads and inputs": ((7 * 3, 9), Axes((7, 3, 9), (2, 0, 1))),
    "means over the size of heads": ((3 * 8, 9), Axes((3, 8, 9), (2, 0, 1))),
    "outputs": ((9, 2 * 7), Axes((9, 2, 7), (1, 2, 0))),
    "outputs, over heads": ((5, 7 * 8), Axes((5, 7, 8), (1, 2, 0))),
}

Make = Callable[[list[Any]], torch.optim.Optimizer]


def adafactor(parameters: list[Any], states: bool = False) -> Adafactor:
    axes = dict(zip(parameters, [axes for _, axes in SHAPES.values()], strict=True))
    optimizer = Adafactor(parameters, 0.03, axes, min_dim_size_to_factor=FACTORED)
    if states:
        optimizer.begin_with({p: given_state(optimizer, p, place) for place, p in enumerate(parameters)})
    return optimizer


def given_state(optimizer: Adafactor, parameter: torch.Tensor, place: int) -> dict[str, torch.Tensor]:
    """Numbers as the slots of a checkpoint might have them, the same on every process."""
    generator = torch.Generator().manual_seed(place)
    fresh = optimizer.fresh_state(parameter, optimizer.param_groups[0], place)
    state = {name: torch.rand(value.shape, generator=generator, dtype=value.dtype) for name, value in fresh.items()}
    return {"step": torch.tensor(1000.0), **state}


OPTIMIZERS: dict[str, Make] = {
    "adafactor": adafactor,
    "adafactor with slots": lambda parameters: adafactor(parameters, states=True),
    "rms_adamw": lambda parameters: RMSScaledAdamW(parameters, 0.03, weight_decay=0.1),
}


def local_root_mean_square(values: torch.Tensor) -> torch.Tensor:
    """Of this process's rows alone."""
    local = values.to_local() if isinstance(values, DTensor) else values
    return torch.linalg.vector_norm(local) / max(1, local.numel()) ** 0.5


def local_mean_over(values: torch.Tensor, axis: int) -> torch.Tensor:
    if not isinstance(values, DTensor):
        return values.mean(axis, keepdim=True)
    if axis > 0 or values.placements[-1] == Replicate():
        return sharding.mean_over(values, axis)
    local = values.to_local()
    mean = local.sum(0, keepdim=True) / max(1, len(local))
    return DTensor.from_local(mean, values.device_mesh, [Replicate()] * values.device_mesh.ndim, run_check=False)


MISTAKES: dict[str, tuple[str, Any]] = {
    "root mean squares of a process's rows": ("root_mean_square", local_root_mean_square),
    "means of a process's rows": ("mean_over", local_mean_over),
}


def differences(make: Make, mesh: Any, placements: list[Any], dtype: torch.dtype) -> tuple[float, dict[str, int]]:
    """Largest difference of a parameter, relative to its largest number, and the collectives of the last step."""
    torch.manual_seed(0)
    wholes = [torch.nn.Parameter(torch.randn(shape, dtype=dtype)) for shape, _ in SHAPES.values()]
    before = [whole.detach().clone() for whole in wholes]
    on_whole, on_parts = make(wholes), make([torch.nn.Parameter(whole.detach().clone()) for whole in wholes])
    parts = [torch.nn.Parameter(distribute_tensor(values, mesh, placements)) for values in before]
    on_parts.param_groups[0]["params"] = parts  # as accelerate does
    for _ in range(STEPS):
        for whole, part in zip(wholes, parts, strict=True):
            # Rows of unequal size: a process's own statistics are far from those of all.
            rows = torch.logspace(-2, 1, len(whole), dtype=dtype).reshape(-1, *[1] * (whole.ndim - 1))
            whole.grad = torch.randn_like(whole) * rows
            part.grad = distribute_tensor(whole.grad, mesh, placements)
        on_whole.step()
        with CommDebugMode() as collectives:
            on_parts.step()
    difference = 0.0
    for whole, part, start in zip(wholes, parts, before, strict=True):
        assert not torch.equal(whole, start)
        difference = max(difference, float((part.full_tensor() - whole).abs().max() / whole.abs().max()))
        for name, value in on_parts.state[part].items():
            assert name == "step" or isinstance(value, DTensor), name
            own = value.full_tensor() if isinstance(value, DTensor) else value
            expected = on_whole.state[whole][name]
            difference = max(difference, float((own - expected).abs().max() / expected.abs().max()))
    counts = {str(operation): number for operation, number in collectives.get_comm_counts().items()}
    return difference, counts


def main(unused: Sequence[str] = ()) -> None:
    torch.distributed.init_process_group("gloo")
    size = torch.distributed.get_world_size()
    mesh, shards = torch.distributed.init_device_mesh("cpu", (size,)), [Shard(0)]
    found: dict[str, Any] = {"mistakes": {}}
    for name, make in OPTIMIZERS.items():
        found[f"{name}, float64"] = differences(make, mesh, shards, torch.float64)
    found["adafactor, float32"] = differences(adafactor, mesh, shards, torch.float32)
    replicas = torch.distributed.init_device_mesh("cpu", (1, size))
    found["adafactor on replicas, float64"] = differences(adafactor, replicas, [Replicate(), Shard(0)], torch.float64)
    for mistake, (function, wrong) in MISTAKES.items():
        right = getattr(adafactor_module, function)
        setattr(adafactor_module, function, wrong)
        found["mistakes"][mistake], _ = differences(adafactor, mesh, shards, torch.float64)
        setattr(adafactor_module, function, right)
    gathered: list[Any] = [None] * size
    torch.distributed.all_gather_object(gathered, found)
    if torch.distributed.get_rank() == 0:
        json.dump(gathered, sys.stdout)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
