# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""What optimum makes of ONNX folders, run by test_onnx.py in an environment of transformers 4 that has none of ours.

Reads JSON from standard input: `folders`, `ids`, `mask`, `steps`, `beams`; writes the tokens of each folder as JSON.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from optimum.onnxruntime import ORTModelForFeatureExtraction, ORTModelForSeq2SeqLM
from transformers import AutoTokenizer


def run(folder: Path, job: dict[str, Any]) -> dict[str, Any]:
    """Ids of the tokenizer, and by number of beams the tokens; for an encoder the shape of its output."""
    ids, mask = torch.tensor(job["ids"]), torch.tensor(job["mask"])
    if (folder / "model.onnx").exists():
        outputs = ORTModelForFeatureExtraction.from_pretrained(folder)(input_ids=ids, attention_mask=mask)
        return {"states": outputs.last_hidden_state.tolist()}
    is_merged = (folder / "decoder_model_merged.onnx").exists()
    model = ORTModelForSeq2SeqLM.from_pretrained(folder, use_merged=is_merged)
    found = {
        str(beams): model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=job["steps"], num_beams=beams, do_sample=False
        ).tolist()
        for beams in job["beams"]
    }
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return {"tokens": found, "text": tokenizer(job["text"]).input_ids}


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    json.dump({folder: run(Path(folder), asked) for folder in asked["folders"]}, sys.stdout)
