# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Pre-trains on plain text: span corruption, prefix LM (as for LM adaptation), and other objectives.

    accelerate launch training/pretrain.py --preset t5.1.1.small --tokenizer_name sentencepiece.model \\
        --train_file 'text/*.txt' --max_steps 100000 --output_dir OUTPUT

`python -m t5_experimental.training.pretrain` takes the same options: `--help` lists ours and the usual ones of
transformers' `Seq2SeqTrainingArguments`, `--help-all` all. The text may have any size; it is streamed, shuffled, and
distributed over processes and workers, and a run resumes at the exact row. The output folder gets the model and its
tokenizer, metrics and a report as in fine-tuning.
"""

from t5_experimental.training.cli.first_answers import before_imports


if __name__ == "__main__":
    before_imports("pretrain")

import os
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase, default_data_collator, set_seed

from t5_experimental.loss_t5_experimental import IGNORE_INDEX
from t5_experimental.training.cli.entry_point import EntryPoint
from t5_experimental.training.data.documents import Windows, find_files
from t5_experimental.training.data.objectives import Objective
from t5_experimental.training.data.pretraining_arguments import PretrainingDataArguments
from t5_experimental.training.data.stream import StreamLoader, TextStream, restore
from t5_experimental.training.engines.fsdp2_weights import reads_in_parts
from t5_experimental.training.errors import TrainingError
from t5_experimental.training.memory.estimate import print_estimate
from t5_experimental.training.models.arguments import PretrainingModelArguments
from t5_experimental.training.models.fresh import fresh_config, fresh_model, load_any_tokenizer
from t5_experimental.training.models.loading import load_config, load_model, load_tokenizer
from t5_experimental.training.report.start_lines import describe_step, warn_of_float16
from t5_experimental.training.run import run_trainer
from t5_experimental.training.trainer.base_model import mark_as, mark_base
from t5_experimental.training.trainer.generation import settle_generation
from t5_experimental.training.trainer.pretraining import PretrainingArguments
from t5_experimental.training.trainer.pretraining_trainer import PretrainingTrainer
from t5_experimental.training.trainer.settle import Run


Options = tuple[PretrainingModelArguments, PretrainingDataArguments, PretrainingArguments]

ENTRY_POINT = EntryPoint(
    name="pretrain",
    description="Pre-trains on plain text, from a converted checkpoint or with fresh weights.",
    usage="(--model_name_or_path MODEL | --preset NAME --tokenizer_name VOCABULARY) --train_file FILE "
    "--max_steps STEPS --output_dir FOLDER",
    options=(PretrainingModelArguments, PretrainingDataArguments, PretrainingArguments),
)


# Options of transformers without effect: nothing is generated, and the stream has its own order and number of rows.
_IDLE = {
    *("num_train_epochs", "train_sampling_strategy", "dataloader_drop_last", "dataloader_persistent_workers"),
    *("generation_max_length", "generation_num_beams", "generation_config"),
}


def parse(arguments: Sequence[str] | None = None) -> Run[Options]:
    """A settled run from the command line; `arguments` replace it in tests and notebooks."""
    return ENTRY_POINT.parse(arguments)


def _windows(option: str, names: Sequence[str], data: PretrainingDataArguments, least: int) -> Windows:
    files = find_files(option, names, data.text_column, data.document_per_line)
    return Windows(files, max(int(data.shuffle_megabytes * 2**20), 1), least)


def _make_loader(settled: Run[Options], tokenizer: PreTrainedTokenizerBase, objective: Objective) -> StreamLoader:
    _, data, training = settled.options
    workers = training.dataloader_num_workers
    if workers:
        # The tokenizer's threads would not survive the fork of the workers.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    stream = TextStream(
        _windows("train_file", data.train_file or (), data, least=max(workers, 1) * training.world_size),
        tokenizer,
        objective,
        data.pack,
        training.seed if training.data_seed is None else training.data_seed,
        training.process_index,
        training.world_size,
        max(workers, 1),
        silent=bool(training.disable_tqdm),
    )
    if settled.checkpoint is not None and not training.ignore_data_skip:
        restore(stream, Path(settled.checkpoint))
    # The stream starts at the right row: transformers has nothing to skip.
    training.ignore_data_skip = True
    options: dict[str, Any] = {"pin_memory": training.dataloader_pin_memory and torch.cuda.is_available()}
    if workers:
        options["prefetch_factor"] = training.dataloader_prefetch_factor
    return StreamLoader(stream, training.train_batch_size, workers, **options)


def _tokenizer(options: PretrainingModelArguments) -> PreTrainedTokenizerBase | None:
    """The tokenizer that the options name; None for a preset without one."""
    if options.tokenizer_name is not None:
        return load_any_tokenizer(options.tokenizer_name)
    return None if options.model_name_or_path is None else load_tokenizer(options.model_name_or_path, for_pairs=False)


def build_trainer(settled: Run[Options]) -> PretrainingTrainer:
    """The trainer. Finds out everything that is wrong with the options or the beginning of each file."""
    model_options, data, training = settled.options
    if idle := sorted(settled.given & _IDLE):
        raise TrainingError(f"--{idle[0]} has no effect on an endless stream of text: leave it out.")
    training.check_data(settled.given, data.validation_file is not None, has_test=False)
    training.check_best_metric(["loss"])
    model_options.check_trains()
    data.check_trains()
    folder, tokenizer_name = model_options.model_name_or_path, model_options.tokenizer_name
    tokenizer = cast(PreTrainedTokenizerBase, _tokenizer(model_options))
    objective = data.make_objective(tokenizer)
    loader = _make_loader(settled, tokenizer, objective)
    read = loader.stream.windows.settings()
    if "text_column" in settled.given and read["--text_column"] is None:
        raise TrainingError("--text_column has no effect on .txt files: leave it out, or give JSON lines.")
    if "document_per_line" in settled.given and read["--document_per_line"] is None:
        raise TrainingError("--document_per_line has no effect without .txt files: leave it out.")
    if "validation_rows" in settled.given and data.validation_file is None:
        raise TrainingError("--validation_rows has no effect without --validation_file: give both, or none.")
    rows = None
    if data.validation_file is not None:
        windows = _windows("validation_file", data.validation_file, data, least=1)
        stream = TextStream(windows, tokenizer, objective, data.pack, seed=0)
        rows = list(islice(stream.once(), data.validation_rows))
    if folder is None:
        overrides = {**model_options.overrides(), **model_options.dropout_fields()}
        model = fresh_model(str(model_options.preset), overrides, tokenizer)
        mark_as(model, "none")
    else:
        whose = f"--tokenizer_name {tokenizer_name}" if tokenizer_name is not None else None
        device_map = "meta" if reads_in_parts(settled.engine, folder) else None
        model = load_model(folder, tokenizer, whose, device_map=device_map, **model_options.dropout_fields())
        mark_base(model)
    settle_generation(model, training, objective.targets_length)
    return PretrainingTrainer(
        loader,
        model=model,
        args=settled,
        eval_dataset=rows,
        data_collator=default_data_collator,
        processing_class=tokenizer,
    )


def _describe_data(trainer: PretrainingTrainer, data: PretrainingDataArguments) -> dict[str, str]:
    stream = cast(TextStream, trainer.train_dataset)
    objective = stream.objective
    sample = list(islice(stream.once(), 100))
    seen = "segment_ids" if stream.packed else "attention_mask"
    inputs = float(np.mean([(row[seen] != 0).sum() for row in sample]))
    targets = float(np.mean([(row["labels"] != IGNORE_INDEX).sum() for row in sample]))
    packed = ", packed" if stream.packed else ""
    rows = "" if trainer.eval_dataset is None else f"; {len(cast(Any, trainer.eval_dataset)):,} rows to evaluate on"
    return {
        "objective": f"{data.objective}, z-loss {cast(PretrainingArguments, trainer.args).z_loss:g}",
        "text": f"{stream.windows.total:,} bytes in {stream.windows.count:,} parts that are shuffled{rows}",
        "rows": f"{objective.inputs_length} tokens in, {objective.targets_length} out, of {objective.amount()}{packed}",
        "step": describe_step(trainer, inputs, targets),
    }


def _estimate(settled: Run[Options]) -> None:
    """Prints how much memory the run would take."""
    model_options, data, _ = settled.options
    folder, dropout = model_options.model_name_or_path, model_options.dropout_fields()
    tokenizer = _tokenizer(model_options)
    if folder is None:
        config = fresh_config(str(model_options.preset), {**model_options.overrides(), **dropout}, tokenizer)
    else:
        config = load_config(folder, **dropout)
    objective = data.make_objective(tokenizer)
    print_estimate(
        settled,
        config,
        objective.inputs_length,
        objective.targets_length,
        packed=data.pack,
    )


def run(settled: Run[Options]) -> None:
    """Trains, saves, evaluates, reports."""
    _, data, training = settled.options
    if training.estimate is not None:
        _estimate(settled)
        return
    warn_of_float16(training)
    set_seed(training.seed)
    trainer = build_trainer(settled)
    evaluated = {} if trainer.eval_dataset is None else {"eval": trainer.eval_dataset}
    names = ", ".join(Path(name).name for name in data.validation_file or ())
    source = {"dataset_type": "text", "dataset_name": names, "dataset_split": "validation"}
    facts = _describe_data(trainer, data)
    run_trainer(trainer, "Pre-training", facts, evaluated, sources={"eval": source})


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command line; a problem that the user can solve ends it with a sentence, from one process per machine."""
    ENTRY_POINT.start(run, arguments)


if __name__ == "__main__":
    main()
