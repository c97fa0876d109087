# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Lets processes on a CPU run FSDP2 through accelerate's own code for GPUs.

All that accelerate lacks for it: its `AcceleratorState` turns FSDP on for a list of devices that the processor is not
in. So it is told of GPUs here, with gloo between the processes and tensors on the processor; and our own
`prepare_engine`, which refuses FSDP with `--use_cpu`, is left out, as it knows of that.
"""

import os

from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType

from t5_experimental.training.trainer import settle


FLAGS = ("--use_cpu", "True", "--accelerator_config", '{"use_configured_state":true}')
"""Options that an entry point needs for it."""


def pretend_gpus() -> None:
    """Comes before the options of a run are read; a process that trains on its own gets a plain accelerator."""
    settle.prepare_engine = lambda *unused: None
    has_others = "RANK" in os.environ
    AcceleratorState._reset_state()
    PartialState(cpu=True, backend="gloo" if has_others else None)
    if has_others:
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
