# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""The launcher of several processes, for the tests of engines."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest


REPOSITORY = Path(__file__).parents[2]
DATA = REPOSITORY / "tests" / "data"


@pytest.fixture(scope="session")
def launching() -> SimpleNamespace:
    """What `benchmarks/launching.py` defines, in the main `launch(engine, script, arguments, processes=2)`."""
    return SimpleNamespace(**runpy.run_path(str(REPOSITORY / "benchmarks" / "launching.py")))


@pytest.fixture(autouse=True)
def data_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that a test starts keep what `datasets` caches in a folder of the tests."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path_factory.getbasetemp() / "datasets"))
