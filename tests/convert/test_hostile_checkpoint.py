# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints that were made to do harm, through the command: one sentence, nothing written, no needless reads."""

import os
import re
import socket
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from t5_experimental.convert import pipeline
from t5_experimental.convert.bundle.reader import TensorBundleReader
from t5_experimental.convert.errors import ConversionError
from t5_experimental.convert.export import export
from t5_experimental.convert.source.checkpoint import resolve


NAME = "t5.1.1.tiny"
QUERY = "encoder/block_001/layer_000/SelfAttention/q"

Arrays = dict[str, np.ndarray]
Run = Callable[..., SimpleNamespace]


@pytest.fixture
def arrays(reference: Path) -> Arrays:
    """Variables of a genuine checkpoint, to be spoiled."""
    reader = TensorBundleReader(reference / "golden" / NAME / "model.ckpt-800")
    return {name: reader.read(name) for name in reader.variables}


@pytest.fixture
def refusal(
    memory_reader: type, golden_copy: Callable[..., Path], run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """`refusal(arrays, gin=False)`: the sentence that these variables are refused with."""

    def refuse(arrays: Arrays, gin: bool = False) -> str:
        source = golden_copy(NAME, gin=gin)
        reader = memory_reader(arrays)
        monkeypatch.setattr(pipeline, "open_reader", lambda _: reader)
        result = run("convert", source, tmp_path / "out")
        assert result.status == 1
        assert result.err.startswith("error: ")
        assert result.err.removesuffix("\n").isprintable()
        assert len(result.err) < 2500
        assert [path.name for path in tmp_path.iterdir()] == ["source"]
        assert reader.reads == []
        return str(result.err)

    return refuse


def renamed(arrays: Arrays, old: str, new: str) -> Arrays:
    return {name.replace(old, new): array for name, array in arrays.items()}


NAMES = {
    "thirty nines": ("block_001", "block_" + "9" * 30, "no rule is for"),
    "digits beyond Python's limit": ("block_001", "block_" + "9" * 5000, "no rule is for"),
    "a number too many zeros": ("block_001", "block_0001", "no rule is for"),
    "digits of another script": ("block_001", "block_00\u0661", "no rule is for"),
    "a million layers": ("block_001", "block_999999", "block_001/layer_000/rms_norm/scale is missing .* 999999"),
    "a million sublayers": ("block_001/layer_000", "block_001/layer_999999", "."),
    "a long name": ("block_001", "x" * 5000, "no rule is for"),
    "a name that steers the terminal": (QUERY, "\x1b[2J\x07\u202e", r"\\x1b\[2J\\x07\\u202e \(and 2 more\), of shape"),
}  # fmt: skip


@pytest.mark.parametrize("gin", [False, True], ids=["no-gin", "gin"])
@pytest.mark.parametrize("case", NAMES)
def test_names(case: str, gin: bool, arrays: Arrays, refusal: Callable[..., str]) -> None:
    old, new, message = NAMES[case]
    sentence = refusal(renamed(arrays, old, new), gin)
    if not (gin and case == "a million layers"):  # then the gin file's number of layers is in the way already
        assert re.search(message, sentence), sentence


def test_two_names_of_one_parameter(arrays: Arrays, refusal: Callable[..., str]) -> None:
    arrays[QUERY + "/kernel"] = arrays[QUERY]
    assert f"{QUERY} and {QUERY}/kernel are both encoder.block.1.layer.0.SelfAttention.q.weight" in refusal(arrays)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (np.broadcast_to(np.int64(0), (3 * 2**27,)), r"global_step is int64 of shape \[402653184\], but"),
        (np.zeros((), np.float32), r"global_step is float32 of shape \[\], but"),
        (np.zeros((), np.bool_), "global_step is bool"),
        (np.zeros((2,), np.int64), r"of shape \[2\]"),
        (np.zeros((0,), np.int64), r"of shape \[0\]"),
    ],
    ids=str,
)
def test_steps_that_are_none(step: np.ndarray, message: str, arrays: Arrays, refusal: Callable[..., str]) -> None:
    arrays["global_step"] = step
    assert re.search(message, refusal(arrays))


@pytest.mark.parametrize("shape", [(), (1,)])
def test_a_step_is_one_integer(
    shape: tuple[int, ...], arrays: Arrays, memory_reader: type, reference: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "open_reader", lambda _: memory_reader(arrays))
    arrays["global_step"] = np.full(shape, 12, np.int32)
    assert pipeline.inspect(reference / "golden" / NAME).step == 12
    arrays["global_step"] = np.full(shape, -12, np.int32)
    with pytest.raises(ConversionError, match="global_step is -12: no training step is negative"):
        pipeline.inspect(reference / "golden" / NAME)


def test_two_kinds_of_attention_in_one_layer(arrays: Arrays, refusal: Callable[..., str]) -> None:
    prefix = "encoder/block_000/layer_000/TalkingHeadsSelfAttention"
    arrays |= {f"{prefix}/{name}/kernel": np.zeros((4, 4), np.float32) for name in ("logits", "weights")}
    message = "layer 0 of the encoder has variables of talking heads and of plain ones"
    assert message in refusal(arrays)


BIAS = "SelfAttention/relative_attention_bias"

SHAPES = {
    "embedding of no rows": ("shared/embedding", (0, 32), "holds no number"),
    "embedding of one row": ("shared/embedding", (1, 32), "one row"),
    "embedding that is a number": ("shared/embedding", (), r"shared/embedding has the shape \[\]"),
    "query of no columns": (QUERY, (32, 0), "holds no number"),
    "bias of no heads": (f"encoder/block_000/layer_000/{BIAS}", (0, 32), "holds no number"),
    "bias of more heads than columns": (f"encoder/block_000/layer_000/{BIAS}", (999, 32), "999 heads"),
    "bias of many axes": (f"encoder/block_000/layer_000/{BIAS}", (1,) * 32, "should have the axes"),
}


@pytest.mark.parametrize("gin", [False, True], ids=["no-gin", "gin"])
@pytest.mark.parametrize("case", SHAPES)
def test_shapes(case: str, gin: bool, arrays: Arrays, refusal: Callable[..., str]) -> None:
    name, shape, message = SHAPES[case]
    arrays[name] = np.zeros(shape, np.float32)
    sentence = refusal(arrays, gin)
    assert not gin or name in sentence
    assert gin or re.search(message, sentence), sentence


@pytest.mark.parametrize("buckets", [3, 256, 10**6])
def test_buckets_that_no_model_has(buckets: int, arrays: Arrays, refusal: Callable[..., str]) -> None:
    for name in [name for name in arrays if name.endswith(BIAS)]:
        arrays[name] = np.broadcast_to(np.float32(0), (4, buckets))
    assert f"the bias tables have {buckets} buckets: our models can have 4 to 255" in refusal(arrays)


@pytest.mark.parametrize("dtype", ["int32", "bool", "complex64"])
def test_weights_of_another_kind(dtype: str, arrays: Arrays, refusal: Callable[..., str]) -> None:
    """All of them, so that this is what the configuration would state."""
    assert f"has the dtype {dtype}" in refusal({name: array.astype(dtype) for name, array in arrays.items()})


@pytest.mark.parametrize(
    "options",
    [
        *({"family": "t5.1.2"}, {"family": None}, {"family": ["t5.1.1"]}, {"dtype": "int8"}, {"dtype": 32}),
        *({"max_shard_size": 0}, {"max_shard_size": "5GB"}, {"d_kv": 0}, {"d_kv": -8}, {"d_kv": "8"}, {"d_kv": True}),
        *({"feed_forward_proj": 3}, {"encoder_only": "yes"}, {"output_format": "onnx"}, {"optimizer": None}),
    ],
    ids=str,
)
def test_options_that_are_none(options: dict[str, Any], reference: Path) -> None:
    name, value = next(iter(options.items()))
    with pytest.raises(ConversionError, match=f"the option {name} is {re.escape(repr(value))}: it must be"):
        pipeline.inspect(reference / "golden" / NAME, **options)


def folder(path: Path) -> None:
    path.mkdir()


def fifo(path: Path) -> None:
    os.mkfifo(path)


def bound_socket(path: Path) -> None:
    # Its address may have 107 bytes only.
    before = Path.cwd()
    os.chdir(path.parent)
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(before)


def broken_link(path: Path) -> None:
    path.symlink_to("nowhere")


def circle(path: Path) -> None:
    path.symlink_to(path.name)


@pytest.mark.skipif(sys.platform == "win32", reason="these kinds of files are of Unix")
@pytest.mark.parametrize("make", [folder, fifo, bound_socket, broken_link, circle])
def test_a_gin_file_that_is_none(
    make: Callable[[Path], None], golden_copy: Callable[..., Path], run: Run, tmp_path: Path
) -> None:
    source = golden_copy(NAME, gin=False)
    make(source / "operative_config.gin")
    result = run("convert", source, tmp_path / "out")
    assert result.status == 1
    assert re.fullmatch(r"error: .*operative_config.gin is not a file, or leads to none: .*\.\n", result.err)
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that cannot be read, even by root")
@pytest.mark.parametrize("name", ["operative_config.gin", "checkpoint"])
def test_files_that_cannot_be_read(name: str, golden_copy: Callable[..., Path], run: Run) -> None:
    source = golden_copy(NAME, gin=False)
    (source / name).unlink(missing_ok=True)
    (source / name).symlink_to("/proc/self/mem")
    result = run("inspect", source)
    assert (result.status, result.out) == (1, "")
    assert re.fullmatch(rf"error: .*{name} cannot be read: .*\.\n", result.err)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe" + "a.b = 1\n".encode("utf-16-le"), "line 1 of operative_config.gin is not UTF-8 text"),
        (b"a.b = 1\na.c = '\xe9'\n", "line 2 of operative_config.gin is not UTF-8 text"),
        (b"a.b = 1\n\n\0", "line 3 of operative_config.gin is not UTF-8 text"),
        (b"# " + b"x" * 2**20, "operative_config.gin has more than 1048576 bytes"),
    ],
    ids=["UTF-16", "Latin-1", "NUL", "long"],
)
def test_gin_files_that_are_no_text(content: bytes, message: str, golden_copy: Callable[..., Path], run: Run) -> None:
    source = golden_copy(NAME)
    (source / "operative_config.gin").write_bytes(content)
    assert message in run("inspect", source).err


def test_a_gin_file_of_gigabytes_is_not_read(golden_copy: Callable[..., Path], run: Run) -> None:
    source = golden_copy(NAME)
    os.truncate(source / "operative_config.gin", 2**36)
    os.truncate(source / "checkpoint", 2**36)
    tracemalloc.start()
    result = run("inspect", source)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "has more than 1048576 bytes" in result.err
    assert peak < 2**26


def test_a_mark_of_windows_editors(golden_copy: Callable[..., Path], run: Run) -> None:
    source = golden_copy(NAME)
    path = source / "operative_config.gin"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert run("inspect", source).status == 0


@pytest.mark.parametrize(
    ("named", "message"),
    [
        *(("x" * 5000, "names x"), ("a\0b", r"names a\\x00b, whose"), (".", r"names \.,"), ("a/..", r"names \.\.,")),
        *(("\x1b[2J", r"names \\x1b\[2J, whose"), ("\u202ecod", r"names \\u202ecod")),
    ],
)  # fmt: skip
def test_checkpoint_files_that_name_anything(
    named: str, message: str, golden_copy: Callable[..., Path], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = golden_copy(NAME)
    (source / "checkpoint").write_text(f'model_checkpoint_path: "{named}"\n', encoding="utf-8")
    monkeypatch.chdir(source)
    result = run("inspect", ".")
    assert result.status == 1
    assert re.search(message, result.err)
    assert result.err.removesuffix("\n").isprintable()


def test_a_checkpoint_file_of_empty_lines(tmp_path: Path) -> None:
    """Looking for a name took the square of their number."""
    (tmp_path / "checkpoint").write_text("\n" * 2**20)
    with pytest.raises(ConversionError, match="names no checkpoint"):
        resolve(tmp_path)


@pytest.mark.parametrize("source", ["x" * 300, "x" * 5000, ".index", "a\0b"])
def test_sources_that_cannot_be_paths(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConversionError, match=r"does not exist|is missing"):
        resolve(source)


def test_output_names_that_are_no_text(reference: Path, tmp_path: Path, converted: Callable[[str], Path]) -> None:
    for name in (os.fsdecode(b"out\xff"), "out\0"):
        with pytest.raises(ConversionError, match=r"is not UTF-8 text.*choose another\.") as caught:
            pipeline.convert(reference / "golden" / NAME, tmp_path / name)
        assert str(caught.value).isprintable()
        with pytest.raises(ConversionError, match="is not UTF-8 text"):
            export(converted(NAME), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not have such names")
def test_a_source_whose_name_is_no_text(golden_copy: Callable[..., Path], run: Run, tmp_path: Path) -> None:
    """It is only shown, and named in the card."""
    named = tmp_path / os.fsdecode(b"\xff\x1b[2J|`<b>")
    golden_copy(NAME).rename(named)
    result = run("convert", named, tmp_path / "out")
    assert result.status == 0
    assert all(line.isprintable() for line in result.out.splitlines())
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "| source | Mesh TensorFlow checkpoint `` \\udcff\\x1b[2J\\|`<b>/model.ckpt-800 `` |" in card.splitlines()


def test_the_title_of_the_card(reference: Path, run: Run, tmp_path: Path) -> None:
    output = tmp_path / "a_b *c* [d](e) <img>\n---\nlicense: mit"
    assert run("convert", reference / "golden" / NAME, output).status == 0
    lines = (output / "README.md").read_text(encoding="utf-8").splitlines()
    assert lines[: lines.index("---", 1)] == [
        *("---", "license: apache-2.0", "library_name: transformers", "tags:"),
        *("- t5", "- t5.1.1", "- t5_v1_1", "- mesh-tensorflow"),
    ]
    assert "# a_b \\*c\\* \\[d\\](e) \\<img\\>\\\\n---\\\\nlicense: mit" in lines
