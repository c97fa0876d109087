# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Rows of the T5 paper's data sets as texts, exactly as the original's preprocessors write them.

Source: `t5/data/preprocessors.py` of t5 0.9.4. Rows have the columns of the Hugging Face hub. Regular expressions there
are RE2's, whose white space is that of ASCII, without the vertical tab.
"""

import re
from collections.abc import Callable, Sequence
from typing import TypedDict

import numpy as np

from ..errors import TrainingError
from .cells import Cells


class TaskExample(TypedDict):
    """A row as texts, and what its metrics compare with.

    `label` is the index of the class, 0 where there are no classes, and -1 where the row has no target, for which
    `targets` holds the original's `<unk>`.
    """

    source: str
    targets: list[str]
    answers: list[str]
    group: str
    label: int


Converter = Callable[[Cells], TaskExample]

NO_LABEL = "<unk>"
FALSE_TRUE = ("False", "True")

_SPACES = re.compile(r"[\t\n\f\r ]+")
_PUNCTUATION = re.compile(r"([!-/:-@\[-`{-~])")

# Two texts of WSC whose pronoun is not at its index, and how the original writes them.
_WHIP = (
    "The boy continued to whip the pony , and eventually the pony threw him over. John laughed out quite loud. "
    '"Good for '
)
_PEBBLE = (
    "When they had eventually calmed down a bit , and had gotten home, Mr. Farley put the magic pebble in an iron safe "
    ". Some day they might want to use ",
    " , but really for now, what more could they wish for?",
)
_WRITTEN_OUT = {f'{_WHIP}him," he said. ': f'{_WHIP}X ," he said.', "it".join(_PEBBLE): "X".join(_PEBBLE)}


def _example(
    source: str, targets: Sequence[str], answers: Sequence[str] = (), group: object = "", label: int = 0
) -> TaskExample:
    return {
        "source": source,
        "targets": list(targets),
        "answers": list(answers or targets),
        "group": str(group),
        "label": label,
    }


def _joined(name: str, cells: Cells, columns: Sequence[str]) -> str:
    return " ".join([name, *(part for column in columns for part in (f"{column}:", cells.text(column)))])


def glue(name: str, columns: Sequence[str], classes: Sequence[str]) -> Converter:
    """A benchmark's name and its columns, and the name of the class. Source: `glue`.

    Args:
        name: of the benchmark.
        columns: in the original's order, which sorts them by name unless it says otherwise.
        classes: names of the classes, in the order of their labels.
    """

    def convert(cells: Cells) -> TaskExample:
        label = cells.label("label", classes)
        return _example(_joined(name, cells, columns), [_class_name(label, classes)], label=label)

    return convert


def _class_name(label: int, classes: Sequence[str]) -> str:
    return NO_LABEL if label < 0 else classes[label]


def multirc(cells: Cells) -> TaskExample:
    """As [`glue`], without markup; the examples of a question are a group. Source: `glue`."""
    text = _joined("multirc", cells, ("question", "answer", "paragraph")).replace("<br>", " ")
    label = cells.label("label", FALSE_TRUE)
    group = cells.object("idx").integer("question")
    return _example(re.sub("</?b>", "", text), [_class_name(label, FALSE_TRUE)], group=group, label=label)


def stsb(cells: Cells) -> TaskExample:
    """Similarity from 0 to 5, rounded to fifths, as text. Source: `stsb`, which computes in float32."""
    similarity = np.float32(cells.number("label"))
    rounded = np.round(similarity * np.float32(5)) / np.float32(5)
    # The label of GLUE's test split, of which the original makes "-1.0".
    label = -1 if similarity == -1 else 0
    return _example(_joined("stsb", cells, ("sentence1", "sentence2")), [f"{rounded:.1f}"], label=label)


def record(cells: Cells) -> TaskExample:
    """A passage, and the entities that may fill the placeholder; every answer is a target. Source: `record`."""
    passage = re.sub(r"(\.|\?|!|\"|')\n@highlight\n", r"\1 ", cells.text("passage"))
    passage = passage.replace("\n@highlight\n", ". ")
    entities = ", ".join(cells.texts("entities"))
    answers = cells.texts("answers")
    source = f"record query: {cells.text('query')} entities: {entities} passage: {passage}"
    return _example(source, answers or [NO_LABEL], label=0 if answers else -1)


def wsc(cells: Cells) -> TaskExample:
    """A sentence with its pronoun in asterisks, and the noun; the label says whether it is the right one.

    Source: `wsc_simple`. Training takes the right ones alone.
    """
    text, pronoun = cells.text("text"), cells.text("span2_text")
    place, words = cells.integer("span2_index"), text.split(" ")
    if not 0 < place < len(words):
        raise TrainingError(
            f"{cells.where}: column 'span2_index' is {place}, but the pronoun must be one of the {len(words)} words of "
            "the text after the first, which is word 0; correct it."
        )
    if text in _WRITTEN_OUT:
        blanked = _WRITTEN_OUT[text]
    elif words[place] != pronoun:
        raise TrainingError(
            f"{cells.where}: word {place} of the text is {words[place]!r}, and not the pronoun {pronoun!r}, which "
            "'span2_text' names; take the configuration wsc.fixed, or correct 'span2_index'."
        )
    else:
        blanked = " ".join([" ".join(words[:place]), "X", " ".join(words[place + 1 :])])
    source = f"wsc: {blanked.replace(' X ', f' *{pronoun}* ')}"
    return _example(source, [cells.text("span1_text")], label=cells.label("label", FALSE_TRUE))


def wsc_marked(cells: Cells) -> TaskExample:
    """A sentence with asterisks around a noun and number signs around a pronoun; whether they mean the same.

    Source: `wsc`. A span that is not at its index stays unmarked.
    """
    first, second = cells.integer("span1_index"), cells.integer("span2_index")
    text = _mark(cells.text("text"), cells.text("span1_text"), first, "*")
    text = _mark(text, cells.text("span2_text"), second + 2 * (first < second), "#")
    label = cells.label("label", FALSE_TRUE)
    return _example(f"wsc text: {text}", [_class_name(label, FALSE_TRUE)], label=label)


def _mark(text: str, span: str, place: int, mark: str) -> str:
    if place < 0:
        return text
    words = rf"((?:[^\t\n\f\r ]+[\t\n\f\r ]){{{place}}})"
    return re.sub(rf"^{words}({re.escape(span)})", lambda found: f"{found[1]}{mark} {found[2]} {mark}", text)


def squad(cells: Cells) -> TaskExample:
    """A question and its context, with spaces around punctuation; the first answer is the target. Source: `squad`."""
    answers = [_pad_punctuation(text) for text in cells.object("answers").texts("text")]
    question, context = (_pad_punctuation(cells.text(column)) for column in ("question", "context"))
    source = _SPACES.sub(" ", f"question: {question} context: {context}")
    return _example(source, answers[:1] or [NO_LABEL], answers, label=0 if answers else -1)


def _pad_punctuation(text: str) -> str:
    return _SPACES.sub(" ", _PUNCTUATION.sub(r" \1 ", text))


def summary(article: str, target: str) -> Converter:
    """An article, and its summary; arguments are names of columns. Source: `summarize`."""

    def convert(cells: Cells) -> TaskExample:
        return _example(f"summarize: {cells.text(article)}", [cells.text(target)])

    return convert


def translation(code: str, language: str) -> Converter:
    """A text in English, and the same in another language. Source: `translate`.

    Args:
        code: of the language, its column in the object `translation`.
        language: its name in English.
    """

    def convert(cells: Cells) -> TaskExample:
        texts = cells.object("translation")
        return _example(f"translate English to {language}: {texts.text('en')}", [texts.text(code)])

    return convert
