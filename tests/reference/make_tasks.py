"""Records what the original makes of rows of GLUE, SuperGLUE, SQuAD, summaries and translations: texts and metrics.

    python make_tasks.py --out tasks.json
    python make_tasks.py --check            compare with what lies beside this file

The rows are those of `task_rows.py`; preprocessors, postprocessors and metrics are those that `t5/data/tasks.py`
registers, and two that it has but does not register: WSC with marked spans, and XSum by `summarize`. Needs the
environment of `requirements-objectives.txt`.
"""

import argparse
import functools
import json
import pathlib
import random
import tempfile

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from rouge_score import scoring
from t5.data import postprocessors, preprocessors, tasks
from t5.evaluation import metrics
from task_rows import ROWS


HERE = pathlib.Path(__file__).resolve().parent

# Names in t5's registry, where they are not NAME_v002 or NAME_v102.
REGISTERED = {
    "squad": "squad_v010_allanswers",
    "super_glue_wsc": "super_glue_wsc_v102_simple_eval",
    **{name: f"{name}_v003" for name in ROWS if name.startswith("wmt")},
}
GARBAGE = ["", "nonsense, the words", "2.37", "True", "-3"]
ROUNDS = 6


class Columns:
    """What a row of TensorFlow Datasets has: the columns that its builders declare, out of those of the hub."""

    def __init__(self, folder):
        self.folder = folder

    def builder(self, name):
        if name.startswith("glue_"):
            return tfds.text.glue.Glue(config=name.removeprefix("glue_"), data_dir=self.folder)
        config = {"wsc": "wsc.fixed", "wsc_marked": "wsc.fixed"}.get(name[11:], name[11:])
        return tfds.text.super_glue.SuperGlue(config=config, data_dir=self.folder)

    def __call__(self, name, row):
        if "translation" in row:
            return row["translation"]
        if "glue_" not in name:
            return row
        features = self.builder(name).info.features
        return {column: row[column] for column in features}


def task_of(name):
    """Returns preprocessor, postprocessor and metrics."""
    if name == "xsum":
        summarize = functools.partial(preprocessors.summarize, article_key="document", summary_key="summary")
        return summarize, None, [metrics.rouge]
    if name == "super_glue_wsc_marked":
        to_class = functools.partial(postprocessors.string_label_to_class_id, label_classes=("False", "True"))
        return preprocessors.wsc, to_class, [metrics.accuracy]
    registered = REGISTERED.get(name, f"{name}_v102" if name.startswith("super_glue") else f"{name}_v002")
    task = tasks.TaskRegistry.get(registered)
    return task.preprocessors[0], task.postprocess_fn if task._postprocess_fn else None, task.metric_fns


def tensors(value, column=""):
    if isinstance(value, dict):
        return {name: tensors(item, name) for name, item in value.items()}
    if isinstance(value, list):
        return tf.constant(value, tf.int32 if value and isinstance(value[0], int) else tf.string)
    if isinstance(value, float):
        return tf.constant(value, tf.float32)
    if isinstance(value, int):
        return tf.constant(value, tf.int32 if column.startswith("span") else tf.int64)
    return tf.constant(value)


def examples_of(preprocessor, row):
    dataset = tf.data.Dataset.from_tensors(tensors(row))
    return list(preprocessor(dataset).as_numpy_iterator())


def pair(example):
    return [example["inputs"].decode(), example["targets"].decode()]


def predict(target, others, rng):
    """Returns something that a model might say: right, or wrong in one of many ways."""
    first = (target.split() or [""])[0]
    wrong = [*GARBAGE, rng.choice(others), f"the {target}", first, target.upper(), f"{target}'s", f"{target} more"]
    return target if rng.random() < 0.5 else rng.choice(wrong)


def figures(examples, predictions, postprocess, metric_fns):
    """Returns all metrics as `seqio.Evaluator` computes them: both sides go through the postprocessor."""
    whole = [{**e, "targets_pretokenized": e["targets"].decode()} for e in examples]
    if postprocess is None:
        targets = [e["targets_pretokenized"] for e in whole]
    else:
        targets = [postprocess(e["targets_pretokenized"], example=e, is_target=True) for e in whole]
        predictions = [postprocess(p, example=e, is_target=False) for p, e in zip(predictions, whole, strict=True)]
    return {key: float(value) for fn in metric_fns for key, value in fn(targets, predictions).items()}


class MeanAggregator(scoring.BootstrapAggregator):
    """The mean itself, of which the original reports the median of a thousand resamplings."""

    def aggregate(self):
        return {
            key: scoring.AggregateScore(*3 * [type(scores[0])(*np.mean(scores, axis=0))])
            for key, scores in self._scores.items()
        }


def record_metrics(name, per_row, postprocess, metric_fns):
    """Returns predictions for the rows that have a label, and the figures that they get."""
    labeled = [n for n, row in enumerate(ROWS[name]) if row.get("label", 0) != -1 and row.get("answers") != []]
    rng = random.Random(name)
    records = []
    texts = [pair(per_row[n][0])[1] for n in labeled]
    for number in range(ROUNDS):
        # ReCoRD counts a row once, so there is no use in repeating it.
        rows = labeled * (1 if name.endswith("record") else 3)
        of_row = [predict(pair(per_row[n][0])[1], texts, rng) for n in rows]
        if number == 0:
            of_row = [pair(per_row[n][0])[1] for n in rows]
        if number == 1:
            of_row = ["" for _ in rows]
        if name == "glue_stsb" and number > 1:
            of_row = [rng.choice([p, f"{rng.uniform(-1, 6):.1f}"]) for p in of_row]
        examples = [example for n in rows for example in per_row[n]]
        predictions = [p for n, p in zip(rows, of_row, strict=True) for _ in per_row[n]]
        record = {"rows": rows, "predictions": of_row}
        if metrics.rouge in metric_fns:
            np.random.seed(0)
            record["resampled"] = figures(examples, predictions, postprocess, metric_fns)
            right, scoring.BootstrapAggregator = scoring.BootstrapAggregator, MeanAggregator
        record["figures"] = figures(examples, predictions, postprocess, metric_fns)
        if metrics.rouge in metric_fns:
            scoring.BootstrapAggregator = right
        records.append(record)
    return records


def make():
    """Returns all records, by task."""
    records = {}
    with tempfile.TemporaryDirectory() as folder:
        columns = Columns(folder)
        for name, rows in ROWS.items():
            preprocessor, postprocess, metric_fns = task_of(name)
            per_row = [examples_of(preprocessor, columns(name, row)) for row in rows]
            records[name] = {
                "rows": rows,
                "texts": [[pair(example) for example in of_row] for of_row in per_row],
                "metrics": record_metrics(name, per_row, postprocess, metric_fns),
            }
            if name == "super_glue_wsc":
                training = tasks.TaskRegistry.get("super_glue_wsc_v102_simple_train").preprocessors[0]
                records[name]["training"] = [
                    pair(e) for row in rows if row["label"] != -1 for e in examples_of(training, columns(name, row))
                ]
    return records


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "tasks.json")
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    arguments = parser.parse_args()
    lines = [f"{json.dumps(name)}: {json.dumps(record, ensure_ascii=False)}" for name, record in make().items()]
    text = "{" + ",\n".join(lines) + "}\n"
    if not arguments.check:
        arguments.out.write_text(text, encoding="utf-8")
    elif text != arguments.out.read_text(encoding="utf-8"):
        raise SystemExit(f"Different from {arguments.out}.")
    else:
        print("equal")


if __name__ == "__main__":
    main()
