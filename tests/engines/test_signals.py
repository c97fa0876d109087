# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Runs that are told to end, by Ctrl-C or SIGTERM: one sentence, the exit status of the signal, nothing half-written,
and the same command goes on as the sentence says."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest


REPOSITORY = Path(__file__).parents[2]
DATA = REPOSITORY / "tests" / "data"

# Sends a signal to the process itself when a function is called for the nth time, before it does anything, or after.
HOOK = """
import os
import torch
from t5_experimental.training import finetune, pretrain
from t5_experimental.training.cli import entry_point as commandline
from t5_experimental.training.data import readings
from t5_experimental.training.trainer import checkpoint_folders as checkpoints, saving
from t5_experimental.training.trainer.trainer import T5Trainer

whole, calls = {owner}.{name}, 0

def patched(*args, **kwargs):
    global calls
    calls += 1
    if calls == {call} and RANK in {ranks} and not {after}:
        os.kill(os.getpid(), {number})
    result = whole(*args, **kwargs)
    if calls == {call} and RANK in {ranks} and {after}:
        os.kill(os.getpid(), {number})
    return result

{owner}.{name} = patched
"""


def hook(owner, name, call=1, number=signal.SIGTERM, ranks=(0,), after=False) -> str:
    return HOOK.format(owner=owner, name=name, call=call, number=int(number), ranks=ranks, after=after)


def options(model: Path, output: Path, processes: int = 1, **more: object) -> list[str]:
    chosen = {
        "model_name_or_path": model,
        "train_file": DATA / "restaurants_train.jsonl",
        "validation_file": DATA / "restaurants_test.jsonl",
        "output_dir": output,
        "max_steps": 6,
        "save_steps": 2,
        "per_device_train_batch_size": 2,
        "report_to": "none",
        "use_cpu": True,
        **({"ddp_backend": "gloo"} if processes > 1 else {}),
        **more,
    }
    given = {name: value for name, value in chosen.items() if value is not None}
    return [text for name, value in given.items() for text in (f"--{name}", str(value))]


def checkpoints(output: Path) -> list[str]:
    """Names, the newest one last."""
    found = output.glob("checkpoint-*")
    return [path.name for path in sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))]


def assert_ended(text: str, output: Path, program: str = "finetune", by: str = "SIGTERM") -> None:
    """What a run printed, whose output folder is as it left it."""
    assert "Traceback" not in text, text
    assert text.count("Ended by") == 1, text
    found = checkpoints(output)
    then = f"The same command resumes from {output / found[-1]}." if found else "the same command starts over."
    last = text[text.index("Ended by") :].strip()
    assert text.count(f"\n{program}: Ended by {by}. ") == 1, text
    assert last.endswith(then), text
    assert "\n" not in last, text
    assert not (output / "unfinished").exists()
    for checkpoint in found:
        assert (output / checkpoint / "complete.json").is_file()


# Where the signal comes, and the steps of the newest checkpoint then.
PLACES = (
    (("commandline", "_find_recipe"), None),
    (("finetune", "make_splits"), None),
    (("readings", "_example", 300), None),
    (("finetune", "load_model", 1, signal.SIGTERM, (0,), True), None),
    (("T5Trainer", "training_step", 2), None),
    (("torch", "save", 1, signal.SIGTERM, (0,), True), None),
    (("saving", "put_in_place"), 2),  # held back: the checkpoint is there as a whole
    (("T5Trainer", "training_step", 2), 2),
    (("torch.serialization", "_save", 2), 2),
    (("saving", "complete"), 2),
    (("saving", "remove_oldest", 1, signal.SIGTERM, (0,), True), 4),
    (("saving", "flush"), 6),
    (("saving", "share_as_usual"), 6),
    (("T5Trainer", "evaluation_loop"), 6),
    (("T5Trainer", "save_metrics"), 6),
)


@pytest.mark.slow
def test_wherever_it_is_told(fork_server, tiny_models, tmp_path):
    """One folder, told to end at one place after the other; then the run comes to its end."""
    output = tmp_path / "output"
    # A file of its own: what other tests have read already comes from the cache of `datasets`.
    data = shutil.copy(DATA / "restaurants_train.jsonl", tmp_path)
    arguments = ["finetune.yaml", *options(tiny_models["t5_v1_1"], output, train_file=data)]
    for place, step in PLACES:
        run = fork_server.start("finetune", arguments, "single", 1, hook(*place))
        assert run.wait() == [143], (place, run.read())
        assert_ended(run.read(), output)
        assert checkpoints(output)[-1:] == ([] if step is None else [f"checkpoint-{step}"]), place
    run = fork_server.start("finetune", arguments, "single", 1)
    assert run.wait() == [0], run.read()
    assert (output / "report.html").is_file()


@pytest.mark.slow
def test_ctrl_c_in_every_entry_point(fork_server, tiny_models, tmp_path):
    model = tiny_models["t5_lm_adapted"]
    more = {
        "finetune": {"metric": "exact_match"},
        "prompt_tune": {"prompt_length": 3},
        "pretrain": {"text_column": "target", "dataloader_num_workers": 2, "validation_rows": 2},
    }
    for entry, own in more.items():
        output = tmp_path / entry
        arguments = options(model, output, **own)
        for place in (("T5Trainer", "training_step", 4), ("T5Trainer", "evaluation_loop")):
            run = fork_server.start(entry, arguments, "single", 1, hook(*place, number=signal.SIGINT))
            assert run.wait() == [130], run.read()
            assert_ended(run.read(), output, entry, "Ctrl-C (SIGINT)")


@pytest.mark.slow
def test_what_the_same_command_does(fork_server, tiny_models, tmp_path):
    """Where it does something else than to resume from the newest checkpoint, the sentence says so."""
    output = tmp_path / "output"
    arguments = options(tiny_models["t5_v1_1"], output, save_strategy="no", save_steps=None)
    run = fork_server.start("finetune", arguments, "single", 1, hook("T5Trainer", "evaluation_loop"))
    assert run.wait() == [143]
    assert f"Training was finished, and {output} has its result; only the eval" in run.read()
    assert "Traceback" not in run.read()

    output = tmp_path / "first"
    arguments = options(tiny_models["t5_v1_1"], output, resume_from_checkpoint=False)
    run = fork_server.start("finetune", arguments, "single", 1, hook("T5Trainer", "training_step", 4))
    assert run.wait() == [143]
    assert f"The same command without --resume_from_checkpoint resumes from {output / 'checkpoint-2'}." in run.read()

    checkpoint, other = output / "checkpoint-2", tmp_path / "other"
    arguments = options(tiny_models["t5_v1_1"], other, resume_from_checkpoint=checkpoint)
    run = fork_server.start("finetune", arguments, "single", 1, hook("T5Trainer", "training_step", 1))
    assert run.wait() == [143]
    assert f"The same command resumes from {checkpoint}." in run.read()


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [(0, 1), (0,), (1,)])
def test_two_processes(ranks, fork_server, tiny_models, tmp_path):
    """Both are told, or one, whose end the other one notices."""
    output = tmp_path / "output"
    arguments = options(tiny_models["t5_v1_1"], output, 2)
    for place in (("finetune", "make_splits"), ("T5Trainer", "training_step", 4), ("T5Trainer", "evaluation_loop")):
        run = fork_server.start("finetune", arguments, "ddp", 2, hook(*place, ranks=ranks))
        codes, said = run.wait(), [run.read(0), run.read(1)]
        assert all(codes[rank] == 143 for rank in ranks), said
        assert 0 not in codes
        assert "Traceback" not in "".join(said), said
        if ranks != (0,):  # here the first process is where they meet, so that the other one does not hear of it
            assert "".join(said).count("Ended by SIGTERM") == 1, said
        assert "".join(said).count("Ended by") <= 1
        assert not (output / "unfinished").exists()
    assert checkpoints(output) == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]


# --- Through the launchers ----------------------------------------------------------------------------------------


def workers(launcher: psutil.Process) -> dict[int, psutil.Process]:
    return {
        int(process.environ().get("RANK", 0)): process
        for process in launcher.children()
        if any("finetune" in word for word in process.cmdline())
    }


def launch(command: list[str], arguments: list[str], log: Path) -> subprocess.Popen:
    """In a process group of its own."""
    with log.open("w") as file:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        environment["HF_DATASETS_CACHE"] = str(log.with_suffix(".cache"))
        words = [*command, str(REPOSITORY / "training" / "finetune.py"), *arguments]
        return subprocess.Popen(words, stdout=file, stderr=file, env=environment, start_new_session=True)


ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch", "--num_machines", "1", "--mixed_precision", "no"]
ACCELERATE += ["--dynamo_backend", "no", "--main_process_port", "0"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "processes", "number", "to"),
    [
        ([sys.executable], 1, signal.SIGINT, "group"),
        ([*ACCELERATE, "--num_processes", "1"], 1, signal.SIGINT, "group"),
        ([*ACCELERATE, "--num_processes", "1"], 1, signal.SIGTERM, "worker"),
        ([*ACCELERATE, "--num_processes", "2", "--multi_gpu"], 2, signal.SIGINT, "group"),
        ([*TORCHRUN, "--nproc-per-node", "2"], 2, signal.SIGTERM, "group"),
        ([*TORCHRUN, "--nproc-per-node", "2"], 2, signal.SIGTERM, "worker"),
    ],
    ids=[
        "python-int",
        "accelerate-int",
        "accelerate-term-worker",
        "accelerate-2-int",
        "torchrun-term",
        "torchrun-term-1",
    ],
)
def test_launchers(command, processes, number, to, tiny_models, tmp_path):
    """What the launchers themselves have to say about it aside."""
    output, log = tmp_path / "output", tmp_path / "log"
    arguments = options(tiny_models["t5_v1_1"], output, processes, max_steps=100_000, save_steps=1, save_total_limit=1)
    arguments += ["--dataloader_num_workers", "1", "--disable_tqdm", "True"]
    process = launch(command, arguments, log)
    try:
        launcher = psutil.Process(process.pid)
        while not list(output.glob("checkpoint-*/complete.json")):
            assert process.poll() is None, log.read_text()
            time.sleep(0.05)
        found = workers(launcher) if command != [sys.executable] else {0: launcher}
        assert sorted(found) == list(range(processes))
        if to == "group":
            os.killpg(process.pid, number)
        else:
            found[processes - 1].send_signal(number)
        process.wait(timeout=240)
        _, alive = psutil.wait_procs(list(found.values()), timeout=240)
        assert not alive
    finally:
        for child in psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []:
            child.kill()
        process.kill()
        process.wait()
    text = log.read_text()
    assert text.count("finetune: Ended by") == 1, text
    assert f"The same command resumes from {output}/checkpoint-" in text
    # Launchers end in a traceback of their own.
    is_launched = command != [sys.executable]
    assert text.count("Traceback") == is_launched, text
    assert is_launched or process.returncode == 128 + number
    assert json.loads((output / checkpoints(output)[-1] / "complete.json").read_text())
