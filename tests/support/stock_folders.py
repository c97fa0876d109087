# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Folders of transformers' T5 as the hub has them, made by transformers' own classes, and the models in them."""

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from transformers import (
    MT5Config,
    MT5ForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
    UMT5Config,
    UMT5ForConditionalGeneration,
)

from .framework_weights import save_flax, save_flax_in_chunks, save_flax_in_shards, save_tf2, save_tf2_in_shards


SIZES = {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_decoder_layers": 3}
CROSS_BIAS = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")

Tensors = dict[str, torch.Tensor]


def whole(tensors: Tensors) -> Tensors:
    """Every matrix once, as `save_pretrained` of transformers 4 writes safetensors."""
    return {name: tensor for name, tensor in tensors.items() if name not in COPIES}


def tied(tensors: Tensors) -> Tensors:
    return {name: tensor for name, tensor in whole(tensors).items() if name != "lm_head.weight"}


def with_copies(tensors: Tensors) -> Tensors:
    """All names, as files of `torch.save` have them, and the bias that nothing reads."""
    return {**tensors, CROSS_BIAS: torch.randn(32, 4)}


def of_madlad(tensors: Tensors) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if name not in ("shared.weight", COPIES[0])}


def column_by_column(tensors: Tensors) -> Tensors:
    """Kernels as they come from TensorFlow, whose matrices are the transposes."""
    return {
        name: tensor.t().contiguous().t() if tensor.ndim == 2 and "block" in name else tensor
        for name, tensor in tensors.items()
    }


def save_one(tensors: Tensors, folder: Path) -> None:
    save_file(
        {name: tensor.clone() for name, tensor in tensors.items()}, folder / "model.safetensors", {"format": "pt"}
    )


def in_shards(save: Callable[[Tensors, Path], object], pattern: str) -> Callable[[Tensors, Path], None]:
    def write(tensors: Tensors, folder: Path) -> None:
        names = sorted(tensors)
        parts = {pattern.format(k + 1): names[k::3] for k in range(3)}
        for filename, part in parts.items():
            save({name: tensors[name].clone() for name in part}, folder / filename)
        index = {"metadata": {}, "weight_map": {name: file for file, part in parts.items() for name in part}}
        stem = pattern.replace("-{:05d}-of-00003", "")
        (folder / f"{stem}.index.json").write_text(json.dumps(index))

    return write


def save_bin(tensors: Tensors, folder: Path) -> None:
    torch.save(tensors, folder / "pytorch_model.bin")


def save_old_bin(tensors: Tensors, folder: Path) -> None:
    torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)


class Kind(NamedTuple):
    """A folder as the hub has it."""

    fields: Mapping[str, Any]
    stored: Callable[[Tensors], Tensors] = whole
    save: Callable[[Tensors, Path], None] = save_one
    config: Mapping[str, Any] = {}
    model_type: str = "t5"
    is_tied: bool = False
    dtype: torch.dtype = torch.float32
    left_out: int = 0


V11: Mapping[str, Any] = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
V10: Mapping[str, Any] = {"feed_forward_proj": "relu"}
KINDS = {
    "t5-v1_1": Kind(V11),
    "t5-v1_1, shards": Kind(V11, save=in_shards(save_file, "model-{:05d}-of-00003.safetensors")),
    "t5-v1_1, bin": Kind(V11, with_copies, save_bin, left_out=3),
    "t5-v1_1, bin from TensorFlow": Kind(
        V11, lambda tensors: column_by_column(with_copies(tensors)), save_bin, left_out=3
    ),
    "t5-v1_1, bin in shards": Kind(V11, save=in_shards(torch.save, "pytorch_model-{:05d}-of-00003.bin")),
    "t5-v1_1, bin of PyTorch 1.5": Kind(V11, lambda tensors: column_by_column(whole(tensors)), save_old_bin),
    "t5-v1_1, bfloat16": Kind(V11, dtype=torch.bfloat16),
    "t5-v1_1, bin of bfloat16": Kind(V11, with_copies, save_bin, dtype=torch.bfloat16, left_out=3),
    "t5-base": Kind(V10, tied, is_tied=True),
    "t5-base, bin": Kind(V10, with_copies, save_bin, is_tied=True, left_out=4),
    "flan-t5": Kind({**V11, "decoder_start_token_id": 0, "n_positions": 512}),
    "flan-t5 saved by transformers 5": Kind(
        V11, config={"tie_word_embeddings": True, "scale_decoder_outputs": False, "transformers_version": "5.23.0"}
    ),
    "ul2": Kind({**V11, "feed_forward_proj": "gated-silu", "layer_norm_epsilon": 1e-5}),
    "madlad400": Kind(V11, of_madlad),
    "mt5": Kind({"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}, model_type="mt5"),
    "mt5 saved by transformers 5": Kind(
        {}, config={"tie_word_embeddings": True, "transformers_version": "5.23.0"}, model_type="mt5"
    ),
    "umt5": Kind({"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}, model_type="umt5"),
    "umt5, tied": Kind({"feed_forward_proj": "gated-gelu"}, tied, model_type="umt5", is_tied=True),
    "umt5, bin": Kind(
        {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
        with_copies,
        save_bin,
        model_type="umt5",
        left_out=3,
    ),
    "mt5, bin": Kind({"feed_forward_proj": "gated-gelu"}, with_copies, save_bin, model_type="mt5", left_out=3),
}
# The same in the files of Flax and TensorFlow 2, which transformers 5 does not load.
FRAMEWORK_KINDS = {
    "t5-v1_1, Flax": Kind(V11, save=save_flax),
    "t5-v1_1, Flax in shards": Kind(V11, save=save_flax_in_shards),
    "t5-v1_1, Flax in chunks": Kind(V11, save=save_flax_in_chunks),
    "t5-v1_1, Flax, bfloat16": Kind(V11, save=save_flax, dtype=torch.bfloat16),
    "t5-v1_1, Flax, float16": Kind(V11, save=save_flax, dtype=torch.float16),
    "t5-base, Flax": Kind(V10, tied, save_flax, is_tied=True),
    "t5-base, Flax with a copy": Kind(V10, whole, save_flax, is_tied=True, left_out=1),
    "mt5, Flax": Kind(
        {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}, save=save_flax, model_type="mt5"
    ),
    "t5-v1_1, TensorFlow 2": Kind(V11, save=save_tf2),
    "t5-v1_1, TensorFlow 2 in shards": Kind(V11, save=save_tf2_in_shards),
    "t5-v1_1, TensorFlow 2 with copies": Kind(V11, dict, save_tf2, left_out=2),
    "t5-base, TensorFlow 2": Kind(V10, tied, save_tf2, is_tied=True),
}
CLASSES = {
    "t5": (T5Config, T5ForConditionalGeneration),
    "mt5": (MT5Config, MT5ForConditionalGeneration),
    "umt5": (UMT5Config, UMT5ForConditionalGeneration),
}


def build(kind: Kind) -> Any:
    """transformers' model in the one way that is right: transformers 5 ties by force what it makes of a configuration
    or loads."""
    config_class, model_class = CLASSES[kind.model_type]
    fields = {name: value for name, value in kind.fields.items() if name != "tie_word_embeddings"}
    config = config_class(**{**SIZES, "num_heads": 4, "decoder_start_token_id": 0, **fields})
    config.tie_word_embeddings = config.scale_decoder_outputs = kind.is_tied
    torch.manual_seed(0)
    model = model_class(config).eval()
    for stack in (model.encoder, model.decoder):
        stack.embed_tokens = model.shared
    model.lm_head.weight = model.shared.weight if kind.is_tied else torch.nn.Parameter(torch.empty(64, 32))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.3)
    return model.to(kind.dtype)


def write(folder: Path, model: Any, kind: Kind) -> None:
    """The folder as transformers 4 wrote it, unless the kind says otherwise."""
    folder.mkdir()
    fields = {**model.config.to_dict(), "transformers_version": "4.40.0", **kind.fields}
    for name in ("scale_decoder_outputs", "tie_word_embeddings"):
        if name not in kind.fields:
            del fields[name]
    (folder / "config.json").write_text(json.dumps({**fields, **kind.config}))
    kind.save(kind.stored(dict(model.state_dict(keep_vars=False))), folder)


def logits_of(model: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    inputs, labels = (torch.randint(2, 64, (2, length), generator=generator) for length in (9, 7))
    mask = torch.ones_like(inputs)
    inputs[1, 6:] = mask[1, 6:] = 0
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=inputs, attention_mask=mask, labels=labels).logits
    return logits


def assert_same_model(ours: Any, theirs: Any) -> None:
    """Of bfloat16 weights, too, the logits are computed in float32, where the order of sums does not show."""
    assert ours.dtype == theirs.dtype
    expected = logits_of(copy.deepcopy(theirs).float())
    tolerance = 1e-5 * float(expected.abs().max().clamp(min=1))
    torch.testing.assert_close(logits_of(ours.float()), expected, rtol=1e-5, atol=tolerance)
