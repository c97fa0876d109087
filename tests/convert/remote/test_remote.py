"""Reading files on a server: the bytes, the requests that it takes, and what happens when they fail."""

import _thread
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from t5_experimental.convert.bundle.index import read_index
from t5_experimental.convert.bundle.reader import TensorBundleReader
from t5_experimental.convert.errors import ConversionError
from t5_experimental.convert.source import transports
from t5_experimental.convert.source.checkpoint import local_copy, resolve
from t5_experimental.convert.source.read_ahead import Block, blocks_of
from t5_experimental.convert.source.remote import Patience, RemoteStorage, is_remote, label
from t5_experimental.convert.source.storage import FileMissing


SCHEMES = ("http", "gs", "s3")
GOLDEN = ("t5.1.1.tiny", "t5.1.1.tiny-bfloat16", "t5.1.n4w10.tiny", "t5.1.th.tiny-uneven")
MIB = 2**20


@pytest.mark.parametrize("scheme", SCHEMES)
def test_bytes_and_sizes(scheme: str, server: Any, impatient: Patience, megabytes: bytes) -> None:
    server.files["run/note with blank+.txt"] = "grün\n".encode()
    storage = RemoteStorage(server.address("run", scheme), impatient, block_bytes=MIB)
    assert storage.size("data") == len(megabytes)
    assert storage.exists("data")
    assert not storage.exists("checkpoint")
    for offset, length in ((0, 1), (5, MIB), (MIB - 3, 2 * MIB), (0, len(megabytes)), (len(megabytes) - 1, 1), (9, 0)):
        data = storage.read("data", offset, length)
        assert data.readonly
        assert data == megabytes[offset : offset + length]
    assert storage.head("note with blank+.txt", 99) == "grün\n".encode()
    assert storage.list() == (None if scheme == "http" else ["data", "note with blank+.txt"])
    with pytest.raises(ConversionError, match=r"^data in .* is cut off: it has"):
        storage.read("data", len(megabytes), 1)
    with pytest.raises(FileMissing, match=r"^checkpoint is missing from (http|gs|s3)://\S+/run: check the address"):
        storage.size("checkpoint")


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("kind", ["drop", "short", 503, 429, 500])
def test_passing_failures_are_survived(
    kind: str | int, scheme: str, server: Any, fault: Any, impatient: Patience, megabytes: bytes
) -> None:
    storage = RemoteStorage(server.address("run", scheme), impatient, block_bytes=MIB)
    storage.size("data")
    server.faults = [fault("data", kind, times=2)]
    assert storage.read("data", 0, MIB) == megabytes[:MIB]
    tries = server.data("data")
    assert len(tries) == 3
    if kind in ("drop", "short"):
        # What had come is not asked for again, save for what was lost in the library's buffers.
        assert [r.start for r in tries] == sorted(r.start for r in tries)
        assert tries[1].start > 0
        assert sum(r.sent for r in tries) < 1.5 * MIB


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(
    ("status", "message"), [(404, "is missing from"), (403, "does not let us read"), (400, "says")]
)
def test_final_answers_are_not_asked_twice(
    status: int, message: str, scheme: str, server: Any, fault: Any, impatient: Patience, megabytes: bytes
) -> None:
    server.faults = [fault("data", status, times=99)]
    storage = RemoteStorage(server.address("run", scheme), impatient)
    with pytest.raises(ConversionError, match=message) as caught:
        storage.size("data")
    assert "\n" not in str(caught.value)
    assert len(server.requests) == 1


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_file_that_changes_is_noticed(scheme: str, server: Any, impatient: Patience, megabytes: bytes) -> None:
    storage = RemoteStorage(server.address("run", scheme), impatient)
    storage.size("data")
    server.versions["run/data"] = 2
    with pytest.raises(ConversionError, match=r"data in .* changed while it was read"):
        storage.read("data", 0, 10)
    other = RemoteStorage(server.address("run", scheme), impatient)
    other.size("data")
    server.files["run/data"] = megabytes[:-1]
    with pytest.raises(ConversionError, match="changed while it was read"):
        other.read("data", 0, 10)


def test_a_server_without_range_requests(server: Any, fault: Any, impatient: Patience, megabytes: bytes) -> None:
    server.faults = [fault("", "whole", times=99)]
    storage = RemoteStorage(server.address("run"), impatient)
    assert storage.size("data") == len(megabytes)
    assert storage.read("data", 0, 100) == megabytes[:100]
    with pytest.raises(ConversionError, match="does not answer range requests"):
        storage.read("data", 100, 100)


def test_only_what_was_announced_comes_and_it_comes_ahead(server: Any, impatient: Patience, megabytes: bytes) -> None:
    storage = RemoteStorage(server.address("run"), impatient, block_bytes=MIB // 2, depth=2)
    # Two tensors with something long between them that is not needed, as full-size slots are.
    storage.expect([("data", 0, MIB), ("data", 3 * MIB, MIB), ("data", 4 * MIB, 77)])
    storage.size("data")
    assert storage.read("data", 0, 100) == megabytes[:100]
    server.wait_until(lambda: sum(r.sent for r in server.data()) >= 3 * MIB // 2)
    # They are asked for at the same time, so that they may arrive in any order.
    assert sorted(r.start for r in server.data()) == [0, MIB // 2, 3 * MIB]
    assert storage.read("data", 100, MIB - 100) == megabytes[100:MIB]
    assert storage.read("data", 3 * MIB, MIB) == megabytes[3 * MIB : 4 * MIB]
    assert storage.read("data", 4 * MIB, 77) == megabytes[4 * MIB :]
    assert sum(r.sent for r in server.data()) == 2 * MIB + 77
    assert len(server.data()) == 5
    storage.close()


def test_the_window_is_bounded(server: Any, impatient: Patience, megabytes: bytes) -> None:
    storage = RemoteStorage(server.address("run"), impatient, block_bytes=1024, depth=3)
    storage.expect([("data", 0, len(megabytes))])
    for offset in range(0, 60 * 1000, 1000):
        assert storage.read("data", offset, 1000) == megabytes[offset : offset + 1000]
        assert storage._ahead is not None
        assert len(storage._ahead._pending) <= 4
    # Going back is allowed, and fetches again.
    assert storage.read("data", 0, 10) == megabytes[:10]
    assert len(storage._ahead._pending) <= 4


def test_blocks() -> None:
    ranges = [("a", 0, 25), ("a", 26, 2), ("a", 40, 3), ("b", 43, 4), ("a", 30, 1), ("a", 60, 0)]
    assert blocks_of(ranges, block_bytes=10, gap_bytes=2) == [
        Block("a", 0, 10), Block("a", 10, 20), Block("a", 20, 28), Block("a", 40, 43), Block("b", 43, 47),
        Block("a", 30, 31),
    ]  # fmt: skip


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", GOLDEN)
def test_genuine_checkpoints_are_the_same_from_afar(
    name: str, scheme: str, server: Any, impatient: Patience, reference: Path
) -> None:
    folder = reference / "golden" / name
    server.put(folder, f"pretrained/{name}")
    found = resolve(server.address(f"pretrained/{name}", scheme), patience=impatient)
    storage, prefix = found.storage, found.prefix_name
    here = TensorBundleReader(folder / prefix)
    index = f"{prefix}.index"
    shards, tensors = read_index(bytes(storage.read(index, 0, storage.size(index))))
    places = [
        (f"{prefix}.data-{part.shard:05d}-of-{shards:05d}", part.offset, part.size)
        for tensor in tensors
        for part in here.parts(tensor.variable.name)
    ]
    storage.expect(places)
    for tensor, place in zip(tensors, places, strict=True):
        assert storage.read(*place) == here.read(tensor.variable.name).tobytes(), tensor.variable.name
    assert storage.head("operative_config.gin", 10**6).decode() == (folder / "operative_config.gin").read_text()
    assert storage.describe().endswith(f"/pretrained/{name}")
    assert len(server.data(".data-00000-of-00001")) == 1


def test_every_way_to_name_a_checkpoint(server: Any, impatient: Patience, reference: Path) -> None:
    server.put(reference / "golden" / "t5.1.1.tiny", "run")
    prefix = "model.ckpt-800"
    for source in ("run", "run/", f"run/{prefix}", f"run/{prefix}.index", f"run/{prefix}.data-00000-of-00001"):
        assert resolve(server.address(source), patience=impatient).prefix_name == prefix
    for source, scheme in (("run", "gs"), (f"run/{prefix}", "gs"), ("run/", "s3")):
        assert resolve(server.address(source, scheme), patience=impatient).prefix_name == prefix
    assert {r.status for r in server.requests} <= {200, 206}
    assert resolve(server.address("run?signature=x"), patience=impatient).storage.describe() == server.address("run")
    # Any name may be a prefix, and a folder without the file `checkpoint` does where it can be listed.
    del server.files["run/checkpoint"]
    for suffix in ("index", "data-00000-of-00001"):
        server.files[f"run/weights.{suffix}"] = server.files.pop(f"run/{prefix}.{suffix}")
    assert resolve(server.address("run/weights"), patience=impatient).prefix_name == "weights"
    assert resolve(server.address("run", "gs"), patience=impatient).prefix_name == "weights"
    with pytest.raises(ConversionError, match=r"/run holds no checkpoint, .*: give a checkpoint's folder, or a prefix"):
        resolve(server.address("run"), patience=impatient)
    server.files["run/other.index"] = b""
    with pytest.raises(ConversionError, match=r"holds 2 checkpoints .* one of the prefixes other, weights"):
        resolve(server.address("run", "s3"), patience=impatient)
    server.files["run/checkpoint"] = b'model_checkpoint_path: "gone-1"\n'
    with pytest.raises(ConversionError, match=r"names gone-1, whose \.index is not in the folder"):
        resolve(server.address("run"), patience=impatient)
    server.files["run/checkpoint"] = b"\xff"
    with pytest.raises(ConversionError, match="names no checkpoint"):
        resolve(server.address("run"), patience=impatient)


def test_a_copy_of_a_small_file(server: Any, impatient: Patience) -> None:
    server.files["vocabs/x/sentencepiece.model"] = b"pieces"
    with local_copy(server.address("vocabs/x/sentencepiece.model", "gs"), patience=impatient) as path:
        assert path.name == "sentencepiece.model"
        assert path.read_bytes() == b"pieces"
    assert not path.exists()


def test_names_show_no_secret() -> None:
    assert label("https://user:word@host.org:80/a%20b/c/?sig=secret#x") == "https://host.org:80/a b/c"
    assert is_remote("gs://bucket/x")
    assert not is_remote(Path("a/b"))
    with pytest.raises(
        ConversionError, match=r"^ftp://host/x is not an address that can be read: it begins with one of"
    ):
        RemoteStorage("ftp://u:p@host/x?token")
    with pytest.raises(ConversionError, match="is not an address"):
        RemoteStorage("gs://")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_missing_package_is_named(scheme: str, server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    package = {"http": "aiohttp", "gs": "gcsfs", "s3": "s3fs"}[scheme]
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, "gcsfs.core", None)
    with pytest.raises(ConversionError, match=rf'^{package}, .* pip install "t5-experimental\[remote\]"\.$'):
        RemoteStorage(server.address("run", scheme))


def test_a_process_ends_while_blocks_are_on_their_way(
    server: Any, fault: Any, megabytes: bytes, tmp_path: Path
) -> None:
    """They are never answered, and waited for as good as forever, so that only what gives them up can end."""
    code = f"""
import sys
from t5_experimental.convert import released
from t5_experimental.convert.source import checkpoint
from t5_experimental.convert.source.remote import Patience, RemoteStorage
from t5_experimental.convert.source.transports import Timeouts
assert not {{"aiohttp", "gcsfs", "s3fs", "botocore"}} & set(sys.modules)
patience = Patience(timeouts=Timeouts(10**6, 10**6))
storage = RemoteStorage({server.address("run")!r}, patience, block_bytes=2**20)
storage.expect([("data", 0, 4 * 2**20)])
print(len(storage.read("data", 0, 9)), flush=True)
sys.stdin.read()
"""
    server.faults = [fault("data", "mute", times=99, start=1)]
    command = [sys.executable, "-c", code]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process:
        try:
            server.wait_until(lambda: {r.start for r in server.data()} == {0, MIB, 2 * MIB})
            printed, errors = process.communicate("", timeout=600)
        finally:
            process.kill()
    assert (process.returncode, printed, errors) == (0, "9\n", "")
    assert [r.sent for r in server.data() if r.start] == [0, 0]


def test_an_interrupt_gives_up_at_once(server: Any, fault: Any, impatient: Patience, megabytes: bytes) -> None:
    """What is not answered as long as the test runs."""
    storage = RemoteStorage(server.address("run"), impatient)
    storage.size("data")
    server.faults = [fault("data", "mute", times=99)]

    def interrupt() -> None:
        server.wait_until(lambda: len(server.data("data")) == 1)
        _thread.interrupt_main()

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        storage.read("data", 0, 100)
    thread.join()
    assert [r.sent for r in server.data("data")] == [0]


def test_pauses_grow_and_differ() -> None:
    patience = Patience()
    for failures, longest in ((1, 0.5), (2, 1), (4, 4), (20, 30), (5000, 30)):
        pauses = [patience.pause(min(failures, 1000), 0) for _ in range(50)]
        assert len(set(pauses)) > 1
        assert longest / 2 <= min(pauses) <= max(pauses) <= longest
    assert patience.pause(1, 7) == 7
    assert patience.pause(1, 10**6) == 30
    assert isinstance(transports.error_of("x", "y", 503, "7"), transports.Transient)
