# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Garbage is not collected while a command imports libraries, and is again when it works."""

import argparse
import gc
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from t5_experimental import garbage
from t5_experimental.convert import generate
from t5_experimental.training import finetune
from t5_experimental.training.cli.first_answers import before_imports


REPOSITORY = Path(__file__).parents[2]
DATA = REPOSITORY / "tests" / "data"


@pytest.fixture(autouse=True)
def _on() -> Iterator[None]:
    assert gc.isenabled()
    yield
    gc.enable()
    garbage._is_paused = False


def test_what_is_there_afterwards_is_not_looked_at_again() -> None:
    frozen = gc.get_freeze_count()
    with garbage.collection_paused():
        assert not gc.isenabled()
        kept = [[] for _ in range(100)]
    assert gc.isenabled()
    assert gc.get_freeze_count() >= frozen + len(kept)


def test_what_others_have_turned_off_stays_off() -> None:
    gc.disable()
    with garbage.collection_paused():
        pass
    assert not gc.isenabled()


def test_an_error_turns_it_on_again() -> None:
    with pytest.raises(ZeroDivisionError), garbage.collection_paused():
        raise ZeroDivisionError
    assert gc.isenabled()


@pytest.mark.parametrize("name", ["evaluate", "finetune", "pretrain", "prompt_tune"])
def test_entry_points_pause_before_their_imports(name: str) -> None:
    """Nothing that takes time comes before."""
    source = (REPOSITORY / "training" / f"{name}.py").read_text()
    head, _, rest = source.partition(f'if __name__ == "__main__":\n    before_imports("{name}")\n')
    assert [line for line in head.splitlines() if line.startswith(("import", "from"))] == [
        "from t5_experimental.training.cli.first_answers import before_imports"
    ]
    assert "\nfrom t5_experimental.training.cli.entry_point import EntryPoint\n" in rest


def test_commands_alone_turn_it_off() -> None:
    """A program that imports the package as a library keeps the collector as it is."""
    rooms = [path for room in ("t5_experimental", "convert", "training") for path in (REPOSITORY / room).rglob("*.py")]
    found = {str(path.relative_to(REPOSITORY)) for path in rooms if "garbage import" in path.read_text()}
    assert found == {"convert/generate.py", "training/cli/entry_point.py", "training/cli/first_answers.py"}
    ours = [path for path in rooms if re.search(r"^import gc$|\bgc\.disable", path.read_text(), re.MULTILINE)]
    assert [path.name for path in ours] == ["garbage.py"]


def test_a_run_collects(monkeypatch: pytest.MonkeyPatch, tiny_models: dict[str, Path], tmp_path: Path) -> None:
    options = f"--model_name_or_path {tiny_models['t5_v1_1']} --train_file {DATA / 'restaurants_train.jsonl'}"
    words = [*options.split(), "--output_dir", str(tmp_path / "out"), "--max_steps", "1", "--use_cpu"]
    monkeypatch.setattr(sys, "argv", ["finetune.py", *words])
    before_imports("finetune")
    assert not gc.isenabled()
    seen = []
    finetune.ENTRY_POINT.start(lambda _: seen.append(gc.isenabled()), words)
    assert seen == [True]


def test_a_model_that_generates_is_loaded_without_collections(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    class Loaded(Exception):
        pass

    def load(_: object) -> None:
        seen.append(gc.isenabled())
        raise Loaded

    monkeypatch.setattr(generate._Writer, "load", load)
    parser = argparse.ArgumentParser()
    generate.add_arguments(parser)
    with pytest.raises(Loaded):
        generate.generate(parser.parse_args(["folder"]))
    assert seen == [False]
    assert gc.isenabled()
