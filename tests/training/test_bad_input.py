# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Bad input ends in one clear sentence and a non-zero exit, and leaves nothing behind."""

import errno
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForTextEncoding, AutoTokenizer, LongT5Config

from t5_experimental.training import finetune
from t5_experimental.training.cli import entry_point as commandline
from t5_experimental.training.models.loading import load_tokenizer
from t5_experimental.training.trainer.foreign_files import find_foreign_file


RESTAURANTS = Path(__file__).parents[1] / "data" / "restaurants_validation.jsonl"
GOOD_LINE = '{"source": "a", "target": "b"}\n'


@pytest.fixture(autouse=True)
def _private_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def model(tiny_models) -> Path:
    return tiny_models["t5_v1_1"]


@pytest.fixture
def train_file(tmp_path) -> Path:
    path = tmp_path / "train.jsonl"
    path.write_text(GOOD_LINE)
    return path


def complaint(output: Path | None, **options: object) -> str:
    """What `finetune` says when it refuses; checks that it wrote nothing."""
    options = {"use_cpu": True, **options} | ({} if output is None else {"output_dir": output})
    before = sorted(output.rglob("*")) if output is not None and output.is_dir() else None
    with pytest.raises(SystemExit) as exit_info:
        finetune.main([text for name, value in options.items() for text in (f"--{name}", str(value))])
    message = str(exit_info.value.code)
    assert message.startswith("finetune: ")
    assert "\n" not in message
    if before is not None:
        assert sorted(output.rglob("*")) == before
    elif output is not None:
        assert not output.is_dir()
    return message


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("empty.jsonl", b"", "has no examples"),
        ("blank.jsonl", b"\n\n", "has no examples"),
        ("header.csv", b"source,target\n", "has no examples"),
        ("empty.csv", b"", "has no examples"),
        ("columns.jsonl", b'{"text": "a", "target": "b"}\n', "line 1: no column 'source' among ['target', 'text']"),
        ("columns.csv", b"source,label\na,b\n", "line 2: no column 'target' among ['label', 'source']"),
        ("broken.jsonl", b'{"source": "a"\n', "line 1: not JSON"),
        ("list.jsonl", b'["a", "b"]\n', "line 1: not a JSON object"),
        ("half.jsonl", b'{"source": "a \\ud800", "target": "b"}\n', "line 1: not Unicode text"),
        ("null.jsonl", b'{"source": "a", "target": null}\n', "column 'target' holds None, which is not text"),
        ("later.jsonl", GOOD_LINE.encode() * 2 + b'{"source": "a"}\n', "line 3: no column 'target'"),
        ("nan.jsonl", b'{"source": NaN, "target": "b"}\n', "column 'source' holds nan, which is not text"),
        ("infinite.jsonl", b'{"source": "a", "target": -Infinity}\n', "column 'target' holds -inf, which is not text"),
        ("boolean.jsonl", b'{"source": true, "target": "b"}\n', "column 'source' holds True, which is not text"),
        ("references.jsonl", b'{"source": "a", "target": ["b", null]}\n', "holds None, which is not text"),
        ("nothing.jsonl", b'{"source": "a", "target": []}\n', "column 'target' is an empty list"),
        ("inputs.jsonl", b'{"source": ["a"], "target": "b"}\n', "holds ['a'], which is not text"),
        ("cells.csv", b"source,target\na,b,c\n", "line 2: not as many cells"),
        ("latin1.jsonl", '{"source": "é", "target": "b"}\n'.encode("latin-1"), "is not UTF-8 text"),
        ("broken.parquet", b"PAR1", "is not a Parquet file"),
        ("text.txt", b"a\n", "unknown extension '.txt'"),
    ],
)
def test_data_files(name, content, expected, model, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    assert expected in complaint(tmp_path / "output", model_name_or_path=model, train_file=path)


def test_parquet_without_the_column(model, tmp_path):
    from datasets import Dataset

    path = tmp_path / "data.parquet"
    Dataset.from_dict({"source": ["a"], "text": ["b"]}).to_parquet(path)
    message = complaint(tmp_path / "output", model_name_or_path=model, train_file=path)
    assert "row 1: no column 'target' among ['source', 'text']" in message


@pytest.mark.parametrize("option", ["train_file", "validation_file", "test_file"])
def test_missing_files(option, model, train_file, tmp_path):
    options = {"model_name_or_path": model, "train_file": train_file, option: tmp_path / "none.jsonl"}
    message = complaint(tmp_path / "output", **options)
    assert f"--{option} {tmp_path / 'none.jsonl'} does not exist" in message


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"dropout_rate": 1}, "--dropout_rate is 1.0"),
        ({"max_source_length": 0}, "--max_source_length is 0"),
        ({"max_target_length": -1}, "--max_target_length is -1"),
        ({"eval_strategy": "epoch"}, "give --validation_file"),
        ({"z_loss": -1}, "--z_loss is -1.0"),
        ({"label_smoothing_factor": 1}, "--label_smoothing_factor is 1.0"),
        ({"loss_denominator": "words"}, "invalid choice: 'words'"),
        ({"metric": "bleu"}, "--metric bleu needs references to compare with: give --validation_file or --test_file"),
        ({"metric": "blue"}, "--metric blue does not exist: choose from bleu, chrf, rouge, exact_match"),
        ({"dataset_name": "squad"}, "--train_file and --dataset_name exclude each other"),
        ({"dataset_config_name": "plain"}, "has no effect without --dataset_name"),
        ({"lora_rank": -1}, "--lora_rank is -1"),
        ({"lora_rank": 2, "optimizer_preset": "finetune"}, "choose adamw there"),
        ({"merge_lora": True}, "--merge_lora has no effect without --lora_rank"),
        ({"optimizer_preset": "adam"}, "--optimizer_preset adam does not exist: choose one of finetune, pretrain"),
        ({"optimizer_preset": "adamw", "optim": "sgd"}, "--optim sgd and --optimizer_preset adamw exclude each other"),
        ({"optimizer_slots": "folder"}, "give --optimizer_preset, too"),
        ({"optimizer_preset": "finetune", "warmup_steps": 0.1}, "give a number of steps"),
        ({"optimizer_preset": "adamw", "optimizer_slots": "folder"}, "which --optimizer_preset adamw cannot resume"),
        ({"optimizer_preset": "finetune", "optimizer_slots": "folder"}, "folder has no optimizer.safetensors"),
        ({"optimizer_preset": "finetune", "weight_decay": 0.1}, "--weight_decay 0.1 is not for Adafactor"),
        (
            {"optimizer_preset": "finetune", "lr_scheduler_type": "linear"},
            "--lr_scheduler_type has no effect with --optimizer_preset finetune, which has its own schedule",
        ),
        (
            {"optimizer_preset": "pretrain", "lr_scheduler_kwargs": "{}"},
            "--lr_scheduler_kwargs has no effect with --optimizer_preset pretrain",
        ),
        ({"lr_scheduler_kwargs": "{}"}, "--lr_scheduler_kwargs has no effect with a constant learning rate"),
        (
            {"optimizer_preset": "finetune", "adam_beta1": 0.9},
            "--adam_beta1 has no effect with --optimizer_preset finetune, which is Adafactor: leave it out",
        ),
        ({"adam_epsilon": 1e-6}, "--adam_epsilon has no effect with --optim adafactor"),
        ({"optim_args": "a=1"}, "--optim_args has no effect with --optim adafactor"),
        ({"optim": "sgd", "adam_beta2": 0.9}, "--adam_beta2 has no effect with --optim sgd"),
        (
            {"optimizer_preset": "adamw", "optim_args": "a=1"},
            "--optim_args has no effect with --optimizer_preset adamw: leave it out, or give --optim",
        ),
        ({"optim_target_modules": "q"}, "--optim_target_modules has no effect with --optim adafactor"),
        ({"optim": "adamw_torch", "adam_beta1": 1}, "--adam_beta1 is 1: it must be at least 0 and less than 1"),
        ({"learning_rate": -1}, "--learning_rate is -1: it must be at least 0"),
        (
            {"lr_scheduler_type": "polynomial", "learning_rate": 1e-8},
            "--lr_scheduler_type polynomial needs --lr_scheduler_kwargs (lr_end (1e-07) must be smaller than",
        ),
        ({"learning_rate": "-1e-3"}, "--learning_rate is -0.001: it must be at least 0"),
        ({"weight_decay": "nan"}, "--weight_decay is nan: it must be at least 0"),
        ({"per_device_train_batch_size": 0}, "--per_device_train_batch_size is 0: it must be at least 1"),
        ({"per_device_eval_batch_size": 0}, "--per_device_eval_batch_size is 0"),
        ({"gradient_accumulation_steps": 0}, "--gradient_accumulation_steps is 0"),
        ({"num_train_epochs": 0}, "--num_train_epochs is 0, which trains nothing"),
        ({"max_steps": "many"}, "invalid int value: 'many'"),
        ({"eval_steps": 5}, "--eval_steps has no effect without --eval_strategy steps"),
        ({"seed": -1}, "--seed is -1: it must be at least 0"),
        ({"dataloader_num_workers": -1}, "--dataloader_num_workers is -1"),
        ({"seed": 2**32}, "--seed is 4294967296: it must be at most 4294967295"),
        ({"data_seed": 2**32}, "--data_seed is 4294967296: it must be at most 4294967295"),
        ({"max_steps": 0}, "--max_steps is 0, which trains nothing: it must be at least 1"),
        ({"max_steps": -2}, "--max_steps is -2, which trains nothing"),
        (
            {"dataloader_persistent_workers": True},
            "--dataloader_persistent_workers has no effect without --dataloader_n",
        ),
        (
            {"dataloader_prefetch_factor": 2},
            "--dataloader_prefetch_factor has no effect without --dataloader_num_workers",
        ),
        (
            {"dataloader_num_workers": 2, "dataloader_prefetch_factor": 0},
            "--dataloader_prefetch_factor is 0: it must be",
        ),
        ({"generation_max_length": 1}, "--generation_max_length is 1: it must be at least 2"),
        ({"neftune_noise_alpha": 5}, "--neftune_noise_alpha has no effect on these models"),
        ({"use_liger_kernel": True}, "--use_liger_kernel has no effect on these models"),
        ({"save_strategy": "best"}, "--save_strategy best needs evaluations to compare: give --validation_file"),
        (
            {"save_strategy": "best", "eval_strategy": "epoch", "validation_file": RESTAURANTS},
            "--save_strategy best does not say what is compared: give --metric_for_best_model, such as loss",
        ),
        ({"max_steps": 5, "num_train_epochs": 5}, "--num_train_epochs has no effect with --max_steps"),
        ({"save_strategy": "no", "save_steps": 5}, "--save_steps has no effect without --save_strategy steps"),
        ({"save_strategy": "epoch", "save_steps": 5}, "--save_steps has no effect without --save_strategy steps"),
        ({"save_strategy": "no", "save_total_limit": 5}, "--save_total_limit has no effect with --save_strategy no"),
        (
            {"logging_strategy": "epoch", "logging_steps": 5},
            "--logging_steps has no effect without --logging_strategy st",
        ),
        ({"eval_delay": 5}, "--eval_delay has no effect without --eval_strategy"),
        (
            {"eval_strategy": "epoch", "eval_steps": 5, "validation_file": RESTAURANTS},
            "--eval_steps has no effect without --eval_strategy steps",
        ),
        ({"eval_on_start": True}, "--eval_on_start needs examples to evaluate on: give --validation_file"),
        ({"greater_is_better": True}, "--greater_is_better has no effect without --metric_for_best_model"),
        ({"save_strategy": "no", "save_only_model": True}, "--save_only_model has no effect with --save_strategy no"),
        ({"hub_model_id": "x/y"}, "--hub_model_id has no effect without --push_to_hub"),
        ({"sortish_sampler": True}, "--sortish_sampler does not apply to data that this program tokenizes"),
        ({"learning_rate": 1e38}, "--learning_rate is 1e+38: it must be at most 1e+30"),
        ({"torch_compile_mode": "x"}, "--torch_compile_mode x is not one of default, "),
        ({"length_column_name": "n"}, "--length_column_name does not apply to data that this program tokenizes"),
        ({"label_names": "labels"}, "--label_names does not apply to data that this program tokenizes"),
        ({"save_steps": 0}, "--save_steps is 0: it must be more than 0"),
        ({"logging_steps": 0}, "--logging_steps is 0: it must be more than 0"),
        (
            {"gradient_checkpointing_kwargs": '{"use_reentrant": false}'},
            "--gradient_checkpointing_kwargs has no effect without --gradient_checkpointing",
        ),
        *(
            ({"optim": name}, f"--optim {name} needs a package that is not installed (")
            for name in ("adamw_bnb_8bit", "galore_adamw", "apollo_adamw", "lomo", "schedule_free_adamw")
        ),
        ({"optim": "grokadamw"}, "--optim grokadamw does not work like this (Please install grokadamw"),
        ({"optim": "adamw_anyprecision"}, "--optim adamw_anyprecision does not work like this (Please install"),
        ({"generation_num_beams": 0}, "--generation_num_beams is 0: it must be at least 1"),
        ({"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": "no"}, "--lr_scheduler_kwargs no does not fit"),
        (
            {"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": '{"cycles": 2}'},
            "does not fit --lr_scheduler_type cosine (get_cosine_schedule_with_warmup() got an unexpected keyword",
        ),
        ({"do_train": False}, "--do_train False leaves nothing to do"),
        ({"do_eval": True}, "--do_eval needs examples to evaluate on: give --validation_file, too"),
        ({"do_predict": True}, "--do_predict needs examples to evaluate on: give --test_file, too"),
        (
            {"do_eval": False, "validation_file": RESTAURANTS},
            "--do_eval False contradicts --validation_file, which is evaluated on: leave one out",
        ),
        ({"metric_for_best_model": "bleu"}, "bleu is not computed, only loss: choose one of these, or give --metric"),
        (
            {"metric_for_best_model": "eval_rouge", "metric": "rouge"},
            "--metric_for_best_model eval_rouge is not computed, only loss, rouge1, rouge2, rougeLsum",
        ),
        ({"max_step": 1}, "There is no option --max_step; the nearest is --max_steps"),
        ({"max_stepz": 1}, "There is no option --max_stepz; the nearest is --max_steps"),
        ({"fp16": True, "bf16": True}, "At most one of fp16 and bf16"),
        ({"report_to": "carrier_pigeon"}, "carrier_pigeon is not supported"),
        ({"resume_from_checkpoint": "checkpoint-1"}, "checkpoint-1 is not a complete checkpoint"),
        ({"resume_from_checkpoint": True}, "needs a checkpoint in --output_dir"),
        ({"load_best_model_at_end": True, "save_strategy": "steps"}, "needs evaluations to compare: give --valid"),
        (
            {"load_best_model_at_end": True, "save_strategy": "epoch", "eval_strategy": "steps"},
            "but --eval_strategy is steps and --save_strategy epoch: give the same, or --save_strategy best",
        ),
        ({"group_by_length": True}, "it is --train_sampling_strategy group_by_length now"),
        ({"warmup-ratio": 0.1}, "There is no option --warmup-ratio; --warmup_steps takes a fraction now"),
        ({"prediction_loss_only": True}, "--prediction_loss_only does not apply to fine-tuning"),
        ({"batch_eval_metrics": True}, "--batch_eval_metrics does not apply to fine-tuning"),
        ({"eval_do_concat_batches": False}, "--eval_do_concat_batches does not apply to fine-tuning"),
        (
            {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": '{"keep_attentions": true}'},
            "--gradient_checkpointing_kwargs has 'keep_attentions', which is not one of debug, determinism_check, ",
        ),
        (
            {"dataloader_drop_last": True, "per_device_train_batch_size": 2},
            "--dataloader_drop_last drops all of 1 examples, since 2 make a batch",
        ),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "needs --lr_scheduler_kwargs (One of min_lr"),
        ({"push_to_hub": True}, "--push_to_hub cannot make the repository ("),
        ({"deepspeed": "nope.json"}, "--deepspeed nope.json does not exist"),
        ({"predict_with_generate": True}, "--predict_with_generate needs references to compare with"),
    ],
)
def test_options(options, expected, model, train_file, tmp_path):
    assert expected in complaint(tmp_path / "output", model_name_or_path=model, train_file=train_file, **options)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("config.json", b"{", "The tokenizer of"),
        ("config.json", b"{}", "does not describe a model"),
        ("config.json", b'{"model_type": "t5_v1_1", "num_heads": "many"}', "The tokenizer of"),
        ("model.safetensors", b"garbage", "The weights of"),
        ("model.safetensors", None, "The weights of"),
    ],
)
def test_broken_models(name, content, expected, model, train_file, tmp_path):
    """None: cut off in the middle."""
    folder = shutil.copytree(model, tmp_path / "model")
    file = folder / name
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2] if content is None else content)
    message = complaint(tmp_path / "output", model_name_or_path=folder, train_file=train_file)
    assert expected in message
    assert str(folder) in message


def test_weights_of_another_shape(model, tiny_models, train_file, tmp_path):
    folder = shutil.copytree(model, tmp_path / "model")
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"d_ff": 64', '"d_ff": 80'))
    message = complaint(tmp_path / "output", model_name_or_path=folder, train_file=train_file)
    assert f"The weights of {folder} do not fit its config.json: " in message
    assert re.search(r"DenseReluDense\.w\w+\.weight has the shape \(\d+, \d+\)", message)


def test_nothing_to_train_on(model, tmp_path):
    message = complaint(tmp_path / "output", model_name_or_path=model)
    assert "give --train_file, --dataset_name or --mixture" in message


@pytest.mark.parametrize(("metric", "package"), [("bleu", "sacrebleu"), ("rouge", "rouge_score")])
def test_metric_that_is_not_installed(metric, package, model, train_file, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    message = complaint(tmp_path / "output", model_name_or_path=model, train_file=train_file, metric=metric)
    assert f"--metric {metric} needs the package {package}" in message


def test_lora_that_is_not_installed(model, train_file, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    message = complaint(tmp_path / "output", model_name_or_path=model, train_file=train_file, lora_rank=2)
    assert "Adapters need the package peft" in message


def test_output_folder(model, train_file, tmp_path):
    options = {"model_name_or_path": model, "train_file": train_file}
    assert "--output_dir is missing" in complaint(None, **options)
    assert "is a file" in complaint(train_file, **options)
    assert "already holds a model" in complaint(model, **options)


def test_output_folder_that_cannot_be_made(model, train_file, tmp_path):
    # What the kernel serves below /proc cannot be added to, not even by root, who may write everywhere else.
    for folder in (Path("/proc/output"), train_file / "output", tmp_path / ("a" * 300)):
        with pytest.raises(SystemExit, match=r"cannot be written to .*: give a folder that you can write to"):
            finetune.main(
                f"--model_name_or_path {model} --train_file {train_file} --use_cpu --output_dir {folder}".split()
            )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train.jsonl"]


def test_reporter_that_is_not_installed(model, train_file, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.integrations.integration_utils.is_tensorboard_available", lambda: False)
    options = {"model_name_or_path": model, "train_file": train_file, "report_to": "tensorboard"}
    message = complaint(tmp_path / "output", **options)
    assert "--report_to tensorboard needs a package that is not installed" in message


def test_resuming_is_checked_before_anything_is_loaded(model, train_file, tmp_path, monkeypatch):
    monkeypatch.setattr(finetune, "build_trainer", lambda options: pytest.fail("the model was loaded"))
    output = tmp_path / "output"
    (output / "checkpoint-2").mkdir(parents=True)
    options = {"model_name_or_path": model, "train_file": train_file}
    for wanted in (True, output / "checkpoint-2"):
        message = complaint(output, **options, resume_from_checkpoint=wanted)
        assert "checkpoint-2 is not a complete checkpoint (it has no trainer_state.json)" in message


def test_only_one_process_of_a_machine_speaks(tmp_path, monkeypatch, capsys):
    waited = []
    monkeypatch.setattr("time.sleep", waited.append)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(SystemExit) as exit_info:
        finetune.main(["--model_name_or_path", str(tmp_path), "--train_file", "none", "--output_dir", "none"])
    assert exit_info.value.code == 1
    assert "".join(capsys.readouterr()) == ""
    assert waited == [commandline.SECONDS_TO_BE_ENDED]


@pytest.mark.parametrize("option", ["train_file", "validation_file", "model_name_or_path", "recipe"])
def test_names_that_are_too_long(option, model, train_file, tmp_path):
    options = {"model_name_or_path": model, "train_file": train_file, option: "x" * 3000}
    # Python 3.14 says of such a name only that it does not exist.
    assert re.search(r"[a-z)]: (give|choose) (a|the path|paths)[^:]*\.$", complaint(tmp_path / "output", **options))


def test_files_that_may_not_be_read(model, train_file, tmp_path, monkeypatch):
    """Those who run the tests may be allowed to read everything."""

    def refuse(path: str, *_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", path)

    monkeypatch.setattr(Path, "is_file", refuse)
    said = complaint(tmp_path / "output", model_name_or_path=model, train_file=train_file)
    assert said.endswith(" cannot be used (Permission denied): give another path, or make it accessible.")


def test_a_tokenizer_that_does_not_end_texts(model, train_file, tmp_path):
    """Truncation keeps the last token, which would be any; plain text is ended elsewhere."""
    folder = shutil.copytree(model, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.backend_tokenizer.post_processor = None
    (folder / "spiece.model").unlink()
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "tokenizer_class": "PreTrainedTokenizerFast"}))
    assert AutoTokenizer.from_pretrained(folder)("a").input_ids[-1] != 1
    said = complaint(tmp_path / "output", model_name_or_path=folder, train_file=train_file)
    assert f"The tokenizer of {folder} does not end a text with its end-of-sequence token" in said
    assert load_tokenizer(str(folder), for_pairs=False)


def test_settings_of_a_model_without_room_for_a_text(model, train_file, tmp_path):
    folder = shutil.copytree(model, tmp_path / "model")
    (folder / "generation_config.json").write_text('{"max_length": 1, "decoder_start_token_id": 0}')
    options = {"generation_config": folder, "validation_file": train_file}
    said = complaint(tmp_path / "output", model_name_or_path=folder, train_file=train_file, **options)
    assert "The generation settings have max_length 1, which the decoder's start token fills" in said


def test_model_folders(model, train_file, tmp_path):
    def refusal(folder: Path) -> str:
        return complaint(tmp_path / "output", model_name_or_path=folder, train_file=train_file)

    assert "is not a model folder" in refusal(tmp_path / "none")

    without_tokenizer = tmp_path / "without_tokenizer"
    shutil.copytree(model, without_tokenizer)
    (without_tokenizer / "spiece.model").unlink()
    (without_tokenizer / "tokenizer_config.json").unlink()
    assert "has no tokenizer: convert" in refusal(without_tokenizer)

    too_many_ids = tmp_path / "too_many_ids"
    shutil.copytree(model, too_many_ids)
    config = (too_many_ids / "tokenizer_config.json").read_text()
    (too_many_ids / "tokenizer_config.json").write_text(config.replace("100", "1000"))
    assert "the model only 1152 embedding rows" in refusal(too_many_ids)

    other_padding = tmp_path / "other_padding"
    shutil.copytree(model, other_padding)
    config = (other_padding / "config.json").read_text()
    (other_padding / "config.json").write_text(config.replace('"pad_token_id": 0', '"pad_token_id": 3'))
    assert "has pad_token_id 0, the model 3: the vocabulary is another model's" in refusal(other_padding)

    without_weights = tmp_path / "without_weights"
    shutil.copytree(model, without_weights, ignore=shutil.ignore_patterns("*.safetensors"))
    assert "do not load" in refusal(without_weights)

    encoder_only = tmp_path / "encoder_only"
    shutil.copytree(model, encoder_only)
    AutoModelForTextEncoding.from_pretrained(model).save_pretrained(encoder_only)
    assert "weights, such as decoder.block.0" in refusal(encoder_only)

    other_shape = tmp_path / "other_shape"
    shutil.copytree(model, other_shape)
    config = (other_shape / "config.json").read_text()
    (other_shape / "config.json").write_text(config.replace('"d_ff": 64', '"d_ff": 48'))
    message = refusal(other_shape)
    assert "has the shape (64, 32) and should have (48, 32), and 11 more differ; copy both" in message

    stock = tmp_path / "stock"
    shutil.copytree(model, stock, ignore=shutil.ignore_patterns("config.json", "*.safetensors", "*.py"))
    LongT5Config(architectures=["LongT5ForConditionalGeneration"]).save_pretrained(stock)
    assert "holds a model of type 'longt5', which is no T5" in refusal(stock)


@pytest.mark.parametrize(
    "name",
    [
        *("README.md", "eval_results.json", "test_a_results.json", "predictions_test.jsonl", "generation_config.json"),
        *("model.safetensors", "model-00001-of-00002.safetensors", "modeling_t5_experimental.py"),
    ],
)
def test_files_of_others_stay(name, model, train_file, tmp_path):
    output = tmp_path / "output"
    output.mkdir()
    for mine in (name, "notes.txt", "bleu_results.json", "embeddings.safetensors", "my_t5_experimental.py"):
        (output / mine).write_text("mine")
    message = complaint(output, model_name_or_path=model, train_file=train_file)
    assert f"--output_dir {output} holds {name}, which no run here has written and this one would replace" in message
    assert (output / name).read_text() == "mine"


@pytest.mark.parametrize("sign", ["history.jsonl", "unfinished", "unfinished-x", "checkpoint-3"])
def test_files_of_a_run_that_was_killed_are_written_again(sign, tmp_path):
    """At the first log, which then is empty, or while its files were moved."""
    (tmp_path / "model.safetensors").touch()
    assert find_foreign_file(tmp_path, trains=True) == "model.safetensors"
    assert find_foreign_file(tmp_path, trains=False) is None  # an evaluation does not write it
    (tmp_path / sign).touch() if "." in sign else (tmp_path / sign).mkdir()
    assert find_foreign_file(tmp_path, trains=True) is None


def test_an_evaluation_has_written_its_own_files_alone(tmp_path):
    for name in ("README.md", "test_results.json"):
        (tmp_path / name).touch()
    assert find_foreign_file(tmp_path, trains=False) == "test_results.json"
    (tmp_path / "evaluation.json").touch()
    assert find_foreign_file(tmp_path, trains=False) is None
    assert find_foreign_file(tmp_path, trains=True) == "README.md"


@pytest.mark.slow
def test_through_the_launcher(launch, model, tmp_path):
    result = launch(2, model_name_or_path=model, output_dir=tmp_path / "output", input_column="text")
    assert result.returncode != 0
    assert result.stderr.count("no column 'text' among ['source', 'target']") == 1
    assert not (tmp_path / "output").exists()
