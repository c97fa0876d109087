# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints of T5X and Orbax with the weights of a T5 of transformers. T5X itself does not install: its layout is
written by flax and tensorstore as t5x/checkpoints.py writes it, that of Orbax by Orbax."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .framework_weights import nested, to_numpy


Arrays = dict[str, np.ndarray]

_ATTENTION = {"q": "query", "k": "key", "v": "value", "o": "out"}
_TOP = {
    "shared.weight": "token_embedder/embedding",
    "lm_head.weight": "decoder/logits_dense/kernel",
    "encoder.final_layer_norm.weight": "encoder/encoder_norm/scale",
    "decoder.final_layer_norm.weight": "decoder/decoder_norm/scale",
    "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": "encoder/relpos_bias/rel_embedding",
    "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": "decoder/relpos_bias/rel_embedding",
}


def t5x_name(name: str, in_every_layer: bool = False) -> str:
    """T5X's name of a parameter of transformers, without "target/"."""
    if name in _TOP and not (in_every_layer and "relative" in name):
        return _TOP[name]
    stack, _, i, _, j, *rest, _ = name.split(".")
    is_mlp = j == ("1" if stack == "encoder" else "2")
    if rest == ["layer_norm"]:
        before = (
            "mlp" if is_mlp else "attention" if stack == "encoder" else ("self_attention", "cross_attention")[int(j)]
        )
        return f"{stack}/layers_{i}/pre_{before}_layer_norm/scale"
    if is_mlp:
        return f"{stack}/layers_{i}/mlp/{rest[-1]}/kernel"
    if rest[-1] == "relative_attention_bias":
        return f"{stack}/layers_{i}/relpos_bias/rel_embedding"
    kind = "attention" if stack == "encoder" else ("self_attention", "encoder_decoder_attention")[int(j)]
    return f"{stack}/layers_{i}/{kind}/{_ATTENTION[rest[-1]]}/kernel"


def as_t5x(model: Any, in_every_layer: bool = False, heads: int | None = None) -> Arrays:
    """Arrays by T5X's names.

    Args:
        model: of transformers.
        in_every_layer: every layer has a table of position biases.
        heads: number of heads, to give them an axis of their own in the kernels of attention.
    """
    arrays: Arrays = {}
    for name, tensor in model.state_dict().items():
        if "embed_tokens" in name or (name == "lm_head.weight" and model.lm_head.weight is model.shared.weight):
            continue
        array = to_numpy(tensor)
        ours = t5x_name(name, in_every_layer)
        if array.ndim == 2 and name != "shared.weight":
            array = np.ascontiguousarray(array.T)
        if heads and "/out/" in ours:
            array = array.reshape(heads, -1, array.shape[1])
        elif heads and re.search("/(query|key|value)/", ours):
            array = array.reshape(array.shape[0], heads, -1)
        arrays[f"target/{ours}"] = array
    return arrays


def scanned(arrays: Arrays, level: str | None = None, table_per_layer: bool = False) -> Arrays:
    """The arrays with those of all layers stacked on axis 1, as scalable_t5 has them.

    Args:
        arrays: with a name for every layer.
        level: name in front of those of a layer; that of the stack unless given.
        table_per_layer: give every layer the table of position biases of its stack.
    """
    if table_per_layer:
        arrays = dict(arrays)
        for stack in ("encoder", "decoder"):
            table = arrays.pop(f"target/{stack}/relpos_bias/rel_embedding")
            count = sum(name.startswith(f"target/{stack}/layers_") and "mlp/wo" in name for name in arrays)
            arrays |= {f"target/{stack}/layers_{i}/relpos_bias/rel_embedding": table for i in range(count)}
    stacks: dict[str, dict[int, np.ndarray]] = {}
    result: Arrays = {}
    for name, array in arrays.items():
        match = re.fullmatch(r"target/(\w+)/layers_(\d+)/(.+)", name)
        if match is None:
            result[name] = array
        else:
            where = f"target/{match[1]}/{level or match[1]}/{match[3]}"
            stacks.setdefault(where, {})[int(match[2])] = array
    return {**result, **{name: np.stack([rows[i] for i in range(len(rows))], 1) for name, rows in stacks.items()}}


def write_zarr(path: Path, array: np.ndarray, driver: str = "zarr") -> dict[str, Any]:
    """One array as T5X writes it, in two parts along its first axis; returns what its index says of it."""
    import tensorstore

    chunks = [max(1, -(-array.shape[0] // 2)), *array.shape[1:]] if array.ndim else []
    metadata = {"compressor": {"id": "gzip"}, "shape": list(array.shape), "chunks": chunks}
    spec = {
        "driver": driver,
        "dtype": array.dtype.name,
        "kvstore": {"driver": "file", "path": f"{path}/"},
        "metadata": metadata,
        # What is zero would else be left out, as of optimizer states that are not used.
        "store_data_equal_to_fill_value": True,
    }
    tensorstore.open(spec, create=True).result().write(array).result()
    stored = {"driver": "gfile", "path": path.name}
    return {"driver": driver, "dtype": array.dtype.name, "kvstore": stored, "metadata": metadata}


def write_t5x(
    arrays: Mapping[str, Any],
    folder: Path,
    step: int = 7,
    inline: Callable[[str], bool] = lambda name: False,
    placeholders: bool = False,
    edit: Callable[[dict[str, Any]], object] = lambda _: None,
) -> Path:
    """T5X's layout of before Orbax: an index of MessagePack and a zarr folder for every array.

    Args:
        arrays: by T5X's names.
        folder: to make.
        step: training step.
        inline: which arrays are in the index itself, as those are that are not partitioned.
        placeholders: write the index as Orbax did at first.
        edit: changes the index, by names.
    """
    from flax.serialization import msgpack_serialize

    folder.mkdir(parents=True)
    leaves: dict[str, Any] = {}
    for name, array in arrays.items():
        if inline(name):
            leaves[name] = array
            continue
        spec = write_zarr(folder / name.replace("/", "."), array)
        leaves[name] = f"PLACEHOLDER://{name.replace('/', '.')}" if placeholders else spec
    leaves["state/step"] = np.int32(step) if not placeholders else step
    edit(leaves)
    tree = nested(leaves)
    whole = {**tree, "flax_mutables": None} if placeholders else {"version": 3, "optimizer": tree}
    (folder / "checkpoint").write_bytes(msgpack_serialize(whole))
    return folder


def write_orbax(arrays: Arrays, folder: Path, step: int = 7, **options: bool) -> Path:
    """A tree as Orbax writes it today; the options are those of its handler."""
    import orbax.checkpoint as ocp

    folder.parent.mkdir(parents=True, exist_ok=True)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**options)) as checkpointer:
        tree = nested({**arrays, "state/step": np.int32(step)})
        checkpointer.save(folder.absolute(), args=ocp.args.PyTreeSave(tree))
    return folder


def write_managed(arrays: Arrays, folder: Path, step: int = 7) -> Path:
    """The folder of a run whose checkpoints Orbax manages."""
    import orbax.checkpoint as ocp

    with ocp.CheckpointManager(folder.absolute()) as manager:
        manager.save(step, args=ocp.args.StandardSave(nested({**arrays, "state/step": np.int32(step)})))
        manager.wait_until_finished()
    return folder


def of_kind(model: Any, **options: Any) -> Arrays:
    """The arrays of a model in float32 or bfloat16."""
    with torch.no_grad():
        return as_t5x(model, **options)
