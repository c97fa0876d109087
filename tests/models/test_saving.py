"""Loading and saving: the classifier is never tied, embeddings are stored once, everything comes back."""

import copy
import json
import subprocess
import sys
import zipfile

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSeq2SeqLM

import t5_experimental
from t5_experimental.configuration_t5_experimental import AUTO_CLASSES
from tests.conftest import FAMILIES
from tests.support.quick_imports import QUICKLY


def keys_of(folder):
    with safe_open(folder / "model.safetensors", "pt") as file:
        return set(file.keys())


def assert_untied(model):
    assert model.lm_head.weight.data_ptr() != model.shared.weight.data_ptr()
    assert model.encoder.embed_tokens.weight is model.shared.weight
    assert model.decoder.embed_tokens.weight is model.shared.weight


def test_round_trip_is_exact_and_stores_the_embedding_once(model, batch, tmp_path):
    assert_untied(model)
    model.save_pretrained(tmp_path)
    assert {key for key in keys_of(tmp_path) if key.startswith(("shared", "lm_head")) or "embed_tokens" in key} == {
        "shared.weight",
        "lm_head.weight",
    }
    assert not any(zipfile.is_zipfile(path) or path.suffix in {".bin", ".pt"} for path in tmp_path.iterdir())
    loaded, info = AutoModelForSeq2SeqLM.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is type(model)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert_untied(loaded)
    assert torch.equal(loaded(**batch).logits, model(**batch).logits)


def test_modules_of_another_version_do_not_stay(model, tmp_path):
    """Nothing would import them; what others wrote under such a name stays."""
    model.save_pretrained(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    ours = (tmp_path / "cache_t5_experimental.py").read_text()
    (tmp_path / "products_t5_experimental.py").write_text(ours)
    (tmp_path / "my_t5_experimental.py").write_text("print('mine')\n")
    (tmp_path / "link_t5_experimental.py").symlink_to(tmp_path / "cache_t5_experimental.py")
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {*names, "my_t5_experimental.py", "link_t5_experimental.py"}


def test_load_state_dict_does_not_tie(model, make_config):
    other = type(model)(model.config)
    other.load_state_dict(model.state_dict())
    other.tie_weights()
    assert_untied(other)
    assert torch.equal(other.lm_head.weight, model.lm_head.weight)


def test_resized_embeddings_stay_untied(model, tmp_path):
    rows = model.lm_head.weight[:1152].clone()
    model.resize_token_embeddings(1200)
    assert_untied(model)
    assert model.config.vocab_size == 1200
    assert torch.equal(model.lm_head.weight[:1152], rows)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    assert_untied(loaded)
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)


def test_a_shared_classifier_is_explicit(make_config, batch, tmp_path):
    """t5.1.0: the classifier is the embedding and the decoder's output is rescaled."""
    torch.manual_seed(0)
    model = AutoModelForSeq2SeqLM.from_config(make_config("t5.1.1", tie_word_embeddings=True)).eval()
    assert model.lm_head.weight is model.shared.weight
    model.save_pretrained(tmp_path)
    assert "lm_head.weight" not in keys_of(tmp_path)
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    assert loaded.lm_head.weight is loaded.shared.weight
    outputs = loaded(**batch, output_hidden_states=True)
    expected = outputs.decoder_hidden_states[-1] @ loaded.shared.weight.T / 32**0.5
    torch.testing.assert_close(outputs.logits, expected)
    loaded.resize_token_embeddings(1160)
    assert loaded.lm_head.weight is loaded.shared.weight


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_loads(model, batch, dtype, tmp_path):
    expected = model(**batch).logits
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path, dtype=dtype)
    # Outputs of `wo` exceed float16's range in large T5 models, so that matrix stays in float32 there.
    wo_dtype = torch.float32 if dtype == torch.float16 else dtype
    assert loaded.encoder.block[0].layer[-1].DenseReluDense.wo.weight.dtype == wo_dtype
    assert loaded.shared.weight.dtype == dtype
    error = (loaded(**batch).logits.float() - expected).abs().max() / expected.abs().max()
    assert 0 < error < (0.05 if dtype == torch.bfloat16 else 0.01)


def test_every_auto_class_builds_the_familys_class(config, tmp_path):
    prefix = type(config).__name__.removesuffix("Config")
    config.save_pretrained(tmp_path)
    for auto, suffix in AUTO_CLASSES.items():
        model = getattr(transformers, auto).from_config(transformers.AutoConfig.from_pretrained(tmp_path))
        assert type(model) is getattr(t5_experimental, prefix + suffix)


@pytest.mark.parametrize("suffix", ["Model", "EncoderModel", "ForSequenceClassification", "ForTokenClassification"])
def test_other_models_take_the_language_models_weights(model, suffix, tmp_path):
    model.save_pretrained(tmp_path)
    other_class = getattr(t5_experimental, type(model.config).__name__.removesuffix("Config") + suffix)
    other, info = other_class.from_pretrained(tmp_path, output_loading_info=True)
    heads = {key for key in info["missing_keys"] if not key.startswith(("classification_head.", "classifier."))}
    assert not heads
    backbone = getattr(other, "transformer", other)
    assert torch.equal(backbone.shared.weight, model.shared.weight)
    for name, parameter in backbone.encoder.named_parameters():
        assert torch.equal(parameter, model.encoder.get_parameter(name)), name


@pytest.mark.parametrize(
    "placement",
    [
        {
            "device_map": {
                "shared": "cpu",
                "encoder": "cpu",
                "decoder.embed_tokens": "cpu",
                "decoder.block": "disk",
                "decoder.final_layer_norm": "disk",
                "decoder.dropout": "cpu",
                "lm_head": "cpu",
            }
        },
        {"device_map": "auto", "max_memory": {"cpu": 340_000}},
    ],
    ids=["by hand", "auto"],
)
def test_device_map_with_offload(model, batch, placement, tmp_path):
    model.save_pretrained(tmp_path / "model")
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "model", **placement, offload_folder=tmp_path / "offload")
    assert "disk" in loaded.hf_device_map.values()
    with torch.no_grad():
        torch.testing.assert_close(loaded(**batch).logits, model(**batch).logits)


LOAD_WITHOUT_PACKAGE = """
import importlib.abc, os, sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "t5_experimental":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
import torch
import transformers.generation, transformers.modeling_utils
from safetensors.torch import load_file, save_file

def load(folder):
    with torch.no_grad():
        batch = load_file(f"{folder}-batch")
        model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder, trust_remote_code=True)
        logits = model(**batch).logits
        encoder = transformers.AutoModelForTextEncoding.from_pretrained(folder, trust_remote_code=True)
        hidden = encoder(batch["input_ids"], batch["attention_mask"]).last_hidden_state
        model.save_pretrained(f"{folder}-again")
    try:
        import t5_experimental
    except ModuleNotFoundError:
        save_file({"logits": logits, "hidden": hidden}, f"{folder}-outputs")

for suffix in ("", "-again"):
    if not os.fork():
        for folder in sys.argv[1:]:
            load(folder + suffix)
        os._exit(0)
    assert os.wait()[1] == 0, suffix
"""


def test_folders_carry_their_code(make_config, batch, tmp_path, monkeypatch):
    """Of every family, in a process that cannot import the package, offline; and the folders that it saves in turn in
    another one.

    Both are forked from one that has imported what transformers itself has of models.
    """
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    expected = {}
    for name in FAMILIES:
        torch.manual_seed(0)
        model = AutoModelForSeq2SeqLM.from_config(make_config(name)).eval()
        model.save_pretrained(tmp_path / name)
        expected[name] = model(**batch, output_hidden_states=True)
        auto_map = json.loads((tmp_path / name / "config.json").read_text())["auto_map"]
        assert set(auto_map) == {"AutoConfig", *AUTO_CLASSES}
    folders = {f"{tmp_path / name}{suffix}": name for suffix in ("", "-again") for name in FAMILIES}
    for folder in folders:
        save_file(batch, f"{folder}-batch")
    command = [sys.executable, "-c", QUICKLY + LOAD_WITHOUT_PACKAGE, *(str(tmp_path / name) for name in FAMILIES)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for folder, name in folders.items():
        outputs = load_file(f"{folder}-outputs")
        torch.testing.assert_close(outputs["logits"], expected[name].logits)
        torch.testing.assert_close(outputs["hidden"], expected[name].encoder_last_hidden_state)


def test_a_copy_shares_its_own_embedding(model, batch):
    copied = copy.deepcopy(model)
    assert_untied(copied)
    assert copied.shared is not model.shared
    assert torch.equal(copied(**batch).logits, model(**batch).logits)
