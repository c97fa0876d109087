# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""GGUF files in llama.cpp: its logits and greedy tokens are the model's.

ReLU shows that nothing else differs. llama.cpp looks GELU up in a table of float16, so that gated models differ by
1e-3 of the largest logit. Runs in an environment of its own, see `make test-ecosystem`.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

import t5_experimental
from t5_experimental.convert.export_gguf import export_gguf


llama = pytest.importorskip("llama_cpp", reason="llama-cpp-python compiles for minutes: run `make test-ecosystem`")

from tests.support.llama_cpp_model import batch, greedy, loaded, logits_of  # noqa: E402 - it imports llama_cpp


SIZES = {"vocab_size": 320, "d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 3, "num_heads": 4}
MODELS: dict[str, tuple[dict[str, Any], float]] = {
    "t5.1.0": ({"feed_forward_proj": "relu", "tie_word_embeddings": True}, 2e-5),
    "own classifier, scaled": ({"feed_forward_proj": "relu", "scale_decoder_outputs": True}, 2e-5),
    "umt5 with relu": ({"feed_forward_proj": "relu", "relative_attention_type": "bias"}, 2e-5),
    "fewer layers in the decoder": ({"feed_forward_proj": "relu", "num_decoder_layers": 2}, 2e-5),
    "t5.1.1": ({}, 1e-2),
}
TEXT = " name[The   Eagle], <extra_id_0> food [é English]"
TARGET = [0, 5, 9, 17, 33]


@pytest.fixture(scope="module", params=MODELS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    fields, _ = MODELS[request.param]
    folder: Path = tmp_path_factory.mktemp("models") / str(request.param)
    torch.manual_seed(0)
    t5_experimental.T5V11ForConditionalGeneration(t5_experimental.T5V11Config(**{**SIZES, **fields})).save_pretrained(
        folder
    )
    shutil.copy(Path(__file__).parents[1] / "data" / "restaurants.model", folder / "spiece.model")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer", "extra_ids": 100}')
    export_gguf(folder, folder / "model.gguf")
    return folder


@pytest.mark.parametrize("repeats", [1, 20])
def test_logits_and_tokens_are_those_of_the_model(folder: Path, repeats: int) -> None:
    model = t5_experimental.T5V11ForConditionalGeneration.from_pretrained(folder).eval()
    ids = AutoTokenizer.from_pretrained(folder)(TEXT).input_ids * repeats
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([ids]), decoder_input_ids=torch.tensor([TARGET])).logits[0].numpy()
        own = model.generate(torch.tensor([ids]), max_new_tokens=20, eos_token_id=None)[0].tolist()
    with loaded(folder / "model.gguf") as (theirs, context):
        assert llama.llama_encode(context, batch(ids)) == 0
        assert llama.llama_decode(context, batch(TARGET)) == 0
        found = logits_of(theirs, context, len(TARGET))
    error = np.abs(found - expected).max() / np.abs(expected).max()
    assert error <= MODELS[folder.name][1]
    with loaded(folder / "model.gguf") as (theirs, context):
        tokens = greedy(theirs, context, ids, 20)
    if folder.name != "t5.1.1":
        assert tokens == own


def test_the_vocabulary_gives_the_same_tokens(folder: Path) -> None:
    expected = AutoTokenizer.from_pretrained(folder)(TEXT).input_ids
    with loaded(folder / "model.gguf") as (theirs, _):
        found = (llama.llama_token * 512)()
        vocabulary, text = llama.llama_model_get_vocab(theirs), TEXT.encode()
        count = llama.llama_tokenize(vocabulary, text, len(text), found, 512, True, True)
        assert list(found[:count]) == expected
        assert llama.llama_vocab_eos(vocabulary) == 1


def test_an_encoder_alone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = t5_experimental.T5V11Config(**{**SIZES, "feed_forward_proj": "relu"})
    model = t5_experimental.T5V11EncoderModel(config).eval()
    model.save_pretrained(tmp_path)
    export_gguf(tmp_path, tmp_path / "model.gguf")
    ids = [5, 6, 7, 8, 1]
    with torch.no_grad():
        expected = model(torch.tensor([ids])).last_hidden_state[0].numpy()
    loaded_model = llama.llama_model_load_from_file(
        str(tmp_path / "model.gguf").encode(), llama.llama_model_default_params()
    )
    fields = llama.llama_context_default_params()
    fields.embeddings, fields.pooling_type, fields.flash_attn_type = True, 0, 0
    context = llama.llama_init_from_model(loaded_model, fields)
    assert llama.llama_encode(context, batch(ids)) == 0
    found = np.stack(
        [np.ctypeslib.as_array(llama.llama_get_embeddings_ith(context, i), (64,)) for i in range(len(ids))]
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_the_benchmark_of_rounding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sacrebleu")
    from benchmarks import gguf

    torch.manual_seed(0)
    config = t5_experimental.T5V11Config(**{**SIZES, "vocab_size": 1152, "feed_forward_proj": "relu"})
    t5_experimental.T5V11ForConditionalGeneration(config).save_pretrained(tmp_path / "model")
    shutil.copy(Path(__file__).parents[1] / "data" / "restaurants.model", tmp_path / "model" / "spiece.model")
    (tmp_path / "model" / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer", "extra_ids": 100}')
    (tmp_path / "test.csv").write_text("mr,ref\na cheap pub,One.\na cheap pub,Two.\na bar,Three.\nleft out,Four.\n")
    options = ["--test-file", str(tmp_path / "test.csv"), "--inputs", "2", "--new-tokens", "5"]
    monkeypatch.setattr(sys, "argv", ["", str(tmp_path / "model"), *options, "--output", str(tmp_path / "out")])
    gguf.main()
    results = json.loads((tmp_path / "out.json").read_text())["results"]
    assert results["inputs"] == results["float32"]["texts_equal_to_ours"] == 2
    sizes = [results[dtype]["bytes"] for dtype in gguf.DTYPES]
    assert sizes == sorted(set(sizes), reverse=True)
