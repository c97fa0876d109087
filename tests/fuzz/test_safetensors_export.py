# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Fuzzing safetensors files and their index, through what `export`, `verify` and `push` make of a folder's."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError, safe_open

from t5_experimental import without_models
from t5_experimental.convert.errors import ConversionError
from t5_experimental.convert.export import plan_export
from t5_experimental.convert.output import json_files, safetensors_reader
from t5_experimental.convert.output.safetensors_format import INDEX_FILENAME
from t5_experimental.convert.output.safetensors_reader import WEIGHTS_FILENAME, SafetensorsReader, weight_files
from tests.fuzz.json_mutations import assert_unambiguous, mutated


Attempt = Callable[[random.Random], None]

INPUTS = 800
NAME = "t5.1.1.tiny"
LENGTHS = [0, 1, 7, 8, 100, 2**25, 2**25 + 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1]
OFFSETS = [0, 1, -1, 3, 4, 2**31, 2**53, 2**63 - 1, 2**63, 2**64]
DTYPES = ["F32", "BF16", "F16", "F64", "I64", "BOOL", "F8_E4M3", "f32", "", 32]


@pytest.fixture
def attempt(converted: Callable[[str], Path], tmp_path: Path) -> Attempt:
    """In folders of one file, of several, and of a small file alone, which is read in no time."""
    folder = Path(shutil.copytree(converted(NAME), tmp_path / "folder"))
    whole = (folder / "model.safetensors").read_bytes()
    small = of_three_tensors()
    other = tmp_path / "small"
    other.mkdir()
    index = {"metadata": {"total_size": 1}, "weight_map": {"a": "a.safetensors", "b": "b.safetensors"}}

    def try_one(generator: random.Random) -> None:
        kind = generator.randrange(8)
        if kind == 0:  # a whole export
            (folder / "model.safetensors").write_bytes(mutated_file(whole, generator))
            with without_models():
                plan_export(folder)
            assert_believable(folder / "model.safetensors")
            return
        # transformers reads no index beside a model.safetensors.
        first = other / ("a.safetensors" if kind < 3 else WEIGHTS_FILENAME)
        (other / WEIGHTS_FILENAME).unlink(missing_ok=True)
        first.write_bytes(mutated_file(small, generator) if kind > 1 else small)
        (other / "b.safetensors").write_bytes(small.replace(b'"a', b'"b'))
        if kind < 3:
            data = mutated(index, generator)
            (other / INDEX_FILENAME).write_bytes(data)
            files = weight_files(other)
            assert_unambiguous(data)
            assert all(path.parent == other for path in files)
        else:
            files = weight_files(other)
        reader = SafetensorsReader(files)
        for name, variable in reader.variables.items():
            assert reader.read(name).shape == variable.shape
        if first in files:
            assert_believable(first)

    return try_one


def of_three_tensors() -> bytes:
    rows = {
        "__metadata__": {"format": "pt", "step": "7"},
        "a1": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "a2": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
        "a3": {"dtype": "F32", "shape": [0, 5], "data_offsets": [32, 32]},
    }
    return spelled(json.dumps(rows).encode(), bytes(32))


def spelled(header: bytes, data: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header + data


def mutated_file(file: bytes, generator: random.Random) -> bytes:
    end = 8 + int.from_bytes(file[:8], "little")
    header, data = json.loads(file[8:end]), file[end:]
    what = generator.randrange(6)
    if what == 0:
        return generator.choice(LENGTHS).to_bytes(8, "little") + file[8:]
    if what == 1:
        return file[: generator.randrange(len(file))]
    if what == 2:
        return file + bytes(generator.choice([1, 8, 1000]))
    if what == 3:
        return spelled(mutated(header, generator), data)
    name = generator.choice([name for name in header if name != "__metadata__"])
    row = header[name]
    field = generator.randrange(4)
    if field == 0:
        row["dtype"] = generator.choice(DTYPES)
    elif field == 1:
        row["shape"] = generator.choice([[], [2**32, 2**32], [2**62] * 40, row["shape"][::-1], [1, *row["shape"]]])
    elif field == 2:
        row["data_offsets"][generator.randrange(2)] = generator.choice(OFFSETS)
    else:
        row["data_offsets"] = [offset + generator.choice([-4, 4, 0, 8]) for offset in row["data_offsets"]]
    return spelled(json.dumps(header).encode(), data)


def assert_believable(path: Path) -> None:
    """What was accepted is what safetensors itself reads, with the same shapes, and nothing is in it twice."""
    file = path.read_bytes()
    end = 8 + int.from_bytes(file[:8], "little")
    header = assert_unambiguous(file[8:end])
    header.pop("__metadata__", None)
    try:
        with safe_open(path, "np") as opened:
            assert set(opened.keys()) == header.keys()
            for name, row in header.items():
                assert opened.get_slice(name).get_shape() == row["shape"]
    except SafetensorError as error:
        raise AssertionError(f"safetensors refuses what was accepted ({error}): {header}") from error


def test_files(attempt: Attempt, fuzz: Callable[..., None]) -> None:
    fuzz(attempt, inputs=INPUTS, refusals=(ConversionError,))


class _Believed(safetensors_reader._Row):
    @classmethod
    def of(cls, name: str, row: Any) -> safetensors_reader._Row:
        dtype = safetensors_reader._DTYPES[row["dtype"]]
        return safetensors_reader._Row(name, dtype, tuple(row["shape"]), *row["data_offsets"])


REMOVED: dict[str, tuple[Any, str, Any]] = {
    "rows": (safetensors_reader, "_Row", _Believed),
    "names of files": (safetensors_reader, "check_plain_name", lambda name: None),
    "names that are there twice": (json_files, "_object", dict),
    "depth": (json_files, "parse_json", lambda data: json.loads(data)),
    "metadata": (SafetensorsReader, "_add_metadata", lambda self, path, metadata: self.metadata.update(metadata)),
}


@pytest.mark.parametrize("case", REMOVED)
def test_a_check_that_is_removed_is_missed(
    case: str, attempt: Attempt, fuzz: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """These inputs tell the checks from none."""
    owner, name, replacement = REMOVED[case]
    monkeypatch.setattr(owner, name, replacement)
    if name == "parse_json":
        monkeypatch.setattr(safetensors_reader, name, replacement)
    with pytest.raises(BaseException) as caught:
        fuzz(attempt, inputs=2 * INPUTS, refusals=(ConversionError,))
    assert not isinstance(caught.value, ConversionError)
