# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Verification of a converted folder, its record, and weights that are no numbers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google_crc32c
import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from t5_experimental.convert import pipeline
from t5_experimental.convert.output.blocks import is_finite


Run = Callable[..., Any]
OPTIONS = {
    "as it is": (),
    "cast": ("--dtype", "bfloat16"),
    "encoder": ("--encoder-only",),
    "stock": ("--format", "stock-t5"),
    "optimizer": ("--with-optimizer",),
    "shards": ("--max-shard-size", "100KB"),
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_good_folder_verifies(options: tuple[str, ...], reference: Path, run: Run, tmp_path: Path) -> None:
    source, output = reference / "golden" / "t5.1.1.tiny", tmp_path / "out"
    result = run("convert", source, output, "--verify", *options)
    assert result.status == 0, result.err
    count = sum(len(load_file(path)) for path in output.glob("*.safetensors"))
    kind = "equal to the source as cast" if "--dtype" in options else "equal bit for bit"
    assert f"{kind}:" in result.out
    assert f"{count:,} tensors" in result.out
    assert run("verify", source, output).status == 0


def test_the_record_says_where_everything_is_from(reference: Path, run: Run, tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert run("convert", reference / "golden" / "t5.1.th.tiny", output, "--max-shard-size", "100KB").status == 0
    record = json.loads((output / "conversion.json").read_text())
    assert (record["source"], record["step"]) == ("t5.1.th.tiny/model.ckpt-800", 800)
    assert record["options"]["family"] == "t5.1.th"
    tensors = {path.name: load_file(path) for path in output.glob("*.safetensors")}
    assert record["tensors"].keys() == {name for file in tensors.values() for name in file}
    for name, row in record["tensors"].items():
        tensor = tensors[row["file"]][name]
        assert list(tensor.shape) == row["shape"]
        assert row["crc32c"] == f"{google_crc32c.value(tensor.numpy().tobytes()):08x}"
    assert record["tensors"]["encoder.block.0.layer.0.SelfAttention.o.weight"] | {"file": "", "crc32c": ""} == {
        "file": "",
        "shape": [32, 32],
        "dtype": "float32",
        "crc32c": "",
        "source": "encoder/block_000/layer_000/TalkingHeadsSelfAttention/y/kernel",
        "source_shape": [4, 8, 32],
        "source_dtype": "float32",
        "transform": "merge heads, transpose",
    }


def change_a_number(tensors: dict[str, torch.Tensor]) -> None:
    weight = tensors["decoder.block.1.layer.2.DenseReluDense.wo.weight"]
    weight[3, 4] = torch.nextafter(weight[3, 4], torch.tensor(9.0))


def forget_a_transpose(tensors: dict[str, torch.Tensor]) -> None:
    name = "encoder.block.0.layer.0.SelfAttention.k.weight"
    tensors[name] = tensors[name].t().contiguous()


def drop(tensors: dict[str, torch.Tensor]) -> None:
    del tensors["lm_head.weight"]


def add(tensors: dict[str, torch.Tensor]) -> None:
    tensors["extra"] = torch.zeros(1)


def reshape(tensors: dict[str, torch.Tensor]) -> None:
    tensors["shared.weight"] = tensors["shared.weight"].view(-1, 16)


FAULTS = {
    change_a_number: "1 of 52 tensors of .*out are wrong, first decoder.block.1.layer.2.DenseReluDense.wo.weight, "
    "which differs from decoder/block_001/layer_002/DenseReluDense/wo/kernel",
    forget_a_transpose: "first encoder.block.0.layer.0.SelfAttention.k.weight, which differs from",
    drop: "first lm_head.weight, which is missing",
    add: "first extra, which is not in the plan",
    reshape: r"first shared.weight, which is float32 \[2304, 16\], not float32 \[1152, 32\]",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_spoiled_folder_does_not_verify(
    fault: Callable[[dict[str, torch.Tensor]], None], reference: Path, run: Run, tmp_path: Path
) -> None:
    source, output = reference / "golden" / "t5.1.1.tiny", tmp_path / "out"
    assert run("convert", source, output).status == 0
    tensors = load_file(output / "model.safetensors")
    fault(tensors)
    save_file(tensors, output / "model.safetensors")
    result = run("verify", source, output)
    assert result.status == 1
    assert_sentence(result.err, FAULTS[fault])


def assert_sentence(printed: str, pattern: str) -> None:
    import re

    lines = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, printed
    assert re.search(pattern, lines[0]), printed


def test_what_is_verified_before_the_rename_is_never_seen_when_wrong(
    reference: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "compare", lambda *_: {"shared.weight": "differs from shared/embedding"})
    result = run("convert", reference / "golden" / "t5.1.1.tiny", tmp_path / "out", "--verify")
    assert result.status == 1
    assert_sentence(result.err, "1 of 52 tensors of .* are wrong, first shared.weight")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_safetensors_refuses_does_not_verify(reference: Path, run: Run, tmp_path: Path) -> None:
    source, output = reference / "golden" / "t5.1.1.tiny", tmp_path / "out"
    assert run("convert", source, output).status == 0
    path = output / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data + b"abc")
    assert_sentence(run("verify", source, output).err, "model.safetensors is no complete safetensors file")
    length = int.from_bytes(data[:8], "little")
    for damage in (lambda row: row.pop("data_offsets"), lambda row: row.update(data_offsets="ab")):
        header = json.loads(data[8 : 8 + length])
        damage(header["shared.weight"])
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
        result = run("verify", source, output)
        assert result.status == 1
        assert_sentence(result.err, "model.safetensors is no complete safetensors file")


def test_another_checkpoint_is_not_the_source(reference: Path, run: Run, tmp_path: Path) -> None:
    assert run("convert", reference / "golden" / "t5.1.1.tiny", tmp_path / "out").status == 0
    result = run("verify", reference / "golden" / "t5.1.1.tiny-packed", tmp_path / "out")
    assert result.status == 1
    assert_sentence(result.err, "52 of 52 tensors")


@pytest.mark.parametrize(
    ("record", "message"),
    [(None, "has no conversion.json"), ("{", "cannot be read"), ('{"options": {"colour": 1}}', "another version")],
)
def test_folders_without_a_usable_record(
    record: str | None, message: str, reference: Path, run: Run, tmp_path: Path
) -> None:
    if record is not None:
        (tmp_path / "conversion.json").write_text(record)
    result = run("verify", reference / "golden" / "t5.1.1.tiny", tmp_path)
    assert result.status == 1
    assert_sentence(result.err, message)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_no_numbers(
    value: float,
    reference: Path,
    read_checkpoint: Callable[[Path], dict[str, np.ndarray]],
    memory_reader: type,
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = reference / "golden" / "t5.1.1.tiny"
    arrays = read_checkpoint(source)
    name = "decoder/block_000/layer_001/EncDecAttention/v"
    arrays[name] = arrays[name].copy()
    arrays[name][31, 0] = value
    monkeypatch.setattr(pipeline, "open_reader", lambda _: memory_reader(arrays))
    result = run("convert", source, tmp_path / "out")
    assert result.status == 1
    assert_sentence(result.err, f"{name} holds infinities or NaNs")
    assert list(tmp_path.iterdir()) == []
    assert run("convert", source, tmp_path / "out", "--allow-nonfinite", "--verify").status == 0
    converted = load_file(tmp_path / "out" / "model.safetensors")
    weight = converted["decoder.block.0.layer.1.EncDecAttention.v.weight"].numpy()
    np.testing.assert_array_equal(weight, arrays[name].T)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16])
def test_is_finite(dtype: Any) -> None:
    for value in (0, -1, float(ml_dtypes.finfo(dtype).max), float(ml_dtypes.finfo(dtype).smallest_subnormal)):
        assert is_finite(np.array([[1, value]], dtype))
    for value in (np.nan, np.inf, -np.inf, -np.nan):
        assert not is_finite(np.array([[1, value]], dtype))
    assert is_finite(np.zeros((0, 3), dtype))
