# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""All splits of a run as token ids: those of the command line, and those of a mixture's parts."""

from datasets import concatenate_datasets
from transformers import PreTrainedTokenizerBase

from ..errors import TrainingError
from .arguments import DataArguments
from .examples import Split, load_splits, make_split
from .mixing import MixtureSampler, Source, quotas


def make_splits(
    options: DataArguments, tokenizer: PreTrainedTokenizerBase, seed: int, trains: bool = True
) -> dict[str, Split]:
    """Token ids by the prefix of their metrics: `train` if the run trains, and what it is evaluated on.

    Args:
        options: of the data.
        tokenizer: of the model.
        seed: of the order of a mixture.
        trains: whether the run trains.

    Raises:
        TrainingError: as for [`~t5_experimental.training.data.examples.load_splits`] and [`make_mixture`], or the
            command line and the mixture both have examples for a prefix.
    """
    loaded = load_splits(options, trains)
    splits = {split: make_split(examples, options, tokenizer) for split, examples in loaded.items()}
    if options.mixture is None:
        return splits
    parts = make_mixture(options, tokenizer, seed, trains)
    # transformers evaluates one data set while training, or several with names.
    if all(any(split.startswith("eval") for split in several) for several in (parts, splits)):
        raise TrainingError("--validation_file has no effect beside those of the mixture: leave it out.")
    if same := sorted(set(parts) & set(splits)):
        raise TrainingError(
            f"--test_file and the mixture both have examples for {same[0]}: rename the file, or the entry."
        )
    return {**parts, **splits}


def make_mixture(
    options: DataArguments, tokenizer: PreTrainedTokenizerBase, seed: int, trains: bool = True
) -> dict[str, Split]:
    """Token ids of a mixture: `train`, if the run trains, has those of all parts one after the other, and the order to
    train on them in; what a part has to evaluate on is `eval_NAME` and `test_NAME`.

    Raises:
        TrainingError: as for [`~t5_experimental.training.data.examples.load_splits`] and
            [`~t5_experimental.training.data.mixing.quotas`]; the message has the line of the part.
    """
    trained, evaluated = dict[str, Split](), dict[str, Split]()
    for entry, own in options.parts():
        try:
            splits = {split: make_split(rows, own, tokenizer) for split, rows in load_splits(own, trains).items()}
        except TrainingError as error:
            raise TrainingError(f"{entry.where}: {error}") from error
        if trains:
            trained[entry.name] = splits.pop("train")
        for split, rows in splits.items():
            if (prefix := entry.prefix(split)) in evaluated:
                raise TrainingError(f"{entry.where}: another entry has examples for {prefix}, too; rename one.")
            evaluated[prefix] = rows
    return {"train": _mixed(options, trained, seed), **evaluated} if trains else evaluated


def _mixed(options: DataArguments, parts: dict[str, Split], seed: int) -> Split:
    """The examples of all parts, by name, one after the other, with the order to train on them in."""
    counts = [len(part.pairs) for part in parts.values()]
    draws = quotas(options.read_mixture(), counts)
    sources = [Source(*facts) for facts in zip(parts, counts, draws, strict=True)]
    first, *others = parts.values()
    cut = first.cut
    for part in others:
        cut = {kind: cut[kind] + part.cut[kind] for kind in cut}
    texts = [part.examples.select_columns(["source", "targets"]) for part in parts.values()]
    pairs = concatenate_datasets([part.pairs for part in parts.values()])
    return Split(pairs, concatenate_datasets(texts), cut, MixtureSampler(sources, seed))
