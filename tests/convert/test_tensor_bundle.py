# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Reading checkpoints without TensorFlow: what TensorFlow writes is what we read, bit for bit."""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import google_crc32c
import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from t5_experimental.convert.bundle import index as bundle_index
from t5_experimental.convert.bundle.reader import TensorBundleReader
from t5_experimental.convert.errors import ConversionError
from tests.support.optional_tensorflow import import_tensorflow


DTYPES = [*bundle_index.NUMERIC_DTYPES.values()]


def make_array(dtype: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Random bits, also such as are no numbers; only truth values are not free."""
    kind = np.dtype(ml_dtypes.bfloat16) if dtype == "bfloat16" else np.dtype(dtype)
    count = int(np.prod(shape)) * kind.itemsize
    raw = np.random.default_rng(seed).integers(0, 2 if dtype == "bool" else 256, count, np.uint8)
    return raw.view(kind).reshape(shape)


def save(prefix: Path, arrays: Mapping[str, np.ndarray], slices: Mapping[str, str] | None = None) -> Path:
    """Writes one data file with TensorFlow."""
    tf = import_tensorflow()
    names = sorted(arrays)
    tf.raw_ops.SaveV2(
        prefix=str(prefix),
        tensor_names=[name.partition("@")[0] for name in names],
        shape_and_slices=[(slices or {}).get(name, "") for name in names],
        tensors=[tf.constant(arrays[name]) for name in names],
    )
    return prefix


def merge(prefix: Path, parts: list[Path]) -> Path:
    """Joins checkpoints to one with several data files, as a saver does whose variables are on several machines."""
    tf = import_tensorflow()
    tf.raw_ops.MergeV2Checkpoints(
        checkpoint_prefixes=[str(part) for part in parts], destination_prefix=str(prefix), delete_old_dirs=False
    )
    return prefix


@pytest.fixture(scope="session")
def assert_same(tensorflow_reader: Callable[[Path], Any]) -> Callable[[Path], TensorBundleReader]:
    """`assert_same(prefix)`: our reader and TensorFlow's agree about everything; returns ours."""

    def check(prefix: Path) -> TensorBundleReader:
        ours, theirs = TensorBundleReader(prefix), tensorflow_reader(prefix)
        assert {**ours.variables} == theirs.variables
        for name, variable in ours.variables.items():
            if variable.dtype == "string":
                continue
            expected, array = theirs.read(name), ours.read(name)
            assert array.dtype == expected.dtype
            assert array.shape == expected.shape == variable.shape
            assert array.flags.writeable
            assert array.tobytes() == expected.tobytes(), name
            if expected.size:
                rows = expected.shape[0] if expected.shape else 1
                columns = np.empty((rows, expected.size // rows), expected.dtype)
                ours.open_matrix(name, rows).copy_columns(0, columns)
                assert columns.tobytes() == expected.tobytes()
                if columns.shape[1] > 2:
                    some = np.empty((rows, 2 * columns.shape[1]), expected.dtype)[:, : columns.shape[1] - 2]
                    ours.open_matrix(name, rows).copy_columns(1, some)
                    assert some.tobytes() == columns[:, 1:-1].tobytes()
            assert b"".join(block.tobytes() for block in ours.blocks(name, 48)) == expected.tobytes()
            ours.check(name)
            if len(ours.parts(name)) == 1:
                assert ours.checksums(name) == (google_crc32c.value(expected.tobytes()),)
        places = [
            (p.shard, p.offset) for name in ours.variables for p in ours.parts(name)[:1] if ours.variables[name].shape
        ]
        assert places == sorted(places)
        return ours

    return check


GOLDEN = sorted((Path(__file__).parents[1] / "reference" / "golden").glob("*/*.index"))


@pytest.mark.parametrize("index", GOLDEN, ids=[path.parent.name for path in GOLDEN])
def test_genuine_checkpoints(index: Path, assert_same: Callable[[Path], TensorBundleReader]) -> None:
    assert len(assert_same(index.with_suffix("")).variables) > 100


def test_every_dtype_is_known_by_its_name() -> None:
    tf = import_tensorflow()
    known = {**bundle_index.NUMERIC_DTYPES, **bundle_index._LISTED}
    present = {v.as_datatype_enum: v.name for v in vars(tf.dtypes).values() if isinstance(v, tf.DType)}
    assert len(present) >= 23
    assert present == {number: known[number] for number in present}
    for number in known.keys() - present.keys():
        try:
            assert tf.dtypes.as_dtype(number).name == known[number]
        except TypeError:
            assert number >= 24, "only what is newer than this TensorFlow"


# At most 13 parts: of more, a name may be longer than the 4096 bytes that are supported.
names = st.lists(
    st.sampled_from(["encoder", "block_000", "layer", "a", "é", "_slot_vr", "x" * 300]), min_size=1, max_size=13
).map("/".join)
shapes = st.lists(st.sampled_from([0, 1, 2, 3, 7]), max_size=4).map(tuple)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    shards=st.lists(
        st.dictionaries(names, st.tuples(st.sampled_from(DTYPES), shapes), min_size=1, max_size=8),
        min_size=1,
        max_size=3,
    )
)
def test_random_checkpoints(
    shards: list[dict[str, tuple[str, tuple[int, ...]]]],
    tmp_path: Path,
    assert_same: Callable[[Path], TensorBundleReader],
) -> None:
    parts = []
    for k, shard in enumerate(shards):
        arrays = {f"{name}/{k}": make_array(*kind, seed=i) for i, (name, kind) in enumerate(shard.items())}
        parts.append(save(tmp_path / f"part{k}", arrays))
    reader = assert_same(merge(tmp_path / "model.ckpt-7", parts))
    assert len(reader.variables) == sum(map(len, shards))


def test_every_dtype(tmp_path: Path, assert_same: Callable[[Path], TensorBundleReader]) -> None:
    arrays = {
        f"{dtype}/{len(shape)}": make_array(dtype, shape) for dtype in DTYPES for shape in ((), (5,), (3, 0), (2, 3, 4))
    }
    reader = assert_same(save(tmp_path / "model.ckpt-7", arrays))
    assert {variable.dtype for variable in reader.variables.values()} == set(DTYPES)


def test_an_empty_data_file(tmp_path: Path, assert_same: Callable[[Path], TensorBundleReader]) -> None:
    prefix = save(tmp_path / "model.ckpt-7", {"nothing": np.zeros((0, 3), np.float32)})
    assert (tmp_path / "model.ckpt-7.data-00000-of-00001").stat().st_size == 0
    assert assert_same(prefix).read("nothing").shape == (0, 3)


def test_an_index_of_many_blocks(tmp_path: Path, assert_same: Callable[[Path], TensorBundleReader]) -> None:
    arrays = {f"decoder/block_{i // 14:05d}/layer_{i % 14:03d}/{'w' * (i % 60)}": np.int16([i]) for i in range(20_000)}
    prefix = save(tmp_path / "model.ckpt-7", arrays)
    # TensorFlow begins a block every 256 kB.
    assert (tmp_path / "model.ckpt-7.index").stat().st_size > 2 * 2**18
    reader = TensorBundleReader(prefix)
    assert reader.variables.keys() == arrays.keys()
    assert all(np.array_equal(reader.read(name), arrays[name]) for name in list(arrays)[::97])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_partitioned_variables_of_a_saver(
    axis: int, tmp_path: Path, assert_same: Callable[[Path], TensorBundleReader]
) -> None:
    tf = import_tensorflow()
    shape = (9, 20_000, 3)
    value = make_array("int8", shape)
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        partitioner = tf.compat.v1.fixed_size_partitioner(3 if axis != 1 else 7, axis)
        with tf.compat.v1.variable_scope("scope", partitioner=partitioner):
            tf.compat.v1.get_variable("w", initializer=lambda s, dtype, partition_info: tf.slice(
                value, partition_info.var_offset, s), shape=shape, dtype=tf.int8, use_resource=False)  # fmt: skip
        tf.compat.v1.get_variable("b", initializer=tf.constant(2.5), use_resource=False)
        session.run(tf.compat.v1.global_variables_initializer())
        saver = tf.compat.v1.train.Saver(sharded=True)
        prefix = Path(saver.save(session, str(tmp_path / "model.ckpt"), global_step=7))
    reader = assert_same(prefix)
    assert {*reader.variables} == {"b", "scope/w"}
    assert np.array_equal(reader.read("scope/w"), value)
    assert len(reader.parts("scope/w")) == (3 if axis != 1 else 7)
    assert len(reader.checksums("scope/w")) == len(reader.parts("scope/w"))


def test_slices_along_two_axes_and_in_several_files(
    tmp_path: Path, assert_same: Callable[[Path], TensorBundleReader]
) -> None:
    value = make_array("bfloat16", (100, 130))
    arrays, slices = {}, {}
    for k, (rows, columns) in enumerate([((0, 70), (0, 130)), ((70, 30), (0, 5)), ((70, 30), (5, 125))]):
        arrays[f"w@{k}"] = value[rows[0] : sum(rows), columns[0] : sum(columns)]
        whole = columns == (0, 130)
        slices[f"w@{k}"] = f"100 130 {rows[0]},{rows[1]}:" + ("-" if whole else f"{columns[0]},{columns[1]}")
    parts = [save(tmp_path / f"part{name[-1]}", {name: arrays[name]}, slices) for name in reversed(arrays)]
    reader = assert_same(merge(tmp_path / "model.ckpt-7", parts))
    assert reader.read("w").tobytes() == value.tobytes()


def test_strings_are_listed_but_not_read(tmp_path: Path, assert_same: Callable[[Path], TensorBundleReader]) -> None:
    prefix = save(tmp_path / "model.ckpt-7", {"s": np.array([b"one", b"three"]), "w": np.float32([1, 2])})
    reader = assert_same(prefix)
    assert reader.variables["s"].dtype == "string"
    for call in (reader.read, lambda name: reader.open_matrix(name, 2), reader.check):
        with pytest.raises(ConversionError, match=r"s in model\.ckpt-7 is of type string"):
            call("s")
    with pytest.raises(ConversionError, match="holds no variable x"):
        reader.read("x")


@pytest.fixture
def two_files(tmp_path: Path) -> Path:
    parts = [
        save(tmp_path / f"part{k}", {f"{k}/w": make_array("float32", (300,), k), f"{k}/b": make_array("int8", (5,), k)})
        for k in range(2)
    ]
    return merge(tmp_path / "model.ckpt-7", parts)


def test_blocks_are_whole_numbers_and_read_only(two_files: Path) -> None:
    reader = TensorBundleReader(two_files)
    blocks = reader.blocks("1/w", 403)
    assert [(len(block), block.flags.writeable) for block in blocks] == [(400, False)] * 3
    assert [len(block) for block in reader.blocks("1/w", 1)] == [4] * 300


@pytest.mark.parametrize("at", [0, 5, 700, 1204])
def test_a_changed_byte_is_noticed_before_the_last_block(at: int, two_files: Path) -> None:
    path = two_files.with_name("model.ckpt-7.data-00001-of-00002")
    data = bytearray(path.read_bytes())
    data[at] ^= 16
    path.write_bytes(data)
    reader = TensorBundleReader(two_files)
    spoiled, whole = ("1/b", "1/w") if at < 5 else ("1/w", "1/b")
    reader.check(whole)
    received = []
    with pytest.raises(ConversionError, match=f"{spoiled} fails its checksum: bytes .*00001-of-00002"):
        received.extend(reader.blocks(spoiled, 400))
    assert len(received) == (0 if at < 5 else 2)
    for call in (reader.read, reader.check, lambda name: reader.open_matrix(name, 1)):
        with pytest.raises(ConversionError, match="checksum"):
            call(spoiled)


def test_files_that_are_not_as_they_should_be(two_files: Path) -> None:
    path = two_files.with_name("model.ckpt-7.data-00001-of-00002")
    data = path.read_bytes()
    reader = TensorBundleReader(two_files)
    path.write_bytes(data + b"\0")
    with pytest.raises(ConversionError, match="changed while"):
        reader.read("1/w")
    TensorBundleReader(two_files).check("1/w")
    path.write_bytes(data[:-1])
    with pytest.raises(
        ConversionError, match="00001-of-00002 is cut off: it has 1204 bytes, but 1/w ends at byte 1205"
    ):
        TensorBundleReader(two_files)
    path.unlink()
    with pytest.raises(ConversionError, match="00001-of-00002 is missing"):
        TensorBundleReader(two_files)
    path.mkdir()
    with pytest.raises(ConversionError, match="is not a file"):
        TensorBundleReader(two_files)
    with pytest.raises(ConversionError, match=r"other\.index is missing"):
        TensorBundleReader(two_files.with_name("other"))


STREAM = """
import resource, sys
from pathlib import Path
from t5_experimental.convert.bundle.reader import TensorBundleReader
reader = TensorBundleReader(Path(sys.argv[1]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
total = sum(len(block) for name in reader.variables for block in reader.blocks(name))
reader.check("w")
print(total, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="resident memory is measured in kB there")
def test_streaming_takes_little_memory(tmp_path: Path) -> None:
    prefix = save(tmp_path / "model.ckpt-7", {"w": np.zeros((20, 2**21), np.float64)})
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    run = subprocess.run(
        [sys.executable, "-c", STREAM, prefix],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
        check=True,
    )
    total, grown = map(int, run.stdout.split())
    assert total == 320 * 2**20
    # Two blocks of 16 MB in kB, and what the system maps around them.
    assert grown < 48 * 1024
