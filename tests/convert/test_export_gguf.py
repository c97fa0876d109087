# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""GGUF files, read back with the package that llama.cpp's own programs use. `tests/ecosystem/gguf_files.py` computes
logits with llama.cpp itself."""

import builtins
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

import t5_experimental
from t5_experimental.convert import ConversionError
from t5_experimental.convert.export_gguf import export_gguf
from t5_experimental.convert.output.unigram import read_unigram
from tests.support.windows_rules import windows_rules


Run = Callable[..., Any]
SIZES = {"vocab_size": 320, "d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 2, "num_heads": 4}
MODELS: dict[str, dict[str, Any]] = {
    "t5.1.1": {},
    "t5.1.0": {"feed_forward_proj": "relu", "tie_word_embeddings": True},
    "umt5": {"relative_attention_type": "bias", "num_layers": 3, "num_decoder_layers": 2},
}

# By hand from llama.cpp's source, src/llama-arch.cpp and src/models/t5.cpp, for the layers of our names.
LAYER = {
    "layer.0.layer_norm": "attn_norm",
    "layer.0.SelfAttention.q": "attn_q",
    "layer.0.SelfAttention.k": "attn_k",
    "layer.0.SelfAttention.v": "attn_v",
    "layer.0.SelfAttention.o": "attn_o",
    "layer.0.SelfAttention.relative_attention_bias": "attn_rel_b",
}
CROSS = {
    "layer.1.layer_norm": "cross_attn_norm",
    "layer.1.EncDecAttention.q": "cross_attn_q",
    "layer.1.EncDecAttention.k": "cross_attn_k",
    "layer.1.EncDecAttention.v": "cross_attn_v",
    "layer.1.EncDecAttention.o": "cross_attn_o",
}
FEED_FORWARD = {
    "layer_norm": "ffn_norm",
    "DenseReluDense.wi": "ffn_up",
    "DenseReluDense.wi_0": "ffn_gate",
    "DenseReluDense.wi_1": "ffn_up",
    "DenseReluDense.wo": "ffn_down",
}
GLOBAL = {
    "shared": "token_embd",
    "lm_head": "output",
    "encoder.final_layer_norm": "enc.output_norm",
    "decoder.final_layer_norm": "dec.output_norm",
}


def name_in_llama_cpp(name: str) -> str:
    stem = name.removesuffix(".weight")
    if stem in GLOBAL:
        return GLOBAL[stem] + ".weight"
    stack, _, layer, rest = stem.split(".", 3)
    last = "layer.1." if stack == "encoder" else "layer.2."
    tables = (
        LAYER | (CROSS if stack == "decoder" else {}) | {last + ours: theirs for ours, theirs in FEED_FORWARD.items()}
    )
    return f"{stack[:3]}.blk.{layer}.{tables[rest]}.weight"


@pytest.fixture(scope="module", params=MODELS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, reference: Path) -> dict[str, Path]:
    """A model of each kind with a vocabulary, and what is refused."""
    top = tmp_path_factory.mktemp("models")
    vocabulary = reference.parent / "data" / "restaurants.model"
    for name, fields in MODELS.items():
        torch.manual_seed(0)
        config = t5_experimental.T5V11Config(**{**SIZES, **fields})
        t5_experimental.T5V11ForConditionalGeneration(config).save_pretrained(top / name)
    shutil.copytree(top / "t5.1.1", top / "vocabulary")  # which the reader takes seconds for
    shutil.copy(vocabulary, top / "vocabulary" / "spiece.model")
    (top / "vocabulary" / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer", "extra_ids": 100}')
    config = t5_experimental.T5V11Config(**SIZES)
    t5_experimental.T5V11EncoderModel(config).save_pretrained(top / "encoder")
    return {path.name: path for path in top.iterdir()}


def tensors_of(path: Path) -> dict[str, np.ndarray]:
    return {tensor.name: gguf.dequantize(tensor.data, tensor.tensor_type) for tensor in gguf.GGUFReader(path).tensors}


def values_of(path: Path) -> dict[str, Any]:
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}


def test_every_tensor_is_there_under_its_name(kind: str, folders: dict[str, Path], tmp_path: Path) -> None:
    summary = export_gguf(folders[kind], tmp_path / "model.gguf")
    found = tensors_of(tmp_path / "model.gguf")
    weights = load_file(folders[kind] / "model.safetensors")
    expected = {name_in_llama_cpp(name): tensor.numpy() for name, tensor in weights.items()}
    if kind == "t5.1.0":  # llama.cpp does not scale what the classifier gets
        expected["output.weight"] = (weights["shared.weight"] * 64**-0.5).numpy()
        assert any("multiplied by d_model ** -0.5" in note for note in summary.notes)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
    assert summary.tensors == len(found)
    assert summary.nbytes == (tmp_path / "model.gguf").stat().st_size


def test_the_fields_describe_the_model(folders: dict[str, Path], tmp_path: Path) -> None:
    export_gguf(folders["umt5"], tmp_path / "model.gguf")
    values = values_of(tmp_path / "model.gguf")
    wanted = {
        "general.architecture": "t5",
        "general.name": "umt5",
        "general.file_type": 0,
        "t5.context_length": 512,
        "t5.embedding_length": 64,
        "t5.feed_forward_length": 96,
        "t5.block_count": 3,
        "t5.decoder_block_count": 2,
        "t5.decoder_start_token_id": 0,
        "t5.attention.head_count": 4,
        "t5.attention.key_length": 16,
        "t5.attention.value_length": 16,
        "t5.attention.relative_buckets_count": 32,
        "t5.attention.layer_norm_rms_epsilon": pytest.approx(1e-6),
        "t5.vocab_size": 320,
    }
    assert {name: values[name] for name in wanted} == wanted


def test_the_vocabulary_is_that_of_the_folder(folders: dict[str, Path], tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    export_gguf(folders["vocabulary"], tmp_path / "model.gguf")
    values = values_of(tmp_path / "model.gguf")
    tokenizer = AutoTokenizer.from_pretrained(folders["vocabulary"])
    tokens = values["tokenizer.ggml.tokens"]
    assert len(tokens) == 320
    assert tokens[: len(tokenizer)] == tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    kinds = [gguf.TokenType(number).name for number in values["tokenizer.ggml.token_type"]]
    assert kinds[:4] == ["CONTROL", "CONTROL", "UNKNOWN", "NORMAL"]
    assert kinds[tokenizer.convert_tokens_to_ids("<extra_id_0>")] == "USER_DEFINED"
    assert set(kinds[len(tokenizer) :]) == {"UNUSED"}
    assert values["tokenizer.ggml.model"] == "t5"
    assert values["tokenizer.ggml.eos_token_id"] == 1
    assert values["tokenizer.ggml.add_eos_token"] is True
    assert values["tokenizer.ggml.add_bos_token"] is False
    assert values["tokenizer.ggml.remove_extra_whitespaces"] is True
    assert values["tokenizer.ggml.add_space_prefix"] is True
    unigram = read_unigram(folders["vocabulary"])
    assert unigram is not None
    assert bytes(values["tokenizer.ggml.precompiled_charsmap"]) == unigram.charsmap != b""


def test_a_tokenizer_that_transformers_saved_is_the_same(folders: dict[str, Path], tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(folders["vocabulary"]).save_pretrained(tmp_path)
    assert read_unigram(tmp_path) == read_unigram(folders["vocabulary"])


@pytest.mark.parametrize(
    ("dtype", "kind", "error"), [("float16", "F16", 1e-3), ("bfloat16", "BF16", 8e-3), ("q8_0", "Q8_0", 2e-2)]
)
def test_smaller_dtypes(dtype: str, kind: str, error: float, folders: dict[str, Path], tmp_path: Path) -> None:
    notes = export_gguf(folders["t5.1.1"], tmp_path / "model.gguf", dtype=dtype).notes
    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    for name in ("enc.blk.0.attn_norm.weight", "dec.output_norm.weight", "enc.blk.0.attn_rel_b.weight"):
        assert kinds[name] == "F32"
    assert kinds["enc.blk.0.attn_q.weight"] == kinds["token_embd.weight"] == kinds["output.weight"] == kind
    # T5 overflows there in float16.
    assert kinds["enc.blk.0.ffn_down.weight"] == ("F32" if dtype == "float16" else kind)
    assert ("4 of 38 matrices stay float32: the ffn_down, where T5 overflows in float16." in notes) == (kind == "F16")
    found = tensors_of(tmp_path / "model.gguf")
    for name, tensor in load_file(folders["t5.1.1"] / "model.safetensors").items():
        difference = np.abs(found[name_in_llama_cpp(name)] - tensor.numpy()).max()
        assert difference <= error * float(tensor.abs().max())
    assert (tmp_path / "model.gguf").stat().st_size < (folders["t5.1.1"] / "model.safetensors").stat().st_size


def test_rows_that_are_no_multiple_of_a_block_stay_float32(tmp_path: Path) -> None:
    config = t5_experimental.T5V11Config(**{**SIZES, "num_heads": 3, "d_kv": 8})
    t5_experimental.T5V11ForConditionalGeneration(config).save_pretrained(tmp_path / "model")
    summary = export_gguf(tmp_path / "model", tmp_path / "model.gguf", dtype="q8_0")
    assert "6 of 38 matrices stay float32: their rows are no multiple of 32, the block of q8_0." in summary.notes
    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    assert (kinds["enc.blk.0.attn_q.weight"], kinds["enc.blk.0.attn_o.weight"]) == ("Q8_0", "F32")


def test_an_encoder_alone_and_no_vocabulary(folders: dict[str, Path], tmp_path: Path, run: Run) -> None:
    result = run("export-gguf", folders["encoder"], tmp_path / "encoder.gguf")
    assert result.status == 0
    assert "The folder has no tokenizer, and so the file has none: programs must be given token ids." in result.out
    values = values_of(tmp_path / "encoder.gguf")
    assert values["general.architecture"] == "t5encoder"
    assert values["tokenizer.ggml.model"] == "no_vocab"
    assert "t5encoder.decoder_block_count" not in values
    weights = load_file(folders["encoder"] / "model.safetensors")
    assert tensors_of(tmp_path / "encoder.gguf").keys() == {name_in_llama_cpp(name) for name in weights}


def test_stock_t5_and_bfloat16_are_sources(folders: dict[str, Path], tmp_path: Path, run: Run) -> None:
    stock = tmp_path / "stock"
    shutil.copytree(folders["t5.1.1"], stock)
    fields = json.loads((stock / "config.json").read_text())
    (stock / "config.json").write_text(json.dumps({**fields, "model_type": "t5", "transformers_version": "4.40.0"}))
    weights = {name: tensor.bfloat16() for name, tensor in load_file(stock / "model.safetensors").items()}
    save_file(weights, stock / "model.safetensors")
    assert run("export-gguf", stock, tmp_path / "model.gguf", "--dtype", "bfloat16").status == 0
    found = tensors_of(tmp_path / "model.gguf")
    for name, tensor in weights.items():
        np.testing.assert_array_equal(found[name_in_llama_cpp(name)], tensor.float().numpy())


def edit(folder: Path, **fields: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def spoil(folder: Path, number: float) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["encoder.block.0.layer.0.SelfAttention.q.weight"][0, 0] = number
    save_file(tensors, folder / "model.safetensors")


REFUSED: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "silu": (
        lambda f: edit(f, feed_forward_proj="gated-silu"),
        "float32",
        "its feed_forward_proj is gated-silu, where",
    ),
    "distance": (
        lambda f: edit(f, relative_attention_max_distance=64),
        "float32",
        "max_distance is 64, where llama.cpp",
    ),
    "NaN": (lambda f: spoil(f, float("nan")), "float32", "SelfAttention.q.weight has infinities or NaNs"),
    "beyond float16": (lambda f: spoil(f, 1e6), "float16", "beyond float16's largest, 65504: pass --dtype float32"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "float32", "model.safetensors"),
    "another type": (lambda f: edit(f, model_type="bert"), "float32", "holds a model of type 'bert', which is no T5"),
    "a tensor less": (
        lambda f: edit(f, num_layers=3, num_decoder_layers=3),
        "float32",
        "has no tensor encoder.block.2",
    ),
    "deep decoder": (lambda f: edit(f, num_decoder_layers=3), "float32", "decoder has 3 layers and its encoder 2"),
    "bytes": (
        lambda f: (f / "tokenizer_config.json").write_text('{"tokenizer_class": "ByT5Tokenizer"}'),
        "float32",
        "ByT5Tokenizer, is none of pieces with scores: move its files away",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_written_is_refused(name: str, folders: dict[str, Path], tmp_path: Path, run: Run) -> None:
    change, dtype, message = REFUSED[name]
    folder = tmp_path / "model"
    shutil.copytree(folders["t5.1.1"], folder)
    change(folder)
    result = run("export-gguf", folder, tmp_path / "new" / "model.gguf", "--dtype", dtype)
    assert result.status == 1
    assert message in result.err
    assert not [*(tmp_path / "new").glob("*")]


@pytest.mark.parametrize(
    ("config_class", "message"),
    [
        (t5_experimental.T5TalkingHeadsConfig, "it has talking-heads attention, which llama.cpp does not have"),
        (
            t5_experimental.T5FirstLayersNarrowConfig,
            "its layers differ in width, where those of llama.cpp's T5 are all",
        ),
    ],
)
def test_other_families_are_refused(config_class: Any, message: str, tmp_path: Path) -> None:
    config = config_class(**{**SIZES, "num_layers": 6})
    from transformers import AutoModelForSeq2SeqLM

    AutoModelForSeq2SeqLM.from_config(config).save_pretrained(tmp_path / "model")
    with pytest.raises(ConversionError, match=message):
        export_gguf(tmp_path / "model", tmp_path / "model.gguf")


def test_an_output_that_is_there_stays(folders: dict[str, Path], tmp_path: Path, run: Run) -> None:
    output = tmp_path / "model.gguf"
    assert run("export-gguf", folders["t5.1.1"], output).status == 0
    before = output.read_bytes()
    refused = run("export-gguf", folders["t5.1.0"], output)
    assert refused.status == 1
    assert "model.gguf exists: choose another name, or pass --overwrite to replace it." in refused.err
    assert output.read_bytes() == before
    assert run("export-gguf", folders["t5.1.0"], output, "--overwrite").status == 0
    assert output.read_bytes() != before
    (tmp_path / "thesis.txt").write_text("words")
    assert (
        "is no GGUF file, and is not replaced"
        in run("export-gguf", folders["t5.1.0"], tmp_path / "thesis.txt", "--overwrite").err
    )
    assert "is a folder: name the file to write" in run("export-gguf", folders["t5.1.0"], tmp_path).err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.gguf", "thesis.txt"]


KILLED = """
import os, sys
import gguf
from t5_experimental.convert.cli import main

# The moment is past the last tensor, and before the file has its name.
gguf.GGUFWriter.close = lambda writer: os.kill(os.getpid(), 9)
main(["export-gguf", *sys.argv[1:]])
"""


def test_the_same_command_removes_what_a_killed_one_left(folders: dict[str, Path], tmp_path: Path, run: Run) -> None:
    output = tmp_path / "model.gguf"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", KILLED, str(folders["encoder"]), str(output)]
    assert subprocess.run(command, env=environment, capture_output=True).returncode == -signal.SIGKILL
    assert sorted(os.listdir(tmp_path)) == [".model.gguf.partial", ".model.gguf.partial.lock"]
    result = run("export-gguf", folders["encoder"], output)
    assert result.status == 0
    assert "Note: .model.gguf.partial, which an earlier run left, is started over." in result.err
    assert os.listdir(tmp_path) == ["model.gguf"]
    assert tensors_of(output)
    # As any other new file.
    (tmp_path / "new").touch()
    assert output.stat().st_mode == (tmp_path / "new").stat().st_mode


def test_an_error_on_the_way_leaves_nothing(
    folders: dict[str, Path], tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", full)
    for rules in (nullcontext, windows_rules):
        with rules():
            result = run("export-gguf", folders["encoder"], tmp_path / "new" / "model.gguf")
        assert result.status == 1
        assert re.search(r"error: the disk of .*model.gguf is full: .*; nothing was left behind\.\n", result.err)
        assert os.listdir(tmp_path) == []


def test_two_runs_do_not_write_one_file(
    folders: dict[str, Path], tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    close, others = gguf.GGUFWriter.close, []

    def and_run_another(writer: gguf.GGUFWriter) -> None:
        if not others:
            others.append(run("export-gguf", folders["umt5"], tmp_path / "model.gguf"))
        close(writer)

    monkeypatch.setattr(gguf.GGUFWriter, "close", and_run_another)
    assert run("export-gguf", folders["encoder"], tmp_path / "model.gguf").status == 0
    assert others[0].status == 1
    assert "another run is writing" in others[0].err
    assert os.listdir(tmp_path) == ["model.gguf"]
    assert values_of(tmp_path / "model.gguf")["general.name"] == "encoder"


def test_what_appears_while_it_is_written_is_left_alone(
    folders: dict[str, Path], tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    close = gguf.GGUFWriter.close

    def and_appear(writer: gguf.GGUFWriter) -> None:
        close(writer)
        (tmp_path / "model.gguf").write_text("mine")

    monkeypatch.setattr(gguf.GGUFWriter, "close", and_appear)
    for options, message in (((), "model.gguf exists: choose another"), (("--overwrite",), "is no GGUF file")):
        result = run("export-gguf", folders["encoder"], tmp_path / "model.gguf", *options)
        assert result.status == 1
        assert message in result.err
        assert (tmp_path / "model.gguf").read_text() == "mine"
        assert os.listdir(tmp_path) == ["model.gguf"]
        (tmp_path / "model.gguf").unlink()


@pytest.mark.parametrize("name", [".model.gguf.partial", ".model.gguf.partial.lock"])
def test_what_is_in_the_way_stops_it(name: str, folders: dict[str, Path], tmp_path: Path, run: Run) -> None:
    (tmp_path / name).write_text("mine")
    for options in ((), ("--overwrite",)):
        result = run("export-gguf", folders["encoder"], tmp_path / "model.gguf", *options)
        assert result.status == 1
        assert f"{name} is in the way" in result.err
    assert os.listdir(tmp_path) == [name]
    assert (tmp_path / name).read_text() == "mine"


def test_under_the_rules_of_windows(folders: dict[str, Path], tmp_path: Path, run: Run) -> None:
    with windows_rules():
        for options in ((), ("--overwrite",)):
            assert run("export-gguf", folders["encoder"], tmp_path / "model.gguf", *options).status == 0
    assert os.listdir(tmp_path) == ["model.gguf"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
def test_what_is_no_file_is_not_replaced(folders: dict[str, Path], tmp_path: Path, run: Run) -> None:
    (tmp_path / "gone").symlink_to("nothing")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    (tmp_path / "link").symlink_to("model.gguf")
    os.mkfifo(tmp_path / "pipe")
    for name in ("gone", "loop", "link", "pipe"):
        for options, message in (((), "exists: choose another"), (("--overwrite",), "is no GGUF file, and is not")):
            result = run("export-gguf", folders["encoder"], tmp_path / name, *options)
            assert result.status == 1
            assert f"{name} {message}" in result.err
    assert (tmp_path / "gone").is_symlink()
    assert "is not UTF-8 text" in run("export-gguf", folders["encoder"], tmp_path / "caf\udce9").err


def test_tokens_without_a_row_are_refused(folders: dict[str, Path], tmp_path: Path, run: Run) -> None:
    folder = Path(shutil.copytree(folders["vocabulary"], tmp_path / "model"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')

    def message() -> str:
        result = run("export-gguf", folder, tmp_path / "model.gguf")
        assert (result.status, result.err.count("\n")) == (1, 1)
        return str(result.err)

    config, table = (folder / "config.json").read_text(), json.loads((folder / "tokenizer.json").read_text())
    for name, value, seen in (
        ("eos_token_id", [], None),
        ("eos_token_id", [320], 320),
        ("pad_token_id", -1, -1),
        ("decoder_start_token_id", 320, 320),
    ):
        edit(folder, **{name: value})
        assert f"{name} of its config.json is {seen}, and ids are from 0 to 319." in message()
        (folder / "config.json").write_text(config)
    (folder / "tokenizer.json").write_text(json.dumps({**table, "model": {**table["model"], "unk_id": None}}))
    assert "unk_id of its tokenizer is None, and ids" in message()
    (folder / "tokenizer.json").write_text(json.dumps(table))
    tokenizer.add_tokens([f"token{number}" for number in range(100)])
    tokenizer.add_special_tokens({"bos_token": "<BOS>"})
    tokenizer.save_pretrained(folder)
    assert "a special token of its tokenizer is 379, and ids" in message()
    assert os.listdir(tmp_path) == ["model"]


def test_without_the_package_the_message_names_it(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "gguf":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConversionError, match=r"pip install 't5-experimental\[gguf\]'"):
        export_gguf(folders["t5.1.1"], tmp_path / "model.gguf")
