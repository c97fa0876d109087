# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints whose variables are not what they should be, with any options: a plan that adds up, or one sentence.

The inputs are names, shapes and dtypes of genuine checkpoints, changed one by one or all alike, and go through
`inspect`; no file is read. What was planned is printed and described as the command does it.
"""

import contextlib
import io
import random
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from t5_experimental.convert import cli, errors, pipeline
from t5_experimental.convert.bundle.reader import TensorBundleReader
from t5_experimental.convert.errors import ConversionError
from t5_experimental.convert.mesh import scopes as layout
from t5_experimental.convert.output import model_card as cards
from t5_experimental.convert.source.checkpoint import Checkpoint
from t5_experimental.convert.tensors import Variable


GOLDEN = Path(__file__).parents[1] / "reference" / "golden"
# Of an ordinary checkpoint nothing but the step is read, and that is one number.
MOST_READ = 8

Table = dict[str, tuple[tuple[int, ...], str]]

SIZES = [0, 0, 1, 2, 3, 4, 7, 8, 32, 64, 255, 256, 1000, 2**31, 10**12, 2**62]
DTYPES = [
    *("float32", "float64", "float16", "bfloat16", "int32", "int64", "uint8", "bool", "complex64", "string"),
    *("resource", "float8_e5m2", "unknown type 99"),
]
NUMBERS = [
    *("000", "001", "002", "007", "0000", "0001", "00", "1", "999999", "1000000", "9" * 30, "9" * 5000),
    *("\u0660\u0660\u0661", "-01"),
]
PIECES = [
    *("", "x", "kernel", "scale", "rms_norm", "layer_norm", "SelfAttention", "wi", "wi_0", "q", "\x1b[2J", "\u202e"),
    *("\n",),
]
ODD = [
    *("", "/", "x" * 5000, "block_000/" * 400, "shared", "\x1b]0;x\x07", "\ud800", "decoder/logits/kernel"),
    *("mystery", "日本"),
]
ENDINGS = ["_slot_v", "_slot_vr", "_slot_vc", "_slot_m", "_slot_x", "_slot_v_slot_v", "/kernel", "/Adam", "/Adam_1"]

OPTIONS: dict[str, list[Any]] = {
    "family": ["t5.1.1", "t5.1.1.lm100k", "t5.1.th", "t5.1.n4w10", "t5.1.2", None, ["t5.1.1"], "\x1b[2J"],
    "dtype": ["float32", "bfloat16", "float16", "float64", "int8", "", None, 32],
    "max_shard_size": [1, 1000, 10**5, 10**30, 0, -1, 2.5, "5GB", None, True],
    "d_kv": [1, 4, 8, 16, 7, 0, -8, 10**12, "8", 8.0, True],
    "feed_forward_proj": ["relu", "gated-gelu", "gated-silu", "gelu", "gelu_new", "gated-", "", 3, "\x1b[2J"],
    "encoder_only": [True, True, "yes", 1, None],
    "output_format": ["stock-t5", "stock-t5", "native", "onnx", None],
    "optimizer": [True, True, True, "yes", None],
}  # fmt: skip


class Described:
    """A reader, and the storage of a gin file, that have nothing but a table; reading much is a finding."""

    def __init__(self, table: Table, gin: str | None, step: Any) -> None:
        self.variables = {name: Variable(name, *rest) for name, rest in table.items()}
        self._gin, self._step = gin, step

    local_folder = None

    def place(self, name: str) -> str:
        return f"folder/{name}"

    def exists(self, name: str) -> bool:
        return self._gin is not None

    def head(self, name: str, most: int) -> bytes:
        assert self._gin is not None
        return self._gin.encode()[:most]

    def describe(self) -> str:
        return "folder"

    def moved_to(self) -> tuple[str, ...]:
        return ()

    def read(self, name: str) -> Any:
        variable = self.variables[name]
        assert np.prod(variable.shape, dtype=object) <= MOST_READ, f"{name} of shape {variable.shape} is read"
        if variable.dtype not in ("int32", "int64", "float32"):
            raise ConversionError(f"{name} is of type {variable.dtype}, which is not converted.")
        return np.full(variable.shape, self._step).astype(variable.dtype)


@cache
def genuine() -> list[tuple[Table, str]]:
    """Variables and gin file of every golden checkpoint, the one of 28 layers less often than the others."""
    found = []
    for folder in sorted(GOLDEN.glob("*/")):
        prefix = next(folder.glob("*.index")).with_suffix("")
        table = {v.name: (v.shape, v.dtype) for v in TensorBundleReader(prefix).variables.values()}
        gin = (folder / "operative_config.gin").read_text()
        lines = "\n".join(line for line in gin.splitlines() if line.strip() and not line.startswith("#"))
        without_slots = {name: rest for name, rest in table.items() if "_slot_" not in name}
        found += [(without_slots, lines)]
        if len(without_slots) < 100:
            found += [(without_slots, lines), (without_slots, lines), (table, lines)]
    return found


def pick(generator: random.Random, table: Table) -> str:
    return generator.choice(list(table))


def change_size(generator: random.Random, table: Table) -> None:
    name = pick(generator, table)
    shape, dtype = table[name]
    kind = generator.randrange(6)
    if kind <= 2 and shape:
        k = generator.randrange(len(shape))
        shape = (*shape[:k], generator.choice(SIZES), *shape[k + 1 :])
    elif kind == 3:
        shape = shape[::-1]
    elif kind == 4:
        shape = shape[: generator.randrange(len(shape) + 1)]
    else:
        shape = (*shape, *[generator.choice(SIZES)] * generator.choice([1, 1, 32, 1000]))
    table[name] = shape, dtype


def change_all_sizes(generator: random.Random, table: Table) -> None:
    """A model of another width, in all of its variables."""
    old, new = generator.choice([4, 8, 32, 32, 64, 256]), generator.choice(SIZES)
    for name, (shape, dtype) in table.items():
        table[name] = tuple(new if size == old else size for size in shape), dtype


def change_tables(generator: random.Random, table: Table) -> None:
    """Bias tables of another number of buckets or heads, in all layers alike, or none."""
    shape = generator.choice([(4, 0), (4, 3), (4, 256), (0, 32), (3, 32), (1000, 32), (32,), (4, 32, 1), ()])
    for name in [name for name in table if name.endswith("relative_attention_bias")]:
        if generator.random() < 0.2:
            del table[name]
        else:
            table[name] = shape, table[name][1]


def change_dtype(generator: random.Random, table: Table) -> None:
    dtype = generator.choice(DTYPES)
    for name in list(table) if generator.random() < 0.3 else [pick(generator, table)]:
        table[name] = table[name][0], dtype


def rename(generator: random.Random, table: Table) -> None:
    name = pick(generator, table)
    kind = generator.randrange(5)
    if kind <= 1:
        new = re.sub(r"\d+", lambda found: generator.choice([*NUMBERS, found[0], found[0]]), name)
    elif kind == 2:
        pieces = name.split("/")
        pieces[generator.randrange(len(pieces))] = generator.choice(PIECES)
        new = "/".join(pieces)
    elif kind == 3:
        new = name + generator.choice(ENDINGS)
    else:
        new = generator.choice(ODD)
    rest = table[name] if generator.random() < 0.3 else table.pop(name)
    table[new] = rest


def remove(generator: random.Random, table: Table) -> None:
    name = pick(generator, table)
    part = generator.choice([name, name, name.rpartition("/")[0], name.split("/")[0], name.split("/")[-1]])
    for other in [other for other in table if part in other][: generator.choice([1, 1, 10**6])]:
        if len(table) > 1:
            del table[other]


def respell(generator: random.Random, table: Table) -> None:
    """All names of a kind as other code writes them."""
    old, new = generator.choice(
        [
            *(("rms_norm", "layer_norm"), ("layer_000", "self_attention"), ("block_000/", "")),
            *(("block_00", "block_0"), ("/SelfAttention/q", "/SelfAttention/q/kernel"), ("TalkingHeads", "")),
            *(("wi_0", "wi"), ("encoder", "decoder"), ("block_000", "block_001"), ("layer_001", "layer_009")),
            *(("block_001", "block_" + "9" * 30),),
        ]
    )
    renamed = {name.replace(old, new): rest for name, rest in table.items()}
    table.clear()
    table.update(renamed)


def change_step(generator: random.Random, table: Table) -> None:
    shape = generator.choice([(), (), (1,), (1, 1), (3,), (0,), (10**9,), (2**31, 2**30)])
    table["global_step"] = shape, generator.choice(["int64", "int64", "int32", "float32", "string", "bool"])


def split_heads(generator: random.Random, table: Table) -> None:
    """Kernels with an axis for the heads, as the original writes them on request."""
    for name, (shape, dtype) in table.items():
        if re.search(r"Attention/[qkv]$", name) and len(shape) == 2:
            table[name] = (shape[0], 4, generator.choice([8, 8, 8, 0, 7])), dtype


CHANGES: list[Callable[[random.Random, Table], None]] = [
    *(change_size, change_size, change_all_sizes, change_tables, change_dtype, rename, rename, rename, remove, respell),
    *(change_step, split_heads),
]

GIN = [
    *("num_layers = 3", "num_layers = 10**8", "num_layers = 1024", "d_model = 64", "d_ff = 1", "dropout_rate = 2.0"),
    *("num_heads = 8", "decoder/Unitransformer.shared_embedding_and_softmax_weights = True"),
    *("sublayer_rms_norm.epsilon = 1e999", "d_model = 0", "dropout_rate = 0.25"),
    *("encoder/SelfAttention.relative_attention_num_buckets = 16", "encoder/make_layer_stack.layers = 5"),
    *("encoder/DenseReluDense.activation = '\x1b[2J'", "sublayer_dropout.dropout_rate = 0.5"),
]


def make(generator: random.Random) -> tuple[Described, dict[str, Any]]:
    table, gin = generator.choice(genuine())
    table = dict(table)
    for _ in range(generator.choice([0, 1, 1, 1, 1, 2, 3])):
        generator.choice(CHANGES)(generator, table)
    if generator.random() < 0.1:
        shuffled = list(table.items())
        generator.shuffle(shuffled)
        table = dict(shuffled)
    options = {
        name: generator.choice(values)
        for name, values in OPTIONS.items()
        if generator.random() < (0.3 if name in ("optimizer", "encoder_only") else 0.08)
    }
    text = None
    if generator.random() < 0.15:
        text = "\n".join([gin, *generator.sample(GIN, generator.randrange(3)), ""])
    step = generator.choice([7, 7, 0, -1, 2**31 - 1, 2.5, float("nan")])
    return Described(table, text, step if step == step else 7), options


def attempt(generator: random.Random) -> None:
    reader, options = make(generator)
    prefix = generator.choice(["model.ckpt-7", "model.ckpt", "lm100k.ckpt-" + "9" * 5000, "\x1b[2J|`\udcff`<b>-1"])
    check(pipeline.inspect(Checkpoint(cast(Any, reader), prefix), **options))


def check(found: pipeline.Inspection) -> None:
    """What is planned adds up, and is printed and described without anything that a file could smuggle in."""
    plan = found.plan
    assert all(min(entry.shape) > 0 and entry.nbytes > 0 for entry in plan.entries)
    assert sum(shard.nbytes for shard in plan.shards) == plan.nbytes > 0
    assert len({entry.name for entry in plan.reads}) == len(plan.reads)
    assert not {entry.source.name for entry in plan.reads} & set(plan.drops)
    assert found.step is None or 0 <= found.step < 10**30
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        cli.print_inspection(found)
    card = cards.model_card(
        title=found.checkpoint.prefix_name,
        family=found.family,
        source=found.checkpoint.name,
        step=found.step,
        config=found.architecture,
        output=found.output,
        plan=plan,
        has_tokenizer=False,
        notes=found.notes,
    )
    for line in [*printed.getvalue().split("\n"), *card.split("\n")]:
        assert line.isprintable(), line
    assert "<b>" not in re.sub(r"`` .* ``", "", card)


@pytest.fixture
def _described(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "open_reader", lambda checkpoint: checkpoint.storage)


@pytest.mark.usefixtures("_described")
def test_any_change_of_the_variables(fuzz: Callable[..., None]) -> None:
    fuzz(attempt, inputs=1500, refusals=(ConversionError,))


def unchecked(*_: Any) -> None:
    """In place of a check."""


MUTANTS: dict[str, tuple[Any, str, Any]] = {
    "options": (pipeline, "check_options", unchecked),
    "weights that hold numbers": (pipeline, "check_weights", unchecked),
    "a step that is one number": (pipeline, "_check_step", unchecked),
    "numbers as they are written": (layout, "_SCOPED", re.compile(r"(encoder|decoder)/(?:(block_\d+)/)?layer_(\d+)/")),
    "messages that can be read": (errors, "one_line", str),
    "printing": (cli, "say", print),
    "text in the card": (cards, "markdown", str),
    "code in the card": (cards, "markdown_code", "`{}`".format),
}


@pytest.mark.usefixtures("_described")
@pytest.mark.parametrize("name", MUTANTS)
def test_what_is_left_out_is_found(name: str, fuzz: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FUZZ_INPUTS", raising=False)
    monkeypatch.delenv("FUZZ_FIRST_SEED", raising=False)
    monkeypatch.setattr(*MUTANTS[name])
    try:
        fuzz(attempt, inputs=2000, refusals=(ConversionError,))
    except Exception:
        found = True
    else:
        found = False
    assert found
