# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Writing checkpoints without TensorFlow: its own reader and ours find what was written, and its files are the same."""

import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import google_crc32c
import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from t5_experimental.convert.bundle import writer as bundle_writer
from t5_experimental.convert.bundle.index import NUMERIC_DTYPES
from t5_experimental.convert.bundle.reader import TensorBundleReader
from t5_experimental.convert.bundle.sstable import read_table, write_table
from t5_experimental.convert.bundle.writer import BundleWriter, write_state_file, zeros_crc32c
from t5_experimental.convert.source.checkpoint import resolve
from t5_experimental.convert.tensors import Variable
from tests.support.optional_tensorflow import import_tensorflow


DTYPES = [*NUMERIC_DTYPES.values()]
GOLDEN = sorted((Path(__file__).parents[1] / "reference" / "golden").glob("*/*.index"))

Arrays = dict[str, np.ndarray]


def make_array(dtype: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Random bits, also such as are no numbers; only truth values are not free."""
    kind = np.dtype(ml_dtypes.bfloat16) if dtype == "bfloat16" else np.dtype(dtype)
    count = int(np.prod(shape)) * kind.itemsize
    raw = np.random.default_rng(seed).integers(0, 2 if dtype == "bool" else 256, count, np.uint8)
    return raw.view(kind).reshape(shape)


def variables_of(arrays: Arrays) -> list[Variable]:
    return [Variable(name, array.shape, array.dtype.name) for name, array in arrays.items()]


def save(prefix: Path, files: Sequence[Arrays], block_bytes: int = 2**20) -> Path:
    """Writes one data file for each dictionary, the tensors in another order than they are announced in."""
    with BundleWriter(prefix, [variables_of(arrays) for arrays in files]) as writer:
        for arrays in reversed(files):
            for name, array in reversed(arrays.items()):
                raw = array.reshape(-1).view(np.uint8)
                crc = writer.write(name, (raw[k : k + block_bytes].data for k in range(0, len(raw), block_bytes)))
                assert crc == google_crc32c.value(raw.tobytes())
        assert writer.nbytes == sum(array.nbytes for arrays in files for array in arrays.values())
    return prefix


@pytest.fixture(scope="session")
def assert_holds(tensorflow_reader: Callable[[Path], Any]) -> Callable[[Path, Arrays], None]:
    """`assert_holds(prefix, arrays)`: both readers find exactly these arrays."""

    def check(prefix: Path, arrays: Arrays) -> None:
        expected = {variable.name: variable for variable in variables_of(arrays)}
        for reader in (tensorflow_reader(prefix), TensorBundleReader(prefix)):
            assert {**reader.variables} == expected
            for name, array in arrays.items():
                assert reader.read(name).tobytes() == array.tobytes(), name

    return check


names = st.lists(st.sampled_from(["encoder", "block_000", "layer", "a", "é", "_slot_vr", "x" * 300]), min_size=1).map(
    "/".join
)
# They are written in blocks of one byte, too.
shapes = st.lists(st.sampled_from([0, 1, 2, 3, 7, 200]), max_size=3).filter(lambda x: math.prod(x) < 10_000).map(tuple)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    files=st.lists(st.dictionaries(names, st.tuples(st.sampled_from(DTYPES), shapes), max_size=8), max_size=4),
    block_bytes=st.sampled_from([1, 100, 2**20]),
)
@example(files=[], block_bytes=1)
@example(files=[{dtype: (dtype, (2, 3)) for dtype in DTYPES}], block_bytes=7)
def test_random_checkpoints(
    files: list[dict[str, tuple[str, tuple[int, ...]]]],
    block_bytes: int,
    tmp_path: Path,
    assert_holds: Callable[[Path, Arrays], None],
) -> None:
    arrays = [
        {f"{name}/{k}": make_array(*kind, i) for i, (name, kind) in enumerate(file.items())}
        for k, file in enumerate(files)
    ]
    prefix = save(tmp_path / "model.ckpt-7", arrays, block_bytes)
    if files:  # TensorFlow refuses a checkpoint without a data file, and so does our reader
        assert_holds(prefix, {name: array for file in arrays for name, array in file.items()})


@pytest.mark.parametrize("index", GOLDEN, ids=[path.parent.name for path in GOLDEN])
def test_genuine_checkpoints_are_written_as_they_were(index: Path, tmp_path: Path) -> None:
    """The same bytes in both files."""
    reader = TensorBundleReader(index.with_suffix(""))
    prefix = tmp_path / index.stem
    save(prefix, [{name: reader.read(name) for name in reader.variables}])
    for end in (".index", ".data-00000-of-00001"):
        assert (prefix.parent / (prefix.name + end)).read_bytes() == index.with_suffix(end).read_bytes()


def test_an_index_of_many_blocks(tmp_path: Path) -> None:
    """Keys of very different lengths, one at a block's end being the beginning of the next: TensorFlow's own bytes."""
    tf = import_tensorflow()
    arrays = {f"decoder/block_{i // 14:05d}/layer_{i % 14:03d}/{'w' * (i % 60)}": np.int16([i]) for i in range(20_000)}
    arrays = {name: arrays[name] for name in sorted(arrays)}
    theirs, ours = tmp_path / "theirs", save(tmp_path / "ours", [arrays])
    tf.raw_ops.SaveV2(
        prefix=str(theirs),
        tensor_names=[*arrays],
        shape_and_slices=[""] * len(arrays),
        tensors=[tf.constant(array) for array in arrays.values()],
    )
    assert ours.with_suffix(".index").stat().st_size > 4 * 2**18
    for end in (".index", ".data-00000-of-00001"):
        assert ours.with_suffix(end).read_bytes() == theirs.with_suffix(end).read_bytes()


@settings(max_examples=200, deadline=None)
@given(
    items=st.dictionaries(
        st.binary(max_size=6) | st.lists(st.sampled_from([b"\0", b"a", b"b", b"\xff"]), max_size=9).map(b"".join),
        st.integers(0, 40).map(lambda size: b"v" * size),
        max_size=60,
    ),
    block_bytes=st.sampled_from([1, 30, 200, 2**18]),
)
def test_tables_of_any_keys(items: dict[bytes, bytes], block_bytes: int) -> None:
    """Blocks of any size, also of one entry each, whose keys end in 255 or are the beginning of the next."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("t5_experimental.convert.bundle.sstable._BLOCK_BYTES", block_bytes)
        table = write_table(sorted(items.items()))
    assert list(read_table(table)) == sorted(items.items())


def test_zeros_are_a_hole(
    tmp_path: Path, assert_holds: Callable[[Path, Arrays], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = tmp_path / "model.ckpt-1000000"
    arrays = {
        "a": np.zeros((3, 50), np.float32),
        "b": np.float32([1, 2, 3]),
        "c": np.zeros(2**23, np.float64),
        "d": np.zeros((), np.int16),
    }
    with BundleWriter(prefix, [variables_of(arrays)]) as writer:
        for name in ("a", "c", "d"):
            assert writer.write_zeros(name) == google_crc32c.value(arrays[name].tobytes())
        writer.write("b", [arrays["b"].tobytes()])
    write_state_file(prefix)
    assert resolve(tmp_path).prefix == prefix
    assert_holds(prefix, arrays)
    status = prefix.with_name(prefix.name + ".data-00000-of-00001").stat()
    assert status.st_size > 2**26
    assert status.st_blocks * 512 < 2**20


@pytest.mark.parametrize("size", [0, 1, 99, 100, 101, 1000, 1234])
def test_checksums_of_zeros(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the zeros are several blocks."""
    monkeypatch.setattr(bundle_writer, "_zero_block", lambda: bytes(100))
    assert zeros_crc32c.__wrapped__(size) == google_crc32c.value(bytes(size))


@pytest.mark.parametrize("blocks", [[], [bytes(7)], [bytes(5), bytes(4)], [bytes(8), b"", bytes(1)]])
def test_blocks_of_another_size(blocks: list[bytes], tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="w has 8 bytes, but its blocks have"),
        BundleWriter(tmp_path / "model.ckpt-7", [[Variable("w", (2,), "float32")]]) as writer,
    ):
        writer.write("w", blocks)
    assert not (tmp_path / "model.ckpt-7.index").exists()


def test_an_incomplete_checkpoint_has_no_index(tmp_path: Path) -> None:
    variables = [Variable(name, (), "float32") for name in "abc"]
    with (
        pytest.raises(ValueError, match="2 tensors were announced but not written, first a"),
        BundleWriter(tmp_path / "model.ckpt-7", [variables]) as writer,
    ):
        writer.write_zeros("b")
    assert [path.name for path in tmp_path.iterdir()] == ["model.ckpt-7.data-00000-of-00001"]


def test_wrong_use(tmp_path: Path) -> None:
    variable = Variable("w", (), "float32")
    with pytest.raises(ValueError, match="two variables are called w"):
        BundleWriter(tmp_path / "a", [[variable], [variable]])
    with pytest.raises(ValueError, match="w is of type string"):
        BundleWriter(tmp_path / "a", [[Variable("w", (), "string")]])
    with BundleWriter(tmp_path / "a", [[variable]]) as writer:
        writer.write_zeros("w")
        with pytest.raises(ValueError, match="w is written already"):
            writer.write("w", [bytes(4)])
        with pytest.raises(KeyError, match="v"):
            writer.write_zeros("v")


def test_offsets_follow_the_order_that_was_asked_for(tmp_path: Path) -> None:
    arrays = {name: np.float32([k] * k) for k, name in enumerate("dbca")}
    reader = TensorBundleReader(save(tmp_path / "model.ckpt-7", [arrays]))
    ends = [(reader.parts(name)[0].offset, reader.parts(name)[0].size) for name in arrays]
    assert ends[0][0] == 0
    assert all(offset + size == after for (offset, size), (after, _) in itertools.pairwise(ends))
