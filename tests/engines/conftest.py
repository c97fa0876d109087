# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""The launcher of several processes, and what `benchmarks/engines.py` trains, for the tests of engines."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
from filelock import FileLock


REPOSITORY = Path(__file__).parents[2]
DATA = REPOSITORY / "tests" / "data"


def _defined_by(name: str) -> SimpleNamespace:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(REPOSITORY / "benchmarks"))  # as for a program that is run
        return SimpleNamespace(**runpy.run_path(str(REPOSITORY / "benchmarks" / f"{name}.py")))


@pytest.fixture(scope="session")
def launching() -> SimpleNamespace:
    """What `benchmarks/launching.py` defines, in the main `launch(engine, script, arguments, processes=2)`."""
    return _defined_by("launching")


@pytest.fixture(scope="session")
def engines() -> SimpleNamespace:
    """What `benchmarks/engines.py` defines."""
    return _defined_by("engines")


@pytest.fixture(scope="session")
def trained_alone(engines, tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """Folder of the models, and of what one process trains; for all workers of the tests together."""
    root = tmp_path_factory.getbasetemp()
    folder = (root if worker_id == "master" else root.parent) / "engines"
    with FileLock(folder.with_suffix(".lock")):
        if not folder.exists():
            folder.mkdir()
            engines.make_models(folder)
            engines.train("single", engines.CELLS, folder)
    return folder


@pytest.fixture(autouse=True)
def data_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that a test starts keep what `datasets` caches in a folder of the tests."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path_factory.getbasetemp() / "datasets"))
