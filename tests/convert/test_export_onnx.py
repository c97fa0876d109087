# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""`t5-experimental export-onnx`: graphs that ONNX Runtime computes as torch computes the models, for all families."""

import importlib.util
import json
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from transformers import AutoConfig, AutoModelForSeq2SeqLM, AutoTokenizer

import t5_experimental
from t5_experimental.convert import export_onnx
from t5_experimental.convert.errors import ConversionError
from t5_experimental.convert.onnx import checking, exporter
from t5_experimental.convert.output import onnx_files
from tests.support.onnx_generation import OnnxModel


Run = Callable[..., SimpleNamespace]

# Both kinds of attention, and layers of two widths, in one model, as tracing takes its time. t5.1.1 is exported in half
# precision below, with a table of biases in every layer, and so is the encoder of t5.1.th; docs/convert.md exports all
# of t5.1.th.
TALKING_AND_NARROW = [{"num_heads": 2, "d_ff": 32, "attention_type": "talking_heads"}, {}]
SIZES = {
    "t5.1.th": {"num_layers": 1},
    "t5.1.n4w10": {"num_layers": 2, "layer_overrides": dict.fromkeys(("encoder", "decoder"), TALKING_AND_NARROW)},
}
STEPS = 12


@pytest.fixture(scope="session")
def exported(once: Callable[..., Path]) -> Callable[..., tuple[Any, Path]]:
    """`exported(name, kind, arguments, **overrides)`: a model and the folder that the command made of it."""
    from t5_experimental.convert.cli import main
    from tests.conftest import tiny_config

    made: dict[str, tuple[Any, Path]] = {}

    def export(
        name: str, kind: str = "ForConditionalGeneration", arguments: tuple[str, ...] = (), **overrides: Any
    ) -> Any:
        key = repr((name, kind, arguments, overrides))
        if key not in made:
            config = tiny_config(name, **{**SIZES.get(name, {}), **overrides})
            torch.manual_seed(0)
            model = getattr(t5_experimental, type(config).__name__.removesuffix("Config") + kind)(config).eval()

            def make(folder: Path) -> None:
                model.save_pretrained(folder / "model")
                assert main(["export-onnx", str(folder / "model"), str(folder / "out"), *arguments]) == 0

            made[key] = model, once(f"onnx-{zlib.crc32(key.encode())}", make) / "out"
        return made[key]

    return export


def batch(size: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and a mask; of several rows, one is padded on the right, one on the left."""
    ids = torch.randint(2, 1000, (size, length), generator=torch.Generator().manual_seed(length))
    mask = torch.ones_like(ids)
    if size > 1:
        mask[0, length - 2 :] = mask[-1, :2] = 0
    return ids * mask, mask


@pytest.mark.slow
def test_greedy_tokens_and_logits_are_those_of_torch(exported: Callable[..., Any]) -> None:
    model, folder = exported("t5.1.n4w10")
    runtime = OnnxModel(folder)
    assert runtime.is_merged
    for size in (1, 3):
        for length in (5, 40):
            compare(model, runtime, *batch(size, length))


def compare(model: Any, runtime: OnnxModel, ids: torch.Tensor, mask: torch.Tensor, tolerance: float = 1e-4) -> None:
    """Encoder, logits of every step, and tokens."""
    with torch.no_grad():
        states = model.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
    assert difference(runtime.encode(ids.numpy(), mask.numpy()), states) < tolerance
    expected = model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=STEPS,
        return_dict_in_generate=True,
        output_logits=True,
        skip_padding=False,
    )
    steps = len(expected.logits)
    tokens, logits = runtime.greedy(ids.numpy(), mask.numpy(), steps)
    assert difference(logits, torch.stack(expected.logits, 1)) < tolerance
    assert tokens.tolist() == expected.sequences.tolist()
    assert len(set(tokens.flatten().tolist())) > 2  # one token again and again would tell nothing


def difference(found: np.ndarray, expected: torch.Tensor) -> float:
    wide = expected.double().numpy()
    return float(np.abs(found - wide).max() / np.abs(wide).max())


@pytest.mark.slow
def test_two_decoders_in_half_precision_with_a_shared_embedding(exported: Callable[..., Any]) -> None:
    """And with a table of position biases in every layer."""
    model, folder = exported(
        "t5.1.1",
        arguments=("--unmerged", "--dtype", "float16"),
        num_layers=1,
        num_decoder_layers=2,
        tie_word_embeddings=True,
        relative_attention_type="bias",
    )
    graphs = ["decoder_model.onnx", "decoder_with_past_model.onnx", "encoder_model.onnx"]
    assert sorted(path.name for path in folder.glob("*.onnx*")) == graphs
    runtime = OnnxModel(folder)
    assert runtime.encoder.get_outputs()[0].type == "tensor(float16)"
    ids, mask = batch(3, 40)
    tokens, logits = runtime.greedy(ids.numpy(), mask.numpy(), 3)
    with torch.no_grad():
        outputs = model(input_ids=ids, attention_mask=mask, decoder_input_ids=torch.from_numpy(tokens[:, :-1]))
        tables = [block.layer[0].SelfAttention.relative_attention_bias.weight for block in model.decoder.block]
        tables[0].data, tables[1].data = tables[1].data, tables[0].data
        swapped = model(input_ids=ids, attention_mask=mask, decoder_input_ids=torch.from_numpy(tokens[:, :-1]))
    assert difference(logits, outputs.logits) < checking.TOLERANCES["float16"]
    assert difference(logits, swapped.logits) > checking.TOLERANCES["float16"]  # or it would tell nothing
    assert "use_merged=False" in (folder / "README.md").read_text()


@pytest.mark.slow
def test_an_encoder_alone(exported: Callable[..., Any]) -> None:
    import onnxruntime

    model, folder = exported("t5.1.th", kind="EncoderModel", arguments=("--opset", "18"))
    assert [path.name for path in folder.glob("*.onnx*")] == ["model.onnx"]
    assert onnx.load(folder / "model.onnx").opset_import[0].version == 18
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    for size, length in ((1, 5), (3, 150)):
        ids, mask = batch(size, length)
        (found,) = session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
        with torch.no_grad():
            assert difference(found, model(input_ids=ids, attention_mask=mask).last_hidden_state) < 1e-4
    fields = json.loads((folder / "config.json").read_text())
    assert (fields["architectures"], fields["is_encoder_decoder"]) == (["T5EncoderModel"], False)
    assert not (folder / "generation_config.json").exists()
    assert "ORTModelForFeatureExtraction" in (folder / "README.md").read_text()


@pytest.mark.slow
def test_the_merged_decoder_holds_every_weight_once(exported: Callable[..., Any]) -> None:
    model, folder = exported("t5.1.n4w10")
    decoder = onnx.load(folder / "decoder_model_merged.onnx")
    onnx.checker.check_model(decoder, full_check=True)
    held = sum(np.prod(tensor.dims, dtype=int) for tensor in decoder.graph.initializer if len(tensor.dims) > 1)
    parameters = [*model.decoder.parameters(), *model.lm_head.parameters()]
    assert held == sum(parameter.numel() for parameter in parameters if parameter.ndim > 1)
    # Nothing of this machine, and no weight that a runtime would have to transpose.
    assert str(Path(torch.__file__).parents[1]).encode() not in decoder.SerializeToString()
    weights = {tensor.name for tensor in decoder.graph.initializer}
    branches = [attribute.g for node in decoder.graph.node for attribute in node.attribute]
    assert len(branches) == 2
    transposes = [node for graph in branches for node in graph.node if node.op_type == "Transpose"]
    assert transposes
    assert [node.input[0] for node in transposes if node.input[0] in weights] == []


@pytest.mark.slow
def test_config_is_one_that_every_loader_knows(exported: Callable[..., Any]) -> None:
    model, folder = exported("t5.1.n4w10")
    config = AutoConfig.from_pretrained(folder)
    assert type(config).__name__ == "T5Config"
    assert (config.num_heads, config.num_decoder_layers, config.d_kv) == (4, 2, 8)
    own = config.t5_experimental
    assert own["model_type"] == "t5_first_layers_narrow"
    assert t5_experimental.T5FirstLayersNarrowConfig.from_dict(own).layer_overrides == model.config.layer_overrides
    with pytest.raises(OSError, match="no file named"):
        AutoModelForSeq2SeqLM.from_pretrained(folder)
    assert json.loads((folder / "generation_config.json").read_text())["decoder_start_token_id"] == 0
    record = json.loads((folder / "export.json").read_text())
    assert record["files"] == sorted([*record["crc32c"], "export.json"]) == sorted(os.listdir(folder))
    assert "t5_first_layers_narrow" in (folder / "README.md").read_text()


@pytest.mark.slow
def test_large_weights_get_a_file_of_their_own(
    reference: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the tokenizer comes along, in the words of transformers 4; the model is one of stock T5."""
    monkeypatch.setattr(exporter, "LARGEST_FILE", 1000)
    options = (
        "--format",
        "stock-t5",
        "--encoder-only",
        "--vocab",
        Path(__file__).parents[1] / "data/restaurants.model",
    )
    stock = tmp_path / "stock"
    assert run("convert", reference / "golden" / "t5.1.1.tiny", stock, *options).status == 0
    result = run("export-onnx", stock, tmp_path / "out")
    assert result.status == 0, result.err
    assert "computed what torch" in result.out
    assert "T5V11EncoderModel" in result.out
    graph, weights = (tmp_path / "out" / f"model.onnx{end}" for end in ("", "_data"))
    assert graph.stat().st_size < weights.stat().st_size
    fields = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert "extra_special_tokens" not in fields
    assert len(fields["additional_special_tokens"]) == 100
    text = "cheap food <extra_id_0> by the river"
    tokenizers = [AutoTokenizer.from_pretrained(folder) for folder in (stock, tmp_path / "out")]
    assert tokenizers[0](text).input_ids == tokenizers[1](text).input_ids


def test_stock_folders_with_a_table_of_biases_in_every_layer(
    stock_sample: Callable[[str], tuple[Path, Any]],
) -> None:
    """What is exported of them is one of our models."""
    folder, model = stock_sample("umt5")
    found = export_onnx.plan_onnx(folder)
    assert (found.model_type, found.class_name) == ("umt5", "T5V11ForConditionalGeneration")
    ids, mask = batch(3, 40)
    inputs = {"input_ids": ids % 64, "attention_mask": mask, "decoder_input_ids": ids[:, :7] % 64}
    with torch.no_grad():
        ours, theirs = (some(**inputs).logits for some in (export_onnx._load(found, "float32"), model))
    assert difference(ours.numpy(), theirs) < 1e-4


def test_what_transformers_5_calls_the_tokenizer_is_translated(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "in" / "tokenizer.json").write_text("{}")
    fields = {"tokenizer_class": "TokenizersBackend", "extra_special_tokens": ["<extra_id_0>"], "eos_token": "</s>"}
    (tmp_path / "in" / "tokenizer_config.json").write_text(json.dumps(fields))
    assert onnx_files.copy_tokenizer(tmp_path / "in", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "tokenizer_config.json").read_text()) == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "additional_special_tokens": ["<extra_id_0>"],
        "eos_token": "</s>",
    }


@pytest.mark.slow
def test_the_comparison_sees_damage(exported: Callable[..., Any], tmp_path: Path) -> None:
    model, folder = exported("t5.1.n4w10")
    for name in ("encoder_model.onnx", "decoder_model_merged.onnx"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    wanted = checking.cases(model, encoder_only=False)
    assert checking.check(tmp_path, wanted, "float32") < 1e-5
    path = tmp_path / "decoder_model_merged.onnx"
    for damage in ("permuted", "one element", "other mask"):
        decoder = onnx.load(folder / path.name)
        spoil(decoder, damage)
        onnx.save(decoder, path)
        message = r"decoder_model_merged.onnx computes other numbers than torch: at batch"
        with pytest.raises(ConversionError, match=message):
            checking.check(tmp_path, wanted, "float32")


def spoil(decoder: onnx.ModelProto, damage: str) -> None:
    """Changes one weight, or what is added to hidden positions."""
    for tensor in decoder.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor).copy()
        if damage == "other mask" and array.ndim == 0 and array.dtype == np.float32 and array < -1e30:
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.zeros_like(array), tensor.name))
        elif damage != "other mask" and "block.0.layer.1.EncDecAttention.q.weight" in tensor.name:
            if damage == "permuted":
                array = array[:, ::-1].copy()
            else:
                array[3, 5] += 1
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))


def test_other_numbers_leave_nothing(
    run: Run, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the comparison refuses does not get its name, and what had it stays."""

    def refuse(*_: Any) -> float:
        raise ConversionError("other numbers")

    monkeypatch.setattr(checking, "check", refuse)
    result = run("export-onnx", tiny_folder, tmp_path / "out")
    assert result.status == 1
    assert result.err.endswith("error: other numbers\n")
    assert sorted(os.listdir(tmp_path)) == ["model"]


def test_without_onnxruntime_the_outputs_are_not_compared(
    run: Run, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide(monkeypatch, "onnxruntime")
    result = run("export-onnx", tiny_folder, tmp_path / "out")
    assert result.status == 0, result.err
    assert "have not been compared with torch's" in result.out
    assert "have not been compared with torch's" in (tmp_path / "out" / "README.md").read_text()
    assert (tmp_path / "out" / "model.onnx").is_file()


@pytest.fixture
def tiny_folder(make_config: Callable[..., Any], tmp_path: Path) -> Path:
    """The smallest model: an encoder of one layer."""
    t5_experimental.T5V11EncoderModel(make_config("t5.1.1", num_layers=1)).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def hide(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """Has Python find a package no more."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == package else find(name, *rest))


@pytest.mark.parametrize("package", ["onnx", "onnx_ir", "onnxscript"])
def test_a_package_is_missing(
    package: str, run: Run, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide(monkeypatch, package)
    result = run("export-onnx", tiny_folder, tmp_path / "out")
    assert (result.status, os.listdir(tmp_path)) == (1, ["model"])
    assert result.err == (
        f'error: {package} is not installed, which writes ONNX: pip install "t5-experimental[onnx]".\n'
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"architectures": ["T5V11ForSequenceClassification"]},
            "holds 'T5V11ForSequenceClassification': only a language model (T5V11ForConditionalGeneration) or an "
            "encoder (T5V11EncoderModel) is exported to ONNX",
        ),
        ({"architectures": ["T5V11Model"]}, "holds 'T5V11Model': only a language model"),
        ({"architectures": None}, "has no tensor for decoder."),
        ({"architectures": ["T5V11EncoderModel", 3]}, "holds ['T5V11EncoderModel', 3]: only a language model"),
        ({"architectures": ["T5EncoderModel"]}, "holds 'T5EncoderModel': only a language model"),
        ({"model_type": "bert"}, "holds a model of type 'bert', which is none of these families"),
        ({"model_type": ["t5"]}, "holds a model of type ['t5'], which is none of these families"),
        ({"num_layers": 2}, "has no tensor for encoder.block.1"),
        ({"d_ff": 48}, "has the shape"),
        ({"d_kv": "wide"}, "does not load"),
    ],
    ids=str,
)
def test_folders_that_are_refused(
    fields: dict[str, Any], message: str, run: Run, tiny_folder: Path, tmp_path: Path
) -> None:
    path = tiny_folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    refused(run("export-onnx", tiny_folder, tmp_path / "out"), message, tmp_path)


def refused(result: SimpleNamespace, message: str, folder: Path) -> None:
    """One sentence, and nothing written."""
    assert result.status == 1
    assert "Model:" not in result.out
    assert result.err.startswith("error: ")
    assert message in result.err
    assert result.err.count("\n") == 1
    assert os.listdir(folder) == ["model"]


def test_what_is_no_folder_of_a_model(run: Run, tiny_folder: Path, tmp_path: Path) -> None:
    refused(run("export-onnx", tmp_path / "none", tmp_path / "out"), "it has no config.json", tmp_path)
    (tiny_folder / "config.json").rename(tiny_folder / "adapter_config.json")
    refused(run("export-onnx", tiny_folder, tmp_path / "out"), "holds an adapter: merge it", tmp_path)
    (tiny_folder / "config.json").write_text("{")
    refused(run("export-onnx", tiny_folder, tmp_path / "out"), "cannot be read", tmp_path)


def test_outputs_and_options_that_are_refused(run: Run, tiny_folder: Path, tmp_path: Path) -> None:
    refused(run("export-onnx", tiny_folder, tiny_folder), "holds the model itself", tmp_path)
    refused(run("export-onnx", tiny_folder, tmp_path / "out", "--unmerged"), "is about the decoder", tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("")
    for option, message in (((), "pass --overwrite"), (("--overwrite",), "so --overwrite does not replace it")):
        result = run("export-onnx", tiny_folder, tmp_path / "out", *option)
        assert (result.status, os.listdir(tmp_path / "out")) == (1, ["mine.txt"])
        assert message in result.err
    for arguments, message in (
        ({"dtype": "bfloat16"}, "the dtype 'bfloat16' is none of those that are written: float32, float16"),
        ({"opset": 17}, "the opset 17 is none of 18 to 23: use 20"),
        ({"opset": True}, "the opset True is none"),
    ):
        with pytest.raises(ConversionError, match=message):
            export_onnx.export_onnx(tiny_folder, tmp_path / "other", **arguments)
