# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""`training/pretrain.py`: every objective trains, resumes exactly, and refuses what cannot work in one sentence."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from t5_experimental.training import pretrain
from t5_experimental.training.report.start_lines import describe


REPOSITORY = Path(__file__).parents[2]
DATA = REPOSITORY / "tests" / "data"
VOCABULARY = DATA / "restaurants.model"
TINY = json.dumps({"d_model": 32, "d_kv": 8, "d_ff": 64, "num_heads": 4, "num_layers": 2})


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    """A text file: a description of a restaurant a paragraph, in two lines."""
    path = tmp_path_factory.mktemp("text") / "restaurants.txt"
    rows = [json.loads(line) for line in (DATA / "restaurants_train.jsonl").read_text().splitlines()]
    path.write_text("\n\n".join(f"{row['source']}\n{row['target']}" for row in rows))
    return path


def flags(options: dict[str, object]) -> list[str]:
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


def run(text: Path, output: Path, **options: object) -> list[dict[str, float]]:
    """Pre-trains on the CPU, in this process; what the trainer logged of every step since it started."""
    common = {
        "train_file": text,
        "output_dir": output,
        "use_cpu": True,
        "disable_tqdm": True,
        "max_source_length": 48,
        "max_steps": 6,
        "logging_steps": 1,
        "save_steps": 3,
        "shuffle_megabytes": 0.01,
        "report_to": "none",
    }
    pretrain.main(flags({**common, **options}))
    history = json.loads((output / "checkpoint-6" / "trainer_state.json").read_text())["log_history"]
    return [{name: entry[name] for name in ("step", "loss", "grad_norm")} for entry in history if "loss" in entry]


@pytest.mark.slow
def test_fresh_weights_from_a_recipe(text, fork_server, tmp_path):
    options = {
        "preset": "t5.1.th.base",
        "config_overrides": TINY,
        "tokenizer_name": VOCABULARY,
        "train_file": text,
        "validation_file": text,
        "validation_rows": 8,
        "output_dir": tmp_path / "output",
        "per_device_train_batch_size": 8,
        "max_steps": 12,
        "save_steps": 100,
        "logging_steps": 1,
        "dataloader_num_workers": 1,
        "use_cpu": True,
    }
    recipe = REPOSITORY / "training" / "recipes" / "pretrain.yaml"
    run = fork_server.start("pretrain", [recipe, *flags(options)], "single", 1)
    assert run.wait() == [0], run.read()
    printed, _ = run.printed()
    assert "(t5_talking_heads)" in printed
    assert "preset pretrain" in printed
    assert "span_corruption, z-loss 0.0001" in printed
    assert "512 tokens in, 114 out, of 568 tokens of text" in printed
    assert "8 rows to evaluate on" in printed
    assert "8 examples on 1 process(es)" in printed

    output = tmp_path / "output"
    assert {"config.json", "model.safetensors", "tokenizer.json", "report.html"} <= {f.name for f in output.iterdir()}
    card = (output / "README.md").read_text()
    assert "Pre-training of a `T5TalkingHeadsForConditionalGeneration` with fresh weights, with t5_exp" in card
    model = AutoModelForSeq2SeqLM.from_pretrained(output)
    assert model.config.dropout_rate == 0
    assert model.config.vocab_size == 384  # of 279 ids, rounded up to a multiple of 128
    assert len(AutoTokenizer.from_pretrained(output)) == 279
    results = json.loads((output / "all_results.json").read_text())
    history = json.loads((output / "checkpoint-12" / "trainer_state.json").read_text())["log_history"]
    assert results["eval_loss"] < history[0]["loss"] - 0.5


@pytest.mark.parametrize("workers", [0, 2])
def test_resumes_exactly(workers, text, tiny_models, tmp_path):
    """Dropout, optimizer, and above all the data go on where they were, also in the middle of an accumulation."""
    options = {
        "model_name_or_path": tiny_models["t5_v1_1"],
        "dataloader_num_workers": workers,
        "objective": "prefix_lm",
        "pack": True,
        "dropout_rate": 0.1,
        "per_device_train_batch_size": 3,
        "gradient_accumulation_steps": 3,
    }
    whole = run(text, tmp_path / "whole", **options)
    assert [entry["step"] for entry in whole] == [1, 2, 3, 4, 5, 6]
    checkpoint = tmp_path / "resumed" / "checkpoint-3"
    shutil.copytree(tmp_path / "whole" / "checkpoint-3", checkpoint)
    resumed = run(text, tmp_path / "resumed", **options, resume_from_checkpoint=True)
    assert resumed == whole

    # It is the stream's place that does it.
    anew = run(text, tmp_path / "anew", **options, resume_from_checkpoint=checkpoint, ignore_data_skip=True)
    assert anew[:3] == whole[:3]
    assert all(entry["loss"] != expected["loss"] for entry, expected in zip(anew[3:], whole[3:], strict=True))


@pytest.mark.parametrize(
    ("model_type", "options"),
    [
        ("t5_v1_1", {"objective": "span_corruption", "documents_together": 1, "pack": True}),
        ("t5_lm_adapted", {"objective": "prefix_lm", "max_target_length": 24}),
        ("t5_first_layers_narrow", {"objective": "lm", "max_target_length": 40}),
        ("t5_talking_heads", {"objective": "iid_denoising", "noise_density": 0.1}),
        ("t5_v1_1", {"objective": "deshuffling", "pack": True}),
        ("t5_talking_heads", {"objective": "ul2", "max_source_length": 200, "pack": True}),
    ],
)
def test_every_objective_trains(model_type, options, text, tiny_models, tmp_path, capsys):
    source_length = {} if options["objective"] == "lm" else {"max_source_length": 48}
    pretrain.main(
        flags(
            {
                "model_name_or_path": tiny_models[model_type],
                "train_file": text,
                "output_dir": tmp_path / "output",
                "use_cpu": True,
                "max_steps": 8,
                "logging_steps": 4,
                "save_strategy": "no",
                **source_length,
                **options,
            }
        )
    )
    facts = capsys.readouterr().out
    assert f"({model_type})" in facts
    assert "preset pretrain, learning rate 0.01, schedule constant up to step 10,000, then inverse square root" in facts
    assert re.search(r"8 examples on 1 process\(es\), about [\d,]+ input and [\d,]+ target tokens", facts)
    card = (tmp_path / "output" / "README.md").read_text()
    assert f"Pre-training of `{model_type}`, a `" in card
    assert "Curves and settings are in [report.html]" in card
    assert ", packed" in facts or "pack" not in options
    if options["objective"] == "ul2":
        assert "rows        200 tokens in, 194 out, of 193 to 380 tokens of text, packed\n" in facts
    results = json.loads((tmp_path / "output" / "train_results.json").read_text())
    assert results["train_loss"] < torch.log(torch.tensor(1152.0))  # what knowing nothing costs


def test_z_loss_counts_in_training_alone(text, tiny_models, tmp_path):
    results = {}
    for weight in (0, 0.01):
        output = tmp_path / str(weight)
        run_options = {"z_loss": weight, "max_steps": 1, "validation_file": text, "validation_rows": 4}
        pretrain.main(
            flags(
                {
                    "model_name_or_path": tiny_models["t5_v1_1"],
                    "train_file": text,
                    "output_dir": output,
                    "use_cpu": True,
                    "save_strategy": "no",
                    "learning_rate": 1e-9,
                    **run_options,
                }
            )
        )
        results[weight] = json.loads((output / "all_results.json").read_text())
    # The logits' normaliser of an untrained model is about ln(1152).
    difference = results[0.01]["train_loss"] - results[0]["train_loss"]
    assert difference == pytest.approx(0.01 * 7.05**2, rel=0.2)
    assert results[0.01]["eval_loss"] == pytest.approx(results[0]["eval_loss"], rel=1e-5)


# --- Bad input ----------------------------------------------------------------------------------------------------


def complaint(output: Path, **options: object) -> str:
    with pytest.raises(SystemExit) as exit_info:
        pretrain.main(flags({"output_dir": output, "use_cpu": True, "max_steps": 1, **options}))
    message = str(exit_info.value.code)
    assert message.startswith("pretrain: ")
    assert "\n" not in message
    assert not output.exists()
    return message


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("empty.txt", b"", "has no text"),
        ("blank.txt", b"\n \n\r\n", "has no text"),
        ("empty.jsonl", b"", "has no text"),
        ("column.jsonl", b'{"content": "a"}\n', "line at byte 0: no column 'text' among ['content']; name it with"),
        ("null.jsonl", b'{"text": null}\n', "column 'text' holds None, which is not text"),
        ("broken.jsonl", b"{\n", "line at byte 0: not JSON"),
        ("list.jsonl", b"[]\n", "line at byte 0: not a JSON object"),
        ("latin1.txt", "caf\u00e9".encode("latin-1"), "text from byte 0 on: byte 4 is not UTF-8 text"),
        ("packed.jsonl.bz2", b"", "unknown extension '.bz2'"),
    ],
)
def test_text_files(name, content, expected, tiny_models, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    message = complaint(tmp_path / "output", model_name_or_path=tiny_models["t5_v1_1"], train_file=path)
    assert expected in message


def test_missing_files(tiny_models, text, tmp_path):
    options = {"model_name_or_path": tiny_models["t5_v1_1"], "train_file": text}
    missing = tmp_path / "none-*.txt"
    assert "--train_file" in complaint(tmp_path / "output", **{**options, "train_file": missing})
    message = complaint(tmp_path / "output", **options, validation_file=missing)
    assert f"--validation_file {missing} does not exist" in message


def test_documents_per_line_are_for_text_files(tiny_models, tmp_path):
    (tmp_path / "text.jsonl").write_text('{"text": "a b c d"}\n' * 9)
    options = {"model_name_or_path": tiny_models["t5_v1_1"], "train_file": tmp_path / "text.jsonl"}
    said = complaint(tmp_path / "output", **options, document_per_line=True)
    assert "--document_per_line has no effect without .txt files: leave it out." in said


def test_a_finished_run_is_told_of_options_that_there_are(tiny_models, text, tmp_path):
    output = tmp_path / "output"
    options = {"use_cpu": True, "report_to": "none", "max_steps": 1, "save_steps": 1, "max_source_length": 16}
    options |= {"model_name_or_path": tiny_models["t5_v1_1"], "train_file": text, "output_dir": output}
    flags = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    pretrain.main(flags)
    with pytest.raises(SystemExit, match="its run is finished: give more --max_steps to go on from its last checkpoi"):
        pretrain.main(flags)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"text_column": "content"}, "--text_column has no effect on .txt files: leave it out, or give JSON lines"),
        ({"max_target_length": 128}, "makes 114 targets of 512 inputs: leave the option out, or give 114"),
        ({"max_target_length": 100}, "makes 114 targets of 512 inputs"),
        ({"max_source_length": 2}, "too short to leave a span out"),
        ({"max_source_length": 4096}, "227 spans in 4096 inputs need as many sentinels, but the tokenizer has 100"),
        ({"objective": "cloze"}, "invalid choice: 'cloze'"),
        ({"objective": "lm", "pack": True}, "leave --pack out"),
        ({"objective": "lm", "max_source_length": 512}, "leave --max_source_length out"),
        ({"objective": "lm", "noise_density": 0.1}, "leave --noise_density out"),
        ({"objective": "prefix_lm", "mean_noise_span_length": 5}, "has no spans: leave --mean_noise_span_length out"),
        ({"objective": "prefix_lm", "noise_density": 0.6}, "more than 0 and at most 0.5"),
        ({"objective": "iid_denoising", "noise_density": 0.6}, "more than 0 and at most 0.5"),
        (
            {"objective": "iid_denoising", "max_target_length": 153},
            "of 512 inputs: give at least 154",
        ),
        ({"objective": "iid_denoising", "max_source_length": 1024}, "About 131 spans in 1024 inputs need as many"),
        ({"objective": "iid_denoising", "mean_noise_span_length": 3}, "iid_denoising has no mean length: leave"),
        (
            {"objective": "deshuffling", "noise_density": 0.1},
            "deshuffling predicts everything: leave --noise",
        ),
        (
            {"objective": "deshuffling", "max_target_length": 511},
            "predicts all of 512 inputs: leave the option out",
        ),
        ({"objective": "deshuffling", "max_source_length": 2}, "deshuffling needs at least 3 tokens on both sides"),
        ({"objective": "ul2", "noise_density": 0.1}, "ul2 has densities of its own: leave --noise_density out"),
        ({"objective": "ul2", "mean_noise_span_length": 3}, "ul2 has spans of its own: leave --mean_noise_span_length"),
        ({"objective": "ul2", "max_source_length": 128}, "128 is too short for UL2's spans of 64 tokens: give 512"),
        ({"objective": "ul2", "max_target_length": 505}, "UL2 makes 506 targets of 512 inputs: leave the option out"),
        ({"objective": "prefix_lm", "max_source_length": 2}, "at least 3 tokens"),
        ({"noise_density": 0}, "--noise_density is 0.0"),
        ({"mean_noise_span_length": 0.5}, "--mean_noise_span_length is 0.5"),
        (
            {"max_source_length": 32, "noise_density": 0.8, "mean_noise_span_length": 1.5},
            "leaves fewer tokens of text than spans",
        ),
        ({"shuffle_megabytes": 0}, "--shuffle_megabytes is 0.0"),
        ({"documents_together": 0}, "--documents_together is 0"),
        ({"dropout_rate": 1}, "--dropout_rate is 1.0"),
        ({"z_loss": -1}, "--z_loss is -1.0"),
        ({"max_steps": -1}, "--max_steps is missing"),
        ({"optim": "adamw_torch"}, "or give --optimizer_preset '' where a preset is the default"),
        ({"eval_strategy": "steps"}, "give --validation_file"),
        ({"max_steps": 0}, "--max_steps is 0, which trains nothing"),
        ({"validation_rows": 3}, "--validation_rows has no effect without --validation_file"),
        (
            {"dataloader_num_workers": 1, "dataloader_persistent_workers": True},
            "--dataloader_persistent_workers has no",
        ),
        ({"neftune_noise_alpha": 1}, "--neftune_noise_alpha has no effect"),
        ({"num_train_epochs": 2}, "--num_train_epochs has no effect on an endless stream of text"),
        ({"generation_num_beams": 3}, "--generation_num_beams has no effect"),
        ({"do_predict": True}, "--do_predict needs examples"),
        (
            {"metric_for_best_model": "bleu"},
            "--metric_for_best_model bleu is not computed, only loss: choose one of these.",
        ),
        ({"predict_with_generate": True}, "--predict_with_generate is for fine-tuning"),
        ({"preset": "t5.1.1.small"}, "Give either --model_name_or_path"),
        ({"config_overrides": '{"d_model": 1}'}, "--config_overrides is for --preset"),
        ({"tokenizer_name": "none"}, "--tokenizer_name none does not exist"),
    ],
)
def test_options(options, expected, tiny_models, text, tmp_path):
    given = {"model_name_or_path": tiny_models["t5_v1_1"], "train_file": text, **options}
    assert expected in complaint(tmp_path / "output", **given)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"preset": "t5.1.1.tiny"}, "--preset t5.1.1.tiny does not exist: choose one of t5.1.1.small"),
        ({"preset": "t5.1.1.small", "config_overrides": "{"}, "is not JSON"),
        ({"preset": "t5.1.1.small", "config_overrides": "[]"}, "is not a JSON object"),
        ({"preset": "t5.1.1.small", "config_overrides": '{"d_modle": 1}'}, "has no field 'd_modle'"),
        ({"preset": "t5.1.1.small", "config_overrides": '{"dropout_rate": 0.1}'}, "give --dropout_rate"),
        ({"preset": "t5.1.1.small", "config_overrides": '{"num_layers": -1}'}, "`num_layers` is -1: it must be"),
        ({"preset": "t5.1.1.small", "config_overrides": '{"vocab_size": 256}'}, "has 279 ids, the model only 256"),
        ({"preset": "t5.1.1.small", "tokenizer_name": __file__}, "is not a sentencepiece model"),
        ({"preset": "t5.1.1.small", "tokenizer_name": str(DATA)}, "has no tokenizer"),
    ],
)
def test_fresh_models(options, expected, text, tmp_path):
    assert expected in complaint(tmp_path / "output", **{"tokenizer_name": VOCABULARY, "train_file": text, **options})


def test_fresh_models_need_a_vocabulary(text, tmp_path):
    assert "--preset needs a vocabulary" in complaint(tmp_path / "output", preset="t5.1.1.small", train_file=text)


def test_training_needs_text(tiny_models, tmp_path):
    message = complaint(tmp_path / "output", model_name_or_path=tiny_models["t5_v1_1"])
    assert message == "pretrain: --train_file is missing: give the text to train on."
    assert not (tmp_path / "output").exists()


def test_a_vocabulary_too_large_for_the_checkpoint(tiny_models, text, tmp_path):
    folder = shutil.copytree(tiny_models["t5_v1_1"], tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"word{number}" for number in range(1152)])
    tokenizer.save_pretrained(folder)
    message = complaint(tmp_path / "output", model_name_or_path=folder, train_file=text)
    assert f"The tokenizer of {folder} has 1431 ids, the model only 1152 embedding rows" in message
    other = {"model_name_or_path": tiny_models["t5_v1_1"], "tokenizer_name": folder, "train_file": text}
    message = complaint(tmp_path / "output", **other)
    assert f"--tokenizer_name {folder} has 1431 ids, the model only 1152 embedding rows: give" in message


@pytest.mark.parametrize("start", ["checkpoint", "preset"])
def test_dropout_as_the_original_drops(start, tiny_models, text, tmp_path):
    model = {"model_name_or_path": tiny_models["t5_v1_1"]}
    if start == "preset":
        model = {"preset": "t5.1.1.small", "config_overrides": TINY, "tokenizer_name": VOCABULARY}
    flags_of_run = flags({**model, "train_file": text, "output_dir": tmp_path / "output", "max_steps": 1})
    options = pretrain.parse([*flags_of_run, "--use_cpu", "--dropout_rate", "0.2", "--broadcast_dropout"])
    trainer = pretrain.build_trainer(options)
    assert (trainer.model.config.dropout_rate, trainer.model.config.broadcast_dropout) == (0.2, True)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("pretrain.yaml", {"objective": "span_corruption", "max_source_length": 512, "max_target_length": None}),
        ("lm_adapt.yaml", {"objective": "prefix_lm", "max_source_length": 1024, "max_target_length": 256}),
    ],
)
def test_recipes(name, expected, tiny_models, text, tmp_path):
    needed = {"model_name_or_path": tiny_models["t5_v1_1"], "train_file": text, "output_dir": tmp_path / "output"}
    model, data, training = pretrain.parse([name, *flags(needed)]).options
    assert {option: getattr(data, option) for option in expected} == expected
    assert model.dropout_rate == 0
    assert (training.z_loss, training.optimizer_preset) == (1e-4, "pretrain")
    assert training.max_steps == {"pretrain.yaml": 1_000_000, "lm_adapt.yaml": 100_000}[name]
    # Another length is one option: no other one of the recipe contradicts it.
    _, data, _ = pretrain.parse([name, *flags({**needed, "max_source_length": 256})]).options
    assert data.make_objective(None).inputs_length == 256


def test_defaults_are_the_originals(tiny_models, text, tmp_path):
    needed = {"model_name_or_path": tiny_models["t5_v1_1"], "train_file": text, "output_dir": tmp_path / "output"}
    run = pretrain.parse(flags({**needed, "max_steps": 1, "use_cpu": True, "max_source_length": 48}))
    assert (run.training.max_grad_norm, run.training.loss_denominator) == (0, "positions")
    facts = describe(pretrain.build_trainer(run), {})
    assert (facts["clipping"], facts["denominator"]) == ("none", "positions of a step")
