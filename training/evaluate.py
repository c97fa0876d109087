# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Evaluates a model, LoRA adapters or a prompt on pairs of texts: metrics, and the texts that it generates.

    accelerate launch training/evaluate.py --model_name_or_path MODEL --test_file test.jsonl --output_dir FOLDER

`python -m t5_experimental.training.evaluate` takes the same options: `--help` lists ours and the usual ones of
transformers' `Seq2SeqTrainingArguments`, `--help-all` all. The output folder gets the loss and the metrics as
`test_results.json` (`eval_results.json` of validation files), and `predictions_test.jsonl` with one line for every
distinct input: input, prediction, references, log-probability of the prediction, and the metrics that are defined for
one example.
"""

from t5_experimental.training.cli.first_answers import before_imports


if __name__ == "__main__":
    before_imports("evaluate")

from collections.abc import Sequence

from t5_experimental.training.cli.entry_point import EntryPoint
from t5_experimental.training.data.arguments import EvaluationDataArguments
from t5_experimental.training.evaluation import EvaluationOptions, run_evaluation
from t5_experimental.training.models.arguments import EvaluatedModelArguments
from t5_experimental.training.report.start_lines import warn_of_float16
from t5_experimental.training.trainer.finetuning_arguments import EvaluationArguments, check_only_evaluates
from t5_experimental.training.trainer.settle import Run


ENTRY_POINT = EntryPoint(
    name="evaluate",
    description="Evaluates a model, LoRA adapters or a prompt on pairs of texts.",
    usage="--model_name_or_path FOLDER --test_file FILE --output_dir FOLDER",
    options=(EvaluatedModelArguments, EvaluationDataArguments, EvaluationArguments),
)


def parse(arguments: Sequence[str] | None = None) -> Run[EvaluationOptions]:
    """A settled run from the command line; `arguments` replace it in tests and notebooks."""
    return ENTRY_POINT.parse(arguments)


def run(settled: Run[EvaluationOptions]) -> None:
    """Evaluates, and writes metrics and predictions."""
    check_only_evaluates(settled.given, {"do_train"})
    warn_of_float16(settled.training)
    run_evaluation(settled)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command line; a problem that the user can solve ends it with a sentence, from one process per machine."""
    ENTRY_POINT.start(run, arguments)


if __name__ == "__main__":
    main()
