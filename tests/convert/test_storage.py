"""A folder on disk through the interface of all storages."""

import os
import sys
from pathlib import Path

import pytest

from t5_experimental.convert.errors import ConversionError
from t5_experimental.convert.source.storage import FileMissing, LocalStorage


def test_bytes_names_and_sizes(tmp_path: Path) -> None:
    (tmp_path / "b").write_bytes(bytes(range(256)))
    (tmp_path / "a.txt").write_text("grün")
    (tmp_path / "empty").touch()
    (tmp_path / "folder").mkdir()
    storage = LocalStorage(tmp_path)
    assert storage.list() == ["a.txt", "b", "empty"]
    assert storage.describe() == tmp_path.name
    assert storage.exists("b")
    assert not storage.exists("folder")
    assert storage.size("b") == 256
    data = storage.read("b", 3, 5)
    assert data.readonly
    assert bytes(data) == bytes(range(3, 8))
    assert storage.read("empty", 0, 0) == b""
    assert storage.head("a.txt", 99) == "grün".encode()
    assert storage.head("a.txt", 2) == b"gr"
    storage.expect([("b", 0, 256)])
    storage.close()
    assert bytes(data) == bytes(range(3, 8))


def test_errors(tmp_path: Path) -> None:
    (tmp_path / "b").write_bytes(b"1234")
    storage = LocalStorage(tmp_path)
    with pytest.raises(FileMissing, match="c is missing: copy all files"):
        storage.read("c", 0, 1)
    for offset, length in ((0, 5), (4, 1), (-1, 1), (2, -1), (2**70, 1)):
        with pytest.raises(ConversionError, match=r"b in .* is cut off: it has 4 bytes"):
            storage.read("b", offset, length)
    (tmp_path / "b").write_bytes(b"12345")
    with pytest.raises(ConversionError, match="changed while it was read"):
        storage.read("b", 0, 4)
    with (tmp_path / "b").open("r+b") as file:
        file.truncate(2**25)
    assert LocalStorage(tmp_path).head("b", 4) == b"1234"
    with pytest.raises(ConversionError, match="cannot be read"):
        LocalStorage(tmp_path / "none").list()


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
def test_reading_from_front_to_back_holds_little_in_memory(tmp_path: Path) -> None:
    size, step = 512 * 2**20, 16 * 2**20
    with (tmp_path / "big").open("wb") as file:
        file.truncate(size)
    storage = LocalStorage(tmp_path)

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")

    before, most = resident(), 0
    for offset in range(0, size, step):
        block = storage.read("big", offset, step)
        assert not any(block[::4096])
        most = max(most, resident() - before)
    assert most < 4 * step


def test_many_files(tmp_path: Path) -> None:
    for k in range(150):
        (tmp_path / str(k)).write_bytes(bytes([k]))
    storage = LocalStorage(tmp_path)
    views = [storage.read(str(k), 0, 1) for k in range(150)]
    assert [view[0] for view in views] == list(range(150))
    assert len(storage._files._open) <= 64
    # Those that were closed meanwhile are opened again, if they are what they were.
    assert storage.read("0", 0, 1) == b"\0"
    (tmp_path / "1").write_bytes(b"x")
    with pytest.raises(ConversionError, match="1 changed while it was read"):
        storage.read("1", 0, 1)
