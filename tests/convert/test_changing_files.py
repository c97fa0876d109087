"""Files of this disk that shrink, grow, are written to, replaced or cannot be read while they are used: a sentence."""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from t5_experimental.convert.errors import ConversionError
from t5_experimental.convert.output import blocks as transfer
from t5_experimental.convert.source import local_files
from t5_experimental.convert.source.local_files import LocalFiles
from t5_experimental.convert.source.storage import LocalStorage


Run = Callable[..., Any]


def shrink(path: Path) -> None:
    os.truncate(path, 5000)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def touch(path: Path) -> None:
    """As writing the same number of bytes in place does, however coarse the disk's clock is."""
    with path.open("r+b") as file:
        file.write(file.read(1))
    os.utime(path, ns=(1, 1))


CHANGES = {"shrinks": shrink, "is emptied": empty, "grows": grow, "is written to": touch}


def replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(bytes(path.stat().st_size))
    other.replace(path)


@pytest.fixture
def source(golden_copy: Callable[..., Path]) -> Path:
    return golden_copy("t5.1.1.tiny")


@pytest.fixture
def data(source: Path) -> Path:
    (path,) = source.glob("*.data-*")
    return path


@pytest.fixture
def when_reading(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None], str], None]:
    """`when_reading(change, how)`: before the 40th tensor is turned, `change()`; with `how` "by columns", all matrices
    are read so."""

    def prepare(change: Callable[[], None], how: str = "by blocks") -> None:
        if how == "by columns":
            monkeypatch.setattr(transfer, "WHOLE_BYTES", 0)
            monkeypatch.setattr(transfer, "BAND_BYTES", 1000)
        blocks = transfer.Transfer.blocks
        count = [0]

        def changing(self: Any, entry: Any) -> Iterator[np.ndarray]:
            for block in blocks(self, entry):
                count[0] += 1
                if count[0] == 40:
                    change()
                yield block

        monkeypatch.setattr(transfer.Transfer, "blocks", changing)

    return prepare


def assert_refused(result: Any, path: Path) -> None:
    sentence = result.err.splitlines()[-1].rpartition("\r")[2]
    assert result.status == 1, result.err
    assert sentence == f"error: {path} changed while it was read: run the command again when nothing writes to it."


@pytest.mark.parametrize("how", ["by blocks", "by columns"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_checkpoint(
    change: str, how: str, source: Path, data: Path, run: Run, tmp_path: Path, when_reading: Callable[..., None]
) -> None:
    when_reading(lambda: CHANGES[change](data), how)
    assert_refused(run("convert", source, tmp_path / "out"), data)
    assert os.listdir(tmp_path) == ["source"]


@pytest.mark.parametrize("how", ["by blocks", "by columns"])
def test_a_checkpoint_that_is_replaced_stays_what_it_was(
    how: str,
    source: Path,
    data: Path,
    run: Run,
    converted: Callable[[str], Path],
    tmp_path: Path,
    when_reading: Callable[..., None],
) -> None:
    when_reading(lambda: replace(data), how)
    assert run("convert", source, tmp_path / "out").status == 0
    before = converted("t5.1.1.tiny") / "model.safetensors"
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == before.read_bytes()


@pytest.mark.parametrize("change", [*CHANGES, "is replaced"])
def test_a_checkpoint_between_its_index_and_its_first_byte(
    change: str, source: Path, data: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from t5_experimental.convert.output import safetensors_writer as writer

    write = writer.write_tensors

    def late(*arguments: Any) -> Any:
        # The step is read before; with many other files in use this one is not kept open.
        arguments[1]._storage.close()
        CHANGES.get(change, replace)(data)
        return write(*arguments)

    monkeypatch.setattr(writer, "write_tensors", late)
    assert_refused(run("convert", source, tmp_path / "out"), data)
    assert os.listdir(tmp_path) == ["source"]


@pytest.mark.parametrize("how", ["by blocks", "by columns"])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("command", ["verify", "export"])
def test_a_converted_folder(
    command: str,
    change: str,
    how: str,
    source: Path,
    converted: Callable[[str], Path],
    run: Run,
    tmp_path: Path,
    when_reading: Callable[..., None],
) -> None:
    folder = Path(shutil.copytree(converted("t5.1.1.tiny"), tmp_path / "folder"))
    weights = folder / "model.safetensors"
    when_reading(lambda: CHANGES[change](weights), how)
    arguments = (source, folder) if command == "verify" else (folder, tmp_path / "out")
    assert_refused(run(command, *arguments), weights)
    assert sorted(os.listdir(tmp_path)) == ["folder", "source"]


@pytest.mark.parametrize("command", ["verify", "export"])
def test_a_converted_folder_that_is_replaced_stays_what_it_was(
    command: str,
    source: Path,
    converted: Callable[[str], Path],
    run: Run,
    tmp_path: Path,
    when_reading: Callable[..., None],
) -> None:
    """There are no checksums in it: half of one file and half of another would be taken for a model."""
    folder = Path(shutil.copytree(converted("t5.1.1.tiny"), tmp_path / "folder"))
    assert run("export", folder, tmp_path / "before").status == 0
    when_reading(lambda: replace(folder / "model.safetensors"))
    arguments = (source, folder) if command == "verify" else (folder, tmp_path / "out")
    assert run(command, *arguments).status == 0
    for path in (tmp_path / "before").iterdir() if command == "export" else ():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("command", ["convert", "inspect", "verify", "export"])
@pytest.mark.parametrize("which", ["index", "data", "weights"])
def test_a_disk_that_fails(
    which: str,
    command: str,
    source: Path,
    data: Path,
    converted: Callable[[str], Path],
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = Path(shutil.copytree(converted("t5.1.1.tiny"), tmp_path / "folder"))
    files = {"index": data.with_name("model.ckpt-800.index"), "data": data, "weights": folder / "model.safetensors"}
    read_files = {
        "convert": {"index", "data"},
        "inspect": {"index", "data"},
        "verify": {"index", "data", "weights"},
        "export": {"weights"},
    }
    read_at = local_files.read_at

    def failing(descriptor: int, *arguments: Any) -> int:
        if os.path.samestat(os.fstat(descriptor), files[which].stat()):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read_at(descriptor, *arguments)

    monkeypatch.setattr(local_files, "read_at", failing)
    arguments = {"convert": (source, tmp_path / "out"), "inspect": (source,), "verify": (source, folder)}
    result = run(command, *arguments.get(command, (folder, tmp_path / "out")))
    if which in read_files[command]:
        assert result.status == 1
        sentence = result.err.splitlines()[-1].rpartition("\r")[2]
        assert sentence == f"error: {files[which]} cannot be read: Input/output error."
        assert sorted(os.listdir(tmp_path)) == ["folder", "source"]
    else:
        assert result.status == 0


@pytest.mark.parametrize("change", [*CHANGES, "is replaced"])
def test_a_storage(change: str, tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(bytes(range(200)) * 100)
    storage = LocalStorage(tmp_path)
    first = storage.read("data", 0, 4000)
    CHANGES.get(change, replace)(path)
    if change == "is replaced":
        assert storage.read("data", 4000, 4000) == first
        storage.close()
    with pytest.raises(ConversionError, match=rf"^{path} changed while it was read: run the command again"):
        storage.read("data", 8000, 4000)
    assert first == (bytes(range(200)) * 100)[:4000]


def test_what_is_no_file_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    files = LocalFiles()
    for name in ("pipe", "folder"):
        with pytest.raises(ConversionError, match="is not a file"):
            files.size(tmp_path / name)
    # As a file that becomes one in between.
    (tmp_path / "file").write_bytes(b"1234")
    assert files.size(tmp_path / "file") == 4
    (tmp_path / "pipe").replace(tmp_path / "file")
    with pytest.raises(ConversionError, match="is not a file"):
        files.fill(tmp_path / "file", 0, np.empty(4, np.uint8))


def test_a_disk_that_gives_little_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "data"
    content = np.random.default_rng(0).integers(0, 256, 10_000, np.uint8)
    content.tofile(path)
    read_at = local_files.read_at
    monkeypatch.setattr(local_files, "read_at", lambda file, offset, target: read_at(file, offset, target[:7]))
    target = np.empty(9000, np.uint8)
    LocalFiles().fill(path, 500, target)
    assert np.array_equal(target, content[500:9500])
    rows = np.empty((50, 200), np.uint8)[:, :100]
    LocalFiles().fill_rows(path, 3, 190, rows)
    assert np.array_equal(rows, np.lib.stride_tricks.as_strided(content[3:], (50, 100), (190, 1)))
    monkeypatch.undo()
    monkeypatch.delattr(os, "preadv", raising=False)  # as on Windows
    other = np.empty(9000, np.uint8)
    LocalFiles().fill(path, 500, other)
    assert np.array_equal(target, other)


def test_files_are_closed(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"1234")
    files = LocalFiles()
    files.fill(tmp_path / "data", 0, np.empty(4, np.uint8))
    (opened,) = files._open.values()
    descriptor = opened.descriptor
    os.fstat(descriptor)
    del opened
    files.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
