# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""The tasks of the T5 paper: texts and metrics equal what t5 made of the same rows, and bad rows are named."""

import dataclasses
import json
import re

import pytest
from datasets import Dataset

from t5_experimental.training import finetune
from t5_experimental.training.data import task_texts
from t5_experimental.training.data.arguments import DataArguments
from t5_experimental.training.data.examples import load_splits
from t5_experimental.training.data.predictions import Sample
from t5_experimental.training.data.tasks import TASKS, Task, find_task
from t5_experimental.training.errors import TrainingError
from t5_experimental.training.trainer.finetuning import FinetuningTrainer


# What t5 calls the figures, by task where a name means several things.
ORIGINAL_NAMES = {
    "matthews": "matthews_corrcoef",
    "pearson": "pearson_corrcoef",
    "spearman": "spearman_corrcoef",
    "f1_binary": "f1",
    "f1_macro": "mean_3class_f1",
    "question_exact_match": "exact_match",
    "squad_em": "em",
    "squad_f1": "f1",
    "bleu_intl": "bleu",
}


@pytest.fixture(scope="module")
def recorded(reference):
    return json.loads((reference / "tasks.json").read_text(encoding="utf-8"))


def texts_differ(task: Task, record) -> list[int]:
    """Rows whose texts are not the original's."""
    different = []
    for number, (row, expected) in enumerate(zip(record["rows"], record["texts"], strict=True)):
        example = task.convert(row, f"row {number}")
        if [[example["source"], target] for target in example["targets"]] != expected:
            different.append(number)
    return different


def test_every_task_is_recorded(recorded):
    assert recorded.keys() == TASKS.keys()


@pytest.mark.parametrize("name", TASKS)
def test_texts_are_the_originals(name, recorded):
    assert texts_differ(TASKS[name], recorded[name]) == []
    if name != "super_glue_wsc":  # its targets are nouns, label or not
        unlabeled = [n for n, row in enumerate(recorded[name]["rows"]) if TASKS[name].convert(row, "")["label"] < 0]
        assert unlabeled == [n for n, made in enumerate(recorded[name]["texts"]) if made[0][1] == "<unk>"]


@pytest.mark.parametrize("name", TASKS)
def test_metrics_are_the_originals(name, recorded):
    task, record = TASKS[name], recorded[name]
    for measured in record["metrics"]:
        examples = [task.labeled(record["rows"][number], "") for number in measured["rows"]]
        figures = task.score(examples, measured["predictions"])
        assert tuple(figures) == task.figures
        expected = {key: measured["figures"][ORIGINAL_NAMES.get(key, key)] for key in figures}
        assert figures == pytest.approx(expected, abs=1e-9, nan_ok=True)
        # The original reports the median of resamplings of ROUGE, which is another number every time.
        for key, value in measured.get("resampled", {}).items():
            assert figures[key] == pytest.approx(value, abs=3)


def test_the_comparison_finds_small_differences(recorded):
    record = recorded["glue_mrpc"]
    for name, columns in (("mrpc:", "sentence1 sentence2"), ("mrpc", "sentence2 sentence1")):
        converter = task_texts.glue(name, columns.split(), ("not_equivalent", "equivalent"))
        mutant = dataclasses.replace(TASKS["glue_mrpc"], converter=converter)
        assert texts_differ(mutant, record) == list(range(len(record["rows"])))
    swapped = task_texts.glue("mrpc", ("sentence1", "sentence2"), ("equivalent", "not_equivalent"))
    assert len(texts_differ(dataclasses.replace(TASKS["glue_mrpc"], converter=swapped), record)) == 5
    # White space as Python understands it.
    record = recorded["squad"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(task_texts, "_SPACES", re.compile(r"\s+"))
        assert texts_differ(TASKS["squad"], record) == [0]


def test_wsc_trains_on_right_nouns_alone(recorded):
    task, record = TASKS["super_glue_wsc"], recorded["super_glue_wsc"]
    examples = [task.convert(row, "") for row in record["rows"]]
    trained = [[e["source"], *e["targets"]] for e in examples if e["label"] == task.trains_on]
    assert trained == record["training"]


ROW = {"sentence1": "a", "sentence2": "b", "label": "1"}
WSC = {"text": "a b c", "span1_text": "a", "span1_index": 0, "span2_text": "b", "span2_index": 1, "label": 0}


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        (
            "glue_mrpc",
            {"sentence1": "a", "label": 1},
            r"no column 'sentence2' among \['label', 'sentence1'\], but --task",
        ),
        ("glue_mrpc", {**ROW, "label": 2}, r"'label' holds 2, which is none of the classes 0 \(not_equivalent\), 1"),
        ("glue_mrpc", {**ROW, "label": "maybe"}, "'label' holds 'maybe', which is none of the classes"),
        ("glue_mrpc", {**ROW, "label": None}, "'label' holds None, which is none of the classes"),
        ("glue_mrpc", {**ROW, "label": -1}, "the row has no label or answer, as in the test splits of benchmarks"),
        ("glue_stsb", {**ROW, "label": "-1.0"}, "the row has no label"),
        ("glue_stsb", {**ROW, "label": "NaN"}, "'label' holds 'NaN', which is no number"),
        ("glue_mrpc", {**ROW, "sentence1": ["a"]}, r"'sentence1' holds \['a'\], which is not text"),
        ("squad", {"question": "a", "context": "b", "answers": "c"}, "'answers' holds 'c', which is no object"),
        ("squad", {"question": "a", "context": "b", "answers": {}}, r"no column 'answers.text' among \[\]"),
        (
            "squad",
            {"question": "a", "context": "b", "answers": {"text": "c"}},
            "'answers.text' holds 'c', which is no l",
        ),
        ("squad", {"question": "a", "context": "b", "answers": {"text": []}}, "the row has no label or answer"),
        ("wmt16_enro", {"translation": {"en": "a", "de": "b"}}, "no column 'translation.ro' among"),
        ("super_glue_wsc", {**WSC, "span2_index": 2}, "word 2 of the text is 'c', and not the pronoun 'b'"),
        ("super_glue_wsc", {**WSC, "span2_index": "x"}, "'span2_index' holds 'x', which is no integer"),
        ("super_glue_wsc", {**WSC, "span2_index": 3}, "'span2_index' is 3, but the pronoun must be one of the 3 words"),
    ],
)
def test_bad_rows_are_named(name, row, message):
    with pytest.raises(TrainingError, match=f"^data, line 7: .*{message}"):
        TASKS[name].labeled(row, "data, line 7")


@pytest.mark.parametrize("label", [1, "1", 1.0, "1.0", "1.00", "equivalent"])
def test_labels_are_numbers_or_names(label):
    assert TASKS["glue_mrpc"].labeled({**ROW, "label": label}, "")["targets"] == ["equivalent"]


def test_unknown_tasks_are_told_the_nearest():
    with pytest.raises(TrainingError, match="--task glue_mrpc_v002 does not exist; the nearest is glue_mrpc, and all"):
        find_task("glue_mrpc_v002")


# --- From files to figures ----------------------------------------------------------------------------------------


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes rows to a file of lines."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")

    def to_file(rows, name="data.jsonl"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
        return path

    return to_file


def labeled(task, recorded):
    rows = recorded[task]["rows"]
    return [row for row in rows if TASKS[task].convert(row, "")["label"] >= 0]


@pytest.mark.parametrize("name", ["glue_stsb", "super_glue_multirc", "super_glue_record", "squad", "wmt16_enro"])
def test_every_kind_of_file_gives_the_same_examples(name, recorded, write, tmp_path):
    rows, task = labeled(name, recorded), TASKS[name]
    expected = [task.convert(row, "") for row in rows]
    lines = write(rows, "folder/train.jsonl")
    table = tmp_path / "data.parquet"
    Dataset.from_list(rows).to_parquet(table)
    for options in ({"train_file": str(lines)}, {"train_file": str(table)}, {"dataset_name": str(lines.parent)}):
        assert load_splits(DataArguments(**options, task=name))["train"].to_list() == expected


def test_splits_are_the_tasks(write):
    """MNLI's validation split has another name, its test split no labels; MRPC's has some."""
    row = {"premise": "a", "hypothesis": "b", "label": 0}
    names = ("train", "validation_matched", "validation_mismatched", "test")
    for split in names:
        folder = write([row] * len(split), f"mnli/{split}.jsonl").parent
    splits = "".join(f"  - split: {name}\n    path: {name}.jsonl\n" for name in names)
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files:\n{splits}---\n")
    for task, split in (("glue_mnli", "validation_matched"), ("glue_mnli_mismatched", "validation_mismatched")):
        splits = load_splits(DataArguments(dataset_name=str(folder), task=task))
        assert {name: len(rows) for name, rows in splits.items()} == {"train": 5, "eval": len(split)}
    for split in ("train", "validation", "test"):
        folder = write([ROW], f"mrpc/{split}.jsonl").parent
    assert set(load_splits(DataArguments(dataset_name=str(folder), task="glue_mrpc"))) == {"train", "eval", "test"}


def test_texts_that_datasets_guesses_about_are_refused(write):
    folder = write([{**ROW, "sentence1": "2020-01-01"}], "folder/train.jsonl").parent
    with pytest.raises(TrainingError, match="split train: column 'sentence1' is not text to `datasets`"):
        load_splits(DataArguments(dataset_name=str(folder), task="glue_mrpc"))


def test_wsc_evaluates_all_rows_and_needs_some_to_train_on(recorded, write):
    rows = labeled("super_glue_wsc", recorded)
    path = str(write(rows))
    splits = load_splits(DataArguments(train_file=path, validation_file=path, task="super_glue_wsc"))
    assert splits["train"]["label"][:] == [1] * 4
    assert len(splits["eval"]) == len(rows) == 8
    wrong = str(write([row for row in rows if not row["label"]], "wrong.jsonl"))
    with pytest.raises(TrainingError, match="trains on rows with label 1 alone, and there are none"):
        load_splits(DataArguments(train_file=wrong, task="super_glue_wsc"))


def run(model, folder, **options):
    flags = {"model_name_or_path": model, "output_dir": folder, "max_steps": 1, "save_strategy": "no", **options}
    finetune.main([*(text for name, value in flags.items() for text in (f"--{name}", str(value))), "--use_cpu"])


def test_a_run_reports_the_tasks_metrics(tiny_models, write, tmp_path, monkeypatch, capsys):
    """Every example counts, also of two with one input, and all rows of a question."""
    idx = [{"paragraph": 0, "question": question, "answer": answer} for question, answer in ((0, 0), (0, 1), (1, 0))]
    rows = [{"paragraph": "p", "question": "q", "answer": "same", "idx": place, "label": 1} for place in idx]
    rows[1]["label"] = 0
    path = write(rows)
    said = {"multirc question: q answer: same paragraph: p": "True"}

    def generate(self, split, references):
        return [Sample(source, said[source], texts) for source, texts in references.items()]

    monkeypatch.setattr(FinetuningTrainer, "_generate", generate)
    files = {"train_file": path, "validation_file": path, "task": "super_glue_multirc", "eval_strategy": "steps"}
    run(tiny_models["t5_v1_1"], tmp_path / "output", **files, metric_for_best_model="f1_binary", eval_steps=1)
    figures = json.loads((tmp_path / "output" / "eval_results.json").read_text())
    assert figures["eval_f1_binary"] == pytest.approx(80)
    assert figures["eval_question_exact_match"] == 50
    assert "task        super_glue_multirc, measured by f1_binary, question_exact_match\n" in capsys.readouterr().out
    run(tiny_models["t5_v1_1"], tmp_path / "other", **files, metric="exact_match")
    figures = json.loads((tmp_path / "other" / "eval_results.json").read_text())
    assert figures["eval_exact_match"] == 100
    assert "eval_f1_binary" not in figures


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "glue_mprc"}, "--task glue_mprc does not exist; the nearest is glue_mrpc, and all are glue_cola, "),
        (
            {"source_prefix": "mrpc "},
            "--task glue_mrpc makes its texts of its own columns, so that --source_prefix",
        ),
        ({"input_column": "source"}, "so that --input_column has no effect: leave one of them out"),
        ({"target_column": "label"}, "so that --target_column has no effect: leave one of them out"),
        ({"metric_for_best_model": "bleu"}, "bleu is not computed, only loss, f1_binary, accuracy: choose"),
        (
            {"task": "glue_qqp"},
            r"data.jsonl, line 1: no column 'question1' among \['label', 'sentence1', 'sentence2'\]",
        ),
        ({}, "data.jsonl, line 2: the row has no label or answer"),
    ],
)
def test_what_does_not_fit_ends_in_a_sentence(options, message, tiny_models, write, tmp_path):
    path = write([ROW, {**ROW, "label": -1}])
    with pytest.raises(SystemExit, match=f"^finetune: .*{message}"):
        run(tiny_models["t5_v1_1"], tmp_path / "output", **{"train_file": path, "task": "glue_mrpc", **options})
    assert not list(tmp_path.glob("output/*"))
