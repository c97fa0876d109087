# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""llama.cpp, through the functions of its own interface: an encoder-decoder model of a GGUF file, in float32."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import llama_cpp as llama
import numpy as np


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
    """Tokens at the positions from `start` on, all with logits."""
    made = llama.llama_batch_init(len(tokens), 0, 1)
    made.n_tokens = len(tokens)
    for index, token in enumerate(tokens):
        made.token[index], made.pos[index], made.logits[index] = token, start + index, 1
        made.n_seq_id[index], made.seq_id[index][0] = 1, 0
    return made


def logits_of(model: Any, context: Any, rows: int) -> np.ndarray:
    """Logits `(rows, vocabulary)` of the last batch."""
    width = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
    return np.stack(
        [np.ctypeslib.as_array(llama.llama_get_logits_ith(context, row), (width,)).copy() for row in range(rows)]
    )


def greedy(model: Any, context: Any, ids: Sequence[int], new_tokens: int, eos: int | None = None) -> list[int]:
    """The start token and the likeliest ones, up to the end-of-sequence token if there is one."""
    llama.llama_memory_clear(llama.llama_get_memory(context), True)
    assert llama.llama_encode(context, batch(ids)) == 0
    tokens = [llama.llama_model_decoder_start_token(model)]
    while len(tokens) <= new_tokens and (tokens[-1] != eos or len(tokens) == 1):
        assert llama.llama_decode(context, batch(tokens[-1:], len(tokens) - 1)) == 0
        tokens.append(int(logits_of(model, context, 1).argmax()))
    return tokens
