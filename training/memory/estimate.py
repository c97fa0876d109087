# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Estimates the memory of a run on each device, before anything is loaded.

accelerate launch training/finetune.py ... --estimate                   as launched
python training/finetune.py ... --estimate deepspeed_zero3:8            as under another engine
python -m t5_experimental.training.memory.estimate      the table of docs/memory.md
"""

from typing import Any, cast

from accelerate import PartialState
from torch import nn
from transformers.training_args import OptimizerNames

from t5_experimental.configuration_t5_experimental import T5ExperimentalConfig
from t5_experimental.presets import PRESETS, preset_config

from ..engines.engine import CONFIGS, Engine
from ..errors import TrainingError
from ..optim.presets import OptimizerChoice
from ..report.start_lines import facts_as_text
from ..trainer.arguments import LAUNCHED, T5TrainingArguments
from ..trainer.settle import Run
from .activations import Step
from .states import Estimate, Setup, empty_model, estimate


_FINETUNE, _ADAMW = OptimizerChoice("finetune"), OptimizerChoice("adamw")


def _setup(run: Run[Any], has_presets: bool) -> Setup:
    training, engine = run.training, run.engine
    bf16 = training.mixed_precision == "bf16"
    if training.estimate != LAUNCHED:
        name, _, count = str(training.estimate).partition(":")
        if name not in CONFIGS or not (count or "1").isdecimal() or int(count or 1) < 1:
            raise TrainingError(
                f"--estimate {training.estimate} is not ENGINE:PROCESSES: the engines are {', '.join(CONFIGS)}."
            )
        engine, bf16 = Engine.named(name, int(count or 1)), run.estimates_bf16
    chosen = training.chosen_optimizer()
    if not run.given & {"optim", "optimizer_preset"} and not engine.allows(chosen):
        # The nearest one to the default that runs there; the run itself asks for a choice.
        others = (_FINETUNE, _ADAMW) if has_presets else (OptimizerChoice(None, OptimizerNames.ADAMW_TORCH.value),)
        chosen = next(choice for choice in others if engine.allows(choice))
    return Setup(engine, chosen, bf16)


def _step(setup: Setup, training: T5TrainingArguments, source: int, target: int, **more: Any) -> Step:
    checkpointing = "none"
    if training.gradient_checkpointing:
        keeps = cast(dict[str, Any], training.gradient_checkpointing_kwargs or {}).get("keep_attention", False)
        checkpointing = "keep_attention" if keeps else "full"
    return Step(
        training.per_device_train_batch_size,
        source,
        target,
        device="cpu" if training.use_cpu else "cuda",
        autocast=setup.bf16 and not setup.keeps_half,
        half=setup.keeps_half,
        checkpointing=cast(Any, checkpointing),
        all_logits=not setup.engine.keeps_parameters_whole,
        **more,
    )


def print_estimate(
    run: Run[Any],
    config: T5ExperimentalConfig,
    source: int,
    target: int,
    *,
    lora_rank: int = 0,
    prompt_length: int = 0,
    packed: bool = False,
) -> None:
    """Prints the estimate, from the first process; all processes call this, and leave the process group.

    Args:
        run: whose options have `estimate`.
        config: of the model, with the dropout of training.
        source: maximum tokens of an input.
        target: maximum tokens of a target.
        lora_rank: of adapters; 0 for none.
        prompt_length: rows of a prompt; 0 for none.
        packed: several examples share a row.

    Raises:
        TrainingError: `estimate` is not an engine, or one that does not allow the optimizer.
    """
    setup, training = _setup(run, has_presets=not prompt_length), run.training
    is_default = setup.optimizer == training.chosen_optimizer()
    trained = "adapters" if lora_rank else "prompt" if prompt_length else "all"
    step = _step(setup, training, source + prompt_length, target, trained=trained, rank=lora_rank, packed=packed)
    found = estimate(empty_model(config, lora_rank, prompt_length), config, setup, step)
    if training.process_index == 0:
        needed = {} if is_default else {"needed": f"{setup.optimizer.option}, since the default does not run there"}
        print(facts_as_text({**_facts(setup, step, found), **needed}), flush=True)
    PartialState().destroy_process_group()


def _facts(setup: Setup, step: Step, found: Estimate) -> dict[str, str]:
    precision = "bfloat16" if setup.bf16 else "float32"
    checkpointing = {"none": "no", "full": "full", "keep_attention": "partial"}[step.checkpointing]
    return {
        "estimate": f"{setup.engine.config} on {setup.engine.processes} process(es), {setup.optimizer.name}, "
        f"{precision}",
        "step": f"{step.examples} x {step.source}/{step.target} tokens on each device, {checkpointing} checkpointing",
        **found.lines(),
    }


# The table of docs/memory.md.

_BATCH, _SOURCE, _TARGET, _RANK = 8, 512, 128, 16

_COLUMNS: dict[str, tuple[Setup, int]] = {
    "1 GPU, Adafactor": (Setup(Engine(), _FINETUNE), 0),
    "1 GPU, AdamW": (Setup(Engine(), _ADAMW), 0),
    f"1 GPU, LoRA {_RANK}": (Setup(Engine(), _ADAMW), _RANK),
    "8 GPUs, ZeRO-2": (Setup(Engine.named("deepspeed_zero2", 8), _ADAMW), 0),
    "8 GPUs, ZeRO-3": (Setup(Engine.named("deepspeed_zero3", 8), _ADAMW), 0),
    "8 GPUs, FSDP2": (Setup(Engine.named("fsdp2", 8), _ADAMW), 0),
    "8 GPUs, offloaded": (Setup(Engine.named("deepspeed_zero3_offload", 8), _ADAMW), 0),
}


def _cell(model: nn.Module, config: T5ExperimentalConfig, setup: Setup, rank: int) -> str:
    step = Step(
        _BATCH,
        _SOURCE,
        _TARGET,
        autocast=not setup.keeps_half,
        half=setup.keeps_half,
        trained="adapters" if rank else "all",
        rank=rank,
        checkpointing="full",
        all_logits=not setup.engine.keeps_parameters_whole,
    )
    found = estimate(model, config, setup, step)
    host = f" + {setup.engine.processes * sum(found.host.values()) / 1e9:.0f} host" if found.host else ""
    return f"**{found.gpu or 'none'}** ({found.total / 1e9:.1f}{host})"


def table() -> str:
    """Markdown: the smallest GPU that fits each released size, with the required GB in parentheses."""
    rows = [["", *_COLUMNS], ["---", *["---"] * len(_COLUMNS)]]
    for name in PRESETS:
        if name.startswith("t5.1.1.lm100k"):  # same sizes as t5.1.1
            continue
        config = preset_config(name, dropout_rate=0.1)
        models = {rank: empty_model(config, rank) for rank in (0, _RANK)}
        rows.append([name, *(_cell(models[rank], config, setup, rank) for setup, rank in _COLUMNS.values())])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


if __name__ == "__main__":
    print(table())
