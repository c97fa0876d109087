# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""What programs around transformers meet in our folders and classes; `tests/ecosystem` runs the programs."""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model
from peft.utils import constants
from transformers import AutoConfig, AutoModel, AutoModelForSeq2SeqLM, AutoModelForTextEncoding, T5EncoderModel

import t5_experimental
from t5_experimental import configuration_t5_experimental as configurations


def test_auto_model_takes_an_encoder_alone_for_what_it_is(config: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder = AutoModelForTextEncoding.from_config(config)
    encoder.save_pretrained(tmp_path / "encoder")
    loaded, info = AutoModel.from_pretrained(tmp_path / "encoder", output_loading_info=True)
    assert type(loaded) is type(encoder)
    assert not info["missing_keys"]
    AutoModelForSeq2SeqLM.from_config(config).save_pretrained(tmp_path / "whole")
    whole = AutoModel.from_pretrained(tmp_path / "whole")
    assert type(whole).__name__ == f"{type(config).__name__.removesuffix('Config')}Model"
    assert type(AutoModel.from_config(config)) is type(whole)


def test_configurations_without_a_class_are_saved_without_one(config: Any, tmp_path: Path) -> None:
    assert config.architectures == []
    config.save_pretrained(tmp_path)
    assert "architectures" not in json.loads((tmp_path / "config.json").read_text())
    assert AutoConfig.from_pretrained(tmp_path).architectures == []


@pytest.mark.parametrize("name", ["t5.1.th", "mixed", "umt5"])
def test_stock_t5_refuses_layers_that_it_does_not_have(name: str, make_config: Any, tmp_path: Path) -> None:
    """It would load the tensors that it knows, and compute something else."""
    config = make_config(name)
    AutoModelForTextEncoding.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(Exception, match="Field 'd_kv' expected int, got NoneType"):
        T5EncoderModel.from_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).d_kv == config.d_kv == 8
    assert AutoConfig.from_pretrained(tmp_path).layer_specs("encoder") == config.layer_specs("encoder")
    assert config.to_dict()["d_kv"] == 8


def test_folders_that_were_saved_with_their_head_size_still_load(make_config: Any, tmp_path: Path) -> None:
    config = make_config("t5.1.th")
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    assert AutoConfig.from_pretrained(tmp_path).layer_specs("decoder") == config.layer_specs("decoder")


def test_stock_t5_loads_what_it_has(make_config: Any, tmp_path: Path) -> None:
    model = AutoModelForTextEncoding.from_config(make_config("t5.1.1")).eval()
    model.save_pretrained(tmp_path)
    inputs = torch.tensor([[5, 6, 7, 1]])
    with torch.no_grad():
        theirs = T5EncoderModel.from_pretrained(tmp_path)(inputs).last_hidden_state
        torch.testing.assert_close(theirs, model(inputs).last_hidden_state)


@pytest.mark.parametrize("adapter", [LoraConfig(task_type="SEQ_2_SEQ_LM"), IA3Config(task_type="SEQ_2_SEQ_LM")])
def test_peft_chooses_the_layers_as_for_stock_t5(adapter: Any, model: Any) -> None:
    chosen = {name.rpartition(".")[2] for name in get_peft_model(model, adapter).targeted_module_names}
    assert chosen == ({"q", "v"} if isinstance(adapter, LoraConfig) else {"k", "v", "wo"})


def test_what_others_say_in_pefts_tables_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    table = constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    monkeypatch.setitem(table, "t5_v1_1", ["wi_0"])
    monkeypatch.delitem(table, "t5_talking_heads")
    t5_experimental.adapters.add_to_peft(["t5_v1_1", "t5_talking_heads"])
    assert (table["t5_v1_1"], table["t5_talking_heads"]) == (["wi_0"], ["q", "v"])


@pytest.mark.parametrize(
    ("release", "is_old"), [("4.57.6", True), ("5.16.2", True), ("5.17.0", False), ("6.0.0.dev0", False)]
)
def test_old_transformers_is_named(release: str, is_old: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the package and in a folder's own code, which begins with this file."""
    path = configurations.__file__
    name = "t5_experimental.another_configuration"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    # peft's import puts another module of that name there.
    monkeypatch.setattr(sys.modules["transformers"], "__version__", release)
    if not is_old:
        spec.loader.exec_module(module)
        return
    with pytest.raises(ImportError, match=rf"need transformers 5\.17 or newer, and this is {release}: run pip install"):
        spec.loader.exec_module(module)
