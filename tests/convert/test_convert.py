# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Whole conversions of genuine checkpoints through the command: what is in the folder, what an aborted run leaves."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForSeq2SeqLM, AutoTokenizer, GenerationConfig

import t5_experimental
from t5_experimental import own_folders
from t5_experimental.convert import inspect
from t5_experimental.convert.bundle import reader as tensor_bundle


GOLDEN = (
    "t5.1.0.tiny",
    "t5.1.1.tiny",
    "t5.1.1.tiny-bfloat16",
    "t5.1.1.tiny-legacy",
    "t5.1.1.tiny-biases",
    "t5.1.mixed.tiny",
    "t5.1.n4w10.tiny",
    "t5.1.th.tiny-uneven",
)

Run = Callable[..., Any]


def listing(folder: Path) -> list[str]:
    """Everything below a folder, hidden files too."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def to_torch(array: np.ndarray) -> torch.Tensor:
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy())


@pytest.mark.parametrize("name", GOLDEN)
def test_genuine_checkpoints(
    name: str, reference: Path, run: Run, read_checkpoint: Callable[..., dict[str, np.ndarray]], tmp_path: Path
) -> None:
    source = reference / "golden" / name
    result = run("convert", source, tmp_path / "out")
    assert result.status == 0, result.err
    assert listing(tmp_path)[0] == "out"
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    variables = read_checkpoint(source)
    plan = inspect(source).plan
    used = set()
    for entry in plan.entries:
        mesh = to_torch(variables[entry.source.name])
        # The transforms once more, by hand: output dimensions first, heads merged, mixing matrices as they are.
        if re.search(r"(Self|EncDec)Attention/[qkv](/kernel)?$", entry.source.name):
            mesh = mesh.flatten(1).T
        elif re.search(r"Attention/(o|y/kernel)$", entry.source.name):
            mesh = mesh.flatten(0, -2).T
        elif re.search(r"(wi|wi_0|wi_1|wo|decoder/logits)(/kernel)$|relative_attention_bias$", entry.source.name):
            mesh = mesh.T
        assert torch.equal(tensors[entry.name], mesh), entry.name
        used.add(entry.source.name)
    assert len(tensors) == len(plan.entries)
    assert set(variables) == used | set(plan.drops)
    assert f"tensors:      {len(tensors)} in 1 file(s)" in result.out
    assert "peak memory:" in result.out


@pytest.mark.parametrize("options", [(), ("--encoder-only",), ("--dtype", "bfloat16")])
@pytest.mark.parametrize(
    "name", ["t5.1.0.tiny", "t5.1.1.tiny", "t5.1.th.tiny-uneven", "t5.1.n4w10.tiny", "t5.1.mixed.tiny"]
)
def test_files_are_those_that_transformers_writes(
    name: str, options: tuple[str, ...], reference: Path, run: Run, tmp_path: Path
) -> None:
    """The converter writes them itself, to start without transformers."""
    source = reference / "golden" / name
    assert run("convert", source, tmp_path / "ours", *options).status == 0
    dtype = "bfloat16" if "bfloat16" in options else "source"
    config = inspect(source, dtype=dtype, encoder_only="--encoder-only" in options).config
    config.save_pretrained(tmp_path / "theirs")
    if "--encoder-only" not in options:
        GenerationConfig(decoder_start_token_id=0, eos_token_id=1, pad_token_id=0).save_pretrained(tmp_path / "theirs")
    for path in (tmp_path / "theirs").iterdir():
        assert (tmp_path / "ours" / path.name).read_text() == path.read_text(), path.name
    assert AutoConfig.from_pretrained(tmp_path / "ours").to_dict() == {
        **config.to_dict(),
        "_name_or_path": str(tmp_path / "ours"),
    }


def test_the_folder_is_complete(reference: Path, run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "er" / "out"
    vocabulary = reference.parent / "data" / "restaurants.model"
    result = run("convert", reference / "golden" / "t5.1.th.tiny", folder, "--vocab", vocabulary)
    assert result.status == 0, result.err
    assert {
        "README.md",
        "config.json",
        "configuration_t5_experimental.py",
        "generation_config.json",
        "model.safetensors",
        "modeling_t5_experimental.py",
        "spiece.model",
        "tokenizer.json",
        "tokenizer_config.json",
    } <= set(os.listdir(folder))
    config = AutoConfig.from_pretrained(folder)
    assert isinstance(config, t5_experimental.T5TalkingHeadsConfig)
    assert config.architectures == ["T5TalkingHeadsForConditionalGeneration"]
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float32"
    generation = json.loads((folder / "generation_config.json").read_text())
    assert (generation["decoder_start_token_id"], generation["eos_token_id"], generation["pad_token_id"]) == (0, 1, 0)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer("").input_ids == [1]
    model, report = AutoModelForSeq2SeqLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    assert model.generation_config.decoder_start_token_id == 0
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlicense: apache-2.0\nlibrary_name: transformers\n")
    for text in ("t5.1.th.tiny/model.ckpt-800", "| training step | 800 |", "123,712", "trust_remote_code=True"):
        assert text in card
    assert str(reference) not in card


def test_shards_and_casts(reference: Path, run: Run, tmp_path: Path) -> None:
    source = reference / "golden" / "t5.1.n4w10.tiny"
    assert run("convert", source, tmp_path / "whole").status == 0
    options = ("--dtype", "bfloat16", "--max-shard-size", "200KB", "--family", "t5.1.n4w10")
    assert run("convert", source, tmp_path / "parts", *options).status == 0
    index = json.loads((tmp_path / "parts" / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 2
    tensors = {k: v for file in files for k, v in load_file(tmp_path / "parts" / file).items()}
    assert index["metadata"]["total_size"] == sum(t.numel() * 2 for t in tensors.values())
    whole = load_file(tmp_path / "whole" / "model.safetensors")
    assert set(tensors) == set(whole)
    assert all(torch.equal(tensors[name], whole[name].bfloat16()) for name in whole)
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "parts", dtype="auto")
    assert model.config.dtype == torch.bfloat16
    assert torch.equal(model.shared.weight, tensors["shared.weight"])


def test_kernels_with_an_axis_for_heads_and_slashes(
    golden_copy: Callable[..., Path],
    read_checkpoint: Callable[..., dict[str, np.ndarray]],
    write_checkpoint: Callable[..., Path],
    run: Run,
    tmp_path: Path,
) -> None:
    """A genuine checkpoint renamed to `q/kernel` and split into heads gives the same file."""
    source = golden_copy("t5.1.1.tiny")
    assert run("convert", source, tmp_path / "one").status == 0
    renamed = {}
    for name, array in read_checkpoint(source).items():
        if re.search(r"Attention/[qkv]$", name):
            renamed[name + "/kernel"] = array.reshape(32, 4, 8)
        elif name.endswith("Attention/o"):
            renamed[name + "/kernel"] = array.reshape(4, 8, 32)
        elif "_slot_" not in name:
            renamed[name] = array
    write_checkpoint(source, renamed)
    result = run("convert", source, tmp_path / "two")
    assert result.status == 0, result.err
    one, two = (load_file(tmp_path / part / "model.safetensors") for part in ("one", "two"))
    assert set(one) == set(two)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_moved_folder(golden_copy: Callable[..., Path], run: Run, tmp_path: Path) -> None:
    """What the `checkpoint` file says of the old place does not count, neither as a path nor as the family's name."""
    source = golden_copy("t5.1.1.tiny")
    (source / "checkpoint").write_text('model_checkpoint_path: "gs://bucket/t5.1.1.lm100k.base/model.ckpt-800"\n')
    result = run("convert", source, tmp_path / "out")
    assert result.status == 0, result.err
    assert AutoConfig.from_pretrained(tmp_path / "out").model_type == "t5_v1_1"
    moved = source.rename(source.parent / "t5.1.1.lm100k.base")
    assert run("convert", moved, tmp_path / "moved").status == 0
    assert AutoConfig.from_pretrained(tmp_path / "moved").model_type == "t5_lm_adapted"
    assert run("convert", moved, tmp_path / "said", "--family", "t5.1.1").status == 0
    assert AutoConfig.from_pretrained(tmp_path / "said").model_type == "t5_v1_1"


def test_inspect(reference: Path, run: Run, tmp_path: Path) -> None:
    result = run("inspect", reference / "golden" / "t5.1.n4w10.tiny")
    assert result.status == 0
    for text in ("t5.1.n4w10 (T5FirstLayersNarrowConfig)", "300", "371,328 in 330 tensors", "float32 (330 tensors)"):
        assert text in result.out
    assert re.search(
        r"decoder\.block\.4\.layer\.1\.EncDecAttention\.q\.weight +32x32 +float32 +"
        r"decoder/block_000/layer_013/EncDecAttention/q +transpose",
        result.out,
    )
    assert "left out: 584 x optimizer slot" in result.out
    assert "left out: 1 x training step" in result.out


def test_inspect_shows_the_dtype_that_convert_would_write(reference: Path, run: Run, tmp_path: Path) -> None:
    result = run("inspect", reference / "golden" / "t5.1.1.tiny", "--dtype", "bfloat16")
    assert "Dtype:      float32 (52 tensors), written as bfloat16\n" in result.out
    assert "  dtype: bfloat16\n" in result.out
    assert re.search(r"encoder\.final_layer_norm\.weight +32 +bfloat16 +encoder/rms_norm/scale", result.out)
    assert "Dtype:      float32 (52 tensors)\n" in run("inspect", reference / "golden" / "t5.1.1.tiny").out


def test_overwrite_replaces_at_the_end(
    reference: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    assert run("convert", reference / "golden" / "t5.1.1.tiny", output).status == 0
    before = listing(tmp_path)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr("t5_experimental.convert.output.safetensors_writer.write_tensors", fail)
        result = run("convert", reference / "golden" / "t5.1.th.tiny", output, "--overwrite")
    assert result.status == 1
    assert re.search(r"error: the disk of .*out is full: .*nothing was left behind", result.err)
    assert listing(tmp_path) == before
    assert run("convert", reference / "golden" / "t5.1.th.tiny", output, "--overwrite").status == 0
    assert AutoConfig.from_pretrained(output).model_type == "t5_talking_heads"
    assert os.listdir(tmp_path) == ["out"]


def test_an_old_folder_comes_back_when_the_new_one_cannot_take_its_name(
    reference: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    assert run("convert", reference / "golden" / "t5.1.1.tiny", output).status == 0
    before = listing(tmp_path)
    rename = own_folders.rename

    def fail_for_the_new_one(folder: Path, name: Path) -> None:
        if folder.name == ".out.partial":
            raise PermissionError(13, "Permission denied")
        rename(folder, name)

    monkeypatch.setattr(own_folders, "rename", fail_for_the_new_one)
    result = run("convert", reference / "golden" / "t5.1.th.tiny", output, "--overwrite")
    assert result.status == 1
    assert listing(tmp_path) == before


@pytest.mark.parametrize("how", ["interrupt", "terminate"])
def test_an_interrupted_run_leaves_nothing(
    how: str, reference: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = tensor_bundle.TensorBundleReader.blocks
    seen: list[list[str]] = []

    def stop_in_the_middle(self: Any, name: str, max_bytes: int, *more: Any) -> Iterator[np.ndarray]:
        if name == "encoder/rms_norm/scale":
            seen.append(listing(tmp_path))
            if how == "interrupt":
                raise KeyboardInterrupt
            os.kill(os.getpid(), signal.SIGTERM)
        return read(self, name, max_bytes, *more)

    monkeypatch.setattr(tensor_bundle.TensorBundleReader, "blocks", stop_in_the_middle)
    handler = signal.getsignal(signal.SIGTERM)
    result = run("convert", reference / "golden" / "t5.1.1.tiny", tmp_path / "new" / "out")
    assert result.status == 130
    assert "interrupted" in result.err
    # While it ran, nothing had the output's name; afterwards there is nothing at all.
    assert "new/.out.partial/model.safetensors.unfinished" in seen[0]
    assert not any(path == "new/out" for path in seen[0])
    assert listing(tmp_path) == []
    assert signal.getsignal(signal.SIGTERM) == handler


def test_an_output_that_appears_meanwhile_is_kept(
    reference: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from t5_experimental.convert.output import safetensors_writer as writer

    write = writer.write_tensors

    def and_somebody_else_too(*arguments: Any) -> dict[str, int]:
        checksums = write(*arguments)
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "theirs").touch()
        return checksums

    monkeypatch.setattr(writer, "write_tensors", and_somebody_else_too)
    result = run("convert", reference / "golden" / "t5.1.1.tiny", tmp_path / "out")
    assert result.status == 1
    assert "out exists: choose another folder" in result.err
    assert listing(tmp_path) == ["out", "out/theirs"]


def test_python_entry_points(reference: Path, tmp_path: Path) -> None:
    from t5_experimental.convert import convert

    summary = convert(reference / "golden" / "t5.1.1.tiny", tmp_path / "out", dtype="float16")
    assert (summary.tensors, summary.parameters, summary.nbytes) == (52, 123520, 247040)
    assert summary.output == tmp_path / "out"
    assert summary.seconds > 0
    assert summary.peak_memory > 2**20


def test_output_that_is_not_read_to_its_end() -> None:
    """As in `t5-experimental presets | head -1`."""
    command = [sys.executable, "-m", "t5_experimental.convert", "presets"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 141


LOAD_CONVERTED = """
import torch, transformers
from safetensors.torch import load_file, save_file
root, *folders = sys.argv[1:]
for folder in folders:
    name = folder.rpartition("/")[2]
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder, trust_remote_code=True)
    with torch.no_grad():
        save_file({"logits": model(**load_file(f"{root}/{name}.inputs")).logits}, f"{root}/{name}.outputs")
"""


def test_a_converted_folder_is_exact_without_the_package(
    converted: Callable[[str], Path],
    golden: Callable[[str], dict[str, np.ndarray]],
    run_without_package: Callable[..., str],
    tmp_path: Path,
) -> None:
    expected = {name: golden(name) for name in ("t5.1.1.tiny", "t5.1.th.tiny", "t5.1.n4w10.tiny")}
    for name, arrays in expected.items():
        inputs = torch.from_numpy(arrays["inputs"]).long()
        batch = {"input_ids": inputs, "attention_mask": (inputs > 0).long()}
        save_file({**batch, "labels": torch.from_numpy(arrays["targets"]).long()}, tmp_path / f"{name}.inputs")
    run_without_package(LOAD_CONVERTED, tmp_path, *map(converted, expected))
    for name, arrays in expected.items():
        logits = load_file(tmp_path / f"{name}.outputs")["logits"].numpy()
        assert np.abs(logits - arrays["logits"])[arrays["targets"] > 0].max() < 1e-5, name
