# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Help, and the answer to options that do not exist: read from the source, and the same as what the parser knows."""

import dataclasses
import importlib
import subprocess
import sys

import pytest

from t5_experimental.training.cli import entry_point as commandline
from t5_experimental.training.cli import first_answers, option_texts
from t5_experimental.training.cli.first_answers import answer, help_of
from t5_experimental.training.cli.option_texts import options_of, program_of
from t5_experimental.training.errors import TrainingError
from t5_experimental.training.optim.presets import PRESETS


ENTRY_POINTS = ("evaluate", "finetune", "pretrain", "prompt_tune")


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_the_source_says_what_the_dataclasses_say(name):
    entry_point = importlib.import_module(f"t5_experimental.training.{name}").ENTRY_POINT
    program = program_of(name)
    assert (program.name, program.description, program.usage) == (name, entry_point.description, entry_point.usage)
    fields = {field.name: field for option in entry_point.options for field in dataclasses.fields(option) if field.init}
    assert list(program.options) == list(fields)
    for option in program.options.values():
        field = fields[option.name]
        required = field.default is field.default_factory is dataclasses.MISSING
        assert (option.default is None) == required, option.name
        if option.is_ours:
            assert option.help == field.metadata["help"]
            assert option.group


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_all_that_the_parser_takes_passes(name, monkeypatch):
    made = []

    class Parser(commandline._Parser):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            made.append(self)

    monkeypatch.setattr(commandline, "_Parser", Parser)
    entry_point = importlib.import_module(f"t5_experimental.training.{name}").ENTRY_POINT
    with pytest.raises(TrainingError):
        entry_point.parse([])
    words = [word for word in made[0]._option_string_actions if word not in ("-h", "--help", "--help-all")]
    assert len(words) > 100
    answer(name, words)
    with pytest.raises(
        SystemExit, match=rf"^{name}: There is no option --learning_rat; the nearest is --learning_rate"
    ):
        answer(name, [*words, "--learning_rat=3"])


@pytest.mark.parametrize(
    ("option", "instead"),
    [
        ("--max_train_samples", "give a --train_file with fewer rows"),
        ("--overwrite_output_dir", "remove the folder, or give another --output_dir"),
        ("--warmup_ratio", "--warmup_steps takes a fraction now"),
        ("--evaluation_strategy", "it is --eval_strategy now"),
    ],
)
def test_old_options_are_answered_with_those_of_today(option, instead):
    with pytest.raises(SystemExit, match=f"There is no option {option}; {instead}"):
        answer("finetune", [option, "5"])


def test_of_several_processes_the_first_one_answers(monkeypatch, capsys):
    monkeypatch.setenv("LOCAL_RANK", "1")
    answer("finetune", ["--nothing"])  # which the first one refuses
    with pytest.raises(SystemExit) as end:
        answer("finetune", ["--help"])
    assert end.value.code == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("error", [LookupError("written in another way"), FileNotFoundError(), SyntaxError()])
def test_the_parser_answers_where_the_source_cannot(error, monkeypatch, capsys):
    def fail(name):
        raise error

    monkeypatch.setattr(first_answers, "program_of", fail)
    entry_point = importlib.import_module("t5_experimental.training.finetune").ENTRY_POINT
    with pytest.raises(SystemExit) as end:
        entry_point.parse(["--help"])
    assert end.value.code == 0
    assert "--learning_rate" in capsys.readouterr().out
    with pytest.raises(TrainingError, match="There is no option --learning_rat; the nearest is --learning_rate"):
        entry_point.parse(["--model_name_or_path", "m", "--output_dir", "o", "--learning_rat", "3"])


def test_ours_come_first_and_presets_are_named():
    program = program_of("finetune")
    text = help_of(program)
    titles = [line.rstrip(":") for line in text.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert titles[:5] == ["Model", "Data", "Optimizer and learning rate", "Training", "Fine-tuning"]
    assert titles[5:] == ["Options of transformers that most runs use", f"Help: {len(program.options)} options in all"]
    assert len(text.splitlines()) < 240
    assert all(preset in program_of("finetune").options["optimizer_preset"].help for preset in PRESETS)


def test_a_start_reads_its_source_once(monkeypatch):
    looked_up, options_of_class = [], option_texts.options_of
    monkeypatch.setattr(option_texts, "options_of", lambda *args: looked_up.append(args) or options_of_class(*args))
    option_texts.program_of.cache_clear()
    answer("finetune", ["--learning_rate", "3"])
    before = len(looked_up)
    answer("finetune", ["--learning_rate", "3"])
    assert len(looked_up) == before > 3


def test_help_and_misspelt_options_import_neither_torch_nor_transformers():
    """As the processes of users do, before anything else is imported."""
    for arguments, code in ((["--help"], 0), (["--learning_rat", "3"], 1)):
        command = [sys.executable, "-X", "importtime", "-m", "t5_experimental.training.finetune", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
        assert done.returncode == code, done.stderr
        imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import")}
        assert "t5_experimental.training.cli.first_answers" in imported
        assert not {"torch", "transformers", "numpy", "datasets"} & imported


def test_a_class_that_is_not_there_is_named(tmp_path):
    path = tmp_path / "options.py"
    path.write_text("class One:\n    a: int = 1\n")
    with pytest.raises(LookupError, match="has no class Two"):
        options_of(path, "Two")
