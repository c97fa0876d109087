# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""`--encoder-only`: the folder holds the encoder and nothing else, and loads as if it had always been one."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForSeq2SeqLM, AutoModelForTextEncoding

import t5_experimental
from t5_experimental.convert import convert


CLASSES = {
    "t5.1.1.tiny": "T5V11EncoderModel",
    "t5.1.th.tiny": "T5TalkingHeadsEncoderModel",
    "t5.1.n4w10.tiny": "T5FirstLayersNarrowEncoderModel",
    "t5.1.mixed.tiny": "T5TalkingHeadsEncoderModel",
    "t5.1.0.tiny": "T5V11EncoderModel",
    "t5.1.1.tiny-bfloat16": "T5V11EncoderModel",
}

Arrays = dict[str, np.ndarray]
Run = Callable[..., Any]


def hidden_states(model: Any, arrays: Arrays) -> torch.Tensor:
    inputs = torch.from_numpy(arrays["inputs"]).long()
    with torch.no_grad():
        states: torch.Tensor = model(input_ids=inputs, attention_mask=(inputs > 0).long()).last_hidden_state
    return states


@pytest.mark.parametrize("dtype", ["source", "bfloat16"])
@pytest.mark.parametrize("name", CLASSES)
def test_the_encoder_is_the_whole_models(
    name: str,
    dtype: str,
    reference: Path,
    run: Run,
    converted: Callable[[str], Path],
    golden: Callable[[str], Arrays],
    complaints: list[str],
    tmp_path: Path,
) -> None:
    options = ("--encoder-only", "--dtype", dtype)
    result = run("convert", reference / "golden" / name, tmp_path / "out", *options)
    assert result.status == 0, result.err
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    whole = load_file(converted(name) / "model.safetensors")
    assert set(tensors) == {key for key in whole if key == "shared.weight" or key.startswith("encoder.")}
    for key, tensor in tensors.items():
        assert torch.equal(tensor, whole[key] if dtype == "source" else whole[key].bfloat16()), key

    complaints.clear()
    model, report = AutoModelForTextEncoding.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report.values()), report
    assert not complaints
    assert type(model) is getattr(t5_experimental, CLASSES[name])
    assert model.encoder.embed_tokens.weight is model.shared.weight
    full = AutoModelForSeq2SeqLM.from_pretrained(converted(name), dtype=model.dtype).eval()
    assert torch.equal(hidden_states(model, golden(name)), hidden_states(full.encoder, golden(name)))
    assert model.dtype == (torch.bfloat16 if dtype == "bfloat16" else whole["shared.weight"].dtype)


@pytest.mark.parametrize("name", CLASSES)
def test_the_configuration_speaks_of_the_encoder(
    name: str, reference: Path, converted: Callable[[str], Path], tmp_path: Path
) -> None:
    convert(reference / "golden" / name, tmp_path / "out", encoder_only=True)
    fields = json.loads((tmp_path / "out" / "config.json").read_text())
    assert fields["architectures"] == [CLASSES[name]]
    assert set(fields["auto_map"]) == {"AutoConfig", "AutoModel", "AutoModelForTextEncoding"}
    assert not fields["is_encoder_decoder"]
    assert "decoder" not in (fields["layer_overrides"] or {})
    assert not (tmp_path / "out" / "generation_config.json").exists()
    config, whole = (AutoConfig.from_pretrained(folder) for folder in (tmp_path / "out", converted(name)))
    assert type(config) is type(whole)
    assert config.layer_specs("encoder") == whole.layer_specs("encoder")


def test_only_the_encoders_layers_count(make_config: Callable[..., Any], memory_reader: type) -> None:
    """Layers that only the decoder has otherwise leave no trace: the encoder is described by the fewest fields."""
    from t5_experimental.convert.mesh.architecture import Architecture
    from t5_experimental.convert.mesh.family import build_architecture

    config = make_config(
        "t5.1.n4w10", num_layers=6, num_decoder_layers=5, layer_overrides={"decoder": [{"num_heads": 2}] * 3 + [{}] * 2}
    )
    layers = {stack: config.layer_specs(stack) for stack in ("encoder", "decoder")}
    architecture = Architecture(config.d_model, layers, 32, config.feed_forward_proj, tied=False)
    found, _ = build_architecture("t5.1.n4w10", architecture, config.vocab_size, encoder_only=True)
    assert found.layer_overrides == {"encoder": [{}] * 6}
    assert (found.num_layers, found.num_decoder_layers) == (6, 6)


LOAD = """
import torch, transformers
from safetensors.torch import load_file, save_file
folder, inputs, outputs = sys.argv[1:]
inputs = load_file(inputs)["inputs"]
found = {}
for auto in ("AutoModel", "AutoModelForTextEncoding"):
    model = getattr(transformers, auto).from_pretrained(folder, trust_remote_code=True)
    with torch.no_grad():
        found[auto] = model(inputs, (inputs > 0).long()).last_hidden_state
    print(auto, type(model).__name__)
print("tokenizer", len(transformers.AutoTokenizer.from_pretrained(folder)))
save_file(found, outputs)
"""


def test_without_the_package(
    reference: Path,
    run: Run,
    run_without_package: Callable[..., str],
    golden: Callable[[str], Arrays],
    tmp_path: Path,
) -> None:
    """Both Auto classes that image models call build the encoder, and nothing is reported as missing."""
    name, folder = "t5.1.th.tiny", tmp_path / "out"
    vocabulary = reference.parent / "data" / "restaurants.model"
    assert run("convert", reference / "golden" / name, folder, "--encoder-only", "--vocab", vocabulary).status == 0
    save_file({"inputs": torch.from_numpy(golden(name)["inputs"]).long()}, tmp_path / "inputs")
    printed = run_without_package(LOAD, folder, tmp_path / "inputs", tmp_path / "outputs")
    for auto in ("AutoModel", "AutoModelForTextEncoding"):
        assert f"{auto} {CLASSES[name]}\n" in printed
    assert "tokenizer 279" in printed
    assert not re.search("MISSING|UNEXPECTED|newly|[Ww]arning", printed), printed
    expected = hidden_states(AutoModelForTextEncoding.from_pretrained(folder).eval(), golden(name))
    for states in load_file(tmp_path / "outputs").values():
        torch.testing.assert_close(states, expected)


def test_what_is_left_out_is_shown(reference: Path, run: Run, tmp_path: Path) -> None:
    source = reference / "golden" / "t5.1.1.tiny"
    left_out = "31 x decoder variable (encoder only)"
    found = run("inspect", source, "--encoder-only")
    assert found.status == 0
    assert f"left out: {left_out}" in found.out
    assert "Output:     T5V11EncoderModel" in found.out
    assert "57,632 in 21 tensors" in found.out
    assert not re.search(r"^  (decoder\.|lm_head)", found.out, re.MULTILINE)
    result = run("convert", source, tmp_path / "out", "--encoder-only")
    assert re.search(rf"left out:.*{re.escape(left_out)}", result.out)
    card = (tmp_path / "out" / "README.md").read_text()
    for text in ("the encoder alone", "AutoModelForTextEncoding.from_pretrained", "| layers (encoder) | 2 |", "57,632"):
        assert text in card
    assert "AutoModelForSeq2SeqLM" not in card


def test_shards(reference: Path, run: Run, tmp_path: Path) -> None:
    source = reference / "golden" / "t5.1.n4w10.tiny"
    options = ("--encoder-only", "--max-shard-size", "200KB")
    assert run("convert", source, tmp_path / "out", *options).status == 0
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 2
    assert files == sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    _, report = AutoModelForTextEncoding.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report.values()), report


def cut(arrays: Arrays) -> None:
    name = "decoder/block_001/layer_002/DenseReluDense/wo/kernel"
    arrays[name] = arrays[name][:48]


def drop(name: str) -> Callable[[Arrays], None]:
    def spoil(arrays: Arrays) -> None:
        del arrays[name]

    return spoil


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (cut, r"decoder/block_001/layer_002/DenseReluDense/wo/kernel has the shape \[48, 32\]"),
        (drop("decoder/rms_norm/scale"), "decoder/rms_norm/scale is missing"),
        (drop("decoder/logits/kernel"), "lacks decoder/logits/kernel"),
    ],
    ids=["shape", "missing", "classifier"],
)
def test_a_broken_decoder_is_still_an_error(
    spoil: Callable[[Arrays], None],
    message: str,
    golden_copy: Callable[..., Path],
    read_checkpoint: Callable[..., Arrays],
    write_checkpoint: Callable[..., Path],
    run: Run,
    tmp_path: Path,
) -> None:
    source = golden_copy("t5.1.1.tiny")
    arrays = read_checkpoint(source)
    spoil(arrays)
    write_checkpoint(source, arrays)
    result = run("convert", source, tmp_path / "out", "--encoder-only")
    assert result.status == 1
    assert re.search(message, result.err), result.err
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_stock_classes_take_it_too(reference: Path, golden: Callable[[str], Arrays], tmp_path: Path) -> None:
    """The names are T5's, so a program that brings its own T5 configuration can use the native folder."""
    convert(reference / "golden" / "t5.1.1.tiny", tmp_path / "native", encoder_only=True)
    convert(reference / "golden" / "t5.1.1.tiny", tmp_path / "stock", encoder_only=True, output_format="stock-t5")
    config = transformers.T5Config.from_pretrained(tmp_path / "stock")
    theirs = transformers.T5EncoderModel.from_pretrained(tmp_path / "native", config=config).eval()
    ours = AutoModelForTextEncoding.from_pretrained(tmp_path / "native").eval()
    states = hidden_states(ours, golden("t5.1.1.tiny"))
    torch.testing.assert_close(hidden_states(theirs, golden("t5.1.1.tiny")), states)
