"""Downloads that are kept: complete or not there, continued where they broke, shared by several runs."""

import errno
import itertools
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from t5_experimental.convert.errors import ConversionError
from t5_experimental.convert.output import blocks
from t5_experimental.convert.source import download_cache
from t5_experimental.convert.source.checkpoint import resolve
from t5_experimental.convert.source.download_cache import CachedStorage
from t5_experimental.convert.source.remote import Patience, RemoteStorage


MIB = 2**20

Open = Callable[[], CachedStorage]


@pytest.fixture
def content(server: Any, pseudo_random: Callable[[int], bytes]) -> bytes:
    server.files["run/data"] = result = pseudo_random(3 * MIB + 5)
    return result


@pytest.fixture
def cached(server: Any, impatient: Patience, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Open:
    """`cached()`: the folder run/ as another run would open it; its data count as a large file."""
    monkeypatch.setattr(download_cache, "_SMALL_BYTES", MIB)

    def opened() -> CachedStorage:
        remote = RemoteStorage(server.address("run?signature=secret", "http"), impatient, block_bytes=MIB)
        return CachedStorage(remote, tmp_path / "cache")

    return opened


def kept(tmp_path: Path) -> list[Path]:
    """Files in the cache that are neither locks nor checksums."""
    return sorted(p for p in (tmp_path / "cache").rglob("*") if p.is_file() and p.suffix not in (".lock", ".sha256"))


@pytest.mark.parametrize("scheme", ["http", "gs", "s3"])
def test_the_second_run_downloads_nothing(
    scheme: str, server: Any, impatient: Patience, reference: Path, tmp_path: Path
) -> None:
    folder = reference / "golden" / "t5.1.th.tiny"
    server.put(folder, "run")
    for run in range(2):
        found = resolve(server.address("run", scheme), tmp_path / "cache", impatient)
        storage, prefix = found.storage, found.prefix_name
        for suffix in (".index", ".data-00000-of-00001"):
            name = prefix + suffix
            assert storage.read(name, 0, storage.size(name)) == (folder / name).read_bytes()
        assert storage.head("operative_config.gin", 10**6).decode() == (folder / "operative_config.gin").read_text()
        if run == 0:
            assert len(server.data()) == 4
            server.requests.clear()
    assert server.data() == []
    assert len(kept(tmp_path)) == 4


def test_a_broken_download_is_continued(cached: Open, server: Any, fault: Any, content: bytes, tmp_path: Path) -> None:
    storage = cached()
    server.faults = [fault("data", "drop", times=99, start=MIB)]
    with pytest.raises(ConversionError, match="cannot be read"):
        storage.read("data", 0, 1)
    (partial,) = kept(tmp_path)
    assert partial.name.endswith(".data.partial")
    have = partial.stat().st_size
    assert 0 < have < len(content)
    assert content.startswith(partial.read_bytes())
    server.faults = []
    server.requests.clear()
    assert cached().read("data", 7, MIB) == content[7 : 7 + MIB]
    # What a connection that was given up has still in it counts, too.
    assert sum(r.sent for r in server.data()) < len(content) - have // 2
    (complete,) = kept(tmp_path)
    assert complete.read_bytes() == content
    assert "secret" not in str(complete)


def test_other_bytes_on_the_server_are_other_files(cached: Open, server: Any, content: bytes, tmp_path: Path) -> None:
    assert cached().read("data", 0, 9) == content[:9]
    server.files["run/data"] = content[::-1]
    server.versions["run/data"] = 2
    assert cached().read("data", 0, 9) == content[::-1][:9]
    assert len(kept(tmp_path)) == 2


def test_a_file_of_another_size_is_not_trusted(cached: Open, content: bytes, tmp_path: Path) -> None:
    cached().read("data", 0, 9)
    (path,) = kept(tmp_path)
    path.write_bytes(content[:100])
    path.with_name(f"{path.name}.partial").write_bytes(content + b"more")
    assert cached().read("data", 0, len(content)) == content
    assert kept(tmp_path) == [path]


def test_concurrent_runs_download_once(cached: Open, server: Any, content: bytes) -> None:
    results: list[bool] = []
    threads = [
        threading.Thread(target=lambda: results.append(cached().read("data", 0, len(content)) == content))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert results == [True] * 4
    assert sum(r.sent for r in server.data()) == len(content)


def test_the_lock_of_a_killed_process_does_not_stay(cached: Open, content: bytes, tmp_path: Path) -> None:
    storage = cached()
    storage.folder.mkdir(parents=True)
    code = "import sys, os, filelock; filelock.FileLock(sys.argv[1]).acquire(); os.kill(os.getpid(), 9)"
    storage.read("data", 0, 1)
    (path,) = kept(tmp_path)
    path.unlink()
    subprocess.run([sys.executable, "-c", code, f"{path}.lock"], timeout=300, check=False)
    assert cached().read("data", 0, 9) == content[:9]


def test_a_stuck_download_is_not_waited_for(
    cached: Open, content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import filelock

    cached().read("data", 0, 1)
    (path,) = kept(tmp_path)
    path.unlink()
    monkeypatch.setattr(download_cache, "_STUCK_SECONDS", 0.5)
    with (
        filelock.FileLock(f"{path}.lock"),
        pytest.raises(ConversionError, match="another process has been downloading"),
    ):
        cached().read("data", 0, 9)


def test_disks_that_are_full(cached: Open, content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(download_cache.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
        with pytest.raises(ConversionError, match=r"0\.00 GB are needed for data, but the disk of .* make room"):
            cached().read("data", 0, 9)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(download_cache.os, "fsync", full)
    with pytest.raises(ConversionError, match="is full: make room and run the command again"):
        cached().read("data", 0, 9)
    monkeypatch.undo()


def test_a_folder_that_cannot_be_written(server: Any, impatient: Patience, content: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    storage = CachedStorage(RemoteStorage(server.address("run"), impatient), tmp_path / "file")
    with pytest.raises(ConversionError, match="cannot be written"):
        storage.read("data", 0, 9)


def zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


SPOILED = {
    "zeros": zeros,
    "a bit": flip,
    "its checksum is gone": lambda path: path.with_name(f"{path.name}.sha256").unlink(missing_ok=True),
    "its checksum is zeros": lambda path: path.with_name(f"{path.name}.sha256").write_bytes(bytes(65)) and None,
}


@pytest.fixture
def run_twice(
    server: Any, reference: Path, run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Callable[[], None]], Any]:
    """`run_twice(between)`: a conversion with a vocabulary and a cache, `between()`, and the conversion once more."""
    monkeypatch.setattr(download_cache, "_SMALL_BYTES", 400_000)  # less than the data
    server.put(reference / "golden" / "t5.1.th.tiny", "run")
    server.files["vocab/sentencepiece.model"] = (reference.parent / "data" / "restaurants.model").read_bytes()

    def call(between: Callable[[], None]) -> Any:
        command = ["convert", server.address("run"), "--vocab", server.address("vocab/sentencepiece.model")]
        first = run(*command, tmp_path / "first", "--cache-dir", tmp_path / "cache")
        assert first.status == 0, first.err
        between()
        server.requests.clear()
        return run(*command, tmp_path / "second", "--cache-dir", tmp_path / "cache")

    return call


def stored(tmp_path: Path, ending: str) -> Path:
    (path,) = (path for path in kept(tmp_path) if path.name.endswith(ending))
    return path


@pytest.mark.parametrize(
    ("name", "how"),
    [
        (".data-00000-of-00001", "zeros"),
        (".data-00000-of-00001", "a bit"),
        *itertools.product((".index", ".checkpoint", ".operative_config.gin", "sentencepiece.model"), SPOILED),
    ],
)
def test_a_damaged_copy_is_fetched_again(
    name: str, how: str, run_twice: Callable[..., Any], server: Any, tmp_path: Path
) -> None:
    result = run_twice(lambda: SPOILED[how](stored(tmp_path, name)))
    assert result.status == 0, result.err
    first, second = (tmp_path / folder for folder in ("first", "second"))
    assert sorted(os.listdir(first)) == sorted(os.listdir(second))
    for path in first.iterdir():
        if path.name not in ("README.md", "conversion.json"):  # the title of the card is the folder's name
            assert path.read_bytes() == (second / path.name).read_bytes(), path.name
    records = [json.loads((folder / "conversion.json").read_text()) for folder in (first, second)]
    for record in records:
        del record["crc32c"]["README.md"]
    assert records[0] == records[1]
    assert [request.name.endswith(name.removeprefix(".")) for request in server.data()] == [True]
    assert stored(tmp_path, name).read_bytes() == server.files[server.data()[0].name]


def test_a_damaged_copy_is_fetched_again_before_its_columns_are_read(
    run_twice: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of variables that are too large to be transposed in memory."""
    matrices: list[str] = []
    open_matrix = CachedStorage.open_matrix

    def noted(self: CachedStorage, name: str, *place: int) -> Any:
        matrices.append(name)
        return open_matrix(self, name, *place)

    monkeypatch.setattr(blocks, "WHOLE_BYTES", 0)
    monkeypatch.setattr(CachedStorage, "open_matrix", noted)
    data = ".data-00000-of-00001"
    result = run_twice(lambda: SPOILED["a bit"](stored(tmp_path, data)))
    assert result.status == 0, result.err
    assert matrices
    first, second = (tmp_path / folder / "model.safetensors" for folder in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("name", [".data-00000-of-00001", ".index"])
def test_what_is_damaged_on_the_server_is_fetched_again_once_and_its_copy_named(
    name: str, run_twice: Callable[..., Any], server: Any, tmp_path: Path
) -> None:
    def spoil() -> None:
        path = stored(tmp_path, name)
        zeros(path)
        (served,) = (served for served in server.files if served.endswith(name))
        server.files[served] = bytes(len(server.files[served]))

    result = run_twice(spoil)
    assert result.status == 1
    sentence = result.err.splitlines()[-1].rpartition("\r")[2]
    assert sentence.startswith("error: ")
    assert str(stored(tmp_path, name)) in sentence
    assert "fetched again" in sentence
    assert len(server.data(name)) == 1
    assert not (tmp_path / "second").exists()


def test_a_damaged_copy_is_left_to_the_run_that_reads_it(cached: Open, content: bytes, tmp_path: Path) -> None:
    """Two runs find the same damage: the second must not give up what the first has fetched."""
    assert cached().read("data", 0, 9) == content[:9]
    zeros(stored(tmp_path, "data"))
    first, second = cached(), cached()
    assert first.read("data", 0, 9) == second.read("data", 0, 9) == bytes(9)
    assert first.refetch("data")
    assert not first.refetch("data")
    assert first.read("data", 0, 9) == content[:9]
    fetched = stored(tmp_path, "data").stat().st_ino
    assert second.refetch("data")
    assert second.read("data", 0, 9) == content[:9]
    assert stored(tmp_path, "data").stat().st_ino == fetched


def test_small_files_of_a_server_without_versions_are_not_kept(
    cached: Open, server: Any, fault: Any, content: bytes
) -> None:
    server.files["run/checkpoint"] = b"one"
    server.faults = [fault("", "untagged", times=99)]
    assert cached().head("checkpoint", 9) == b"one"
    server.files["run/checkpoint"] = b"two"
    assert cached().head("checkpoint", 9) == b"two"
    assert cached().read("data", 0, 9) == content[:9]
    server.requests.clear()
    assert cached().read("data", 0, 9) == content[:9]
    assert server.data() == []
