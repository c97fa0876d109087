# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Text from files on its way to a terminal, into a message, and into Markdown."""

import io

import pytest

from t5_experimental.convert.errors import ConversionError, UnknownVariables
from t5_experimental.convert.readable import joined, markdown, markdown_code, message, readable, say, shown


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("größer 日本 é 'x' \\ %", "größer 日本 é 'x' \\ %"),
        ("\x1b[31mred\x07\x9b", "\\x1b[31mred\\x07\\x9b"),
        ("a\nb\tc\r", "a\\nb\\tc\\r"),
        ("\u202e\u2066\u200b\ufeff\u2028", "\\u202e\\u2066\\u200b\\ufeff\\u2028"),
        ("\ud800 \udcff", "\\ud800 \\udcff"),
        ("\U000e0041", "\\U000e0041"),
    ],
)
def test_what_steers_a_terminal_is_escaped(text: str, expected: str) -> None:
    assert readable(text) == expected
    assert readable(expected) == expected
    assert expected.isprintable()
    assert str(ConversionError(f"{text}.")) == f"{expected}."
    assert str(UnknownVariables(f"{text}.", [])) == f"{expected}."


def test_long_messages_keep_both_ends() -> None:
    text = f"the name {'x' * 10_000} is too long: choose another."
    cut = message(text)
    assert len(cut) < 2100
    assert cut.startswith("the name xx")
    assert cut.endswith("xx is too long: choose another.")
    assert message("short.") == "short."


VALUES = {
    "integer": 2 ** (2**20),
    "set": {2 ** (2**20)},
    "text": "x" * 10**6,
    "list": [0] * 10**6,
    "control characters": {"a": "\x1b" * 10**6},
}


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_values_are_shown_shortly(value: object) -> None:
    assert len(shown(value)) < 300
    assert shown(value).isprintable()


def test_nested_values_are_shown_shortly() -> None:
    nested: list[object] = []
    for _ in range(10**5):
        nested = [nested]
    assert len(shown(nested)) < 100
    while nested:
        nested = nested[0]  # type: ignore[assignment]  # so that it need not be torn down at once


def test_lists_are_cut() -> None:
    assert joined([1, 2, 3]) == "1, 2, 3"
    assert joined(range(100), most=3) == "0, 1, 2 and 97 more"


def test_a_terminal_of_few_letters() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    say("größer\x1b", "zwei", to=stream)
    stream.flush()
    assert stream.buffer.getvalue() == b"gr\\xf6\\xdfer\\x1b\nzwei\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lm_head.weight, t5.1.1 and --flag: a (b).", "lm_head.weight, t5.1.1 and --flag: a (b)."),
        ("_a_ *b* `c`", "\\_a\\_ \\*b\\* \\`c\\`"),
        ("[x](y) <b>&amp;|", "\\[x\\](y) \\<b\\>\\&amp;\\|"),
        ("see https://x.example", "see https\\://x.example"),
        ("- x\n---", "\\- x\\\\n---"),
        ("1. x", "1\\. x"),
        ("# x", "\\# x"),
        ("a\\b", "a\\\\b"),
    ],
)
def test_markdown_shows_the_text(text: str, expected: str) -> None:
    assert markdown(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("folder/model.ckpt-1", "`folder/model.ckpt-1`"),
        ("a`b``c", "``` a`b``c ```"),
        ("a|b", "`a\\|b`"),
        ("a\nb", "`a\\nb`"),
    ],
)
def test_markdown_code_shows_the_text(text: str, expected: str) -> None:
    assert markdown_code(text) == expected
