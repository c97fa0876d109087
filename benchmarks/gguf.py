# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""What rounding in GGUF files does to a trained model: llama.cpp's greedy texts of each dtype, and those of our class.

    python -m benchmarks.gguf FOLDER --test-file e2e_test.csv --output benchmarks/results/gguf

FOLDER holds a fine-tuned t5.1.1 with its tokenizer, such as one of benchmarks/e2e.py, and the file the columns `mr` and
`ref`; an input with several references counts once. It takes llama-cpp-python and sacrebleu, which the environment of
`make test-ecosystem` has. Written is OUTPUT.json.
"""

import argparse
import csv
import tempfile
from pathlib import Path
from typing import Any

import sacrebleu
import torch
import transformers
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

import t5_experimental  # noqa: F401 - registers the models with the Auto classes
from t5_experimental.convert.export_gguf import export_gguf
from tests.support.llama_cpp_model import greedy, llama, loaded

from .common import write_json


DTYPES = ("float32", "float16", "bfloat16", "q8_0")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--test-file", type=Path, required=True, help="CSV with the columns mr and ref")
    parser.add_argument("--inputs", type=int, help="the first ones alone")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--output", type=Path, default=Path("gguf"), help="path without suffix")
    return parser.parse_args()


def read_references(path: Path) -> dict[str, list[str]]:
    """References by input."""
    found: dict[str, list[str]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, strict=True):
            found.setdefault(row["mr"], []).append(row["ref"])
    return found


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """BLEU of our class, and of each dtype bytes, texts that are the same, and BLEU."""
    references = dict(list(read_references(arguments.test_file).items())[: arguments.inputs])
    most = max(map(len, references.values()))
    columns = [[texts[k] if k < len(texts) else None for texts in references.values()] for k in range(most)]
    model = AutoModelForSeq2SeqLM.from_pretrained(arguments.folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(arguments.folder)
    eos = model.config.eos_token_id
    inputs = [tokenizer(text).input_ids for text in references]
    settings = {"max_new_tokens": arguments.new_tokens, "max_length": None, "num_beams": 1, "do_sample": False}
    ours = [model.generate(torch.tensor([ids]), **settings)[0].tolist() for ids in inputs]

    def bleu(rows: list[list[int]]) -> float:
        texts = tokenizer.batch_decode(rows, skip_special_tokens=True)
        return round(sacrebleu.corpus_bleu(texts, columns).score, 2)

    results: dict[str, Any] = {"inputs": len(inputs), "ours": {"bleu": bleu(ours)}}
    with tempfile.TemporaryDirectory() as folder:
        for dtype in DTYPES:
            path = Path(folder) / f"{dtype}.gguf"
            export_gguf(arguments.folder, path, dtype=dtype)
            with loaded(path) as (theirs, context):
                rows = [greedy(theirs, context, ids, arguments.new_tokens, eos) for ids in inputs]
            equal = sum(row == own for row, own in zip(rows, ours, strict=True))
            results[dtype] = {"bytes": path.stat().st_size, "texts_equal_to_ours": equal, "bleu": bleu(rows)}
            print(dtype, results[dtype], flush=True)
    return results


def main() -> None:
    arguments = parse_arguments()
    transformers.logging.set_verbosity_error()
    silent = llama.llama_log_callback(lambda *_: None)  # a name keeps it alive for as long as llama.cpp may call it
    llama.llama_log_set(silent, None)
    settings = {"new_tokens": arguments.new_tokens, "llama_cpp": llama.__version__, "sacrebleu": sacrebleu.__version__}
    write_json(arguments.output.with_suffix(".json"), {"settings": settings, "results": measure(arguments)})


if __name__ == "__main__":
    main()
