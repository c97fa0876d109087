# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Tunes a soft prompt for a frozen model on pairs of texts, or converts a prompt that Google released to an adapter.

    accelerate launch training/prompt_tune.py --model_name_or_path MODEL --train_file train.jsonl --output_dir ADAPTER
    python training/prompt_tune.py --model_name_or_path MODEL --import_prompt sst2.npy --output_dir ADAPTER

`python -m t5_experimental.training.prompt_tune` takes the same options, and `--help` lists them. The defaults are those
of https://arxiv.org/abs/2104.08691, which tunes 100 rows before the encoder's input of an LM-adapted model; all
families work. The output folder gets the prompt as a peft adapter:

    model = PeftModel.from_pretrained(AutoModelForSeq2SeqLM.from_pretrained(MODEL), ADAPTER)
    model.generate(**tokenizer(texts, padding=True, return_tensors="pt"))
"""

from t5_experimental.training.cli.first_answers import before_imports


if __name__ == "__main__":
    before_imports("prompt_tune")

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from accelerate import PartialState
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed
from transformers.training_args import OptimizerNames

from t5_experimental.training import finetune
from t5_experimental.training.cli.entry_point import EntryPoint
from t5_experimental.training.data.arguments import DataArguments
from t5_experimental.training.data.examples import Split
from t5_experimental.training.engines.fsdp2 import full_copy
from t5_experimental.training.errors import TrainingError
from t5_experimental.training.memory.estimate import print_estimate
from t5_experimental.training.models.adapters import add_prompt, import_peft
from t5_experimental.training.models.arguments import ModelArguments, PromptArguments
from t5_experimental.training.models.loading import config_to_estimate, load_config
from t5_experimental.training.models.prompts import initial_rows, prompt_to_tune, read_prompt, save_prompt
from t5_experimental.training.optim.adafactor import PromptAdafactor
from t5_experimental.training.report.report import card_of_import, write_card
from t5_experimental.training.report.start_lines import describe_learning_rate, warn_of_float16
from t5_experimental.training.trainer.finetuning import FinetuningTrainer
from t5_experimental.training.trainer.prompt_arguments import PromptTrainingArguments
from t5_experimental.training.trainer.settle import Run


if TYPE_CHECKING:
    from peft import PeftModel


Options = tuple[ModelArguments, PromptArguments, DataArguments, PromptTrainingArguments]

ENTRY_POINT = EntryPoint(
    name="prompt_tune",
    description="Tunes a soft prompt for a frozen model on pairs of texts, or makes an adapter of a released prompt.",
    usage="--model_name_or_path MODEL (--train_file FILE | --import_prompt FILE.npy) --output_dir FOLDER",
    options=(ModelArguments, PromptArguments, DataArguments, PromptTrainingArguments),
)


# Options with an effect on an import, which trains nothing. It ignores where to report.
_FOR_IMPORT = {"model_name_or_path", "import_prompt", "output_dir", "use_cpu", "report_to", "disable_tqdm"}


def run(settled: Run[Options]) -> None:
    """Tunes a prompt, or imports one."""
    _, prompt, data, _ = settled.options
    import_peft()
    if prompt.import_prompt is None:
        has_data = any(source is not None for source in (data.train_file, data.dataset_name, data.mixture))
        if not has_data and settled.training.estimate is None:
            raise TrainingError(
                "There is nothing to do: give --train_file, --dataset_name or --mixture to tune a prompt, or "
                "--import_prompt."
            )
        tune(settled)
    else:
        if unused := sorted(settled.given - _FOR_IMPORT):
            raise TrainingError(f"--import_prompt trains nothing: leave it out, or leave --{unused[0]} out.")
        import_released(settled)


def import_released(settled: Run[Options]) -> None:
    """Writes a prompt from a file as an adapter; reads only the model's configuration."""
    model, prompt, _, training = settled.options
    config = load_config(model.model_name_or_path)
    rows = read_prompt(Path(str(prompt.import_prompt)), config)
    PartialState().wait_for_everyone()  # all have looked at the output folder
    if training.process_index == 0:
        save_prompt(rows, model.model_name_or_path, config, Path(str(training.output_dir)))
        write_card(Path(str(training.output_dir)), card_of_import(config, model.model_name_or_path, settled))
        print(f"The prompt of {len(rows)} rows is in {training.output_dir}", flush=True)


def build_trainer(settled: Run[Options]) -> tuple[FinetuningTrainer, dict[str, Split], dict[str, str]]:
    """The trainer, the examples by split, and facts about the prompt, by heading; see `finetune.build_trainer`."""
    model_options, prompt, data, training = settled.options

    start = prompt.initial_prompt
    if start is not None:
        rows = prompt_to_tune(start, load_config(model_options.model_name_or_path))
        if "prompt_length" in settled.given and prompt.prompt_length != len(rows):
            raise TrainingError(
                f"--prompt_length is {prompt.prompt_length}, but --prompt_init {start} has {len(rows)} rows: leave it "
                "out."
            )
        prompt.prompt_length = len(rows)

    def adapt(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> "PeftModel":
        if start is not None:
            return add_prompt(model, rows)
        draws = torch.Generator().manual_seed(training.seed)
        embedding = full_copy(cast(torch.nn.Embedding, model.get_input_embeddings()).weight)
        length = prompt.prompt_length
        return add_prompt(
            model, initial_rows(str(prompt.prompt_init), prompt.labels, embedding, tokenizer, length, draws)
        )

    inner: Run[finetune.Options] = replace(cast(Any, settled), options=(model_options, data, training))
    trainer, splits = finetune.build_trainer(inner, adapt)
    facts = {"prompt": f"{prompt.prompt_length} rows, initialized with {prompt.prompt_init}; all else is frozen"}
    if OptimizerNames(training.optim) == OptimizerNames.ADAFACTOR:
        settings = {"lr": training.learning_rate, "weight_decay": training.weight_decay}
        trainer.optimizer_cls_and_kwargs = (PromptAdafactor, settings)
        facts["optimizer"] = (
            f"adafactor without parameter scaling, {describe_learning_rate(trainer)}, decay {training.weight_decay:g}"
        )
    return trainer, splits, facts


def tune(settled: Run[Options]) -> None:
    """Trains, saves, evaluates."""
    model_options, prompt, data, training = settled.options
    if training.estimate is not None:
        config = config_to_estimate(model_options)
        lengths = data.max_source_length, data.max_target_length
        print_estimate(settled, config, *lengths, prompt_length=prompt.prompt_length)
        return
    model_options.check_trains()
    warn_of_float16(training)
    set_seed(training.seed)
    trainer, splits, facts = build_trainer(settled)
    finetune.train_and_evaluate(trainer, splits, data, "Prompt tuning", facts)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command line; a problem that the user can solve ends it with a sentence, from one process per machine."""
    ENTRY_POINT.start(run, arguments)


if __name__ == "__main__":
    main()
