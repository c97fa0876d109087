# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""The way back: what is exported is the checkpoint that was converted, byte for byte, and converts as before."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSeq2SeqLM, T5Config, T5ForConditionalGeneration

from t5_experimental.convert.bundle.reader import TensorBundleReader
from t5_experimental.convert.cli import main
from t5_experimental.convert.errors import ConversionError
from t5_experimental.convert.export import plan_export
from t5_experimental.convert.hub import check_complete
from t5_experimental.convert.mesh import axes as arrays_module
from t5_experimental.convert.mesh.parameters import parameters
from t5_experimental.convert.output import safetensors_reader
from t5_experimental.convert.output.safetensors_reader import SafetensorsReader
from t5_experimental.convert.output.stock_source import open_weights
from t5_experimental.convert.plan.tensors import Entry
from t5_experimental.convert.source.checkpoint import resolve


GOLDEN = sorted(path.name for path in (Path(__file__).parents[1] / "reference" / "golden").iterdir() if path.is_dir())
STOCK = ("t5.1.0.tiny", "t5.1.1.tiny", "t5.1.1.tiny-bfloat16", "t5.1.1.tiny-legacy")

Run = Callable[..., Any]

NO_STEP = "The folder does not tell its training step, so that it is 0: --step N names it."


@pytest.fixture(scope="session")
def with_slots(tmp_path_factory: pytest.TempPathFactory, reference: Path) -> Callable[[str], Path]:
    """`with_slots(name)`: a golden checkpoint converted with its optimizer, in several files."""
    root = tmp_path_factory.mktemp("with-optimizer")

    def convert(name: str) -> Path:
        output = root / name
        if not output.exists():
            options = ["--with-optimizer", "--max-shard-size", "100KB"]
            assert main(["convert", str(reference / "golden" / name), str(output), *options]) == 0
        return output

    return convert


@pytest.fixture
def folder(converted: Callable[[str], Path], tmp_path: Path) -> Path:
    """A converted folder, to be spoiled."""
    return Path(shutil.copytree(converted("t5.1.1.tiny-legacy"), tmp_path / "folder"))


def bundle_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("model.ckpt-*"))}


def variables_of(folder: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    reader = TensorBundleReader(resolve(folder).prefix)
    return {v.name: (v.dtype, v.shape, reader.read(v.name).tobytes()) for v in reader.variables.values()}


@pytest.mark.parametrize("name", GOLDEN)
def test_files_are_those_that_the_original_wrote(
    name: str, reference: Path, with_slots: Callable[[str], Path], run: Run, tmp_path: Path
) -> None:
    """Every variable and slot, its name, dtype, shape and axes: index and data file are the same bytes."""
    result = run("export", with_slots(name), tmp_path / "out")
    assert result.status == 0, result.err
    assert os.listdir(tmp_path) == ["out"]
    golden = reference / "golden" / name
    assert bundle_files(tmp_path / "out") == bundle_files(golden)
    assert (tmp_path / "out" / "checkpoint").read_text() == (golden / "checkpoint").read_text()


@pytest.mark.parametrize("name", GOLDEN)
def test_there_and_back_and_there(
    name: str,
    reference: Path,
    converted: Callable[[str], Path],
    run: Run,
    tensorflow_reader: Callable[[Path], Any],
    tmp_path: Path,
) -> None:
    """Without slots: TensorFlow reads the original's variables, and converting again gives the same folder."""
    assert run("export", converted(name), tmp_path / "back").status == 0
    ours = tensorflow_reader(resolve(tmp_path / "back").prefix)
    theirs = tensorflow_reader(resolve(reference / "golden" / name).prefix)
    assert ours.variables == {n: v for n, v in theirs.variables.items() if "_slot_" not in n}
    for variable in ours.variables:
        assert ours.read(variable).tobytes() == theirs.read(variable).tobytes(), variable
    result = run("convert", tmp_path / "back", tmp_path / "again")
    assert result.status == 0, result.err
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "again" / file).read_bytes() == (converted(name) / file).read_bytes(), file


@pytest.mark.parametrize("name", STOCK)
def test_stock_folders(name: str, reference: Path, run: Run, tmp_path: Path) -> None:
    options = ("--format", "stock-t5", "--with-optimizer")
    assert run("convert", reference / "golden" / name, tmp_path / "stock", *options).status == 0
    assert run("export", tmp_path / "stock", tmp_path / "back").status == 0
    assert bundle_files(tmp_path / "back") == bundle_files(reference / "golden" / name)


@pytest.mark.parametrize("architecture", ["t5.1.1", "t5.1.th", "t5.1.n4w10", "mixed", "one head", "tied"])
def test_a_model_that_was_saved_by_transformers(
    architecture: str, make_config: Callable[..., Any], run: Run, tmp_path: Path
) -> None:
    """Without a record: names as the original gives them today, no step; the gin file tells the whole configuration."""
    options: dict[str, dict[str, Any]] = {"one head": {"num_heads": 1}, "tied": {"tie_word_embeddings": True}}
    config = make_config(architecture if architecture not in options else "t5.1.1", **options.get(architecture, {}))
    torch.manual_seed(0)
    AutoModelForSeq2SeqLM.from_config(config).save_pretrained(tmp_path / "saved", max_shard_size="100KB")
    result = run("export", tmp_path / "saved", tmp_path / "back")
    assert result.status == 0, result.err
    assert "Step:       0\n" in result.out
    assert f"Note:       {NO_STEP}\n" in result.out
    variables = variables_of(tmp_path / "back")
    assert len(variables) == len(parameters(config)) + 1
    if architecture == "one head":
        assert variables["encoder/block_000/layer_000/SelfAttention/relative_attention_bias"][1] == (32,)
    assert run("convert", tmp_path / "back", tmp_path / "again").status == 0
    again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "again")
    saved = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "saved")
    for stack in ("encoder", "decoder"):
        assert again.config.layer_specs(stack) == config.layer_specs(stack)
    assert again.state_dict().keys() == saved.state_dict().keys()
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, saved.state_dict()[name]), name


@pytest.mark.parametrize("tied", [False, True])
def test_a_stock_t5_that_was_saved_by_transformers(tied: bool, run: Run, tmp_path: Path) -> None:
    config = T5Config(
        vocab_size=256, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4,
        feed_forward_proj="gated-gelu", tie_word_embeddings=tied, scale_decoder_outputs=tied,
    )  # fmt: skip
    T5ForConditionalGeneration(config).save_pretrained(tmp_path / "saved")
    tensors = load_file(tmp_path / "saved" / "model.safetensors")
    if not tied:
        assert "convert it first, if transformers 5 saved it" in run("export", tmp_path / "saved", tmp_path / "no").err
    # transformers 4 saves these copies, too.
    copies = {name: tensors["shared.weight"].clone() for name in ("encoder.embed_tokens.weight", "lm_head.weight")}
    save_file({**copies, **tensors}, tmp_path / "saved" / "model.safetensors", {"format": "pt"})
    fields = json.loads((tmp_path / "saved" / "config.json").read_text())
    fields |= {"scale_decoder_outputs": tied}
    (tmp_path / "saved" / "config.json").write_text(json.dumps(fields))
    result = run("export", tmp_path / "saved", tmp_path / "back")
    assert result.status == 0, result.err
    assert ("decoder/logits/kernel" in variables_of(tmp_path / "back")) == (not tied)


@pytest.mark.parametrize(
    ("dtype", "option", "written"),
    [
        ("bfloat16", "source", "bfloat16"),
        ("bfloat16", "float32", "float32"),
        ("float16", "source", "float32"),
        ("float32", "bfloat16", "bfloat16"),
        ("float64", "source", "float32"),
        ("mixed", "source", "float32"),
    ],
)
def test_dtypes(dtype: str, option: str, written: str, folder: Path, run: Run, tmp_path: Path) -> None:
    """All variables have one dtype, which the gin file names; casts are those of torch."""
    tensors = load_file(folder / "model.safetensors")
    for name in tensors:
        if dtype != "mixed" or "layer_norm" not in name:
            tensors[name] = tensors[name].to(getattr(torch, "bfloat16" if dtype == "mixed" else dtype))
    save_file(tensors, folder / "model.safetensors")
    assert run("export", folder, tmp_path / "out", "--dtype", option).status == 0
    reader = TensorBundleReader(resolve(tmp_path / "out").prefix)
    assert {v.dtype for v in reader.variables.values()} == {"int64", written}
    expected = tensors["lm_head.weight"].to(getattr(torch, written)).T.float().numpy()
    np.testing.assert_array_equal(reader.read("decoder/logits/kernel").astype(np.float32), expected)
    assert f"get_variable_dtype.master_dtype = '{written}'\n" in (tmp_path / "out" / "operative_config.gin").read_text()


def test_step(folder: Path, run: Run, tmp_path: Path) -> None:
    assert "Step:       12,345\n" in run("export", folder, tmp_path / "out", "--step", 12345).out
    prefix = resolve(tmp_path / "out").prefix
    assert prefix.name == "model.ckpt-12345"
    assert TensorBundleReader(prefix).read("global_step") == 12345
    assert run("export", folder, tmp_path / "out", "--step", -1).status == 1


def test_a_step_that_nothing_tells(folder: Path) -> None:
    """It is 0, which a note says unless that was asked for."""
    record = json.loads((folder / "conversion.json").read_text())
    for step, given, found, notes in (
        (None, None, 0, (NO_STEP,)),
        (None, 0, 0, ()),
        (None, 7, 7, ()),
        (0, None, 0, ()),
        (3, None, 3, ()),
    ):
        (folder / "conversion.json").write_text(json.dumps({**record, "step": step}))
        export = plan_export(folder, step=given)
        assert (export.step, export.notes) == (found, notes)


def test_names_of_another_model_are_not_used(folder: Path, run: Run, tmp_path: Path) -> None:
    """A record that was copied along, or was made from names that the original does not write any more."""
    record = json.loads((folder / "conversion.json").read_text())
    record["tensors"]["shared.weight"]["source"] = "../../evil"
    (folder / "conversion.json").write_text(json.dumps(record))
    result = run("export", folder, tmp_path / "out")
    assert "Note:       Variables have today's names" in result.out
    assert "decoder/block_001/layer_002/rms_norm/scale" in variables_of(tmp_path / "out")


def test_the_summary(with_slots: Callable[[str], Path], run: Run, tmp_path: Path) -> None:
    result = run("export", with_slots("t5.1.th.tiny"), tmp_path / "deep" / "out")
    assert "Variables:  64 of float32\n" in result.out
    assert "Optimizer:  78 slots of Adafactor\n" in result.out
    assert "Step:       800\n" in result.out


# --- Mutations: the comparison with the original's bytes notices them ---------------------------------------------


def drop_the_transpose(array: np.ndarray, source: str, target: str, sizes: Any) -> np.ndarray:
    return array.reshape(arrays_module.shape_of(target, sizes))


def swap_heads_and_head_size(array: np.ndarray, source: str, target: str, sizes: Any) -> np.ndarray:
    """As if merged axes had been written the other way round."""
    swapped = source.replace("num_key_heads*d_k", "d_k*num_key_heads").replace(
        "num_value_heads*d_v", "d_v*num_value_heads"
    )
    return REARRANGE(array, swapped, target, sizes)


REARRANGE = arrays_module.rearrange


@pytest.mark.parametrize("mutation", [drop_the_transpose, swap_heads_and_head_size])
def test_a_wrong_order_of_axes_is_noticed(
    mutation: Callable[..., np.ndarray],
    reference: Path,
    with_slots: Callable[[str], Path],
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = with_slots("t5.1.th.tiny-uneven")
    monkeypatch.setattr("t5_experimental.convert.plan.tensors.rearrange", mutation)
    # No short cut around it.
    monkeypatch.setattr(Entry, "matrix", None)
    assert run("export", folder, tmp_path / "out").status == 0
    theirs, ours = variables_of(reference / "golden" / "t5.1.th.tiny-uneven"), variables_of(tmp_path / "out")
    assert {n: v[:2] for n, v in ours.items()} == {n: v[:2] for n, v in theirs.items()}
    different = {name for name in theirs if theirs[name] != ours[name]}
    assert "encoder/block_000/layer_000/TalkingHeadsSelfAttention/q/kernel" in different
    assert "shared/embedding" not in different


# --- Bad input -----------------------------------------------------------------------------------------------------


def edit_config(folder: Path, **changes: Any) -> None:
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**fields, **changes}))


def edit_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def turn(tensors: dict[str, torch.Tensor]) -> None:
    tensors["lm_head.weight"] = tensors["lm_head.weight"].T.contiguous()


def header(**changes: Any) -> bytes:
    """A file of one tensor of two numbers, with another header."""
    text = json.dumps({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}}).encode()
    return len(text).to_bytes(8, "little") + text + bytes(8)


def write_index(folder: Path, text: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(text)


def copy_shard(folder: Path) -> None:
    shutil.copyfile(folder / "model.safetensors", folder / "one.safetensors")
    shutil.copyfile(folder / "model.safetensors", folder / "second.safetensors")
    write_index(folder, json.dumps({"weight_map": {"a": "one.safetensors", "b": "second.safetensors"}}))


BAD = {
    "no config": (lambda f: (f / "config.json").unlink(), r"has no config\.json: give a folder that the converter"),
    "no json": (lambda f: (f / "config.json").write_text("{"), r"config\.json cannot be read"),
    "a list": (lambda f: (f / "config.json").write_text("[]"), r"config\.json cannot be read"),
    "wrong type": (lambda f: edit_config(f, num_heads="four"), r"config\.json describes no model .*num_heads"),
    "wrong model": (lambda f: edit_config(f, model_type="bert"), "holds a model of type 'bert'"),
    "no model type": (lambda f: edit_config(f, model_type=None), "holds a model of type None"),
    "distance": (lambda f: edit_config(f, relative_attention_max_distance=64), "the original knows only 128"),
    "scale": (lambda f: edit_config(f, scale_decoder_outputs=True), "scales the decoder's output exactly when"),
    "activation": (lambda f: edit_config(f, feed_forward_proj="gated-mish"), "gated-mish, which the original does not"),
    "exact gelu": (lambda f: edit_config(f, feed_forward_proj="gelu"), "is gelu, which the original does not have"),
    "exact gelu in stock": (
        lambda f: edit_config(f, model_type="t5", dense_act_fn="gelu"),
        "is gated-gelu_python, which the original does not have",
    ),
    "no tensors": (lambda f: (f / "model.safetensors").unlink(), r"has no model\.safetensors: save the model with"),
    "last byte": (
        lambda f: os.truncate(f / "model.safetensors", (f / "model.safetensors").stat().st_size - 1),
        "is outside of it",
    ),
    "lie": (
        lambda f: (f / "model.safetensors").write_bytes(header(shape=[3])),
        r"'x' has 8 bytes, which float32 \[3\] has not",
    ),
    "negative": (lambda f: (f / "model.safetensors").write_bytes(header(data_offsets=[-8, 0])), "no lists of integers"),
    "twice": (copy_shard, r"is in one\.safetensors, too"),
    "cut off": (lambda f: os.truncate(f / "model.safetensors", 5000), "is no complete safetensors file"),
    "empty": (lambda f: os.truncate(f / "model.safetensors", 0), "is no complete safetensors file"),
    "missing": (lambda f: edit_tensors(f, lambda t: t.pop("lm_head.weight")), "has no tensor lm_head.weight, which"),
    "too many": (lambda f: edit_tensors(f, lambda t: t.update(x=torch.zeros(1))), "has a tensor 'x', which"),
    "a slot": (
        lambda f: edit_tensors(f, lambda t: t.update({"shared.weight.v": torch.zeros(1)})),
        r"optimizer\.safetensors lacks a slot",
    ),
    "shape": (lambda f: edit_tensors(f, turn), r"lm_head.weight has the shape \[32, 256\], but \[256, 32\] is"),
    "not finite": (
        lambda f: edit_tensors(f, lambda t: t["lm_head.weight"].fill_(float("nan"))),
        "lm_head.weight holds infinities or NaNs",
    ),
    "integers": (lambda f: edit_tensors(f, lambda t: t.update(x=torch.zeros(1, dtype=torch.int32))), "dtype 'I32'"),
    "bad record": (lambda f: (f / "conversion.json").write_text("{"), r"conversion\.json cannot be read"),
    "bad index": (lambda f: write_index(f, "{}"), "index.json cannot be read"),
    "a shard elsewhere": (
        lambda f: write_index(f, '{"weight_map": {"a": "../../m.safetensors"}}'),
        r"index\.json cannot be read .'\.\./\.\./m\.safetensors' is no name of a file in its folder",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_folders(case: str, folder: Path, run: Run, tmp_path: Path) -> None:
    spoil, message = BAD[case]
    spoil(folder)
    result = run("export", folder, tmp_path / "out")
    assert result.status == 1
    errors = [line for line in result.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert pytest.raises(ConversionError, match=message).matches(ConversionError(errors[0]))
    assert os.listdir(tmp_path) == ["folder"]


def test_infinities_pass_if_asked_for(folder: Path, run: Run, tmp_path: Path) -> None:
    edit_tensors(folder, lambda tensors: tensors["lm_head.weight"].fill_(float("inf")))
    assert run("export", folder, tmp_path / "out", "--allow-nonfinite").status == 0


def test_encoders_alone(reference: Path, run: Run, tmp_path: Path) -> None:
    source = reference / "golden" / "t5.1.1.tiny"
    for output_format in ("native", "stock-t5"):
        folder = tmp_path / output_format
        assert run("convert", source, folder, "--encoder-only", "--format", output_format).status == 0
        result = run("export", folder, tmp_path / "out")
        assert result.status == 1
        assert "it is an encoder without decoder, which the original cannot restore" in result.err


FACTORED_NORM = ("encoder.final_layer_norm.weight.vr", "encoder.final_layer_norm.weight.vc")


def edit_slots(folder: Path, change: Callable[[dict[str, torch.Tensor], dict[str, str]], Any]) -> None:
    path = folder / "optimizer.safetensors"
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    change(tensors, metadata)
    save_file(tensors, path, metadata)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, m: t.pop("shared.weight.vr"), "lacks a slot of shared.weight: convert again, or move"),
        (lambda t, m: t.update({"shared.weight.v": torch.zeros(2)}), "lacks a slot of shared.weight"),
        (lambda t, m: t.update({"shared.weight.vr": torch.zeros(2)}), r"shared.weight.vr of .* has the shape \[2\]"),
        (
            lambda t, m: t.update({name: t["shared.weight.vr"].clone() for name in FACTORED_NORM}),
            "lacks a slot of encoder.final_layer_norm.weight",
        ),
        (lambda t, m: t.update({"shared.weight.x": torch.zeros(2)}), "has a tensor 'shared.weight.x'"),
        (lambda t, m: m.pop("factored"), "does not fit the model: convert again, or move"),
        (lambda t, m: m.update(factored="{"), "does not fit the model: convert again, or move"),
        (lambda t, m: m.update(step="x"), "says that the step is 'x'"),
    ],
)
def test_bad_optimizers(change: Any, message: str, with_slots: Callable[[str], Path], run: Run, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(with_slots("t5.1.1.tiny"), tmp_path / "folder"))
    edit_slots(folder, change)
    result = run("export", folder, tmp_path / "out")
    assert result.status == 1
    assert pytest.raises(ConversionError, match=message).matches(ConversionError(result.err)), result.err
    assert os.listdir(tmp_path) == ["folder"]


def test_outputs_that_are_in_the_way(folder: Path, run: Run, tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert run("export", folder, output).status == 0
    assert "exists: choose another folder, or pass --overwrite" in run("export", folder, output).err
    assert run("export", folder, output, "--overwrite", "--step", 3).status == 0
    assert resolve(output).prefix.name == "model.ckpt-3"
    assert sorted(os.listdir(output)) == [
        "checkpoint", "export.json", "model.ckpt-3.data-00000-of-00001", "model.ckpt-3.index", "operative_config.gin",
    ]  # fmt: skip
    # As in the folder of a run, whose other checkpoints must not go.
    for name in ("model.ckpt-4.index", "events.out"):
        (output / name).touch()
        refused = run("export", folder, output, "--overwrite").err
        assert f"(it holds {name}, which this program did not write), so --overwrite does not replace it" in refused
        (output / name).unlink()
    for mine in (folder, tmp_path):
        assert "holds the model itself" in run("export", folder, mine, "--overwrite").err


def test_a_full_disk_is_noticed_before(folder: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))  # type: ignore[attr-defined]
    result = run("export", folder, tmp_path / "out")
    assert "but the disk of" in result.err
    assert os.listdir(tmp_path) == ["folder"]


def test_an_error_on_the_way_leaves_nothing(
    folder: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = SafetensorsReader.blocks

    def fail(self: SafetensorsReader, name: str, *options: Any) -> Iterator[np.ndarray]:
        if name == "shared.weight":
            os.truncate(folder / "model.safetensors", 20_000)
        return blocks(self, name, *options)

    monkeypatch.setattr(safetensors_reader.SafetensorsReader, "blocks", fail)
    assert "changed while it was read" in run("export", folder, tmp_path / "out").err
    assert os.listdir(tmp_path) == ["folder"]


def test_a_bias_that_old_releases_saved_is_ignored(folder: Path, run: Run, tmp_path: Path) -> None:
    name = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    assert run("export", folder, tmp_path / "without").status == 0
    edit_tensors(folder, lambda tensors: tensors.update({name: torch.zeros(32, 4)}))
    assert run("export", folder, tmp_path / "with").status == 0
    assert bundle_files(tmp_path / "with") == bundle_files(tmp_path / "without")


def test_planning_reads_no_weight(folder: Path) -> None:
    """The bytes of the tensors may be anything: only the header counts."""
    found = plan_export(folder)
    assert (found.dtype, found.step, found.slots, found.notes) == ("float32", 200, 0, ())
    assert found.layout.legacy_norms
    assert found.layout.named_layers
    with pytest.raises(ConversionError, match="the dtype 'float16' is none that the original restores"):
        plan_export(folder, dtype="float16")


def test_one_file_is_read_before_several(folder: Path, tmp_path: Path) -> None:
    """As transformers does where a folder has both."""
    model = AutoModelForSeq2SeqLM.from_pretrained(folder)
    before = model.lm_head.weight.detach().clone()
    model.lm_head.weight.data.add_(1)
    (folder / "model.safetensors").rename(tmp_path / "one")
    model.save_pretrained(folder, max_shard_size="100KB")
    (tmp_path / "one").rename(folder / "model.safetensors")
    assert (folder / "model.safetensors.index.json").is_file()
    for reader in (SafetensorsReader(safetensors_reader.weight_files(folder)), open_weights(folder)):
        assert np.array_equal(reader.read("lm_head.weight"), before.numpy())


def test_weights_that_were_trained_are_the_users(reference: Path, run: Run, tmp_path: Path) -> None:
    """They have the names of those that were converted, and the optimizer's state is not theirs."""
    source, folder = reference / "golden" / "t5.1.1.tiny", tmp_path / "model"
    assert run("convert", source, folder, "--with-optimizer").status == 0
    assert run("convert", source, folder, "--with-optimizer", "--overwrite").status == 0
    assert plan_export(folder).slots
    written = (folder / "model.safetensors").read_bytes()
    edit_tensors(folder, lambda tensors: tensors["lm_head.weight"].add_(0.5))
    trained = (folder / "model.safetensors").read_bytes()
    result = run("convert", source, folder, "--overwrite")
    assert result.status == 1
    assert "(model.safetensors is not the one that this program wrote), so --overwrite does not" in result.err
    assert (folder / "model.safetensors").read_bytes() == trained
    result = run("export", folder, tmp_path / "out")
    assert result.status == 0
    assert "optimizer.safetensors is left out: the weights have changed since it was written" in result.out
    assert not any("slot" in name for name in variables_of(tmp_path / "out"))
    with pytest.raises(
        ConversionError, match=r"optimizer.safetensors of weights that have changed since: move it away"
    ):
        check_complete(folder)

    # Checksums tell of a single number, too; a record without them, of none.
    (folder / "model.safetensors").write_bytes(written)
    assert plan_export(folder).slots
    edit_tensors(folder, lambda tensors: tensors["shared.weight"][700, 3].add_(1))
    assert not plan_export(folder).slots
    record = json.loads((folder / "conversion.json").read_text())
    for row in record["tensors"].values():
        del row["crc32c"]
    del record["crc32c"]
    (folder / "conversion.json").write_text(json.dumps(record))
    assert plan_export(folder).slots
    assert run("convert", source, folder, "--overwrite").status == 0


def test_messages_name_what_is_wrong(
    folder: Path, reference: Path, spoiled_stock: Callable[..., Path], run: Run, tmp_path: Path
) -> None:
    """And not what was not asked for."""
    (tmp_path / "loop").symlink_to("loop")
    stock = spoiled_stock(num_heads="four")
    other = reference / "golden" / "t5.1.th.tiny"
    for words, message in (
        (("export", folder, tmp_path / "out", "--step", "-1"), "error: --step is -1: it must be from 0 to 2**63 - 1."),
        (("export", tmp_path / "loop", tmp_path / "out"), "cannot be read ("),
        (("export", stock, tmp_path / "out"), "): correct it."),
        (("verify", other, folder), f"error: {other} does not take the options with which {folder} was converted"),
    ):
        result = run(*words)
        assert result.status == 1
        assert message in result.err
        assert not (tmp_path / "out").exists()
