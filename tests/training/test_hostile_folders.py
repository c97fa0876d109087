# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Models' folders whose files lie: training ends in a sentence."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from t5_experimental.training.errors import TrainingError
from t5_experimental.training.models.loading import load_config, load_model, load_tokenizer


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "null",
        "{",
        "{}",
        "[" * 10**5,
        '{"a":' * 10**5,
        '{"model_type": ["x"]}',
        '{"model_type": "t5_v1_1", "id2label": 5}',
        '{"model_type": "t5_v1_1", "dtype": "x"}',
        '{"model_type": "t5_v1_1", "to_dict": 5}',
        '{"model_type": "t5_v1_1", "auto_map": 5}',
        '{"model_type": "t5_v1_1", "layer_specs": 5}',
        '{"model_type": "t5_v1_1", "d_model": "x"}',
    ],
    ids=range(13),
)
def test_configurations(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(TrainingError, match=r"The config.json of .* does not describe a model: ") as caught:
        load_config(str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("family", ["t5_v1_1", "t5_first_layers_narrow"])
def test_absurd_sizes(family: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family, "num_layers": 10**9}))
    with pytest.raises(TrainingError, match=r"a model: `num_layers` is 1000000000: it must be .* at most 4096"):
        load_config(str(tmp_path))


@pytest.mark.parametrize(
    "index", [[], {}, {"weight_map": 5}, {"weight_map": {"a": 5}}, {"weight_map": {"a": "../x"}, "metadata": 5}]
)
def test_indexes(index: Any, tiny_models: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_models["t5_v1_1"], tmp_path / "model"))
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(TrainingError, match=r"The weights of .* do not load|lacks .* weights"):
        load_model(str(folder), load_tokenizer(str(folder)))


Change = Callable[[bytes], bytes]


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data[:100],
        lambda data: b"",
        lambda data: (2**40).to_bytes(8, "little") + data[8:],
        lambda data: data[:8] + data[8:].replace(b'"F32"', b'"XYZ"', 1),
    ],
)
def test_headers(change: Change, tiny_models: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_models["t5_v1_1"], tmp_path / "model"))
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(change(data))
    with pytest.raises(TrainingError, match=r"The weights of .* do not load"):
        load_model(str(folder), load_tokenizer(str(folder)))
