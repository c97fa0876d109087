# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""The steps of every run once its trainer is built: describe, train, save, evaluate, report."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

from .interruption import held_back
from .report.card import Sources
from .report.report import report_of, write_report
from .report.start_lines import describe, facts_as_text
from .trainer.same_run import check_resumption
from .trainer.stale_results import remove_stale
from .trainer.trainer import T5Trainer


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
            remove_stale(Path(str(args.output_dir)), metrics)
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
