# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Mixtures: rates as the original's, shares that an epoch has exactly, and an order that is the same for all processes
and after a resumption."""

import json
from collections import Counter
from itertools import accumulate
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from t5_experimental.training import finetune
from t5_experimental.training.data.arguments import DataArguments
from t5_experimental.training.data.mixing import MixtureSampler, Source, quotas
from t5_experimental.training.data.mixture_file import DataMixture, Entry, read_mixture
from t5_experimental.training.data.splits import make_mixture
from t5_experimental.training.errors import TrainingError


RATES = json.loads((Path(__file__).parents[1] / "reference" / "mixtures.json").read_text())


def mixture_of(count: int, weights: list[float] | None = None, **settings: object) -> DataMixture:
    weights = weights or [None] * count
    return DataMixture(tuple(Entry(f"e{n}", f"m.yaml, line {n}", {}, weights[n]) for n in range(count)), **settings)


@pytest.mark.parametrize("record", RATES, ids=lambda record: f"{record['limit']}-{record['temperature']}")
def test_rates_are_the_originals(record):
    counts = record["counts"]
    mixture = mixture_of(len(counts), limit=record["limit"], temperature=record["temperature"])
    assert [mixture.rate_of(*pair) for pair in enumerate(counts)] == pytest.approx(record["rates"], rel=1e-12)


@pytest.mark.parametrize(
    ("settings", "counts", "expected"),
    [
        ({}, [1500, 20, 3], [1500, 20, 3]),  # every example once
        ({"limit": 1000}, [1500, 20], [1000, 20]),
        ({"rates": "equal"}, [10, 1], [6, 5]),
        ({"rates": "temperature", "temperature": 2.0}, [900, 100], [750, 250]),
        ({"rates": "temperature", "temperature": 2.0, "limit": 400}, [900, 100], [333, 167]),
        ({"weights": [3.0, 1.0]}, [10, 10], [15, 5]),
    ],
)
def test_draws_of_an_epoch(settings, counts, expected):
    assert quotas(mixture_of(len(counts), **settings), counts) == expected


def test_rates_may_be_of_any_size():
    assert quotas(mixture_of(2, [1e308, 1e308]), [10, 10]) == [10, 10]
    assert quotas(mixture_of(2, [1e-308, 1e-308]), [10, 10]) == [10, 10]


def test_a_part_without_draws_is_refused():
    with pytest.raises(TrainingError, match=r"m.yaml, line 1: the rate of 'e1' gives it no example of the 20 in an ep"):
        quotas(mixture_of(2, [1.0, 1e-6]), [10, 10])


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 20)), min_size=1, max_size=4), st.integers(0, 9))
@settings(deadline=None)
def test_every_example_of_a_part_comes_before_any_comes_again(sizes, seed):
    sampler = MixtureSampler([Source("x", *size) for size in sizes], seed)
    ends = [0, *accumulate(count for count, _ in sizes)]
    seen, epochs = Counter[int](), []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        rows = list(sampler)
        assert rows == list(sampler)
        assert len(rows) == len(sampler) == sum(draws for _, draws in sizes)
        seen.update(rows)
        epochs.append(rows)
        for begin, end, (_, draws) in zip(ends[:-1], ends[1:], sizes, strict=True):
            assert sum(begin <= row < end for row in rows) == draws
            times = [seen[row] for row in range(begin, end)]
            assert max(times) - min(times) <= 1
    again = MixtureSampler([Source("x", *size) for size in sizes], seed)
    again.set_epoch(2)
    assert list(again) == epochs[2]


def test_orders_differ_between_epochs_and_seeds():
    orders = []
    for seed, epoch in ((0, 0), (0, 1), (1, 0)):
        sampler = MixtureSampler([Source("a", 50, 30), Source("b", 20, 40)], seed)
        sampler.set_epoch(epoch)
        orders.append(tuple(sampler))
    assert len(set(orders)) == 3
    assert sampler.describe() == "a 42.9 % (30 of 50 examples), b 57.1 % (20 examples, 2 times each) in an epoch of 70"


# --- The file -----------------------------------------------------------------------------------------------------

PART = "entries:\n- name: a\n  train_file: a.jsonl\n"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "--mixture {} is empty: give a list of `entries`"),
        ("entries: [", "{}, line 1 is not a YAML file that can be read"),
        ("- a", "{}, line 1: the mixture has to consist of names and values (rates, limit, temperature, entries)"),
        ("rates: equal", "{}, line 1: entries has no items; give a list of parts"),
        ("rates: equal\nentries: []", "{}, line 2: entries has no items"),
        ("entries:\n- a", "{}, line 2: an entry has to consist of names and values"),
        (PART + "  prefix: x", "{}, line 4: an entry has no 'prefix'; it has name, train_file"),
        (PART + "  name: b", "{}, line 4: name is there twice in an entry; remove one of the two"),
        (PART + "- name: a\n  train_file: b.jsonl", "{}, line 4: the name 'a' is that of {}, line 2, too; rename one"),
        ("entries:\n- train_file: b.jsonl", "{}, line 2: it has no name; give it one"),
        ("entries:\n- name:\n  train_file: b.jsonl", "{}, line 2: name is empty; give a value"),
        ("entries:\n- name: b", "{}, line 2: 'b' has to have either train_file or dataset_name"),
        (PART + "  dataset_name: x", "{}, line 2: 'a' has to have either train_file or dataset_name"),
        ("entries:\n- name: b\n  train_file: []", "{}, line 3: train_file has no items; name files or patterns"),
        ("entries:\n- name: b\n  train_file: [{{}}]", "{}, line 3: train_file has to be one text"),
        ("entries:\n- name: a/b\n  train_file: x", "{}, line 2, name: 'a/b' is a part of names of files"),
        (PART + "  rate: 0", "{}, line 4, rate: it is '0', and has to be a number above 0"),
        (PART + "  rate: x", "{}, line 4, rate: it is 'x', and has to be a number above 0"),
        (PART + "  rate: .inf", "{}, line 4, rate: it is '.inf', and has to be a number above 0"),
        (PART + "  rate: 2\n- name: b\n  train_file: b", "{}, line 5: it has no rate, but others do"),
        (PART + "  rate: 2\nlimit: 3", "{}, line 5, limit: it has no effect, since all entries have rates"),
        (PART + "rates: even", "{}, line 4, rates: 'even' is not one of proportional, temperature, equal"),
        (PART + "rates: equal\nlimit: 3", "{}, line 5, limit: it has no effect on equal rates"),
        (
            PART + "rates: temperature\ntemperature: 0.001",
            "{}, line 5, temperature: it is 0.001, and has to be at least 0.1",
        ),
        (PART + "temperature: 3", "{}, line 4, temperature: `rates: temperature` and `temperature: T` have no effect"),
        (PART + "rates: temperature", "{}, line 4, rates: `rates: temperature` and `temperature: T` have no effect"),
        (PART + "limit: 1.5", "{}, line 4, limit: it is 1.5, and has to be an integer"),
        (PART + "limit: -1", "{}, line 4, limit: it is '-1', and has to be a number above 0"),
        (PART + "  task: squid", "{}, line 2: --task squid"),
        (PART + "  task: squad\n  source_prefix: ''", "{}, line 2: --task squad makes its texts of its own columns"),
        (PART + "  dataset_config_name: x", "{}, line 2: --dataset_config_name has no effect without --dataset_name"),
        (PART, "{}, line 2: --train_file a.jsonl does not exist"),
    ],
)
def test_what_is_wrong_with_a_file_is_named_with_its_line(content, expected, tmp_path):
    path = tmp_path / "mixture.yaml"
    path.write_text(content.replace("{{}}", "{}"))
    with pytest.raises(TrainingError) as error:
        DataArguments(mixture=str(path)).check_files()
    assert expected.replace("{}", str(path)) in str(error.value)


def test_what_a_file_describes(tmp_path):
    path = tmp_path / "mixture.yaml"
    path.write_text(
        "rates: temperature\ntemperature: 2\nlimit: 1e3\nentries:\n"
        "- {name: 007, train_file: a.jsonl, source_prefix: ''}\n- name: b\n  dataset_name: c\n  task: squad\n"
    )
    mixture = read_mixture(path)
    assert [(entry.name, entry.where, entry.options) for entry in mixture.entries] == [
        ("007", f"{path}, line 5", {"source_prefix": "", "train_file": ["a.jsonl"]}),
        ("b", f"{path}, line 6", {"dataset_name": "c", "task": "squad"}),
    ]
    assert (mixture.rates, mixture.limit, mixture.temperature) == ("temperature", 1000, 2.0)


def test_options_that_a_mixture_replaces(tmp_path):
    path = tmp_path / "m.yaml"
    path.write_text(PART)
    for option in ("train_file", "dataset_name"):
        with pytest.raises(TrainingError, match=f"--{option} and --mixture exclude each other"):
            DataArguments(mixture="m.yaml", **{option: "a"})
    with pytest.raises(TrainingError, match=r"--source_prefix has no effect on a mixture, whose parts have their own"):
        DataArguments(mixture=str(path), source_prefix="a").check_mixture({"source_prefix"})
    DataArguments(mixture=str(path), source_prefix="a", test_file="a.jsonl").check_mixture({"source_prefix"})


# --- Runs ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def described(tmp_path) -> Path:
    """A mixture of ten and three examples, of which an epoch has five and three."""
    for name, count in (("ten", 10), ("three", 3)):
        rows = [{"source": f"{name} {number}", "target": "food"} for number in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "three.csv").write_text("a,b\n" + "".join(f"three {number},food\n" for number in range(3)))
    path = tmp_path / "mixture.yaml"
    path.write_text(
        f"limit: 5\nentries:\n- {{name: ten, train_file: {tmp_path}/t*n.jsonl, source_prefix: 'say: '}}\n"
        f"- {{name: three, train_file: {tmp_path}/three.csv, input_column: a, target_column: b}}\n"
    )
    return path


def test_parts_have_their_own_columns_and_prefixes(described, tiny_models, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    tokenizer = AutoTokenizer.from_pretrained(tiny_models["t5_v1_1"])
    options = DataArguments(mixture=str(described), max_source_length=64)
    split = make_mixture(options, tokenizer, seed=3)["train"]
    texts = [tokenizer.decode(row["input_ids"], skip_special_tokens=True) for row in split.pairs]
    assert texts == [*(f"say: ten {number}" for number in range(10)), *(f"three {number}" for number in range(3))]
    assert (split.epoch, split.cut["inputs"].total) == (8, 13)
    assert split.mean_lengths(8)[1] == len(tokenizer("food").input_ids)
    (tmp_path / "three.csv").write_text("a,c\n1,2\n")
    with pytest.raises(TrainingError, match=r"mixture.yaml, line 4: .*three.csv, line 2: no column 'b' among"):
        make_mixture(options, tokenizer, seed=3)


# Prints the rows of each step.
_SHOW_ROWS = """
from t5_experimental.training.trainer.finetuning import FinetuningTrainer
step = FinetuningTrainer.training_step
def show(self, model, inputs, *args, **kwargs):
    rows = self.processing_class.batch_decode(inputs["input_ids"], skip_special_tokens=True)
    print(f"ROWS {self.state.global_step} {'|'.join(rows)}", flush=True)
    return step(self, model, inputs, *args, **kwargs)
FinetuningTrainer.training_step = show
"""


def rows_of(printed: str) -> dict[int, list[str]]:
    """What was trained on in each step, by all processes."""
    found: dict[int, list[str]] = {}
    for line in printed.splitlines():
        if line.startswith("ROWS "):
            _, step, rows = line.split(" ", 2)
            found.setdefault(int(step), []).extend(rows.split("|"))
    return {step: sorted(rows) for step, rows in found.items()}


def test_the_same_rows_on_several_processes_and_after_a_resumption(described, forked, tiny_models, tmp_path):
    options = {
        "model_name_or_path": tiny_models["t5_v1_1"],
        "train_file": None,
        "mixture": described,
        "report_to": "none",
        "max_steps": 5,
        "save_steps": 3,
    }
    runs = {}
    for processes, size, more in (
        (1, 4, {}),
        (2, 2, {}),
        (2, 2, {"resume_from_checkpoint": tmp_path / "2" / "checkpoint-3"}),
    ):
        name = "resumed" if more else str(processes)
        sizes = {"per_device_train_batch_size": size, "output_dir": tmp_path / name}
        outcome = forked(processes=processes, hook=_SHOW_ROWS, **options, **sizes, **more)
        assert outcome.returncode == 0, outcome.stderr
        runs[name] = rows_of(outcome.stdout)
    shares = "mixture     ten 62.5 % (5 of 10 examples), three 37.5 % (3 of 3 examples) in an epoch of 8\n"
    assert shares in outcome.stdout
    assert list(runs["1"]) == [0, 1, 2, 3, 4]
    assert runs["1"] == runs["2"]
    assert runs["resumed"] == {step: runs["1"][step] for step in (3, 4)}
    first = [row for step in (0, 1) for row in runs["1"][step]]
    assert Counter(row.split()[-2] for row in first) == {"ten": 5, "three": 3}

    described.write_text(described.read_text().replace("limit: 5", "limit: 7"))
    again = {"resume_from_checkpoint": tmp_path / "1" / "checkpoint-3", "output_dir": tmp_path / "other"}
    outcome = forked(**options, per_device_train_batch_size=4, **again)
    assert "was written with another --mixture ([['ten', 10, 5], ['three', 3, 3]] then, " in outcome.stderr


def test_parts_are_evaluated_as_they_are_trained_on(forked, tiny_models, tmp_path):
    rows = [{"source": f"cheap {number}", "target": "food"} for number in range(5)]
    (tmp_path / "plain.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = [{"sentence1": "a", "sentence2": "b", "label": number % 2, "idx": number} for number in range(3)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    path = tmp_path / "mixture.yaml"
    part = "- {{name: {0}, train_file: {1}/{2}.jsonl, validation_file: {1}/{2}.jsonl, {3}}}\n"
    plain = part.format("plain", tmp_path, "plain", "source_prefix: 'say: '")
    path.write_text("entries:\n" + plain + part.format("mrpc", tmp_path, "pairs", "task: glue_mrpc"))
    options = {"output_dir": tmp_path / "output", "report_to": "none", "generation_max_length": 6}
    more = {"model_name_or_path": tiny_models["t5_v1_1"], "train_file": None, "mixture": path, "max_steps": 2}
    more |= {"eval_strategy": "steps", "eval_steps": 1, "save_steps": 1, "metric_for_best_model": "eval_mrpc_accuracy"}
    outcome = forked(**options, **more, load_best_model_at_end=True)
    assert outcome.returncode == 0, outcome.stderr
    found = json.loads((tmp_path / "output" / "all_results.json").read_text())
    names = {
        name for name in found if name.startswith("eval_") and name.split("_")[-1] in ("loss", "accuracy", "binary")
    }
    assert names == {"eval_plain_loss", "eval_mrpc_loss", "eval_mrpc_f1_binary", "eval_mrpc_accuracy"}
    texts = (tmp_path / "output" / "predictions_eval_mrpc.jsonl").read_text().splitlines()
    assert [json.loads(line)["input"] for line in texts] == ["mrpc sentence1: a sentence2: b"]

    alone = {"validation_file": tmp_path / "plain.jsonl", "source_prefix": "say: ", "output_dir": tmp_path / "alone"}
    outcome = forked(entry="evaluate", **{**options, **alone}, model_name_or_path=tmp_path / "output")
    assert outcome.returncode == 0, outcome.stderr
    expected = json.loads((tmp_path / "alone" / "all_results.json").read_text())["eval_loss"]
    assert found["eval_plain_loss"] == pytest.approx(expected, rel=1e-5)

    # Without training: the same parts by the same names, to the digit.
    again = {**options, "train_file": None, "mixture": path, "model_name_or_path": tmp_path / "output"}
    again |= {"output_dir": tmp_path / "again", "do_train": False}
    outcome = forked(**again)
    assert outcome.returncode == 0, outcome.stderr
    assert "tasks       mrpc: glue_mrpc, measured by f1_binary, accuracy\n" in outcome.stdout
    figures = json.loads((tmp_path / "again" / "all_results.json").read_text())
    assert {name: figures[name] for name in names} == {name: found[name] for name in names}
    assert (tmp_path / "again" / "predictions_eval_mrpc.jsonl").read_text().splitlines() == texts
    assert sorted(file.name for file in (tmp_path / "again").glob("*results.json")) == [
        "all_results.json",
        "eval_mrpc_results.json",
        "eval_plain_results.json",
    ]
    described = path.read_text()
    path.write_text(described.replace("'say: '", "'tell: '"))
    outcome = forked(**again)
    assert "holds predictions that were made with another data of eval_plain: use the same" in outcome.stderr
    path.write_text(described.replace(f"validation_file: {tmp_path}/plain.jsonl, ", "").replace(" glue_mrpc", " glue"))
    assert f"{path}, line 3: --task glue does not exist" in forked(**again).stderr
    path.write_text(described)

    options["output_dir"] = tmp_path / "new"
    outcome = forked(**options, **more, validation_file=tmp_path / "plain.jsonl")
    assert f"--validation_file has no effect beside that of {path}, line 2: leave one of them out" in outcome.stderr


def test_what_a_mixture_and_the_command_line_both_evaluate_is_refused(described, tiny_models, tmp_path, monkeypatch):
    """None replaces another in silence, and none goes unmeasured."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    row = {"sentence": "a", "label": 1}
    (tmp_path / "cola").mkdir()
    for name in ("train", "validation"):
        (tmp_path / "cola" / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    pair = json.dumps({"source": "a", "target": "b"}) + "\n"
    for name in ("x", "y"):
        (tmp_path / f"{name}.jsonl").write_text(pair)
    path = tmp_path / "tasks.yaml"
    part = f"- {{name: x, dataset_name: {tmp_path}/cola, task: glue_cola}}\n"
    path.write_text(f"entries:\n{part}- {{name: plain, train_file: {tmp_path}/x.jsonl}}\n")
    two = ["--validation_file", str(tmp_path / "x.jsonl"), str(tmp_path / "y.jsonl")]
    common = f"--model_name_or_path {tiny_models['t5_v1_1']} --mixture {path} --output_dir {tmp_path / 'out'} --use_cpu"
    for more, message in (
        (two, "--validation_file has no effect beside those of the mixture"),
        ([*two, "--do_train", "False"], "--validation_file has no effect beside those of the mixture"),
        (
            ["--do_train", "False", "--predict_with_generate"],
            "does not say how the entries of --mixture without a task",
        ),
        (
            ["--predict_with_generate"],
            "does not say how the entries of --mixture without a task are measured: give --me",
        ),
    ):
        with pytest.raises(SystemExit, match=message):
            finetune.main([*common.split(), *more])
    assert not (tmp_path / "out").exists()


def test_files_of_parts_that_would_have_one_name_are_refused(tiny_models, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    for name in ("x", "y"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"source": "a", "target": "b"}) + "\n")
    path = tmp_path / "m.yaml"
    part = "- {{name: {0}, train_file: {1}/x.jsonl, validation_file: '{1}/{2}.jsonl'}}\n"
    path.write_text("entries:\n" + part.format("a", tmp_path, "*") + part.format("b", tmp_path, "x"))
    tokenizer = AutoTokenizer.from_pretrained(tiny_models["t5_v1_1"])
    options = DataArguments(mixture=str(path))
    assert list(make_mixture(options, tokenizer, 0, trains=False)) == ["eval_a_x", "eval_a_y", "eval_b"]
    assert list(options.sources()) == ["eval_a_x", "eval_a_y", "eval_b"]
    path.write_text("entries:\n" + part.format("a", tmp_path, "*") + part.format("a_x", tmp_path, "x"))
    with pytest.raises(TrainingError, match="line 3: another entry has examples for eval_a_x, too; rename one"):
        make_mixture(options, tokenizer, 0)
