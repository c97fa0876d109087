# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""The settings of generation that a run saves: the model's own, and what the run knows, however it was evaluated."""

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from t5_experimental.training import finetune, pretrain, prompt_tune


DATA = Path(__file__).parents[1] / "data"
OWN = {"decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}


@pytest.fixture(autouse=True)
def _private_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def model(tiny_models, tmp_path) -> Path:
    """A model with a setting of its own, which every run must keep."""
    folder = shutil.copytree(tiny_models["t5_v1_1"], tmp_path / "model")
    (folder / "generation_config.json").write_text(json.dumps({**OWN, "no_repeat_ngram_size": 5, "max_new_tokens": 3}))
    return folder


def run(program, model: Path, output: Path, **options: object) -> None:
    common = {
        "model_name_or_path": model,
        "train_file": DATA / "restaurants_train.jsonl",
        "output_dir": output,
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
        "max_steps": 2,
        "save_steps": 1,
        "per_device_train_batch_size": 2,
    }
    words = [word for name, value in {**common, **options}.items() for word in (f"--{name}", str(value))]
    program.main(words)


def saved(folder: Path) -> dict[str, object]:
    found = json.loads((folder / "generation_config.json").read_text())
    assert found.pop("transformers_version")
    return found


@pytest.fixture
def few(tmp_path) -> dict[str, object]:
    """Options of an evaluation in every step that generates."""
    rows = (DATA / "restaurants_validation.jsonl").read_text().splitlines()[:2]
    (tmp_path / "few.jsonl").write_text("\n".join(rows))
    more = {"metric": "exact_match", "eval_strategy": "steps", "eval_steps": 1}
    return {"validation_file": tmp_path / "few.jsonl", **more}


EXPECTED = {**OWN, "no_repeat_ngram_size": 5, "max_length": 25}


@pytest.mark.parametrize("more", [{}, {"lora_rank": 2, "merge_lora": True, "optimizer_preset": "adamw"}])
def test_evaluation_leaves_nothing_behind(more, model, few, tmp_path):
    """In the checkpoints as in the model, also of a run that goes on."""
    for evaluation in ({}, few):
        output = tmp_path / f"output-{len(evaluation)}"
        run(finetune, model, output, max_target_length=24, **evaluation, **more)
        assert saved(output) == EXPECTED
        checkpoint = output / "checkpoint-1"
        assert more or saved(checkpoint) == saved(output / "checkpoint-2") == EXPECTED
    resumed = tmp_path / "resumed"
    run(finetune, model, resumed, max_target_length=24, **few, **more, resume_from_checkpoint=checkpoint)
    assert saved(resumed) == EXPECTED


def test_the_saved_model_writes_texts_as_long_as_its_targets(model, tmp_path):
    run(finetune, model, tmp_path / "output", max_target_length=24)
    trained, tokenizer = (kind.from_pretrained(tmp_path / "output") for kind in (AutoModelForSeq2SeqLM, AutoTokenizer))
    trained.generation_config.eos_token_id = None
    inputs = tokenizer("The Mill", return_tensors="pt")
    assert trained.generate(**inputs).shape == (1, 25)
    assert trained.generate(**inputs, max_new_tokens=30).shape == (1, 31)  # the caller still has the last word


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"generation_num_beams": 2}, {**EXPECTED, "max_length": 129, "num_beams": 2}),
        ({"generation_max_length": 9}, {**EXPECTED, "max_length": 9}),
        # A file of settings takes the place of the model's own; it has a length unless it has none.
        ({"generation_config": {"max_new_tokens": 7}}, {**OWN, "max_new_tokens": 7}),
        ({"generation_config": {"num_beams": 3}}, {**OWN, "num_beams": 3, "max_length": 129}),
        ({"generation_config": {"max_length": 7}, "generation_max_length": 9}, {**OWN, "max_length": 9}),
        (
            {"generation_config": {"num_beams": 2}, "lora_rank": 2, "merge_lora": True, "optimizer_preset": "adamw"},
            {**OWN, "num_beams": 2, "max_length": 129},
        ),
    ],
)
def test_what_the_run_was_told(more, expected, model, few, tmp_path):
    if "generation_config" in more:
        (tmp_path / "given.json").write_text(json.dumps(more["generation_config"]))
        more = {**more, "generation_config": tmp_path / "given.json"}
    run(finetune, model, tmp_path / "output", **few, **more)
    assert saved(tmp_path / "output") == expected


def test_adapters_have_the_settings_of_their_run(model, few, tmp_path):
    """peft reads none from the folder of an adapter, but an evaluation does."""
    run(prompt_tune, model, tmp_path / "prompt", prompt_length=2, **few)
    run(finetune, model, tmp_path / "lora", lora_rank=2, optimizer_preset="adamw", **few)
    places = list(tmp_path.glob("[pl]*/**/adapter_config.json"))
    assert len(places) > 1
    assert all(saved(place.parent) == {**OWN, "no_repeat_ngram_size": 5, "max_length": 129} for place in places)


@pytest.mark.parametrize("start", ["checkpoint", "preset"])
def test_pretraining(start, model, tmp_path):
    options = {"text_column": "target", "max_source_length": 48, "validation_file": DATA / "restaurants_test.jsonl"}
    options |= {"validation_rows": 2, "objective": "prefix_lm", "max_target_length": 24}
    if start == "preset":
        size = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_heads": 4, "num_layers": 2}
        options |= {"preset": "t5.1.1.small", "config_overrides": json.dumps(size)}
        options |= {"tokenizer_name": DATA / "restaurants.model", "train_file": DATA / "restaurants_train.jsonl"}
        words = {"output_dir": tmp_path / "output", "use_cpu": True, "max_steps": 1, "save_steps": 1, **options}
        pretrain.main([word for name, value in words.items() for word in (f"--{name}", str(value))])
        # What transformers takes from the configuration of a model without settings is the model's own here.
        more = {"use_cache": True, "output_attentions": False, "output_hidden_states": False}
        assert saved(tmp_path / "output") == {**OWN, **more, "max_length": 25}
        return
    run(pretrain, model, tmp_path / "output", **options)
    assert saved(tmp_path / "output") == saved(tmp_path / "output" / "checkpoint-1") == EXPECTED


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"length_penalty": 2.0}, "The generation settings contradict each other ("),
        ({"num_return_sequences": 2, "num_beams": 2}, "ask for 2 texts of each input, and an evaluation compares one"),
        ("none.json", "--generation_config none.json does not load ("),
        ("[]", "does not load ("),
        ("{", "does not load ("),
    ],
)
def test_settings_that_do_not_fit(settings, expected, model, tmp_path):
    """They are found out before anything is trained, not when they are saved."""
    more = {}
    if isinstance(settings, dict):
        (model / "generation_config.json").write_text(json.dumps({**OWN, **settings}))
        more = {"generation_num_beams": 1}
    elif settings.endswith("json"):
        more = {"generation_config": settings}
    else:
        (tmp_path / "broken.json").write_text(settings)
        more = {"generation_config": tmp_path / "broken.json"}
    with pytest.raises(SystemExit) as end:
        run(finetune, model, tmp_path / "output", **more)
    assert expected in str(end.value.code)
    assert "\n" not in str(end.value.code)
    assert not (tmp_path / "output").exists()
