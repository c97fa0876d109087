# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""The engine of a run: how it uses several processes, and what that means for models and optimizers.

`accelerate` silently ignores what it cannot do: with `--use_cpu` it skips FSDP and DeepSpeed, and without a GPU it lets
processes train side by side that never exchange a gradient. The checks here refuse such runs.
"""

import os
import warnings
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, cast

import torch
from accelerate import Accelerator
from transformers import TrainingArguments
from transformers.utils import is_torch_xla_available

from ..errors import TrainingError
from .xla import enable_spmd, is_xla, spmd_devices


Kind = Literal["single", "ddp", "fsdp", "deepspeed", "xla"]

# The only operator that DeepSpeed compiles for CPU processes: an all-reduce that only its inference uses.
_UNUSED_OPERATOR = "deepspeed_shm_comm"

_TITLES: dict[Kind, str] = {"deepspeed": "DeepSpeed", "fsdp": "FSDP"}


class ChosenOptimizer(Protocol):
    """What an engine asks about the optimizer of a run."""

    @property
    def option(self) -> str:
        """The option that chose it, for messages."""

    @property
    def takes_means(self) -> bool:
        """Whether it takes means over entire parameters; AdamW needs only the history of each value."""

    @property
    def knows_shards(self) -> bool:
        """Whether these means are right for parameters that FSDP2 shards by rows."""


@dataclass(frozen=True)
class Engine:
    """How a run uses several processes. Made once per run, see [`engine_of`].

    Attributes:
        kind: `"single"` is one process without any of the others.
        stage: of DeepSpeed's ZeRO, or the version of FSDP; 0 for the other kinds.
        processes: of all machines together.
        offload: what DeepSpeed keeps elsewhere, as pairs such as `("optimizer", "cpu")`.
        devices: that compute a step together in one process (XLA's SPMD).
    """

    kind: Kind = "single"
    stage: int = 0
    processes: int = 1
    offload: tuple[tuple[str, str], ...] = ()
    devices: int = 1

    @classmethod
    def named(cls, config: str, processes: int = 1) -> "Engine":
        """The engine of one of [`CONFIGS`]."""
        return replace(CONFIGS[config], processes=processes)

    @property
    def name(self) -> str:
        """Its name in messages and checkpoints."""
        if self.kind == "deepspeed":
            return f"DeepSpeed ZeRO-{self.stage}"
        if self.kind == "fsdp":
            return f"FSDP{self.stage}"
        return {"xla": "XLA", "ddp": "data parallelism"}.get(self.kind, "none")

    @property
    def config(self) -> str:
        """The one of [`CONFIGS`] that is closest."""
        if self.kind == "deepspeed" and self.stage >= 3:
            return "deepspeed_zero3_offload" if self.offload else "deepspeed_zero3"
        if self.kind in ("deepspeed", "fsdp"):
            return "deepspeed_zero2" if self.kind == "deepspeed" else "fsdp2"
        return "ddp" if self.kind == "ddp" or self.processes > 1 else "single"

    @property
    def is_deepspeed(self) -> bool:
        return self.kind == "deepspeed"

    @property
    def is_fsdp2(self) -> bool:
        return self.kind == "fsdp" and self.stage == 2

    @property
    def keeps_parameters_whole(self) -> bool:
        """Whether each process holds all parameters between two steps."""
        return self.kind != "fsdp" and not (self.is_deepspeed and self.stage >= 3)

    @property
    def shards_state(self) -> bool:
        """Whether the optimizer's state, and so a checkpoint, belongs to this engine alone."""
        return self.kind in ("fsdp", "deepspeed")

    @property
    def reads_in_parts(self) -> bool:
        """Whether each process can read just its own shard of the weights."""
        return self.is_fsdp2

    def allows(self, optimizer: ChosenOptimizer) -> bool:
        """Whether the optimizer's updates are right under this engine."""
        if not optimizer.takes_means or not self.shards_state or (self.is_deepspeed and not self.stage):
            return True
        return self.is_fsdp2 and optimizer.knows_shards

    def check(self, optimizer: ChosenOptimizer) -> None:
        """Refuses an optimizer that the engine does not allow.

        Raises:
            TrainingError: it takes means over entire parameters, which the engine shards.
        """
        if self.allows(optimizer):
            return
        option = optimizer.option
        if self.is_deepspeed:
            raise TrainingError(
                f"{option} takes means over full parameters, but DeepSpeed's ZeRO-{self.stage} flattens and shards "
                "them: choose --optimizer_preset adamw (in prompt_tune --optim adamw_torch), or another config."
            )
        if self.is_fsdp2:
            raise TrainingError(
                f"FSDP shards parameters across processes, which {option} (the default) does not support: choose "
                "--optimizer_preset finetune, the original's Adafactor, or --optimizer_preset adamw."
            )
        raise TrainingError(
            f"FSDP1 flattens and shards parameters, but {option} takes means over rows and columns of full ones: "
            "choose --optimizer_preset adamw (in prompt_tune --optim adamw_torch), or another engine "
            "(training/configs/fsdp2.yaml or ddp.yaml)."
        )

    def describe(self, accelerator: Accelerator) -> str:
        """A short description: engine, processes, devices."""
        moved = [f"{what} on {device}" for what, device in self.offload]
        together = [f"each step on {self.devices} devices"] if self.devices > 1 else []
        backend = "" if accelerator.state.backend is None else f" over {accelerator.state.backend}"
        place = f"{self.processes} process(es) on {accelerator.device.type}{backend}"
        return ", ".join([self.name, *moved, *together, place])


CONFIGS: dict[str, Engine] = {
    "single": Engine(),
    "ddp": Engine("ddp"),
    "fsdp2": Engine("fsdp", 2),
    "deepspeed_zero2": Engine("deepspeed", 2),
    "deepspeed_zero3": Engine("deepspeed", 3),
    "deepspeed_zero3_offload": Engine("deepspeed", 3, offload=(("optimizer", "cpu"), ("parameters", "cpu"))),
}
"""Engines by the name of their file in `training/configs`."""


def requested_engine(args: TrainingArguments) -> Kind | None:
    """Which of the engines that shard models the launcher or an option asks for; None for neither."""
    options: tuple[tuple[Kind, Any], ...] = (("deepspeed", args.deepspeed), ("fsdp", args.fsdp))
    for kind, option in options:
        if option or _is_true(f"ACCELERATE_USE_{kind.upper()}"):
            return kind
    return None


def _is_true(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("1", "true")


def engine_of(args: TrainingArguments) -> Engine:
    """The engine of a run.

    Args:
        args: of the run, after transformers' own `__post_init__`, which knows the processes and DeepSpeed's plugin.
    """
    kind, processes, plugin = requested_engine(args), args.world_size, cast(Any, args.deepspeed_plugin)
    if plugin is not None:
        places = {"optimizer": plugin.offload_optimizer_device, "parameters": plugin.offload_param_device}
        offload = tuple((what, device) for what, device in places.items() if device not in (None, "none"))
        return Engine("deepspeed", plugin.zero_stage, processes, offload)
    if kind == "fsdp":
        version = (args.fsdp_plugin_args or {}).get("fsdp_version", os.environ.get("FSDP_VERSION", 1))
        return Engine("fsdp", int(version), processes)
    if is_xla(args.device):
        return Engine("xla", processes=processes, devices=spmd_devices())
    return Engine("ddp" if processes > 1 else "single", processes=processes)


def prepare_engine(args: TrainingArguments, is_spmd: bool = False) -> None:
    """Sets what the engine needs on a machine without GPUs. Call this before transformers' own `__post_init__`.

    Args:
        args: of the run.
        is_spmd: `--xla_spmd`.

    Raises:
            TrainingError: the options turn the engine off, or it is not available.
    """
    kind = requested_engine(args)
    if kind is not None and (args.use_cpu or _is_true("ACCELERATE_USE_CPU")):
        raise TrainingError(
            f"--use_cpu, or use_cpu in the launcher's configuration, turns {_TITLES[kind]} off: leave it out "
            "(DeepSpeed runs on the CPU of a machine without GPUs anyway), or take configs/ddp.yaml."
        )
    _prepare_xla(args, is_spmd)
    if torch.accelerator.is_available() or is_torch_xla_available():
        return
    if kind == "fsdp":
        raise TrainingError(
            "FSDP shards a model across GPUs, and torch finds none here: use configs/ddp.yaml or one of the deepspeed "
            "configs, which also train on CPUs, or install a build of torch for the hardware."
        )
    if kind == "deepspeed":
        prepare_deepspeed_for_cpu()
        args.dataloader_pin_memory = False
    else:
        args.use_cpu = True  # otherwise accelerate lets each process train on its own
    if "LOCAL_RANK" in os.environ and args.ddp_backend is None:
        args.ddp_backend = "gloo"


def _prepare_xla(args: TrainingArguments, is_spmd: bool) -> None:
    """Lets XLA shard steps across its devices if the options ask for it. Call this before anything is on a device."""
    if args.fsdp and "xla" in str(args.fsdp_config):
        raise TrainingError(
            "transformers' FSDP for XLA only supports decoders: leave --fsdp and --fsdp_config out, give --xla_spmd."
        )
    if not is_spmd:
        return
    if not is_torch_xla_available():
        raise TrainingError("--xla_spmd needs the package torch_xla: install it, or leave the option out.")
    enable_spmd()


def prepare_deepspeed_for_cpu() -> None:
    """Makes DeepSpeed run on the CPU without compiling anything."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    # Compiling needs a compiler, and a minute.
    deepspeed.ops.__compatible_ops__[_UNUSED_OPERATOR] = False
    # Warned about in every step; torch 2.13 renamed what deepspeed 0.19 calls.
    warnings.filterwarnings("ignore", "`torch.distributed.*` is deprecated", FutureWarning)


def check_engine(engine: Engine, accelerator: Accelerator) -> None:
    """Makes sure that accelerate runs the engine on all processes that the launcher started.

    Raises:
        TrainingError: it does not.
    """
    active, processes = accelerator.distributed_type.value.lower(), accelerator.num_processes
    if engine.shards_state and active != engine.kind:
        instead = Engine("ddp" if processes > 1 else "single", processes=processes)
        raise TrainingError(
            f"{_TITLES[engine.kind]} was asked for, but accelerate runs {instead.describe(accelerator)}: start the "
            "script with `accelerate launch`; FSDP needs GPUs, where DeepSpeed also takes CPUs."
        )
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != processes and not is_torch_xla_available():
        raise TrainingError(
            f"{started} processes were started, but accelerate sees {processes}: each would train on its own; give "
            "--ddp_backend gloo, or start the script with one of the files in configs."
        )
