# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""The plan and the writer, from memory: bytes of the files, blocks, shards, order, and what must be refused."""

import errno
import itertools
import json
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from t5_experimental.convert.errors import ConversionError
from t5_experimental.convert.mesh.matching import mesh_name, sort_names
from t5_experimental.convert.mesh.parameters import parameters
from t5_experimental.convert.mesh.scopes import Layout
from t5_experimental.convert.output import blocks as transfer
from t5_experimental.convert.output import safetensors_writer as writer
from t5_experimental.convert.output.options import parse_size
from t5_experimental.convert.plan.plan import Plan, make_plan


@pytest.fixture
def arrays(make_config: Callable[..., Any]) -> dict[str, np.ndarray]:
    """Variables of a model with every kind of layer, in an order of their own."""
    generator = np.random.default_rng(0)
    found = {
        mesh_name(name, parameter.section, Layout()): generator.standard_normal(parameter.mesh_shape, np.float32)
        for name, parameter in parameters(make_config("mixed")).items()
    }
    names = sorted(found)
    generator.shuffle(names)
    return {name: found[name] for name in names}


def plan_of(reader: Any, config: Any, **options: Any) -> Plan:
    return make_plan(reader.variables, sort_names(reader.variables), config, **options)


def load(folder: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(path)
    return tensors


@pytest.mark.parametrize("band_bytes", [1, 1000, 2**24])
@pytest.mark.parametrize("block_bytes", [1, 100, 2**24])
def test_every_tensor_in_every_block_size(
    block_bytes: int,
    band_bytes: int,
    arrays: dict[str, np.ndarray],
    memory_reader: type,
    make_config: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transfer, "BLOCK_BYTES", block_bytes)
    monkeypatch.setattr(transfer, "BAND_BYTES", band_bytes)
    monkeypatch.setattr(transfer, "WHOLE_BYTES", band_bytes)
    reader = memory_reader(arrays)
    plan = plan_of(reader, make_config("mixed"))
    written: list[int] = []
    writer.write_tensors(plan, reader, tmp_path, written.append)
    assert sum(written) == plan.nbytes
    assert reader.reads == [name for name in arrays if name in {e.source.name for e in plan.entries}]
    tensors = load(tmp_path)
    assert {name: tuple(t.shape) for name, t in tensors.items()} == {e.name: e.shape for e in plan.entries}
    for entry in plan.entries:
        np.testing.assert_array_equal(tensors[entry.name].numpy(), entry.to_ours(arrays[entry.source.name]))


def test_the_file_is_what_the_format_says(
    arrays: dict[str, np.ndarray], memory_reader: type, make_config: Callable[..., Any], tmp_path: Path
) -> None:
    reader = memory_reader(arrays)
    plan = plan_of(reader, make_config("mixed"))
    writer.write_tensors(plan, reader, tmp_path)
    data = (tmp_path / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    assert length % 8 == 0
    assert header.pop("__metadata__") == {"format": "pt"}
    ranges = sorted(tuple(tensor["data_offsets"]) for tensor in header.values())
    assert ranges[0][0] == 0
    assert all(end == start for (_, end), (start, _) in itertools.pairwise(ranges))
    assert len(data) == 8 + length + ranges[-1][1]
    with safe_open(tmp_path / "model.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}


def test_shards(
    arrays: dict[str, np.ndarray], memory_reader: type, make_config: Callable[..., Any], tmp_path: Path
) -> None:
    reader = memory_reader(arrays)
    config = make_config("mixed")
    largest = config.vocab_size * config.d_model * 4
    plan = plan_of(reader, config, max_shard_size=60_000)
    writer.write_tensors(plan, reader, tmp_path)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_parameters": plan.parameter_count, "total_size": plan.nbytes}
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert files == [f"model-{k:05d}-of-{len(files):05d}.safetensors" for k in range(1, len(files) + 1)]
    assert len(files) > 3
    for name in files:
        tensors = load_file(tmp_path / name)
        size = sum(tensor.numel() * 4 for tensor in tensors.values())
        assert size <= 60_000 or (len(tensors) == 1 and size == largest)
        assert {key for key, file in index["weight_map"].items() if file == name} == set(tensors)
    assert len(load(tmp_path)) == len(plan.entries)


def test_dtypes_of_the_source_stay_aligned(
    arrays: dict[str, np.ndarray], memory_reader: type, make_config: Callable[..., Any], tmp_path: Path
) -> None:
    """Variables of 2 and 4 bytes in one file: each keeps its own dtype and lies at a multiple of its size."""
    for k, name in enumerate(list(arrays)):
        if k % 2:
            arrays[name] = arrays[name].astype(ml_dtypes.bfloat16)
    reader = memory_reader(arrays)
    plan = plan_of(reader, make_config("mixed"))
    writer.write_tensors(plan, reader, tmp_path)
    tensors = load(tmp_path)
    for entry in plan.entries:
        source = arrays[entry.source.name]
        assert tensors[entry.name].dtype == getattr(torch, source.dtype.name)
        np.testing.assert_array_equal(tensors[entry.name].float().numpy(), entry.to_ours(source).astype(np.float32))
    data = (tmp_path / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    for name, tensor in json.loads(data[8 : 8 + length]).items():
        if name != "__metadata__":
            assert tensor["data_offsets"][0] % {"F32": 4, "BF16": 2}[tensor["dtype"]] == 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_casts_equal_torchs(
    dtype: str,
    arrays: dict[str, np.ndarray],
    memory_reader: type,
    make_config: Callable[..., Any],
    tmp_path: Path,
) -> None:
    reader = memory_reader(arrays)
    plan = plan_of(reader, make_config("mixed"), dtype=dtype)
    writer.write_tensors(plan, reader, tmp_path)
    tensors = load(tmp_path)
    for entry in plan.entries:
        exact = torch.from_numpy(entry.to_ours(arrays[entry.source.name]).copy()).to(getattr(torch, dtype))
        assert torch.equal(tensors[entry.name], exact)


def test_a_variable_that_is_not_what_the_index_says(
    arrays: dict[str, np.ndarray], memory_reader: type, make_config: Callable[..., Any], tmp_path: Path
) -> None:
    reader = memory_reader(arrays)
    plan = plan_of(reader, make_config("mixed"))
    for name in ("decoder/logits/kernel", "shared/embedding"):
        for wrong in (arrays[name].astype(np.float64), arrays[name][:-1]):
            reader.arrays = {**arrays, name: wrong}
            with pytest.raises(ConversionError, match=rf"{name} was read as \d+ bytes, but the index says float32"):
                writer.write_tensors(plan, reader, tmp_path)


def test_kernels_with_an_axis_for_heads(memory_reader: type, make_config: Callable[..., Any], tmp_path: Path) -> None:
    """`combine_dims = False` writes [d_model, heads, d_kv] and [heads, d_kv, d_model]; the parameters are the same."""
    config = make_config("t5.1.1")
    generator = np.random.default_rng(0)
    combined = {
        mesh_name(name, p.section, Layout()): generator.standard_normal(p.mesh_shape, np.float32)
        for name, p in parameters(config).items()
    }
    split = dict(combined)
    for name, array in combined.items():
        if name.endswith(("Attention/q", "Attention/k", "Attention/v")):
            split[name] = array.reshape(32, 4, 8)
        elif name.endswith("Attention/o"):
            split[name] = array.reshape(4, 8, 32)
    assert sum(array.ndim == 3 for array in split.values()) == 24
    results = []
    for part, arrays in (("combined", combined), ("split", split)):
        reader = memory_reader(arrays)
        (tmp_path / part).mkdir()
        writer.write_tensors(plan_of(reader, config), reader, tmp_path / part)
        results.append((tmp_path / part / "model.safetensors").read_bytes())
    assert results[0] == results[1]


def test_wrong_dtype(arrays: dict[str, np.ndarray], memory_reader: type, make_config: Callable[..., Any]) -> None:
    arrays["encoder/rms_norm/scale"] = arrays["encoder/rms_norm/scale"].astype(np.int32)
    with pytest.raises(ConversionError, match="encoder/rms_norm/scale has the dtype int32"):
        plan_of(memory_reader(arrays), make_config("mixed"))


def test_wrong_shape_names_the_fields(
    arrays: dict[str, np.ndarray], memory_reader: type, make_config: Callable[..., Any]
) -> None:
    name = "decoder/block_002/layer_002/DenseReluDense/wo/kernel"
    arrays[name] = np.zeros((48, 32), np.float32)
    with pytest.raises(ConversionError) as error:
        plan_of(memory_reader(arrays), make_config("mixed"), gin="operative_config.gin")
    assert str(error.value) == (
        f"{name} has the shape [48, 32], but [64, 32] is expected (d_ff): operative_config.gin contradicts the tensors."
    )


@pytest.mark.parametrize(
    ("text", "size"),
    [("5GB", 5 * 10**9), ("500MB", 5 * 10**8), ("1.5 kb", 1500), ("2GiB", 2**31), ("7", 7), ("8b", 8), ("1TB", 10**12)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "5 apples", "-5GB", "0", "0.5B", "1e9", "9" * 400, "9" * 5000 + "GB"])
def test_not_sizes(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        parse_size(text)


def test_disk_error_while_others_are_written(
    arrays: dict[str, np.ndarray],
    memory_reader: type,
    make_config: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The system tells of lost bytes once, to the first who waits for the disk, which here is the background."""
    told: list[bool] = []

    def fail_once(descriptor: int) -> None:
        if not told:
            told.append(threading.current_thread() is not threading.main_thread())
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(writer, "_SYNCED_BYTES", 1)
    monkeypatch.setattr(writer.os, "fsync", fail_once)
    reader = memory_reader(arrays)
    with pytest.raises(OSError, match="Input/output error"):
        writer.write_tensors(plan_of(reader, make_config("mixed")), reader, tmp_path)
    assert told == [True]
    assert not list(tmp_path.iterdir())
