# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Gin files with a few things wrong: an architecture that our models can be built for, or one sentence.

The inputs are statements of genuine files, changed where a statement has a meaning: values and the atoms in them,
names and scopes, macros, lists of layers; at the end sometimes the text itself.
"""

import math
import random
import re
import signal
from collections.abc import Callable, Iterator
from dataclasses import astuple
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from t5_experimental.convert import errors
from t5_experimental.convert.errors import ConversionError
from t5_experimental.convert.mesh import gin_reader as gin_config
from t5_experimental.convert.mesh import gin_syntax as gin_file
from t5_experimental.convert.mesh.architecture import Architecture
from t5_experimental.convert.mesh.family import build_architecture, choose_family
from t5_experimental.convert.mesh.gin_reader import read_architecture
from t5_experimental.convert.mesh.gin_syntax import GinFile


REFERENCE = Path(__file__).parents[1] / "reference"

Statement = tuple[str, str]

NUMBERS = [
    *("0", "1", "2", "3", "7", "32", "255", "256", "1024", "-1", "1.0", "0.5", "2.0", "1e-6", "1e-400", "1e999"),
    *("-1e999", "100_000_000", str(2**31), str(2**63), str(10**30), "9" * 4000, "9" * 5000, "0x" + "f" * 5000),
    *("1" + "0" * 308, "True", "False", "None", "1+2j", "-0.0", "- - 1", "1e308"),
]
TEXTS = [
    *("''", "'x'", "'relu'", "'gelu'", "'swish'", "'linear'", "'heads'", "'bias_shared'", "'self_attention'", "b'x'"),
    *("'\\x1b[31m'", "'\x1b[31m'", "'\\u202e'", "'\u202e\u2066'", "'\\ud800'", "'\\d'", f"'{'x' * 10_000}'"),
    *("'a' 'b'", "f'{1}'"),
]
NAMES = [
    *(
        "%d_model",
        "%d_ff",
        "%num_layers",
        "%dropout_rate",
        "%nowhere",
        "%\x1b",
        "%\u202e",
        "%m0",
        "%m1",
        "%m19",
        "@x.SelfAttention",
        "@",
    ),
    *("@x.TalkingHeadsSelfAttention", "@DenseReluDense", "@scope/x.EncDecAttention", "@transformer.sublayer_dropout"),
    *("@transformer.sublayer_dropout()", "@x.MoE1D", "%", "@1", "..."),
]
CONTAINERS = [
    *("[]", "()", "{}", "[1]", "[[[[]]]]", "{'a': 1}", "{1: 2}", "{%d_ff: 1}", "{@x: 1}", "{[1]: 2}", "{1, 2}"),
    *("[1,", "[('heads', 4)]", "[('heads', 0)]", "[(4, 'heads')]", "[('a', 1), ('b', 2)]", "['heads']", "[4]"),
    *("[['gelu', 'linear']]", "['gelu', 'linear']", "['gelu']", "[[], 'linear']", "{'num_heads': []}"),
    *("{'hidden_size': 1e999}", "{'num_heads': '4'}", "[" * 50 + "]" * 50, "[" * 300 + "]" * 300, "-" * 3000 + "1"),
    *("(" + "1," * 3000 + ")", "1" + "+1" * 3000, "x" + "[0]" * 3000),
]
PLAUSIBLE = [
    *("1", "2", "4", "8", "32", "64", "1e-5", "0.1", "0.0", "0", "None", "False", "True", "'relu'"),
    *("'bias_shared'", "'bias'"),
    *("%d_model", "%d_ff", "%num_layers", "%dropout_rate", "['gelu', 'linear']", "[('some_heads', 4)]", "()"),
]
VALUES = [*NUMBERS, *TEXTS, *NAMES, *CONTAINERS]

# What an architecture is made of, and what it must not be; all else is read in the same way, but takes time.
MADE_OF = (
    r"(num_)?layers|d_model|d_ff|d_kv|num_heads|(key|value|softmax)_heads_dims|(key|value|key_value|hidden)_size|"
    r"relative_attention_num_buckets|activation|epsilon|dropout_rate|shared_embedding_and_softmax_weights"
)
TELLING = (
    rf"{MADE_OF}|shared_kv|attention_kwargs|num_memory_heads|relative_attention_type|shared_embedding|sublayers_\w+|"
    r"norm_epsilon|ensemble|dynamic_projections|use_bias"
)


def statements(text: str) -> Iterator[Statement]:
    """Left and right side of every statement, as they are written."""
    whole = ""
    for line in text.splitlines():
        if not whole and (not line.strip() or line.startswith(("#", "import"))):
            continue
        whole += line.removesuffix("\\") + " "
        if not line.endswith("\\") and whole.count("[") == whole.count("]"):
            left, _, right = whole.partition(" = ")
            yield left.strip(), right.strip()
            whole = ""


def only(pattern: str, lines: list[Statement]) -> list[Statement]:
    return [
        (left, right)
        for left, right in lines
        if re.fullmatch(pattern, left.rpartition(".")[2]) and not left.startswith(("Ada", "mesh", "rewrite"))
    ]


@cache
def genuine() -> list[list[Statement]]:
    """What tells in the files that the original wrote, also with what it was told in addition; mostly short ones."""
    paths = sorted((REFERENCE / "golden").glob("*/operative_config.gin"))
    written = {path.parent.name: list(statements(path.read_text())) for path in paths}
    on_top = {path.stem: list(statements(path.read_text())) for path in sorted((REFERENCE / "gin_files").glob("*.gin"))}
    short = [only(MADE_OF, lines) for lines in written.values()]
    return [
        *(lines for lines in short if sum(len(right) for _, right in lines) < 1500 for _ in range(5)),
        *(only(TELLING, lines) for lines in written.values()),
        *(only(TELLING, written[name]) + more for name, more in on_top.items()),
    ]


def some_value(generator: random.Random) -> str:
    if generator.random() < 0.5:
        return generator.choice(PLAUSIBLE)
    if generator.random() < 0.2:
        items = [generator.choice(VALUES) for _ in range(generator.randrange(4))]
        opened, closed = generator.choice(["[]", "()"])
        return f"{opened}{', '.join(items)}{closed}"
    return generator.choice(VALUES)


def change_value(generator: random.Random, lines: list[Statement], k: int) -> None:
    lines[k] = lines[k][0], some_value(generator)


def change_atom(generator: random.Random, lines: list[Statement], k: int) -> None:
    left, right = lines[k]
    atoms = list(re.finditer(r"'[^']*'|\"[^\"]*\"|[@%]?[\w./]+|[\[\](){},:]", right))
    if atoms:
        atom = generator.choice(atoms)
        lines[k] = left, right[: atom.start()] + some_value(generator) + right[atom.end() :]


def change_name(generator: random.Random, lines: list[Statement], k: int) -> None:
    left, right = lines[k]
    name = left.rpartition("/")[2]
    odd = [
        *("", "encoder", "decoder", "encoder/deeper", "a b", "%", "\x1b[2J", "\u202e", "x" * 5000, "macro", "1"),
        *("encoder/decoder",),
    ]
    kind = generator.randrange(4)
    if kind == 0:
        left = "/".join(filter(None, [generator.choice(odd), name]))
    elif kind == 1:
        left = left + generator.choice([".value", ".x", "", "/", "."])
    elif kind == 2:
        left = lines[generator.randrange(len(lines))][0]
    else:
        left = left.rpartition(".")[2] if generator.random() < 0.5 else generator.choice(odd) + name
    lines[k] = left, right


def change_alike(generator: random.Random, lines: list[Statement], k: int) -> None:
    """A parameter in every scope that has it."""
    parameter, value = lines[k][0].rpartition(".")[2], some_value(generator)
    for n, (left, _) in enumerate(lines):
        if left.rpartition(".")[2] == parameter:
            lines[n] = left, value


def delete(generator: random.Random, lines: list[Statement], k: int) -> None:
    del lines[k]


def repeat(generator: random.Random, lines: list[Statement], k: int) -> None:
    lines.append((lines[k][0], some_value(generator) if generator.random() < 0.5 else lines[k][1]))


def add_macros(generator: random.Random, lines: list[Statement], k: int) -> None:
    """Chains, cycles, and lists that double with every name."""
    count = generator.choice([2, 20, 20, 20, 20, 20, 20, 400])
    form = generator.choice(["%{}", "[%{0}, %{0}]", "({{'a': %{0}}}, %{0})", "[%{}]", "[" + "%{0}, " * 30 + "]"])
    lines += [(f"m{n}", form.format(f"m{n + 1}")) for n in range(count)]
    lines.append((f"m{count}", generator.choice(["%m0", "%m1", *VALUES])))
    change_atom(generator, lines, k)
    if generator.random() < 0.7:
        lines[k] = lines[k][0], "%m0"


def change_layers(generator: random.Random, lines: list[Statement], k: int) -> None:
    at = [n for n, (left, _) in enumerate(lines) if left.endswith("make_layer_stack.layers")]
    if not at:
        return
    k = generator.choice(at)
    left, right = lines[k]
    items = re.findall(r"\((?:\"\w+\", *)?(?:{[^}]*}, *)?@[\w.]+\)|@[\w.]+", right)
    for _ in range(generator.randint(1, 3)):
        n = generator.randrange(len(items) + 1)
        kind = generator.randrange(5)
        if kind == 0:
            del items[n : n + 1]
        elif kind == 1:
            items.insert(n, some_value(generator))
        elif kind == 2 and items[n:]:
            name = generator.choice(["num_heads", "hidden_size", "key_heads_dims", "activation", "shared_kv", "x"])
            items[n] = f"({{'{name}': {some_value(generator)}}}, {items[n].lstrip('(').rstrip(')')})"
        elif kind == 3 and items[n:]:
            items[n] = f"({some_value(generator)}, {items[n]})"
        elif kind == 4:
            items = items * generator.choice([2, 2, 2, 2, 50]) if len(items) < 50 else items[:2]
    lines[k] = left, f"[{', '.join(items)}]"


def change_count(generator: random.Random, lines: list[Statement], k: int) -> None:
    """The number that multiplies the list of layers."""
    at = [n for n, (left, _) in enumerate(lines) if left.rpartition(".")[2] == "num_layers"]
    if at:
        k = generator.choice(at)
        lines[k] = lines[k][0], generator.choice(NUMBERS)


CHANGES: list[Callable[[random.Random, list[Statement], int], None]] = [
    *(
        change_value,
        change_value,
        change_alike,
        change_alike,
        change_atom,
        change_atom,
        change_name,
        delete,
        repeat,
        add_macros,
        change_layers,
        change_count,
    )
]


def change_text(generator: random.Random, text: str) -> str:
    at = generator.randrange(len(text))
    kind = generator.randrange(6)
    if kind == 0:
        return text[:at]
    if kind == 1:
        return (
            text[:at]
            + generator.choice(
                ["\0", "\x1b[2J", "\u202e", "\ufeff", "'", '"""', "[", ")", "\\", "\r", "\t", "=", "\x0c"]
            )
            + text[at:]
        )
    if kind == 2:
        return "\ufeff" + text
    if kind == 3:
        return text.replace("\n", "\r\n")
    if kind == 4:
        return text[:at] + text[generator.randrange(len(text)) :]
    return (
        text
        + "\n"
        + generator.choice(
            [
                "include 'x.gin'",
                "just words",
                "\x1b[2J words",
                "a.b =",
                "= 1",
                "  indented.a = 1",
                "if x:\n  y",
                "a.b = 1 = 2",
            ]
        )
    )


def gin_text(generator: random.Random) -> str:
    lines = list(generator.choice(genuine()))
    for _ in range(generator.choice([1, 1, 1, 2, 3])):
        generator.choice(CHANGES)(generator, lines, generator.randrange(len(lines)))
    text = "\n".join(f"{left} = {right}" for left, right in lines) + "\n"
    return change_text(generator, text) if generator.random() < 0.1 else text


def read(generator: random.Random) -> None:
    check(read_architecture(GinFile(gin_text(generator))))


def check(found: Architecture) -> None:
    """What is read makes sense, and an architecture can be built of it."""
    for specs in found.layers.values():
        assert specs
        for spec in specs:
            assert all(type(size) is int and size >= 1 for size in astuple(spec)[1:]), spec
    assert 0 <= found.layer_norm_epsilon < math.inf
    assert found.dropout_rate is None or 0 <= found.dropout_rate < 1
    assert type(found.tied) is bool
    family, _ = choose_family("auto", found, "folder/model.ckpt-1")
    built, _ = build_architecture(family, found, 256)
    assert built.num_layers == len(found.layers["encoder"])


def test_any_change_of_a_gin_file(fuzz: Callable[..., None]) -> None:
    fuzz(read, inputs=500, refusals=(ConversionError,))


def unchecked(gin: GinFile, what: str, value: Any, *_: Any, **__: Any) -> Any:
    return value


# What is left out, by module, name and what stands in its place. Without a limit on the parts of a value, inputs fill
# all memory instead of ending: tests/convert/test_gin.py has one that doubles.
MUTANTS: dict[str, tuple[Any, str, Any]] = {
    "integers in their range": (gin_config, "integer", unchecked),
    "finite numbers in their range": (gin_config, "number", unchecked),
    "flags": (gin_config, "flag", unchecked),
    "lists": (gin_config, "items", unchecked),
    "layers that a model can have": (gin_config, "MAX_LAYERS", 2**60),
    "depth of a value": (gin_file, "_DEEPEST", 2**60),
    "messages that can be read": (errors, "one_line", str),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_what_is_left_out_is_found(name: str, fuzz: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FUZZ_INPUTS", raising=False)
    monkeypatch.delenv("FUZZ_FIRST_SEED", raising=False)
    alarm = signal.alarm
    monkeypatch.setattr(signal, "alarm", lambda seconds: alarm(min(seconds, 3)))  # some of them never end
    monkeypatch.setattr(*MUTANTS[name])
    try:
        fuzz(read, inputs=2000, refusals=(ConversionError,))
    except Exception:
        found = True
    else:
        found = False
    assert found
