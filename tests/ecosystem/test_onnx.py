# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Exported graphs in optimum: the tokens of greedy and beam search are torch's, for all families, in every layout.

optimum's loaders need transformers 4, which has no room beside ours: `make test-ecosystem` makes an environment for
them and says in ECOSYSTEM_ONNX_PYTHON where its Python is.
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoModelForTextEncoding, AutoTokenizer

from t5_experimental.convert.cli import main


PYTHON = os.environ.get("ECOSYSTEM_ONNX_PYTHON")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="optimum needs an environment of its own: run `make test-ecosystem`"),
]

TESTS = Path(__file__).parents[1]
BEAMS = (1, 4)
STEPS = 24
# Checkpoint, options of `convert`, options of `export-onnx`.
CELLS = {
    "t5.1.1": ("t5.1.1.tiny", (), ()),
    "unmerged": ("t5.1.1.tiny", (), ("--unmerged",)),
    "lm100k": ("t5.1.1.tiny", ("--family", "t5.1.1.lm100k"), ()),
    "th": ("t5.1.th.tiny", (), ()),
    "th unmerged": ("t5.1.th.tiny", (), ("--unmerged",)),
    "n4w10": ("t5.1.n4w10.tiny", (), ()),
    "encoder": ("t5.1.th.tiny", ("--encoder-only",), ()),
}
TEXTS = ["a restaurant by the river", "cheap food", "name[The Eagle], food[English], area[riverside], a long one"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Model and graphs of every cell."""
    root = tmp_path_factory.mktemp("ecosystem")
    made = {}
    for cell, (checkpoint, options, more) in CELLS.items():
        model, graphs = root / f"{cell} model", root / f"{cell} graphs"
        source, vocab = TESTS / "reference/golden" / checkpoint, TESTS / "data/restaurants.model"
        assert main(["convert", str(source), str(model), "--vocab", str(vocab), *options]) == 0
        assert main(["export-onnx", str(model), str(graphs), *more]) == 0
        made[cell] = model, graphs
    return made


@pytest.fixture(scope="module")
def inputs(folders: dict[str, tuple[Path, Path]]) -> Any:
    return AutoTokenizer.from_pretrained(folders["th"][0])(TEXTS, padding=True, return_tensors="pt")


@pytest.fixture(scope="module")
def found(folders: dict[str, tuple[Path, Path]], inputs: Any) -> dict[str, Any]:
    """What optimum says of every cell."""
    job = {
        "folders": [str(graphs) for _, graphs in folders.values()],
        "ids": inputs.input_ids.tolist(),
        "mask": inputs.attention_mask.tolist(),
        "steps": STEPS,
        "beams": BEAMS,
        "text": TEXTS[0],
    }
    done = subprocess.run(
        [str(PYTHON), "-W", "ignore", Path(__file__).with_name("onnx_worker.py")],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""},
    )
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    return {cell: answers[str(graphs)] for cell, (_, graphs) in folders.items()}


@pytest.mark.parametrize("cell", [cell for cell in CELLS if cell != "encoder"])
def test_tokens_are_those_of_torch(
    cell: str, folders: dict[str, tuple[Path, Path]], inputs: Any, found: dict[str, Any]
) -> None:
    model = AutoModelForSeq2SeqLM.from_pretrained(folders[cell][0])
    assert found[cell]["text"] == inputs.input_ids[0][inputs.attention_mask[0] > 0].tolist()
    for beams in BEAMS:
        expected = model.generate(
            input_ids=inputs.input_ids,
            attention_mask=inputs.attention_mask,
            max_new_tokens=STEPS,
            num_beams=beams,
            do_sample=False,
        )
        assert found[cell]["tokens"][str(beams)] == expected.tolist()
        assert len(set(expected.flatten().tolist())) > 3


def test_the_encoder_alone(folders: dict[str, tuple[Path, Path]], inputs: Any, found: dict[str, Any]) -> None:
    model = AutoModelForTextEncoding.from_pretrained(folders["encoder"][0])
    with torch.no_grad():
        expected = model(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask).last_hidden_state
    torch.testing.assert_close(torch.tensor(found["encoder"]["states"]), expected, rtol=1e-4, atol=1e-5)
