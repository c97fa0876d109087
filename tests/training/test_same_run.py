# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""A checkpoint is not resumed on other texts, under another model, or with its best value of another metric."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from t5_experimental.training import finetune, pretrain, prompt_tune
from t5_experimental.training.trainer.same_run import RECORD


DATA = Path(__file__).parents[1] / "data"
BEST = {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True}


@pytest.fixture(scope="module", autouse=True)
def _private_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield


def write_pairs(path: Path, target: str = "a b c d", rows: int = 8) -> Path:
    lines = [json.dumps({"source": f"name[{row}]", "target": f"{target} {row}"}) for row in range(rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


def run(program, options: dict[str, object]) -> None:
    program.main([word for name, value in options.items() for word in (f"--{name}", str(value))])


def refusal(program, options: dict[str, object]) -> str:
    with pytest.raises(SystemExit) as exit_info:
        run(program, options)
    assert "\n" not in str(exit_info.value.code)
    return str(exit_info.value.code)


@pytest.fixture(scope="module")
def options(tiny_models, tmp_path_factory) -> dict[str, object]:
    return {
        "model_name_or_path": tiny_models["t5_v1_1"],
        "train_file": write_pairs(tmp_path_factory.mktemp("data") / "train.jsonl"),
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
        "per_device_train_batch_size": 4,
        "max_steps": 2,
        "save_steps": 1,
        "learning_rate": 0.01,
    }


@pytest.fixture(scope="module")
def folder(options, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("whole") / "output"
    validation = {"validation_file": write_pairs(output.parent / "validation.jsonl", "e"), "metric": "exact_match"}
    run(finetune, {**options, **validation, **BEST, "output_dir": output})
    return output


def resumed(folder: Path, output: Path) -> dict[str, object]:
    return {"output_dir": output, "resume_from_checkpoint": folder / "checkpoint-1"}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"source_prefix": "say: "}, "another text of the training examples ("),
        ({"train_file": None}, "another text of the training examples ("),
        ({"max_target_length": 64}, "another --max_target_length (128 then, 64 now): use the same"),
        ({"max_source_length": 64}, "another --max_source_length (512 then, 64 now): use the same"),
    ],
)
def test_other_texts_are_refused(change, expected, options, folder, tmp_path):
    if "train_file" in change:
        change = {"train_file": write_pairs(tmp_path / "train.jsonl", "other")}
    assert expected in refusal(finetune, {**options, **resumed(folder, tmp_path / "output"), **change})
    run(finetune, {**options, **resumed(folder, tmp_path / "output"), **change, "ignore_data_skip": True})


def test_the_texts_may_be_elsewhere_and_a_record_of_an_earlier_version_says_less(options, folder, tmp_path, capsys):
    moved = {"train_file": write_pairs(tmp_path / "elsewhere.jsonl")}
    run(finetune, {**options, **resumed(folder, tmp_path / "output"), **moved})
    path = tmp_path / "output" / "checkpoint-2" / RECORD
    record = json.loads(path.read_text())
    for name in ("text of the training examples", "--max_source_length", "--max_target_length"):
        del record[name]
    path.write_text(json.dumps(record))
    complete = json.loads((path.parent / "complete.json").read_text())
    complete["files"][RECORD] = path.stat().st_size
    (path.parent / "complete.json").write_text(json.dumps(complete))
    other = {"train_file": write_pairs(tmp_path / "other.jsonl", "other"), "max_steps": 3}
    capsys.readouterr()
    run(finetune, {**options, **other, "output_dir": tmp_path / "output"})
    assert f"resumes from {path.parent}\n" in capsys.readouterr().out
    steps = json.loads((tmp_path / "output" / "trainer_state.json").read_text())["log_history"]
    assert (steps[0]["step"], steps[-1]["step"]) == (1, 3)


@pytest.mark.parametrize("pack", [False, True])
def test_other_texts_of_a_part_of_a_mixture_are_refused(pack, options, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_pairs(tmp_path / "few.jsonl", rows=4)
    write_pairs(tmp_path / "many.jsonl", rows=1200)
    parts = "{name: few, train_file: few.jsonl, source_prefix: %s}, {name: many, train_file: many.jsonl}"
    given = {name: value for name, value in options.items() if name != "train_file"}
    given |= {"mixture": tmp_path / "mixture.yaml", "pack": pack, "max_source_length": 32, "max_target_length": 32}
    (tmp_path / "mixture.yaml").write_text(f"entries: [{parts}]" % "one")
    run(finetune, {**given, "output_dir": tmp_path / "whole", "max_steps": 1})
    (tmp_path / "mixture.yaml").write_text(f"entries: [{parts}]" % "two")
    said = refusal(finetune, {**given, **resumed(tmp_path / "whole", tmp_path / "output")})
    assert "another text of the training examples (" in said


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            {"metric_for_best_model": "exact_match"},
            "another --metric_for_best_model (loss then, exact_match now), --gre",
        ),
        ({"greater_is_better": True}, "another --greater_is_better (False then, True now): use the same"),
        ({"validation_file": None}, "another text of the validation examples (["),
    ],
)
def test_the_best_value_is_of_the_same_metric_and_examples(change, expected, options, folder, tmp_path):
    if "validation_file" in change:
        change = {"validation_file": write_pairs(tmp_path / "validation.jsonl", "other")}
    validation = {"validation_file": folder.parent / "validation.jsonl", "metric": "exact_match"}
    place = resumed(folder, tmp_path / "output")
    assert expected in refusal(finetune, {**options, **validation, **BEST, **place, **change})
    # Without a best value there is nothing to compare.
    run(finetune, {**options, **validation, **place, **({} if "validation_file" not in change else change)})


@pytest.mark.parametrize(("more", "expected"), [({}, 0.1), ({"dropout_rate": 0.3}, 0.3)])
def test_adapters_that_are_trained_further_have_the_dropout_that_is_given(more, expected, options, tmp_path):
    lora = {"optimizer_preset": "adamw", "max_steps": 1}
    run(finetune, {**options, **lora, "lora_rank": 2, "output_dir": tmp_path / "first"})
    further = {"model_name_or_path": tmp_path / "first", "output_dir": tmp_path / "second"}
    run(finetune, {**options, **lora, **further, **more})
    assert json.loads((tmp_path / "second" / "adapter_config.json").read_text())["lora_dropout"] == expected


@pytest.mark.parametrize(
    ("program", "more"),
    [
        (finetune, {"lora_rank": 2, "optimizer_preset": "adamw"}),
        (finetune, {}),
        (prompt_tune, {"prompt_length": 3}),
        (pretrain, {"text_column": "target", "max_source_length": 16, "optimizer_preset": "adamw"}),
    ],
)
def test_a_run_belongs_to_the_model_that_it_began_with(program, more, options, tmp_path):
    """Adapters would be put on another model; of a whole one the weights that were given would not be used at all."""
    folder = options["model_name_or_path"]
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    for name in ("moved", "another"):
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        with torch.no_grad():
            model.encoder.block[1].layer[0].SelfAttention.q.weight.mul_(2)
            model.decoder.final_layer_norm.weight.mul_(2)
            model.shared.weight.mul_(2)
    run(program, {**options, **more, "output_dir": tmp_path / "whole", "max_steps": 1})
    place = resumed(tmp_path / "whole", tmp_path / "output")
    run(program, {**options, **more, **place, "model_name_or_path": tmp_path / "moved"})
    place["output_dir"] = tmp_path / "third"
    said = refusal(program, {**options, **more, **place, "model_name_or_path": tmp_path / "another"})
    assert "was written with another base model (" in said


def test_a_run_may_go_on_from_its_own_weights(options, folder, tmp_path):
    """A checkpoint has all of them, and the model that the run began with may be gone."""
    place = resumed(folder, tmp_path / "output")
    place["model_name_or_path"] = folder / "checkpoint-1"
    run(finetune, {**options, **place, "save_strategy": "steps"})
    before, now = (
        json.loads((path / RECORD).read_text())
        for path in (folder / "checkpoint-1", tmp_path / "output" / "checkpoint-2")
    )
    assert before["base model"] == now["base model"]


def test_fresh_weights_and_a_model_are_two_runs(options, tmp_path):
    sizes = {"num_layers": 1, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_heads": 4}
    more = {"text_column": "target", "max_source_length": 16, "optimizer_preset": "adamw", "output_dir": tmp_path / "a"}
    given = {name: value for name, value in options.items() if name != "model_name_or_path"}
    fresh = {"preset": "t5.1.1.small", "tokenizer_name": options["model_name_or_path"]}
    run(pretrain, {**given, **more, **fresh, "config_overrides": json.dumps(sizes), "max_steps": 1})
    shutil.copytree(tmp_path / "a", tmp_path / "model", ignore=shutil.ignore_patterns("checkpoint-*"))
    place = {**resumed(tmp_path / "a", tmp_path / "b"), "model_name_or_path": tmp_path / "model"}
    said = refusal(pretrain, {**given, **more, **place, "max_steps": 2})
    assert "was written with another base model (none then, " in said
