# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Export to ONNX: a folder of graphs that optimum, transformers.js and ONNX Runtime load, compared with torch before it
takes its name.

torch, transformers and onnx are imported when it runs, since the other commands need none of them.
"""

import importlib.util
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from t5_experimental.model_folders import holds_adapter

from .errors import ConversionError
from .loading import load_model
from .output.beside import reclaimable
from .output.folder import check_output, finished_or_nothing
from .output.json_files import read_json
from .output.onnx_files import copy_tokenizer, write_card, write_config
from .output.options import ONNX_DTYPES, OPSET, OPSETS
from .plan.plan import check_space
from .readable import shown


_SUFFIXES = ("ForConditionalGeneration", "EncoderModel")
# transformers' own, and the beginning of the names of their classes.
_STOCK = {"t5": "T5", "mt5": "MT5", "umt5": "UMT5"}
_INSTALL = 'pip install "t5-experimental[onnx]"'


@dataclass(frozen=True)
class OnnxExport:
    """What is exported.

    Attributes:
        folder: of the model.
        class_name: of the model, one of ours.
        model_type: of the folder's configuration.
        encoder_only: there is no decoder.
        graphs: names of the graphs that are written.
    """

    folder: Path
    class_name: str
    model_type: str
    encoder_only: bool
    graphs: tuple[str, ...]


@dataclass(frozen=True)
class OnnxSummary:
    """What an export did.

    Attributes:
        output: the folder.
        nbytes: bytes of the graphs and their weights.
        checked: what is known of their outputs, a sentence.
        seconds: time that it took.
    """

    output: Path
    nbytes: int
    checked: str
    seconds: float


def plan_onnx(folder: str | Path, unmerged: bool = False) -> OnnxExport:
    """Finds out what a folder holds; reads no weight.

    Args:
        folder: of a language model or an encoder of ours, or of transformers' T5, mT5 or umT5.
        unmerged: two graphs for the decoder's steps instead of one for both.

    Raises:
        ConversionError: it cannot be exported.
    """
    from t5_experimental.configuration_t5_experimental import CONFIG_CLASSES

    folder = Path(folder).expanduser()
    fields = _fields(folder)
    prefixes = {config.model_type: config.__name__.removesuffix("Config") for config in CONFIG_CLASSES}
    model_type, architectures = fields.get("model_type"), fields.get("architectures")
    known = {**prefixes, **dict.fromkeys(_STOCK, "T5V11")}
    prefix = known.get(model_type) if isinstance(model_type, str) else None
    if prefix is None:
        raise ConversionError(
            f"{folder} holds a model of type {shown(model_type)}, which is none of these families: give a folder that "
            "the converter wrote, or one of T5, mT5 or umT5."
        )
    name = architectures[0] if isinstance(architectures, list) and len(architectures) == 1 else None
    own = _STOCK.get(str(model_type), prefix)
    if architectures is None:  # the weights will tell whether it is one
        name = own + _SUFFIXES[0]
    suffix = next((suffix for suffix in _SUFFIXES if name == own + suffix), None)
    if suffix is None:
        raise ConversionError(
            f"{folder} holds {shown(name or architectures)}: only a language model ({own}{_SUFFIXES[0]}) or an encoder "
            f"({own}{_SUFFIXES[1]}) is exported to ONNX."
        )
    encoder_only = suffix == _SUFFIXES[1]
    if encoder_only and unmerged:
        raise ConversionError(f"--unmerged is about the decoder, which {folder} has not: leave it out.")
    decoder = ("decoder_model", "decoder_with_past_model") if unmerged else ("decoder_model_merged",)
    graphs = ("model",) if encoder_only else ("encoder_model", *decoder)
    return OnnxExport(folder, prefix + suffix, str(model_type), encoder_only, graphs)


def export_onnx(
    folder: str | Path,
    output: str | Path,
    dtype: str = "float32",
    opset: int = OPSET,
    unmerged: bool = False,
    overwrite: bool = False,
    report: Callable[[OnnxExport], None] = lambda _: None,
) -> OnnxSummary:
    """Writes a folder of graphs.

    Args:
        folder: see `plan_onnx`.
        output: folder to write; it must not exist unless `overwrite`.
        dtype: of weights, logits and cache, one of `ONNX_DTYPES`.
        opset: version of ONNX's operators, one of `OPSETS`.
        unmerged: see `plan_onnx`.
        overwrite: replace the output, once the new one is complete.
        report: called with what was found, before anything is written.

    Raises:
        ConversionError: it cannot be exported, or ONNX Runtime computes other numbers than torch; nothing has been
            written then.
    """
    start = time.monotonic()
    output = Path(output).expanduser()
    _check_options(dtype, opset)
    check_output(output, "exported", Path(folder).expanduser(), overwrite)
    found = plan_onnx(folder, unmerged)
    _check_installed()
    model = _load(found, dtype)
    check_space(_nbytes(model, found), output, reclaimable(output))
    report(found)
    with finished_or_nothing(output, "exported", overwrite) as partial:
        checked = _write(model, found, partial, output.name, dtype, opset)
        nbytes = sum(path.stat().st_size for path in partial.glob("*.onnx*"))
    return OnnxSummary(output, nbytes, checked, time.monotonic() - start)


def _write(model: Any, found: OnnxExport, folder: Path, title: str, dtype: str, opset: int) -> str:
    """Writes all files and says what is known of their outputs; the model's memory is free before they are loaded."""
    from .onnx.checking import cases, check
    from .onnx.exporter import write_graph

    has_runtime = importlib.util.find_spec("onnxruntime") is not None
    wanted = cases(model, found.encoder_only) if has_runtime else []
    for name, graph in _graphs(model, found, opset):
        write_graph(graph, folder, name)
        del graph
    config, generation = model.config, getattr(model, "generation_config", None)
    del model
    checked = "The outputs have not been compared with torch's, as onnxruntime was not installed."
    if has_runtime:
        worst = check(folder, wanted, dtype)
        checked = (
            f"ONNX Runtime {version('onnxruntime')} computed what torch {version('torch')} computes: the largest "
            f"difference was {worst:.1e} of an output's largest number."
        )
    copy_tokenizer(found.folder, folder)
    write_card(folder, title, found.class_name, found.model_type, found.graphs, dtype, opset, checked)
    if generation is not None and not found.encoder_only:
        generation.save_pretrained(folder)
    write_config(config, folder, dtype, found.encoder_only)
    return checked


def _graphs(model: Any, found: OnnxExport, opset: int) -> Any:
    """Yields name and graph of every file."""
    import torch

    from .onnx import graphs as of
    from .onnx.exporter import exported, transpose_weights
    from .onnx.merging import merged

    with torch.no_grad():
        yield found.graphs[0], transpose_weights(exported(of.encoder_graph(model), opset))
        steps = (of.first_step_graph, of.next_step_graph)
        if found.graphs[1:] == (of.MERGED,):
            yield of.MERGED, transpose_weights(merged(*(exported(step(model), opset) for step in steps)))
        else:
            for name, step in zip(found.graphs[1:], steps, strict=False):
                yield name, transpose_weights(exported(step(model), opset))


def _fields(folder: Path) -> Mapping[str, Any]:
    if holds_adapter(folder):
        raise ConversionError(f"{folder} holds an adapter: merge it into its model, save that, and give its folder.")
    try:
        return read_json(folder / "config.json")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ConversionError(f"{folder} is not a model folder: it has no config.json.") from error
    except (OSError, ValueError) as error:
        raise ConversionError(f"{folder / 'config.json'} cannot be read ({error}): save the model again.") from error


def _check_options(dtype: str, opset: int) -> None:
    if dtype not in ONNX_DTYPES:
        raise ConversionError(f"the dtype {shown(dtype)} is none of those that are written: {', '.join(ONNX_DTYPES)}.")
    if isinstance(opset, bool) or opset not in OPSETS:
        raise ConversionError(f"the opset {shown(opset)} is none of {OPSETS[0]} to {OPSETS[-1]}: use {OPSET}.")


def _check_installed() -> None:
    for name in ("onnx", "onnx_ir", "onnxscript"):
        if importlib.util.find_spec(name) is None:
            raise ConversionError(f"{name} is not installed, which writes ONNX: {_INSTALL}.")


def _load(found: OnnxExport, dtype: str) -> Any:
    import torch
    import transformers

    import t5_experimental

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model_class = getattr(t5_experimental, found.class_name)
    model = load_model(model_class, found.folder, dtype=getattr(torch, dtype), attn_implementation="eager")
    return model.eval().requires_grad_(False)


def _nbytes(model: Any, found: OnnxExport) -> int:
    """Bytes of the weights in all files."""
    sizes = {"encoder": 0, "decoder": 0}
    for name, parameter in model.named_parameters():
        stacks = sizes if name == "shared.weight" else ["encoder" if name.startswith("encoder.") else "decoder"]
        for stack in stacks:
            sizes[stack] += parameter.nbytes
    return sizes["encoder"] + sizes["decoder"] * (len(found.graphs) - 1)
