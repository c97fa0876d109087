# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""From a graph to a model of ONNX in memory, whose weights are those of the torch model, not copies."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
import torch
from onnx_ir.passes import common
from onnxscript.optimizer import optimize_ir

from .graphs import Graph


if TYPE_CHECKING:
    from torch.onnx import ONNXProgram


LARGEST_FILE = 2**31 - 2**26
"""Bytes of weights from which they get a file of their own: what protobuf takes is smaller than 2 GiB."""


def exported(graph: Graph, opset: int) -> ir.Model:
    """Traces a graph.

    Args:
        graph: what to trace.
        opset: version of ONNX's operators.
    """
    with torch.no_grad(), _quietly():
        program: ONNXProgram | None = torch.onnx.export(
            graph.module,
            tuple(graph.inputs.values()),
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            dynamic_shapes=_arguments(graph),
            opset_version=opset,
            dynamo=True,
            optimize=False,
            verbose=False,
        )
    assert program is not None
    model = program.model
    # Transposed weights are made when they are written, one at a time: see `transpose_weights`.
    optimize_ir(model, onnx_shape_inference=False, should_fold=lambda node: False if _of_a_weight(node) else None)
    _forget_the_source(model)
    return model


def _arguments(graph: Graph) -> tuple[Any, ...]:
    """The sizes in the form of the module's arguments, whose last one may take all that is left."""
    names = [name for name in graph.inputs if not name.startswith("past_key_values.")]
    named, rest = graph.sizes[: len(names)], graph.sizes[len(names) :]
    return (*named, rest) if rest else named


def transpose_weights(model: ir.Model) -> ir.Model:
    """The same model, whose file holds weights as matmuls read them, where they are not read otherwise. A runtime would
    transpose them on loading, and hold both."""
    graph = model.graph
    for name, weight in list(graph.initializers.items()):
        uses = [use.node for use in weight.uses()]
        if not uses or weight.is_graph_output() or not all(_of_a_weight(node) for node in uses):
            continue
        tensor = weight.const_value
        assert tensor is not None
        value = ir.Value(
            name=f"{name}.transposed",
            type=weight.type,
            shape=ir.Shape(tensor.shape.numpy()[::-1]),
            const_value=_transposed(tensor),
        )
        graph.register_initializer(value)
        for node in uses:
            ir.convenience.replace_all_uses_with(node.outputs[0], value)
            assert node.graph is not None
            node.graph.remove(node, safe=True)
        del graph.initializers[name]
    return model


def write_graph(model: ir.Model, folder: Path, name: str) -> None:
    """Writes `NAME.onnx`, with the weights in `NAME.onnx_data` if they are too large for one file."""
    nbytes = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)
    ir.save(model, folder / f"{name}.onnx", external_data=f"{name}.onnx_data" if nbytes > LARGEST_FILE else None)


def _of_a_weight(node: ir.Node) -> bool:
    """Whether a node transposes a matrix of the model."""
    if node.op_type != "Transpose":
        return False
    value = node.inputs[0]
    return value is not None and value.const_value is not None and len(value.const_value.shape) == 2


def _transposed(tensor: ir.TensorProtocol) -> ir.LazyTensor:
    def transposed() -> ir.Tensor:
        return ir.Tensor(tensor.numpy().T.copy(), dtype=tensor.dtype)

    return ir.LazyTensor(transposed, tensor.dtype, ir.Shape(tensor.shape.numpy()[::-1]))


def _forget_the_source(model: ir.Model) -> None:
    """Removes what torch notes of the code that was traced: paths on this machine, and more bytes than the graph."""
    common.ClearMetadataAndDocStringPass()(model)
    model.producer_name, model.producer_version = "t5_experimental", None
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    model.metadata_props.clear()
    model.graph.metadata_props.clear()


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without torch's remarks on operators that no model of ours has, and on its own code."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
