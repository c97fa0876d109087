# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Runs that die: the same command goes on, and comes to the same losses and weights as if nothing had happened."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file


DATA = Path(__file__).parents[1] / "data"

# Does something to a process when the run has come to a place.
AT = """
import os
from t5_experimental.training.trainer import saving
from t5_experimental.training.trainer.trainer import T5Trainer

trainers = []
train = T5Trainer.train

def remember(self, *args, **kwargs):
    trainers.append(self)
    return train(self, *args, **kwargs)

whole = {owner}.{name}

def patched(*args, **kwargs):
    is_here = RANK == {rank} and trainers[-1].state.global_step == {step}
    if is_here and not {after}:
        {action}
    result = whole(*args, **kwargs)
    if is_here and {after}:
        {action}
    return result

T5Trainer.train = remember
{owner}.{name} = patched
"""
KILL = "os.kill(os.getpid(), 9)"

# In a step, after each file of a checkpoint, before and after the rename, in an evaluation, in the final save.
PLACES = (
    ("T5Trainer", "training_step", 1, False),
    ("T5Trainer", "save_model", 2, True),
    ("T5Trainer", "_save_optimizer_and_scheduler", 2, True),
    ("T5Trainer", "_save_rng_state", 4, True),
    ("saving", "complete", 4, False),
    ("saving", "put_in_place", 4, False),
    ("saving", "put_in_place", 4, True),
    ("T5Trainer", "evaluation_loop", 6, False),
    ("saving", "remove_oldest", 6, False),
    ("saving", "flush", 7, False),
    ("saving", "flush_one", 7, False),
    ("T5Trainer", "save_metrics", 7, False),
)


def options(model: Path, output: Path, engine: str, **more: object) -> list[str]:
    chosen = {
        "model_name_or_path": model,
        "train_file": DATA / "restaurants_train.jsonl",
        "validation_file": DATA / "restaurants_test.jsonl",
        "output_dir": output,
        "max_steps": 7,
        "save_steps": 2,
        "save_total_limit": 2,
        "logging_steps": 3,
        "eval_strategy": "steps",
        "eval_steps": 3,
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 50,
        "gradient_accumulation_steps": 2,
        "dropout_rate": 0.3,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        **({} if engine == "single" else {"ddp_backend": "gloo"}),
        **more,
    }
    return [text for name, value in chosen.items() for text in (f"--{name}", str(value))]


def outcome(output: Path) -> tuple[list[dict], float, dict]:
    """What a run has logged, but for times, its mean loss and its weights."""
    history = json.loads((output / "checkpoint-7" / "trainer_state.json").read_text())["log_history"]
    timed = ("runtime", "per_second")
    logged = [{name: value for name, value in entry.items() if not name.endswith(timed)} for entry in history]
    mean = json.loads((output / "train_results.json").read_text())["train_loss"]
    is_whole = (output / "model.safetensors").is_file()
    return logged, mean, load_file(output / ("model.safetensors" if is_whole else "adapter_model.safetensors"))


def assert_same(found: Path, expected: Path) -> None:
    (logged, mean, weights), (logged_before, mean_before, weights_before) = outcome(found), outcome(expected)
    assert logged == logged_before
    assert mean == mean_before
    assert weights.keys() == weights_before.keys()
    assert all(weight.equal(weights_before[name]) for name, weight in weights.items())


def hook(owner: str, name: str, step: int, after: bool, rank: int | str = 0, action: str = KILL) -> str:
    return AT.format(owner=owner, name=name, step=step, after=after, rank=rank, action=action)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["single", "ddp"])
def test_killed_runs_go_on_exactly(engine, fork_server, tiny_models, tmp_path):
    """One folder, killed at one place after the other."""
    processes = 1 if engine == "single" else 2
    model, whole, killed = tiny_models["t5_v1_1"], tmp_path / "whole", tmp_path / "killed"
    run = fork_server.start("finetune", options(model, whole, engine), engine, processes)
    assert set(run.wait()) == {0}, run.read()
    # With two processes, fewer: what they do alike needs no second look.
    for place in PLACES if engine == "single" else PLACES[::3]:
        run = fork_server.start("finetune", options(model, killed, engine), engine, processes, hook(*place))
        assert -9 in run.wait(), (place, run.read())
    run = fork_server.start("finetune", options(model, killed, engine), engine, processes)
    assert set(run.wait()) == {0}, run.read()
    assert_same(killed, whole)
    assert not (killed / "unfinished").exists()
    assert sorted(path.name for path in killed.glob("checkpoint-*")) == ["checkpoint-6", "checkpoint-7"]
    run = fork_server.start("finetune", options(model, killed, engine), engine, processes)
    assert 1 in run.wait()
    assert "already holds a model, and its run is finished" in run.read()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("entry", "more"),
    [
        ("prompt_tune", {"prompt_length": 5, "weight_decay": 0.01}),
        ("finetune", {"lora_rank": 4, "optimizer_preset": "adamw"}),
    ],
)
def test_adapters_that_fsdp_cuts_up_go_on_exactly(entry, more, fork_server, tiny_models, tmp_path):
    """The launcher asks for checkpoints in parts, which a prompt's cannot be."""
    outputs = [tmp_path / "whole", tmp_path / "killed"]
    for output in outputs:
        arguments = options(
            tiny_models["t5_v1_1"], output, "fsdp2", accelerator_config='{"use_configured_state": true}', **more
        )
        if output.name == "killed":
            stop = hook("T5Trainer", "training_step", 5, False)
            run = fork_server.start(entry, arguments, "fsdp2_in_parts", 2, stop)
            assert -9 in run.wait(), run.read()
        run = fork_server.start(entry, arguments, "fsdp2_in_parts", 2)
        assert run.wait() == [0, 0], run.read()
    assert "resumes from " in run.read()
    assert "FSDP2, 2 process(es)" in run.read()
    assert_same(*outputs)


@pytest.mark.slow
def test_damaged_checkpoint_is_passed_over(fork_server, tiny_models, tmp_path):
    model, whole, damaged = tiny_models["t5_v1_1"], tmp_path / "whole", tmp_path / "damaged"
    run = fork_server.start("finetune", options(model, whole, "single", save_total_limit=9), "single", 1)
    assert run.wait() == [0], run.read()
    for step in (4, 6):
        shutil.copytree(whole / f"checkpoint-{step}", damaged / f"checkpoint-{step}")
    weights = damaged / "checkpoint-6" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    run = fork_server.start("finetune", options(model, damaged, "single"), "single", 1)
    assert run.wait() == [0], run.read()
    assert "resumes from " in run.read()
    assert "since checkpoint-6 is not a complete checkpoint (its model.safetensors has " in run.read()
    assert "missing keys" not in run.read()
    assert_same(damaged, whole)


@pytest.mark.slow
def test_full_disk_leaves_the_last_checkpoint(fork_server, tiny_models, tmp_path):
    """Files may not grow beyond a limit, which is how a disk without room looks to those who write."""
    model, output = tiny_models["t5_v1_1"], tmp_path / "output"
    limit = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))"
    full = hook("T5Trainer", "save_model", 4, False, action=limit)
    run = fork_server.start("finetune", options(model, output, "single"), "single", 1, full)
    assert run.wait() == [1]
    assert run.read().count("finetune: checkpoint-4 cannot be written (") == 1
    assert "run the same command again, which resumes from checkpoint-2" in run.read()
    assert "Traceback" not in run.read()
    assert sorted(path.name for path in output.iterdir()) == ["checkpoint-2", "history.jsonl"]


# The first process waits until the second has stopped, and from then on not as long as it was told to.
HANG = """
import datetime, os, pathlib, time
import psutil, torch

def hang(file):
    if RANK == 1:
        (file.with_suffix(".new")).write_text(str(os.getpid()))
        os.replace(file.with_suffix(".new"), file)
        os.kill(os.getpid(), 19)
    while not file.exists() or psutil.Process(int(file.read_text())).status() != psutil.STATUS_STOPPED:
        time.sleep(0.01)
    group = torch.distributed.distributed_c10d
    backend = group._get_default_group()._get_backend(torch.device("cpu"))
    print("as told:", backend.options._timeout, flush=True)
    group._set_pg_timeout(datetime.timedelta(seconds=1))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("what", "said"), [("dies", "has died"), ("stops", "which hangs")])
def test_process_that_waits_for_another_says_so(what, said, fork_server, tiny_models, tmp_path):
    arguments = options(tiny_models["t5_v1_1"], tmp_path / "output", "ddp", ddp_timeout=1234)
    place = ("T5Trainer", "training_step", 3, False)
    if what == "dies":
        stop = hook(*place, rank=1)
    else:
        stop = HANG + hook(*place, rank="RANK", action=f"hang(pathlib.Path({str(tmp_path / 'pid')!r}))")
    run = fork_server.start("finetune", arguments, "ddp", 2, stop, grace=1800)
    assert run.wait()[0] == 1, run.read()
    assert said in run.read()
    assert "run the same command again" in run.read()
    assert "Traceback" not in run.read()
    assert ("as told: 0:20:34" in run.read()) == (what == "stops")


@pytest.mark.slow
def test_other_number_of_processes(fork_server, tiny_models, tmp_path):
    """It goes on with the same examples in a step; with others, it is refused."""
    model, output = tiny_models["t5_v1_1"], tmp_path / "output"
    run = fork_server.start(
        "finetune", options(model, output, "single", max_steps=4), "single", 1, hook(*PLACES[9][:2], 4, False)
    )
    assert run.wait() == [-9]
    run = fork_server.start("finetune", options(model, output, "ddp"), "ddp", 2)
    assert 1 in run.wait()
    assert "checkpoint-4 was written with 4 examples per step, but now there are 8: choose" in run.read()
    arguments = options(model, output, "ddp", gradient_accumulation_steps=1)
    run = fork_server.start("finetune", arguments, "ddp", 2)
    assert run.wait() == [0, 0], run.read()
    assert "resumes from " in run.read()
