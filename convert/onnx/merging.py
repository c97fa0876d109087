# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""One decoder of two: its input `use_cache_branch` says which step is computed, and both steps share the weights.

The layout is optimum's, as its loaders and transformers.js know it: where there is no cache yet, that of the inputs is
not read and may have any shape; where there is one, the outputs for the encoder's keys and values are empty, since the
caller has them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch


CONDITION = "use_cache_branch"

# Heads and their size: for the first step, loaders make a cache of the configuration's one number for all layers.
_ANY_SIZE = {1: "heads of {}", 3: "head size of {}"}


def merged(first: ir.Model, following: ir.Model) -> ir.Model:
    """The model that computes a first step, or a following one.

    Args:
        first: from `first_step_graph`; not to be used after this.
        following: from `next_step_graph` of the same model; not to be used after this.
    """
    inputs = {value.name: _free(value) for graph in (first.graph, following.graph) for value in graph.inputs}
    condition = ir.Value(name=CONDITION, type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([1]))
    weights: dict[str, ir.Value] = {}
    outputs = [ir.Value(name=x.name, type=x.type, shape=_shape_of_both(x)) for x in first.graph.outputs]
    branches = {
        "then_branch": _branch(following.graph, "with_past", inputs, weights, outputs),
        "else_branch": _branch(first.graph, "without_past", inputs, weights, outputs),
    }
    choice = ir.Node(
        "",
        "If",
        [condition],
        [ir.AttrGraph(name, branch) for name, branch in branches.items()],
        outputs=outputs,
        name=CONDITION,
    )
    graph = ir.Graph(
        [*inputs.values(), condition],
        outputs,
        nodes=[choice],
        initializers=list(weights.values()),
        opset_imports=first.graph.opset_imports,
        name="decoder",
    )
    return ir.Model(graph, ir_version=first.ir_version, producer_name=first.producer_name)


def _free(value: ir.Value) -> ir.Value:
    """An input of the merged graph."""
    shape = list(value.shape or ())
    if str(value.name).startswith("past_key_values."):
        for axis, name in _ANY_SIZE.items():
            shape[axis] = ir.SymbolicDim(name.format(value.name))
    return ir.Value(name=value.name, type=value.type, shape=ir.Shape(shape))


def _shape_of_both(output: ir.Value) -> ir.Shape:
    """Shape of an output, in the first step or later."""
    shape = list(output.shape or ())
    parts = str(output.name).split(".")
    if parts[0] == "present":
        shape[2] = ir.SymbolicDim(f"{'encoder' if parts[2] == 'encoder' else 'past_decoder'}_sequence_length_out")
        shape[0] = shape[0] if parts[2] == "decoder" else ir.SymbolicDim("encoder_batch_size_out")
    return ir.Shape(shape)


def _branch(
    graph: ir.Graph,
    name: str,
    inputs: Mapping[Any, ir.Value],
    weights: dict[str, ir.Value],
    wanted: Sequence[ir.Value],
) -> ir.Graph:
    """What a graph computes, with inputs and weights of the graph around it.

    Args:
        graph: is emptied.
        name: of the branch, in the names of all that is computed in it.
        inputs: by name.
        weights: by name; those of this branch are added.
        wanted: outputs of both branches; those that the graph has not are empty.
    """
    for value in graph.inputs:
        ir.convenience.replace_all_uses_with(value, inputs[value.name])
    for initializer in list(graph.initializers.values()):
        ir.convenience.replace_all_uses_with(initializer, _shared(initializer, name, weights))
    computed = {value.name: value for value in graph.outputs}
    nodes = list(graph)
    graph.outputs.clear()
    graph.remove(nodes)
    outputs = []
    for output in wanted:
        if output.name not in computed:
            nodes.append(_empty(output))
        outputs.append(computed.get(output.name, nodes[-1].outputs[0]))
    for node in nodes:
        node.name = f"{name}.{node.name}"
        for value in node.outputs:
            value.name = f"{name}.{value.name}"
    return ir.Graph([], outputs, nodes=nodes, name=name)


def _shared(initializer: ir.Value, branch: str, weights: dict[str, ir.Value]) -> ir.Value:
    """The weight of the graph around both branches, which is the same tensor; or a number that torch's exporter named
    by itself, and may name otherwise in the other branch."""
    tensor = initializer.const_value
    raw = getattr(tensor, "raw", None)
    name = str(initializer.name) if isinstance(raw, torch.Tensor) else f"{branch}.{initializer.name}"
    if name in weights:
        other: Any = weights[name].const_value
        assert isinstance(raw, torch.Tensor), name
        assert raw.data_ptr() == other.raw.data_ptr(), name
    else:
        weights[name] = ir.Value(name=name, type=initializer.type, shape=initializer.shape, const_value=tensor)
    return weights[name]


def _empty(output: ir.Value) -> ir.Node:
    """Computes nothing, in the dtype and the rank of an output."""
    assert output.type is not None
    assert output.shape is not None
    sizes = [size if isinstance(size, int) else 1 for size in output.shape]
    nothing = ir.Tensor(np.zeros((0, *sizes[1:]), output.type.dtype.numpy()))
    node = ir.Node("", "Constant", [], [ir.AttrTensor("value", nothing)], name=f"no.{output.name}")
    node.outputs[0].name, node.outputs[0].type = output.name, output.type
    node.outputs[0].shape = nothing.shape
    return node
