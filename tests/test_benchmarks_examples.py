# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""The worked examples run from their data to their charts; how well their models learn is no test's business."""

import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from benchmarks import e2e, pretraining, small_models
from t5_experimental.training import evaluate, finetune, pretrain


TINY = {"d_model": 16, "num_layers": 5, "num_heads": 2, "d_kv": 8, "d_ff": 16}
NAMES = ("Copper Kettle", "Silent Lantern", "Amber Anchor", "Crooked Pepper", "Velvet Sparrow", "Golden Orchard")
FOODS = ("Greek", "Thai", "Mexican", "Korean", "Spanish")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """`run(benchmark, *arguments)`: what a benchmark writes as JSON, run with tiny models and without the launcher."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")

    for shape, (preset, _) in small_models.SHAPES.items():
        monkeypatch.setitem(small_models.SHAPES, shape, (preset, TINY))

    def launch(entry_point: str, options: dict[str, Any], threads: int) -> SimpleNamespace:
        entry_points = {"evaluate": evaluate, "finetune": finetune, "pretrain": pretrain}
        entry_points[entry_point].main(small_models.flags({"use_cpu": True, **options}))
        return SimpleNamespace(cpu_seconds=1.0)

    def launch_all(entry_point: str, runs: list[dict[str, Any]], at_once: int) -> list[SimpleNamespace]:
        return [launch(entry_point, options, 1) for options in runs]

    def run_benchmark(benchmark: ModuleType, *arguments: str) -> dict[str, Any]:
        for replacement in (launch, launch_all):
            monkeypatch.setattr(benchmark, replacement.__name__, replacement, raising=False)
        output = tmp_path / "results" / "benchmark"
        monkeypatch.setattr(sys, "argv", ["", "--quick", "--pieces", "300", *arguments, "--output", str(output)])
        benchmark.main()
        assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
        return json.loads(output.with_suffix(".json").read_text())

    return run_benchmark


def write_restaurants(path: Path) -> list[dict[str, str]]:
    """Rows as the E2E files have them, two for each input."""
    rows = [
        {"mr": f"name[{name}], food[{food}]", "ref": text.format(name, food)}
        for name in NAMES
        for food in FOODS
        for text in ("{} serves {} food.", "At {}, the food is {}.")
    ]
    with path.open("w", newline="") as lines:
        writer = csv.DictWriter(lines, ["mr", "ref"])
        writer.writeheader()
        writer.writerows(rows)
    return rows


def write_verses(path: Path) -> str:
    text = "\n\n".join(
        f"{name}:\nWho brings the {food} dishes to the table,\nAnd who will eat them all, if one is able?"
        for name in NAMES
        for food in FOODS
    )
    path.write_text(text)
    return text


def test_e2e_learns_with_three_shapes(
    run: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("e2e_dev.csv", "e2e_test.csv"):
        write_restaurants(tmp_path / name)
    evaluated: list[str] = []

    def evaluate_all(work: Path, figures: dict[str, dict[str, Any]], arguments: Any) -> None:
        evaluate_again(work, figures, arguments)
        # Of all models by the new command, on both files, to the last digit; and it is not compared with itself.
        evaluated.extend(path.parent.name for path in work.glob("evaluations/*/predictions_test.jsonl"))
        wrong = figures["t5.1.th"]["eval_loss"] + 1e-9
        other = {**figures, "t5.1.th": {**figures["t5.1.th"], "eval_loss": wrong}}
        with pytest.raises(RuntimeError, match=f"eval_loss .* of the saved t5.1.th, where .* reported {wrong}"):
            evaluate_again(work, other, arguments)

    evaluate_again = e2e.evaluate_all
    monkeypatch.setattr(e2e, "evaluate_all", evaluate_all)
    results = run(e2e, "--data", str(tmp_path))
    assert sorted(evaluated) == sorted(results["models"])
    assert results["rows"] == {"train": 56, "validation": 4, "test": 60}
    assert list(results["models"]) == ["t5.1.1", "t5.1.th", "t5.1.n4w10"]
    for model in results["models"].values():
        assert 0 <= model["test_bleu"] <= 100
        assert [row["step"] for row in model["log"] if "loss" in row] == [1, 2]
        assert [row["step"] for row in model["log"] if "eval_bleu" in row] == [1, 2]
    losses = results["speed"]["losses"]
    # Both begin with the same weights and see the same examples, or their speeds could not be compared.
    assert losses["t5_experimental"] == pytest.approx(losses["transformers"], rel=1e-5)


def test_pretraining_precedes_one_of_two_fine_tunings(run: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    write_verses(tmp_path / "verses.txt")
    results = run(pretraining, "--text", str(tmp_path / "verses.txt"))
    # Three of the 30 documents, of three lines each.
    assert results["sizes"]["train"] == 3 * 3 - 2
    losses = {name: model["log"][0]["loss"] for name, model in results["models"].items()}
    assert set(losses) == {"pre-trained", "fresh"}
    assert losses["pre-trained"] != losses["fresh"]
    assert [row["step"] for row in results["pretraining"]["log"] if "loss" in row] == [1, 2]


def test_held_out_inputs_are_not_trained_on(tmp_path: Path) -> None:
    rows = write_restaurants(tmp_path / "rows.csv")
    counts = e2e.prepare_data(tmp_path / "rows.csv", tmp_path)
    train, validation = (e2e.read_rows(tmp_path / f"{name}.csv") for name in ("train", "validation"))
    assert counts == {"train": len(train), "validation": len(validation)}
    assert len(validation) == 2 * 2  # two rows each of the 12th and the 24th of 30 inputs
    assert not {row["mr"] for row in train} & {row["mr"] for row in validation}
    assert sorted(map(str, train + validation)) == sorted(map(str, rows))


def test_parts_of_a_text_share_nothing(tmp_path: Path) -> None:
    text = write_verses(tmp_path / "verses.txt")
    parts = pretraining.cut_text(text)
    assert "\n\n".join(parts) == text
    assert [len(part.split("\n\n")) for part in parts] == [24, 3, 3]


def test_a_word_is_missing_from_three_lines(tmp_path: Path) -> None:
    text = "One two,\nthree\n\nfour five\nsix\n\n1 2\n3 4\n5 6"
    examples = pretraining.missing_words(text, 0)
    whole = [row["source"].replace("<extra_id_0>", row["target"]) for row in examples]
    # The last three lines have no word.
    assert whole == ["One two, three four five", "three four five six", "four five six 1 2", "six 1 2 3 4"]
    assert all(row["target"] in {"One", "two", "three", "four", "five", "six"} for row in examples)
    assert pretraining.missing_words(text, 0) == examples


def test_models_are_of_equal_size_and_know_the_vocabulary(tmp_path: Path) -> None:
    small_models.train_vocabulary(
        [row["ref"] for row in write_restaurants(tmp_path / "rows.csv")], tmp_path / "v.model", 300
    )
    small_models.make_model(tmp_path / "model", "t5.1.1", tmp_path / "v.model", seed=0)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)
    assert tokenizer("<extra_id_0>").input_ids[:-1] == [len(tokenizer) - 1]
    assert tokenizer.decode(tokenizer("Thai food.").input_ids, skip_special_tokens=True) == "Thai food."
    sizes = []
    for shape in small_models.SHAPES:
        config = small_models.small_config(shape, 2000)
        with torch.device("meta"):
            sizes.append(AutoModelForSeq2SeqLM.from_config(config).num_parameters())
    assert max(sizes) < 1.03 * min(sizes)
    assert min(sizes) > 2e6
    widths = [
        (spec.num_heads, spec.d_ff) for spec in small_models.small_config("t5.1.n4w10", 2000).layer_specs("decoder")
    ]
    assert widths == [(3, 192)] * 4 + [(6, 384)] * 2
