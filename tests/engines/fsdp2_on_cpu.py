# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Fine-tunes several models in turn, under FSDP2 if there are several processes, and reports.

    accelerate launch --config_file training/configs/fsdp2.yaml -m tests.engines.fsdp2_on_cpu RUNS.json REPORT.json

All goes through accelerate's own code for GPUs, see tests/support/pretended_gpus.py.
"""

import json
import os
import sys
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from t5_experimental.stack_t5_experimental import T5Block
from t5_experimental.training import finetune
from t5_experimental.training.errors import TrainingError
from tests.support.pretended_gpus import pretend_gpus


class Observed(finetune.FinetuningTrainer):
    """Reports, and leaves the process group to the runs that follow."""

    reports: list[dict[str, Any]] = []

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.report()["empty_at_first"] = all(parameter.is_meta for parameter in self.model.parameters())

    def training_step(self, model: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.Tensor:
        if "steps" not in self.report():
            self.report().update(self.facts(), steps=0)
        self.report()["steps"] += 1
        return super().training_step(model, *args, **kwargs)

    def report(self) -> dict[str, Any]:
        return self.reports[-1]

    def facts(self) -> dict[str, Any]:
        parameters = dict(self.model.named_parameters())
        modules = list(self.model.modules())
        held = [p.to_local() if isinstance(p, DTensor) else p for p in parameters.values()]
        return {
            "type": str(self.accelerator.distributed_type.value),
            "is_fsdp2": self.accelerator.is_fsdp2,
            "class": type(self.model).__name__,
            "parameters": len(parameters),
            "distributed": sum(isinstance(p, DTensor) for p in parameters.values()),
            "fsdp_modules": [
                type(module).__name__ for module in self.model.modules() if isinstance(module, FSDPModule)
            ],
            "optimized": len(set(chain.from_iterable(group["params"] for group in self.optimizer.param_groups))),
            "without_rows": sum(part.numel() == 0 for part in held),
            "blocks": sum(isinstance(module, T5Block) for module in modules),
            "parameters_bytes_per_rank": sum(p.numel() * p.element_size() for p in held),
        }

    def leave_process_group(self) -> None:
        optimizer = self.optimizer.optimizer
        states = [value for state in optimizer.state.values() for name, value in state.items() if name != "step"]
        self.report().update(
            losses=[entry["loss"] for entry in self.state.log_history if "loss" in entry],
            norms=[entry["grad_norm"] for entry in self.state.log_history if "grad_norm" in entry],
            evaluation=[entry["eval_loss"] for entry in self.state.log_history if "eval_loss" in entry],
            predictions=[sample.prediction for sample in self.sample("eval")],
            states=len(states),
            distributed_states=sum(isinstance(value, DTensor) for value in states),
        )
        # One process has its text earlier than the other, which must not be left waiting for it.
        self._gen_kwargs = {"max_length": 4 * (1 + self.args.process_index), "eos_token_id": None}
        self.prediction_step(self.model, {"input_ids": torch.tensor([[5, 6, 1]])}, False)
        self.model_wrapped = self.model
        self.accelerator.free_memory()


def run(flags: list[str], environment: dict[str, str]) -> dict[str, Any]:
    before = dict(os.environ)
    os.environ.update(environment)
    pretend_gpus()
    Observed.reports.append({})
    try:
        finetune.run(finetune.parse(flags))
    except TrainingError as error:
        Observed.reports[-1]["refused"] = str(error)
    os.environ.clear()
    os.environ.update(before)
    return Observed.reports[-1]


def main(arguments: Sequence[str]) -> None:
    runs, output = map(Path, arguments)
    finetune.FinetuningTrainer = Observed
    reports = {name: run(**options) for name, options in json.loads(runs.read_text()).items()}
    state = PartialState()
    gathered: list[Any] = [reports]
    if "RANK" in os.environ:
        gathered = [None] * state.num_processes
        torch.distributed.all_gather_object(gathered, reports)
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
    if state.is_main_process:
        output.write_text(json.dumps(gathered))


if __name__ == "__main__":
    main(sys.argv[1:])
