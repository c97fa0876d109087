# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""ONNX Runtime and OpenVINO as contestants, on the graphs that `t5-experimental export-onnx` writes of a model.

Those of the two that are installed take part. int8 is what each recommends for weights on CPUs: ONNX Runtime's dynamic
quantization, and OpenVINO's compression of weights, whose inputs it rounds by itself while it computes; both with a
scale for each output feature. The cache stays in the runtimes: ONNX Runtime binds the outputs of a step to the inputs
of the next one, OpenVINO keeps it as state. A step has a graph of its own without branches (`--unmerged`).
"""

import importlib.util
import logging
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np
import torch

from t5_experimental.convert.export_onnx import export_onnx


RUNTIMES = {"onnxruntime": ("fp32", "int8"), "openvino": ("fp32", "bf16", "int8")}
"""Types of numbers of each; bf16 is fp32 that OpenVINO computes in bfloat16, its choice where the processor can."""

NAMES = {"onnxruntime": "onnxruntime", "openvino": "OpenVINO"}

DECODERS = ("decoder_model", "decoder_with_past_model")

EOS = 1


class Runtime(Protocol):
    """A language model in graphs."""

    def start(self, input_ids: np.ndarray) -> np.ndarray:
        """Source ids `(b, source)` -> logits `(b, 1, vocabulary)` of the first token; no text has padding."""

    def step(self, tokens: np.ndarray) -> np.ndarray:
        """Tokens `(b, 1)` -> logits `(b, 1, vocabulary)` of the next one."""


def versions() -> dict[str, str]:
    """Of the runtimes that are installed."""
    return {name: version(name) for name in RUNTIMES if importlib.util.find_spec(name) is not None}


class Graphs:
    """The folders of a model's graphs, written when they are asked for.

    Args:
        model: a language model or an encoder of ours, in float32.
        scratch: an empty folder.
        threads: of a runtime.
    """

    def __init__(self, model: Any, scratch: Path, threads: int) -> None:
        self.model = model
        self.scratch = scratch
        self.threads = threads

    @cached_property
    def float32(self) -> Path:
        """The folder of the exported graphs."""
        self.model.save_pretrained(self.scratch / "model")
        has_decoder = hasattr(self.model, "lm_head")
        export_onnx(self.scratch / "model", self.scratch / "float32", unmerged=has_decoder)
        return self.scratch / "float32"

    @cached_property
    def int8(self) -> Path:
        """The folder of the graphs that ONNX Runtime quantized: the weights of matmuls, not the embedding."""
        from onnxruntime.quantization import QuantType, quantize_dynamic

        logging.getLogger().setLevel(logging.ERROR)  # or it recommends what is for images
        (self.scratch / "int8").mkdir()
        for path in self.float32.glob("*.onnx"):
            quantize_dynamic(
                path,
                self.scratch / "int8" / path.name,
                op_types_to_quantize=["MatMul"],
                per_channel=True,
                weight_type=QuantType.QInt8,
                extra_options={"MatMulConstBOnly": True},
            )
        return self.scratch / "int8"

    def generators(self, new_tokens: int) -> dict[str, Callable[[], Any]]:
        """By name, what builds a function from source ids to `new_tokens` tokens, greedily."""
        kinds = {"onnxruntime": OnnxRuntime, "openvino": OpenVino}
        return {
            f"{NAMES[name]} {numbers}": partial(_generator, partial(kinds[name], self, numbers), new_tokens)
            for name in versions()
            for numbers in RUNTIMES[name]
        }

    def encoders(self, dtype: str) -> dict[str, Callable[[], Any]]:
        """By name, what builds a function from ids and mask to an object with `last_hidden_state`; int8 belongs to
        fp32, the dtype of its inputs and outputs."""
        kinds = {"onnxruntime": _encoder_of_onnx_runtime, "openvino": _encoder_of_openvino}
        suffixes = {dtype: "", "int8": " int8"} if dtype == "fp32" else {dtype: ""}
        return {
            NAMES[name] + suffix: partial(kinds[name], self, numbers)
            for name in versions()
            for numbers, suffix in suffixes.items()
            if numbers in RUNTIMES[name]
        }


def _generator(build: Callable[[], Runtime], new_tokens: int) -> Callable[[torch.Tensor], list[list[int]]]:
    runtime = build()

    def generate(input_ids: torch.Tensor) -> list[list[int]]:
        logits, tokens = runtime.start(input_ids.numpy()), []
        while True:
            logits[..., EOS] = -np.inf
            tokens.append(logits.argmax(-1))
            if len(tokens) == new_tokens:
                return np.concatenate(tokens, 1).tolist()
            logits = runtime.step(tokens[-1])

    return generate


class OnnxRuntime:
    """By ONNX Runtime; no output is copied but the logits."""

    def __init__(self, graphs: Graphs, numbers: str) -> None:
        folder = graphs.int8 if numbers == "int8" else graphs.float32
        names = ("encoder_model", *DECODERS)
        self.encoder, self.first, self.following = (_onnx_session(folder, name, graphs.threads) for name in names)
        self.cache: dict[str, Any] = {}

    def start(self, input_ids: np.ndarray) -> np.ndarray:
        ids, mask, start = map(_ort_value, (input_ids, np.ones_like(input_ids), np.zeros_like(input_ids[:, :1])))
        states = _bound_run(self.encoder, {"input_ids": ids, "attention_mask": mask})["last_hidden_state"]
        source = {"encoder_attention_mask": mask}
        found = _bound_run(self.first, {"input_ids": start, "encoder_hidden_states": states, **source})
        self.cache = source
        return self._logits(found)

    def step(self, tokens: np.ndarray) -> np.ndarray:
        return self._logits(_bound_run(self.following, {"input_ids": _ort_value(tokens), **self.cache}))

    def _logits(self, found: dict[str, Any]) -> np.ndarray:
        """Those of a step; all else that it found is for the next one."""
        logits: np.ndarray = found.pop("logits").numpy()
        self.cache |= {name.replace("present", "past_key_values"): value for name, value in found.items()}
        return logits


def _onnx_session(folder: Path, name: str, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Threads that wait actively take a core from other programs: beside one, a step took twice as long.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(folder / f"{name}.onnx", options, providers=["CPUExecutionProvider"])


def _ort_value(array: np.ndarray) -> Any:
    import onnxruntime

    return onnxruntime.OrtValue.ortvalue_from_numpy(array)


def _bound_run(session: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    binding = session.io_binding()
    for name, value in inputs.items():
        binding.bind_ortvalue_input(name, value)
    names = [output.name for output in session.get_outputs()]
    for name in names:
        binding.bind_output(name, "cpu")
    session.run_with_iobinding(binding)
    return dict(zip(names, binding.get_outputs(), strict=True))


def _encoder_of_onnx_runtime(graphs: Graphs, numbers: str) -> Callable[[torch.Tensor, torch.Tensor], Any]:
    session = _onnx_session(graphs.int8 if numbers == "int8" else graphs.float32, "model", graphs.threads)

    def encode(input_ids: torch.Tensor, mask: torch.Tensor) -> SimpleNamespace:
        inputs = {"input_ids": _ort_value(input_ids.numpy()), "attention_mask": _ort_value(mask.numpy())}
        states: np.ndarray = _bound_run(session, inputs)["last_hidden_state"].numpy()
        return SimpleNamespace(last_hidden_state=torch.from_numpy(states))

    return encode


class OpenVino:
    """By OpenVINO; the cache is the state of the graph of a step, and tensors are shared between graphs."""

    def __init__(self, graphs: Graphs, numbers: str) -> None:
        names = ("encoder_model", *DECODERS)
        self.encoder, self.first, self.following = (_openvino_request(graphs, name, numbers) for name in names)
        self.states = {state.name: state for state in self.following.query_state()}

    def start(self, input_ids: np.ndarray) -> np.ndarray:
        mask = np.ones_like(input_ids)
        self.encoder.infer({"input_ids": input_ids, "attention_mask": mask}, share_inputs=True)
        self.first.set_tensor("encoder_hidden_states", self.encoder.get_tensor("last_hidden_state"))
        inputs = {"input_ids": np.zeros_like(input_ids[:, :1]), "encoder_attention_mask": mask}
        self.first.infer(inputs, share_inputs=True)
        for past, present in _cache_names(self.first.model_outputs).items():
            if ".encoder." in past:
                self.following.set_tensor(past, self.first.get_tensor(present))
            else:
                self.states[past + present].state = self.first.get_tensor(present)
        self.following.set_tensor("encoder_attention_mask", _openvino_tensor(mask))
        return self.first.get_tensor("logits").data

    def step(self, tokens: np.ndarray) -> np.ndarray:
        self.following.infer({"input_ids": tokens}, share_inputs=True)
        return self.following.get_tensor("logits").data


def _cache_names(outputs: Any) -> dict[str, str]:
    """Names of the inputs for the cache by those of the outputs."""
    names = [output.get_any_name() for output in outputs]
    return {name.replace("present", "past_key_values"): name for name in names if name.startswith("present")}


def _openvino_tensor(array: np.ndarray) -> Any:
    import openvino

    return openvino.Tensor(array)


def _openvino_request(graphs: Graphs, name: str, numbers: str) -> Any:
    import openvino
    from openvino._offline_transformations import apply_make_stateful_transformation

    core = openvino.Core()
    model = core.read_model(graphs.float32 / f"{name}.onnx")
    if numbers == "int8":
        _compress_weights(model)
    if name == DECODERS[1]:
        apply_make_stateful_transformation(model, _cache_names(model.outputs))
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": graphs.threads,
        # Without it, OpenVINO computes in bfloat16 wherever the processor can.
        "INFERENCE_PRECISION_HINT": "bf16" if numbers == "bf16" else "f32",
    }
    return core.compile_model(model, "CPU", settings).create_infer_request()


def _compress_weights(model: Any) -> None:
    """Stores the weights of matmuls in 8 bits, as `nncf.compress_weights` does; OpenVINO knows these operators."""
    from openvino import opset13

    for matmul in model.get_ops():
        weight = matmul.input_value(1).get_node() if matmul.get_type_name() == "MatMul" else None
        if weight is None or weight.get_type_name() != "Constant":
            continue
        values = weight.data
        scales = np.maximum(np.abs(values).max(0, keepdims=True) / 127, np.finfo(np.float32).tiny)
        integers = opset13.constant(np.round(values / scales).astype(np.int8))
        restored = opset13.multiply(opset13.convert(integers, "f32"), opset13.constant(scales))
        matmul.input(1).replace_source_output(restored.output(0))


def _encoder_of_openvino(graphs: Graphs, numbers: str) -> Callable[[torch.Tensor, torch.Tensor], Any]:
    request = _openvino_request(graphs, "model", numbers)

    def encode(input_ids: torch.Tensor, mask: torch.Tensor) -> SimpleNamespace:
        request.infer({"input_ids": input_ids.numpy(), "attention_mask": mask.numpy()}, share_inputs=True)
        return SimpleNamespace(last_hidden_state=torch.from_numpy(request.get_tensor("last_hidden_state").data))

    return encode
