# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""The steps of every run once its trainer is built: describe, train, save, evaluate, report."""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

from .data.predictions import predictions_file
from .interruption import held_back
from .report.card import Sources
from .report.report import report_of, write_report
from .report.start_lines import describe, facts_as_text
from .trainer.same_run import check_resumption
from .trainer.trainer import T5Trainer


_ALL = "all"


def run_trainer(
    trainer: T5Trainer,
    title: str,
    more: Mapping[str, str],
    evaluated: Mapping[str, Any],
    sample: Callable[[str], Sequence[Any]] = lambda split: (),
    before_saving: Callable[[], None] = lambda: None,
    write: Callable[[Path], None] = lambda folder: None,
    sources: Sources = MappingProxyType({}),
    datasets: Sequence[str] = (),
) -> None:
    """Describes the run, trains, saves, evaluates, reports.

    Args:
        trainer: of the run.
        title: of the report.
        more: additional facts to print before, by heading, see [`describe`].
        evaluated: what to evaluate on at the end, by prefix of the metrics.
        sample: returns samples of the last of these, for the report.
        before_saving: called on the trained model before it is saved.
        write: called by the first process to write what else the evaluations leave into the output folder.
        sources: where the examples of each split are from, for the model card.
        datasets: names at the hub of the data sets that the run uses, for the model card.

    Raises:
        TrainingError: the checkpoint to resume from belongs to a different run, or training fails.
    """
    args = trainer.args
    checkpoint = trainer.run.checkpoint
    if checkpoint is not None:
        check_resumption(trainer, checkpoint)
    facts = describe(trainer, more)
    if trainer.is_world_process_zero():
        print(facts_as_text(facts), flush=True)
    metrics: dict[str, dict[str, float]] = {"train": trainer.train(resume_from_checkpoint=checkpoint).metrics}
    before_saving()
    trainer.save_finished_model()
    for split, rows in evaluated.items():
        metrics[split] = trainer.evaluate(cast(Any, rows), metric_key_prefix=split)
    with held_back():
        if trainer.is_world_process_zero():
            _remove_stale(Path(str(args.output_dir)), metrics)
        for split, values in metrics.items():
            trainer.log_metrics(split, values)
            trainer.save_metrics(split, values, combined=False)
        together = {name: value for values in metrics.values() for name, value in values.items()}
        trainer.save_metrics("all", together, combined=False)
    trainer.save_state()
    samples = sample(list(evaluated)[-1]) if evaluated else ()
    if trainer.is_world_process_zero():
        write(Path(str(args.output_dir)))
        write_report(Path(str(args.output_dir)), report_of(trainer, title, facts, metrics, samples, sources, datasets))
    trainer.leave_process_group()
    if trainer.is_world_process_zero():
        trained = "Model" if trainer.model is trainer.plain_model() else "Adapter"
        print(f"{trained}, tokenizer, metrics and report.html are in {args.output_dir}", flush=True)


def _remove_stale(folder: Path, splits: Collection[str]) -> None:
    """Removes figures and texts that an earlier run here, which this one goes on from, left: they are not of the
    weights that are there now. What `all_results.json` does not have word for word is not that run's.

    Args:
        folder: the output folder.
        splits: whose figures are written next.
    """
    together = _read_figures(folder / _results_file(_ALL))
    for path in sorted(folder.glob(_results_file("*"))):
        split, figures = path.name.removesuffix(_results_file("")), _read_figures(path)
        figures.pop("epoch", None)
        is_ours = figures.items() <= together.items() and all(name.startswith(f"{split}_") for name in figures)
        if split == _ALL or not figures or not is_ours:
            continue
        texts = predictions_file(folder, split)
        if _has_predictions(texts):
            texts.unlink()
        if split not in splits:
            path.unlink()


def _has_predictions(path: Path) -> bool:
    try:
        with path.open(encoding="utf-8") as file:
            row = json.loads(file.readline())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(row, dict) and {"input", "prediction", "references", "sequence_score"} <= row.keys()


def _results_file(split: str) -> str:
    """As transformers names it."""
    return f"{split}_results.json"


def _read_figures(path: Path) -> dict[str, str]:
    """The figures of a file as they are written there; none if it is not a file of figures."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"), parse_float=str, parse_int=str, parse_constant=str)
    except (OSError, ValueError, RecursionError):
        return {}
    return {name: str(value) for name, value in found.items()} if isinstance(found, dict) else {}
