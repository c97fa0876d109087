# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Shows what a fine-tuned folder makes of the first two examples of a file.

python tests/generate_samples.py FOLDER EXAMPLES.jsonl
"""

import json
import sys
from pathlib import Path

from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

import t5_experimental  # noqa: F401 - registers the models with the Auto classes


def main(folder: str, examples_file: str) -> None:
    rows = [json.loads(line) for line in Path(examples_file).read_text(encoding="utf-8").splitlines()[:2]]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    batch = tokenizer([row["source"] for row in rows], padding=True, return_tensors="pt")
    predictions = tokenizer.batch_decode(model.generate(**batch, max_new_tokens=48), skip_special_tokens=True)
    for row, prediction in zip(rows, predictions, strict=True):
        print(f"source      {row['source']}\nprediction  {prediction}\nreference   {row['target']}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
