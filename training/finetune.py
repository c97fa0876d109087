# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Fine-tunes a converted checkpoint on pairs of texts.

    accelerate launch training/finetune.py --model_name_or_path MODEL --train_file train.jsonl --output_dir OUTPUT

`python -m t5_experimental.training.finetune` takes the same options: `--help` lists ours and the usual ones of
transformers' `Seq2SeqTrainingArguments`, `--help-all` all. A YAML file of options, such as those in `recipes/`, may
come first. The output folder gets the model (or its adapters) and tokenizer, the metrics as `train_results.json`,
`eval_results.json` (of the validation file), `test_results.json` and `all_results.json`, `report.html` with curves and
samples, a model card that links to it, the generated texts with references and scores as `predictions_eval.jsonl` and
`predictions_test.jsonl`, and the trainer's checkpoints. With `--do_train False`, or with `--do_eval` or `--do_predict`
and no training data, it does what `evaluate.py` does.
"""

from t5_experimental.training.cli.first_answers import before_imports


if __name__ == "__main__":
    before_imports("finetune")

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from t5_experimental.training.cli.entry_point import EntryPoint
from t5_experimental.training.data.arguments import DataArguments
from t5_experimental.training.data.collator import pair_collator
from t5_experimental.training.data.examples import Split
from t5_experimental.training.data.packed_rows import PackedCollator, PackedSampler
from t5_experimental.training.data.predictions import as_lines, predictions_file
from t5_experimental.training.data.splits import make_splits
from t5_experimental.training.engines.fsdp2_weights import reads_in_parts
from t5_experimental.training.errors import TrainingError
from t5_experimental.training.evaluation import check_splits, run_evaluation, settle_metrics
from t5_experimental.training.memory.estimate import print_estimate
from t5_experimental.training.models.adapters import import_peft, load_adapter, lora_config, lora_targets
from t5_experimental.training.models.arguments import EvaluatedModelArguments, ModelArguments, check_model_folder
from t5_experimental.training.models.loading import config_to_estimate, load_model, load_tokenizer
from t5_experimental.training.report.start_lines import describe_step, warn_of_float16
from t5_experimental.training.run import run_trainer
from t5_experimental.training.trainer.base_model import mark_base
from t5_experimental.training.trainer.checkpoint_folders import write_aside
from t5_experimental.training.trainer.finetuning import FinetuningTrainer
from t5_experimental.training.trainer.finetuning_arguments import FinetuningArguments, check_only_evaluates
from t5_experimental.training.trainer.generation import settle_generation
from t5_experimental.training.trainer.settle import Run
from t5_experimental.training.trainer.trainer import T5Trainer


Options = tuple[ModelArguments, DataArguments, FinetuningArguments]

ENTRY_POINT = EntryPoint(
    name="finetune",
    description="Fine-tunes a converted checkpoint on pairs of texts.",
    usage="--model_name_or_path MODEL --train_file FILE --output_dir FOLDER",
    options=(ModelArguments, DataArguments, FinetuningArguments),
)


def parse(arguments: Sequence[str] | None = None) -> Run[Options]:
    """A settled run from the command line; `arguments` replace it in tests and notebooks."""
    return ENTRY_POINT.parse(arguments)


def build_trainer(
    settled: Run[Options], adapt: Callable[[PreTrainedModel, PreTrainedTokenizerBase], Any] | None = None
) -> tuple[FinetuningTrainer, dict[str, Split]]:
    """The trainer, and the examples by split. Finds out everything that is wrong with the options or the data.

    Args:
        settled: the run.
        adapt: turns the loaded model into the one to train. By default, adds the adapters that the options ask for, or
            none; without adapters, processes that shard the weights each read their own shard when training starts.
    """
    model_options, data, training = settled.options
    if (data.mixture is not None or training.pack) and "train_sampling_strategy" in settled.given:
        raise TrainingError("--train_sampling_strategy has no effect with --mixture or --pack: leave it out.")
    settle_metrics(training, data, settled.given)
    folder, adapter = EvaluatedModelArguments(model_options.model_name_or_path).folders()
    if adapter is not None:
        if adapt is not None:
            raise TrainingError(f"--model_name_or_path {adapter} holds an adapter: give the folder of the model.")
        _check_further_training(adapter, training)
        dropout = model_options.dropout_rate if "dropout_rate" in settled.given else None
        adapt = partial(_with_adapter, adapter, dropout)
    elif adapt is None and training.lora_rank:
        adapt = _with_lora(training.lora_rank)
    elif training.merge_lora:
        raise TrainingError("--merge_lora has no effect without --lora_rank: give both, or none.")
    check_model_folder(folder)
    tokenizer = load_tokenizer(folder)
    device_map = "meta" if adapt is None and reads_in_parts(settled.engine, folder) else None
    model = load_model(folder, tokenizer, device_map=device_map, **model_options.dropout_fields())
    # The first process fills the cache of `datasets` for the others.
    with training.main_process_first(desc="reading the data"):
        seed = training.seed if training.data_seed is None else training.data_seed
        splits = make_splits(data, tokenizer, seed)
        if training.pack:
            splits["train"] = splits["train"].packed((data.max_source_length, data.max_target_length), seed)
    check_splits(training, data, splits, settled.given)
    batch = training.train_batch_size * training.world_size
    if training.dataloader_drop_last and splits["train"].epoch < batch:
        raise TrainingError(
            f"--dataloader_drop_last drops all of {splits['train'].epoch} examples, since {batch} make a batch: "
            "leave it out, or lower --per_device_train_batch_size."
        )
    settle_generation(model, training, data.max_target_length, adapter=adapter)
    mark_base(model)
    trainer = FinetuningTrainer(
        splits,
        data,
        training.metric,
        model=model if adapt is None else adapt(model, tokenizer),
        args=settled,
        data_collator=PackedCollator(pair_collator(tokenizer, model)),
        processing_class=tokenizer,
    )
    return trainer, splits


def run(settled: Run[Options]) -> None:
    """Trains, saves, evaluates, reports; or only evaluates, if that is what the options say."""
    model_options, data, training = settled.options
    if training.estimate is not None:
        config = config_to_estimate(model_options)
        print_estimate(
            settled,
            config,
            data.max_source_length,
            data.max_target_length,
            lora_rank=training.lora_rank,
            packed=training.pack,
        )
        return
    model_options.check_trains()
    if not training.trains(data.has_training_data):
        check_only_evaluates(settled.given)
        evaluated = EvaluatedModelArguments(model_options.model_name_or_path)
        warn_of_float16(training)
        run_evaluation(replace(cast(Any, settled), options=(evaluated, data, training)))
        return
    warn_of_float16(training)
    set_seed(training.seed)
    trainer, splits = build_trainer(settled)
    train_and_evaluate(trainer, splits, data)


def _check_further_training(adapter: str, training: FinetuningArguments) -> None:
    """Refuses options that do not suit adapters which are trained further."""
    if import_peft().PeftConfig.from_pretrained(adapter).is_prompt_learning:
        raise TrainingError(
            f"--model_name_or_path {adapter} holds a prompt: prompt_tune tunes it further with --prompt_init {adapter} "
            "and the model's folder."
        )
    if training.lora_rank:
        raise TrainingError(
            f"--lora_rank is for new adapters, and {adapter} holds some, which are trained further: leave it out."
        )
    if (chosen := training.chosen_optimizer()).is_original_adafactor:
        raise TrainingError(
            f"--model_name_or_path {adapter} holds adapters, and the Adafactor of {chosen.option} scales updates by "
            "the size of a parameter: choose adamw there, or leave the option out."
        )


def _with_adapter(
    adapter: str, dropout: float | None, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> Any:
    """The model with the LoRA adapters of a folder, to train them further; None keeps the dropout of their inputs."""
    return load_adapter(model, adapter, trains=True, dropout=dropout)


def _with_lora(rank: int) -> Callable[[PreTrainedModel, PreTrainedTokenizerBase], Any]:
    """Returns a function that adds adapters of this rank to all linear layers of a model."""

    def adapt(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Any:
        config = lora_config(model, rank, lora_targets(model), model.config.dropout_rate)
        return import_peft().get_peft_model(model, config)

    return adapt


def train_and_evaluate(
    trainer: FinetuningTrainer,
    splits: dict[str, Split],
    data: DataArguments,
    title: str = "Fine-tuning",
    more: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Describes the run, trains, saves, evaluates, reports.

    Args:
        trainer: of the run.
        splits: what to evaluate on, by prefix of the metrics.
        data: options of the splits.
        title: of the report.
        more: additional facts, by heading, see [`~t5_experimental.training.report.start_lines.describe`].
    """
    run_trainer(
        trainer,
        title,
        {**_describe_data(trainer, splits, data), **more},
        {split: features.pairs for split, features in splits.items() if split != "train"},
        trainer.sample,
        trainer.merge_adapter if trainer.args.merge_lora else lambda: None,
        lambda folder: _write_predictions(trainer, folder),
        data.sources(),
        data.hub_names(),
    )


def _write_predictions(trainer: FinetuningTrainer, folder: Path) -> None:
    """Writes the texts of the last evaluation of every split that generated them all."""
    for split, samples in trainer.predictions.items():
        write_aside(folder, predictions_file(folder, split).name, as_lines(samples, trainer.args.metric))


def _describe_data(trainer: T5Trainer, splits: dict[str, Split], data: DataArguments) -> dict[str, str]:
    training = splits["train"]
    sizes = ", ".join(f"{len(features.pairs):,} {split}" for split, features in splits.items())
    lines = {
        "examples": f"{sizes}; at most {data.max_source_length} tokens in, {data.max_target_length} out",
        "step": describe_step(trainer, *training.mean_lengths(1000), "examples" if training.rows is None else "rows"),
    }
    if training.mixture is not None:
        lines = {"mixture": training.mixture.describe(), **lines}
    if isinstance(training.sampler, PackedSampler):
        lines = {**lines, "rows": training.sampler.describe()}
    if data.chosen_task is not None:
        lines = {"task": data.chosen_task.describe(), **lines}
    kinds = [(f"{split} {kind}", cut) for split, features in splits.items() for kind, cut in features.cut.items()]
    cuts = [
        f"{cut.count:,} of {cut.total:,} {kind}, the longest has {cut.longest:,} tokens"
        for kind, cut in kinds
        if cut.count
    ]
    if cuts:
        lines["cut off"] = f"{'; '.join(cuts)} (--max_source_length and --max_target_length are the limits)"
    if empty := [f"{cut.empty:,} {kind}" for kind, cut in kinds if cut.empty]:
        lines["empty"] = f"{', '.join(empty)} have no text"
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command line; a problem that the user can solve ends it with a sentence, from one process per machine."""
    ENTRY_POINT.start(run, arguments)


if __name__ == "__main__":
    main()
