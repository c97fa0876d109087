# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""The launcher of several processes, and what `benchmarks/engines.py` trains, for the tests of engines."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from benchmarks import engines as engines_module
from tests.support import launching as launching_module
from tests.support.forking import ForkServer


REPOSITORY = Path(__file__).parents[2]
DATA = REPOSITORY / "tests" / "data"

# Settings of generation: those that a run knows, and those that transformers takes from a model's configuration.
_LIMITS = {"max_length", "max_new_tokens", "num_beams"}
_OF_MODELS = {"decoder_start_token_id", "eos_token_id", "pad_token_id", "transformers_version"}
_OF_MODELS |= {"use_cache", "output_attentions", "output_hidden_states"}


@pytest.fixture(scope="session")
def launching() -> ModuleType:
    """The module `tests.support.launching`; in the main `launch(engine, script, arguments, processes=2)`."""
    return launching_module


@pytest.fixture(scope="session")
def engines() -> ModuleType:
    """The module `benchmarks.engines`."""
    return engines_module


@pytest.fixture(scope="session")
def trained_alone(engines: ModuleType, once: Callable[..., Path], fork_server: ForkServer) -> Path:
    """Folder of the models, and of what one process trains."""

    def train(folder: Path) -> None:
        engines.make_models(folder, engines.QUICK_FAMILIES)
        engines.train("single", engines.QUICK_CELLS, folder, steps=engines.QUICK_STEPS, fork_server=fork_server)

    return once("engines", train)


@pytest.fixture(scope="session")
def check_generation_config() -> Callable[[Path, Sequence[Any]], None]:
    """`check_generation_config(folder, cells)` compares the settings of generation that cells have saved in the folder
    of an engine: nothing but the model's own and what the run knows, after evaluations that generate."""

    def check(folder: Path, cells: Sequence[Any]) -> None:
        checked = 0
        for cell in cells:
            model = folder / cell.name / "model"
            found = json.loads((model / "generation_config.json").read_text())
            texts = {"max_length": 8, "num_beams": 2}
            pretraining = {"max_length": 33} if "prefix_lm" in cell.flags else {"max_length": 9}
            assert found.items() >= {"decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}.items()
            known = {name: value for name, value in found.items() if name in _LIMITS}
            assert known == (pretraining if cell.entry_point == "pretrain" else texts), cell.name
            assert found.keys() <= {*_OF_MODELS, *_LIMITS}, cell.name
            checked += 1
        assert checked > 0

    return check


@pytest.fixture(scope="session")
def check_permissions() -> Callable[[Path], None]:
    """`check_permissions(folder)`: all that processes have written there has the permissions of any new file."""

    def check(folder: Path) -> None:
        (folder / "new").touch()
        usual = (folder / "new").stat().st_mode
        (folder / "new").unlink()
        modes = {str(path.relative_to(folder)): path.stat().st_mode for path in folder.rglob("*") if path.is_file()}
        assert modes == dict.fromkeys(modes, usual)
        assert any(name.endswith(".safetensors") for name in modes)

    return check


@pytest.fixture(autouse=True)
def data_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that a test starts keep what `datasets` caches in a folder of the tests."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path_factory.getbasetemp() / "datasets"))
