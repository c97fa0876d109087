# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Fuzzing config.json, through what `export` and `push` make of a folder's."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from t5_experimental import configuration_t5_experimental, without_models
from t5_experimental.convert import hub
from t5_experimental.convert.errors import ConversionError
from t5_experimental.convert.export import plan_export
from t5_experimental.convert.mesh.gin_writer import operative_config
from t5_experimental.convert.output import json_files, model_folder
from tests.fuzz.json_mutations import assert_unambiguous, mutated


Attempt = Callable[[random.Random], None]

INPUTS = 500
GOLDEN = ("t5.1.1.tiny", "t5.1.th.tiny-uneven", "t5.1.n4w10.tiny")


@pytest.fixture
def attempt(converted: Callable[[str], Path], tmp_path: Path) -> Attempt:
    folders = [Path(shutil.copytree(converted(name), tmp_path / name)) for name in GOLDEN]
    configs = [json.loads((folder / "config.json").read_text()) for folder in folders]
    stock = {name: value for name, value in configs[0].items() if name != "auto_map"} | {"model_type": "t5"}
    folders, configs = [folders[0], *folders], [stock, *configs]

    def try_one(generator: random.Random) -> None:
        which = generator.randrange(len(folders))
        folder = folders[which]
        data = mutated(configs[which], generator)
        (folder / "config.json").write_bytes(data)
        with without_models():
            if generator.random() < 0.3:
                hub.check_complete(folder)
                names = assert_unambiguous(data).get("auto_map", {}).values()
                assert all(name.isprintable() and "/" not in name.partition(".")[0] for name in names), names
                return
            found = plan_export(folder)
        operative_config(found.config, found.layout, found.dtype)
        fields = assert_unambiguous(data)
        assert not hasattr(found.config, "x"), "a field that this package does not know became an attribute"
        for name in ("d_model", "num_layers", "relative_attention_num_buckets", "dropout_rate"):
            assert name not in fields or getattr(found.config, name) == fields[name]

    return try_one


def test_configurations(attempt: Attempt, fuzz: Callable[..., None]) -> None:
    fuzz(attempt, inputs=INPUTS, refusals=(ConversionError,))


class Believed(BaseException):
    """These layers would have been listed, or none."""


def _believe_layers(config: Any, stack: str) -> int:
    count = int(config.num_layers if stack == "encoder" else config.num_decoder_layers)
    if not 1 <= count <= 4096:
        raise Believed(count)
    return count


REMOVED: dict[str, tuple[Any, str, Any]] = {
    "layers": (configuration_t5_experimental.T5ExperimentalConfig, "_num_layers_of", _believe_layers),
    "fields of others": (model_folder, "_known", dict),
    "names of files": (hub, "_code_files", lambda config: set()),
    "names that are there twice": (json_files, "_object", dict),
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
