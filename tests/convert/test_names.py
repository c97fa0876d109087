# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""The name rules, on plain dictionaries: every variable of every released size, both ways."""

import json
import math
from pathlib import Path

import pytest

import t5_experimental
from t5_experimental.convert.errors import ConversionError
from t5_experimental.convert.mesh.family import ARCHITECTURES
from t5_experimental.convert.mesh.matching import match_name, mesh_name, sort_names
from t5_experimental.convert.mesh.parameters import parameters
from t5_experimental.convert.mesh.rules import FAMILY_SECTIONS, SECTIONS
from t5_experimental.convert.mesh.scopes import Layout


SIZES = sorted({name.replace(".lm100k", "") for name in t5_experimental.PRESETS})
BLOCKS = Layout()


@pytest.mark.parametrize("size", SIZES)
def test_released_variables_map_one_to_one_and_back(size: str, reference: Path) -> None:
    shapes = json.loads((reference / "shapes" / f"{size}.shapes.json").read_text())
    mesh = {name: tuple(length for _, length in dims) for name, dims in shapes["variables"].items()}
    names = sort_names(mesh)
    assert (names.unknown, dict(names.drops)) == ((), {})
    expected = parameters(t5_experimental.preset_config(size))
    assert set(names.matches) == set(expected)
    for name, parameter in expected.items():
        original = names.matches[name].mesh
        assert parameter.mesh_shape == mesh[original], original
        assert mesh_name(name, parameter.section, names.layout) == original
    assert sum(math.prod(p.shape) for p in expected.values()) == shapes["total_parameters"]


@pytest.mark.parametrize("size", t5_experimental.PRESETS)
def test_parameters_are_those_of_the_model(size: str) -> None:
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForSeq2SeqLM

    config = t5_experimental.preset_config(size)
    with torch.device("meta"):
        model = AutoModelForSeq2SeqLM.from_config(config)
    ours = {name: p.shape for name, p in parameters(config).items()}
    assert ours == {name: tuple(p.shape) for name, p in model.named_parameters()}


@pytest.mark.parametrize(
    ("mesh", "ours"),
    [
        ("encoder/block_001/layer_000/layer_norm/scale", "encoder.block.1.layer.0.layer_norm.weight"),
        ("decoder/block_001/layer_002/layer_norm/scale", "decoder.block.1.layer.2.layer_norm.weight"),
        ("encoder/final_layer_norm/scale", "encoder.final_layer_norm.weight"),
        ("decoder/layer_norm/scale", "decoder.final_layer_norm.weight"),
        ("decoder/block_003/self_attention/SelfAttention/q", "decoder.block.3.layer.0.SelfAttention.q.weight"),
        ("decoder/block_003/enc_dec_attention/layer_norm/scale", "decoder.block.3.layer.1.layer_norm.weight"),
        ("decoder/block_003/enc_dec_attention/EncDecAttention/o", "decoder.block.3.layer.1.EncDecAttention.o.weight"),
        (
            "decoder/block_001/layer_002/dense_relu_dense/DenseReluDense/wi/kernel",
            "decoder.block.1.layer.2.DenseReluDense.wi.weight",
        ),
        (
            "encoder/block_001/dense_relu_dense/DenseReluDense/wo/kernel",
            "encoder.block.1.layer.1.DenseReluDense.wo.weight",
        ),
        ("encoder/block_000/layer_000/SelfAttention/k/kernel", "encoder.block.0.layer.0.SelfAttention.k.weight"),
    ],
)
def test_old_spellings(mesh: str, ours: str) -> None:
    match = match_name(mesh, BLOCKS)
    assert match is not None
    assert match.ours == ours


def test_layers_without_blocks() -> None:
    names = [f"encoder/layer_{k:03d}/rms_norm/scale" for k in range(6)]
    names += [f"decoder/layer_{k:03d}/rms_norm/scale" for k in range(12)]
    found = sort_names(names)
    assert found.matches["encoder.block.2.layer.1.layer_norm.weight"].mesh == "encoder/layer_005/rms_norm/scale"
    assert found.matches["decoder.block.3.layer.2.layer_norm.weight"].mesh == "decoder/layer_011/rms_norm/scale"
    for name, match in found.matches.items():
        assert mesh_name(name, "multi_head", found.layout) == match.mesh


@pytest.mark.parametrize(
    "name",
    [
        "shared/embedding/more",
        "more/shared/embedding",
        "encoder/block_000/layer_001/SelfAttention/q",  # sublayer 1 of the encoder is its feed-forward
        "encoder/block_000/layer_000/EncDecAttention/q",
        "encoder/block_000/enc_dec_attention/EncDecAttention/q",
        "decoder/block_000/layer_001/EncDecAttention/relative_attention_bias",
        "decoder/block_000/layer_001/self_attention/SelfAttention/q",
        "encoder/block_000/layer_002/rms_norm/scale",  # a block of the encoder has two layers
        "encoder/block_0/layer_0/rms_norm/scale",
        "encoder/logits/kernel",
        "encoder/block_000/layer_000/SelfAttention/q\n",
    ],
)
def test_rules_are_anchored(name: str) -> None:
    assert match_name(name, BLOCKS) is None


def test_only_slots_of_known_variables_are_dropped() -> None:
    known = "encoder/block_000/layer_000/SelfAttention/v"
    slots = [known + slot for slot in ("_slot_v", "_slot_vr", "_slot_vc", "_slot_m")]
    strangers = ("mystery_slot_v", known + "_slot_x", known + "_slot_v_slot_v", "global_step_slot_v")
    found = sort_names(["global_step", known, *slots, *strangers])
    assert list(found.matches) == ["encoder.block.0.layer.0.SelfAttention.v.weight"]
    assert sorted(found.drops.values()) == ["optimizer slot"] * 4 + ["training step"]
    assert found.unknown == strangers


def test_two_variables_for_one_parameter() -> None:
    with pytest.raises(ConversionError, match="mixes two models"):
        sort_names(["encoder/rms_norm/scale", "encoder/final_layer_norm/scale"])


def test_a_stray_layer_does_not_renumber_the_others() -> None:
    names = [f"encoder/block_{b:03d}/layer_{k:03d}/rms_norm/scale" for b in range(3) for k in range(2)]
    found = sort_names([*names, "encoder/block_001/layer_002/rms_norm/scale"])
    assert len(found.matches) == 6
    assert found.unknown == ("encoder/block_001/layer_002/rms_norm/scale",)


def test_every_family_has_sections_and_classes() -> None:
    assert set(FAMILY_SECTIONS) == set(ARCHITECTURES)
    assert {section for sections in FAMILY_SECTIONS.values() for section in sections} == set(SECTIONS)
    for prefix in (architecture.class_prefix for architecture in ARCHITECTURES.values()):
        assert hasattr(t5_experimental, prefix + "ForConditionalGeneration")
