# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Options check themselves alone; what depends on disk, processes and environment waits for `settle`, in its order."""

import builtins
import io
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from t5_experimental.training import evaluate, finetune, pretrain, prompt_tune
from t5_experimental.training.engines.engine import Engine
from t5_experimental.training.errors import TrainingError
from t5_experimental.training.trainer import settle as module
from t5_experimental.training.trainer.arguments import T5TrainingArguments
from t5_experimental.training.trainer.settle import Run, settle


NEEDED = {
    "ModelArguments": {"model_name_or_path": "no-such-folder"},
    "PretrainingModelArguments": {"model_name_or_path": "no-such-folder"},
    "DataArguments": {"train_file": ["no-such-file.jsonl"]},
    "PretrainingDataArguments": {"train_file": ["no-such-file.txt"]},
    "PretrainingArguments": {"output_dir": "no-such-output", "max_steps": 1, "optimizer_slots": "no-such-slots"},
    "FinetuningArguments": {"output_dir": "no-such-output", "deepspeed": "no-such.json", "metric": ["bleu"]},
    "PromptTrainingArguments": {"output_dir": "no-such-output", "resume_from_checkpoint": "no-such-checkpoint"},
    "EvaluatedModelArguments": {"model_name_or_path": "no-such-folder", "adapter_name_or_path": "no-such-adapter"},
    "EvaluationDataArguments": {"test_file": ["no-such-file.jsonl"]},
    "EvaluationArguments": {"output_dir": "no-such-output", "metric": ["no_such_module:function"]},
    "PromptArguments": {"import_prompt": "no-such.npy"},
}
OPTIONS = {kind for point in (evaluate, finetune, pretrain, prompt_tune) for kind in point.ENTRY_POINT.options}


@pytest.mark.parametrize("kind", sorted(OPTIONS, key=lambda kind: kind.__name__), ids=lambda kind: kind.__name__)
def test_options_touch_nothing_but_themselves(kind, monkeypatch):
    def touched(*unused, **also_unused):
        pytest.fail("an option reached outside")

    class Environment(dict):
        get = __getitem__ = __contains__ = __setitem__ = touched

    fields = NEEDED[kind.__name__]
    with monkeypatch.context() as patch:
        for owner, name in ((builtins, "open"), (io, "open"), (os, "stat"), (os, "scandir"), (os, "mkdir")):
            patch.setattr(owner, name, touched)
        patch.setattr(torch.distributed, "init_process_group", touched)
        patch.setattr(os, "environ", Environment())
        options = kind(**fields)
    assert {name: getattr(options, name) for name in fields} == fields


def test_the_order_is_that_of_its_docstring(monkeypatch, tmp_path):
    """What fails first has failed before anything later has begun."""
    steps = []

    def note(owner, name, result=None):
        monkeypatch.setattr(owner, name, lambda *unused, **also_unused: steps.append(name) or result)

    engine = SimpleNamespace(check=lambda chosen: steps.append("check"))
    note(T5TrainingArguments, "check_files")
    note(module, "_choose_defaults")
    note(module, "prepare_engine")
    note(module, "join_on_cpu")
    note(module.Seq2SeqTrainingArguments, "__post_init__")
    note(module, "engine_of", engine)
    note(module, "_check_output")
    note(module, "choose_checkpoint", (None, ""))
    note(T5TrainingArguments, "check_packages")
    training = T5TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    assert steps == []
    training.mixed_precision = "no"
    settle((training,))
    assert steps == [
        "check_files",
        "_choose_defaults",
        "prepare_engine",
        "join_on_cpu",
        "__post_init__",
        "engine_of",
        "check",
        "_check_output",
        "choose_checkpoint",
        "check_packages",
    ]


def test_a_run_has_what_was_found_out(tmp_path):
    training = T5TrainingArguments(output_dir=str(tmp_path / "output"), use_cpu=True, report_to="none")
    run = settle((training,), "finetune.py", frozenset({"use_cpu"}))
    expected = Run((training,), Engine(), None, "", True, True, "finetune.py", frozenset({"use_cpu"}))
    assert run == expected
    assert run.training is training
    assert (training.bf16, training.device.type) == (False, "cpu")
    assert settle((training,)).engine == run.engine  # once more changes nothing
    assert not (tmp_path / "output").exists()


def test_options_that_failed_leave_nothing(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(TrainingError, match=r"--output_dir .* is a file: give a folder"):
        settle((T5TrainingArguments(output_dir=str(tmp_path / "file"), use_cpu=True),))
    assert [path.name for path in Path(tmp_path).iterdir()] == ["file"]
