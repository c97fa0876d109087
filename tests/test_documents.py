# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""What README.md, docs/ and the other documents name exists: links, options, make targets, families, versions."""

import contextlib
import dataclasses
import importlib
import importlib.util
import io
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

import t5_experimental
from t5_experimental.training.trainer.arguments import OF_TRAINING_ALONE


ROOT = Path(__file__).parent.parent
MOST_BYTES = 9_000
DOCS = ("convert", "use", "train", "engines", "memory", "exactness", "performance", "architecture", "adding-a-family")
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs" / f"{name}.md" for name in DOCS)]
COMMANDS = ("convert", "inspect", "export", "export-gguf", "export-onnx", "push", "verify", "presets")
ENTRY_POINTS = ("evaluate", "finetune", "pretrain", "prompt_tune")
# Words that a reader of the field stumbles over.
FOREIGN = r"\b(whoever|nobody|somebody|anybody|whatever|whole numbers?|not a number|so many|neighbours?|in vain)\b"
# Files and modules that documents name, but for placeholders such as NAME.
_TOPS, _ENDINGS = "t5_experimental|convert|training|tests|benchmarks|docs", "py|yaml|md|jsonl?|model|npz|sh"
PATHS = rf"(?<![\w/.-])(?:{_TOPS})/[\w./-]*\.(?:{_ENDINGS})\b"
MODULES = r"python -m (t5_experimental[\w.]*)"


def text_of(document: Path) -> str:
    return document.read_text(encoding="utf-8")


def rows_of(document: Path) -> list[list[str]]:
    """Cells of all tables of a document."""
    lines = [line for line in text_of(document).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def options_of(text: str) -> list[str]:
    return re.findall(r"(?<![\w-])--([a-z][\w-]*)", text)


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_bytes()) <= MOST_BYTES


def test_table_names_the_registered_families() -> None:
    rows = {row[0].partition(" ")[0]: row for row in rows_of(ROOT / "README.md")}
    families: dict[str, list[str]] = {}
    for preset in t5_experimental.PRESETS:
        family, _, size = preset.rpartition(".")
        families.setdefault(family, []).append(size)
    classes = t5_experimental.configuration_t5_experimental.CONFIG_CLASSES
    assert len(families) == len(classes)
    for family in families:
        config = t5_experimental.preset_config(f"{family}.{families[family][0]}")
        prefix = type(config).__name__.removesuffix("Config")
        assert rows[family][2:] == [f"`{prefix}…`", f"`{config.model_type}`"]
        sizes = "the same five" if family == "t5.1.1.lm100k" else ", ".join(families[family])
        assert rows[family][0] == f"{family} ({sizes})"
    assert families["t5.1.1.lm100k"] == families["t5.1.1"]


def anchors_of(document: Path) -> set[str]:
    """Names that a page of the document gives its headings."""
    text = re.sub(r"^```.*?^```$", "", text_of(document), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_links_resolve(document: Path) -> None:
    targets = re.findall(r"\]\((?!https?:)([^)\s]*)\)", text_of(document))
    for target in targets:
        name, _, anchor = target.partition("#")
        path = (document.parent / name).resolve() if name else document
        assert path.exists(), target
        assert not anchor or anchor in anchors_of(path), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_files_and_modules_exist(document: Path) -> None:
    text = text_of(document)
    paths = [path for path in re.findall(PATHS, text) if "NAME" not in path]
    assert [path for path in paths if not (ROOT / path).exists()] == []
    assert [name for name in re.findall(MODULES, text) if importlib.util.find_spec(name) is None] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_make_targets_exist(document: Path) -> None:
    targets = re.findall(r"(?:`|^)make ([a-z-]+)", text_of(document), flags=re.MULTILINE)
    makefile = text_of(ROOT / "Makefile")
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
    assert targets or document.name not in ("README.md", "CONTRIBUTING.md")


@pytest.mark.parametrize("document", [*DOCUMENTS, ROOT / "CHANGELOG.md"], ids=lambda document: document.name)
def test_words_are_the_fields(document: Path) -> None:
    assert re.findall(FOREIGN, text_of(document), flags=re.IGNORECASE) == []


@pytest.mark.parametrize("folder", ["t5_experimental", "convert", "training", "benchmarks", "tests"])
def test_words_in_code_are_the_fields(folder: str) -> None:
    files = sorted(file for file in (ROOT / folder).rglob("*.py") if file != Path(__file__))
    found = {str(file.relative_to(ROOT)): re.findall(FOREIGN, text_of(file), flags=re.IGNORECASE) for file in files}
    assert len(found) > 10
    assert {file: words for file, words in found.items() if words} == {}


@cache
def converter_options(command: str) -> frozenset[str]:
    from t5_experimental.convert.cli import main

    with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.suppress(SystemExit):
        main([command, "--help"])
    return frozenset(options_of(printed.getvalue())) - {"help"}


def own_options(entry_point: str) -> Iterator[dataclasses.Field[Any]]:
    """Options of an entry point that are not transformers'."""
    from transformers import Seq2SeqTrainingArguments

    known = {field.name for field in dataclasses.fields(Seq2SeqTrainingArguments)}
    module = importlib.import_module(f"t5_experimental.training.{entry_point}")
    for options in module.ENTRY_POINT.options:
        yield from (field for field in dataclasses.fields(options) if field.init and field.name not in known)


@cache
def all_options() -> frozenset[str]:
    """Every option of our commands, of `accelerate launch` and of the scripts, without its dashes."""
    from accelerate.commands.launch import launch_command_parser
    from transformers import Seq2SeqTrainingArguments

    names = {"help", "help-all", "recipe"} | {field.name for field in dataclasses.fields(Seq2SeqTrainingArguments)}
    names |= {option for command in (*COMMANDS, "generate") for option in converter_options(command)}
    names |= {field.name for entry_point in ENTRY_POINTS for field in own_options(entry_point)}
    for action in launch_command_parser()._actions:
        names |= {flag.removeprefix("--") for flag in action.option_strings}
    for script in (*(ROOT / "benchmarks").glob("*.py"), *(ROOT / "tests" / "reference").glob("*.py")):
        names |= set(re.findall(r"add_argument\(\s*\"--([\w-]+)\"", text_of(script)))
    return frozenset(names)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_options_exist(document: Path) -> None:
    others = {"check"} if document.name == "CONTRIBUTING.md" else set()  # ruff's
    refused = set(re.findall(r"There is no option --([\w-]+)", text_of(document)))  # printed, see test_readme.py
    unknown = [name for name in options_of(text_of(document)) if name not in all_options() | others | refused]
    assert unknown == []


def test_all_options_of_the_converter_are_listed() -> None:
    listed = {
        (name, command)
        for row in rows_of(ROOT / "docs" / "convert.md")
        if row[0].startswith("`--")
        for name in options_of(row[0])
        for command in row[1].split(", ")
    }
    assert listed == {(name, command) for command in COMMANDS for name in converter_options(command)}


def test_all_options_of_generate_are_listed() -> None:
    rows = [row for row in rows_of(ROOT / "docs" / "use.md") if row[0].startswith("`--")]
    assert {name for row in rows for name in options_of(row[0])} == converter_options("generate")


def test_all_own_options_of_training_are_listed() -> None:
    rows = {name: row for row in rows_of(ROOT / "docs" / "train.md") for name in options_of(row[0])}
    owners: dict[str, set[str]] = {}
    for entry_point in ENTRY_POINTS:
        for field in own_options(entry_point):
            if entry_point != "evaluate" or field.name not in {*OF_TRAINING_ALONE, "do_train"}:  # which it refuses
                owners.setdefault(field.name, set()).add(entry_point)
            shown = {as_number(word) for word in re.split(r"[\s`,;:()]+", rows[field.name][2])}
            if field.default not in (None, "", dataclasses.MISSING):
                assert as_number(str(field.default)) in shown, (entry_point, field.name, field.default)
    for name, entry_points in owners.items():
        expected = "all" if entry_points == set(ENTRY_POINTS) else ", ".join(sorted(entry_points))
        assert rows[name][1] == expected, name


def as_number(word: str) -> float | str:
    try:
        return float(word)
    except ValueError:
        return word


def test_versions_agree() -> None:
    version = t5_experimental.__version__
    newest = re.search(r"^## \[(.+)\] - (.+)$", text_of(ROOT / "CHANGELOG.md"), flags=re.MULTILINE)
    citation = yaml.safe_load(text_of(ROOT / "CITATION.cff"))
    assert newest is not None
    assert newest.groups() == (version, citation["date-released"])
    assert citation["version"] == version
    assert {"cff-version", "message", "title", "authors", "license"} <= citation.keys()
