# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Times generation side by side: transformers' own T5, CTranslate2, ONNX Runtime, OpenVINO and this package, with the
same random weights.

    python -m benchmarks.generate --output benchmarks/results/generate

CTranslate2 lays its weights out anew when it loads them. Here every call of `generate` does so for itself, since
weights may change between calls; a contestant whose calls share a `decoding_session` shows the time without that.

ONNX Runtime and OpenVINO take part where they are installed, in greedy search alone (graphs.py). Families that only
this package runs (`--preset t5.1.th.base`) are timed without the others. All contestants together hold 20 GB with
t5.1.1.base; `--only` takes some of them.

All contestants take turns in every round, in one process and with as many threads, and generate as many tokens as they
are told to; the end-of-sequence token ends none. A figure is the median over the rounds of the time of a
whole call (encoder included), divided by the number of generated tokens. Written are OUTPUT.json and OUTPUT.png.
"""

import argparse
import copy
import gc
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import ctranslate2
import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForSeq2SeqLM, PreTrainedTokenizerFast, T5ForConditionalGeneration

from t5_experimental import decoding_session

from .common import add_model_options, chosen_config, draw_bars, stock_twin, write_json
from .graphs import Graphs, versions


Contestant = Callable[[torch.Tensor], list[list[int]]]
"""Source ids `(batch, source)` -> generated ids, without the start token."""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    add_model_options(parser)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--source-length", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--beams", type=int, default=1, help="1: greedy")
    parser.add_argument("--only", default="", help="contestants whose names contain this")
    parser.add_argument("--memory", action="store_true", help="also what memory the first call of each needs, on Linux")
    parser.add_argument("--output", type=Path, default=Path("generate"), help="path without suffix")
    return parser.parse_args()


class InMemoryConverter(ctranslate2.converters.TransformersConverter):
    """CTranslate2's converter, given a model instead of the folder that it would load it from."""

    def __init__(self, model: T5ForConditionalGeneration, folder: str):
        model.config.save_pretrained(folder)
        super().__init__(folder)
        self.model = model

    def load_model(self, *unused: Any, **also_unused: Any) -> T5ForConditionalGeneration:
        return self.model

    def load_tokenizer(self, *unused: Any, **also_unused: Any) -> PreTrainedTokenizerFast:
        words = {"<pad>": 0, "</s>": 1, "<unk>": 2}
        words |= {f"t{i}": i for i in range(3, self.model.config.vocab_size)}
        tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
        )


def torch_contestant(model: torch.nn.Module, new_tokens: int, beams: int) -> Contestant:
    def generate(input_ids: torch.Tensor) -> list[list[int]]:
        generated = model.generate(
            input_ids,
            attention_mask=torch.ones_like(input_ids),
            min_new_tokens=new_tokens,
            max_new_tokens=new_tokens,
            do_sample=False,
            num_beams=beams,
        )
        return generated[:, 1:].tolist()

    return generate


def session_contestant(
    model: torch.nn.Module, new_tokens: int, beams: int, sessions: ExitStack, weights: str | None = None
) -> Contestant:
    """What the model does in a `decoding_session` that is ended with `sessions`, and prints at its end."""
    session = sessions.enter_context(decoding_session(model, weights))
    sessions.callback(lambda: print(session))
    return torch_contestant(model, new_tokens, beams)


def ctranslate2_contestant(folder: Path, compute_type: str, threads: int, new_tokens: int, beams: int) -> Contestant:
    translator = ctranslate2.Translator(str(folder), compute_type=compute_type, intra_threads=threads)
    words = json.loads((folder / "shared_vocabulary.json").read_text())
    ids = {word: number for number, word in enumerate(words)}

    def generate(input_ids: torch.Tensor) -> list[list[int]]:
        results = translator.translate_batch(
            [[words[i] for i in row] for row in input_ids.tolist()],
            beam_size=beams,
            min_decoding_length=new_tokens,
            max_decoding_length=new_tokens,
        )
        return [[ids[word] for word in result.hypotheses[0]] for result in results]

    return generate


def build_contestants(arguments: argparse.Namespace, scratch: Path, sessions: ExitStack) -> dict[str, Contestant]:
    """Every contestant by name, which is the library and the type of the numbers; `sessions` ends what they share."""
    torch.manual_seed(0)
    ours = AutoModelForSeq2SeqLM.from_config(chosen_config(arguments)).eval()
    how = arguments.new_tokens, arguments.beams

    def twin(dtype: torch.dtype) -> torch.nn.Module:
        return copy.deepcopy(ours).to(dtype)

    builders = {
        "t5_experimental fp32": lambda: torch_contestant(ours, *how),
        "t5_experimental fp32 session": lambda: session_contestant(twin(torch.float32), *how, sessions),
        "t5_experimental bf16": lambda: torch_contestant(twin(torch.bfloat16), *how),
        "t5_experimental bf16 session": lambda: session_contestant(twin(torch.bfloat16), *how, sessions),
        "t5_experimental int8 session": lambda: session_contestant(twin(torch.float32), *how, sessions, "int8"),
    }
    if ours.config.model_type == "t5_v1_1":
        builders |= other_contestants(ours, arguments, scratch)
    names = sorted(builders, key=lambda name: [kind in name for kind in ("fp32", "bf16", "int8")], reverse=True)
    chosen = [name for name in names if arguments.only in name]
    if not chosen:
        raise SystemExit(f"No contestant has --only {arguments.only} in its name: {', '.join(names)}.")
    return {name: builders[name]() for name in chosen}


def other_contestants(
    ours: torch.nn.Module, arguments: argparse.Namespace, scratch: Path
) -> dict[str, Callable[[], Contestant]]:
    """Those that are not this package, which know t5.1.1 alone."""
    stock = stock_twin(ours)
    (scratch / "config").mkdir()
    # A twin of its own, as the converter changes the numbers that it is given.
    converter = InMemoryConverter(stock_twin(ours), str(scratch / "config"))
    converter.convert(str(scratch / "float32"))
    converter.convert(str(scratch / "int8"), quantization="int8")
    how = arguments.new_tokens, arguments.beams
    return {
        **graph_contestants(ours, arguments, scratch / "graphs"),
        "transformers fp32": lambda: torch_contestant(stock, *how),
        "transformers bf16": lambda: torch_contestant(stock_twin(ours).to(torch.bfloat16), *how),
        "CTranslate2 fp32": lambda: ctranslate2_contestant(scratch / "float32", "float32", arguments.threads, *how),
        "CTranslate2 int8": lambda: ctranslate2_contestant(scratch / "int8", "int8", arguments.threads, *how),
    }


def graph_contestants(
    ours: torch.nn.Module, arguments: argparse.Namespace, scratch: Path
) -> dict[str, Callable[[], Contestant]]:
    """ONNX Runtime and OpenVINO; with beams, a line says that they are left out."""
    if arguments.beams == 1:
        return Graphs(ours, scratch, arguments.threads).generators(arguments.new_tokens)
    if versions():
        print(f"Left out, as they search greedily alone: {', '.join(versions())}.")
    return {}


def measure(contestants: dict[str, Contestant], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Milliseconds per generated token of every contestant and batch size."""
    generator = torch.Generator().manual_seed(1)
    vocab_size = chosen_config(arguments).vocab_size
    rows = []
    for batch_size in arguments.batch_sizes:
        input_ids = torch.randint(3, vocab_size - 100, (batch_size, arguments.source_length), generator=generator)
        times: dict[str, list[float]] = {name: [] for name in contestants}
        tokens: dict[str, list[list[int]]] = {}
        for round_number in range(arguments.rounds + 1):
            for name, generate in contestants.items():
                start = time.perf_counter()
                tokens[name] = generate(input_ids)
                seconds = time.perf_counter() - start
                if round_number > 0:  # the first one is the warm-up
                    times[name].append(seconds * 1000 / arguments.new_tokens)
        reference = next(iter(tokens.values()))
        for name, generated in tokens.items():
            if any(len(row) != arguments.new_tokens for row in generated):
                raise RuntimeError(f"{name} did not generate {arguments.new_tokens} tokens, so its time says nothing.")
            equal = sum(a == b for x, y in zip(generated, reference, strict=True) for a, b in zip(x, y, strict=True))
            rows.append(
                {
                    "name": name,
                    "batch_size": batch_size,
                    "ms_per_token": round(statistics.median(times[name]), 2),
                    "min": round(min(times[name]), 2),
                    "max": round(max(times[name]), 2),
                    "tokens_equal_to_first": round(equal / (batch_size * arguments.new_tokens), 3),
                }
            )
            print(f"batch {batch_size}  {name:28s} {rows[-1]['ms_per_token']:7.2f} ms per token", flush=True)
    return rows


def growth(arguments: argparse.Namespace, name: str, batch_size: int) -> int:
    """MiB that a contestant's first call needs on top of what it holds before, such as weights; on Linux."""
    torch.set_num_threads(arguments.threads)
    transformers.logging.set_verbosity_error()
    alone = argparse.Namespace(**{**vars(arguments), "only": name})
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as sessions:
        generate = build_contestants(alone, Path(scratch), sessions)[name]
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # the peak is the present size
        before = _kib("VmRSS")
        generate(torch.full((batch_size, arguments.source_length), 5))
        return (_kib("VmHWM") - before) // 1024


def _kib(name: str) -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1])


def draw(report: dict[str, Any], path: Path) -> None:
    """One group of bars for each batch size, one bar for each contestant."""
    groups: dict[str, dict[str, float]] = {}
    for row in report["results"]:
        groups.setdefault(f"batch {row['batch_size']}", {})[row["name"]] = row["ms_per_token"]
    where = report["settings"]
    title = (
        f"{where['preset']}, {where['source_length']} tokens in, {where['new_tokens']} out, {where['threads']} threads"
    )
    draw_bars(path, title, groups, "ms per token")


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    transformers.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as sessions:
        results = measure(build_contestants(arguments, Path(scratch), sessions), arguments)
    if arguments.memory:
        for row in results:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                row["mib_of_a_call"] = pool.apply(growth, (arguments, row["name"], row["batch_size"]))
            print(f"batch {row['batch_size']}  {row['name']:28s} {row['mib_of_a_call']:7,} MiB", flush=True)
    settings = {name: value for name, value in vars(arguments).items() if name != "output"}
    report = {"settings": {**settings, "ctranslate2": ctranslate2.__version__, **versions()}, "results": results}
    write_json(arguments.output.with_suffix(".json"), report)
    draw(report, arguments.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
