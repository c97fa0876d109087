# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Weights of Flax and of TensorFlow 2: what is damaged, missing or too much, and that logits tell of mistakes."""

import importlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flax import serialization
from transformers import AutoModelForSeq2SeqLM

from t5_experimental.convert import ConversionError, convert, inspect, verify
from t5_experimental.convert.output.flax_reader import FlaxReader
from t5_experimental.convert.plan.stock_names import flax_name, tf2_name
from tests.support.framework_weights import as_flax, as_tf2, nested, write_flax, write_tf2
from tests.support.stock_folders import V11, Kind, assert_same_model, build, write


h5py = importlib.import_module("h5py")

Arrays = dict[str, np.ndarray]
Edit = Callable[[Arrays], object]
Run = Callable[..., Any]

Q = "encoder/block/0/layer/0/SelfAttention/q/kernel"
WI = "decoder/block/1/layer/2/DenseReluDense/wi_{}/kernel"


def tensors_of(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in model.state_dict().items() if "embed_tokens" not in name}


@pytest.fixture
def flax_folder(tmp_path: Path) -> Callable[..., Path]:
    """`flax_folder(edit)`: a folder whose arrays, by name, were edited before Flax wrote them."""

    def make(edit: Edit = lambda _: None) -> Path:
        def save(tensors: dict[str, torch.Tensor], folder: Path) -> None:
            arrays = as_flax(tensors)
            edit(arrays)
            write_flax(arrays, folder / "flax_model.msgpack")

        kind = Kind(V11, save=save)
        write(tmp_path / "source", build(kind), kind)
        return tmp_path / "source"

    return make


@pytest.fixture
def tf2_folder(tmp_path: Path) -> Callable[..., Path]:
    """`tf2_folder(edit)`: the same in an HDF5 file, whose groups of arrays were edited."""

    def make(edit: Callable[[dict[str, Arrays]], object] = lambda _: None) -> Path:
        def save(tensors: dict[str, torch.Tensor], folder: Path) -> None:
            groups = as_tf2(tensors)
            edit(groups)
            write_tf2(groups, folder / "tf_model.h5")

        kind = Kind(V11, save=save)
        write(tmp_path / "source", build(kind), kind)
        return tmp_path / "source"

    return make


def assert_nothing_written(tmp_path: Path) -> None:
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


# --- what is there


def test_the_command_says_what_it_found(flax_folder: Callable[..., Path], run: Run, tmp_path: Path) -> None:
    folder = flax_folder()
    result = run("inspect", folder)
    assert result.status == 0
    assert "Family:     t5.1.1 (T5V11Config)" in result.out
    assert "Told by:    config.json, checked against every shape" in result.out
    assert f"float32  {Q}" in result.out.replace("   ", "  ")
    assert run("convert", folder, tmp_path / "out").status == 0
    assert run("verify", folder, tmp_path / "out").status == 0
    record = json.loads((tmp_path / "out" / "conversion.json").read_text())
    row = record["tensors"]["encoder.block.0.layer.0.SelfAttention.q.weight"]
    assert (row["source"], row["transform"]) == (Q, "transpose")


def test_every_name_of_the_two_frameworks() -> None:
    names = ["shared.weight", *tensors_of(build(Kind(V11)))]
    flax = as_flax(dict.fromkeys(names, torch.zeros(2, 2)))
    assert [flax_name(name).ours for name in flax] == list(dict.fromkeys(names))
    tf2 = as_tf2(dict.fromkeys(names, torch.zeros(2, 2)))
    found = [tf2_name(f"{group}/{name}") for group, arrays in tf2.items() for name in arrays]
    assert sorted(name.ours for name in found) == sorted({*names})
    assert {name.transposed for name in found} == {True, False}


@pytest.mark.parametrize("name", ["q/kernel/extra", "encoder/block/0/layer/0/SelfAttention/q/weight", "kernel", ""])
def test_other_names_are_none_of_a_t5(name: str) -> None:
    assert flax_name(name) is None
    assert tf2_name(name) is None


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("shared/shared/shared/weight:0", "shared.weight"),
        ("shared/shared/embeddings:0", "shared.weight"),
        ("shared/embeddings:0", "shared.weight"),
        ("decoder/shared/shared/weight:0", "decoder.embed_tokens.weight"),
        ("lm_head/kernel:0", "lm_head.weight"),
        ("lm_head/tf_mt5_for_conditional_generation/lm_head/kernel:0", "lm_head.weight"),
        ("encoder/block_._0/layer_._1/layer_norm/weight:0", "encoder.block.0.layer.1.layer_norm.weight"),
        ("encoder/tf_t5model/decoder/block_._0/layer_._1/layer_norm/weight:0", None),
    ],
)
def test_names_with_and_without_groups_and_models(name: str, ours: str | None) -> None:
    found = tf2_name(name)
    assert (found and found.ours) == ours


def swapped(arrays: Arrays) -> None:
    arrays[WI.format(0)], arrays[WI.format(1)] = arrays[WI.format(1)], arrays[WI.format(0)]


def turned(arrays: Arrays) -> None:
    arrays[Q] = np.ascontiguousarray(arrays[Q].T)


@pytest.mark.parametrize("mistake", [swapped, turned])
def test_the_logits_would_tell_of_a_mistake(mistake: Edit, flax_folder: Callable[..., Path], tmp_path: Path) -> None:
    """Two kernels exchanged, and a square one that is not transposed: no shape tells."""
    convert(flax_folder(mistake), tmp_path / "out")
    ours = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out")
    with pytest.raises(AssertionError, match="not close"):
        assert_same_model(ours, build(Kind(V11)))


def test_weights_of_pytorch_come_first(flax_folder: Callable[..., Path]) -> None:
    folder = flax_folder()
    (folder / "tf_model.h5").write_bytes(b"")
    assert isinstance(inspect(folder).reader, FlaxReader)
    torch.save(tensors_of(build(Kind(V11))), folder / "pytorch_model.bin")
    assert not isinstance(inspect(folder).reader, FlaxReader)


def test_memory_is_bounded_by_blocks(tmp_path: Path) -> None:
    import tracemalloc

    arrays = {"a": np.zeros((1000, 1000), np.float32), "b": np.zeros(10**6, np.float32)}
    (tmp_path / "flax_model.msgpack").write_bytes(serialization.msgpack_serialize(arrays))
    tracemalloc.start()
    reader = FlaxReader([tmp_path / "flax_model.msgpack"])
    assert sum(len(block) for name in arrays for block in reader.blocks(name, 2**16)) == 8 * 10**6
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


# --- what is refused


def add_bias(arrays: Arrays) -> None:
    arrays[Q.replace("kernel", "bias")] = np.ones(32, np.float32)


EDITS: dict[str, tuple[Edit, str]] = {
    "missing": (lambda a: a.pop(Q), r"SelfAttention.q.weight of shape \[32, 32\] is missing from the weights"),
    "extra": (
        lambda a: a.update({"extra/kernel": np.ones((2, 2), np.float32)}),
        r"extra/kernel, of shape \[2, 2\], is",
    ),
    "a bias": (add_bias, "whose layers have no biases: this is another architecture"),
    "no classifier": (lambda a: a.pop("lm_head/kernel"), "lm_head.weight is missing, but"),
    "wrong shape": (
        lambda a: a.update({WI.format(0): np.ones((32, 40), np.float32)}),
        r"wi_0/kernel has the shape \[40, 32\], but \[48, 32\] is expected \(d_ff\)",
    ),
    "NaN": (lambda a: a[Q].fill(np.nan), f"{Q} holds infinities or NaNs"),
    "integers": (lambda a: a.update({Q: np.ones((32, 32), np.int8)}), "has the dtype int8, but weights are"),
}


@pytest.mark.parametrize("name", EDITS)
def test_wrong_arrays_of_flax_are_refused(
    name: str, flax_folder: Callable[..., Path], run: Run, tmp_path: Path
) -> None:
    edit, message = EDITS[name]
    folder = flax_folder(edit)
    with pytest.raises(ConversionError, match=message):
        convert(folder, tmp_path / "out")
    assert run("convert", folder, tmp_path / "out").status == 1
    assert_nothing_written(tmp_path)


def packed(value: Any) -> bytes:
    return serialization.msgpack_serialize(value)


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


ARRAY = packed({"a": np.zeros(4, np.float32)})
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda path: path.write_bytes(b""), "it ends too early"),
    "text": (lambda path: path.write_bytes(b"\xa4text"), "it holds no map of arrays by name"),
    "no msgpack": (lambda path: path.write_bytes(b"\xc1\xc1"), "msgpack cannot read it"),
    "cut in an array": (lambda path: cut(path, -100), "it ends too early"),
    "cut in a name": (lambda path: cut(path, 3), "it ends too early"),
    "more behind": (lambda path: path.write_bytes(path.read_bytes() + b"\0"), "but its map ends at"),
    "a number": (lambda path: path.write_bytes(packed({"a": 7})), "its 'a' is 7, not an array"),
    "complex": (lambda path: path.write_bytes(packed({"a": 1j})), "an extension of type 2, which is no array"),
    "a name twice": (lambda path: path.write_bytes(b"\x82" + ARRAY[1:] * 2), "the name 'a' is no text, or is there"),
    "another size": (
        lambda path: path.write_bytes(ARRAY.replace(b"\x91\x04", b"\x91\x05")),
        "is said to be 'float32' of",
    ),
    "another dtype": (lambda path: path.write_bytes(ARRAY.replace(b"float32", b"float99")), "'float99', which is unkn"),
    "negative": (
        lambda path: path.write_bytes(ARRAY.replace(b"\x91\x04", b"\x91\xff")),
        r"shape of an array is \[-1\]",
    ),
    "deep": (lambda path: path.write_bytes(b"\x81\xa1a" * 99 + b"\x80"), "nested too deeply"),
    "half of the chunks": (
        lambda path: path.write_bytes(
            packed({"a": {"__msgpack_chunked_array__": True, "shape": {"0": 4}, "chunks": {"0": np.zeros(2)}}})
        ),
        "are not all there",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_files_of_flax_are_refused(name: str, flax_folder: Callable[..., Path], tmp_path: Path) -> None:
    damage, message = DAMAGES[name]
    folder = flax_folder()
    damage(folder / "flax_model.msgpack")
    with pytest.raises(ConversionError, match=r"flax_model.msgpack is no complete file of weights that Flax") as caught:
        convert(folder, tmp_path / "out")
    assert caught.match(message)
    assert_nothing_written(tmp_path)


def edited(edit: Callable[[Any], object]) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            edit(file)

    return change


HDF5: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda path: path.write_bytes(b""), "is no complete file of weights that TensorFlow 2 wrote"),
    "cut off": (lambda path: cut(path, -3000), "is no complete file of weights that TensorFlow 2 wrote"),
    "external link": (
        edited(lambda file: file.update({"extra": h5py.ExternalLink("other.h5", "/")})),
        "'extra' is a link to somewhere else, which is not followed",
    ),
    "soft link": (
        edited(lambda file: file.update({"extra": h5py.SoftLink("/shared")})),
        "'extra' is a link to somewhere",
    ),
    "circle": (edited(lambda file: file["shared"].update({"again": file["/"]})), "is in it twice, or too deep"),
    "external numbers": (
        edited(lambda file: file.create_dataset("extra", (4,), "<f4", external=[("/etc/hostname", 0, 16)])),
        "the numbers of 'extra' are in another file, which is not opened",
    ),
    "in chunks": (
        edited(lambda file: file.create_dataset("extra", data=np.ones(4, np.float32), compression="gzip")),
        "the numbers of 'extra' are in chunks",
    ),
    "never written": (
        edited(lambda file: file.create_dataset("extra", (4,), "<f4")),
        "the numbers of 'extra' are not in it",
    ),
    "another byte order": (
        edited(lambda file: file.create_dataset("extra", data=np.ones(4, ">f4"))),
        "'extra' has the dtype >f4, but weights are",
    ),
    "text": (edited(lambda file: file.create_dataset("extra", data=b"text")), "'extra' has the dtype"),
    "unknown": (
        edited(lambda file: file.create_dataset("extra/kernel:0", data=np.ones(4, np.float32))),
        r"extra/kernel:0, of shape \[4\], is a tensor that this T5 does not have",
    ),
    "missing": (
        edited(lambda file: file["decoder"].pop(next(iter(file["decoder"])))),
        "is missing from the weights",
    ),
    "infinite": (
        edited(lambda file: file["shared/shared/shared/weight:0"].write_direct(np.full((64, 32), np.inf, np.float32))),
        "holds infinities or NaNs",
    ),
}


@pytest.mark.parametrize("name", HDF5)
def test_wrong_files_of_tensorflow_2_are_refused(
    name: str, tf2_folder: Callable[..., Path], run: Run, tmp_path: Path
) -> None:
    damage, message = HDF5[name]
    folder = tf2_folder()
    damage(folder / "tf_model.h5")
    with pytest.raises(ConversionError, match=message):
        convert(folder, tmp_path / "out")
    assert run("convert", folder, tmp_path / "out").status == 1
    assert_nothing_written(tmp_path)


def test_two_embeddings_that_differ(tf2_folder: Callable[..., Path]) -> None:
    def add(groups: dict[str, Arrays]) -> None:
        groups["encoder"]["shared/shared/weight:0"] = groups["shared"]["shared/shared/weight:0"] + 1

    with pytest.raises(
        ConversionError, match=r"encoder/shared/shared/weight:0 and .* differ, but both are the embedding"
    ):
        inspect(tf2_folder(add))


def test_an_index_that_leads_elsewhere(flax_folder: Callable[..., Path]) -> None:
    folder = flax_folder()
    (folder / "flax_model.msgpack").rename(folder.parent / "elsewhere")
    index = {"weight_map": {"a": "../elsewhere"}}
    (folder / "flax_model.msgpack.index.json").write_text(json.dumps(index))
    with pytest.raises(ConversionError, match=r"'../elsewhere' is no name of a file in its folder"):
        inspect(folder)


@pytest.mark.parametrize(("package", "extra"), [("msgpack", "flax"), ("h5py", "tf2")])
def test_a_missing_package_is_named(
    package: str,
    extra: str,
    flax_folder: Callable[..., Path],
    tf2_folder: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    run: Run,
) -> None:
    folder = (flax_folder if extra == "flax" else tf2_folder)()
    monkeypatch.setitem(__import__("sys").modules, package, None)
    result = run("inspect", folder)
    assert result.status == 1
    assert f'{package}, which reads it, is not installed: pip install "t5-experimental[{extra}]".' in result.err
    assert "has weights of" in result.err


def test_a_source_that_changes_is_an_error(flax_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = flax_folder()
    with pytest.raises(ConversionError, match="changed while it was read: run the command again"):
        convert(folder, tmp_path / "out", report=lambda _: os.utime(folder / "flax_model.msgpack", ns=(1, 1)))
    assert_nothing_written(tmp_path)


def test_another_source_is_found_out(flax_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = flax_folder()
    convert(folder, tmp_path / "out")
    path = folder / "flax_model.msgpack"
    tree = serialization.msgpack_restore(path.read_bytes())
    path.write_bytes(packed({**tree, "lm_head": nested({"kernel": tree["lm_head"]["kernel"] + 1})}))
    with pytest.raises(ConversionError, match=r"first lm_head.weight, which differs from lm_head/kernel"):
        verify(folder, tmp_path / "out")
