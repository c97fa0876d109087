# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Syntax of gin files: bindings, macros, references and scopes. What the parameters mean is `gin_config`'s business.

Gin's statements have Python's tokens, so Python's tokenizer finds where each begins and ends (brackets, backslashes,
comments), and its expression parser reads the values once references and macros are written as calls.
"""

import ast
import io
import tokenize
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import ConversionError


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
            ConversionError: a statement is not gin's.
        """
        self.name = name
        self.bindings: dict[tuple[str, str, str], Any] = {}
        self._macros: dict[str, Any] = {}
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
        return cls(path.read_text(encoding="utf-8", errors="replace"), path.name)

    def lookup(self, scope: str, configurable: str, parameter: str) -> tuple[bool, Any]:
        """Whether a parameter is bound in a scope (or outside of all scopes), and its value with macros resolved."""
        for where in dict.fromkeys((scope, "")):
            if (where, configurable, parameter) in self.bindings:
                return True, self.resolve(self.bindings[where, configurable, parameter])
        return False, None

    def resolve(self, value: Any, within: tuple[str, ...] = ()) -> Any:
        """The value with every macro in it replaced.

        Args:
            value: value of a binding.
            within: macros whose values are being resolved.

        Raises:
            ConversionError: a macro is not defined, or is defined by itself.
        """
        if isinstance(value, Macro):
            if value.name not in self._macros or value.name in within:
                raise ConversionError(f"{self.name} uses %{value.name} without defining it: restore the whole file.")
            return self.resolve(self._macros[value.name], (*within, value.name))
        if isinstance(value, list | tuple):
            return type(value)(self.resolve(item, within) for item in value)
        if isinstance(value, Mapping):
            return {key: self.resolve(item, within) for key, item in value.items()}
        return value


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
        return {_evaluate(key): _evaluate(value) for key, value in pairs if key is not None}
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _CALLS.values():
        name = ast.literal_eval(node.args[0])
        return Macro(name) if node.func.id == _CALLS["%"] else Reference(name.split("/")[-1].split(".")[-1])
    return ast.literal_eval(node)
