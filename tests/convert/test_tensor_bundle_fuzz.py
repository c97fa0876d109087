# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints that are damaged, or made to do harm: our own clear error comes out, or the right numbers.

The tables here are put together byte by byte, by a writer of the format that knows nothing of the reader, so that a lie
can have a valid checksum. Edits of the files are a strategy of hypothesis; the same edits from a fixed seed show at the
end that the tests would notice if the reader left out one of its checks.
"""

import os
import random
import re
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cramjam
import google_crc32c
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5_experimental.convert.bundle import index as bundle_index
from t5_experimental.convert.bundle import reader as tensor_bundle
from t5_experimental.convert.bundle import sstable
from t5_experimental.convert.bundle.reader import TensorBundleReader
from t5_experimental.convert.errors import ConversionError
from tests.support.optional_tensorflow import import_tensorflow


Item = tuple[bytes, bytes]
Edit = tuple[str, int, bytes]


def varint(number: int) -> bytes:
    number %= 2**64
    low = number & 0x7F
    return bytes([low]) if number < 0x80 else bytes([low | 0x80]) + varint(number >> 7)


def message(*fields: tuple[int, int | bytes]) -> bytes:
    """A protocol buffer message of varints and submessages."""
    result = b""
    for number, value in fields:
        payload = varint(value) if isinstance(value, int) else varint(len(value)) + value
        result += varint(number << 3 | (0 if isinstance(value, int) else 2)) + payload
    return result


def entry(dtype: int = 1, shape: tuple[int, ...] = (), raw: bytes = b"", offset: int = 0, **changes: Any) -> bytes:
    """A BundleEntryProto; `changes` are any of `shard`, `size`, `slices`, `extra` bytes."""
    dims = b"".join(message((2, message((1, size)))) for size in shape)
    crc = google_crc32c.value(raw)
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    slices = [(7, b"".join(message((1, message((1, a), (2, b)))) for a, b in s)) for s in changes.get("slices", ())]
    place = message((3, changes.get("shard", 0)), (4, offset), (5, changes.get("size", len(raw))))
    return (
        message((1, dtype), (2, dims)) + place + b"\x35" + struct.pack("<I", masked) + message(*slices)
    ) + changes.get("extra", b"")


def header(shards: int = 1, endianness: int = 0, version: bytes = b"\x08\x01") -> Item:
    return b"", message((1, shards), (2, endianness), (3, version))


def block(items: list[Item], interval: int = 16) -> bytes:
    result, restarts, before = b"", [], b""
    for i, (key, value) in enumerate(items):
        shared = 0
        if i % interval == 0:
            restarts.append(len(result))
        else:
            shared = next(
                (k for k, (a, b) in enumerate(zip(before, key, strict=False)) if a != b), min(len(before), len(key))
            )
        result += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        before = key
    restarts = restarts or [0]
    return result + struct.pack(f"<{len(restarts) + 1}I", *restarts, len(restarts))


def sign(content: bytes, compression: int) -> bytes:
    crc = google_crc32c.value(content + bytes([compression]))
    return content + struct.pack("<BI", compression, ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def table(
    items: list[Item],
    per_block: int = 3,
    mangle: Callable[[str, bytes], bytes] = lambda _, content: content,
    snappy: bool = False,
    handle: Callable[[int, int], bytes] = lambda offset, size: varint(offset) + varint(size),
) -> bytes:
    """A table with few items in a block. `mangle` changes blocks ("data", "meta", "index") before they are signed."""
    result = b""
    index = []

    def put(kind: str, content: bytes) -> bytes:
        nonlocal result
        content = mangle(kind, content)
        stored = sign(bytes(cramjam.snappy.compress_raw(content)), 1) if snappy else sign(content, 0)
        place = handle(len(result), len(stored) - 5)
        result += stored
        return place

    for start in range(0, len(items), per_block):
        chunk = items[start : start + per_block]
        index.append((chunk[-1][0], put("data", block(chunk))))
    footer = put("meta", block([])) + put("index", block(index, 1))
    return result + footer.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)


W = np.arange(12, dtype=np.float32).reshape(3, 4)
B = np.arange(40, dtype=np.int16)
ARRAYS = {
    "a/w": W,
    "b": np.int64(7),
    "c/empty": np.zeros((0, 5), np.float32),
    "p": B.reshape(4, 10),
    "z": np.uint8([5]),
}
SLICES = [((0, 4), (0, 3)), ((0, 4), (3, 7))]


def slice_key(name: str, extents: tuple[tuple[int, int], ...]) -> bytes:
    """Only for numbers below 64, which are one byte."""
    return b"\0" + name.encode() + b"\0\1\1" + bytes([len(extents)]) + bytes(0x80 | n for e in extents for n in e)


def bundle() -> tuple[list[Item], list[bytes]]:
    """Items of an index, and two data files."""
    first, second = W.tobytes() + np.int64(7).tobytes(), bytes([5])
    items = [header(2)]
    for extents in SLICES:
        (_, _), (start, length) = extents
        raw = B.reshape(4, 10)[:, start : start + length].tobytes()
        items.append((slice_key("p", extents), entry(5, (4, length), raw, len(second), shard=1)))
        second += raw
    items += [
        (b"a/w", entry(1, (3, 4), W.tobytes())),
        (b"b", entry(9, (), np.int64(7).tobytes(), 48)),
        (b"c/empty", entry(1, (0, 5), b"", 56)),
        (b"p", entry(5, (4, 10), slices=SLICES)),
        (b"z", entry(4, (1,), bytes([5]), shard=1)),
    ]
    return items, [first, second]


@pytest.fixture(scope="module")
def write(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`write(index, shards)`: files of a checkpoint in an otherwise empty folder; returns the prefix."""
    folder = tmp_path_factory.mktemp("fuzz")

    def put(index: bytes, shards: list[bytes]) -> Path:
        for old in folder.iterdir():
            old.unlink()  # and not overwritten, because an old reader may still map it
        for k, content in enumerate(shards):
            (folder / f"m.data-{k:05d}-of-{len(shards):05d}").write_bytes(content)
        (folder / "m.index").write_bytes(index)
        return folder / "m"

    return put


def read_all(prefix: Path) -> dict[str, np.ndarray | None]:
    """What can be read, None for what cannot. Every error but ours escapes."""
    try:
        reader = TensorBundleReader(prefix)
    except ConversionError:
        return {}
    result: dict[str, np.ndarray | None] = {}
    for name, variable in reader.variables.items():
        try:
            result[name] = reader.read(name)
            blocks = b"".join(part.tobytes() for part in reader.blocks(name, 16))
            assert blocks == result[name].tobytes()
            assert (result[name].shape, result[name].dtype) == (variable.shape, variable.dtype)
            crcs = reader.checksums(name)
            assert len(crcs) != 1 or crcs == (google_crc32c.value(blocks),)
        except ConversionError:
            result[name] = None
    return result


def assert_right_or_refused(prefix: Path) -> None:
    """Nothing opens at all, or all names are there, and what can be read is right."""
    found = read_all(prefix)
    assert found.keys() in (set(), ARRAYS.keys())
    for name, array in found.items():
        assert array is None or (array.dtype == ARRAYS[name].dtype and np.array_equal(array, ARRAYS[name])), name


def apply(data: bytes, edits: list[Edit]) -> bytes:
    for kind, where, payload in edits:
        at = where % (len(data) + 1)
        if kind == "flip" and at < len(data):
            data = data[:at] + bytes([data[at] ^ (1 << len(payload) % 8)]) + data[at + 1 :]
        elif kind == "set":
            data = data[:at] + payload + data[at + len(payload) :]
        elif kind == "insert":
            data = data[:at] + payload + data[at:]
        elif kind == "varint":
            data = data[:at] + varint(int.from_bytes(payload, "big")) + data[at + 1 :]
        elif kind == "cut":
            data = data[:at]
        elif kind == "remove":
            data = data[:at] + data[at + 1 + len(payload) :]
        elif kind == "copy":
            data = data[:at] + data[len(payload) : len(payload) + 40] + data[at:]
    return data


KINDS = ["flip", "set", "insert", "varint", "cut", "remove", "copy"]
edits = st.lists(
    st.tuples(st.sampled_from(KINDS), st.integers(0, 2**12), st.binary(max_size=9)), min_size=1, max_size=4
)


def random_edits(generator: random.Random) -> list[Edit]:
    return [
        (generator.choice(KINDS), generator.randrange(2**12), generator.randbytes(generator.randrange(10)))
        for _ in range(generator.randint(1, 4))
    ]


def signed_edits(where: str, number: int, changes: list[Edit], snappy: bool) -> bytes:
    """An index of which one block, or one value in it, is edited and then gets a valid checksum."""
    items, _ = bundle()
    if where == "value":
        key, value = items[number % len(items)]
        items[number % len(items)] = key, apply(value, changes)
        return table(items, snappy=snappy)
    count = iter(range(100))

    def mangle(kind: str, content: bytes) -> bytes:
        chosen = kind == where and (kind != "data" or next(count) == number % 3)
        return apply(content, changes) if chosen else content

    return table(items, mangle=mangle, snappy=snappy)


@pytest.mark.parametrize("snappy", [False, True])
@pytest.mark.parametrize("per_block", [1, 3, 100])
def test_the_tables_made_here_are_read(per_block: int, snappy: bool, write: Callable[..., Path]) -> None:
    tf = import_tensorflow()
    items, shards = bundle()
    index = table(items, per_block, snappy=snappy)
    assert list(sstable.read_table(index)) == items
    prefix = write(index, shards)
    found = read_all(prefix)
    reader = tf.train.load_checkpoint(str(prefix))
    assert found.keys() == ARRAYS.keys() == reader.get_variable_to_shape_map().keys()
    for name, array in ARRAYS.items():
        assert np.array_equal(found[name], array)
        assert np.array_equal(reader.get_tensor(name), array)


def test_large_compressed_index(write: Callable[..., Path]) -> None:
    items = [header(), *((b"decoder/block_%06d/layer" % i, entry(4, (1,), b"x", i)) for i in range(20_000))]
    index = table(items, 4000, snappy=True)
    assert len(index) < 0.7 * len(table(items, 4000))
    reader = TensorBundleReader(write(index, [b"x" * 20_000]))
    assert len(reader.variables) == 20_000


@settings(max_examples=400, deadline=None)
@given(edits=edits)
def test_any_edit_of_the_index(edits: list[Edit], write: Callable[..., Path]) -> None:
    items, shards = bundle()
    assert_right_or_refused(write(apply(table(items), edits), shards))


@settings(max_examples=200, deadline=None)
@given(edits=edits, shard=st.integers(0, 1))
def test_any_edit_of_a_data_file(edits: list[Edit], shard: int, write: Callable[..., Path]) -> None:
    items, shards = bundle()
    shards[shard] = apply(shards[shard], edits)
    assert_right_or_refused(write(table(items), shards))


@settings(max_examples=1000, deadline=None)
@given(
    where=st.sampled_from(["value", "value", "data", "index", "meta"]),
    number=st.integers(0, 20),
    edits=edits,
    snappy=st.booleans(),
)
def test_any_edit_with_valid_checksums(
    where: str, number: int, edits: list[Edit], snappy: bool, write: Callable[..., Path]
) -> None:
    """Such a file may say something else than the original, but what it says has to be consistent."""
    read_all(write(signed_edits(where, number, edits, snappy), bundle()[1]))


@settings(max_examples=200, deadline=None)
@given(content=st.binary(max_size=60), size=st.integers(0, 2**33))
def test_any_compressed_bytes(content: bytes, size: int, write: Callable[..., Path]) -> None:
    read_all(write(table([header()], mangle=lambda _, raw: raw) + content, [b""]))
    with pytest.raises(sstable.Malformed):
        list(sstable.read_table(_footed(sign(varint(size) + content, 1))))


def _footed(blocks: bytes) -> bytes:
    """A table whose index is the one block given."""
    handle = varint(0) + varint(len(blocks) - 5)
    return blocks + (handle + handle).ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)


def _swap(old: bytes, new: bytes, kind: str = "data") -> Callable[[str, bytes], bytes]:
    return lambda k, content: content.replace(old, new, 1) if k == kind else content


def hostile() -> Iterator[tuple[str, bytes, str]]:
    """What is wrong, an index with valid checksums beside a data file of 100 bytes "x", and what the error says."""
    x = b"x" * 100

    def one(**changes: Any) -> bytes:
        options: dict[str, Any] = {"dtype": 4, "shape": (100,), "raw": x, **changes}
        return table([header(), (b"v", entry(**options))])

    good = one()
    yield "nothing in it", b"", "only 0 bytes"
    yield "no table", b"\0" * 100, "does not end as"
    yield "no magic", good[:-1] + b"\0", "does not end as"
    yield "no header", table([(b"v", entry(4, (100,), x))]), "header is missing"
    yield "no keys", table([]), "header is missing"
    yield "big-endian", table([header(endianness=1)]), "big-endian"
    yield "newer version", table([header(version=message((1, 9), (2, 2)))]), "newer version"
    yield "refused version", table([header(version=message((3, 4), (3, 1)))]), "newer version"
    yield "refused packed version", table([header(version=message((3, b"\4\1")))]), "newer version"
    yield "index outside", table([header()], handle=lambda a, b: varint(a + 10**6) + varint(b)), "outside"
    yield "huge block", table([header()], handle=lambda a, b: varint(a) + varint(2**63)), "outside"
    yield "varint of 65 bits", table([header()], handle=lambda a, b: b"\xff" * 9 + b"\2"), "64 bits"
    yield "varint without end", table([header()], handle=lambda a, b: b"\xff" * 20), "64 bits|cut off"
    long_handle = table([header()], mangle=lambda k, raw: block([(b"", b"\0\x0d\0")]) if k == "index" else raw)
    yield "handle too long", long_handle, "more bytes than it needs"
    twice = [(b"", b"\0\x13"), (b"a", b"\0\x13")]
    yield "block used twice", table([header()], mangle=lambda k, raw: block(twice) if k == "index" else raw), "overlap"
    unsorted = [header(), (b"v", entry(4, (100,), x)), (b"u", entry(4, (0,), b""))]
    yield "unsorted", table(unsorted), "not sorted"
    yield "unsorted blocks", table(unsorted, 1), "not sorted|list of blocks"
    yield "duplicate", table([header(), (b"v", entry(4, (100,), x)), (b"v", entry(4, (100,), x))]), "not sorted"
    yield "duplicate across blocks", table([header(), *2 * [(b"v", entry(4, (100,), x))]], 1), "not sorted"
    yield "empty block", table([header()], mangle=lambda k, raw: block([]) if k == "data" else raw), "list of blocks"
    restarts = struct.pack("<II", 0, 1)
    for name, lie in [
        ("restart count", struct.pack("<II", 0, 2**32 - 1)),
        ("restart beyond", struct.pack("<III", 0, 2**31, 2)),
        ("restart within", struct.pack("<III", 0, 3, 2)),
        ("restart not first", struct.pack("<II", 5, 1)),
        ("restart missing", struct.pack("<I", 0)),
    ]:
        yield name, table([header()], mangle=lambda k, raw, lie=lie: raw.replace(restarts, lie)), "restart"
    yield "shares too much", table([header()], mangle=lambda k, raw: b"\x05" + raw[1:]), "shares more"
    yield (
        "value too long",
        table([header()], mangle=lambda k, raw: raw[:2] + b"\x7f" + raw[3:]),
        "longer than its block",
    )
    long = [header(), *((b"k" * 4000 + b"%05d" % i, entry(4, (0,))) for i in range(2000))]
    everything = mangle_interval(long, 10**6)
    yield "keys share too much", everything, "far longer than the file"
    yield "claims too much", _footed(sign(varint(2**24) + b"\0" * 9, 1)), "claim to be 16777216"
    yield (
        "block too large",
        _footed(sign(bytes(cramjam.snappy.compress_raw(bytes(2**24 + 1))), 1)),
        "claim to be 16777217",
    )
    yield "unknown compression", _footed(sign(block([header()]), 2)), r"method \(2\)"
    yield "no compressed bytes", _footed(sign(b"", 1)), "cut off"
    yield "long name", table([header(), (b"k" * 4097, entry(4, (0,)))]), "name in it has 4097 bytes"
    # Joined one by one, these took hours.
    yield "shape in pieces", one(extra=message((2, message((2, b"")))) * 2**17), "131073 axes"
    yield "version in pieces", table([(b"", b"\x1a\x01\x08" * (2**17 + 1))]), "cut off"
    yield "name is no text", table([header(), (b"\xff", entry(4, (0,)))]), "not text"
    yield "name with a line end", table([header(), (b"a\nb", entry(4, (0,)))]), "printed"
    yield "no dtype", one(dtype=0), "has no dtype"
    yield "negative dtype", one(dtype=-4), "has no dtype"
    yield "unknown rank", one(extra=message((2, message((3, 1))))), "has no shape"
    yield "rank", one(shape=(1,) * 33), "33 axes"
    yield "negative size", one(shape=(-100,)), "negative"
    yield "two negative sizes", one(shape=(-10, -10)), "negative"
    yield "shape overflows", one(shape=(2**32, 2**32, 100)), "impossible shape"
    yield "empty shape overflows", one(shape=(2**62, 0, 2**62), raw=b""), "impossible shape"
    yield "shape and size", one(shape=(99,)), "100 bytes, which uint8"
    yield "itemsize", one(dtype=5), "100 bytes, which int16"
    yield "size overflows", one(size=2**63), "negative"
    yield "offset overflows", one(offset=2**63 - 1), "cut off"
    yield "negative offset", one(offset=-1), "negative"
    yield "beyond the file", one(offset=1), "cut off"
    yield "string beyond the file", one(dtype=7, offset=1), "cut off"
    yield "no such shard", one(shard=1), "data file 1 of 1"
    yield "negative shard", one(shard=-1), "data file -1 of 1"
    yield "no shards", table([header(0), (b"v", entry(4, (0,)))]), "data file 0 of 0"
    yield "missing shard", table([header(2**31 - 1), (b"v", entry(4, (0,)))]), "of-2147483647 is missing"
    yield "field cut off", one(extra=b"\x0a\x05"), "cut off"
    yield "group", one(extra=b"\x0b"), "wire type 3"
    yield "field 0", one(extra=b"\0\0"), "impossible number"
    two = [header(), (b"v", entry(4, (100,), x)), (b"w", entry(4, (1,), b"x", 99))]
    yield "bytes used twice", table(two), "share bytes"
    a, b = ((0, 10), (0, 4)), ((0, 10), (4, 6))
    parts = [(slice_key("v", a), entry(4, (10, 4), x[:40])), (slice_key("v", b), entry(4, (10, 6), x[:60], 40))]

    def cut(*slices: tuple[tuple[int, int], ...], found: list[Item] = parts, dtype: int = 4) -> bytes:
        whole = entry(dtype, (10, 10), slices=slices)
        return table(sorted([header(), *found, (b"v", whole)]))

    yield "slice missing", cut(a, b, found=parts[:1]), "is missing"
    yield "slice left over", cut(a), "add up|belongs to no variable"
    yield "slice twice", cut(a, a, b), "add up"
    yield "slices overlap", cut(a, a, found=parts[:1]), "add up"
    c = ((0, 10), (1, 6))
    yield "slices shifted", cut(a, c, found=[parts[0], (slice_key("v", c), parts[1][1])]), "two slices of v overlap"
    d = ((0, 10), (5, 6))
    yield "slice outside", cut(a, d, found=[parts[0], (slice_key("v", d), parts[1][1])]), "outside"
    yield "slice of other rank", cut(a, ((0, 10),)), "1 axes"
    yield "slice of other dtype", cut(a, b, dtype=6), "is missing"
    yield "slice of strings", cut(a, b, dtype=7), "not of numbers"
    yield "slice of other shape", cut(a, b, found=[parts[0], (parts[1][0], entry(4, (6, 10), x[:60], 40))]), "shape"
    yield "many slices", cut(*2000 * [a]), "2000 slices"
    yield "slice of a slice", cut(a, b, found=[parts[0], (parts[1][0], entry(4, (10, 6), slices=[b]))]), "is missing"


def mangle_interval(items: list[Item], interval: int) -> bytes:
    """A table of one block in which keys are written in full only so often."""
    return table(items, len(items), mangle=lambda k, raw: block(items, interval) if k == "data" else raw)


HOSTILE = {name: (index, says) for name, index, says in hostile()}


@pytest.mark.parametrize("name", HOSTILE)
def test_lies_with_valid_checksums(name: str, write: Callable[..., Path]) -> None:
    index, says = HOSTILE[name]
    prefix = write(index, [b"x" * 100])
    text, peak = refusal(prefix)
    assert re.search(says, text), text
    assert peak < 100 * len(index) + 2**18
    assert text.isprintable()
    assert text.endswith(".")
    assert str(prefix) in text


def refusal(prefix: Path) -> tuple[str, int]:
    """The error that a checkpoint is refused with, "" for none, and the bytes of memory that this took."""
    tracemalloc.start()
    try:
        TensorBundleReader(prefix)
    except ConversionError as error:
        return str(error), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    return "", 0


def test_too_many_entries_and_too_large_an_index(write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle_index, "MAX_ENTRIES", 7)
    items, shards = bundle()
    assert len(TensorBundleReader(write(table(items), shards)).variables) == 5
    monkeypatch.setattr(bundle_index, "MAX_ENTRIES", 6)
    with pytest.raises(ConversionError, match="more than 6 entries"):
        TensorBundleReader(write(table(items), shards))
    monkeypatch.setattr(tensor_bundle, "MAX_INDEX_BYTES", 100)
    with pytest.raises(ConversionError, match="more than 100 bytes"):
        TensorBundleReader(write(table(items), shards))


LIMITED = """
import resource, sys
from pathlib import Path
from t5_experimental.convert.errors import ConversionError
from t5_experimental.convert.bundle.reader import TensorBundleReader
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**26, used + 2**26))
for path in sorted(Path(sys.argv[1]).glob("*.index")):
    try:
        TensorBundleReader(path.with_suffix(""))
    except ConversionError:
        print("refused")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_lies_do_not_take_the_memory(tmp_path: Path) -> None:
    """All of them in a process that may have only 64 MB more than at its start; also what is not Python's counts."""
    for i, (index, _) in enumerate(HOSTILE.values()):
        (tmp_path / f"{i}.index").write_bytes(index)
        (tmp_path / f"{i}.data-00000-of-00001").write_bytes(b"x" * 100)
    run = subprocess.run(
        [sys.executable, "-c", LIMITED, tmp_path],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        cwd=tmp_path,
        check=False,
    )
    assert (run.returncode, run.stdout.count("refused")) == (0, len(HOSTILE)), run.stderr[-2000:]


def find_failure(write: Callable[..., Path]) -> str:
    """Runs the checks of this file with edits from a fixed seed, and tells what the first failure is, "" for none."""
    generator = random.Random(0)
    items, shards = bundle()
    index = table(items)
    try:
        for at in range(len(index)):
            assert_right_or_refused(write(apply(index, [("flip", at, bytes(at % 8))]), shards))
        for _ in range(150):
            changes = random_edits(generator)
            assert_right_or_refused(write(apply(index, changes), shards))
            assert_right_or_refused(write(index, [apply(shards[0], changes), shards[1]]))
            where = generator.choice(["value", "data", "index"])
            read_all(write(signed_edits(where, generator.randrange(9), changes, False), shards))
        # Last, since to follow their memory takes the longest.
        for name, (lie, _) in HOSTILE.items():
            text, peak = refusal(write(lie, [b"x" * 100]))
            if not text or peak > 100 * len(lie) + 2**18:
                return f"{name} is believed, or takes {peak} bytes"
    except Exception as error:
        return type(error).__name__
    return ""


class Agreeable(int):
    """A checksum that is never unequal to another."""

    def __ne__(self, other: object) -> bool:
        return False


def _unbounded(data: bytes, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[at] & 0x7F) << shift
        shift, at = shift + 7, at + 1
        if data[at - 1] < 0x80:
            return value, at


MUTANTS: dict[str, tuple[Any, str, Any]] = {
    "none": (sstable, "_MAGIC", sstable._MAGIC),
    "magic is not checked": (sstable, "_MAGIC", Agreeable(0)),
    "checksum of blocks": (sstable, "unmask", lambda stored: Agreeable(stored)),
    "checksum of data": (tensor_bundle.google_crc32c, "extend", lambda crc, data: Agreeable(0)),
    "keys of any length": (sstable, "_KEY_SLACK", 2**40),
    "an entry by itself": (bundle_index, "_check_entry", lambda name, entry: None),
    "numbers in messages": (bundle_index, "varint", _unbounded),
    "numbers in tables": (sstable, "varint", _unbounded),
    "slices fill the variable": (bundle_index, "_check_tiling", lambda name, shape, parts: None),
    "names are text": (bundle_index, "_decode", lambda key: key.decode()),
    "bytes used twice": (bundle_index, "pairwise", lambda parts: ()),
    "snappy's claims": (sstable, "_SNAPPY_FACTOR", 2**40),
    "bytes are in the file": (TensorBundleReader, "_check_files", lambda self: None),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_these_tests_notice_what_is_missing(
    name: str, write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    module, attribute, value = MUTANTS[name]
    monkeypatch.setattr(module, attribute, value)
    found = find_failure(write)
    monkeypatch.undo()
    assert (found == "") == (name == "none"), found
