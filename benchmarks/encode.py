# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Times the encoder side by side: transformers' own T5, ONNX Runtime, OpenVINO and this package, with the same random
weights, on the CPU.

    python -m benchmarks.encode --output benchmarks/results/encode

Contestants take turns in one process. "products" are the bare products with the encoder's matrices by `F.linear`, below
which nothing that uses it can come. "int8" is a `decoding_session` of the float32 model. ONNX Runtime and OpenVINO take
part where they are installed (graphs.py). Written are OUTPUT.json and OUTPUT.png.
"""

import argparse
import copy
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForSeq2SeqLM

from t5_experimental import T5V11EncoderModel, decoding_session

from .common import add_model_options, chosen_config, draw_bars, in_turns, ragged_mask, stock_twin, summary, write_json
from .graphs import Graphs, versions


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

BASE = "transformers"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    add_model_options(parser)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--ragged", action="store_true", help="rows of different lengths; ours leaves out padding")
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES), choices=list(DTYPES))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="contestants whose names contain this, beside transformers")
    parser.add_argument("--output", type=Path, default=Path("encode"), help="path without suffix")
    return parser.parse_args()


def bare_products(encoder: nn.Module, tokens: int) -> Callable[[], None]:
    """A function that multiplies random states by every matrix of the encoder."""
    weights = [module.weight for module in encoder.modules() if isinstance(module, nn.Linear)]
    states = {weight.shape[1]: torch.randn(tokens, weight.shape[1]).to(weight.dtype) for weight in weights}

    def run() -> None:
        for weight in weights:
            F.linear(states[weight.shape[1]], weight)

    return run


def random_model(arguments: argparse.Namespace) -> Any:
    """The language model whose encoder is measured; always the same weights."""
    torch.manual_seed(0)
    return AutoModelForSeq2SeqLM.from_config(chosen_config(arguments)).eval()


def graphs_of_encoder(arguments: argparse.Namespace, scratch: Path) -> Graphs:
    """What ONNX Runtime and OpenVINO compute."""
    model = random_model(arguments)
    encoder = T5V11EncoderModel(model.config).eval()
    encoder.load_state_dict({name: model.state_dict()[name] for name in encoder.state_dict()})
    return Graphs(encoder, scratch, arguments.threads)


def measure(dtype: str, arguments: argparse.Namespace, graphs: Graphs) -> dict[str, Any]:
    """Times of one type of numbers, and what the outputs of all contestants differ from those of the first."""
    ours = random_model(arguments)
    stock = stock_twin(ours).to(DTYPES[dtype])
    ours = copy.deepcopy(ours).to(DTYPES[dtype])
    input_ids = torch.randint(3, ours.config.vocab_size, (arguments.batch_size, arguments.length))
    mask, tokens, whole_mask = None, input_ids.numel(), torch.ones_like(input_ids)
    if arguments.ragged:
        mask = whole_mask = ragged_mask(*input_ids.shape)
        tokens = int(mask.sum())
    contestants: dict[str, Callable[[], Any]] = {
        BASE: lambda: stock.encoder(input_ids, mask),
        "t5_experimental": lambda: ours.encoder(input_ids, mask, skip_padding=arguments.ragged),
        "products alone": bare_products(ours.encoder, tokens),
    }
    rounded: Any = copy.deepcopy(ours.encoder)
    if dtype == "fp32":
        contestants["t5_experimental int8"] = lambda: rounded(input_ids, mask, skip_padding=arguments.ragged)
    for name, build in graphs.encoders(dtype).items():
        if arguments.only in name:
            contestants[name] = partial(build(), input_ids, whole_mask)
    contestants = {name: call for name, call in contestants.items() if name == BASE or arguments.only in name}
    cpu_seconds: dict[str, list[float]] = {}
    with decoding_session(rounded, "int8") as session:
        seconds = in_turns(contestants, arguments.rounds, cpu_seconds=cpu_seconds)
        names = [name for name in contestants if name != "products alone"]
        outputs = [contestants[name]().last_hidden_state.float() for name in names]
    print(session)
    if mask is not None:
        outputs = [output[mask != 0] for output in outputs]
    errors = [(output - outputs[0]).norm() / outputs[0].norm() for output in outputs]
    return {
        "tokens": tokens,
        "contestants": summary(seconds, cpu_seconds, BASE),
        "largest_difference": (outputs[0] - outputs[1]).abs().max().item() if len(outputs) > 1 else None,
        "largest_output": outputs[0].abs().max().item(),
        "relative_errors": {name: float(error) for name, error in zip(names, errors, strict=True)},
    }


@torch.no_grad()
def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    transformers.logging.set_verbosity_error()
    results = {}
    with tempfile.TemporaryDirectory() as scratch:
        graphs = graphs_of_encoder(arguments, Path(scratch))
        for dtype in arguments.dtypes:
            results[dtype] = measure(dtype, arguments, graphs)
            for name, figures in results[dtype]["contestants"].items():
                print(dtype, name, {key: value for key, value in figures.items() if key != "seconds"}, flush=True)
    settings = {name: value for name, value in vars(arguments).items() if name != "output"}
    write_json(arguments.output.with_suffix(".json"), {"settings": {**settings, **versions()}, "results": results})
    ragged = ", ragged" * arguments.ragged
    shape = f"{arguments.batch_size} x {arguments.length}{ragged}"
    title = f"{arguments.preset}, encoder, {shape}, {arguments.threads} threads"
    groups = {
        dtype: {name: figures["median"] for name, figures in result["contestants"].items()}
        for dtype, result in results.items()
    }
    draw_bars(arguments.output.with_suffix(".png"), title, groups, "seconds")


if __name__ == "__main__":
    main()
