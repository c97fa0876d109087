# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Architecture and family from the variables alone, and what the resulting configuration says."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import t5_experimental
from t5_experimental.convert import inspect, pipeline
from t5_experimental.convert.errors import ConversionError
from t5_experimental.convert.mesh.architecture import Architecture
from t5_experimental.convert.mesh.family import build_architecture, choose_family
from t5_experimental.convert.mesh.matching import mesh_name
from t5_experimental.convert.mesh.parameters import parameters
from t5_experimental.convert.mesh.scopes import Layout
from t5_experimental.convert.pipeline import Inspection
from t5_experimental.convert.source.checkpoint import Checkpoint
from t5_experimental.convert.source.storage import LocalStorage


GOLDEN = (
    "t5.1.0.tiny",
    "t5.1.1.tiny",
    "t5.1.1.tiny-bfloat16",
    "t5.1.1.tiny-legacy",
    "t5.1.1.tiny-biases",
    "t5.1.1.tiny-long",
    "t5.1.mixed.tiny",
    "t5.1.n4w10.tiny",
    "t5.1.th.tiny",
    "t5.1.th.tiny-uneven",
)
MEMORY = "model.ckpt-7"


@pytest.fixture
def inspect_model(memory_reader: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Inspection]:
    """`inspect_model(config, drop=(), ...)`: inspects the variables that the original would write for it."""

    def call(config: t5_experimental.T5ExperimentalConfig, drop: tuple[str, ...] = (), **options: Any) -> Inspection:
        arrays = {
            mesh_name(name, parameter.section, Layout()): np.broadcast_to(np.float32(0), parameter.mesh_shape)
            for name, parameter in parameters(config).items()
        }
        for name in drop:
            del arrays[name]
        (tmp_path / f"{MEMORY}.index").touch()
        (tmp_path / f"{MEMORY}.data-00000-of-00001").touch()
        monkeypatch.setattr(pipeline, "open_reader", lambda _: memory_reader(arrays))
        return inspect(tmp_path, **options)

    return call


@pytest.mark.parametrize("name", GOLDEN)
def test_without_gin_the_configuration_is_the_same(
    name: str, golden_copy: Callable[..., Path], reference: Path
) -> None:
    told = inspect(reference / "golden" / name)
    deduced = inspect(golden_copy(name, gin=False))
    assert deduced.config.to_dict() == told.config.to_dict()
    assert deduced.family == told.family
    assert any("feed-forward's activation" in note for note in deduced.notes)
    assert not any("feed-forward's activation" in note for note in told.notes)


@pytest.mark.parametrize("preset", t5_experimental.PRESETS)
def test_presets_come_out_of_their_own_variables(preset: str, inspect_model: Callable[..., Inspection]) -> None:
    config = t5_experimental.preset_config(preset)
    family = "t5.1.1.lm100k" if "lm100k" in preset else "auto"
    found = inspect_model(config, family=family)
    assert type(found.config) is type(config)
    ours, theirs = found.config.to_dict(), config.to_dict()
    for settled_by_the_converter in ("architectures", "dtype"):
        ours.pop(settled_by_the_converter, None)
        theirs.pop(settled_by_the_converter, None)
    assert ours == theirs


@pytest.mark.parametrize("name", ["t5.1.1", "t5.1.th", "t5.1.n4w10", "mixed"])
def test_every_tiny_architecture(name: str, make_config: Callable[..., Any], inspect_model: Callable[..., Any]) -> None:
    config = make_config(name)
    # Nothing but the user can tell the heads of plain layers that use the table of a talking-heads layer.
    options = {"d_kv": 8} if name == "mixed" else {}
    found = inspect_model(config, **options)
    for stack in ("encoder", "decoder"):
        assert found.config.layer_specs(stack) == config.layer_specs(stack)


def test_heads_that_no_table_tells(make_config: Callable[..., Any], inspect_model: Callable[..., Any]) -> None:
    layers = [{}, {"attention_type": "multi_head"}]
    config = make_config("t5.1.th", num_key_heads=4, num_value_heads=4, d_v=8, layer_overrides={"encoder": layers})
    with pytest.raises(ConversionError, match=r"32 columns of encoder/block_001/layer_000/SelfAttention/q.*--d-kv N"):
        inspect_model(config)
    found = inspect_model(config, d_kv=8)
    assert found.family == "t5.1.th"
    assert found.config.layer_overrides == {"encoder": [{}, {"attention_type": "multi_head"}]}
    with pytest.raises(ConversionError, match="no multiple of the head size 7"):
        inspect_model(config, d_kv=7)


def test_missing_tables(make_config: Callable[..., Any], inspect_model: Callable[..., Any]) -> None:
    table = "encoder/block_000/layer_000/SelfAttention/relative_attention_bias"
    with pytest.raises(ConversionError, match="--d-kv N"):
        inspect_model(make_config("t5.1.1"), drop=(table,))
    with pytest.raises(ConversionError, match=table + " is missing"):
        inspect_model(make_config("t5.1.1"), drop=(table,), d_kv=8)


@pytest.mark.parametrize("name", ["t5.1.1", "t5.1.th", "t5.1.n4w10", "mixed"])
def test_a_table_in_every_layer(name: str, make_config: Callable[..., Any], inspect_model: Callable[..., Any]) -> None:
    more = {"num_layers": 3} if name == "t5.1.1" else {}
    config = make_config(name, relative_attention_type="bias", **more)
    found = inspect_model(config)
    assert found.config.relative_attention_type == "bias"
    assert "Every layer has a table of position biases of its own, as in umT5." in found.notes
    for stack in ("encoder", "decoder"):
        assert found.config.layer_specs(stack) == config.layer_specs(stack)
    table = "decoder/block_001/layer_000/SelfAttention/relative_attention_bias"
    if name == "t5.1.1":
        with pytest.raises(ConversionError, match=table + " is missing"):
            inspect_model(config, drop=(table,))


def test_options_that_contradict(make_config: Callable[..., Any], inspect_model: Callable[..., Any]) -> None:
    config = make_config("t5.1.1")
    with pytest.raises(ConversionError, match=r"--d-kv 16 contradicts .* size 8"):
        inspect_model(config, d_kv=16)
    with pytest.raises(ConversionError, match=r"relu contradicts .* gated: use gated-relu"):
        inspect_model(config, feed_forward_proj="relu")
    with pytest.raises(ConversionError, match="gated-mish is not in the original: use one of gated-relu, gated-gelu,"):
        inspect_model(config, feed_forward_proj="gated-mish")
    found = inspect_model(config, feed_forward_proj="gated-silu")
    assert found.config.feed_forward_proj == "gated-silu"


def test_the_option_means_what_transformers_means(
    make_config: Callable[..., Any], inspect_model: Callable[..., Any]
) -> None:
    """ "gelu" is exact there, and the original has only the tanh form."""
    ungated = make_config("t5.1.1", feed_forward_proj="relu")
    with pytest.raises(ConversionError, match="gelu is not in the original: use one of relu, gelu_pytorch_tanh, silu"):
        inspect_model(ungated, feed_forward_proj="gelu")
    with pytest.raises(ConversionError, match="use gelu_pytorch_tanh"):
        inspect_model(ungated, feed_forward_proj="gated-gelu")
    assert inspect_model(ungated, feed_forward_proj="gelu_new").config.dense_act_fn == "gelu_new"
    gated = make_config("t5.1.1")
    with pytest.raises(ConversionError, match=r"gelu_new contradicts .*: use gated-gelu\."):
        inspect_model(gated, feed_forward_proj="gelu_new")


@pytest.mark.parametrize(
    ("name", "asked", "message"),
    [
        ("t5.1.1", "t5.1.th", "has no talking heads"),
        ("t5.1.1", "t5.1.n4w10", "all alike"),
        ("t5.1.th", "t5.1.1", "has talking heads"),
        ("t5.1.th", "t5.1.n4w10", "has talking heads"),
        ("t5.1.n4w10", "t5.1.1", "differ in width"),
        ("t5.1.n4w10", "t5.1.1.lm100k", "differ in width"),
        ("t5.1.n4w10", "t5.1.th", "has no talking heads"),
    ],
)
def test_a_family_that_contradicts(
    name: str, asked: str, message: str, make_config: Callable[..., Any], inspect_model: Callable[..., Any]
) -> None:
    with pytest.raises(ConversionError, match=f"--family {asked} contradicts .*{message}"):
        inspect_model(make_config(name), family=asked)


def architecture(config: t5_experimental.T5ExperimentalConfig, **fields: Any) -> Architecture:
    layers = {stack: config.layer_specs(stack) for stack in ("encoder", "decoder")}
    return Architecture(d_model=32, layers=layers, buckets=32, feed_forward_proj="relu", tied=False, **fields)


@pytest.mark.parametrize(
    ("prefix", "family"),
    [
        ("t5.1.1.lm100k.base/model.ckpt-1100000", "t5.1.1.lm100k"),
        ("here/LM100K-7", "t5.1.1.lm100k"),
        ("lm100k/t5.1.1.base/model.ckpt-1", "t5.1.1"),
    ],
)
def test_lm100k_is_told_by_folder_or_prefix(prefix: str, family: str, make_config: Callable[..., Any]) -> None:
    folder, _, last = prefix.rpartition("/")
    checkpoint = Checkpoint(LocalStorage(Path(folder)), last)
    chosen, notes = choose_family("auto", architecture(make_config("t5.1.1")), checkpoint.name)
    assert chosen == family
    assert bool(notes) == (family == "t5.1.1")


@pytest.mark.parametrize(("rate", "written", "noted"), [(0.0, 0.1, True), (0.05, 0.05, False), (None, 0.1, True)])
def test_dropout(rate: float | None, written: float, noted: bool, make_config: Callable[..., Any]) -> None:
    built, notes = build_architecture("t5.1.1", architecture(make_config("t5.1.1"), dropout_rate=rate), 100)
    assert built.dropout_rate == written
    assert bool(notes) == noted
