# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Bad input, through the command: one sentence on stderr, exit status 1, and nothing written."""

import builtins
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from t5_experimental.convert import pipeline
from t5_experimental.convert.cli import main


NAME = "t5.1.1.tiny"
LAYER = "encoder/block_001/layer_001"

Arrays = dict[str, np.ndarray]


def remove(pattern: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        for path in folder.glob(pattern):
            path.unlink()

    return spoil


def empty_index(folder: Path) -> None:
    (folder / "model.ckpt-800.index").write_bytes(b"not an index at all")


def cut_data(folder: Path) -> None:
    path = folder / "model.ckpt-800.data-00000-of-00001"
    path.write_bytes(path.read_bytes()[:1000])


def flip_data(folder: Path) -> None:
    path = folder / "model.ckpt-800.data-00000-of-00001"
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 0x40
    path.write_bytes(data)


def another_of_two_shards(folder: Path) -> None:
    (folder / "model.ckpt-800.data-00000-of-00001").rename(folder / "model.ckpt-800.data-00000-of-00002")


def gin(*lines: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        with (folder / "operative_config.gin").open("a") as file:
            file.write("\n".join(["", *lines, ""]))

    return spoil


def gin_is(text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "operative_config.gin").write_text(text) and None


BROKEN_FILES = {
    "nothing in it": (remove("*"), "holds no checkpoint"),
    "no index": (remove("*.index"), "names model.ckpt-800, whose .index is not in the folder"),
    "no data": (remove("*.data-*"), "has an index but no data"),
    "missing shard": (another_of_two_shards, "1 of 2 data files are missing from .*model.ckpt-800.data-00001-of-00002"),
    "index of something else": (empty_index, "model.ckpt-800.index is not a readable checkpoint"),
    "data cut off": (cut_data, "is cut off: it has 1000 bytes, but .* ends at byte"),
    "data damaged": (flip_data, "fails its checksum: bytes .* are not what was written"),
    "gin cut off": (gin_is("a.b = [\n"), "operative_config.gin is cut off"),
    "gin is empty": (gin_is(""), "does not set encoder/make_layer_stack.layers"),
    "gin of another feature": (gin("encoder/SelfAttention.shared_kv = True"), "SelfAttention.shared_kv = True"),
    "gin says more layers": (gin("num_layers = 3"), "gives the encoder 3 layers .* has variables of 2"),
    "gin says fewer layers": (gin("num_layers = 1"), "gives the encoder 1 layers .* has variables of 2"),
    "gin says another width": (
        gin("d_ff = 128"),
        r"\[32, 64\], but \[32, 128\] is expected \(d_ff\): operative_config",
    ),
    "gin says another d_model": (
        gin("d_model = 16"),
        r"shared/embedding has .*\(d_model\): operative_config.gin contra",
    ),
    "gin says other heads": (
        gin("num_heads = 8"),
        r"\(num_heads \* d_kv\): operative_config.gin contradicts the tensors",
    ),
    "gin says other buckets": (
        gin(*(f"{stack}/SelfAttention.relative_attention_num_buckets = 16" for stack in ("encoder", "decoder"))),
        r"relative_attention_bias has .*\(relative_attention_num_buckets\): operative_config.gin contradicts",
    ),
    "gin says a shared classifier": (
        gin("decoder/Unitransformer.shared_embedding_and_softmax_weights = True"),
        "contradicts the tensors: .*shared_embedding_and_softmax_weights = True, but .* has decoder/logits/kernel",
    ),
    "gin says no gate": (
        gin(*(f"{stack}/DenseReluDense.activation = 'relu'" for stack in ("encoder", "decoder"))),
        "contradicts the tensors: its DenseReluDense.activation is relu",
    ),
    "gin says talking heads": (
        gin(
            "encoder/make_layer_stack.layers = [@x.TalkingHeadsSelfAttention, @x.DenseReluDense]",
            "encoder/TalkingHeadsSelfAttention.key_heads_dims = [('key_heads', 4)]",
            "encoder/TalkingHeadsSelfAttention.value_heads_dims = [('value_heads', 4)]",
        ),
        "contradicts the tensors: it says talking_heads for layer 0 of the encoder",
    ),
}


def assert_refused(result: SimpleNamespace, message: str) -> None:
    """One sentence that says it, and the exit status of a failure."""
    lines = [line for line in result.err.splitlines() if not line.startswith(("tensors:", "\r"))]
    sentence = lines[-1].rpartition("\r")[2]
    assert sentence.startswith("error: "), result.err
    assert sentence.endswith(".")
    assert re.search(message, sentence), sentence
    assert "Traceback" not in result.err
    assert result.status == 1


@pytest.mark.parametrize("case", BROKEN_FILES)
def test_broken_files(case: str, golden_copy: Callable[..., Path], run: Callable[..., Any], tmp_path: Path) -> None:
    spoil, message = BROKEN_FILES[case]
    source = golden_copy(NAME)
    spoil(source)
    assert_refused(run("convert", source, tmp_path / "out" / "model"), message)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def renamed(old: str, new: str) -> Callable[[Arrays], None]:
    def spoil(arrays: Arrays) -> None:
        arrays[new] = arrays.pop(old)

    return spoil


def changed(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Arrays], None]:
    def spoil(arrays: Arrays) -> None:
        arrays[name] = change(arrays[name])

    return spoil


def added(name: str, *shape: int) -> Callable[[Arrays], None]:
    def spoil(arrays: Arrays) -> None:
        arrays[name] = np.zeros(shape, np.float32)

    return spoil


def removed(name: str) -> Callable[[Arrays], None]:
    def spoil(arrays: Arrays) -> None:
        del arrays[name]

    return spoil


BROKEN_VARIABLES = {
    "too many": (
        added("decoder/mystery/kernel", 3, 2),
        r"decoder/mystery/kernel, of shape \[3, 2\], is a variable that no rule",
    ),
    "a slot without variable": (added("mystery_slot_v"), "mystery_slot_v"),
    "another bias table": (
        added("encoder/block_001/layer_000/SelfAttention/relative_attention_bias", 4, 32),
        "encoder/block_001/layer_000/SelfAttention/relative_attention_bias is a variable too many",
    ),
    "too few": (removed(f"{LAYER}/DenseReluDense/wo/kernel"), f"{LAYER}/DenseReluDense/wo/kernel is missing"),
    "no embedding": (removed("shared/embedding"), "shared/embedding is missing"),
    "no query": (
        removed("decoder/block_001/layer_000/SelfAttention/q"),
        "decoder/block_001/layer_000/SelfAttention/q is missing",
    ),
    "no final norm": (removed("decoder/rms_norm/scale"), "decoder/rms_norm/scale is missing"),
    "wrong shape": (
        changed(f"{LAYER}/DenseReluDense/wo/kernel", lambda a: a[:48]),
        rf"{LAYER}/DenseReluDense/wo/kernel has the shape \[48, 32\], but \[64, 32\] is expected \(d_ff\)",
    ),
    "turned": (
        changed(f"{LAYER}/DenseReluDense/wo/kernel", lambda a: a.T.copy()),
        r"has the shape \[32, 64\], but \[64, 32\] is expected \(d_ff, d_model\)",
    ),
    "wrong number of axes": (
        changed("decoder/rms_norm/scale", lambda a: a[None]),
        r"has the shape \[1, 32\], but \[32\]",
    ),
    "integers": (
        changed("decoder/rms_norm/scale", lambda a: a.astype(np.int32)),
        "decoder/rms_norm/scale has the dtype",
    ),
    "twice": (added("decoder/final_layer_norm/scale"), "mixes two models"),
    "decoder only": (
        lambda arrays: [arrays.pop(n) for n in list(arrays) if n.startswith("encoder/block")] and None,
        "encoder",
    ),
}


@pytest.mark.parametrize("with_gin", [True, False], ids=["gin", "no-gin"])
@pytest.mark.parametrize("case", BROKEN_VARIABLES)
def test_broken_variables(
    case: str,
    with_gin: bool,
    golden_copy: Callable[..., Path],
    read_checkpoint: Callable[..., Arrays],
    write_checkpoint: Callable[..., Path],
    run: Callable[..., Any],
    tmp_path: Path,
) -> None:
    spoil, message = BROKEN_VARIABLES[case]
    source = golden_copy(NAME, gin=with_gin)
    arrays = read_checkpoint(source)
    spoil(arrays)
    write_checkpoint(source, arrays)
    assert_refused(run("convert", source, tmp_path / "out"), message)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    assert_refused(run("inspect", source), message)


@pytest.mark.parametrize("source", ["nothing", "nothing/model.ckpt-1"])
def test_no_such_source(source: str, run: Callable[..., Any], tmp_path: Path) -> None:
    assert_refused(run("convert", tmp_path / source, tmp_path / "out"), "does not exist")
    assert list(tmp_path.iterdir()) == []


def test_output_that_exists(reference: Path, run: Callable[..., Any], tmp_path: Path) -> None:
    source = reference / "golden" / NAME
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("mine")
    for name in ("folder", "file"):
        assert_refused(run("convert", source, tmp_path / name), f"{name} exists: .*--overwrite")
    # Replacing is for folders that a conversion wrote.
    (tmp_path / "folder" / "thesis.tex").write_text("mine")
    for name in ("folder", "file"):
        result = run("convert", source, tmp_path / name, "--overwrite")
        assert_refused(result, f"{name} is not a folder that was converted and nothing else")
    assert (tmp_path / "folder" / "thesis.tex").read_text() == (tmp_path / "file").read_text() == "mine"


def test_output_that_is_the_source(golden_copy: Callable[..., Path], run: Callable[..., Any]) -> None:
    source = golden_copy(NAME)
    for output in (source, source.parent):
        assert_refused(run("convert", source, output, "--overwrite"), "holds the checkpoint itself")
    assert (source / "model.ckpt-800.index").is_file()


def test_output_below_a_file(reference: Path, run: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert_refused(run("convert", reference / "golden" / NAME, tmp_path / "file" / "out"), "cannot be written")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    "words",
    [
        "inspect {long}",
        "convert {long} {out}",
        "convert {source} {out} --vocab {long}",
        "export {long} {out}",
        "export-onnx {long} {out}",
        "export-gguf {long} {out}",
        "verify {long} {out}",
        "push {long} some/one",
        "generate {long}",
        "generate {source} --prompt {long}",
    ],
)
def test_names_that_are_too_long(words: str, reference: Path, run: Callable[..., Any], tmp_path: Path) -> None:
    names = {"source": reference / "golden" / NAME, "out": tmp_path / "out", "long": "x" * 3000}
    result = run(*words.format(**names).split())
    assert (result.status, result.out) == (1, "")
    assert re.fullmatch(r"error: [^\n]{10,3000}: [a-z][^\n]+\.\n", result.err), result.err
    assert list(tmp_path.iterdir()) == []


def test_vocabulary(reference: Path, run: Callable[..., Any], tmp_path: Path) -> None:
    source, output = reference / "golden" / "t5.1.0.tiny", tmp_path / "out"
    assert_refused(run("convert", source, output, "--vocab", tmp_path / "none.model"), "none.model does not exist")
    too_large = reference.parent / "data" / "restaurants.model"
    result = run("convert", source, output, "--vocab", too_large)
    assert_refused(result, "restaurants.model does not fit: .* but the embedding has 256")
    assert_refused(run("convert", source, output, "--vocab", source / "golden.npz"), "is not a sentencepiece model")
    assert list(tmp_path.iterdir()) == []


def test_too_little_disk(
    reference: Path, run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=10**6))
    result = run("convert", reference / "golden" / NAME, tmp_path / "out")
    assert_refused(result, r"0.02 GB are needed for out, but the disk of .* has 0.00 GB free")
    assert list(tmp_path.iterdir()) == []


def test_tensorflow_is_not_needed(
    reference: Path, run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = builtins.__import__

    def without(name: str, *arguments: Any, **keywords: Any) -> Any:
        if name.split(".")[0] == "tensorflow":
            raise ModuleNotFoundError("No module named 'tensorflow'")
        return original(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without)
    assert run("convert", reference / "golden" / NAME, tmp_path / "out").status == 0


def test_numbers_too_large_for_float16(
    memory_reader: type,
    golden_copy: Callable[..., Path],
    read_checkpoint: Callable[..., Arrays],
    run: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = golden_copy(NAME)
    arrays = read_checkpoint(source)
    arrays[f"{LAYER}/DenseReluDense/wo/kernel"] = arrays[f"{LAYER}/DenseReluDense/wo/kernel"] * 1e6
    monkeypatch.setattr(pipeline, "open_reader", lambda _: memory_reader(arrays))
    result = run("convert", source, tmp_path / "out", "--dtype", "float16")
    assert_refused(result, f"{LAYER}/DenseReluDense/wo/kernel holds .*, which does not fit float16")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    assert run("convert", source, tmp_path / "out", "--dtype", "bfloat16").status == 0


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["convert"],
        ["convert", "source"],
        ["inspect", "source", "output"],
        ["convert", "source", "output", "--family", "t5.1.2"],
        ["convert", "source", "output", "--dtype", "int8"],
        ["convert", "source", "output", "--max-shard-size", "many"],
        ["convert", "source", "output", "--d-kv", "0"],
    ],
)
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert "usage: t5-experimental" in capsys.readouterr().err


@pytest.mark.parametrize("family", ["t5.1.th", "t5.1.n4w10"])
def test_a_family_that_contradicts(family: str, reference: Path, run: Callable[..., Any], tmp_path: Path) -> None:
    result = run("convert", reference / "golden" / NAME, tmp_path / "out", "--family", family)
    assert_refused(result, f"--family {family} contradicts the checkpoint")
    assert list(tmp_path.iterdir()) == []


def test_inspect_lists_every_unknown_variable(
    reference: Path,
    read_checkpoint: Callable[[Path], dict[str, np.ndarray]],
    write_checkpoint: Callable[..., Path],
    run: Callable[..., SimpleNamespace],
    tmp_path: Path,
) -> None:
    arrays = read_checkpoint(reference / "golden" / "t5.1.1.tiny")
    arrays |= {"decoder/mystery/kernel": np.zeros((3, 2), np.float32), "encoder/riddle": np.zeros(5, np.float32)}
    result = run("inspect", write_checkpoint(tmp_path / "source", arrays))
    assert result.status == 1
    assert result.out == "Unknown variables\n  decoder/mystery/kernel float32 [3, 2]\n  encoder/riddle float32 [5]\n"
    assert "decoder/mystery/kernel (and 1 more), of shape [3, 2]," in result.err
