# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""A finished folder in which a file is not the one that was written is the user's: `--overwrite` lets it be."""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google_crc32c
import pytest
from safetensors.torch import load_file, save_file

from t5_experimental.convert.bundle.writer import zeros_crc32c
from t5_experimental.convert.cli import main
from t5_experimental.convert.errors import ConversionError
from t5_experimental.convert.output import crc32c
from t5_experimental.convert.output.folder import check_output, finished_or_nothing
from t5_experimental.convert.output.ours import RECORDS


Run = Callable[..., Any]

WORDS = "is not the one that this program wrote), so --overwrite does not replace it: move away what is yours"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, reference: Path) -> dict[str, Path]:
    """By kind, a folder with all kinds of files."""
    top = tmp_path_factory.mktemp("folders")
    source, vocabulary = reference / "golden" / "t5.1.1.tiny", reference.parent / "data" / "restaurants.model"
    options = ["--vocab", str(vocabulary), "--max-shard-size", "100KB", "--with-optimizer"]
    assert main(["convert", str(source), str(top / "converted"), *options]) == 0
    assert main(["export", str(top / "converted"), str(top / "exported")]) == 0
    return {kind: top / kind for kind in RECORDS}


@pytest.fixture(params=RECORDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def folder(kind: str, folders: dict[str, Path], tmp_path: Path) -> Path:
    """A folder to be edited."""
    return Path(shutil.copytree(folders[kind], tmp_path / "out"))


def edit_record(folder: Path, kind: str, **fields: Any) -> None:
    """Changes fields of a record; None removes one."""
    path = folder / RECORDS[kind]
    record = {**json.loads(path.read_text()), **fields}
    path.write_text(json.dumps({name: value for name, value in record.items() if value is not None}))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_every_file_is_compared(kind: str, folder: Path) -> None:
    """A bit in its middle, and a byte at its end."""
    check_output(folder, kind, None, overwrite=True)
    names = sorted(os.listdir(folder))
    assert len(names) > (20 if kind == "converted" else 4)
    for name in names:
        if name == RECORDS[kind]:
            continue
        path, written = folder / name, (folder / name).read_bytes()
        middle = len(written) // 2
        for edited in (
            written[:middle] + bytes([written[middle] ^ 1]) + written[middle + 1 :],
            written + b"\n",
        ):
            path.write_bytes(edited)
            with pytest.raises(ConversionError) as refusal:
                check_output(folder, kind, None, overwrite=True)
            assert f"({name} {WORDS}" in str(refusal.value)
        path.write_bytes(written)
        check_output(folder, kind, None, overwrite=True)


def test_the_command_says_what_is_not_as_it_was(kind: str, folder: Path, reference: Path, run: Run) -> None:
    name = "README.md" if kind == "converted" else "operative_config.gin"
    (folder / name).write_text("mine")
    before = contents(folder)
    source = reference / "golden" / "t5.1.1.tiny"
    command = ("convert", source, folder) if kind == "converted" else ("export", folder.with_name("model"), folder)
    result = run(*command, "--overwrite")
    assert result.status == 1
    assert f"error: {folder} is not a folder that was {kind} and nothing else ({name} {WORDS}, or choose" in result.err
    assert contents(folder) == before
    assert os.listdir(folder.parent) == ["out"]
    (folder / name).unlink()  # moved away, as the sentence says
    check_output(folder, kind, None, overwrite=True)


def test_the_record_has_the_checksums_of_all_files(kind: str, folder: Path) -> None:
    record = json.loads((folder / RECORDS[kind]).read_text())
    found = {name: f"{google_crc32c.value(data):08x}" for name, data in contents(folder).items()}
    del found[RECORDS[kind]]
    assert record["crc32c"] == found
    assert record["files"] == sorted({*found, RECORDS[kind]})


def test_folders_of_versions_without_these_checksums_are_replaced(kind: str, folder: Path) -> None:
    """Of those that were converted, weights are compared."""
    edit_record(folder, kind, crc32c=None)
    for name, data in contents(folder).items():
        if name != RECORDS[kind] and not name.endswith(".safetensors"):
            (folder / name).write_bytes(data + b"\n")
    check_output(folder, kind, None, overwrite=True)
    if kind == "converted":
        name = "model-00001-of-00005.safetensors"
        tensors = load_file(folder / name)
        next(iter(tensors.values())).view(-1)[0] += 1
        save_file(tensors, folder / name)
        with pytest.raises(ConversionError, match=name):
            check_output(folder, kind, None, overwrite=True)


def test_checksums_that_are_none(kind: str, folder: Path) -> None:
    name = "config.json" if kind == "converted" else "checkpoint"
    record = json.loads((folder / RECORDS[kind]).read_text())["crc32c"]
    for value in ([name], "x", 3):
        edit_record(folder, kind, crc32c=value)
        check_output(folder, kind, None, overwrite=True)
    for value in ({}, {"other": "00000000", "../out": 3}):
        edit_record(folder, kind, crc32c=value)
        with pytest.raises(ConversionError, match="is not the one"):
            check_output(folder, kind, None, overwrite=True)
    for value in (3, None, [], "0", {}):
        edit_record(folder, kind, crc32c={**record, name: value})
        with pytest.raises(ConversionError, match=f"{name} is not the one"):
            check_output(folder, kind, None, overwrite=True)


def test_what_a_killed_run_left_goes_only_if_it_is_unedited(folder: Path, kind: str) -> None:
    """The old folder under its other name, and the new one when it was complete."""
    old, partial = folder.with_name(".out.old"), folder.with_name(".out.partial")
    for path, is_edited in ((old, True), (partial, True), (partial, False), (old, False)):
        shutil.copytree(folder, path)
        if is_edited:
            (path / sorted(contents(path).keys() - {RECORDS[kind]})[0]).write_text("mine")
            with pytest.raises(ConversionError, match="is in the way"):
                check_output(folder, kind, None, overwrite=True)
            shutil.rmtree(path)
    with finished_or_nothing(folder, kind, overwrite=True) as new:
        (new / "file").touch()
    assert os.listdir(folder.parent) == ["out"]


class Counted:
    """`google_crc32c`, which counts bytes."""

    nbytes = 0

    def extend(self, checksum: int, data: bytes) -> int:
        self.nbytes += len(data)
        return int(google_crc32c.extend(checksum, data))


def test_large_files_are_not_read_while_they_are_written_and_once_when_replaced(
    folders: dict[str, Path], tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counted()
    monkeypatch.setattr(crc32c, "google_crc32c", counted)
    monkeypatch.setattr(crc32c, "_SETTLED_SECONDS", 0)  # as if it had been long ago
    assert run("export", folders["converted"], tmp_path / "out").status == 0
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "out").iterdir()}
    (data,) = (size for name, size in sizes.items() if ".data-" in name)
    others = sum(sizes.values()) - data - sizes["export.json"]
    assert others < 50_000 < data
    assert counted.nbytes == others
    counted.nbytes = 0
    assert run("export", folders["converted"], tmp_path / "out", "--overwrite").status == 0
    assert counted.nbytes == data + others + others


def test_checksums_of_parts_make_that_of_the_whole() -> None:
    generator = random.Random(0)
    for sizes in ((), (0,), (1,), (0, 0, 5, 0), (7, 1, 2**16, 3), *([generator.randrange(3000)] * 9 for _ in range(5))):
        pieces = [generator.randbytes(size) for size in sizes]
        parts = [(google_crc32c.value(piece), len(piece)) for piece in pieces]
        assert crc32c.joined(parts) == google_crc32c.value(b"".join(pieces))


def test_a_part_may_have_more_bits_than_32_bits_count() -> None:
    zeros, size = bytes(2**23), 2**29 + 5
    expected = google_crc32c.value(b"weights")
    for start in range(0, size, len(zeros)):
        expected = google_crc32c.extend(expected, zeros[: size - start])
    assert crc32c.joined([(google_crc32c.value(b"weights"), 7), (zeros_crc32c(size), size)]) == expected
