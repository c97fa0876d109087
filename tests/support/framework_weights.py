# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Weights of a T5 as transformers 4 wrote them for Flax and for TensorFlow 2, by those formats' own libraries. Their
names are those of FlaxT5 and TFT5, which transformers 5 does not have any more."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import torch


Tensors = Mapping[str, torch.Tensor]
Arrays = dict[str, np.ndarray]

_TABLES = ("shared", "embed_tokens", "relative_attention_bias")


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    if tensor.dtype == torch.bfloat16:
        return tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.contiguous().numpy()


def as_flax(tensors: Tensors) -> Arrays:
    """Arrays by the names of FlaxT5, joined by slashes: kernels are transposed."""
    arrays = {}
    for name, tensor in tensors.items():
        *parts, _ = name.split(".")
        ending = "embedding" if parts[-1] in _TABLES else "weight" if "norm" in parts[-1] else "kernel"
        array = to_numpy(tensor)
        arrays["/".join([*parts, ending])] = array.T.copy() if ending == "kernel" else array
    return arrays


def nested(arrays: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, array in arrays.items():
        *parts, last = name.split("/")
        inner = tree
        for part in parts:
            inner = inner.setdefault(part, {})
        inner[last] = array
    return tree


def write_flax(arrays: Mapping[str, Any], path: Path) -> None:
    from flax.serialization import to_bytes

    path.write_bytes(to_bytes(nested(arrays)))


def save_flax(tensors: Tensors, folder: Path) -> None:
    write_flax(as_flax(tensors), folder / "flax_model.msgpack")


def save_flax_in_chunks(tensors: Tensors, folder: Path) -> None:
    """As it cuts arrays of more than 1 GiB."""
    from flax import serialization

    before = serialization.MAX_CHUNK_SIZE
    serialization.MAX_CHUNK_SIZE = 1000
    try:
        save_flax(tensors, folder)
    finally:
        serialization.MAX_CHUNK_SIZE = before


def save_flax_in_shards(tensors: Tensors, folder: Path) -> None:
    arrays = as_flax(tensors)
    names = sorted(arrays)
    files = {f"flax_model-0000{k + 1}-of-00002.msgpack": names[k::2] for k in range(2)}
    for file, part in files.items():
        write_flax({name: arrays[name] for name in part}, folder / file)
    index = {"metadata": {}, "weight_map": {name: file for file, part in files.items() for name in part}}
    (folder / "flax_model.msgpack.index.json").write_text(json.dumps(index))


def as_tf2(tensors: Tensors, model: str = "tf_t5for_conditional_generation") -> dict[str, Arrays]:
    """Arrays by the names of TFT5, in the groups of its layers."""
    groups: dict[str, Arrays] = {}
    for name, tensor in tensors.items():
        *parts, _ = name.split(".")
        path = re.sub(r"/(block|layer)/(\d+)", r"/\1_._\2", "/".join(parts))
        if parts == ["shared"]:
            groups.setdefault("shared", {})["shared/shared/weight:0"] = to_numpy(tensor)
        elif parts[-1] == "embed_tokens":
            groups.setdefault(parts[0], {})["shared/shared/weight:0"] = to_numpy(tensor)
        else:
            ending = "embeddings" if parts[-1] in _TABLES else "weight" if "norm" in parts[-1] else "kernel"
            array = to_numpy(tensor)
            groups.setdefault(parts[0], {})[f"{model}/{path}/{ending}:0"] = array.T if ending == "kernel" else array
    return groups


def write_tf2(groups: Mapping[str, Arrays], path: Path) -> None:
    """As Keras's `save_weights` has it."""
    import h5py

    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [name.encode() for name in groups]
        file.attrs["backend"] = b"tensorflow"
        for layer, arrays in groups.items():
            group = file.create_group(layer)
            group.attrs["weight_names"] = [name.encode() for name in arrays]
            for name, array in arrays.items():
                group.create_dataset(name, array.shape, dtype=array.dtype)[...] = array


def save_tf2(tensors: Tensors, folder: Path) -> None:
    write_tf2(as_tf2(tensors), folder / "tf_model.h5")


def save_tf2_in_shards(tensors: Tensors, folder: Path) -> None:
    """As transformers 4 does itself: without groups and without the first part of every name."""
    import h5py

    arrays = {name.partition("/")[2]: array for part in as_tf2(tensors).values() for name, array in part.items()}
    names = sorted(arrays)
    files = {f"tf_model-0000{k + 1}-of-00002.h5": names[k::2] for k in range(2)}
    for filename, part in files.items():
        with h5py.File(folder / filename, "w") as file:
            for name in part:
                file.create_dataset(name, arrays[name].shape, dtype=arrays[name].dtype)[...] = arrays[name]
    index = {"metadata": {}, "weight_map": {name: file for file, part in files.items() for name in part}}
    (folder / "tf_model.h5.index.json").write_text(json.dumps(index))
