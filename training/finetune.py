# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Fine-tunes a converted checkpoint on pairs of texts.

    accelerate launch training/finetune.py --model_name_or_path MODEL --train_file train.jsonl --output_dir OUTPUT

`python -m t5_experimental.training.finetune` takes the same options, and `--help` lists them: ours first, then all of
transformers' `Seq2SeqTrainingArguments`. The output folder gets the model and its tokenizer, the metrics as
`train_results.json`, `eval_results.json` (of the validation file), `test_results.json` and `all_results.json`, and
meanwhile the trainer's checkpoints.
"""

import os
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn, cast

import torch
from datasets import Dataset
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    HfArgumentParser,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames

from t5_experimental.configuration_t5_experimental import T5ExperimentalConfig
from t5_experimental.training.arguments import DataArguments, FinetuningArguments, ModelArguments
from t5_experimental.training.data import load_features
from t5_experimental.training.errors import TrainingError
from t5_experimental.training.trainer import FinetuningTrainer, exact_match


Options = tuple[ModelArguments, DataArguments, FinetuningArguments]

FP16_WARNING = (
    "\nWARNING: --fp16 computes in float16, which ends at 65504; activations of T5 models go beyond that, and the loss "
    "becomes NaN: use --bf16 where the hardware has it, else --bf16 False without --fp16, which is float32.\n"
)

# Longer than it takes a launcher to end the other processes when the first one has failed, slow imports included.
SECONDS_TO_BE_ENDED = 60


class _Parser(HfArgumentParser):
    """Complains like everything else here, where argparse's own parser ends the process with its usage."""

    def error(self, message: str) -> NoReturn:
        raise TrainingError(f"{message}; --help lists the options.")


def parse(arguments: Sequence[str] | None = None) -> Options:
    """Options from the command line, checked; `arguments` instead of the process's own for tests and notebooks."""
    parser = _Parser(
        cast(Iterable[Any], (ModelArguments, DataArguments, FinetuningArguments)),
        description="Fine-tunes a converted checkpoint on pairs of texts.",
        # The generated line would name some hundred options of transformers.
        usage="finetune.py --model_name_or_path MODEL --train_file FILE --output_dir FOLDER [more options]",
    )
    try:
        return cast(Options, parser.parse_args_into_dataclasses(args=arguments))
    except ValueError as error:  # how transformers' own options complain
        raise TrainingError(" ".join(str(error).split())) from error


def load_tokenizer(folder: str) -> PreTrainedTokenizerBase:
    """Tokenizer of a model's folder."""
    # Where the files are missing, transformers quietly makes a tokenizer that knows no word.
    if not any((Path(folder) / name).is_file() for name in ("tokenizer.json", "spiece.model")):
        raise TrainingError(f"{folder} has no tokenizer: convert the checkpoint with --vocab sentencepiece.model.")
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def load_model(folder: str, dropout_rate: float, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Model of a folder, in float32, with a dropout rate of its own, checked against the tokenizer."""
    config = AutoConfig.from_pretrained(folder, dropout_rate=dropout_rate, local_files_only=True)
    if not isinstance(config, T5ExperimentalConfig):
        raise TrainingError(
            f"{folder} holds a model of type {config.model_type!r}, which is none of this package's: fine-tune it with "
            "transformers' own examples."
        )
    if len(tokenizer) > config.vocab_size:
        raise TrainingError(
            f"The tokenizer of {folder} has {len(tokenizer)} ids, the model only {config.vocab_size} embedding rows: "
            "the vocabulary is another model's, convert with the right one."
        )
    # Weights are updated in float32 whatever they are stored in: small updates vanish in bfloat16's 8 significant bits.
    try:
        model, report = AutoModelForSeq2SeqLM.from_pretrained(
            folder, config=config, dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
    except OSError as error:
        raise TrainingError(f"The weights of {folder} do not load: {error}") from error
    if missing := sorted(report["missing_keys"]):
        raise TrainingError(
            f"{folder} lacks {len(missing)} weights, {missing[0]} for one: give a whole encoder-decoder model."
        )
    return model


def load_splits(
    data: DataArguments, training: FinetuningArguments, tokenizer: PreTrainedTokenizerBase
) -> dict[str, Dataset]:
    """Features of the files that were given, by the prefix that the trainer gives to their metrics."""
    files = {"train": data.train_file, "eval": data.validation_file, "test": data.test_file}
    # The first process fills the cache of `datasets`, the others find it there.
    with training.main_process_first(desc="reading the data"):
        return {split: load_features(Path(name), data, tokenizer) for split, name in files.items() if name is not None}


def build_trainer(options: Options) -> tuple[FinetuningTrainer, dict[str, Dataset]]:
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
    trainer = FinetuningTrainer(
        model=model,
        args=training,
        train_dataset=splits["train"],
        eval_dataset=splits.get("eval"),
        data_collator=DataCollatorForSeq2Seq(tokenizer, model=model),
        processing_class=tokenizer,
        compute_metrics=exact_match(tokenizer) if training.predict_with_generate else None,
    )
    return trainer, splits


def describe(trainer: FinetuningTrainer, splits: dict[str, Dataset], data: DataArguments) -> str:
    """What is about to happen, for the user to check."""
    model, args = cast(PreTrainedModel, trainer.model), trainer.args
    batch = args.train_batch_size * args.world_size * args.gradient_accumulation_steps
    sample = splits["train"][:1000]["labels"]
    tokens = sum(map(len, sample)) / len(sample)
    asked = trainer.accelerator.mixed_precision
    precision = {"no": "float32", "bf16": "bfloat16", "fp16": "float16"}.get(asked, asked)
    if args.device.type == "cpu" and asked == "no":
        precision += " (bfloat16 is slow on most CPUs; --bf16 True asks for it)"
    optimizer, schedule = OptimizerNames(args.optim).value, SchedulerType(args.lr_scheduler_type).value
    sizes = ", ".join(f"{len(features):,} {split}" for split, features in splits.items())
    lines = {
        "model": f"{type(model).__name__} ({model.config.model_type}), {model.num_parameters():,} parameters",
        "dropout": f"{model.config.dropout_rate:g}",
        "precision": f"weights float32, computation {precision}",
        "optimizer": f"{optimizer}, learning rate {args.learning_rate:g}, schedule {schedule}",
        "examples": f"{sizes}; at most {data.max_source_length} tokens in, {data.max_target_length} out",
        "step": f"{batch} examples on {args.world_size} process(es), about {batch * tokens:,.0f} target tokens",
    }
    return "\n".join(f"{name:<10} {text}" for name, text in lines.items())


def run(options: Options) -> None:
    """Trains, saves, evaluates."""
    _, data, training = options
    if training.mixed_precision == "fp16" and training.process_index == 0:
        print(FP16_WARNING, file=sys.stderr, flush=True)
    set_seed(training.seed)
    trainer, splits = build_trainer(options)
    if trainer.is_world_process_zero():
        print(describe(trainer, splits, data), flush=True)
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


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs with a command line; what the user can solve ends it with a sentence, from one process of each machine."""
    try:
        run(parse(arguments))
    except TrainingError as error:
        if int(os.environ.get("LOCAL_RANK", "0")) > 0:
            # The launcher ends all processes as soon as one fails: the first shall come to speak before that.
            time.sleep(SECONDS_TO_BE_ENDED)
            sys.exit(1)
        sys.exit(f"finetune: {error}")


if __name__ == "__main__":
    main()
