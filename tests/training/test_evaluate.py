# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""`training/evaluate.py` and what evaluates in other runs: metrics, predictions, resuming."""

import json
import re
import shutil
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from t5_experimental.decoding_t5_experimental import decoding_session
from t5_experimental.kernels_t5_experimental import int8_kernels
from t5_experimental.training import evaluate, finetune
from t5_experimental.training.data.predictions import Sample, append, read_predictions
from t5_experimental.training.errors import TrainingError
from t5_experimental.training.models.adapters import add_prompt
from t5_experimental.training.trainer import finetuning
from t5_experimental.training.trainer.finetuning import FinetuningTrainer
from t5_experimental.training.trainer.generation import by_length


DATA = Path(__file__).parents[1] / "data"
VALIDATION, TEST = DATA / "restaurants_validation.jsonl", DATA / "restaurants_test.jsonl"
OPTIONS = {"metric": ["bleu", "exact_match", "rouge"], "max_target_length": 8}


def figures(folder: Path, split: str) -> dict[str, float]:
    """What does not depend on time."""
    found = json.loads((folder / f"{split}_results.json").read_text())
    return {name: value for name, value in found.items() if not name.endswith(("runtime", "second", "epoch", "_time"))}


def predictions(folder: Path, split: str) -> list[dict]:
    return [json.loads(line) for line in (folder / f"predictions_{split}.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(tiny_models, forked, once) -> Path:
    """Folder of a model that was trained a little, and evaluated on two files and one."""
    return once("evaluated", lambda folder: train(folder, tiny_models, forked)) / "model"


def train(folder: Path, tiny_models, forked) -> None:
    shutil.copyfile(TEST, folder / "other.jsonl")
    result = forked(
        model_name_or_path=tiny_models["t5_talking_heads"],
        output_dir=folder / "model",
        validation_file=[VALIDATION, folder / "other.jsonl"],
        test_file=TEST,
        max_steps=4,
        eval_strategy="steps",
        eval_steps=2,
        logging_steps=1,
        learning_rate=0.01,
        **OPTIONS,
    )
    assert result.returncode == 0, result.stderr


def test_training_tells_files_apart_and_writes_predictions(trained):
    of_validation = figures(trained, "eval_restaurants_validation")
    assert "eval_restaurants_validation_loss" in of_validation
    assert "eval_restaurants_validation_bleu" in of_validation
    copied, whole = figures(trained, "eval_other"), figures(trained, "test")
    assert len(whole) > 5
    assert copied == {name.replace("test_", "eval_other_"): value for name, value in whole.items()}
    logged = json.loads((trained / "checkpoint-4" / "trainer_state.json").read_text())["log_history"]
    assert [row["step"] for row in logged if "eval_other_loss" in row] == [2, 4]
    assert predictions(trained, "eval_other") == predictions(trained, "test")


def test_predictions_have_scores(trained):
    """Each line, against the model and the texts themselves."""
    rows = [json.loads(line) for line in TEST.read_text().splitlines()]
    references: dict[str, list[str]] = {}
    for row in rows:
        references.setdefault(row["source"], []).append(row["target"])
    found = predictions(trained, "test")
    assert {row["input"]: row["references"] for row in found} == references
    assert [row["input"] for row in found] == list(references)
    tokenizer = AutoTokenizer.from_pretrained(trained)
    model = AutoModelForSeq2SeqLM.from_pretrained(trained).eval()
    for row in found[:6]:
        inputs = tokenizer(row["input"], return_tensors="pt")
        output = model.generate(**inputs, output_logits=True, return_dict_in_generate=True)
        assert tokenizer.decode(output.sequences[0], skip_special_tokens=True) == row["prediction"]
        steps = zip(output.sequences[0, 1:], output.logits, strict=True)
        score = sum(logits.log_softmax(-1)[0, token].item() for token, logits in steps)
        assert row["sequence_score"] == pytest.approx(score, rel=1e-4)
        assert row["exact_match"] == 100 * (row["prediction"] in row["references"])
        assert {"rouge1", "rouge2", "rougeLsum"} < row.keys()
        assert "bleu" not in row


def test_evaluation_of_the_saved_model_equals_that_of_its_training(trained, forked, tmp_path):
    result = forked(
        entry="evaluate", model_name_or_path=trained, test_file=TEST, output_dir=tmp_path / "output", **OPTIONS
    )
    assert result.returncode == 0, result.stderr
    assert "generation  max_length 9" in result.stdout
    assert figures(tmp_path / "output", "test") == figures(trained, "test")
    assert predictions(tmp_path / "output", "test") == predictions(trained, "test")
    # Fine-tuning without training is the same.
    result = forked(
        model_name_or_path=trained,
        do_train=False,
        do_predict=True,
        test_file=TEST,
        output_dir=tmp_path / "finetune",
        **OPTIONS,
    )
    assert result.returncode == 0, result.stderr
    assert figures(tmp_path / "finetune", "test") == figures(trained, "test")
    assert sorted(path.name for path in (tmp_path / "finetune").iterdir()) == [
        "all_results.json",
        "evaluation.json",
        "predictions_test.jsonl",
        "test_results.json",
    ]


def test_a_bar_shows_speed_and_the_time_that_is_left(trained, forked, tmp_path):
    options = {"entry": "evaluate", "model_name_or_path": trained, "output_dir": tmp_path / "output", "test_file": TEST}
    result = forked(**options, disable_tqdm=False, per_device_eval_batch_size=1, metric="exact_match")
    assert result.returncode == 0, result.stderr
    for name in ("Computing losses", "Generating"):
        # Such as 17/50 [00:01<00:02, 15.2 examples/s]; slow ones in s/ examples.
        bar = rf"{name}: .*\d+/\d+ \[[\d:]+<[\d:]+, +[\d.]+ ?(examples/s|s/ examples)"
        assert re.search(bar, result.stderr), result.stderr


def test_two_processes_evaluate_as_one(trained, forked, tmp_path):
    result = forked(
        processes=2,
        entry="evaluate",
        model_name_or_path=trained,
        test_file=TEST,
        output_dir=tmp_path / "output",
        per_device_eval_batch_size=3,
        **OPTIONS,
    )
    assert result.returncode == 0, result.stderr
    one, two = predictions(trained, "test"), predictions(tmp_path / "output", "test")
    assert [row["prediction"] for row in one] == [row["prediction"] for row in two]
    scores = [row["sequence_score"] for row in two]
    assert scores == pytest.approx([row["sequence_score"] for row in one], rel=1e-4)
    expected = figures(trained, "test")
    assert figures(tmp_path / "output", "test") == {key: pytest.approx(expected[key], rel=1e-5) for key in expected}


# Ends the process in the middle of the second window of texts, or of writing its lines.
KILLED = """
import os
from t5_experimental.training.trainer import finetuning

append = finetuning.append


def torn(path, samples, metrics):
    if path.exists():
        append(path, samples[:1], metrics)
        with path.open("a") as file:
            file.write('{"input": "to')
        os._exit(9)
    append(path, samples, metrics)


finetuning.append = torn
"""


def test_interrupted_evaluation_goes_on_after_the_last_line(trained, forked, tmp_path):
    output = tmp_path / "output"
    options = {
        "entry": "evaluate",
        "model_name_or_path": trained,
        "test_file": TEST,
        "output_dir": output,
        "per_device_eval_batch_size": 1,
        **OPTIONS,
    }
    assert forked(hook=KILLED, **options).returncode == 9
    text = (output / "predictions_test.jsonl").read_text()
    assert text.endswith('\n{"input": "to')
    assert text.count("\n") == 17  # a window of 16 batches, and one line of the next
    (output / "predictions_test.jsonl").write_text(text.replace('"prediction": "', '"prediction": "kept ', 1))
    result = forked(**options)
    assert result.returncode == 0, result.stderr
    assert f"goes on after 17 of {len(predictions(trained, 'test'))} predictions that are there" in result.stdout
    found, whole = predictions(output, "test"), predictions(trained, "test")
    assert found[0]["prediction"] == f"kept {whole[0]['prediction']}"  # it was not generated once more
    assert [row["prediction"] for row in found[1:]] == [row["prediction"] for row in whole[1:]]
    # All are there now. Another data file, option or model is refused, and changes nothing.
    before = {path.name: path.read_bytes() for path in output.iterdir()}
    others = [
        ({"test_file": VALIDATION}, "made with another data of test: use the same, or give another folder"),
        ({"metric": "bleu", "generation_num_beams": 2}, "made with another --metric, generation settings"),
        ({"model_name_or_path": shutil.copytree(trained, tmp_path / "copy", copy_function=shutil.copyfile)}, "model"),
    ]
    for other, message in others:
        refused = forked(**{**options, **other})
        assert refused.returncode == 1
        assert message in refused.stderr, refused.stderr
        assert {path.name: path.read_bytes() for path in output.iterdir()} == before


def test_adapters_are_evaluated_with_their_model(tiny_models, forked, tmp_path):
    """LoRA as its training did; a prompt, whose folder has no tokenizer, with the model named apart."""
    lora = {"lora_rank": 4, "optimizer_preset": "adamw", "learning_rate": 0.01, "max_steps": 2, "save_strategy": "no"}
    model = tiny_models["t5_v1_1"]
    trained = forked(model_name_or_path=model, output_dir=tmp_path / "lora", test_file=TEST, **lora, **OPTIONS)
    assert trained.returncode == 0, trained.stderr
    rows = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    add_prompt(AutoModelForSeq2SeqLM.from_pretrained(model), rows).save_pretrained(tmp_path / "prompt")
    whole = AutoModelForSeq2SeqLM.from_pretrained(model)
    places = {
        "lora": ({"model_name_or_path": tmp_path / "lora"}, "with adapters"),
        "prompt": ({"model_name_or_path": model, "adapter_name_or_path": tmp_path / "prompt"}, ""),
        # As fine-tuning alone may do it, too.
        "finetune": ({"entry": "finetune", "model_name_or_path": tmp_path / "lora", "do_train": False}, ""),
    }
    for name, (options, _) in places.items():
        options = {"entry": "evaluate", **options, "output_dir": tmp_path / f"{name}-output", "test_file": TEST}
        result = forked(**options, **OPTIONS)
        assert result.returncode == 0, result.stderr
        assert f"adapter     {tmp_path / name.replace('finetune', 'lora')}" in result.stdout
    for name in ("lora", "finetune"):
        assert figures(tmp_path / f"{name}-output", "test") == figures(tmp_path / "lora", "test")
        assert predictions(tmp_path / f"{name}-output", "test") == predictions(tmp_path / "lora", "test")
    tokenizer = AutoTokenizer.from_pretrained(model)
    prompted = PeftModel.from_pretrained(whole, tmp_path / "prompt").eval()
    row = predictions(tmp_path / "prompt-output", "test")[0]
    output = prompted.generate(**tokenizer([row["input"]], return_tensors="pt"), max_length=9)
    assert tokenizer.decode(output[0], skip_special_tokens=True) == row["prediction"]


def test_adapters_keep_the_generation_settings_of_their_training(tiny_models, forked, tmp_path):
    """Of the finished folder and of a checkpoint; options still come before them."""
    lora = {"lora_rank": 2, "optimizer_preset": "adamw", "learning_rate": 0.01, "max_steps": 1, "metric": "chrf"}
    searched = {"generation_max_length": 7, "generation_num_beams": 2}
    folder, model = tmp_path / "lora", tiny_models["t5_v1_1"]
    trained = forked(model_name_or_path=model, output_dir=folder, test_file=TEST, **lora, **searched)
    assert trained.returncode == 0, trained.stderr
    for adapter in (folder, folder / "checkpoint-1"):
        output = tmp_path / f"{adapter.name}-output"
        options = {"entry": "evaluate", "model_name_or_path": model, "adapter_name_or_path": adapter, "metric": "chrf"}
        result = forked(**options, test_file=TEST, output_dir=output)
        assert result.returncode == 0, result.stderr
        assert figures(output, "test") == figures(folder, "test")
    given = {"test_file": TEST, "output_dir": tmp_path / "longer", "generation_max_length": 9}
    assert "generation  max_length 9, num_beams 2" in forked(**options, **given).stdout
    (folder / "generation_config.json").write_text("{")
    broken = forked(**{**options, "adapter_name_or_path": folder}, test_file=TEST, output_dir=tmp_path / "broken")
    assert f"The generation_config.json of {folder} does not load (" in broken.stderr


@pytest.mark.skipif(not int8_kernels(), reason="this torch or processor has no right int8 kernel")
def test_texts_in_int8_are_those_of_a_session(tiny_models, forked, tmp_path):
    """The loss is the model's own, adapters are merged, and the folder does not take float's texts for its own."""
    model = tiny_models["t5_talking_heads"]
    adapted = get_peft_model(
        AutoModelForSeq2SeqLM.from_pretrained(model),
        LoraConfig(target_modules=["q", "v"], init_lora_weights=False, lora_alpha=64),
    )
    adapted.save_pretrained(tmp_path / "lora")
    options = {"entry": "evaluate", "test_file": TEST, "per_device_eval_batch_size": 1, "max_target_length": 8}
    options |= {"model_name_or_path": model, "adapter_name_or_path": tmp_path / "lora", "metric": "exact_match"}
    for name, weights in (("float", {}), ("int8", {"decoding_weights": "int8"})):
        result = forked(**options, **weights, output_dir=tmp_path / name)
        assert result.returncode == 0, result.stderr
        assert bool(re.search(r"^weights for texts +int8$", result.stdout, re.MULTILINE)) == (name == "int8")
    losses = [figures(tmp_path / name, "test")["test_loss"] for name in ("float", "int8")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    tokenizer = AutoTokenizer.from_pretrained(model)
    merged = adapted.merge_and_unload().eval()
    merged.decoding_weights = "int8"
    rows = predictions(tmp_path / "int8", "test")
    for row in rows[:10]:
        output = merged.generate(**tokenizer([row["input"]], return_tensors="pt"), max_length=9)
        assert tokenizer.decode(output[0], skip_special_tokens=True) == row["prediction"]
    refused = forked(**options, output_dir=tmp_path / "int8")
    assert refused.returncode == 1
    assert "predictions that were made with another --decoding_weights" in refused.stderr


@pytest.fixture
def evaluate_here(tiny_models, tmp_path, monkeypatch):
    """`evaluate_here(**options)`: the sentence that an evaluation in this process ends with."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")

    def evaluate_with(program=evaluate, **options: object) -> str:
        options = {"model_name_or_path": tiny_models["t5_v1_1"], "output_dir": tmp_path / "output", **options}
        flags = [text for name, value in options.items() for text in (f"--{name}", *map(str, as_list(value)))]
        with pytest.raises(SystemExit) as end:
            program.main([*flags, "--use_cpu"])
        return str(end.value)

    return evaluate_with


def as_list(value: object) -> list:
    return value if isinstance(value, list) else [value]


def test_what_cannot_be_evaluated_is_refused(evaluate_here, tiny_models, tmp_path):
    (tmp_path / "folder" / "checkpoint-3").mkdir(parents=True)
    (tmp_path / "folder" / "checkpoint-3" / "complete.json").write_text("{}")
    (tmp_path / "sub").mkdir()
    shutil.copyfile(TEST, tmp_path / "sub" / TEST.name)
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"base_model_name_or_path": "gone"}')
    (tmp_path / "adapter" / "adapter_model.safetensors").touch()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "predictions_test.jsonl").write_text("mine\n")
    shutil.copytree(tmp_path / "mine", tmp_path / "used")
    (tmp_path / "used" / "history.jsonl").write_text('{"step": 1}\n')
    adapter = tmp_path / "adapter"
    for options, message in [
        ({}, "There is nothing to evaluate on: give --validation_file, --test_file or --dataset_name"),
        ({"test_file": TEST, "learning_rate": 1}, "--learning_rate has no effect on an evaluation"),
        ({"test_file": TEST, "do_train": False}, "--do_train has no effect on an evaluation"),
        (
            {"test_file": TEST, "metric": "chrf", "generation_max_length": 1},
            "--generation_max_length is 1: it must be at",
        ),
        ({"test_file": TEST, "train_file": TEST}, "There is no option --train_file"),
        ({"test_file": [TEST, tmp_path / "sub" / TEST.name]}, "--test_file has two files restaurants_test, by whose"),
        ({"test_file": TEST, "output_dir": tmp_path / "folder"}, "holds checkpoint-3 of a training run"),
        ({"test_file": TEST, "output_dir": tiny_models["t5_v1_1"]}, "already holds a model"),
        ({"test_file": TEST, "output_dir": tmp_path / "mine"}, "holds predictions_test.jsonl, which no run here has"),
        ({"test_file": TEST, "output_dir": tmp_path / "used"}, "predictions_test.jsonl is in the way"),
        *(
            ({"test_file": TEST, idle: 1}, f"--{idle} has no effect on an evaluation")
            for idle in ("data_seed", "logging_first_step", "hub_model_id", "save_on_each_node")
        ),
        ({"test_file": TEST, "model_name_or_path": adapter}, "is an adapter for 'gone', which is no model folder here"),
        ({"test_file": TEST, "model_name_or_path": tmp_path}, "is not a model folder (it has no config.json)"),
        ({"test_file": TEST, "adapter_name_or_path": tmp_path}, "is not a folder of an adapter (it has no adapter_c"),
        ({"test_file": TEST, "adapter_name_or_path": adapter}, "does not load: "),
        ({"test_file": TEST, "do_eval": True}, "--do_eval needs examples to evaluate on: give --validation_file"),
    ]:
        text = evaluate_here(**options)
        assert text.startswith("evaluate: ")
        assert message in text, text
    for options, message in [
        ({"do_train": False}, "--do_train False leaves nothing to do: give --validation_file or --test_file, too"),
        ({"do_eval": True}, "--do_eval needs examples to evaluate on"),
        *(
            ({"do_train": False, "test_file": TEST, **idle}, f"--{next(iter(idle))} has no effect on an evaluation")
            for idle in ({"lora_rank": 4}, {"max_steps": 4}, {"optimizer_preset": "adamw"}, {"dropout_rate": 0.1})
        ),
        ({"test_file": TEST}, "There is nothing to train on: give --train_file"),
        (
            {"train_file": TEST, "model_name_or_path": adapter},
            "is an adapter for 'gone', which is no model folder here",
        ),
    ]:
        text = evaluate_here(finetune, **options)
        assert message in text, text
    assert not (tmp_path / "output").exists()
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["predictions_test.jsonl"]


def test_damaged_predictions_are_found(evaluate_here, tiny_models, tmp_path):
    for name, options in {"record": {}, "line": {"metric": "exact_match"}}.items():
        folder = tmp_path / name
        options = {**options, "output_dir": folder, "test_file": tmp_path / "one.jsonl"}
        (tmp_path / "one.jsonl").write_text('{"source": "a", "target": "b"}\n')
        evaluate.main(flags_of({"model_name_or_path": tiny_models["t5_v1_1"], **options}))
        if name == "record":
            (folder / "evaluation.json").write_text("{")
            assert "evaluation.json is damaged (" in evaluate_here(**options)
        else:
            (folder / "predictions_test.jsonl").write_text('{"input": "other", "prediction": "x"}\n')
            text = evaluate_here(**options)
            assert "predictions_test.jsonl, line 1: this is not the prediction of an example of this" in text


def test_predictions_of_another_adapter_are_not_taken_over(evaluate_here, tiny_models, tmp_path):
    """With or without one, in either order."""
    base = AutoModelForSeq2SeqLM.from_pretrained(tiny_models["t5_v1_1"])
    add_prompt(base, torch.zeros(3, base.config.d_model)).save_pretrained(tmp_path / "prompt")
    (tmp_path / "one.jsonl").write_text('{"source": "a", "target": "b"}\n')
    options = {"model_name_or_path": tiny_models["t5_v1_1"], "test_file": tmp_path / "one.jsonl"}
    adapted = {**options, "adapter_name_or_path": tmp_path / "prompt"}
    for name, first, second in (("one", options, adapted), ("other", adapted, options)):
        evaluate.main(flags_of({**first, "output_dir": tmp_path / name, "max_target_length": 3}))
        text = evaluate_here(**second, output_dir=tmp_path / name, max_target_length=3)
        assert "holds predictions that were made with another adapter" in text


def test_every_example_counts_where_training_drops_some(tiny_models, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [json.dumps({"source": f"food {number}", "target": "x"}) for number in range(5)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    found = {}
    for drops in (False, True):
        options = {"model_name_or_path": tiny_models["t5_v1_1"], "test_file": tmp_path / "rows.jsonl"}
        options |= {"output_dir": tmp_path / str(drops), "per_device_eval_batch_size": 4, "metric": "exact_match"}
        options |= {"train_file": tmp_path / "rows.jsonl", "per_device_train_batch_size": 5, "max_steps": 1}
        finetune.main(flags_of({**options, "max_target_length": 3, "dataloader_drop_last": drops}))
        found[drops] = figures(tmp_path / str(drops), "test"), predictions(tmp_path / str(drops), "test")
    assert found[True] == found[False]
    assert len(found[True][1]) == 5


def test_lines_that_are_read_again(tmp_path):
    """No control character reaches a terminal, and other scores than numbers are refused."""
    path = tmp_path / "predictions_test.jsonl"
    text = "a\x9b31m\x7f\u2028é"
    append(path, [Sample("in", text, ["x"], -1.5)], [])
    assert not set("\x9b\x7f\u2028") & set(path.read_text())
    assert read_predictions(path, {"in": ["x"]}) == [Sample("in", text, ["x"], -1.5)]
    path.write_text('{"input": "in", "prediction": "x", "sequence_score": "high"}\n')
    with pytest.raises(TrainingError, match="line 1: this is not the prediction of an example"):
        read_predictions(path, {"in": ["x"]})


def flags_of(options: dict[str, object]) -> list[str]:
    return [text for name, value in options.items() for text in (f"--{name}", str(value))] + ["--use_cpu"]


def test_random_texts_go_on_as_they_would_have(evaluate_here, tiny_models, tmp_path):
    """Those of a window depend on the seed alone."""
    (tmp_path / "settings.json").write_text('{"do_sample": true, "top_k": 0, "max_length": 6}')
    rows = [json.dumps({"source": f"food {number}", "target": "x"}) for number in range(20)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    options = {"model_name_or_path": tiny_models["t5_v1_1"], "test_file": tmp_path / "rows.jsonl"}
    options |= {"per_device_eval_batch_size": 1, "generation_config": tmp_path / "settings.json", "seed": 5}
    evaluate.main(flags_of({**options, "output_dir": tmp_path / "whole"}))
    whole = predictions(tmp_path / "whole", "test")
    assert len({row["sequence_score"] for row in whole}) > 15
    (tmp_path / "cut").mkdir()
    shutil.copyfile(tmp_path / "whole" / "evaluation.json", tmp_path / "cut" / "evaluation.json")
    lines = (tmp_path / "whole" / "predictions_test.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "cut" / "predictions_test.jsonl").write_text("".join(lines[:18]) + lines[18][:9])
    torch.manual_seed(77)
    evaluate.main(flags_of({**options, "output_dir": tmp_path / "cut"}))
    assert predictions(tmp_path / "cut", "test") == whole
    text = evaluate_here(**{**options, "seed": 6, "output_dir": tmp_path / "cut"})
    assert "holds predictions that were made with another --seed" in text


def test_weights_that_an_engine_shards_are_refused(tiny_models, tmp_path):
    flags = {"model_name_or_path": tiny_models["t5_v1_1"], "test_file": TEST, "output_dir": tmp_path / "output"}
    engine = SimpleNamespace(shards_state=True, name="FSDP2")
    with pytest.raises(TrainingError, match="needs the whole model in every process, which FSDP2 shards: launch it"):
        evaluate.run(replace(evaluate.parse(flags_of(flags)), engine=engine))


INTERRUPTED = """
import os, signal
from t5_experimental.training.trainer import finetuning

append = finetuning.append


def interrupted(*args):
    append(*args)
    os.kill(os.getpid(), signal.SIGTERM)


finetuning.append = interrupted
"""


def test_interruption_says_how_it_goes_on(tiny_models, forked, tmp_path):
    options = {"model_name_or_path": tiny_models["t5_v1_1"], "test_file": TEST, "output_dir": tmp_path / "output"}
    result = forked(entry="evaluate", hook=INTERRUPTED, **options, per_device_eval_batch_size=1, max_target_length=5)
    assert result.returncode == 143
    then = f"The same command goes on after the predictions that are in {tmp_path / 'output'}."
    assert f"evaluate: Ended by SIGTERM. {then}" in result.stderr
    assert len(predictions(tmp_path / "output", "test")) == 16


def test_one_decoding_session_for_all_texts_of_a_split(tiny_models, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    opened, generated = [], []

    @contextmanager
    def session(model, *weights):
        opened.append(model)
        with decoding_session(model, *weights):
            yield
        opened.append(None)

    def generate_batch(self, inputs):
        generated.append(opened[-1] is not None)
        return whole(self, inputs)

    whole = FinetuningTrainer._generate_batch
    monkeypatch.setattr(finetuning, "decoding_session", session)
    monkeypatch.setattr(FinetuningTrainer, "_generate_batch", generate_batch)
    rows = [json.dumps({"source": f"food {number}", "target": "x"}) for number in range(5)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    options = {"model_name_or_path": tiny_models["t5_v1_1"], "test_file": tmp_path / "rows.jsonl"}
    options |= {"per_device_eval_batch_size": 2, "max_target_length": 3, "output_dir": tmp_path / "output"}
    evaluate.main(flags_of(options))
    assert generated == [True] * 3
    assert len(opened) == 2


def test_rows_are_sorted_within_windows():
    assert by_length([1, 3, 2, 9, 9, 4, 5], 3) == [1, 2, 0, 3, 4, 5, 6]
    assert by_length([], 3) == []
