# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""GGUF files in llama.cpp: its logits and greedy tokens are the model's.

ReLU shows that nothing else differs. llama.cpp looks GELU up in a table of float16, so that gated models differ by
1e-3 of the largest logit. Runs in an environment of its own, see `make test-ecosystem`.
"""

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

import t5_experimental
from t5_experimental.convert.export_gguf import export_gguf


llama = pytest.importorskip("llama_cpp", reason="llama-cpp-python compiles for minutes: run `make test-ecosystem`")

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


@contextlib.contextmanager
def loaded(path: Path) -> Iterator[tuple[Any, Any]]:
    """Model and context; the cache in float32, as ours is."""
    model = llama.llama_model_load_from_file(str(path).encode(), llama.llama_model_default_params())
    assert model, path
    fields = llama.llama_context_default_params()
    fields.n_ctx = fields.n_batch = fields.n_ubatch = 1024
    fields.n_seq_max = 1
    fields.type_k = fields.type_v = 0
    fields.flash_attn_type = 0
    context = llama.llama_init_from_model(model, fields)
    yield model, context
    llama.llama_free(context)
    llama.llama_model_free(model)


def batch(tokens: Sequence[int], start: int = 0) -> Any:
    made = llama.llama_batch_init(len(tokens), 0, 1)
    made.n_tokens = len(tokens)
    for index, token in enumerate(tokens):
        made.token[index], made.pos[index], made.logits[index] = token, start + index, 1
        made.n_seq_id[index], made.seq_id[index][0] = 1, 0
    return made


def logits_of(model: Any, context: Any, rows: int) -> np.ndarray:
    width = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
    return np.stack(
        [np.ctypeslib.as_array(llama.llama_get_logits_ith(context, row), (width,)).copy() for row in range(rows)]
    )


@pytest.mark.parametrize("repeats", [1, 20])
def test_logits_and_tokens_are_those_of_the_model(folder: Path, repeats: int) -> None:
    model = t5_experimental.T5V11ForConditionalGeneration.from_pretrained(folder).eval()
    ids = AutoTokenizer.from_pretrained(folder)(TEXT).input_ids * repeats
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([ids]), decoder_input_ids=torch.tensor([TARGET])).logits[0].numpy()
        greedy = model.generate(torch.tensor([ids]), max_new_tokens=20, eos_token_id=None)[0].tolist()
    with loaded(folder / "model.gguf") as (theirs, context):
        assert llama.llama_encode(context, batch(ids)) == 0
        assert llama.llama_decode(context, batch(TARGET)) == 0
        found = logits_of(theirs, context, len(TARGET))
    error = np.abs(found - expected).max() / np.abs(expected).max()
    assert error <= MODELS[folder.name][1]
    with loaded(folder / "model.gguf") as (theirs, context):
        assert llama.llama_encode(context, batch(ids)) == 0
        tokens = [llama.llama_model_decoder_start_token(theirs)]
        while len(tokens) < len(greedy):
            assert llama.llama_decode(context, batch(tokens[-1:], len(tokens) - 1)) == 0
            tokens.append(int(logits_of(theirs, context, 1).argmax()))
    if folder.name != "t5.1.1":
        assert tokens == greedy


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
