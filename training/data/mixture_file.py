# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Mixtures of examples as a YAML file describes them; everything that is wrong in it is named with its line."""

import math
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml

from ..errors import TrainingError, in_a_line, shown


# Below, the largest entry is all there is, and powers overflow.
_LOWEST_TEMPERATURE = 0.1
RATES = ("proportional", "temperature", "equal")

# Options of `DataArguments` that an entry has of its own.
_OF_DATA = ("dataset_name", "dataset_config_name", "task", "input_column", "target_column", "source_prefix")
_OF_ENTRY = ("name", "train_file", "validation_file", *_OF_DATA, "rate")
# Names of metrics and of files have it.
_NAME = re.compile(r"[\w.-]+")
_OF_MIXTURE = ("rates", "limit", "temperature", "entries")


@dataclass(frozen=True)
class Entry:
    """A part of a mixture.

    Attributes:
        name: of the part, unique.
        where: file and line, for messages.
        options: those of [`~t5_experimental.training.data.arguments.DataArguments`] that it has of its own.
        rate: its weight, if the file gives weights.
    """

    name: str
    where: str
    options: dict[str, Any]
    rate: float | None = None

    def prefix(self, split: str) -> str:
        """Prefix of the metrics of a split of this part alone: `eval_NAME`, or `eval_NAME_FILE` for `eval_FILE`."""
        kind, _, file = split.partition("_")
        return "_".join([kind, self.name, *([file] if file else [])])


@dataclass(frozen=True)
class DataMixture:
    """Parts, and how often each is drawn.

    Attributes:
        entries: at least one; all of them have rates, or none.
        rates: one of [`RATES`]; of no effect on entries with rates.
        limit: examples of a part that count, K; None for all.
        temperature: T.
    """

    entries: tuple[Entry, ...]
    rates: str = "proportional"
    limit: int | None = None
    temperature: float = 1.0

    def rate_of(self, place: int, count: int) -> float:
        """Relative rate of an entry with `count` examples: what the file gives, or min(count, K) ** (1 / T).

        Source: `mixing_rate_num_examples` of seqio, which the original's mixtures use.
        """
        rate = self.entries[place].rate
        if rate is not None:
            return rate
        return 1.0 if self.rates == "equal" else self.counted(count) ** (1 / self.temperature)

    def counted(self, count: int) -> int:
        """How many of `count` examples an epoch counts."""
        return count if self.limit is None else min(count, self.limit)


def read_mixture(path: Path) -> DataMixture:
    """Reads a description.

    Raises:
        TrainingError: the file is not YAML or does not describe a mixture; the message has the line.
    """
    try:
        root = yaml.compose(path.read_text(encoding="utf-8-sig"), Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"--mixture {path}" if mark is None else f"{path}, line {mark.line + 1}"
        raise TrainingError(f"{where} is not a YAML file that can be read ({in_a_line(error)}).") from error
    if root is None:
        raise TrainingError(f"--mixture {path} is empty: give a list of `entries`.")
    table = _Table(path, root, "the mixture", _OF_MIXTURE)
    nodes = table.items("entries", "give a list of parts, each with a name and a train_file or dataset_name")
    tables = [_Table(path, node, "an entry", _OF_ENTRY) for node in nodes]
    entries = tuple(map(_entry, tables))
    for place, entry in enumerate(entries):
        if same := [other.where for other in entries[:place] if other.name == entry.name]:
            raise TrainingError(f"{entry.where}: the name {entry.name!r} is that of {same[0]}, too; rename one.")
    return _mixture(table, entries)


def _mixture(table: "_Table", entries: tuple[Entry, ...]) -> DataMixture:
    without = [entry for entry in entries if entry.rate is None]
    if len(without) not in (0, len(entries)):
        raise TrainingError(f"{without[0].where}: it has no rate, but others do; give one to all entries, or to none.")
    rates = table.text("rates") or "proportional"
    if rates not in RATES:
        table.refuse("rates", f"{rates!r} is not one of {', '.join(RATES)}")
    for name in ("rates", "limit", "temperature"):
        if name in table.nodes and not without:
            table.refuse(name, "it has no effect, since all entries have rates; leave it out")
    for name in ("limit", "temperature"):
        if name in table.nodes and rates == "equal":
            table.refuse(name, "it has no effect on equal rates; leave it out")
    if (rates == "temperature") != ("temperature" in table.nodes) and without:
        given = "temperature" if "temperature" in table.nodes else "rates"
        table.refuse(given, "`rates: temperature` and `temperature: T` have no effect alone; give both, or none")
    limit = table.number("limit")
    if limit is not None and (limit < 1 or limit != int(limit)):
        table.refuse("limit", f"it is {limit:g}, and has to be an integer of at least 1")
    temperature = table.number("temperature")
    if temperature is not None and temperature < _LOWEST_TEMPERATURE:
        table.refuse("temperature", f"it is {temperature:g}, and has to be at least {_LOWEST_TEMPERATURE:g}")
    return DataMixture(entries, rates, None if limit is None else int(limit), temperature or 1.0)


def _entry(table: "_Table") -> Entry:
    name = table.text("name")
    if name is None:
        table.refuse(None, "it has no name; give it one")
    if not _NAME.fullmatch(name):
        table.refuse("name", f"{name!r} is a part of names of files, and can have letters, digits, _, . and - alone")
    options: dict[str, Any] = {key: table.text(key) for key in _OF_DATA if key in table.nodes}
    if "train_file" in table.nodes:
        files = table.items("train_file", "name files or patterns", or_one=True)
        options["train_file"] = [table.text_of("train_file", node) for node in files]
    if "validation_file" in table.nodes:
        options["validation_file"] = [table.text("validation_file")]
    if ("train_file" in options) == ("dataset_name" in options):
        table.refuse(None, f"{name!r} has to have either train_file or dataset_name")
    return Entry(name, table.where(None), options, table.number("rate"))


class _Table:
    """A mapping of the file: the nodes of its values by name."""

    def __init__(self, path: Path, node: yaml.Node, what: str, known: Collection[str]):
        self._path, self._node = path, node
        self.nodes: dict[str, yaml.Node] = {}
        if not isinstance(node, yaml.MappingNode):
            self.refuse(None, f"{what} has to consist of names and values ({', '.join(known)})")
        for key, value in node.value:
            name = str(key.value)
            if name not in known:
                self._refuse_at(key, f"{what} has no {shown(name)}; it has {', '.join(known)}")
            if name in self.nodes:
                self._refuse_at(key, f"{name} is there twice in {what}; remove one of the two")
            self.nodes[name] = value

    def where(self, name: str | None) -> str:
        """File and line of a value, or of the mapping."""
        return self._where(self._node if name is None else self.nodes[name])

    def text(self, name: str) -> str | None:
        """A value as it is written; None if it is not there."""
        return self.text_of(name, self.nodes[name]) if name in self.nodes else None

    def text_of(self, name: str, node: yaml.Node) -> str:
        if not isinstance(node, yaml.ScalarNode):
            self._refuse_at(node, f"{name} has to be one text")
        if not node.value.strip() and not (name == "source_prefix" and node.style):
            self._refuse_at(node, f"{name} is empty; give a value, or leave it out")
        return node.value

    def items(self, name: str, wanted: str, or_one: bool = False) -> list[yaml.Node]:
        """The items of a list that must not be empty; `or_one` allows an item in place of the list."""
        node = self.nodes.get(name)
        if or_one and isinstance(node, yaml.ScalarNode):
            return [node]
        if node is None or not isinstance(node, yaml.SequenceNode) or not node.value:
            self._refuse_at(node or self._node, f"{name} has no items; {wanted}")
        return node.value

    def number(self, name: str) -> float | None:
        """A number above 0; None if it is not there."""
        text = self.text(name)
        try:
            number = None if text is None else float(text)
        except ValueError:
            number = math.nan
        if number is not None and not 0 < number < math.inf:
            self.refuse(name, f"it is {shown(text)}, and has to be a number above 0")
        return number

    def refuse(self, name: str | None, problem: str) -> NoReturn:
        """Raises an error about a value, or about the mapping."""
        self._refuse_at(self._node if name is None else self.nodes.get(name, self._node), problem, name)

    def _refuse_at(self, node: yaml.Node, problem: str, name: str | None = None) -> NoReturn:
        raise TrainingError(f"{self._where(node)}{'' if name is None else f', {name}'}: {problem}.")

    def _where(self, node: yaml.Node) -> str:
        return f"{self._path}, line {node.start_mark.line + 1}"
