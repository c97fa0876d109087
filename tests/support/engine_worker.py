# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""What runs on every process of `benchmarks/engines.py`: entry points, one after the other, each of them watched.

    ... -m tests.support.engine_worker PLAN.json

The plan is a list of objects with `entry_point` (a module of `t5_experimental.training`), `flags` of its command line,
`record` (folder that gets what was seen) and `spoil` (a name in [`SPOILERS`], for runs that must not pass, or null).
"""

import functools
import importlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import TrainerCallback

from t5_experimental.training import finetune, pretrain
from t5_experimental.training.engines.fsdp2 import full_copy
from t5_experimental.training.engines.parts import optimizer_bytes, parameter_bytes
from t5_experimental.training.trainer.trainer import T5Trainer

from .pretended_gpus import pretend_gpus


def whole_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Copies of all parameters, put together from the parts of all processes; all processes call this."""
    return {name: full_copy(parameter) for name, parameter in model.named_parameters()}


def _mean_of_means(trainer: T5Trainer) -> None:
    """Each process divides by its own tokens, and the gradients are averaged."""
    compute = trainer.compute_loss

    def compute_loss(model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        if not model.training:
            return compute(model, inputs, return_outputs, num_items_in_batch)
        return compute(model, inputs, return_outputs, None) / trainer.args.gradient_accumulation_steps

    trainer.compute_loss = compute_loss  # type: ignore[method-assign, assignment]


def _doubled(trainer: T5Trainer) -> None:
    """As transformers' own T5, the model ignores the number of tokens of all processes."""
    forward = trainer.model.forward  # type: ignore[union-attr]
    names = ("num_items_in_batch",)

    @functools.wraps(forward)  # the trainer hands on what the signature names
    def without_count(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **{name: value for name, value in kwargs.items() if name not in names})

    trainer.model.forward = without_count  # type: ignore[union-attr, method-assign]


def _forgetful_save(trainer: T5Trainer) -> None:
    """What is saved is not what was trained."""
    save = trainer.save_finished_model

    def save_another() -> None:
        with torch.no_grad():
            for parameter in trainer.model.parameters():  # type: ignore[union-attr]
                getattr(parameter, "ds_tensor", parameter).data.mul_(1.01)
        save()

    trainer.save_finished_model = save_another  # type: ignore[method-assign]


SPOILERS: dict[str, Callable[[T5Trainer], None]] = {
    "mean of means": _mean_of_means,
    "doubled": _doubled,
    "forgetful save": _forgetful_save,
}


class Recorder(TrainerCallback):
    """Writes down what a trainer does, on every process.

    Args:
        trainer: to watch.
        folder: gets `RANK.json`, and from the first process `weights.safetensors`: the weights after the last step.
    """

    def __init__(self, trainer: T5Trainer, folder: Path):
        self._trainer, self._folder = trainer, folder
        self._seen: dict[str, Any] = {}

    def on_step_end(self, *unused: Any, **more: Any) -> None:
        if not self._seen:  # between steps, when an engine has given back what it had gathered
            trainer = self._trainer
            held, whole = parameter_bytes(trainer.model)  # type: ignore[arg-type]
            self._seen = {
                "engine": trainer.run.engine.describe(trainer.accelerator),
                "distributed_type": str(trainer.accelerator.distributed_type.value),
                "wrapped": type(trainer.model_wrapped).__name__,
                "processes": trainer.accelerator.num_processes,
                "parameters_bytes": held,
                "parameters_bytes_whole": whole,
                "optimizer_bytes": optimizer_bytes(trainer.optimizer),
            }

    def on_train_end(self, *unused: Any, **more: Any) -> None:
        weights = whole_weights(self._trainer.model)  # type: ignore[arg-type]
        if self._trainer.is_world_process_zero():
            save_file(weights, self._folder / "weights.safetensors")

    def finish(self) -> None:
        """After the entry point has ended."""
        trainer = self._trainer
        history = trainer.state.log_history
        samples = getattr(trainer, "samples", {})
        record = {
            **self._seen,
            "losses": [entry["loss"] for entry in history if "loss" in entry],
            "evaluations": [
                {name: value for name, value in entry.items() if _is_figure(name)}
                for entry in history
                if "eval_loss" in entry
            ],
            "predictions": [sample.prediction for sample in samples.get("eval", [])],
        }
        (self._folder / f"{trainer.args.process_index}.json").write_text(json.dumps(record, indent=2) + "\n")


def _is_figure(name: str) -> bool:
    return name.startswith("eval_") and not name.endswith(("runtime", "per_second", "time"))


def _watch(cell: dict[str, Any], is_last: bool) -> Callable[[], None]:
    """Lets the next trainer that is built be watched; returns what writes the record."""
    folder, recorders = Path(cell["record"]), list[Recorder]()
    folder.mkdir(parents=True, exist_ok=True)

    def watched(build: Callable[..., Any]) -> Callable[..., Any]:
        def build_and_watch(*args: Any, **kwargs: Any) -> Any:
            built = build(*args, **kwargs)
            trainer = built[0] if isinstance(built, tuple) else built
            recorders.append(Recorder(trainer, folder))
            trainer.add_callback(recorders[0])
            if (plugin := trainer.accelerator.state.deepspeed_plugin) is not None and plugin.zero_stage == 3:
                # Models of this size are small parameters only, which ZeRO-3 would not cut up again after a step.
                plugin.deepspeed_config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
            if cell["spoil"] is not None:
                SPOILERS[cell["spoil"]](trainer)
            if not is_last:
                trainer.leave_process_group = trainer.accelerator.free_memory
            return built

        return build_and_watch

    for module in (finetune, pretrain):
        module.build_trainer = watched(_BUILD[module.__name__])  # type: ignore[attr-defined]
    return lambda: recorders[0].finish()


_BUILD = {module.__name__: module.build_trainer for module in (finetune, pretrain)}  # type: ignore[attr-defined]


def _wants_fsdp_on_cpu() -> bool:
    """Whether the launcher asked for FSDP, which accelerate has on GPUs only."""
    return os.environ.get("ACCELERATE_USE_FSDP") == "true" and not torch.accelerator.is_available()


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the plan.

    Args:
        arguments: instead of the command line.
    """
    plan = (sys.argv[1:] if arguments is None else arguments)[0]
    cells = json.loads(Path(plan).read_text())
    for number, cell in enumerate(cells, start=1):
        if _wants_fsdp_on_cpu():
            pretend_gpus()
        finish = _watch(cell, is_last=number == len(cells))
        module = importlib.import_module(f"t5_experimental.training.{cell['entry_point']}")
        module.run(module.ENTRY_POINT.parse(cell["flags"]))
        finish()


if __name__ == "__main__":
    main()
