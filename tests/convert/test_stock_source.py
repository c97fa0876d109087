# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Folders of transformers as a source, beside their logits: what is taken over, left out, refused, and called by its
name."""

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForTextEncoding,
    AutoTokenizer,
    ByT5Tokenizer,
    LongT5Config,
    PreTrainedConfig,
    SwitchTransformersConfig,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
    T5ForSequenceClassification,
    UMT5Config,
)

import t5_experimental
from t5_experimental.convert import ConversionError, convert, inspect, verify
from t5_experimental.convert.output import safetensors_writer
from t5_experimental.convert.output.torch_reader import TorchReader
from t5_experimental.convert.plan import stock_config
from tests.support.stock_folders import SIZES, V11, Kind, build, in_shards, save_bin, with_copies, write


Sample = Callable[[str], tuple[Path, Any]]
Spoiled = Callable[..., Path]
Run = Callable[..., Any]


def change(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    """Saves the folder's tensors again after they were edited."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)
    return folder


# --- what is taken over


def test_every_tensor_is_accounted_for(stock_sample: Sample, tmp_path: Path) -> None:
    folder, _ = stock_sample("t5-base, bin")
    found = inspect(folder)
    stored = TorchReader([folder / "pytorch_model.bin"]).variables
    assert {entry.source.name for entry in found.plan.entries} | {*found.plan.drops} == {*stored}
    copy = "copy of shared.weight, equal bit for bit"
    assert found.plan.drops == {
        "encoder.embed_tokens.weight": copy,
        "decoder.embed_tokens.weight": copy,
        "lm_head.weight": copy,
        "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight": "bias of encoder-decoder attention, "
        "which T5 does not have",
    }


def test_the_command_says_what_it_found(stock_sample: Sample, run: Run, tmp_path: Path) -> None:
    folder, _ = stock_sample("t5-base, bin")
    result = run("convert", folder, tmp_path / "out", "--verify", "--dtype", "bfloat16")
    assert result.status == 0
    assert "Told by:    config.json, checked against every shape" in result.out
    assert "3 x copy of shared.weight, equal bit for bit" in result.out
    record = json.loads((tmp_path / "out" / "conversion.json").read_text())
    assert {row["dtype"] for row in record["tensors"].values()} == {"bfloat16"}
    assert run("verify", folder, tmp_path / "out").status == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| source | folder of transformers `t5-base, bin` |" in card
    assert "Mesh" not in card
    assert "license:" not in card
    assert str(tmp_path) not in card


def test_lm_adapted_folders_are_known_by_name(stock_sample: Sample, tmp_path: Path) -> None:
    folder = tmp_path / "t5-base-lm-adapt"
    folder.symlink_to(stock_sample("t5-v1_1")[0])
    assert inspect(folder).family == "t5.1.1.lm100k"
    assert type(inspect(folder).config) is t5_experimental.T5LMAdaptedConfig
    assert inspect(folder, family="t5.1.1").family == "t5.1.1"


def test_every_field_means_what_it_meant(spoiled_stock: Spoiled, tmp_path: Path) -> None:
    fields = {"dropout_rate": 0.0, "initializer_factor": 0.5, "pad_token_id": 3, "decoder_start_token_id": 2}
    folder = spoiled_stock(**fields, layer_norm_epsilon=1e-5, relative_attention_max_distance=64, rope_theta=1e4)
    found = inspect(folder)
    assert {name: getattr(found.config, name) for name in fields} == fields
    assert found.config.layer_norm_epsilon == 1e-5
    assert found.config.relative_attention_max_distance == 64
    assert "Of config.json, these fields are not taken over: rope_theta." in found.notes


def test_fields_of_any_model_are_those_of_transformers() -> None:
    assert {*PreTrainedConfig().to_dict()} <= stock_config._OF_ANY_MODEL


def test_generation_settings_and_tokenizer_are_taken_over(
    spoiled_stock: Spoiled, reference: Path, tmp_path: Path
) -> None:
    folder = spoiled_stock()
    settings = '{"decoder_start_token_id": 0, "num_beams": 3, "max_new_tokens": 5}'
    (folder / "generation_config.json").write_text(settings)
    (folder / "modules.json").write_text("[]")
    vocabulary = reference.parent / "data" / "restaurants.model"
    (folder / "spiece.model").write_bytes(vocabulary.read_bytes())
    convert(folder, tmp_path / "out")
    out = tmp_path / "out"
    assert (out / "generation_config.json").read_text() == settings
    assert (out / "spiece.model").read_bytes() == vocabulary.read_bytes()
    ours, theirs = AutoTokenizer.from_pretrained(out), AutoTokenizer.from_pretrained(folder)
    assert type(ours) is type(theirs)
    assert ours("cheap food")["input_ids"] == theirs("cheap food")["input_ids"]
    card = (out / "README.md").read_text()
    assert "The source's tokenizer is in this folder" in card
    assert "names the class T5Tokenizer, as none was named" in card
    assert "Not taken over from the folder: modules.json." in card


def test_the_tokenizer_of_byt5_and_that_of_mt5(spoiled_stock: Spoiled, reference: Path, tmp_path: Path) -> None:
    folder = spoiled_stock()
    ByT5Tokenizer().save_pretrained(folder)
    convert(folder, tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert type(tokenizer) is ByT5Tokenizer
    assert tokenizer("hé")["input_ids"] == [107, 198, 172, 1]
    for path in folder.glob("*token*"):
        path.unlink()
    (folder / "spiece.model").write_bytes((reference.parent / "data" / "restaurants.model").read_bytes())
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "MT5Tokenizer", "extra_ids": 0}')
    convert(folder, tmp_path / "mt5")
    fields = json.loads((tmp_path / "mt5" / "tokenizer_config.json").read_text())
    assert fields == {"tokenizer_class": "T5Tokenizer", "extra_ids": 0}
    assert AutoTokenizer.from_pretrained(tmp_path / "mt5")("cheap food")["input_ids"][-1] == 1


def test_a_tokenizer_with_code_of_its_own_stays_behind(spoiled_stock: Spoiled, tmp_path: Path) -> None:
    folder = spoiled_stock()
    (folder / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["x.Y", null]}}')
    convert(folder, tmp_path / "out")
    assert not (tmp_path / "out" / "tokenizer_config.json").exists()
    assert "The tokenizer is not taken over: it has code of its own" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("embedding", ["shared.weight", "encoder.embed_tokens.weight"])
def test_an_encoder_becomes_an_encoder(embedding: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {**SIZES, "num_decoder_layers": None}
    theirs = T5EncoderModel(T5Config(**sizes, num_heads=4, feed_forward_proj="gated-gelu")).eval()
    theirs.save_pretrained(tmp_path / "source")
    path = tmp_path / "source" / "model.safetensors"
    tensors = load_file(path)
    tensors[embedding] = tensors.pop("shared.weight")
    save_file(tensors, path)
    summary = convert(tmp_path / "source", tmp_path / "out", verify=True)
    assert "The folder holds an encoder alone, and so does what is written." in summary.inspection.notes
    ours, info = AutoModelForTextEncoding.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert type(ours) is t5_experimental.T5V11EncoderModel
    assert not any(info.values())
    inputs = torch.tensor([[5, 6, 7, 1, 0, 0]])
    mask = (inputs > 0).long()
    expected = theirs(inputs, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(ours(inputs, attention_mask=mask).last_hidden_state, expected, rtol=1e-5, atol=1e-5)
    verify(tmp_path / "source", tmp_path / "out")
    assert not (tmp_path / "out" / "generation_config.json").exists()


def test_an_index_without_the_decoder_is_not_an_encoder(
    spoiled_stock: Callable[..., Path], run: Callable[..., Any], tmp_path: Path
) -> None:
    folder = spoiled_stock()
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    encoder = {name: tensor for name, tensor in tensors.items() if name.startswith(("shared.", "encoder."))}
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    save_file(encoder, folder / names[0])
    save_file({name: tensor for name, tensor in tensors.items() if name not in encoder}, folder / names[1])
    index = {"weight_map": dict.fromkeys(encoder, names[0])}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    result = run("convert", folder, tmp_path / "out")
    assert (result.status, os.listdir(tmp_path)) == (1, ["source"])
    assert "has no tensor of a decoder, and its config.json does not say that it is an encoder alone" in result.err
    result = run("export-gguf", folder, tmp_path / "out")
    assert "has no tensor of a decoder, and its config.json does not say" in result.err
    result = run("convert", folder, tmp_path / "out", "--encoder-only")
    assert result.status == 0
    assert f"Not read, as the index does not name them: {names[1]}." in result.out


@pytest.mark.parametrize("name", ["t5-v1_1", "t5-base, bin", "madlad400"])
def test_the_encoder_alone_of_a_whole_model(name: str, stock_sample: Sample, tmp_path: Path) -> None:
    folder, theirs = stock_sample(name)
    summary = convert(folder, tmp_path / "out", encoder_only=True, verify=True)
    assert "decoder variable (encoder only)" in summary.inspection.plan.drops.values()
    ours = AutoModelForTextEncoding.from_pretrained(tmp_path / "out")
    inputs = torch.tensor([[5, 6, 7, 1]])
    expected = theirs.encoder(inputs).last_hidden_state
    torch.testing.assert_close(ours(inputs).last_hidden_state, expected, rtol=1e-5, atol=1e-5)


def test_stock_in_and_stock_out(stock_sample: Sample, tmp_path: Path) -> None:
    folder, theirs = stock_sample("mt5")
    convert(folder, tmp_path / "out", output_format="stock-t5")
    ours = T5ForConditionalGeneration.from_pretrained(tmp_path / "out")
    assert torch.equal(ours.lm_head.weight, theirs.lm_head.weight)
    assert torch.equal(ours.shared.weight, theirs.shared.weight)


def test_a_table_in_every_layer_goes_to_native_folders_and_to_the_original(
    stock_sample: Sample, tmp_path: Path, run: Run
) -> None:
    folder, _ = stock_sample("umt5")
    refused = run("convert", folder, tmp_path / "stock", "--format", "stock-t5")
    assert refused.status == 1
    assert "stock T5 cannot express a table of position biases in every layer: leave out --format" in refused.err
    convert(folder, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["relative_attention_type"] == "bias"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    assert run("export", tmp_path / "out", tmp_path / "mesh").status == 0
    convert(tmp_path / "mesh", tmp_path / "again")
    assert (tmp_path / "again" / "config.json").read_text() == (tmp_path / "out" / "config.json").read_text()
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "again"))
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


def test_tied_and_not_scaled_as_transformers_5_makes_it_of_a_configuration(tmp_path: Path) -> None:
    model = build(Kind(V11))
    model.lm_head.weight = model.shared.weight
    tied = {"tie_word_embeddings": True, "scale_decoder_outputs": False, "transformers_version": "5.23.0"}

    def stored(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: tensors[name] for name in tensors if "embed_tokens" not in name and name != "lm_head.weight"}

    write(tmp_path / "source", model, Kind(V11, stored, config=tied))
    found = inspect(tmp_path / "source")
    assert found.config.tie_word_embeddings
    assert not found.config.scale_decoder_outputs
    assert any("transformers 5 writes tie_word_embeddings = true of every T5" in note for note in found.notes)


# --- a source that changes, and a run that goes on


@pytest.mark.parametrize("changed", [False, True])
def test_resuming_keeps_what_is_finished_unless_the_source_changed(
    changed: bool, spoiled_stock: Spoiled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = spoiled_stock()
    written: list[str] = []
    write_one = safetensors_writer._write

    def fail_at_the_third(shard: Any, *arguments: Any) -> Any:
        if len(written) == 2:
            raise ConversionError("a disk is full.")
        written.append(shard.filename)
        return write_one(shard, *arguments)

    def count(shard: Any, *arguments: Any) -> Any:
        written.append(shard.filename)
        return write_one(shard, *arguments)

    options: dict[str, Any] = {"max_shard_size": 60_000, "resume": True}
    monkeypatch.setattr(safetensors_writer, "_write", fail_at_the_third)
    with pytest.raises(ConversionError, match="a disk is full"):
        convert(folder, tmp_path / "out", **options)
    if changed:
        os.utime(folder / "model.safetensors", ns=(1, 1))
    del written[:]
    monkeypatch.setattr(safetensors_writer, "_write", count)
    summary = convert(folder, tmp_path / "out", verify=True, **options)
    assert len(written) == len(summary.inspection.plan.shards) - (0 if changed else 2) > 0


def test_a_source_that_changes_is_an_error(spoiled_stock: Spoiled, tmp_path: Path) -> None:
    folder = spoiled_stock()

    def touch(_: object) -> None:
        with (folder / "model.safetensors").open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"\1")

    with pytest.raises(ConversionError, match="changed while it was read: run the command again"):
        convert(folder, tmp_path / "out", report=touch)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_another_source_is_found_out(spoiled_stock: Spoiled, tmp_path: Path) -> None:
    folder = spoiled_stock()
    convert(folder, tmp_path / "out")
    change(folder, lambda tensors: tensors["lm_head.weight"][3, 3].add_(1))
    with pytest.raises(ConversionError, match=r"1 of \d+ tensors of .* are wrong, first lm_head.weight, which differs"):
        verify(folder, tmp_path / "out")


def test_memory_is_bounded_by_blocks(tmp_path: Path) -> None:
    """Also of a matrix that is stored column by column, and though `torch.load` opens the file."""
    import tracemalloc

    size = 4 * 10**6
    tensors = {"shared.weight": torch.zeros(size // 8, 8), "wide": torch.zeros(8, size // 8).t()}
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    del tensors
    tracemalloc.start()
    reader = TorchReader([tmp_path / "pytorch_model.bin"])
    for name in reader.variables:
        for block in reader.blocks(name, 2**16):
            assert len(block) <= 2**16
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert reader.transposed == {"wide"}
    assert peak < 2**21 < 4 * size


# --- what is refused


def equal_embeddings(tensors: dict[str, torch.Tensor]) -> None:
    tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"].clone()
    tensors["decoder.embed_tokens.weight"] = tensors["shared.weight"] + 1


REFUSED_TENSORS: dict[str, tuple[Callable[[dict[str, torch.Tensor]], object], str]] = {
    "other embedding": (equal_embeddings, "decoder.embed_tokens.weight and shared.weight differ, but both are"),
    "no classifier": (
        lambda t: t.pop("lm_head.weight"),
        "lm_head.weight is missing, but .*tie_word_embeddings is fal",
    ),
    "no embedding": (lambda t: t.pop("shared.weight"), "none of shared.weight, .* is stored"),
    "no norm": (lambda t: t.pop("encoder.final_layer_norm.weight"), r"final_layer_norm.weight of shape \[32\] is miss"),
    "one too many": (lambda t: t.update(extra=torch.ones(2)), r"extra, of shape \[2\], is a tensor that this T5 does"),
    "a bias": (
        lambda t: t.update({"encoder.block.0.layer.0.SelfAttention.q.bias": torch.ones(2)}),
        "whose layers have no biases: this is another architecture",
    ),
    "bias in every layer": (
        lambda t: t.update({"encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight": torch.ones(32, 4)}),
        "one table of position biases per stack; umT5 has one in every layer",
    ),
    "another width": (
        lambda t: t.update({"encoder.block.1.layer.1.DenseReluDense.wo.weight": torch.ones(32, 50)}),
        r"has the shape \[32, 50\], but \[32, 48\] is expected \(d_ff\): .*config.json contradicts the weights",
    ),
    "another number of axes": (
        lambda t: t.update({"encoder.final_layer_norm.weight": torch.ones(32, 1)}),
        r"but \[32\] is expected \(another number of axes\)",
    ),
    "a head": (lambda t: t.update({"classification_head.dense.weight": torch.ones(2)}), "no language model has: only"),
    "integers": (lambda t: t.update({"lm_head.weight": torch.ones(64, 32, dtype=torch.int8)}), "has the dtype 'I8'"),
    "infinity": (lambda t: t["lm_head.weight"][0, 0].fill_(float("inf")), "lm_head.weight holds infinities or NaNs"),
}


@pytest.mark.parametrize("name", REFUSED_TENSORS)
def test_wrong_tensors_are_refused(name: str, spoiled_stock: Spoiled, run: Run, tmp_path: Path) -> None:
    edit, message = REFUSED_TENSORS[name]
    folder = change(spoiled_stock(), edit)
    with pytest.raises(ConversionError, match=message):
        convert(folder, tmp_path / "out")
    assert run("convert", folder, tmp_path / "out").status == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_a_classifier_that_should_be_the_embedding_and_is_not(spoiled_stock: Spoiled) -> None:
    with pytest.raises(ConversionError, match=r"lm_head.weight is stored and differs from it: set tie_word_embeddings"):
        inspect(spoiled_stock(tie_word_embeddings=True))


OTHER_CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "umt5 of transformers 5": (
        {**UMT5Config().to_dict(), "transformers_version": "5.23.0"},
        "says tie_word_embeddings = true of every umT5 .* set tie_word_embeddings there to what it was before",
    ),
    "umt5 of T5's weights": ({"model_type": "umt5"}, r"block.1.*relative_attention_bias.weight .* is missing"),
    "longt5": (LongT5Config().to_dict(), "LongT5, whose encoder attends to near positions"),
    "switch": (SwitchTransformersConfig().to_dict(), "Switch Transformers, whose feed-forward layers are mixtures"),
    "bert": ({"model_type": "bert"}, "a model of type 'bert', not of a T5"),
    "no type": ({"model_type": None}, "a model of type None, not of a T5"),
    "list": ({"model_type": ["t5"]}, r"a model of type \['t5'\], not of a T5"),
    "ours": ({"model_type": "t5_v1_1"}, "a model of this package .* which needs no conversion"),
    "quantized": ({"quantization_config": {"load_in_8bit": True}}, "says that the weights are quantized"),
    "tied by a word": ({"tie_word_embeddings": "yes"}, "tie_word_embeddings = 'yes' .* both must be true or false"),
    "negative": ({"d_ff": -1}, "describes no model .*d_ff"),
    "activation": ({"feed_forward_proj": "gated-nothing", "dense_act_fn": "nothing"}, "describes no model"),
    "heads": ({"num_heads": 8}, r"\(num_heads .*d_kv\): .*config.json contradicts the weights"),
    "fewer layers": ({"num_layers": 1}, "is a tensor that this T5 does not have, so this is not the model"),
    "more layers": ({"num_layers": 3}, "encoder.block.2.* is missing from the weights"),
}


@pytest.mark.parametrize("name", OTHER_CONFIGS)
def test_other_configurations_are_refused(name: str, spoiled_stock: Spoiled, run: Run) -> None:
    fields, message = OTHER_CONFIGS[name]
    folder = spoiled_stock(**fields)
    with pytest.raises(ConversionError, match=message):
        inspect(folder)
    assert run("inspect", folder).status == 1


def test_models_of_other_classes_are_refused(tmp_path: Path) -> None:
    sizes = {**SIZES, "num_heads": 4, "feed_forward_proj": "gated-gelu"}
    T5ForSequenceClassification(T5Config(**sizes)).save_pretrained(tmp_path / "classification")
    with pytest.raises(
        ConversionError, match="is stored, which no language model has: only folders of T5ForConditional"
    ):
        inspect(tmp_path / "classification")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": True}, "has no optimizer's state that could be written: leave out --with-optimizer"),
        ({"family": "t5.1.th"}, "--family t5.1.th contradicts the folder"),
        ({"d_kv": 16}, "says that d_kv is 8: leave out --d-kv"),
    ],
)
def test_options_that_contradict_the_folder(options: dict[str, Any], message: str, stock_sample: Sample) -> None:
    with pytest.raises(ConversionError, match=message):
        inspect(stock_sample("t5-v1_1")[0], **options)


def test_another_activation_may_be_asked_for(stock_sample: Sample) -> None:
    found = inspect(stock_sample("t5-v1_1")[0], feed_forward_proj="gated-silu", d_kv=8)
    assert found.config.feed_forward_proj == "gated-silu"


# --- damaged files


class Calls:
    """What unpickling would run."""

    def __reduce__(self) -> Any:
        return os.system, ("exit 1",)


def compress(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        parts = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in parts.items():
            archive.writestr(name, data)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda path: path.write_bytes(b""), "torch.load cannot read it, EOFError"),
    "junk": (lambda path: path.write_bytes(b"junk" * 99), "torch.load cannot read it, "),
    "cut off": (
        lambda path: path.write_bytes(path.read_bytes()[:-2000]),
        "is no complete file of weights that torch.save",
    ),
    "without numbers": (
        lambda path: torch.save({"shared.weight": torch.empty(64, 32, device="meta")}, path),
        "the numbers of 'shared.weight' are not in it: the tensor was on the device 'meta'",
    ),
    "runs code": (
        lambda path: path.write_bytes(pickle.dumps({"a": Calls()}, 2)),
        "but only tensors are read: no other objects are loaded",
    ),
    "runs code in an archive": (
        lambda path: torch.save({"a": Calls()}, path),
        "but only tensors are read: no other objects are loaded",
    ),
    "no table": (lambda path: torch.save([torch.ones(2)], path), "holds a list instead of tensors by name"),
    "nested": (lambda path: torch.save({"state_dict": {}}, path), "its 'state_dict' is a dict, not a tensor"),
    "integers": (lambda path: torch.save({"a": torch.ones(2, dtype=torch.int8)}, path), "has the dtype int8"),
    "gaps": (lambda path: torch.save({"a": torch.ones(4, 4)[:, :2]}, path), "are not stored one after the other"),
    "negative": (lambda path: torch.save({"a": torch._neg_view(torch.ones(4))}, path), "with the opposite sign"),
    "negative, in memory": (
        lambda path: torch.save({"a": torch._neg_view(torch.ones(4))}, path, _use_new_zipfile_serialization=False),
        "with the opposite sign, which resolve_neg",
    ),
    "sparse": (lambda path: torch.save({"a": torch.ones(4, 4).to_sparse()}, path), "is no complete file of weights"),
    "compressed": (compress, "in it is compressed"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "has a config.json but no weights"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_files_of_torch_save_are_refused(name: str, tmp_path: Path) -> None:
    damage, message = DAMAGES[name]
    kind = Kind(V11, with_copies, save_bin)
    write(tmp_path / "source", build(kind), kind)
    damage(tmp_path / "source" / "pytorch_model.bin")
    with pytest.raises(ConversionError, match=message):
        convert(tmp_path / "source", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


@pytest.mark.parametrize("at", [0, 4, 100, -1])
def test_a_damaged_header_is_refused(at: int, spoiled_stock: Spoiled, tmp_path: Path) -> None:
    path = spoiled_stock() / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-1] if at == -1 else data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :])
    with pytest.raises(ConversionError, match=r"model\.safetensors is no complete safetensors file"):
        convert(path.parent, tmp_path / "out")


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    kind = Kind(V11, save=in_shards(torch.save, "pytorch_model-{:05d}-of-00003.bin"))
    write(tmp_path / "source", build(kind), kind)
    (tmp_path / "source" / "pytorch_model-00002-of-00003.bin").unlink()
    with pytest.raises(ConversionError, match=r"pytorch_model-00002-of-00003.bin is missing: copy all files"):
        inspect(tmp_path / "source")


@pytest.mark.parametrize("name", ["generation_config.json", "tokenizer_config.json", "config.json"])
def test_damaged_json_is_refused(name: str, spoiled_stock: Spoiled) -> None:
    folder = spoiled_stock()
    (folder / name).write_text('{"a": ')
    with pytest.raises(ConversionError, match=rf"{name} cannot be read"):
        inspect(folder)


# --- sources of other kinds

OTHERS: dict[str, tuple[dict[str, bytes], str]] = {
    "T5X without its index": (
        {"target.x/.zarray": b"{}"},
        "a checkpoint of T5X without its index, the file `checkpoint`",
    ),
    "T5X, one above": ({"checkpoint_1000/target.x/0": b""}, "a checkpoint of T5X without its index"),
    "Orbax without arrays": ({"_CHECKPOINT_METADATA": b"{}"}, "an Orbax checkpoint without an array, or without their"),
    "Orbax, one above": ({"7/_CHECKPOINT_METADATA": b"{}"}, "an Orbax checkpoint without an array"),
    "Flax": ({"config.json": b"{}", "other.msgpack": b""}, "a file of Flax under another name"),
    "TF2": ({"config.json": b"{}", "other.h5": b""}, "an HDF5 file under another name"),
    "GGUF": ({"t5-q4.gguf": b"GGUF"}, "a GGUF file of llama.cpp"),
    "ONNX": ({"config.json": b"{}", "encoder_model.onnx": b""}, "an ONNX graph"),
    "SavedModel": ({"saved_model.pb": b"", "variables/variables.index": b""}, "a TensorFlow SavedModel"),
    "adapter": ({"adapter_config.json": b"{}", "adapter_model.safetensors": b""}, "an adapter of peft"),
    "no weights": ({"config.json": b"{}"}, "has a config.json but no weights: copy model.safetensors"),
    "no config": ({"model.safetensors": b""}, "has weights of transformers but no config.json"),
}


def make_files(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


@pytest.mark.parametrize("name", OTHERS)
def test_what_cannot_be_read_is_called_by_its_name(name: str, run: Run, tmp_path: Path) -> None:
    files, message = OTHERS[name]
    folder = make_files(tmp_path / "source", files)
    for command in (["inspect", folder], ["convert", folder, tmp_path / "out"]):
        result = run(*command)
        assert result.status == 1
        assert message in result.err
        assert ".index" not in result.err.replace("variables.index", "")
        assert len(result.err.strip().splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.gguf", "a GGUF file of llama.cpp, which cannot be read yet"),
        ("flax_model.msgpack", "is one file of a model: give the folder that it is in"),
        ("tf_model.h5", "is one file of a model: give the folder that it is in"),
        (
            "other.h5",
            "an HDF5 file under another name, which cannot be read yet: give the folder in which transformers",
        ),
        ("model.safetensors", "is one file of a model: give the folder that it is in"),
        ("pytorch_model.bin", "is one file of a model: give the folder that it is in"),
        ("config.json", "is one file of a model: give the folder that it is in"),
    ],
)
def test_a_file_is_called_by_its_name(name: str, message: str, run: Run, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"x")
    result = run("inspect", tmp_path / name)
    assert result.status == 1
    assert message in result.err


def test_a_mesh_checkpoint_stays_one_beside_other_files(golden_copy: Callable[..., Path]) -> None:
    folder = golden_copy("t5.1.1.tiny")
    make_files(folder, {"config.json": b"{}", "model.safetensors": b"", "flax_model.msgpack": b""})
    assert inspect(folder).checkpoint.kind == "mesh"
