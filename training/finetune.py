# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Fine-tunes a converted checkpoint on pairs of texts.

    accelerate launch training/finetune.py --model_name_or_path MODEL --train_file train.jsonl --output_dir OUTPUT

`python -m t5_experimental.training.finetune` takes the same options, and `--help` lists them: ours first, then all of
transformers' `Seq2SeqTrainingArguments`. The output folder gets the model and its tokenizer, the metrics as
`train_results.json`, `eval_results.json` (of the validation file), `test_results.json` and `all_results.json`, and
meanwhile the trainer's checkpoints.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from datasets import Dataset
from transformers import DataCollatorForSeq2Seq, PreTrainedTokenizerBase, set_seed

from t5_experimental.training.arguments import ModelArguments
from t5_experimental.training.commandline import EntryPoint
from t5_experimental.training.data import load_features
from t5_experimental.training.description import describe, describe_step, warn_of_float16
from t5_experimental.training.errors import TrainingError
from t5_experimental.training.finetuning_arguments import DataArguments, FinetuningArguments
from t5_experimental.training.metrics import exact_match
from t5_experimental.training.models import load_model, load_tokenizer
from t5_experimental.training.trainer import T5Trainer


Options = tuple[ModelArguments, DataArguments, FinetuningArguments]

ENTRY_POINT = EntryPoint(
    name="finetune",
    description="Fine-tunes a converted checkpoint on pairs of texts.",
    usage="--model_name_or_path MODEL --train_file FILE --output_dir FOLDER",
    options=(ModelArguments, DataArguments, FinetuningArguments),
)


def parse(arguments: Sequence[str] | None = None) -> Options:
    """Options from the command line, checked; `arguments` instead of the process's own for tests and notebooks."""
    return cast(Options, ENTRY_POINT.parse(arguments))


def load_splits(
    data: DataArguments, training: FinetuningArguments, tokenizer: PreTrainedTokenizerBase
) -> dict[str, Dataset]:
    """Features of the files that were given, by the prefix that the trainer gives to their metrics."""
    files = {"train": data.train_file, "eval": data.validation_file, "test": data.test_file}
    # The first process fills the cache of `datasets`, the others find it there.
    with training.main_process_first(desc="reading the data"):
        return {split: load_features(Path(name), data, tokenizer) for split, name in files.items() if name is not None}


def build_trainer(options: Options) -> tuple[T5Trainer, dict[str, Dataset]]:
    """The trainer, and the features by split. Whatever is wrong with the options or the data is found out here."""
    model_options, data, training = options
    if training.eval_strategy != "no" and data.validation_file is None:
        raise TrainingError("--eval_strategy needs examples to evaluate on: give --validation_file, too.")
    folder = model_options.model_name_or_path
    tokenizer = load_tokenizer(folder)
    model = load_model(folder, model_options.dropout_rate, tokenizer)
    splits = load_splits(data, training, tokenizer)
    if training.generation_max_length is None:
        # The limit counts the decoder's start token, which is not part of a target.
        training.generation_max_length = data.max_target_length + 1
    trainer = T5Trainer(
        model=model,
        args=training,
        train_dataset=splits["train"],
        eval_dataset=splits.get("eval"),
        data_collator=DataCollatorForSeq2Seq(tokenizer, model=model),
        processing_class=tokenizer,
        compute_metrics=exact_match(tokenizer) if training.predict_with_generate else None,
    )
    return trainer, splits


def run(options: Options) -> None:
    """Trains, saves, evaluates."""
    _, data, training = options
    warn_of_float16(training)
    set_seed(training.seed)
    trainer, splits = build_trainer(options)
    if trainer.is_world_process_zero():
        print(describe(trainer, _describe_data(trainer, splits, data)), flush=True)
    metrics = {"train": trainer.train(resume_from_checkpoint=training.resume_from_checkpoint).metrics}
    trainer.save_finished_model()
    for split in ("eval", "test"):
        if split in splits:
            metrics[split] = trainer.evaluate(splits[split], metric_key_prefix=split)
    for split, values in metrics.items():
        trainer.log_metrics(split, values)
        trainer.save_metrics(split, values)
    trainer.leave_process_group()
    if trainer.is_world_process_zero():
        print(f"Model, tokenizer and metrics are in {training.output_dir}", flush=True)


def _describe_data(trainer: T5Trainer, splits: dict[str, Dataset], data: DataArguments) -> dict[str, str]:
    sample = splits["train"][:1000]["labels"]
    sizes = ", ".join(f"{len(features):,} {split}" for split, features in splits.items())
    return {
        "examples": f"{sizes}; at most {data.max_source_length} tokens in, {data.max_target_length} out",
        "step": describe_step(trainer, sum(map(len, sample)) / len(sample)),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs with a command line; what the user can solve ends it with a sentence, from one process of each machine."""
    ENTRY_POINT.start(run, arguments)


if __name__ == "__main__":
    main()
