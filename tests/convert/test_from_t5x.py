# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints of T5X and Orbax as a source: every layout gives the logits of transformers' T5 with the same weights."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoModelForTextEncoding, T5ForConditionalGeneration

import t5_experimental
from t5_experimental.convert import ConversionError, convert, inspect, verify
from t5_experimental.convert.arrays import store
from tests.support.stock_folders import V10, V11, Kind, assert_same_model, build
from tests.support.t5x_folders import Arrays, as_t5x, scanned, write_managed, write_orbax, write_t5x


Run = Callable[..., Any]
Write = Callable[[Arrays, Path], object]

RELU: dict[str, Any] = {"feed_forward_proj": "relu", "tie_word_embeddings": False}


def legacy(arrays: Arrays, folder: Path) -> None:
    write_t5x(arrays, folder / "checkpoint_7")


def inline(arrays: Arrays, folder: Path) -> None:
    write_t5x(arrays, folder / "checkpoint_7", inline=lambda name: "norm" in name)


def everything_inline(arrays: Arrays, folder: Path) -> None:
    write_t5x(arrays, folder / "checkpoint_7", inline=lambda name: True)


def of_gcs(arrays: Arrays, folder: Path) -> None:
    """As Google's released ones: the path is outside of the bucket's specification."""

    def edit(leaves: dict[str, Any]) -> None:
        for spec in leaves.values():
            if isinstance(spec, dict):
                spec["path"] = spec.pop("kvstore")["path"] + "/"
                spec["kvstore"] = {"driver": "gcs", "bucket": "t5x-dummy-bucket"}

    write_t5x(arrays, folder / "checkpoint_7", edit=edit)


def placeholders(arrays: Arrays, folder: Path) -> None:
    write_t5x(arrays, folder / "7" / "default", placeholders=True)


def orbax(**options: bool) -> Write:
    return lambda arrays, folder: write_orbax(arrays, folder / "7" / "state", **options)


# What is in the checkpoint -> the model, options of its arrays, and how they are written.
LAYOUTS: dict[str, tuple[Kind, dict[str, Any], Callable[[Arrays], Arrays], Write]] = {
    "legacy": (Kind(V11), {}, dict, legacy),
    "legacy, small arrays in the index": (Kind(V11), {}, dict, inline),
    "legacy, all in the index": (Kind(V11), {}, dict, everything_inline),
    "legacy, of a bucket": (Kind(V11), {}, dict, of_gcs),
    "legacy, of Orbax": (Kind(V11), {}, dict, placeholders),
    "legacy, bfloat16": (Kind(V11, dtype=torch.bfloat16), {}, dict, legacy),
    "legacy, heads with an axis": (Kind(V11), {"heads": 4}, dict, legacy),
    "legacy, ungated": (Kind(RELU), {}, dict, legacy),
    "legacy, tied": (Kind(V10, is_tied=True), {}, dict, legacy),
    "scanned": (Kind(V11), {}, scanned, legacy),
    "scanned, bfloat16": (Kind(V11, dtype=torch.bfloat16), {}, scanned, legacy),
    "scanned, heads with an axis": (Kind(V11), {"heads": 4}, scanned, legacy),
    "scanned, a table for every layer": (Kind(V11), {}, lambda a: scanned(a, table_per_layer=True), legacy),
    "scanned, first names": (Kind(V11), {}, lambda a: scanned(a, "layers"), legacy),
    "Orbax": (Kind(V11), {}, dict, orbax()),
    "Orbax, zarr": (Kind(V11), {}, dict, orbax(use_ocdbt=False)),
    "Orbax, zarr 3": (Kind(V11), {}, dict, orbax(use_zarr3=True)),
    "Orbax, zarr 3 without a database": (Kind(V11), {}, dict, orbax(use_ocdbt=False, use_zarr3=True)),
    "Orbax, managed": (Kind(V11), {}, dict, write_managed),
    "Orbax, scanned bfloat16": (Kind(V11, dtype=torch.bfloat16), {"heads": 4}, scanned, orbax()),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_logits_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    kind, options, arrange, write = LAYOUTS[name]
    theirs = build(kind)
    write(arrange(as_t5x(theirs, **options)), tmp_path / "run")
    summary = convert(tmp_path / "run", tmp_path / "out", verify=True)
    ours, info = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert type(ours) is t5_experimental.T5V11ForConditionalGeneration
    assert not any(info.values())
    assert ours.config.tie_word_embeddings is kind.is_tied
    assert summary.inspection.step == 7
    assert_same_model(ours, theirs)
    assert verify(tmp_path / "run", tmp_path / "out").plan.nbytes == summary.nbytes


@pytest.mark.parametrize("arrange", [dict, scanned])
def test_a_table_in_every_layer_makes_a_umt5(arrange: Callable[[Arrays], Arrays], tmp_path: Path) -> None:
    theirs = build(Kind({"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}, model_type="umt5"))
    legacy(arrange(as_t5x(theirs, in_every_layer=True)), tmp_path / "run")
    summary = convert(tmp_path / "run", tmp_path / "out")
    assert "Every layer has a table of position biases of its own, as in umT5." in summary.inspection.notes
    ours = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out")
    assert ours.config.relative_attention_type == "bias"
    assert_same_model(ours, theirs)


def swapped(arrays: Arrays) -> None:
    one, two = (f"target/decoder/layers_1/mlp/wi_{k}/kernel" for k in (0, 1))
    arrays[one], arrays[two] = arrays[two], arrays[one]


def turned(arrays: Arrays) -> None:
    name = "target/encoder/layers_0/attention/query/kernel"
    arrays[name] = np.ascontiguousarray(arrays[name].T)


def shifted(arrays: Arrays) -> None:
    one, two = (f"target/encoder/layers_{i}/attention/out/kernel" for i in (0, 1))
    arrays[one], arrays[two] = arrays[two], arrays[one]


@pytest.mark.parametrize("mistake", [swapped, turned, shifted])
def test_the_logits_would_tell_of_a_mistake(mistake: Callable[[Arrays], None], tmp_path: Path) -> None:
    theirs = build(Kind(V11))
    arrays = as_t5x(theirs)
    mistake(arrays)
    legacy(scanned(arrays), tmp_path / "run")
    convert(tmp_path / "run", tmp_path / "out")
    with pytest.raises(AssertionError, match="not close"):
        assert_same_model(AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out"), theirs)


def test_the_encoder_alone_and_stock_t5(tmp_path: Path) -> None:
    theirs = build(Kind(V11))
    legacy(as_t5x(theirs), tmp_path / "run")
    convert(tmp_path / "run", tmp_path / "encoder", encoder_only=True, verify=True)
    ours = AutoModelForTextEncoding.from_pretrained(tmp_path / "encoder")
    inputs = torch.tensor([[5, 6, 7, 1]])
    expected = theirs.encoder(inputs).last_hidden_state
    torch.testing.assert_close(ours(inputs).last_hidden_state, expected, rtol=1e-5, atol=1e-5)
    convert(tmp_path / "run", tmp_path / "stock", output_format="stock-t5")
    stock = T5ForConditionalGeneration.from_pretrained(tmp_path / "stock")
    assert torch.equal(stock.lm_head.weight, theirs.lm_head.weight)


def test_the_command_says_what_it_found(run: Run, tmp_path: Path) -> None:
    arrays = as_t5x(build(Kind(V11)))
    arrays["state/param_states/encoder/encoder_norm/scale/v"] = np.ones(32, np.float32)
    write_t5x(scanned(arrays), tmp_path / "t5_1_1_lm100k_tiny" / "checkpoint_1100000", step=1_100_000)
    out = tmp_path / "out"
    result = run("inspect", tmp_path / "t5_1_1_lm100k_tiny")
    assert result.status == 0
    assert "Family:     t5.1.1.lm100k (T5LMAdaptedConfig)" in result.out
    assert "Told by:    the variables' shapes" in result.out
    assert "Step:       1,100,000" in result.out
    assert "gated-gelu is assumed, as in t5.1.1 (--feed-forward-proj sets another)" in result.out
    assert "layer_norm_epsilon: 1e-06" in result.out
    assert "target/decoder/decoder/mlp/wi_0/kernel[:, 2]" in result.out
    assert "left out: 1 x training step" in result.out
    assert "left out: 1 x optimizer slot" in result.out
    assert run("convert", tmp_path / "t5_1_1_lm100k_tiny" / "checkpoint_1100000", out, "--verify").status == 0
    assert run("verify", tmp_path / "t5_1_1_lm100k_tiny", out).status == 0
    row = json.loads((out / "conversion.json").read_text())["tensors"][
        "decoder.block.2.layer.2.DenseReluDense.wo.weight"
    ]
    assert row["source"] == "target/decoder/decoder/mlp/wo/kernel[:, 2]"
    card = (out / "README.md").read_text()
    assert "| source | checkpoint of T5X or Orbax `t5_1_1_lm100k_tiny/checkpoint_1100000` |" in card
    assert "Mesh" not in card
    assert "license:" not in card
    assert str(tmp_path) not in card


GIN = """
from __gin__ import dynamic_registration
from t5x.examples.t5 import network
DROPOUT_RATE = 0.25
network.T5Config.dropout_rate = %DROPOUT_RATE
network.T5Config.emb_dim = 32
network.T5Config.mlp_activations = ('silu', 'linear')
network.T5Config.logits_via_embedding = False
"""


def test_the_run_s_gin_file_tells_the_activation(tmp_path: Path) -> None:
    theirs = build(Kind({**V11, "feed_forward_proj": "gated-silu"}))
    legacy(as_t5x(theirs), tmp_path / "run")
    (tmp_path / "run" / "config.gin").write_text(GIN)
    found = convert(tmp_path / "run", tmp_path / "out").inspection
    assert found.config.feed_forward_proj == "gated-silu"
    assert found.config.dropout_rate == 0.25
    assert not any("activation" in note for note in found.notes)
    assert_same_model(AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out"), theirs)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("= 32", "= 64", "its T5Config.emb_dim is 64, but the checkpoint has 32"),
        ("('silu', 'linear')", "('silu',)", "but the checkpoint's feed-forward is gated"),
        ("('silu', 'linear')", "('sine', 'linear')", "which the models cannot compute: they have one of gelu, relu"),
        ("= False", "= True", "its T5Config.logits_via_embedding is True, but the checkpoint has decoder/logits_dense"),
        ("= 0.25", "= 2", "it must be a number from 0 to less than 1"),
    ],
)
def test_a_gin_file_that_contradicts(old: str, new: str, message: str, tmp_path: Path) -> None:
    legacy(as_t5x(build(Kind(V11))), tmp_path / "run")
    (tmp_path / "run" / "config.gin").write_text(GIN.replace(old, new))
    with pytest.raises(ConversionError, match=re.escape(message)):
        inspect(tmp_path / "run")


def test_a_gin_file_without_the_model(tmp_path: Path) -> None:
    legacy(as_t5x(build(Kind(V11))), tmp_path / "run")
    (tmp_path / "run" / "config.gin").write_text("Trainer.learning_rate = 1\n")
    assert any("config.gin has no T5Config.mlp_activations" in note for note in inspect(tmp_path / "run").notes)


def test_options_for_what_no_shape_tells(tmp_path: Path) -> None:
    legacy(as_t5x(build(Kind(V11))), tmp_path / "run")
    found = inspect(tmp_path / "run", feed_forward_proj="gated-silu", family="t5.1.1.lm100k", d_kv=8)
    assert (found.config.feed_forward_proj, found.family) == ("gated-silu", "t5.1.1.lm100k")
    with pytest.raises(ConversionError, match="--d-kv 16 contradicts the checkpoint"):
        inspect(tmp_path / "run", d_kv=16)


def test_several_checkpoints_are_to_be_chosen_from(tmp_path: Path) -> None:
    arrays = as_t5x(build(Kind(V11)))
    for step in (1000, 2000):
        write_t5x(arrays, tmp_path / "run" / f"checkpoint_{step}", step=step)
    with pytest.raises(ConversionError, match=r"holds 2 checkpoints .* checkpoint_1000, checkpoint_2000"):
        inspect(tmp_path / "run")
    assert inspect(tmp_path / "run" / "checkpoint_2000").step == 2000


def test_the_name_tells_the_step_where_nothing_else_does(tmp_path: Path) -> None:
    write_t5x(
        as_t5x(build(Kind(V11))), tmp_path / "run" / "checkpoint_42", edit=lambda leaves: leaves.pop("state/step")
    )
    assert inspect(tmp_path / "run").step == 42


@pytest.mark.parametrize("write", [legacy, orbax(use_zarr3=True)])
def test_arrays_are_read_part_by_part(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a large array, more than one part is never in memory twice."""
    theirs = build(Kind(V11))
    write(scanned(as_t5x(theirs)), tmp_path / "run")
    sizes: list[float] = []
    real = store._windows

    def windows(array: np.ndarray, parts: tuple[int, ...]) -> Any:
        for window in real(array, parts):
            sizes.append(array[window].nbytes / max(1, array.nbytes))
            yield window

    monkeypatch.setattr(store, "_windows", windows)
    monkeypatch.setattr(store, "_READ_BYTES", 1)
    convert(tmp_path / "run", tmp_path / "out")
    assert_same_model(AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out"), theirs)
    assert min(sizes) == (0.5 if write is legacy else 1)


IMPORTS = """
import sys
from t5_experimental.convert.cli import main

assert main([*sys.argv[2:]]) == 0
print(sorted({"torch", "transformers", "jax", "flax", "orbax", "tensorstore", "msgpack", "h5py"} & {*sys.modules}))
"""


@pytest.mark.parametrize(("source", "packages"), [("t5x", ["msgpack", "tensorstore"]), ("mesh", [])])
def test_only_what_reads_the_source_is_imported(
    source: str, packages: list[str], reference: Path, tmp_path: Path
) -> None:
    folder = reference / "golden" / "t5.1.1.tiny"
    if source == "t5x":
        folder = write_t5x(as_t5x(build(Kind(V11))), tmp_path / "checkpoint_7")
    command = [sys.executable, "-c", IMPORTS, "", "convert", str(folder), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(packages)
