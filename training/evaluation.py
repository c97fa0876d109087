# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""An evaluation without training: metrics and predictions of a model, with or without an adapter, on any files.

Texts are written while they are generated, and the same command goes on after those that are there. Options that would
change them are recorded, see [`~t5_experimental.training.trainer.same_evaluation`].
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from t5_experimental.kernels_t5_experimental import int8_kernels

from .data.arguments import DataArguments
from .data.collator import pair_collator
from .data.examples import Split
from .data.metrics import check_references, figures_of
from .data.predictions import predictions_file
from .data.splits import make_splits
from .errors import TrainingError
from .interruption import held_back
from .models.adapters import load_adapter
from .models.arguments import EvaluatedModelArguments
from .models.loading import load_model, load_tokenizer
from .report.start_lines import describe_evaluation, facts_as_text
from .trainer.checkpoint_folders import find_checkpoints
from .trainer.finetuning import FinetuningTrainer
from .trainer.finetuning_arguments import FinetuningArguments
from .trainer.generation import settle_generation
from .trainer.same_evaluation import prepare_folder
from .trainer.settle import Run


EvaluationOptions = tuple[EvaluatedModelArguments, DataArguments, FinetuningArguments]


def settle_metrics(training: FinetuningArguments, data: DataArguments, given: Collection[str]) -> None:
    """Chooses the default metrics: those of the tasks of the data, if it has some.

    Args:
        training: options of the run, which get the metrics.
        data: options of the data, which are checked.
        given: names of the options that the user gave.

    Raises:
        TrainingError: options of the data have no effect, or do not say how a part of a mixture is measured.
    """
    data.check_task(given)
    data.check_mixture(given)
    of_parts = [options.chosen_task for _, options in data.parts()]
    if training.predict_with_generate and not training.metric and any(of_parts) and not all(of_parts):
        raise TrainingError(
            "--predict_with_generate does not say how the entries of --mixture without a task are measured: give "
            "--metric."
        )
    task = next(filter(None, [data.chosen_task, *of_parts]), None)
    training.settle_metrics(task, data.evaluated_files(), checks_later=data.mixture is not None)


def check_splits(
    training: FinetuningArguments, data: DataArguments, splits: Mapping[str, Split], given: frozenset[str]
) -> list[str]:
    """Refuses options that do not suit the data, or need data that there is not.

    Args:
        training: options of the run.
        data: options of the splits.
        splits: by prefix of the metrics.
        given: names of the options that the user gave.

    Returns:
        The prefixes of the splits that are evaluated.
    """
    evaluated = [split for split in splits if split != "train"]
    has = [any(split.partition("_")[0] == kind for split in evaluated) for kind in ("eval", "test")]
    training.check_data(given, *has)
    of_task = _figures_of_task(training, data)
    if not evaluated:
        training.check_best_metric(["loss", *figures_of(training.metric), *of_task])
    if training.metric and not evaluated:
        asked = f"--metric {' '.join(training.metric)}" if "metric" in given else "--predict_with_generate"
        raise TrainingError(f"{asked} needs references to compare with: give --validation_file or --test_file, too.")
    figures: list[str] = []
    for split in evaluated:
        references = list(splits[split].references().values())
        names = check_references(training.metric, references, f"the {split} data", training.positive_label)
        kind, _, file = split.partition("_")
        of_task = _figures_of_task(training, splits[split].options or data)
        if kind == "eval":  # those of one of several files have its name
            figures += [f"{file}_{name}" if file else name for name in ("loss", *names, *of_task)]
    training.check_best_metric(figures or ["loss", *figures_of(training.metric), *of_task])
    return evaluated


def _figures_of_task(training: FinetuningArguments, data: DataArguments) -> list[str]:
    return [] if data.chosen_task is None or training.metric else list(data.chosen_task.figures)


def build_evaluator(settled: Run[EvaluationOptions]) -> tuple[FinetuningTrainer, dict[str, Split]]:
    """The trainer, which trains nothing, and the examples by prefix of their metrics. Finds out everything that is
    wrong with the options or the data."""
    model_options, data, training = settled.options
    output = Path(str(training.output_dir))
    if settled.engine.shards_state:
        raise TrainingError(
            f"An evaluation needs the whole model in every process, which {settled.engine.name} shards: launch it "
            "without, as with training/configs/ddp.yaml."
        )
    if found := find_checkpoints(output):
        raise TrainingError(f"--output_dir {output} holds {found[-1].name} of a training run: give another folder.")
    settle_metrics(training, data, settled.given)
    folder, adapter = model_options.folders()
    tokenizer = load_tokenizer(folder)
    with training.main_process_first(desc="reading the data"):
        splits = make_splits(data, tokenizer, training.seed, trains=False)
    if not check_splits(training, data, splits, settled.given):
        raise TrainingError("There is nothing to evaluate on: give --validation_file, --test_file or --dataset_name.")
    model = load_model(folder, tokenizer)
    keeps_length = not settled.given & {"max_target_length", "generation_max_length"}
    settle_generation(model, training, data.max_target_length, keeps_length, adapter)
    evaluator = FinetuningTrainer(
        splits,
        data,
        training.metric,
        model=_prepare(model, adapter, model_options.decoding_weights),
        args=settled,
        data_collator=pair_collator(tokenizer, model),
        processing_class=tokenizer,
    )
    return evaluator, splits


def _prepare(model: Any, adapter: str | None, weights: str | None) -> Any:
    """The model with its adapter, which is merged for weights that are rounded."""
    if weights is not None and not int8_kernels():
        raise TrainingError(
            f"--decoding_weights {weights}: torch multiplies no int8 weights rightly here; leave it out."
        )
    model.decoding_weights = weights
    if adapter is None:
        return model
    adapted: Any = load_adapter(model, adapter)
    return adapted.merge_and_unload() if weights and not adapted.active_peft_config.is_prompt_learning else adapted


def run_evaluation(settled: Run[EvaluationOptions]) -> None:
    """Describes the evaluation, computes losses, generates texts, writes predictions and metrics."""
    model_options, data, training = settled.options
    trainer, splits = build_evaluator(settled)
    folder, adapter = model_options.folders()
    folders = {"model": folder, **({} if adapter is None else {"adapter": adapter})}
    output = Path(str(training.output_dir))
    done = prepare_folder(trainer, splits, data, folders)
    if trainer.is_world_process_zero():
        weights = model_options.decoding_weights
        rounded = {} if weights is None else {"weights for texts": weights}
        told = {**folders, **rounded, **_describe_tasks(data), **_describe(splits, training.metric, done)}
        facts = describe_evaluation(trainer, told)
        print(facts_as_text(facts), flush=True)
    trainer.folder_of_predictions = output
    for split, features in splits.items():
        metrics = trainer.evaluate(features.pairs, metric_key_prefix=split)
        metrics.pop("epoch", None)
        with held_back():
            trainer.log_metrics(split, metrics)
            trainer.save_metrics(split, metrics)
    trainer.leave_process_group()
    if trainer.is_world_process_zero():
        files = ", ".join(predictions_file(output, split).name for split in splits)
        print(f"Metrics and {files} are in {output}", flush=True)


def _describe_tasks(data: DataArguments) -> dict[str, str]:
    """The task, or those of a mixture's parts."""
    if data.chosen_task is not None:
        return {"task": data.chosen_task.describe()}
    tasks = [
        f"{entry.name}: {own.chosen_task.describe()}" for entry, own in data.parts() if own.chosen_task is not None
    ]
    return {"tasks": "; ".join(tasks)} if tasks else {}


def _describe(splits: Mapping[str, Split], metrics: Sequence[str], done: int) -> dict[str, Any]:
    inputs = {split: len(features.references()) for split, features in splits.items()}
    lines = {
        "examples": ", ".join(
            f"{len(features.pairs):,} {split} with {inputs[split]:,} inputs" for split, features in splits.items()
        ),
        "metrics": ", ".join(["loss", *metrics]),
    }
    if done:
        lines["beginning"] = f"goes on after {done:,} of {sum(inputs.values()):,} predictions that are there"
    return lines
