# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""The page that a run leaves behind, and the model card that links to it."""

import ast
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
import transformers
import yaml
from huggingface_hub import ModelCard
from transformers import TrainerState

from t5_experimental.training import finetune
from t5_experimental.training.report.charts import chart, ticks
from t5_experimental.training.report.report import Report, curves, describe_best, write_card


DATA = Path(__file__).parents[1] / "data"


class _Page(HTMLParser):
    """The text of a page, and everything that it would load."""

    def __init__(self, page: str):
        super().__init__()
        self.text, self.loaded, self.tags = "", [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.loaded += [value for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def output(tiny_models, tmp_path_factory) -> Path:
    """Folder of a run on data that looks like markup."""
    folder = tmp_path_factory.mktemp("report")
    rows = [{"source": f"<script>{number}</script> & more", "target": "{{ 7 * 7 }} <b>"} for number in range(3)]
    for name in ("train", "test"):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", folder / "cache")
        options = (
            f"--model_name_or_path {tiny_models['t5_v1_1']} --output_dir {folder / 'a<b>'} --use_cpu --max_steps 3"
        )
        files = f"--train_file {folder / 'train.jsonl'} --test_file {folder / 'test.jsonl'} --metric bleu f1"
        more = "--logging_steps 1 --save_strategy no --max_target_length 4 --hub_token hf_secret"
        finetune.main(f"{options} {files} {more}".split())
    return folder / "a<b>"


def test_page_stands_alone_and_shows_the_run(output):
    source = (output / "report.html").read_text()
    page = _Page(source)
    assert page.loaded == []
    assert "script" not in page.tags
    assert "url(" not in source
    assert "@import" not in source
    for text in (
        "<script>0</script> & more",
        "{{ 7 * 7 }} <b>",
        "Fine-tuning: a<b>",
        "finetune.py --model_name_or_path",
        "--hub_token ...",
        "T5V11ForConditionalGeneration (t5_v1_1)",
        "3 of 3 train targets, the longest has",
        transformers.__version__,
    ):
        assert text in page.text, text
    assert "hf_secret" not in source
    metrics = json.loads((output / "all_results.json").read_text())
    for name in ("test_bleu", "test_f1", "test_loss", "train_loss"):
        assert f"{name}{metrics[name]:.6g}" in re.sub(r"\s", "", page.text)
    svgs = re.findall(r"<svg.*?</svg>", source, flags=re.DOTALL)
    titles = [ElementTree.fromstring(svg)[0].text for svg in svgs]
    assert {"loss", "learning rate", "tokens per second", "bleu", "f1"} <= set(titles)


def test_card_links_to_the_page(output):
    card = (output / "README.md").read_text()
    assert "Curves, samples and settings are in [report.html](report.html)." in card
    assert "Fine-tuning of `t5_v1_1`, a `T5V11ForConditionalGeneration`, with" in card
    assert "library_name: transformers" in card
    assert "- t5_v1_1" in card
    assert "| test_bleu |" in card
    assert "hf_secret" not in card
    assert not list(output.glob(".*unfinished"))


NAMES = [
    "plain-name_2.1",
    "a *b* [c](d) <e> & | ~~f~~ # g",
    "`tick` ```fence``` and ``",
    'quo"te\\ {{ 7 * 7 }} {% raw %}',
    "line\nbreak\n---\n# heading\x1b[31m",
    "```\n# heading\n```",
]


def unescaped(line: str) -> str:
    """What markdown makes of a line in which signs are escaped; fails if one is not."""
    assert not re.search(r"[!-/:-@\[-`{-~]", re.sub(r"\\[!-/:-@\[-`{-~]", "", line)), line
    return re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", line)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("is_adapter", [False, True])
def test_names_are_no_markup_in_the_card(name, is_adapter, tmp_path):
    folder = tmp_path / name
    folder.mkdir()
    report = Report("T", "Model", name, is_adapter, name, f"finetune.py --x {name}", {}, {"a": {"f1": 1}}, [], [], {})
    write_card(folder, replace(report, versions={"t5_experimental": "1"}))
    card = (folder / "README.md").read_text()
    shown = re.sub(r"[\n\x1b]", "\ufffd", name)
    front, body = card.removeprefix("---\n").split("\n---\n", 1)
    assert yaml.safe_load(front)["tags"] == ["t5", name]
    lines = body.splitlines()
    assert unescaped(next(line for line in lines if line.startswith("# "))[2:]) == shown
    line = next(line for line in lines if line.startswith("T of "))
    ticks = re.match("`+", line[5:])[0]
    code = line[5 + len(ticks) :].split(ticks + ", a `Model`,", 1)[0]
    assert (code[1:-1] if "`" in shown else code) == shown
    # The first fence is Python, the second the command.
    python = body.split("```python\n", 1)[1].split("\n```\n", 1)
    literals = [node.value for node in ast.walk(ast.parse(python[0])) if isinstance(node, ast.Constant)]
    assert literals == ([name] * 3 if is_adapter else [name] * 2)
    fence, command = re.search(r"It was made with\n\n(`{3,})\n(.*)\n\1\n\Z", python[1], re.DOTALL).groups()
    assert command == f"finetune.py --x {name}".replace("\x1b", "\ufffd")
    assert fence not in command


def test_programs_read_license_model_data_and_results(tiny_models, tmp_path, monkeypatch):
    """From a base model whose card says its license, with a data set of a local folder."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    model = shutil.copytree(tiny_models["t5_v1_1"], tmp_path / "base")
    (model / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n")
    (tmp_path / "data").mkdir()
    for name in ("train", "validation", "test"):
        shutil.copyfile(DATA / "restaurants_test.jsonl", tmp_path / "data" / f"{name}.jsonl")
    options = f"--model_name_or_path {model} --output_dir {tmp_path / 'out'} --use_cpu --max_steps 4 --save_strategy no"
    data = f"--dataset_name {tmp_path / 'data'} --metric rouge squad --max_target_length 4"
    finetune.main(f"{options} {data} --eval_strategy steps --eval_steps 2".split())
    card = ModelCard.load(tmp_path / "out" / "README.md")
    metadata = yaml.safe_load((tmp_path / "out" / "README.md").read_text().split("---\n")[1])
    assert {name: metadata[name] for name in ("license", "base_model", "library_name", "tags", "metrics")} == {
        "license": "apache-2.0",
        "base_model": "base",
        "library_name": "transformers",
        "tags": ["t5", "t5_v1_1"],
        "metrics": ["rouge", "squad"],
    }
    assert "datasets" not in metadata  # it is no name at the hub
    metrics = json.loads((tmp_path / "out" / "all_results.json").read_text())
    splits = {"validation": "eval", "test": "test"}
    results = {
        f"{splits[result.dataset_split]}_{result.metric_name}": result.metric_value for result in card.data.eval_results
    }
    names = ("loss", "rouge1", "rouge2", "rougeLsum", "squad_em", "squad_f1")
    assert results == {name: metrics[name] for split in ("eval", "test") for name in [f"{split}_{x}" for x in names]}
    assert {result.dataset_type for result in card.data.eval_results} == {"data"}
    assert card.data.model_name == "out"
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    steps = {row["step"]: row["eval_loss"] for row in state["log_history"][:-2] if "eval_loss" in row}
    best = min(steps, key=lambda step: steps[step])
    assert set(steps) == {2, 4}
    expected = f"eval_loss {steps[best]:.6g} in step {best}; the saved model is that of step 4"
    assert expected in _Page((tmp_path / "out" / "report.html").read_text()).text
    assert f"Best: {expected}." in card.text.replace("\\", "")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "eval_loss 2 in step 10; the saved model is that of step 30"),
        ({"metric_for_best_model": "bleu"}, "eval_bleu 9 in step 20; the saved model is that of step 30"),
        ({"metric_for_best_model": "eval_bleu", "greater_is_better": False}, "eval_bleu 3 in step 10; the saved model"),
        (
            {"metric_for_best_model": "bleu", "load_best_model_at_end": True},
            "eval_bleu 9 in step 20; the saved model is that of step 20",
        ),
    ],
)
def test_the_best_step_is_named(options, expected):
    history = [
        {"loss": 1.0, "step": 10},
        {"eval_loss": 2.0, "eval_bleu": 3.0, "step": 10},
        {"eval_loss": 2.0, "eval_bleu": 9.0, "step": 20},
        {"train_runtime": 3.0, "step": 30},
        {"eval_loss": 1.0, "eval_bleu": 10.0, "step": 30},  # of the saved model
    ]
    state = TrainerState(log_history=history, global_step=30, best_model_checkpoint="x/checkpoint-20")
    chosen = {"metric_for_best_model": None, "greater_is_better": None, "load_best_model_at_end": False, **options}
    assert describe_best(state, SimpleNamespace(**chosen)).startswith(expected)
    several = [{"eval_a_loss": 2.0, "step": 1}, {"eval_b_loss": 1.0, "step": 1}, {"eval_b_loss": 3.0, "step": 2}]
    state = TrainerState(log_history=several, global_step=3)
    if not options:
        text = "eval_a_loss 2 in step 1, eval_b_loss 1 in step 1; the saved model is that of step 3"
        assert describe_best(state, SimpleNamespace(**chosen)) == text
    # Such as the correlation of constant predictions.
    unknown = [{"eval_bleu": float("nan"), "step": 1}, {"eval_bleu": 4.0, "step": 2}, {"eval_loss": 4.0, "step": 2}]
    state = TrainerState(log_history=unknown, global_step=3)
    by_bleu = SimpleNamespace(**{**chosen, "metric_for_best_model": "bleu", "greater_is_better": None})
    assert describe_best(state, by_bleu).startswith("eval_bleu 4 in step 2")
    assert describe_best(TrainerState(log_history=unknown[:1]), by_bleu) == ""
    assert describe_best(TrainerState(log_history=history[:1]), SimpleNamespace(**chosen)) == ""


def test_curves_are_the_logs():
    history = [
        {"loss": 3.0, "learning_rate": 0.1, "epoch": 1.0, "step": 5},
        {"eval_loss": 2.5, "eval_bleu": 7.0, "eval_runtime": 1.0, "eval_samples_per_second": 3.0, "step": 5},
        {"loss": float("nan"), "learning_rate": 0.05, "step": 10},
        {"train_runtime": 3.0, "train_loss": 2.0, "step": 10},
    ]
    assert curves(history) == {
        "loss": {"train": [(5, 3.0)], "eval": [(5, 2.5)]},
        "learning rate": {"train": [(5, 0.1), (10, 0.05)]},
        "bleu": {"eval": [(5, 7.0)]},
    }


def test_chart_puts_points_where_they_belong():
    svg = ElementTree.fromstring(chart("a & b", {"train": [(0, 0.0), (50, 10.0), (100, 5.0)], "eval": [(100, 0.0)]}))
    lines = [element.get("points") for element in svg.iter() if element.tag.endswith("polyline")]
    places = [tuple(map(float, place.split(","))) for place in lines[0].split()]
    (left, bottom), (middle, top), (right, half) = places
    assert left < middle < right
    assert middle == pytest.approx((left + right) / 2)
    assert top < half < bottom  # SVG counts from the top
    assert half == pytest.approx((top + bottom) / 2)
    assert lines[1] == f"{right:.1f},{bottom:.1f}"
    flat = chart("constant", {"train": [(1, 0.001), (2, 0.001)]})
    assert "nan" not in flat
    assert "0.001" in flat


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 100, [0, 20, 40, 60, 80, 100]),
        (0.1, 0.52, [0.1, 0.2, 0.3, 0.4, 0.5]),
        (3, 3, [3]),
        (-1, 1, [-1, -0.5, 0, 0.5, 1]),
    ],
)
def test_ticks_are_round(low, high, expected):
    assert ticks(low, high) == pytest.approx(expected)


def test_figures_that_are_not_finite_are_null_and_not_in_the_card(tiny_models, tmp_path, monkeypatch):
    """Such as the correlation of constant predictions; also in the state, which a longer run reads again."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "undefined.py").write_text(
        "def own(texts, references):\n    return {'own': float('nan'), 'one': 1.0}\n"
    )
    files = "train_file", "validation_file"
    options = " ".join(f"--{name} {DATA / 'restaurants_test.jsonl'}" for name in files)
    options += f" --model_name_or_path {tiny_models['t5_v1_1']} --metric undefined:own --max_target_length 4 --use_cpu"
    steps = "--eval_strategy steps --eval_steps 1 --save_steps 1 --metric_for_best_model own --output_dir out"
    for count in (1, 2):
        finetune.main(f"{options} {steps} --max_steps {count}".split())

    def refuse(name: str) -> None:
        raise AssertionError(name)

    paths = [path for path in Path("out").rglob("*.json*") if path.parent.name != "runs"]
    read = {path.as_posix(): path.read_text() for path in paths}
    for path, text in read.items():
        for line in text.splitlines() if path.endswith("l") else [text]:
            json.loads(line, parse_constant=refuse)
    assert json.loads(read["out/all_results.json"])["eval_own"] is None
    state = json.loads(read["out/checkpoint-2/trainer_state.json"])
    assert state["best_metric"] is None
    assert [row["eval_own"] for row in state["log_history"] if "eval_own" in row] == [None, None]
    assert {"out/eval_results.json", "out/trainer_state.json", "out/history.jsonl"} <= set(read)
    card = ModelCard.load("out/README.md")
    assert {result.metric_name for result in card.data.eval_results} == {"loss", "one"}
    assert "nan" not in card.data.to_yaml()
