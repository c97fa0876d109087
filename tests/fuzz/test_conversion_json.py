# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Fuzzing conversion.json, through what `verify`, `export` and `push` make of a folder's."""

import importlib
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from t5_experimental import without_models
from t5_experimental.convert import hub, pipeline
from t5_experimental.convert.errors import ConversionError
from t5_experimental.convert.export import plan_export
from t5_experimental.convert.output import json_files
from t5_experimental.convert.output.record import read_record
from t5_experimental.convert.source.checkpoint import Checkpoint, resolve
from tests.fuzz.json_mutations import assert_unambiguous, mutated


Attempt = Callable[[random.Random], None]

record = importlib.import_module(read_record.__module__)

INPUTS = 500
NAME = "t5.1.1.tiny"


@pytest.fixture
def attempt(reference: Path, converted: Callable[[str], Path], tmp_path: Path) -> Attempt:
    folder = Path(shutil.copytree(converted(NAME), tmp_path / "folder"))
    record = json.loads((folder / "conversion.json").read_text())
    # Most of a record is of tensors; here most mutations are of the rest.
    kept = list(record["tensors"])[:3]
    short = {**record, "tensors": {name: record["tensors"][name] for name in kept}}
    source = resolve(reference / "golden" / NAME)

    def try_one(generator: random.Random) -> None:
        data = mutated(generator.choice([record, short, short, short]), generator)
        (folder / "conversion.json").write_bytes(data)
        command = generator.randrange(4)
        with without_models():
            if command == 0:
                found = plan_export(folder)
                assert 0 <= found.step < 2**63
            elif command == 1:
                hub.check_complete(folder)
            else:
                plan_again(source, folder)
        accepted = assert_unambiguous(data)
        assert not accepted["options"].keys() - record["options"].keys()
        files = {row["file"] for row in accepted["tensors"].values()}
        assert all(os.path.basename(name) == name and name.isprintable() for name in files), files

    return try_one


def plan_again(source: Checkpoint, folder: Path) -> None:
    """What `verify` does before it compares."""
    options = read_record(folder)["options"]
    found = pipeline.inspect(source, **options)
    assert found.plan.reads


def test_records(attempt: Attempt, fuzz: Callable[..., None]) -> None:
    fuzz(attempt, inputs=INPUTS, refusals=(ConversionError,))


def test_the_whole_of_verify(
    reference: Path, converted: Callable[[str], Path], tmp_path: Path, fuzz: Callable[..., None]
) -> None:
    """With the comparison, which takes longer."""
    folder = Path(shutil.copytree(converted(NAME), tmp_path / "folder"))
    record = json.loads((folder / "conversion.json").read_text())

    def try_one(generator: random.Random) -> None:
        (folder / "conversion.json").write_bytes(mutated(record, generator))
        with without_models():
            pipeline.verify(reference / "golden" / NAME, folder)

    fuzz(try_one, inputs=50, refusals=(ConversionError,))


def _no_options(record: Any) -> None:
    """As if what is recorded could be passed on."""
    record["options"].items()


REMOVED: dict[str, tuple[Any, str, Any]] = {
    "the record": (record, "_check_record", lambda record: None),
    "options": (record, "_check_record", _no_options),
    "names that are there twice": (json_files, "_object", dict),
    "names of files": (record, "check_plain_name", lambda name: None),
}


@pytest.mark.parametrize("case", REMOVED)
def test_a_check_that_is_removed_is_missed(
    case: str, attempt: Attempt, fuzz: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """These inputs tell the checks from none."""
    owner, name, replacement = REMOVED[case]
    monkeypatch.setattr(owner, name, replacement)
    with pytest.raises(BaseException) as caught:
        fuzz(attempt, inputs=2 * INPUTS, refusals=(ConversionError,))
    assert not isinstance(caught.value, ConversionError)
