# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Syntax of gin files: bindings, macros, references and scopes. What the parameters mean is `gin_config`'s business.

Gin's statements have Python's tokens, so Python's tokenizer finds where each begins and ends (brackets, backslashes,
comments), and its expression parser reads the values once references and macros are written as calls.
"""

import ast
import io
import tokenize
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import ConversionError


# The released ones have 15 to 30 kB, and none of their values has more than some hundred parts.
MAX_GIN_BYTES = 2**20
_MOST_PARTS = 2**15
_DEEPEST = 32
_INTEGER_BITS = 64

# What gin's two signs are written as for Python's parser; no gin file has these names.
_CALLS = {"@": "__reference__", "%": "__macro__"}


@dataclass(frozen=True)
class Reference:
    """A configurable named as a value, as `@transformer.sublayer_dropout`; only the last part of its name counts."""

    name: str


@dataclass(frozen=True)
class Macro:
    """A value named elsewhere, as `%d_model`."""

    name: str


class _Resolved(NamedTuple):
    """A value without macros, how many values it is made of, and how deep they are nested."""

    value: Any
    parts: int
    height: int


class GinFile:
    """Bindings of a gin file.

    Attributes:
        bindings: value by (scope, configurable, parameter), as ("encoder", "SelfAttention", "num_heads"), without the
            configurable's module; the scope is "" where there is none.
    """

    def __init__(self, text: str, name: str = "operative_config.gin") -> None:
        """Parses a file.

        Args:
            text: its content.
            name: what to call it in errors.

        Raises:
            ConversionError: it is no text, too long, or a statement is not gin's.
        """
        _check_text(text, name)
        self.name = name
        self.bindings: dict[tuple[str, str, str], Any] = {}
        self._macros: dict[str, Any] = {}
        self._resolved: dict[str, _Resolved] = {}
        self._looked_up: dict[tuple[str, str, str], Any] = {}
        self._resolving: set[str] = set()
        # Python's parser has opinions on the style of strings and numbers, and prints them.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._read(text, name)

    def _read(self, text: str, name: str) -> None:
        for line, left, right in _statements(text, name):
            try:
                value = _value(right)
            except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
                # The last two are how Python's parser says that a value is nested too deeply.
                raise ConversionError(f"line {line} of {name} cannot be read: {left} has no plain value.") from error
            scope, _, selector = left.rpartition("/")
            configurable, _, parameter = selector.rpartition(".")
            if not configurable:
                self._macros[left] = value
            elif configurable.split(".")[-1] == "macro" and parameter == "value":
                self._macros[scope] = value
            else:
                self.bindings[scope, configurable.split(".")[-1], parameter] = value

    @classmethod
    def load(cls, path: Path) -> "GinFile":
        """Parses a file on disk."""
        return cls(decode(path.read_bytes(), path.name), path.name)

    def lookup(self, scope: str, configurable: str, parameter: str) -> tuple[bool, Any]:
        """Whether a parameter is bound in a scope (or outside of all scopes), and its value with macros resolved."""
        for where in dict.fromkeys((scope, "")):
            key = (where, configurable, parameter)
            if key in self.bindings:
                if key not in self._looked_up:
                    self._looked_up[key] = self.resolve(self.bindings[key])
                return True, self._looked_up[key]
        return False, None

    def resolve(self, value: Any) -> Any:
        """The value with every macro in it replaced.

        Args:
            value: value of a binding.

        Raises:
            ConversionError: a macro is not defined, or is defined by itself; or the value is far too large.
        """
        return self._resolve(value, 0).value

    def _resolve(self, value: Any, depth: int) -> _Resolved:
        if isinstance(value, Macro):
            result = self._macro(value.name, depth)
        elif isinstance(value, list | tuple):
            items = [self._resolve(item, depth + 1) for item in value]
            result = _composed(type(value)(item.value for item in items), items)
        elif isinstance(value, Mapping):
            items = [self._resolve(item, depth + 1) for item in value.values()]
            result = _composed({key: item.value for key, item in zip(value, items, strict=True)}, items)
        else:
            result = _Resolved(value, 1, 0)
        if depth + result.height > _DEEPEST or result.parts > _MOST_PARTS:
            raise ConversionError(
                f"{self.name} has a value of more than {_MOST_PARTS} parts, or one nested more than {_DEEPEST} deep, "
                "so no run wrote it: restore the run's own file."
            )
        return result

    def _macro(self, name: str, depth: int) -> _Resolved:
        """What a macro stands for; resolved once, as each use of another one may double it."""
        if name not in self._resolved:
            if name not in self._macros or name in self._resolving or depth > _DEEPEST:
                raise ConversionError(
                    f"{self.name} uses %{name} without defining it, or defines it by too many others: restore the "
                    "whole file."
                )
            self._resolving.add(name)
            found = self._resolve(self._macros[name], depth + 1)
            self._resolving.remove(name)
            self._resolved[name] = found._replace(height=found.height + 1)
        return self._resolved[name]


def decode(data: bytes, name: str) -> str:
    """Text of a gin file.

    Args:
        data: the file's bytes, or as many of them as show that it is too long.
        name: what to call it in errors.

    Raises:
        ConversionError: it is not UTF-8, or too long.
    """
    _check_size(len(data), name)
    # Editors of Windows put a mark before it.
    return data.decode("utf-8-sig", errors="replace")


def _check_size(size: int, name: str) -> None:
    if size > MAX_GIN_BYTES:
        raise ConversionError(
            f"{name} has more than {MAX_GIN_BYTES} bytes, so it is not what a run wrote: restore the run's own file, "
            "or move it away to have the architecture deduced from the variables."
        )


def _check_text(text: str, name: str) -> None:
    _check_size(len(text), name)
    # The second is what bytes that are no UTF-8 are read as.
    for letter in ("\0", "\ufffd"):
        if letter in text:
            line = text.count("\n", 0, text.index(letter)) + 1
            raise ConversionError(
                f"line {line} of {name} is not UTF-8 text: restore the run's own file, or move it away to have the "
                "architecture deduced from the variables."
            )


def _composed(value: Any, items: list[_Resolved]) -> _Resolved:
    return _Resolved(value, 1 + sum(item.parts for item in items), 1 + max((item.height for item in items), default=0))


def _statements(text: str, name: str) -> Iterator[tuple[int, str, list[str]]]:
    """Line, left side and tokens of the right side of every `name = value`."""
    tokens: list[tokenize.TokenInfo] = []
    skip = (tokenize.COMMENT, tokenize.NL, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.NEWLINE:
                if tokens:
                    yield from _statement(tokens, name)
                tokens = []
            elif token.type not in skip:
                tokens.append(token)
    except (tokenize.TokenError, SyntaxError) as error:
        raise ConversionError(f"{name} is cut off or is no gin file: {error.args[0]}.") from error


def _statement(tokens: list[tokenize.TokenInfo], name: str) -> Iterator[tuple[int, str, list[str]]]:
    words = [token.string for token in tokens]
    if words[0] in ("import", "from"):
        return
    line = tokens[0].start[0]
    if words[0] == "include":
        raise ConversionError(
            f"{name} includes another file, so no run wrote it: use the run's own operative_config.gin, or none."
        )
    if "=" not in words or words.index("=") in (0, len(words) - 1):
        raise ConversionError(f"line {line} of {name} is no gin statement: {' '.join(words[:6])}.")
    equals = words.index("=")
    yield line, "".join(words[:equals]), words[equals + 1 :]


def _value(words: list[str]) -> Any:
    """Value of the tokens right of the equals sign."""
    parts: list[str] = []
    k = 0
    while k < len(words):
        if words[k] not in ("@", "%"):
            parts.append(words[k])
            k += 1
            continue
        if k + 1 == len(words):
            raise ValueError("a sign without a name")
        end = k + 2
        while end + 1 < len(words) and words[end] in (".", "/"):
            end += 2
        parts.append(f"{_CALLS[words[k]]}({''.join(words[k + 1 : end])!r})")
        # `@name()` is a call whose result is the value; which configurable it is tells us as much.
        k = end + 2 if words[k] == "@" and words[end : end + 2] == ["(", ")"] else end
    return _evaluate(ast.parse(" ".join(parts), mode="eval").body)


def _evaluate(node: ast.expr) -> Any:
    if isinstance(node, ast.List | ast.Tuple):
        items = [_evaluate(item) for item in node.elts]
        return items if isinstance(node, ast.List) else tuple(items)
    if isinstance(node, ast.Dict):
        if None in node.keys:
            raise ValueError("unpacking is not gin's")
        pairs = zip(node.keys, node.values, strict=True)
        table = {_evaluate(key): _evaluate(value) for key, value in pairs if key is not None}
        if any(isinstance(key, Macro | Reference) for key in table):
            raise ValueError("a key is no plain value")
        return table
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _CALLS.values():
        name = ast.literal_eval(node.args[0])
        return Macro(name) if node.func.id == _CALLS["%"] else Reference(name.split("/")[-1].split(".")[-1])
    value = ast.literal_eval(node)
    if isinstance(value, int) and value.bit_length() > _INTEGER_BITS:
        raise ValueError("no parameter is an integer like that")
    return value
