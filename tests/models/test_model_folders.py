# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Folders of models and adapters that users name: what is refused, and that its sentence can be read to its end."""

import json
from pathlib import Path

import pytest

from t5_experimental.model_folders import FolderError, check_adapter, check_model, check_tokenizer, model_and_adapter


OPTIONS = ("MODEL", "--adapter")


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """An adapter, and the model that it names."""
    for name, text in {
        "model/config.json": "{}",
        "adapter/adapter_config.json": json.dumps({"base_model_name_or_path": str(tmp_path / "model")}),
        "adapter/adapter_model.safetensors": "",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path / "adapter"


def test_an_adapter_names_its_model(adapter: Path) -> None:
    model = str(adapter.with_name("model"))
    assert model_and_adapter(str(adapter), None, OPTIONS) == (model, str(adapter))
    assert model_and_adapter(model, str(adapter), OPTIONS) == (model, str(adapter))
    assert model_and_adapter(model, None, OPTIONS) == (model, None)
    with pytest.raises(FolderError, match=r"adapter holds an adapter, and --adapter names another: give the model's"):
        model_and_adapter(str(adapter), str(adapter), OPTIONS)


def test_a_folder_that_holds_both_is_a_model(adapter: Path) -> None:
    (adapter / "config.json").write_text("{}")
    assert model_and_adapter(str(adapter), None, OPTIONS) == (str(adapter), None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "does not name a model"),
        ("[]", "does not name a model"),
        ("{}", "does not name a model"),
        ("[" * 100_000, "does not name a model"),
        ('{"base_model_name_or_path": null}', "is an adapter for None, which is no model folder here"),
        ('{"base_model_name_or_path": "a\\n\\u001b[2Jb"}', r"is an adapter for 'a\\n\\x1b\[2Jb', which is no model"),
        (json.dumps({"base_model_name_or_path": "x" * 5000}), "is an adapter for 'x{199}, which is no model"),
    ],
    ids=["cut off", "a list", "no name", "deep", "null", "control characters", "long"],
)
def test_adapters_that_name_no_model(text: str, message: str, adapter: Path) -> None:
    (adapter / "adapter_config.json").write_text(text)
    with pytest.raises(FolderError, match=message) as error:
        model_and_adapter(str(adapter), None, OPTIONS)
    assert str(error.value).isprintable()
    assert "MODEL, and --adapter" in str(error.value) or "MODEL and --adapter" in str(error.value)


def test_what_is_missing_is_named(adapter: Path) -> None:
    with pytest.raises(FolderError, match=r"is not a model folder \(it has no config.json\): give a folder that"):
        check_model(str(adapter))
    with pytest.raises(FolderError, match="has no tokenizer: convert the checkpoint with --vocab"):
        check_tokenizer(str(adapter))
    check_adapter(str(adapter))
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(FolderError, match=r"it has no adapter_model.safetensors\): give one that a run of this"):
        check_adapter(str(adapter))
