# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""What a model card says to programs: license, base model, data sets, metrics and results, as YAML."""

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from huggingface_hub import EvalResult, ModelCard, ModelCardData


_TASK = "text2text-generation"

# Names of metrics at the hub, by that of a figure; others have their own.
_TYPES = {
    **dict.fromkeys(("rouge1", "rouge2", "rougeLsum"), "rouge"),
    **dict.fromkeys(("squad_em", "squad_f1"), "squad"),
    **dict.fromkeys(("f1_binary", "f1_macro"), "f1"),
    "matthews": "matthews_correlation",
    "pearson": "pearsonr",
    "spearman": "spearmanr",
}

# Names that the hub accepts for a model.
_MODEL_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)

Sources = Mapping[str, Mapping[str, str]]
"""By prefix of the metrics, what [`EvalResult`] says of the data: `dataset_type`, `dataset_name`, `dataset_split`."""


def license_of(folder: str) -> str | None:
    """License of a model, from the card in its folder; None if it has no card, or one that does not say it."""
    path = Path(folder) / "README.md"
    if not folder or not path.is_file():
        return None
    try:
        found = ModelCard.load(path, ignore_metadata_errors=True).data.license
    except Exception:  # any text may be there; YAML and the hub's client raise errors of several kinds
        return None
    return found if isinstance(found, str) else None


def front_matter(
    name: str,
    model_type: str,
    is_adapter: bool,
    base_model: str,
    license_name: str | None,
    datasets: list[str],
    sources: Sources,
    figures: Mapping[str, Mapping[str, float]],
) -> str:
    """The card's YAML.

    Args:
        name: of the model.
        model_type: of its configuration, as a tag.
        is_adapter: it is for peft.
        base_model: name of the trained model; empty for fresh weights.
        license_name: as the hub has it, if it is known.
        datasets: names at the hub.
        sources: where each split is from; results of others are left out.
        figures: values by split and name without the split.
    """
    results = [
        EvalResult(
            task_type=_TASK,
            metric_type=_TYPES.get(figure, figure),
            metric_name=figure,
            metric_value=value,
            **cast(Any, sources[split]),
        )
        for split, figure, value in _flat(figures)
        if split in sources
    ]
    types = dict.fromkeys(result.metric_type for result in results if result.metric_name != "loss")
    data = ModelCardData(
        library_name="peft" if is_adapter else "transformers",
        license=license_name,
        base_model=base_model if _MODEL_NAME.fullmatch(base_model) else None,
        datasets=datasets or None,
        tags=["t5", model_type],
        metrics=list(types) or None,
        model_name=name if results else None,
        eval_results=results or None,
    )
    return data.to_yaml()


def _flat(figures: Mapping[str, Mapping[str, float]]) -> Iterator[tuple[str, str, float]]:
    """All that are finite: the hub takes no other, and a correlation may be undefined."""
    for split, values in figures.items():
        for figure, value in values.items():
            if math.isfinite(value):
                yield split, figure, value
