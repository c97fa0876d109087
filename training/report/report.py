# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""What a run leaves besides the model: `report.html`, a self-contained page, and the model card that links to it."""

import json
import math
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from transformers import TrainerState

import t5_experimental
from t5_experimental.configuration_t5_experimental import T5ExperimentalConfig

from ..trainer.arguments import T5TrainingArguments
from ..trainer.checkpoint_folders import steps_of, write_aside
from ..trainer.settle import Run
from ..trainer.trainer import T5Trainer
from .card import Sources, front_matter, license_of
from .charts import Points, chart


_TEMPLATES = Path(__file__).parent / "templates"
_PACKAGES = ("torch", "transformers", "accelerate", "datasets", "peft", "sacrebleu", "rouge_score")
_NO_FIGURES = ("runtime", "per_second", "flos", "model_preparation_time")


@dataclass(frozen=True)
class Report:
    """The contents of a report.

    Attributes:
        title: kind of run.
        model: class of the model.
        model_type: of its configuration.
        is_adapter: only adapters were saved, for the model in `facts`.
        source: name of the folder of the trained model; empty for fresh weights.
        command: the command line.
        facts: what was printed before the start, by heading.
        metrics: final values, by split and name.
        samples: objects with `source`, `prediction` and `references`.
        history: the trainer's log: dictionaries with `step` and values.
        versions: of packages and machine, by name.
        best: the best step by the metric that the run goes by, as a clause; empty without evaluations on the way.
        license: of the trained model, if its card says it.
        datasets: names at the hub of the data sets that the run used.
        sources: where the examples of each split are from, see [`~t5_experimental.training.report.card.Sources`].
    """

    title: str
    model: str
    model_type: str
    is_adapter: bool
    source: str
    command: str
    facts: Mapping[str, str]
    metrics: Mapping[str, Mapping[str, float]]
    samples: Sequence[Any]
    history: Sequence[Mapping[str, float]]
    versions: Mapping[str, str]
    best: str = ""
    license: str | None = None
    datasets: Sequence[str] = ()
    sources: Sources = field(default_factory=dict)

    def figures(self) -> dict[str, float]:
        """The final values that measure the quality of the model, by name."""
        return {name: value for values in self.metrics.values() for name, value in values.items() if _is_figure(name)}

    def results(self) -> dict[str, dict[str, float]]:
        """Those of evaluations, by split and by name without it."""
        return {
            split: {
                name.removeprefix(f"{split}_"): value
                for name, value in values.items()
                if _is_figure(name) and name.startswith(f"{split}_")
            }
            for split, values in self.metrics.items()
            if split != "train"
        }


def _is_figure(name: str) -> bool:
    return name != "epoch" and not name.endswith((*_NO_FIGURES, "_samples"))


def report_of(
    trainer: T5Trainer,
    title: str,
    facts: Mapping[str, str],
    metrics: Mapping[str, Mapping[str, float]],
    samples: Sequence[Any] = (),
    sources: Sources = MappingProxyType({}),
    datasets: Sequence[str] = (),
) -> Report:
    """The report of a trainer's run; arguments as for [`Report`]."""
    model, args = trainer.plain_model(), trainer.args
    return Report(
        title=title,
        model=type(model).__name__,
        model_type=model.config.model_type,
        is_adapter=hasattr(trainer.model, "peft_config"),
        source=Path(str(model.config.name_or_path)).name,
        command=trainer.run.command,
        facts=facts,
        metrics=metrics,
        samples=samples,
        history=trainer.state.log_history,
        versions=_versions(args),
        best=describe_best(trainer.state, args),
        license=license_of(str(model.config.name_or_path or "")),
        datasets=datasets,
        sources=sources,
    )


def describe_best(state: TrainerState, args: T5TrainingArguments) -> str:
    """The best of the evaluations during training, and which step was saved, as a clause; empty if there were none.

    It goes by `--metric_for_best_model`, otherwise by the loss; of several validation files, by that of each.
    """
    wanted = f"eval_{(args.metric_for_best_model or 'loss').removeprefix('eval_')}"
    history = state.log_history
    ends = [place for place, row in enumerate(history) if "train_runtime" in row] or [len(history)]
    rows = history[: ends[-1]]  # what follows is the evaluation of the saved model
    names = dict.fromkeys(name for row in rows for name in row if name == wanted)
    if args.metric_for_best_model is None and not names:
        names = dict.fromkeys(
            name for row in rows for name in row if name.startswith("eval_") and name.endswith("_loss")
        )
    if not names:
        return ""
    given = args.greater_is_better
    found = []
    for name in names:
        values = [(row[name], row["step"]) for row in rows if name in row and math.isfinite(row[name])]
        if not values:
            continue
        choose = max if (given if given is not None else not name.endswith("loss")) else min
        best = choose(value for value, _ in values)
        step = next(step for value, step in values if value == best)
        found.append(f"{name} {best:.6g} in step {step:,.0f}")
    if not found:
        return ""
    checkpoint = state.best_model_checkpoint if args.load_best_model_at_end else None
    # A checkpoint that a run resumed from may have any name.
    saved = state.global_step if checkpoint is None else state.best_global_step or steps_of(Path(checkpoint))
    return f"{', '.join(found)}; the saved model is that of step {saved:,}"


def card_of_import(config: T5ExperimentalConfig, model_folder: str, run: Run[Any]) -> Report:
    """The model card of a released prompt, which was not trained here."""
    return Report(
        title="A prompt for prompt tuning",
        model=(config.architectures or [type(config).__name__])[0],
        model_type=config.model_type,
        is_adapter=True,
        source=Path(model_folder).resolve().name,
        command=run.command,
        facts={},
        metrics={},
        samples=(),
        history=(),
        versions=_versions(run.training),
        license=license_of(model_folder),
    )


def _versions(args: T5TrainingArguments) -> dict[str, str]:
    found = {"t5_experimental": t5_experimental.__version__, "Python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    device = torch.cuda.get_device_name(args.device) if args.device.type == "cuda" else platform.machine()
    return {**found, "device": f"{args.world_size} x {args.device.type} ({device})"}


def curves(history: Sequence[Mapping[str, float]]) -> dict[str, dict[str, Points]]:
    """Charts of a trainer's log, by title: losses together, learning rate, and each metric of an evaluation."""
    charts: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for entry in history:
        for name, value in entry.items():
            split, _, metric = name.partition("_")
            if name == "loss":
                place = ("loss", "train")
            elif name in ("learning_rate", "tokens_per_second"):
                place = (name.replace("_", " "), "train")
            elif split in ("eval", "test") and not name.endswith((*_NO_FIGURES, "_samples")):
                place = (metric, split)
            else:
                continue
            if math.isfinite(value):
                charts.setdefault(place[0], {}).setdefault(place[1], []).append((entry["step"], value))
    return {title: dict(lines) for title, lines in charts.items()}


def write_report(folder: Path, report: Report) -> None:
    """Writes `report.html` and `README.md`, each atomically."""
    charts = [Markup(chart(title, lines)) for title, lines in curves(report.history).items()]
    _write(folder, "report.html", "report.html", report=report, charts=charts)
    write_card(folder, report)


def write_card(folder: Path, report: Report) -> None:
    """Writes the model card, `README.md`, atomically."""
    metadata = front_matter(
        folder.resolve().name,
        report.model_type,
        report.is_adapter,
        report.source,
        report.license,
        list(report.datasets),
        report.sources,
        report.results(),
    )
    _write(folder, "model_card.md", "README.md", report=report, metadata=metadata)


# Names from users and files in a model card: shown literally, never as markup.


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in text)


def _prose(text: str) -> str:
    """In a line of markdown, with all special characters escaped."""
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", _printable(text))


def _ticks(text: str, least: int) -> str:
    """More backquotes than any run of them in the text."""
    return "`" * max(least, 1 + max(map(len, re.findall("`+", text)), default=0))


def _code(text: str) -> str:
    """As inline code."""
    text = _printable(text)
    ticks, space = _ticks(text, 1), " " if "`" in text else ""
    return f"{ticks}{space}{text}{space}{ticks}"


def _fenced(text: str) -> str:
    """As a code block."""
    text = "\n".join(map(_printable, text.split("\n")))
    return f"{_ticks(text, 3)}\n{text}\n{_ticks(text, 3)}"


def _python(text: str) -> str:
    """As a Python literal on one line."""
    return json.dumps(text, ensure_ascii=not text.isprintable())


_FILTERS = {"prose": _prose, "code": _code, "fenced": _fenced, "python": _python}


def _write(folder: Path, template: str, name: str, **values: Any) -> None:
    """Renders a template into a file of the folder, atomically."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=lambda name: name is not None and name.endswith(".html"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= _FILTERS
    write_aside(folder, name, environment.get_template(template).render(folder=folder.resolve().name, **values))
