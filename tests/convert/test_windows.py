# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Commands under the rules of Windows, which are pretended; see `tests/support/windows_rules.py`."""

import errno
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from t5_experimental import own_folders
from t5_experimental.convert.output import folder as output_folder
from t5_experimental.convert.output import safetensors_writer as writer
from t5_experimental.convert.source.download_cache import CachedStorage
from t5_experimental.convert.source.local_files import LocalFiles
from tests.support.windows_rules import SIGBREAK, windows_rules


Run = Callable[..., Any]


@pytest.fixture(autouse=True)
def _windows() -> Iterator[None]:
    with windows_rules():
        yield


@pytest.fixture
def source(reference: Path) -> Path:
    return reference / "golden" / "t5.1.1.tiny"


def test_the_rules_are_those_of_windows(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"1")
    with (tmp_path / "file").open("rb") as file:
        for forbidden in (
            lambda: os.fsync(file.fileno()),
            lambda: (tmp_path / "file").unlink(),
            lambda: (tmp_path / "file").rename(tmp_path / "other"),
            lambda: tmp_path.rename(tmp_path.with_name("other")),
            lambda: os.open(tmp_path, os.O_RDONLY),
            lambda: os.replace(tmp_path / "file", tmp_path / "folder"),
        ):
            with pytest.raises(OSError):
                forbidden()
    mapped = torch.UntypedStorage.from_file(str(tmp_path / "file"), True, 1)  # keeps no descriptor
    with pytest.raises(PermissionError, match="is mapped"):
        (tmp_path / "file").unlink()
    del mapped
    with pytest.raises(FileExistsError):
        (tmp_path / "file").rename(tmp_path / "folder")


def test_conversions_finish_are_replaced_and_leave_nothing(source: Path, tmp_path: Path, run: Run) -> None:
    output = tmp_path / "out"
    assert run("convert", source, output, "--max-shard-size", "60KB").status == 0
    assert run("convert", source, output, "--overwrite").status == 0
    assert run("verify", source, output).status == 0
    assert run("export", output, tmp_path / "back").status == 0
    assert {path.name for path in tmp_path.iterdir()} == {"out", "back"}


def test_stock_folders_are_converted(stock_sample: Callable[..., Any], tmp_path: Path, run: Run) -> None:
    folder, _ = stock_sample("t5-v1_1")
    assert run("convert", folder, tmp_path / "out").status == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_conversion_goes_on(source: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    write, left = writer._write, [2]

    def limited(*arguments: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "no room")
        return write(*arguments)

    monkeypatch.setattr(writer, "_write", limited)
    arguments = ("convert", source, tmp_path / "out", "--resume", "--max-shard-size", "60KB")
    assert run(*arguments).status == 1
    monkeypatch.undo()
    assert {path.name for path in tmp_path.iterdir()} == {".out.partial"}
    assert run(*arguments).status == 0
    assert {path.name for path in tmp_path.iterdir()} == {"out"}


def test_a_second_run_is_refused_and_the_first_goes_on(source: Path, tmp_path: Path, run: Run) -> None:
    with output_folder.finished_or_nothing(tmp_path / "out", "converted", overwrite=False) as folder:
        outcome = run("convert", source, tmp_path / "out")
        assert outcome.status == 1
        assert "another run is writing" in outcome.err
        (folder / "config.json").write_text("{}", encoding="utf-8")
    assert {path.name for path in tmp_path.iterdir()} == {"out"}


def test_what_another_program_looks_at_for_a_moment_is_renamed_after_it(
    source: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename, refusals, waits = os.rename, [2], []

    def scanned(place: Any, target: Any) -> None:
        if os.path.isdir(place) and refusals[0]:
            refusals[0] -= 1
            raise PermissionError(errno.EACCES, "a virus scanner reads it", os.fspath(place))
        rename(place, target)

    monkeypatch.setattr(own_folders, "_TRIES", 5)
    monkeypatch.setattr(own_folders.time, "sleep", waits.append)
    monkeypatch.setattr(os, "rename", scanned)
    assert run("convert", source, tmp_path / "out").status == 0
    assert len(waits) == 2
    assert refusals == [0]

    refusals[0] = 5
    outcome = run("convert", source, tmp_path / "other")
    assert outcome.status == 1
    assert "a virus scanner reads it" in outcome.err


def test_ctrl_break_ends_a_conversion_like_ctrl_c(
    source: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "_write", lambda *_: signal.raise_signal(SIGBREAK))
    outcome = run("convert", source, tmp_path / "out")
    assert outcome.status == 130
    assert "interrupted" in outcome.err
    assert not list(tmp_path.iterdir())


def test_a_damaged_file_of_the_cache_is_removed_although_it_was_read(tmp_path: Path) -> None:
    class Remote:
        """One file of four bytes."""

        block_bytes = 4

        def describe(self) -> str:
            return "https://somewhere/folder"

        def size(self, name: str) -> int:
            return 4

        def version(self, name: str) -> str:
            return "1"

        def expect(self, ranges: object) -> None:
            pass

        def read(self, name: str, offset: int, size: int) -> bytes:
            return b"abcd"[offset : offset + size]

        def close(self) -> None:
            pass

    def cache() -> CachedStorage:
        return CachedStorage(Remote(), tmp_path)

    assert bytes(cache().read("data", 0, 4)) == b"abcd"
    again = cache()
    assert bytes(again.read("data", 0, 4)) == b"abcd"
    assert again.refetch("data")
    assert bytes(again.read("data", 0, 4)) == b"abcd"


def test_files_are_read_by_position(tmp_path: Path) -> None:
    import numpy as np

    (tmp_path / "file").write_bytes(bytes(range(100)))
    files, target = LocalFiles(), np.zeros(10, np.uint8)
    files.size(tmp_path / "file")
    for offset in (50, 0, 90):
        files.fill(tmp_path / "file", offset, target)
        assert target.tolist() == list(range(offset, offset + 10))
