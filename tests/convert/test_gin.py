# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Gin files: syntax, the genuine ones field by field, and refusal of everything that our models cannot express."""

import warnings
from pathlib import Path
from typing import Any

import pytest

from t5_experimental import LayerSpec
from t5_experimental.convert.errors import ConversionError
from t5_experimental.convert.mesh.gin_reader import read_architecture
from t5_experimental.convert.mesh.gin_syntax import GinFile, Macro, Reference


PLAIN = LayerSpec("multi_head", 4, 4, 4, 8, 8, 64)
NARROW = LayerSpec("multi_head", 2, 2, 2, 8, 8, 32)
TALKING = LayerSpec("talking_heads", 4, 4, 4, 8, 8, 64)
UNEVEN = LayerSpec("talking_heads", 4, 2, 3, 8, 6, 64)
NARROW_TALKING = LayerSpec("talking_heads", 2, 2, 2, 8, 8, 32)

# Folder -> layers of either stack, activation, classifier shared.
GOLDEN = {
    "t5.1.1.tiny": ([PLAIN] * 2, "gated-gelu", False),
    "t5.1.1.tiny-packed": ([PLAIN] * 2, "gated-gelu", False),
    "t5.1.1.tiny-legacy": ([PLAIN] * 2, "gated-gelu", False),
    "t5.1.1.tiny-biases": ([PLAIN] * 3, "gated-gelu", False),
    "t5.1.0.tiny": ([PLAIN] * 2, "relu", True),
    "t5.1.th.tiny": ([TALKING] * 2, "gated-gelu", False),
    "t5.1.th.tiny-uneven": ([UNEVEN] * 2, "gated-gelu", False),
    "t5.1.mixed.tiny": ([NARROW_TALKING] + [TALKING] * 2, "gated-gelu", False),
    "t5.1.n4w10.tiny": ([NARROW] * 4 + [PLAIN] * 10, "gated-gelu", False),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_genuine_files(name: str, reference: Path) -> None:
    layers, activation, tied = GOLDEN[name]
    found = read_architecture(GinFile.load(reference / "golden" / name / "operative_config.gin"))
    assert found.d_model == 32
    assert {stack: list(specs) for stack, specs in found.layers.items()} == {"encoder": layers, "decoder": layers}
    assert (found.buckets, found.layer_norm_epsilon) == (32, 1e-6)
    assert (found.feed_forward_proj, found.tied) == (activation, tied)
    assert found.notes == ()


def test_syntax() -> None:
    gin = GinFile(
        "import a.b as c\n"
        "from x import y\n"
        "# d_model = 7\n"
        "d_model = 32  # a comment\n"
        "old/macro.value = 1e-6\n"
        "encoder/a.b.Thing.sizes = \\\n"
        "    [(1, 'x'), %d_model,\n"
        "     {'deep': [@scope/m.Klass, @m.call()], 'n': -2}]\n"
        "Thing.flag = None\n"
        "Thing.deep.parameter = %old\n"
    )
    assert gin.lookup("encoder", "Thing", "sizes") == (
        True,
        [(1, "x"), 32, {"deep": [Reference("Klass"), Reference("call")], "n": -2}],
    )
    assert gin.lookup("encoder", "Thing", "flag") == (True, None)
    assert gin.lookup("decoder", "Thing", "sizes") == (False, None)
    assert gin.lookup("", "deep", "parameter") == (True, 1e-6)
    assert gin.bindings["", "deep", "parameter"] == Macro("old")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.b = [1,\n", "cut off"),
        ("a.b = 'x\n", "cut off|cannot be read"),
        ("a.b = open('x')\n", "line 1 .* no plain value"),
        ("\na.b = 1 +\n", "line 2 .* no plain value"),
        ("a.b = @\n", "line 1 .* no plain value"),
        ("a.b = {**x}\n", "line 1 .* no plain value"),
        ("a.b = {[1]: 2}\n", "line 1 .* no plain value"),
        ("a.b = " + "-" * 100_000 + "1\n", "line 1 .* no plain value"),
        ("just words\n", "line 1 .* is no gin statement"),
        ("include 'models/t5.1.1.base.gin'\n", "includes another file"),
    ],
)
def test_broken_syntax(text: str, message: str) -> None:
    with pytest.raises(ConversionError, match=message):
        GinFile(text)


def test_nothing_is_printed_on_the_style_of_a_file() -> None:
    """Python's parser warns of such strings and numbers, and quotes them."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert GinFile("a.b = '\\d'\n").lookup("", "a", "b") == (True, "\\d")
    assert told == []


BOMBS = {
    "doubling": "\n".join(f"m{n} = [%m{n + 1}, %m{n + 1}]" for n in range(15)) + "\nm15 = [1, 2, 3]",
    "thirtyfold": "\n".join(f"m{n} = [{f'%m{n + 1}, ' * 30}]" for n in range(12)) + "\nm12 = 1",
    "tables": "\n".join(f"m{n} = {{1: %m{n + 1}, 2: %m{n + 1}}}" for n in range(15)) + "\nm15 = [1, 2, 3]",
    "a long chain": "\n".join(f"m{n} = %m{n + 1}" for n in range(10_000)) + "\nm10000 = 1",
    "a circle": "\n".join(f"m{n} = %m{n + 1}" for n in range(20)) + "\nm20 = %m0",
    "a deep value": f"m0 = {'[' * 40}{']' * 40}",
    "deep in another": f"m0 = {'[' * 20}%m1{']' * 20}\nm1 = {'[' * 20}{']' * 20}",
}


@pytest.mark.parametrize("case", BOMBS)
def test_macros_that_grow(case: str) -> None:
    """Far below what a file may hold, and far above what any value needs."""
    with pytest.raises(ConversionError, match=r"more than 32768 parts, or|by too many others"):
        GinFile(f"{BOMBS[case]}\na.b = %m0\n").lookup("", "a", "b")


def test_macros_that_are_used_often_stay_small() -> None:
    text = "\n".join(f"m{n} = [%m{n + 1}, %m{n + 1}]" for n in range(10)) + "\nm10 = 1\na.b = %m0\na.c = %m1\n"
    gin = GinFile(text)
    found = gin.lookup("", "a", "b")[1]
    for _ in range(10):
        assert len(found) == 2
        found = found[0]
    assert found == 1
    assert gin.lookup("", "a", "b")[1][0] == gin.lookup("", "a", "c")[1]


ABSURD = [
    (
        "num_layers = 100_000_000",
        "encoder/make_layer_stack.num_layers = 100000000: it must be an integer from 1 to 2048",
    ),
    ("num_layers = 1025", "gives the encoder more than 1024 layers .*num_layers = 1025"),
    ("num_layers = 0", "num_layers = 0: it must be an integer"),
    ("num_layers = [2]", r"num_layers = \[2\]: it must be an integer"),
    ("num_layers = True", "num_layers = True: it must be an integer"),
    ("d_model = 1e999", "encoder/Unitransformer.d_model = inf: it must be an integer from 1 to 2147483647"),
    ("d_model = [32]", r"Unitransformer.d_model = \[32\]"),
    ("d_model = 4294967296", "d_model = 4294967296"),
    (f"d_model = 0x{'f' * 5000}", "cannot be read: d_model has no plain value"),
    (f"d_model = {'9' * 5000}", "cannot be read: d_model has no plain value"),
    ("d_ff = -1", "DenseReluDense.hidden_size = -1"),
    ("num_heads = {}", r"SelfAttention.num_heads = {}"),
    ("num_heads = @x.SelfAttention", "num_heads = 'SelfAttention'"),
    ("d_kv = 8.0", "key_value_size = 8.0"),
    ("dropout_rate = 2.0", "DenseReluDense.dropout_rate = 2.0: it must be a number from 0 to less than 1"),
    ("dropout_rate = 1.0", "dropout_rate = 1.0"),
    ("dropout_rate = -0.1", "dropout_rate = -0.1"),
    ("dropout_rate = 1e999", "dropout_rate = inf"),
    ("dropout_rate = []", r"dropout_rate = \[\]"),
    ("dropout_rate = 'x'", "dropout_rate = 'x'"),
    ("sublayer_rms_norm.epsilon = 1e999", "sublayer_rms_norm.epsilon = inf: it must be a finite number from 0 on"),
    ("sublayer_rms_norm.epsilon = -1e-6", "epsilon = -1e-06"),
    ("sublayer_rms_norm.epsilon = 'x'", "epsilon = 'x'"),
    ("sublayer_rms_norm.epsilon = None", "epsilon = None"),
    (
        "encoder/SelfAttention.relative_attention_num_buckets = 3",
        "num_buckets = 3: it must be an integer from 4 to 255",
    ),
    ("encoder/SelfAttention.relative_attention_num_buckets = 256", "num_buckets = 256"),
    ("encoder/SelfAttention.relative_attention_num_buckets = [32]", r"num_buckets = \[32\]"),
    ("encoder/make_layer_stack.layers = 5", "make_layer_stack.layers = 5: it must be a list"),
    ("encoder/make_layer_stack.layers = 'x'", "make_layer_stack.layers = 'x': it must be a list"),
    ("encoder/make_layer_stack.layers = [[]]", "one class per layer"),
    ("encoder/make_layer_stack.layers = [(5, @x.SelfAttention), @x.DenseReluDense]", "one class per layer"),
    ("decoder/Unitransformer.shared_embedding_and_softmax_weights = 'no'", "= 'no': it must be True or False"),
    ("encoder/DenseReluDense.activation = []", r"activation = \[\], which"),
    ("encoder/DenseReluDense.activation = [[], 'linear']", "activation = .* which our models cannot express"),
    ("encoder/DenseReluDense.activation = {'a': 1}", "activation = {'a': 1}, which"),
    ("encoder/SelfAttention.attention_kwargs = [1]", "attention_kwargs"),
    ("encoder/SelfAttention.attention_kwargs = {%d_ff: 1}", "has no plain value"),
]


@pytest.mark.parametrize(("line", "message"), ABSURD)
def test_absurd_values(line: str, message: str, reference: Path) -> None:
    with pytest.raises(ConversionError, match=message):
        read_architecture(spoiled(reference, "t5.1.1.tiny", line))


@pytest.mark.parametrize(
    "dims", ["[4]", "['heads']", "[(4, 'heads')]", "[[4, 4, 4]]", "[('a', 0)]", "[('a', 1.0)]", "4"]
)
def test_absurd_heads(dims: str, reference: Path) -> None:
    with pytest.raises(ConversionError, match="key_heads_dims = "):
        read_architecture(
            spoiled(reference, "t5.1.th.tiny", f"encoder/TalkingHeadsSelfAttention.key_heads_dims = {dims}")
        )


def test_as_many_layers_as_are_allowed(reference: Path) -> None:
    found = read_architecture(spoiled(reference, "t5.1.1.tiny", "num_layers = 1024"))
    assert {stack: len(specs) for stack, specs in found.layers.items()} == {"encoder": 1024, "decoder": 1024}


@pytest.mark.parametrize("text", ["d = %e\na.b = %d", "d = [%d, %d]\na.b = %d", "d = %e\ne = %d\na.b = {1: %d}"])
def test_macros_without_value(text: str) -> None:
    with pytest.raises(ConversionError, match="without defining it"):
        GinFile(text).lookup("", "a", "b")


def spoiled(reference: Path, name: str, *lines: str) -> GinFile:
    """A genuine file with statements added; the last one for a parameter counts."""
    text = (reference / "golden" / name / "operative_config.gin").read_text()
    return GinFile(text + "\n".join(["", *lines, ""]))


def test_a_table_in_every_layer(reference: Path) -> None:
    found = read_architecture(GinFile.load(reference / "golden" / "t5.1.1.tiny-biases" / "operative_config.gin"))
    assert found.relative_attention_type == "bias"
    line = "decoder/SelfAttention.relative_attention_type = 'bias'"
    with pytest.raises(ConversionError, match=r"relative_attention_type to bias, bias_shared in different layers"):
        read_architecture(spoiled(reference, "t5.1.1.tiny", line))
    with pytest.raises(ConversionError, match=r"= 'contextual', .*\(only 'bias_shared' or 'bias'\)"):
        read_architecture(spoiled(reference, "t5.1.1.tiny", line.replace("'bias'", "'contextual'")))


INEXPRESSIBLE = [
    "encoder/Unitransformer.positional_embedding = True",
    "decoder/Unitransformer.sinusoid_positional_embedding = True",
    "decoder/Unitransformer.input_full_attention = True",
    "encoder/Unitransformer.ensemble = 2",
    "Bitransformer.shared_embedding = False",
    "make_bitransformer.encoder_name = 'decoder'",
    "VocabEmbedding.scale_variable_like_classifier_weights = True",
    "unit_scaling_convention.value = True",
    "utils.run.model_type = 'lm'",
    "encoder/SelfAttention.num_memory_heads = 1",
    "encoder/SelfAttention.shared_kv = True",
    "encoder/SelfAttention.relative_attention_type = 'contextual'",
    "decoder/SelfAttention.relative_attention_type = None",
    "decoder/EncDecAttention.relative_attention_type = 'bias_shared'",
    "decoder/EncDecAttention.shared_kv = True",
    "encoder/SelfAttention.fold_scaling_into_initializer = False",
    "encoder/SelfAttention.keep_query_heads_dims = True",
    "encoder/SelfAttention.attention_func = 'hybrid'",
    "encoder/SelfAttention.attention_kwargs = {'extra_logit': 0.0}",
    "encoder/SelfAttention.hyperprompt_length_encoder = 5",
    "encoder/DenseReluDense.use_bias = True",
    "decoder/make_layer_stack.layer_stack_cls = @transformer.ReversibleLayerStack",
    "encoder/LayerStack.sublayers_initial = []",
    "encoder/LayerStack.sublayers_final = [@transformer.sublayer_scale_norm, @transformer.sublayer_dropout]",
    "encoder/LayerStack.norm_epsilon = 1e-5",
]


@pytest.mark.parametrize("line", INEXPRESSIBLE)
def test_what_cannot_be_expressed_is_refused_by_name(line: str, reference: Path) -> None:
    binding = line.partition(" = ")[0].replace("utils.", "")
    with pytest.raises(ConversionError) as error:
        read_architecture(spoiled(reference, "t5.1.1.tiny", line))
    assert binding in str(error.value)
    assert "cannot express" in str(error.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("encoder/TalkingHeadsSelfAttention.dynamic_projections = ['x2l']", "dynamic_projections"),
        ("encoder/TalkingHeadsSelfAttention.key_heads_dims = [('a', 2), ('b', 2)]", "key_heads_dims"),
        ("encoder/TalkingHeadsSelfAttention.key_heads_dims = [('heads', 4)]", "do not mix"),
        ("encoder/TalkingHeadsSelfAttention.key_size = 0", "an integer from 1 to"),
        ("decoder/TalkingHeadsEncDecAttention.key_size = 4", "layer 0 of the decoder .* different kinds or widths"),
    ],
)
def test_talking_heads_that_cannot_be_expressed(line: str, message: str, reference: Path) -> None:
    with pytest.raises(ConversionError, match=message):
        read_architecture(spoiled(reference, "t5.1.th.tiny", line))


T = "@transformer_layers."


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (f"[{T}LocalSelfAttention, {T}DenseReluDense]", "class LocalSelfAttention"),
        (f"[{T}SelfAttention, {T}MoE1D]", "class MoE1D"),
        (f"[{T}DenseReluDense, {T}SelfAttention]", "DenseReluDense as sublayer 0"),
        (f"[{T}SelfAttention, {T}DenseReluDense, {T}SelfAttention]", "SelfAttention as sublayer 3|middle of a layer"),
        ("[]", "middle of a layer"),
        ("[3]", "one class per layer"),
        (f"[({{'shared_kv': True}}, {T}SelfAttention), {T}DenseReluDense]", "shared_kv"),
        (
            f"[{T}SelfAttention, ({{'activation': 'relu'}}, {T}DenseReluDense)]",
            "DenseReluDense.activation to .* different",
        ),
        (f"[{T}SelfAttention, ({{'activation': ['linear', 'gelu']}}, {T}DenseReluDense)]", "activation"),
        (f"[({{'num_heads': 'x'}}, {T}SelfAttention), {T}DenseReluDense]", "num_heads"),
    ],
)
def test_layer_lists_that_cannot_be_expressed(layers: str, message: str, reference: Path) -> None:
    with pytest.raises(ConversionError, match=message):
        read_architecture(spoiled(reference, "t5.1.1.tiny", f"encoder/make_layer_stack.layers = {layers}"))


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["dropout_rate = 0.1"], {"dropout_rate": 0.1, "notes": ()}),
        (["sublayer_rms_norm.epsilon = 1e-5"], {"layer_norm_epsilon": 1e-5}),
        (["sublayer_rms_norm.epsilon = 1e-6", "LayerStack.dropout_rate = None"], {"layer_norm_epsilon": 1e-6}),
        (
            [f"{stack}/DenseReluDense.activation = 'relu'" for stack in ("encoder", "decoder")],
            {"feed_forward_proj": "relu"},
        ),
        (
            [f"{stack}/DenseReluDense.activation = ['swish', 'linear']" for stack in ("encoder", "decoder")],
            {"feed_forward_proj": "gated-silu"},
        ),
        (
            [f"{stack}/DenseReluDense.activation = 'gelu'" for stack in ("encoder", "decoder")],
            {"feed_forward_proj": "gelu_pytorch_tanh"},  # transformers' "gelu" is the exact one
        ),
        (["decoder/Unitransformer.shared_embedding_and_softmax_weights = True"], {"tied": True}),
    ],
)
def test_other_values(lines: list[str], expected: dict[str, Any], reference: Path) -> None:
    found = read_architecture(spoiled(reference, "t5.1.1.tiny", *lines))
    assert {name: getattr(found, name) for name in expected} == expected


def test_several_dropout_rates(reference: Path) -> None:
    found = read_architecture(spoiled(reference, "t5.1.1.tiny", "sublayer_dropout.dropout_rate = 0.2"))
    assert found.dropout_rate == 0.2
    assert "several dropout rates (0.0, 0.2)" in found.notes[0]


def test_parameters_come_from_the_nearest_place(reference: Path) -> None:
    """Keywords of the layer, then the class's binding, then the parent class's."""
    layers = f"[{T}SelfAttention, {T}EncDecAttention, ('ff', {T}DenseReluDense, {{'hidden_size': 16}})]"
    lines = [f"decoder/make_layer_stack.layers = {layers}", "decoder/SelfAttention.num_heads = 6"]
    found = read_architecture(spoiled(reference, "t5.1.1.tiny", *lines))
    assert found.layers["decoder"] == (LayerSpec("multi_head", 6, 6, 6, 8, 8, 16),) * 2
    lines.append("decoder/EncDecAttention.num_heads = 4")
    with pytest.raises(ConversionError, match=r"layer 0 of the decoder .* different kinds or widths"):
        read_architecture(spoiled(reference, "t5.1.1.tiny", *lines))


def test_a_file_that_is_not_whole() -> None:
    with pytest.raises(ConversionError, match=r"does not set encoder/make_layer_stack.layers"):
        read_architecture(GinFile("d_model = 3\n"))
