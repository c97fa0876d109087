# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""The gin file of a configuration, read by our own reader, is that configuration again."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import t5_experimental
from t5_experimental import T5ExperimentalConfig, T5TalkingHeadsConfig
from t5_experimental.convert.errors import ConversionError
from t5_experimental.convert.mesh.architecture import Architecture
from t5_experimental.convert.mesh.family import build_architecture
from t5_experimental.convert.mesh.gin_reader import read_architecture
from t5_experimental.convert.mesh.gin_syntax import GinFile
from t5_experimental.convert.mesh.gin_writer import can_be_written, check_expressible, natural_layout, operative_config
from t5_experimental.convert.mesh.matching import mesh_name
from t5_experimental.convert.mesh.parameters import parameters
from t5_experimental.convert.mesh.scopes import Layout
from t5_experimental.presets import preset_architecture


def read_back(config: T5ExperimentalConfig, layout: Layout | None = None) -> Architecture:
    return read_architecture(GinFile(operative_config(config, layout or natural_layout(config), "float32")))


def assert_same(config: T5ExperimentalConfig, said: Architecture) -> None:
    assert said == Architecture(
        d_model=config.d_model,
        layers={stack: config.layer_specs(stack) for stack in ("encoder", "decoder")},
        buckets=config.relative_attention_num_buckets,
        feed_forward_proj=config.feed_forward_proj,
        tied=config.tie_word_embeddings,
        dropout_rate=config.dropout_rate,
        layer_norm_epsilon=config.layer_norm_epsilon,
        relative_attention_type=config.relative_attention_type,
    )


@pytest.mark.parametrize("name", t5_experimental.PRESETS)
def test_released_models(name: str) -> None:
    config = t5_experimental.preset_config(name)
    said = read_back(config)
    assert_same(config, said)
    again, notes = build_architecture(name.rpartition(".")[0], said, config.vocab_size)
    assert vars(again) | {"layer_overrides": None} == vars(preset_architecture(name)) | {"layer_overrides": None}
    assert vars(again).items() <= {**vars(config), "layer_overrides": again.layer_overrides}.items()
    assert not notes
    # The widths of an encoder-decoder attention are those of its parent class, or its own keywords.
    text = operative_config(config, natural_layout(config), "float32")
    assert re.findall(r"EncDecAttention\.(\w+) =", text) == ["relative_attention_type"]


SHAPES = sorted((Path(__file__).parents[1] / "reference" / "shapes").glob("*.shapes.json"))


@pytest.mark.parametrize("path", SHAPES, ids=[path.name.removesuffix(".shapes.json") for path in SHAPES])
def test_variables_are_those_of_the_original_graphs(path: Path) -> None:
    """Names and shapes of what an export of a released size writes."""
    config = t5_experimental.preset_config(path.name.removesuffix(".shapes.json"))
    layout = natural_layout(config)
    ours = {mesh_name(name, p.section, layout): p.mesh_shape for name, p in parameters(config).items()}
    theirs = json.loads(path.read_text())["variables"]
    assert ours == {name: tuple(size for _, size in dims) for name, dims in theirs.items()}


widths = st.fixed_dictionaries(
    {
        "attention_type": st.sampled_from(["multi_head", "talking_heads"]),
        "num_heads": st.integers(1, 3),
        "d_kv": st.integers(1, 2),
        "d_ff": st.integers(1, 2),
    }
)


@settings(max_examples=200, deadline=None)
@given(
    encoder=st.lists(widths, min_size=1, max_size=5),
    decoder=st.lists(widths, min_size=1, max_size=5),
    keys=st.integers(1, 3),
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    proj=st.sampled_from(["relu", "gelu_pytorch_tanh", "silu", "gated-gelu", "gated-silu", "gated-sigmoid", "tanh"]),
    tied=st.booleans(),
    rate=st.sampled_from([0.0, 0.05, 0.5]),
    epsilon=st.sampled_from([1e-6, 1e-5, 0.001]),
    biases=st.sampled_from(["bias_shared", "bias"]),
)
def test_any_mix_of_layers(
    encoder: list[dict[str, Any]],
    decoder: list[dict[str, Any]],
    keys: int,
    sizes: tuple[int, int],
    proj: str,
    tied: bool,
    rate: float,
    epsilon: float,
    biases: str,
) -> None:
    for layer in (*encoder, *decoder):
        if layer["attention_type"] == "talking_heads":
            layer |= {"num_key_heads": keys, "d_k": sizes[0], "d_v": sizes[1]}
    config = T5TalkingHeadsConfig(
        num_layers=len(encoder), num_decoder_layers=len(decoder), feed_forward_proj=proj, tie_word_embeddings=tied,
        layer_overrides={"encoder": encoder, "decoder": decoder}, dropout_rate=rate, layer_norm_epsilon=epsilon,
        relative_attention_type=biases, relative_attention_num_buckets=16, d_model=7,
    )  # fmt: skip
    assert can_be_written(natural_layout(config), config)
    assert_same(config, read_back(config))


@pytest.mark.parametrize(
    ("proj", "written"),
    [
        ("gelu_new", "'gelu'"),
        ("gated-gelu_fast", "['gelu', 'linear']"),
        ("swish", "'swish'"),
        ("gated-relu", "['relu',"),
    ],
)
def test_other_names_of_the_originals_activations(proj: str, written: str, make_config: Callable[..., Any]) -> None:
    config = make_config("t5.1.1", feed_forward_proj=proj)
    assert f"DenseReluDense.activation = {written}" in operative_config(config, natural_layout(config), "float32")


@pytest.mark.parametrize("proj", ["gelu", "gated-gelu_python", "gelu_10", "quick_gelu", "gated-mish"])
def test_activations_that_the_original_has_not(proj: str, make_config: Callable[..., Any]) -> None:
    with pytest.raises(ConversionError, match=f"its feed_forward_proj is {proj}, which the original does not have"):
        check_expressible(make_config("t5.1.1", feed_forward_proj=proj))


@pytest.mark.parametrize(
    ("encoder", "decoder", "written"),
    [(2, 3, True), (4, 6, True), (6, 9, False), (8, 12, True), (None, None, True), (3, 3, False), (1, 3, False)],
)
def test_layouts(encoder: int | None, decoder: int | None, written: bool, make_config: Callable[..., Any]) -> None:
    """Four layers alike: one, two or four of them in a block, or no blocks at all."""
    config = make_config("t5.1.1", num_layers=4)
    layout = Layout({"encoder": encoder, "decoder": decoder})
    assert can_be_written(layout, config) == written
    if written:
        text = operative_config(config, layout, "float32")
        assert_same(config, read_architecture(GinFile(text)))
        assert f"encoder/make_layer_stack.num_layers = {8 // (encoder or 8)}\n" in text
        assert f"decoder/make_layer_stack.block_scope = {decoder is not None}\n" in text


def test_layouts_that_do_not_fit_the_widths(make_config: Callable[..., Any]) -> None:
    config = make_config("t5.1.n4w10", num_layers=6, num_decoder_layers=5)
    assert not can_be_written(Layout(), config)
    assert can_be_written(Layout({"encoder": 12, "decoder": 15}), config)
    assert natural_layout(config) == Layout({"encoder": 12, "decoder": 15})


def test_layers_with_names_have_a_block_of_their_own(make_config: Callable[..., Any]) -> None:
    config = make_config("t5.1.1")
    named = Layout(named_layers=True, legacy_norms=True)
    assert can_be_written(named, config)
    assert not can_be_written(Layout({"encoder": 4, "decoder": 3}, named_layers=True), config)
    assert not can_be_written(Layout({"encoder": None, "decoder": 3}, named_layers=True), config)
    text = operative_config(config, named, "float32")
    assert "('enc_dec_attention', @mesh_tensorflow.transformer.transformer_layers.EncDecAttention)" in text
    assert "LayerStack.norm_epsilon = 1e-06\n" in text
    assert_same(config, read_architecture(GinFile(text)))


def test_rows_that_are_not_divided(make_config: Callable[..., Any]) -> None:
    """A vocabulary that was resized to its own size: the original must not round it up."""
    for rows, divisor in ((1152, 128), (1100, 1)):
        config = make_config("t5.1.1", vocab_size=rows)
        text = operative_config(config, natural_layout(config), "float32")
        assert f"Unitransformer.vocab_divisor = {divisor}\n" in text


def test_genuine_files_say_the_same(reference: Path) -> None:
    """What the original itself wrote, and what we write of it, describe one architecture."""
    for path in sorted(reference.glob("golden/*/operative_config.gin")):
        said = read_architecture(GinFile.load(path))
        family = "t5.1.th" if ".th." in str(path) or "mixed" in str(path) else "t5.1.n4w10"
        ours = read_back(build_architecture(family, said, 256)[0])
        assert replace(ours, dropout_rate=said.dropout_rate) == said
