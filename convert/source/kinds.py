# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""What a folder or file is that holds no Mesh TensorFlow checkpoint: transformers' own, or something that is called by
its name, because nothing here reads it."""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from ..errors import ConversionError
from .array_folders import INDEX, ORBAX_FILES, find_arrays, is_map
from .storage import Storage


MESH = "mesh"
STOCK = "stock"
ARRAYS = "arrays"

CONFIG = "config.json"
# Weights that are read, the first that is there; each with the index of its shards.
STOCK_WEIGHTS = ("model.safetensors", "pytorch_model.bin", "flax_model.msgpack", "tf_model.h5")

# Files and folders by which a kind is known -> what it is, and what to do. `*` stands for anything.
_BESIDE_CONFIG = "give the folder in which transformers saved it as {}, beside its config.json"
_KINDS: Mapping[str, tuple[str, str]] = {
    "adapter_config.json": (
        "an adapter of peft without the model that it changes",
        "merge it into that model (`merge_and_unload`), save the model and convert that folder",
    ),
    "*.msgpack": ("a file of Flax under another name", _BESIDE_CONFIG.format("flax_model.msgpack")),
    "*.h5": ("an HDF5 file under another name", _BESIDE_CONFIG.format("tf_model.h5")),
    "*.gguf": ("a GGUF file of llama.cpp", "convert the folder of transformers that it was made from"),
    "*.onnx": ("an ONNX graph", "convert the folder of transformers that it was exported from"),
    "saved_model.pb": ("a TensorFlow SavedModel", "convert the checkpoint that it was exported from"),
}


# What remains of a checkpoint of T5X or Orbax whose index is missing.
_ARRAYS_WITHOUT_INDEX: Mapping[str, str] = {
    r"target\..+": "a checkpoint of T5X without its index, the file `checkpoint`",
    "_CHECKPOINT_METADATA": "an Orbax checkpoint without an array, or without their index `_METADATA`",
}


def recognize(storage: Storage) -> str | None:
    """Whether a folder of this disk is Mesh TensorFlow's (`MESH`), transformers' (`STOCK`), or one of T5X or Orbax
    (`ARRAYS`); None if nothing tells.

    Raises:
        ConversionError: it is of a kind that cannot be read, and the message says which.
    """
    if storage.local_folder is None:
        return None
    names = storage.list() or []
    if any(re.fullmatch(r".+\.index", name) for name in names):
        return MESH
    if any(_weights(names)):
        return _stock(storage, names)
    if find_arrays(storage.local_folder) is not None:
        return ARRAYS
    if CONFIG in names:
        return _stock(storage, names)
    folders = _folders(storage.local_folder)
    _check_without_index(storage.place(), [*names, *folders])
    for folder in folders:
        _check_without_index(str(storage.local_folder / folder), _names(storage.local_folder / folder))
    _check_kind(storage.place(), [*names, *folders])
    return None


def check_index(storage: Storage) -> None:
    """Raises if the file `checkpoint`, which names a checkpoint in a folder of TensorFlow's, is that of T5X."""
    if is_map(storage.head(INDEX, 1)):
        raise ConversionError(_far(storage, "a checkpoint of T5X"))


def check_file(path: Path) -> None:
    """Raises if a file, given instead of a folder, is one of transformers' or of a kind that cannot be read."""
    if re.fullmatch(r".*\.(safetensors|bin)(\.index\.json)?|config\.json", path.name) or _weights([path.name]):
        raise ConversionError(f"{path} is one file of a model: give the folder that it is in.")
    if path.name == INDEX and find_arrays(path.parent) is not None:
        raise ConversionError(f"{path} is one file of a checkpoint of T5X: give the folder that it is in.")
    _check_kind(str(path), [path.name])


def check_far(storage: Storage) -> None:
    """Raises, for a folder of a server that holds no Mesh TensorFlow checkpoint, if it holds something else."""
    for name in (*STOCK_WEIGHTS, *(f"{name}.index.json" for name in STOCK_WEIGHTS)):
        if storage.exists(name):
            raise ConversionError(_far(storage, f"a folder of transformers ({name})"))
    for name in (*ORBAX_FILES, "_CHECKPOINT_METADATA"):
        if storage.exists(name):
            raise ConversionError(_far(storage, "an Orbax checkpoint, as T5X and other JAX programs write it"))
    for pattern in (name for name in _KINDS if "*" not in name):
        if storage.exists(pattern):
            _check_kind(storage.place(), [pattern])


def _stock(storage: Storage, names: list[str]) -> str:
    if not any(_weights(names)):
        _check_kind(storage.place(), [*names, *_folders(Path(storage.place()))])
        raise ConversionError(
            f"{storage.place()} has a {CONFIG} but no weights: copy model.safetensors (or pytorch_model.bin), or all "
            "of its shards and their index, beside it."
        )
    if CONFIG not in names:
        _check_kind(storage.place(), [name for name in names if name == "adapter_config.json"])
        raise ConversionError(
            f"{storage.place()} has weights of transformers but no {CONFIG}, which says what they mean: copy it there."
        )
    return STOCK


def _weights(names: Iterable[str]) -> list[str]:
    known = {*STOCK_WEIGHTS, *(f"{name}.index.json" for name in STOCK_WEIGHTS)}
    return [name for name in names if name in known]


def _far(storage: Storage, what: str) -> str:
    return f"{storage.place()} is {what}, which is read from this disk only: download it and convert the copy."


def _check_without_index(place: str, names: list[str]) -> None:
    for pattern, what in _ARRAYS_WITHOUT_INDEX.items():
        if any(re.fullmatch(pattern, name, re.DOTALL) for name in names):
            raise ConversionError(f"{place} is {what}: copy all of the folder again.")


def _check_kind(place: str, names: Iterable[str]) -> None:
    kind = _kind(names)
    if kind is not None:
        raise ConversionError(_sentence(place, kind))


def _sentence(place: str, kind: tuple[str, str]) -> str:
    what, way_out = kind
    return f"{place} is {what}, which cannot be read yet: {way_out}."


def _kind(names: Iterable[str]) -> tuple[str, str] | None:
    present = list(names)
    for pattern, kind in _KINDS.items():
        expression = ".+".join(map(re.escape, pattern.split("*")))
        if any(re.fullmatch(expression, name, re.DOTALL) for name in present):
            return kind
    return None


def _folders(folder: Path) -> list[str]:
    return [name for name in _names(folder) if os.path.isdir(folder / name)]


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []
