# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Rearranging and casting: against NumPy spelled out, and back."""

import ml_dtypes
import numpy as np
import pytest

from t5_experimental.convert.errors import ConversionError
from t5_experimental.convert.mesh.axes import cast, describe, fits, rearrange
from t5_experimental.convert.mesh.rules import SECTIONS
from t5_experimental.convert.tensors import numpy_dtype
from t5_experimental.original import shape_of


SIZES = {
    "vocab_size": 11,
    "d_model": 6,
    "buckets": 4,
    "d_ff": 7,
    "num_heads": 3,
    "num_key_heads": 2,
    "num_value_heads": 5,
    "d_kv": 8,
    "d_k": 9,
    "d_v": 10,
}
FORMS = sorted(
    {
        (form, rule.our_axes)
        for rules in SECTIONS.values()
        for rule in rules
        for form in rule.mesh_axes
        if fits(form, rule.our_axes, SIZES)
    }
)


@pytest.mark.parametrize(("mesh", "ours"), FORMS)
def test_every_rule_there_and_back(mesh: str, ours: str) -> None:
    array = np.arange(np.prod(shape_of(mesh, SIZES))).reshape(shape_of(mesh, SIZES))
    view = rearrange(array, mesh, ours, SIZES)
    assert view.shape == shape_of(ours, SIZES)
    assert np.shares_memory(view, array)
    np.testing.assert_array_equal(rearrange(view, ours, mesh, SIZES), array)


def test_orientation() -> None:
    q = np.random.default_rng(0).random((6, 2, 9))  # d_model, key heads, d_k
    ours = rearrange(q, "d_model num_key_heads d_k", "num_key_heads*d_k d_model", SIZES)
    for head in range(2):
        np.testing.assert_array_equal(ours[9 * head : 9 * head + 9], q[:, head].T)
    y = np.random.default_rng(1).random((5, 10, 6))  # value heads, d_v, d_model
    ours = rearrange(y, "num_value_heads d_v d_model", "d_model num_value_heads*d_v", SIZES)
    for head in range(5):
        np.testing.assert_array_equal(ours[:, 10 * head : 10 * head + 10], y[head].T)
    mix = np.random.default_rng(2).random((2, 3))
    np.testing.assert_array_equal(rearrange(mix, "num_key_heads num_heads", "num_key_heads num_heads", SIZES), mix)


def test_one_head_has_no_axis() -> None:
    one = {"buckets": 4, "num_heads": 1}
    assert fits("buckets", "buckets num_heads", one)
    assert not fits("buckets", "buckets num_heads", {"buckets": 4, "num_heads": 2})
    table = np.arange(4)
    ours = rearrange(table, "buckets", "buckets num_heads", one)
    np.testing.assert_array_equal(ours, table[:, None])
    np.testing.assert_array_equal(rearrange(ours, "buckets num_heads", "buckets", one), table)


@pytest.mark.parametrize(
    ("source", "target", "words"),
    [
        ("d_model", "d_model", "copy"),
        ("d_model d_ff", "d_ff d_model", "transpose"),
        ("d_model num_heads d_kv", "num_heads*d_kv d_model", "merge heads, transpose"),
    ],
)
def test_description(source: str, target: str, words: str) -> None:
    assert describe(source, target) == words


def test_casts_round_to_nearest_even() -> None:
    # Halfway between two bfloat16 numbers (8 bits of mantissa): to the even one. Then just above, and a subnormal.
    halves = np.array([1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, 1e-40], np.float32)
    expected = np.array([1, 1 + 4 * 2**-8, 1 + 2 * 2**-8, 1e-40], np.float32).astype(ml_dtypes.bfloat16)
    result = cast(halves, numpy_dtype("bfloat16"), "w")
    assert result.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(result.view(np.uint16), expected.view(np.uint16))
    assert cast(np.array([2049], np.float32), numpy_dtype("float16"), "w")[0] == 2048
    assert cast(halves, numpy_dtype("float32"), "w") is halves


def test_casts_agree_with_torch() -> None:
    torch = pytest.importorskip("torch")
    numbers = np.random.default_rng(0).standard_normal(10000).astype(np.float32) * 10
    for name, dtype in (("bfloat16", torch.bfloat16), ("float16", torch.float16)):
        ours = cast(numbers, numpy_dtype(name), "w").astype(np.float32)
        np.testing.assert_array_equal(ours, torch.from_numpy(numbers).to(dtype).float().numpy())


@pytest.mark.parametrize(("dtype", "number"), [("float16", 65520), ("bfloat16", 3.4e38)])
def test_overflow_is_an_error(dtype: str, number: float) -> None:
    block = np.array([1, number], np.float32)
    with pytest.raises(ConversionError, match="decoder/w holds .* does not fit " + dtype):
        cast(block, numpy_dtype(dtype), "decoder/w")
    # What was infinite before has not overflowed.
    assert np.isinf(cast(np.array([np.inf], np.float32), numpy_dtype(dtype), "w")[0])
