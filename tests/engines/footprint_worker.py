# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""One of two processes: takes a step under an engine, and prints what it holds and what was counted, as JSON."""

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
import torch.distributed
from accelerate import Accelerator, DeepSpeedPlugin
from accelerate.utils import InitProcessGroupKwargs
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForSeq2SeqLM
from transformers.integrations import HfDeepSpeedConfig

from t5_experimental import preset_config
from t5_experimental.training.engines.engine import Engine, prepare_deepspeed_for_cpu
from t5_experimental.training.memory.activations import Step
from t5_experimental.training.memory.states import Setup, empty_model, estimate
from t5_experimental.training.optim.presets import OptimizerChoice, build_optimizer


# No head count or width that two processes could share evenly everywhere.
CONFIG = preset_config("t5.1.th.base", d_model=63, d_ff=161, d_kv=15, num_heads=5, num_layers=2, vocab_size=385)
IDS = torch.arange(3, 35).view(2, 16)


def size(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def states(optimizer: Any) -> int:
    values = (value for state in optimizer.state.values() for value in state.values())
    return size(getattr(value, "_local_tensor", value) for value in values)


def fsdp2() -> dict[str, int]:
    torch.distributed.init_process_group("gloo")
    model = AutoModelForSeq2SeqLM.from_config(CONFIG)
    for block in [*model.encoder.block, *model.decoder.block]:
        fully_shard(block)
    fully_shard(model)
    optimizer, _ = build_optimizer("adamw", model)
    model(input_ids=IDS, labels=IDS).loss.backward()
    optimizer.step()
    weights = [cast(Any, weight) for weight in model.parameters()]
    return {
        "parameters": size(weight.to_local() for weight in weights),
        "gradients": size(weight.grad.to_local() for weight in weights),
        "optimizer": states(optimizer),
    }


def deepspeed(stage: int, bf16: bool) -> dict[str, int]:
    prepare_deepspeed_for_cpu()
    settings = {
        "zero_optimization": {"stage": stage, "reduce_bucket_size": 100_000},
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": 1,
        "bf16": {"enabled": bf16},
    }
    plugin = DeepSpeedPlugin(hf_ds_config=settings)
    accelerator = Accelerator(
        mixed_precision="bf16" if bf16 else "no",
        deepspeed_plugin=plugin,
        kwargs_handlers=[InitProcessGroupKwargs(backend="gloo")],
    )
    zero3 = HfDeepSpeedConfig(plugin.hf_ds_config.config) if stage == 3 else None
    model = AutoModelForSeq2SeqLM.from_config(CONFIG, dtype=torch.float32)
    optimizer, _ = build_optimizer("adamw", model)
    engine, optimizer = accelerator.prepare(model, optimizer)
    accelerator.backward(engine(input_ids=IDS, labels=IDS).loss)  # and a step
    zero = engine.optimizer
    if zero3 is None:
        flat, masters, gradients = zero.bit16_groups_flat, zero.single_partition_of_fp32_groups, None
    else:
        weights = list(engine.module.parameters())
        flat = [weight.ds_tensor for weight in weights] + [weight.data for weight in weights if weight.ds_persist]
        masters, gradients = zero.fp32_partitioned_groups_flat, zero.grad_partitions_flat_buffer
    held = {"parameters": size(flat), "masters": size(masters), "optimizer": states(zero.optimizer)}
    return held if gradients is None else {**held, "gradients": gradients.nbytes}


def main(arguments: Sequence[str]) -> None:
    """Args:
    arguments: the engine, and "bf16" or "float32".
    """
    engine, precision = arguments
    bf16 = precision == "bf16"
    held = fsdp2() if engine == "fsdp2" else deepspeed(int(engine[-1]), bf16)
    setup = Setup(Engine.named(engine, torch.distributed.get_world_size()), OptimizerChoice("adamw"), bf16)
    counted = estimate(empty_model(CONFIG), CONFIG, setup, Step(2, 16, 16)).device
    if torch.distributed.get_rank() == 0:
        print(json.dumps({"held": held, "counted": {name: counted[name] for name in held}}), flush=True)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1:])
