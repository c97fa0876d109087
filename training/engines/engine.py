# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""What several processes need beside the models: the settings of an engine where there is no GPU, the certainty that
what was asked for is what runs, and how much of a model each process holds.

`accelerate` itself goes on without a word where it cannot do what it was asked: with `--use_cpu` it leaves FSDP and
DeepSpeed out, and without a GPU it lets processes train side by side that never exchange a gradient.
"""

import os
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.training_args import OptimizerNames
from transformers.utils import is_torch_xla_available

from ..errors import TrainingError
from .hooks import hooks_for
from .xla import devices_of_a_step, spread_steps


_NAMES = {DistributedType.DEEPSPEED: "DeepSpeed", DistributedType.FSDP: "FSDP"}

# Adafactor and `rms_adamw` take means over whole parameters; AdamW needs no more than every number's own history.
OF_WHOLE_PARAMETERS = (
    "--optim adafactor",
    "--optimizer_preset finetune",
    "--optimizer_preset pretrain",
    "--optimizer_preset rms_adamw",
)

# What DeepSpeed compiles for processes on a CPU: an addition that only its inference uses.
_UNUSED_OPERATOR = "deepspeed_shm_comm"


def wanted_engine(args: TrainingArguments) -> DistributedType | None:
    """Which of the engines that cut models up the launcher, or an option, asked for; None for neither."""
    for engine, option in ((DistributedType.DEEPSPEED, args.deepspeed), (DistributedType.FSDP, args.fsdp)):
        if option or _is_true(f"ACCELERATE_USE_{engine.name}"):
            return engine
    return None


def _is_true(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("1", "true")


def settle_engine(args: TrainingArguments, is_spread: bool = False) -> None:
    """Sets what the engine of a run needs where there is no GPU; comes before transformers sets its own.

    Args:
        args: of the run.
        is_spread: `--xla_spmd`.

    Raises:
        TrainingError: the options turn the engine off, or it cannot be had.
    """
    engine = wanted_engine(args)
    if engine is not None and (args.use_cpu or _is_true("ACCELERATE_USE_CPU")):
        name = _NAMES[engine]
        raise TrainingError(
            f"--use_cpu, or use_cpu in the launcher's configuration, turns {name} off: leave it out (DeepSpeed runs on "
            "the CPU of a machine without GPUs anyway), or take configs/ddp.yaml."
        )
    _settle_xla(args, is_spread)
    if torch.accelerator.is_available() or is_torch_xla_available():
        return
    if engine == DistributedType.FSDP:
        raise TrainingError(
            "FSDP spreads a model over GPUs, and torch finds none here: take configs/ddp.yaml or one of the "
            "deepspeed configs, which train on the CPU, too, or install a build of torch for the hardware."
        )
    if engine == DistributedType.DEEPSPEED:
        prepare_deepspeed_for_cpu()
        args.dataloader_pin_memory = False
    elif engine is None:
        args.use_cpu = True  # otherwise accelerate lets each process train on its own
    if "LOCAL_RANK" in os.environ and args.ddp_backend is None:
        args.ddp_backend = "gloo"


def _settle_xla(args: TrainingArguments, is_spread: bool) -> None:
    """Has XLA divide steps among its devices, if that is asked for; comes before anything is on a device."""
    if args.fsdp and "xla" in str(args.fsdp_config):
        raise TrainingError(
            "transformers' FSDP for XLA knows decoders only: leave --fsdp and --fsdp_config out, and give --xla_spmd."
        )
    if not is_spread:
        return
    if not is_torch_xla_available():
        raise TrainingError("--xla_spmd needs the package torch_xla: install it, or leave the option out.")
    spread_steps()


def optimizer_option(preset: str | None, optim: OptimizerNames | str) -> str:
    """The option that chose the optimizer: a preset of ours, or else what transformers calls it."""
    return f"--optim {OptimizerNames(optim).value}" if preset is None else f"--optimizer_preset {preset}"


def check_optimizer(args: TrainingArguments, preset: str | None) -> None:
    """Refuses optimizers that take means over whole parameters where DeepSpeed cuts these into flat pieces.

    Args:
        args: with transformers' own settings made.
        preset: `--optimizer_preset`.

    Raises:
        TrainingError: it is one of them.
    """
    plugin = args.deepspeed_plugin
    if plugin is None or plugin.zero_stage == 0:
        return
    name = optimizer_option(preset, args.optim)
    if name in OF_WHOLE_PARAMETERS:
        raise TrainingError(
            f"{name} takes means over whole parameters, of which DeepSpeed's ZeRO-{plugin.zero_stage} leaves pieces: "
            "choose --optimizer_preset adamw (in prompt_tune --optim adamw_torch), or another of the configs."
        )


def prepare_deepspeed_for_cpu() -> None:
    """Has DeepSpeed run on the CPU, and compile nothing for it."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    # It would need a compiler, and a minute.
    deepspeed.ops.__compatible_ops__[_UNUSED_OPERATOR] = False
    # Said in every step; torch 2.13 has other names for what deepspeed 0.19 calls.
    warnings.filterwarnings("ignore", "`torch.distributed.*` is deprecated", FutureWarning)


def check_engine(args: TrainingArguments, accelerator: Accelerator) -> None:
    """Makes sure that the engine that was asked for is at work, on all the processes that were started.

    Raises:
        TrainingError: it is not.
    """
    wanted, active, processes = wanted_engine(args), accelerator.distributed_type, accelerator.num_processes
    if wanted is not None and active != wanted:
        raise TrainingError(
            f"{_NAMES[wanted]} was asked for, but accelerate runs {describe_engine(accelerator)}: start the script "
            "with `accelerate launch`; FSDP needs GPUs, where DeepSpeed also takes CPUs."
        )
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != processes and not is_torch_xla_available():
        raise TrainingError(
            f"{started} processes were started, but accelerate knows of {processes}: each would train on its own; give "
            "--ddp_backend gloo, or start the script with one of the files in configs."
        )


def describe_engine(accelerator: Accelerator) -> str:
    """The engine that is at work, and its processes, in a few words."""
    active, state = accelerator.distributed_type, accelerator.state
    if active == DistributedType.DEEPSPEED:
        plugin = state.deepspeed_plugin
        places = {"optimizer": plugin.offload_optimizer_device, "parameters": plugin.offload_param_device}
        moved = [f"{what} on {device}" for what, device in places.items() if device not in (None, "none")]
        name = ", ".join([f"DeepSpeed ZeRO-{plugin.zero_stage}", *moved])
    elif active == DistributedType.FSDP:
        name = f"FSDP{state.fsdp_plugin.fsdp_version}"
    elif active == DistributedType.XLA:
        devices = devices_of_a_step()
        name = f"XLA, each step on {devices} devices" if devices > 1 else "XLA"
    else:
        name = "none" if accelerator.num_processes == 1 else "data parallelism"
    backend = "" if state.backend is None else f" over {state.backend}"
    return f"{name}, {accelerator.num_processes} process(es) on {accelerator.device.type}{backend}"


def parameter_bytes(model: torch.nn.Module) -> tuple[int, int]:
    """Bytes of a model's parameters that this process (with XLA, each of its devices) holds, and of the whole model.

    Under DeepSpeed's ZeRO-3 small parameters, which it leaves whole once it has gathered them, count twice: its part of
    them is a tensor of its own.
    """
    held = whole = 0
    for parameter in model.parameters():
        whole += getattr(parameter, "ds_numel", parameter.numel()) * parameter.element_size()
        for part in (parameter, getattr(parameter, "ds_tensor", None)):
            held += 0 if part is None else hooks_for(part.device).local_bytes(part)
    return held, whole


def optimizer_bytes(optimizer: Any) -> int:
    """Bytes of an optimizer's state that this process holds, without copies of parameters that an engine keeps."""
    while not isinstance(state := getattr(optimizer, "state", None), dict) or hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return sum(hooks_for(value.device).local_bytes(value) for value in _tensors(state))


def _tensors(values: dict[Any, Any]) -> Iterator[torch.Tensor]:
    for value in values.values():
        if isinstance(value, dict):
            yield from _tensors(value)
        elif isinstance(value, torch.Tensor):
            yield value


class SayPartsCallback(TrainerCallback):
    """Says, when the engine has taken the model over, how much of it the first process holds."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **unused: Any
    ) -> None:
        if state.is_world_process_zero:
            held, whole = parameter_bytes(model)
            who = hooks_for(next(model.parameters()).device).holder
            print(f"{'parts':<11} {who} holds {held:,} of {whole:,} bytes of parameters", flush=True)
