# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Files of users' data, valid and damaged: rows come back as they were written, or a sentence says what is wrong."""

import csv
import gzip
import io
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import yaml
from pyarrow import parquet

from t5_experimental import T5V11Config
from t5_experimental.training.cli import entry_point as commandline
from t5_experimental.training.data.documents import DocumentFile
from t5_experimental.training.data.examples import read_examples
from t5_experimental.training.errors import TrainingError
from t5_experimental.training.models.prompts import read_prompt


REFUSALS = (TrainingError,)

# What text of users is made of, and what readers stumble over.
PIECES = ["a", "The Mill", "007", "1.50", "None", "NA", ",", ";", '"', '""', "\n", "\r\n", "\\", "{", "}", "[", "\t"]
PIECES += [" ", "\u00e4", "\u65e5\u672c", "\U0001f600", "\u2028", "\ufeff", "\x1b[31m", "-", "'", ":", "#", "|", "\x85"]
DAMAGE = [
    b'"',
    b",",
    b"\n",
    b"\r",
    b"\0",
    b"\xff",
    b"\xef\xbb\xbf",
    b"{",
    b"}",
    b"[",
    b"\\",
    b":",
    b"-",
    b"9" * 50,
    b"\\ud800",
]
DAMAGE += [
    b'"source"',
    b'"target": ',
    b"source,",
    b"NaN",
    b"null",
    b"true",
    b"1e999",
    b"[" * 2000,
    b"<<: *a",
    b"&a ",
    b"!!x ",
]


def text(generator: random.Random) -> str:
    return "".join(generator.choices(PIECES, k=generator.randrange(5)))


def damaged(content: bytes, generator: random.Random) -> bytes:
    """With a few bytes changed, inserted, repeated, or cut off."""
    for _ in range(generator.randrange(1, 4)):
        place, end = sorted(generator.randrange(len(content) + 1) for _ in range(2))
        match generator.randrange(5):
            case 0:
                content = content[:place] + generator.choice(DAMAGE) + content[place:]
            case 1:
                content = content[:place] + content[min(end, place + 8) :]
            case 2:
                content = content[:end] + content[place:end][:200] + content[end:]
            case 3:
                content = content[:place] if generator.random() < 0.3 else content
            case _:
                content = content[:place] + bytes([generator.randrange(256)]) + content[place + 1 :]
    return content


def rows_of(generator: random.Random) -> list[dict[str, Any]]:
    return [{"source": text(generator), "target": text(generator)} for _ in range(generator.randrange(1, 4))]


def read(path: Path) -> list[dict[str, Any]]:
    return [{"source": row["source"], "target": row["targets"]} for row in read_examples(path, "source", "target")]


def as_csv(rows: list[dict[str, Any]], generator: random.Random) -> bytes:
    file = io.StringIO(newline="")
    columns = generator.sample(["source", "target", "more"], 3)
    ends, quoting = generator.choice(["\n", "\r\n"]), generator.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
    writer = csv.DictWriter(file, columns, lineterminator=ends, quoting=quoting)
    writer.writeheader()
    writer.writerows({**row, "more": text(generator)} for row in rows)
    return b"\xef\xbb\xbf" * generator.randrange(2) + file.getvalue().encode()


def as_json(rows: list[dict[str, Any]], generator: random.Random) -> bytes:
    def more(depth: int) -> Any:
        kind = generator.randrange(6 if depth else 4)
        if kind < 4:
            return [text(generator), generator.random(), None, True][kind]
        return {text(generator): more(depth - 1)} if kind == 4 else [more(depth - 1)]

    lines = [json.dumps({**row, "more": more(2)}, ensure_ascii=generator.random() < 0.5) for row in rows]
    return b"\xef\xbb\xbf" * generator.randrange(2) + "".join(f"{line}\n" for line in lines).encode()


def as_array(rows: list[dict[str, Any]], generator: random.Random) -> bytes:
    objects = as_json(rows, generator).removeprefix(b"\xef\xbb\xbf").splitlines()
    # More line breaks than damage can remove.
    return b"\xef\xbb\xbf" * generator.randrange(2) + b"[" + b",\n".join(objects) + b"]" + b"\n" * 40


def yaml_text(generator: random.Random) -> str:
    """Without the line breaks that PyYAML writes so that it reads them as others."""
    return text(generator).replace("\x85", "").replace("\u2028", "").replace("\r", "")


@pytest.mark.parametrize(
    ("ending", "write"),
    [(".csv", as_csv), (".jsonl", as_json), (".json", as_array)],
    ids=["csv", "json", "array"],
)
def test_tables(ending, write, fuzz, tmp_path):
    path = tmp_path / f"data{ending}"

    def attempt(generator: random.Random) -> None:
        rows = rows_of(generator)
        content = write(rows, generator)
        if generator.random() < 0.3:
            path.write_bytes(content)
            assert read(path) == [{**row, "target": [row["target"]]} for row in rows]
            return
        content = damaged(content, generator)
        path.write_bytes(content)
        found = read(path)
        # Nothing is dropped: what has been accepted, written once more, is read as the same; and no row is merged.
        assert len(found) <= content.count(b"\n") + 1
        again = [{"source": row["source"], "target": row["target"][0]} for row in found if len(row["target"]) == 1]
        path.write_bytes(write(again, generator))
        assert read(path) == [{**row, "target": [row["target"]]} for row in again]

    fuzz(attempt, inputs=1000, refusals=REFUSALS)


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_packed_files(ending, fuzz, tmp_path):
    path = tmp_path / f"data.jsonl{ending}"

    def attempt(generator: random.Random) -> None:
        rows = rows_of(generator)
        content = as_json(rows, generator)
        packed = gzip.compress(content) if ending == ".gz" else pyarrow.compress(content, codec="zstd", asbytes=True)
        path.write_bytes(packed)
        assert read(path) == [{**row, "target": [row["target"]]} for row in rows]
        path.write_bytes(damaged(packed, generator))
        read(path)

    fuzz(attempt, inputs=500, refusals=REFUSALS)


def test_documents(fuzz, tmp_path):
    """They are the same in all ranges that a file is read in."""
    path = tmp_path / "text.jsonl"

    def attempt(generator: random.Random) -> None:
        content = "".join(json.dumps({"text": text(generator) + "."}) + "\n" for _ in range(3)).encode()
        content = damaged(content, generator) if generator.random() < 0.7 else content
        kind = generator.randrange(3)
        target = path if kind == 0 else path.with_suffix(".txt")
        target.write_bytes(content)
        file = DocumentFile(target, len(content), document_per_line=kind == 2)
        place = generator.randrange(len(content) + 1)
        whole = list(file.read(0, len(content)))
        assert [*file.read(0, place), *file.read(place, len(content))] == whole

    fuzz(attempt, inputs=2000, refusals=REFUSALS)


def test_recipes(fuzz, tmp_path):
    """A recipe gives flags that say the same."""
    path = tmp_path / "recipe.yaml"
    names = ["max_steps", "seed", "metric", "source_prefix", "label_names", "bf16"]

    def attempt(generator: random.Random) -> None:
        values = {
            name: generator.choice([yaml_text(generator), generator.randrange(9), ["a", yaml_text(generator)], None])
            for name in generator.sample(names, 3)
        }
        content = yaml.safe_dump(values, allow_unicode=generator.random() < 0.5, sort_keys=False).encode()
        is_damaged = generator.random() < 0.7
        path.write_bytes(damaged(content, generator) if is_damaged else content)
        flags = list(commandline._recipe_flags(path, names))
        if is_damaged:
            given = [flag for flag in flags if flag.startswith("--")]
            assert len({flag.partition("=")[0] for flag in given}) == len(given)
            return
        expected: list[str] = []
        for name, value in values.items():
            if isinstance(value, list):
                expected += [f"--{name}", *value]
            elif value is not None:
                expected.append(f"--{name}={value}")
        assert flags == expected

    fuzz(attempt, inputs=400, refusals=REFUSALS)


def test_parquet(fuzz, tmp_path):
    """Footers and pages."""
    path = tmp_path / "data.parquet"

    def attempt(generator: random.Random) -> None:
        rows = rows_of(generator)
        parquet.write_table(pyarrow.Table.from_pylist(rows), path, compression=generator.choice(["none", "snappy"]))
        if generator.random() < 0.3:
            assert read(path) == [{**row, "target": [row["target"]]} for row in rows]
            return
        content = path.read_bytes()
        cut = generator.choice([0, len(content) // 2])
        path.write_bytes(content[:cut] + damaged(content[cut:], generator))
        read(path)

    fuzz(attempt, inputs=400, refusals=REFUSALS)


def test_prompts(fuzz, tmp_path):
    path, config = tmp_path / "prompt.npy", T5V11Config(d_model=4)

    def attempt(generator: random.Random) -> None:
        rows = np.asarray([[generator.random() for _ in range(4)] for _ in range(2)], np.float32)
        np.save(path, rows)
        if generator.random() < 0.7:
            content = path.read_bytes()
            path.write_bytes(damaged(content[:128], generator) + content[128:])
            read_prompt(path, config)
        else:
            assert np.array_equal(read_prompt(path, config).numpy(), rows)

    fuzz(attempt, inputs=400, refusals=REFUSALS)
