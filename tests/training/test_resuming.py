# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""A checkpoint only serves the run that wrote it; its learning rate may change, and nothing else does silently."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from t5_experimental.training import finetune, prompt_tune
from t5_experimental.training.optim.presets import build_optimizer
from t5_experimental.training.trainer.same_run import RECORD, use_learning_rate


DATA = Path(__file__).parents[1] / "data"


@pytest.fixture(scope="module", autouse=True)
def _private_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield


@pytest.fixture(scope="module")
def options(tiny_models) -> dict[str, object]:
    """Of a run of four steps with a falling learning rate."""
    return {
        "model_name_or_path": tiny_models["t5_v1_1"],
        "train_file": DATA / "restaurants_train.jsonl",
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
        "per_device_train_batch_size": 4,
        "max_steps": 4,
        "save_steps": 2,
        "logging_steps": 1,
        "optimizer_preset": "adamw",
        "lr_scheduler_type": "linear",
        "learning_rate": 0.01,
    }


def run(program, options: dict[str, object]) -> None:
    program.main([word for name, value in options.items() for word in (f"--{name}", str(value))])


def learning_rates(output: Path) -> list[float]:
    """As logged after each step."""
    history = json.loads((output / "checkpoint-4" / "trainer_state.json").read_text())["log_history"]
    return [entry["learning_rate"] for entry in history if "learning_rate" in entry]


@pytest.fixture(scope="module")
def whole(options, tmp_path_factory) -> Path:
    """Output folder of the whole run, with the checkpoint in its middle."""
    output = tmp_path_factory.mktemp("whole") / "output"
    run(finetune, {**options, "output_dir": output})
    return output


def test_the_same_run_goes_on_to_the_bit(options, whole, tmp_path, capsys):
    run(finetune, {**options, "output_dir": tmp_path / "output", "resume_from_checkpoint": whole / "checkpoint-2"})
    assert "learning rate 0.01, schedule linear\n" in capsys.readouterr().out
    expected, found = (load_file(folder / "model.safetensors") for folder in (whole, tmp_path / "output"))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_another_learning_rate_counts_from_there_on(options, whole, tmp_path, capsys):
    more = {"output_dir": tmp_path / "output", "resume_from_checkpoint": whole / "checkpoint-2", "learning_rate": 0.02}
    run(finetune, {**options, **more})
    assert "learning rate 0.02 (0.01 up to the checkpoint), schedule linear\n" in capsys.readouterr().out
    before = learning_rates(whole)
    assert learning_rates(tmp_path / "output") == pytest.approx([*before[:2], *(2 * rate for rate in before[2:])])
    assert before[2] > 0
    # It is also what the next checkpoint says.
    record = json.loads((tmp_path / "output" / "checkpoint-4" / RECORD).read_text())
    assert record["learning rate"] == 0.02


def test_the_rate_of_the_step_follows_from_the_new_one():
    """Also where another warm-up gives a preset another rate: nothing is left of the old schedule."""
    model = torch.nn.Linear(2, 2)

    def at_step_six(warmup_steps, wrapped):
        optimizer, schedule = build_optimizer("pretrain", model, warmup_steps=warmup_steps)
        for _ in range(6):
            optimizer.step()
            schedule.step()
        return optimizer, SimpleNamespace(scheduler=schedule) if wrapped else schedule

    for wrapped in (False, True):
        _, old = at_step_six(4, False)
        optimizer, schedule = build_optimizer("pretrain", model, warmup_steps=100)
        schedule.load_state_dict(old.state_dict())
        use_learning_rate(SimpleNamespace(scheduler=schedule) if wrapped else schedule, 0.1)
        expected, _ = at_step_six(100, wrapped)
        assert optimizer.param_groups[0]["lr"] == expected.param_groups[0]["lr"] == 0.1
        assert schedule.get_last_lr() == [0.1]
        optimizer.step()
        schedule.step()
        assert schedule.get_last_lr() == [0.1]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"optimizer_preset": "rms_adamw"}, "another optimizer (--optimizer_preset adamw then, --optimizer_preset rms"),
        ({"optimizer_preset": "", "optim": "adamw_torch"}, "another optimizer (--optimizer_preset adamw then, --optim"),
        ({"weight_decay": 0.1}, "another --weight_decay (0.0 then, 0.1 now): use the same, or start over in another"),
        ({"adam_beta1": 0.8}, "another --adam_beta1 (0.9 then, 0.8 now)"),
        ({"lora_rank": 2}, "another kind of adapters (none then, LORA now)"),
        ({"model_name_or_path": "t5_talking_heads"}, "another family (t5_v1_1 then, t5_talking_heads now): use"),
        ({"train_file": DATA / "restaurants_test.jsonl"}, "another number of training examples (400 then, 50 now)"),
        ({"seed": 7}, "another --seed (42 then, 7 now)"),
        (
            {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "epoch", "learning_rate": 0.02},
            "another kind of schedule (by the step then, reduce_lr_on_plateau now), learning rate (0.01 then",
        ),
    ],
)
def test_another_run_is_refused(changes, expected, options, whole, tiny_models, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "t5_experimental.training.trainer.trainer.T5Trainer.train", lambda self, **kwargs: pytest.fail("began")
    )
    if "model_name_or_path" in changes:
        changes = {"model_name_or_path": tiny_models[changes["model_name_or_path"]]}
    place = {"output_dir": tmp_path / "output", "resume_from_checkpoint": whole / "checkpoint-2"}
    evaluation = {"validation_file": DATA / "restaurants_validation.jsonl"}
    with pytest.raises(SystemExit) as exit_info:
        run(finetune, {**options, **evaluation, **place, **changes})
    message = str(exit_info.value.code)
    assert message.startswith(f"finetune: {whole / 'checkpoint-2'} was written with another ")
    assert expected in message
    assert "\n" not in message


def test_another_model_or_vocabulary_is_refused(options, whole, tmp_path):
    """Of the same family: the shape is named, and that the vocabulary is another one of the same size."""
    record = json.loads((whole / "checkpoint-2" / RECORD).read_text())
    checkpoint = tmp_path / "checkpoint-2"
    checkpoint.mkdir()
    (checkpoint / "trainer_state.json").write_text("{}")
    for change, expected in (
        ({"d_ff": 80, "num_layers": 3}, r"another d_ff \(80 then, 64 now\), num_layers \(3 then, 2 now\): use"),
        ({"d_ff": 1, "d_kv": 1, "d_model": 1, "num_heads": 1}, r"d_ff \(1 then, 64 now\) and 1 more settings: use"),
        ({"vocabulary": "000000000000"}, r"another vocabulary \(000000000000 then, [0-9a-f]{12} now\)"),
        ({"step of --optimizer_slots": 7}, r"another step of --optimizer_slots \(7 then, none now\)"),
    ):
        (checkpoint / RECORD).write_text(json.dumps({**record, **change}))
        with pytest.raises(SystemExit, match=expected):
            run(finetune, {**options, "output_dir": tmp_path / "output", "resume_from_checkpoint": checkpoint})


def test_data_may_change_where_it_begins_anew(options, whole, tmp_path):
    more = {"output_dir": tmp_path / "output", "resume_from_checkpoint": whole / "checkpoint-2"}
    run(finetune, {**options, **more, "train_file": DATA / "restaurants_test.jsonl", "ignore_data_skip": True})
    assert (tmp_path / "output" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("program", "size", "then", "now"), [(finetune, "lora_rank", 2, 3), (prompt_tune, "prompt_length", 4, 5)]
)
def test_adapters_of_another_size_are_refused(program, size, then, now, options, tmp_path):
    kept = {name: value for name, value in options.items() if program is finetune or name != "optimizer_preset"}
    steps = {"max_steps": 1, "save_steps": 1}
    run(program, {**kept, **steps, size: then, "output_dir": tmp_path / "first"})
    place = {"output_dir": tmp_path / "second", "resume_from_checkpoint": tmp_path / "first" / "checkpoint-1"}
    with pytest.raises(SystemExit, match=rf"was written with another --{size} \({then} then, {now} now\): use the"):
        run(program, {**kept, **steps, **place, size: now})
