# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints of T5X and Orbax that are damaged, not complete, of another model, or that lead out of their folder:
each is refused in one sentence, and nothing is written."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore
from flax import serialization

from t5_experimental.convert import ConversionError, convert, inspect, verify
from tests.support.stock_folders import V11, Kind, build
from tests.support.t5x_folders import Arrays, as_t5x, scanned, write_orbax, write_t5x, write_zarr


Run = Callable[..., Any]
Leaves = dict[str, Any]

Q = "target/encoder/layers_0/attention/query/kernel"
FOLDER = Q.replace("/", ".")


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of each layout."""
    root, arrays = tmp_path_factory.mktemp("t5x"), as_t5x(build(Kind(V11)))
    write_t5x(arrays, root / "legacy")
    write_t5x(scanned(arrays), root / "scanned")
    write_orbax(arrays, root / "orbax")
    write_orbax(arrays, root / "zarr", use_ocdbt=False)
    return root


@pytest.fixture
def source(made: Path, tmp_path: Path) -> Callable[[str], Path]:
    """`source("legacy")`: a copy to be spoiled."""

    def copy(layout: str) -> Path:
        shutil.copytree(made / layout, tmp_path / "source")
        return tmp_path / "source"

    return copy


def written(folder: Path, edit: Callable[[Arrays], object]) -> Path:
    arrays = as_t5x(build(Kind(V11)))
    edit(arrays)
    return write_t5x(arrays, folder, inline=lambda name: "layers" in name)


def assert_refused(folder: Path, message: str, run: Run, tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match=message):
        convert(folder, tmp_path / "out")
    result = run("convert", folder, tmp_path / "out")
    assert result.status == 1
    *bars, said = result.err.strip().splitlines()
    assert said.startswith("error: ")
    assert not any("error" in bar for bar in bars)
    assert not (tmp_path / "out").exists()
    assert not any(path.name.startswith(".out") for path in tmp_path.iterdir())


# --- another model

EDITS: dict[str, tuple[Callable[[Arrays], object], str]] = {
    "missing": (lambda a: a.pop(Q), f"{Q} is missing from the checkpoint"),
    "no table": (
        lambda a: a.pop("target/encoder/relpos_bias/rel_embedding"),
        "no bias table tells how many heads|relpos_bias/rel_embedding is missing from the checkpoint",
    ),
    "extra": (
        lambda a: a.update({"target/extra": np.ones(2)}),
        r"target/extra, of shape \[2\], is a variable that no ru",
    ),
    "no layer 1": (
        lambda a: [a.pop(name) for name in [*a] if "decoder/layers_1" in name],
        "layers_1/pre_self_attention_layer_norm/scale is missing from the checkpoint, as is all of layer 1",
    ),
    "wrong shape": (
        lambda a: a.update({Q.replace("query", "key"): np.ones((32, 40), np.float32)}),
        r"layers_0/attention/key/kernel has the shape \[32, 40\], but \[32, 32\] is expected \(num_heads \* d_kv\)",
    ),
    "other width": (
        lambda a: a.update({"target/decoder/layers_1/mlp/wo/kernel": np.ones((40, 32), np.float32)}),
        r"layers_1/mlp/wo/kernel has the shape \[40, 32\], but \[48, 32\] is expected \(d_ff\)",
    ),
    "NaN": (lambda a: a[Q].fill(np.nan), f"{Q} holds infinities or NaNs"),
    "integers": (lambda a: a.update({Q: np.ones((32, 32), np.int32)}), "has the dtype int32, but weights are"),
    "a number": (lambda a: a.update({Q: 7}), f"{Q} is missing from the checkpoint"),
}


@pytest.mark.parametrize("name", EDITS)
def test_other_models_are_refused(name: str, run: Run, tmp_path: Path) -> None:
    edit, message = EDITS[name]
    assert_refused(written(tmp_path / "source", edit), message, run, tmp_path)


def test_a_scanned_array_without_an_axis_for_the_layers(run: Run, tmp_path: Path) -> None:
    arrays = scanned(as_t5x(build(Kind(V11))))
    arrays["target/encoder/encoder/mlp/wo/kernel"] = np.ones(8, np.float32)
    assert_refused(
        write_t5x(arrays, tmp_path / "source"), r"but its axis 1 should be that of the layers", run, tmp_path
    )


def test_layers_that_differ_in_number(run: Run, tmp_path: Path) -> None:
    arrays = scanned(as_t5x(build(Kind(V11))))
    name = "target/encoder/encoder/mlp/wo/kernel"
    arrays[name] = np.ascontiguousarray(arrays[name][:, :1])
    message = r"target/encoder/encoder/mlp/wo/kernel\[:, 1\] is missing from the checkpoint"
    assert_refused(write_t5x(arrays, tmp_path / "source"), message, run, tmp_path)


def test_per_layer_and_scanned_in_one(run: Run, tmp_path: Path) -> None:
    arrays = as_t5x(build(Kind(V11)))
    assert_refused(
        write_t5x({**arrays, **scanned(arrays)}, tmp_path / "source"), "the checkpoint mixes two models", run, tmp_path
    )


# --- damaged and not complete


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def change_metadata(folder: Path, **fields: Any) -> None:
    path = folder / FOLDER / ".zarray"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


DAMAGES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "part missing": ("legacy", lambda f: (f / FOLDER / "1.0").unlink(), "has 1 of the 2 files that its numbers are in"),
    "part of Orbax missing": ("zarr", lambda f: (f / FOLDER / "0.0").unlink(), "has 0 of the 1 files"),
    "part cut off": ("legacy", lambda f: cut(f / FOLDER / "0.0", 50), f"{FOLDER} in .* cannot be read"),
    "part empty": ("legacy", lambda f: cut(f / FOLDER / "0.0", 0), f"{FOLDER} in .* cannot be read"),
    "array missing": (
        "legacy",
        lambda f: shutil.rmtree(f / FOLDER),
        f"{Q} is said to be in {FOLDER}, which is missing",
    ),
    "array of Orbax missing": ("zarr", lambda f: shutil.rmtree(f / FOLDER), f"{Q} is said to be in {FOLDER}, which is"),
    "description missing": ("legacy", lambda f: (f / FOLDER / ".zarray").unlink(), "which is missing from"),
    "description cut off": ("legacy", lambda f: cut(f / FOLDER / ".zarray", 9), "is no complete zarr array"),
    "other sizes": ("legacy", lambda f: change_metadata(f, shape=[99, 32]), r"has \d of the \d files|has the shape"),
    "endless parts": (
        "legacy",
        lambda f: change_metadata(f, chunks=[2**40, 32]),
        "is no complete zarr array|neither T5X nor Orbax writes larger parts than arrays",
    ),
    "large parts": ("legacy", lambda f: change_metadata(f, chunks=[2**20, 32]), "writes larger parts than arrays"),
    "another codec": ("legacy", lambda f: change_metadata(f, compressor={"id": "x"}), "is no complete zarr array"),
    "text": (
        "legacy",
        lambda f: change_metadata(f, dtype="|S4"),
        "is no complete zarr array|has the dtype",
    ),
    "index cut off": ("legacy", lambda f: cut(f / "checkpoint", -20), "is no complete index of T5X .it ends too early"),
    "index of Orbax cut off": ("orbax", lambda f: cut(f / "_METADATA", -20), "is no complete index of Orbax"),
    "index of Orbax empty": ("zarr", lambda f: (f / "_METADATA").write_text("{}"), "has no table tree_metadata"),
    "index of Orbax of lists": (
        "zarr",
        lambda f: (f / "_METADATA").write_text('{"tree_metadata": {"a": []}}'),
        "is no complete index of Orbax",
    ),
    "database cut off": ("orbax", lambda f: cut(f / "manifest.ocdbt", 9), "has no complete database of arrays"),
    "database without data": (
        "orbax",
        lambda f: [shutil.rmtree(path) for path in [f / "d", *f.glob("ocdbt.process_0/d")] if path.exists()],
        "has no complete database|is no complete zarr array|cannot be read",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_folders_are_refused(name: str, source: Callable[[str], Path], run: Run, tmp_path: Path) -> None:
    layout, damage, message = DAMAGES[name]
    folder = source(layout)
    damage(folder)
    assert_refused(folder, message, run, tmp_path)


# --- what leads out of the folder


def spec(**fields: Any) -> Callable[[Leaves], None]:
    def edit(leaves: Leaves) -> None:
        leaves[Q] = {**leaves[Q], **fields}

    return edit


def kvstore(**fields: Any) -> Callable[[Leaves], None]:
    return lambda leaves: leaves[Q].update(kvstore={**leaves[Q]["kvstore"], **fields})


def text(value: Any) -> Callable[[Leaves], None]:
    return lambda leaves: leaves.update({Q: value})


MORE = "has a specification with more than T5X writes, which is not followed"
ELSEWHERE = "another place than its own"
INDEXES: dict[str, tuple[Callable[[Leaves], None], str]] = {
    "absolute path": (kvstore(path="/etc"), ELSEWHERE),
    "path upwards": (kvstore(path=f"../secret/{FOLDER}"), ELSEWHERE),
    "path upwards and back": (kvstore(path=f"../source/{FOLDER}"), ELSEWHERE),
    "another array": (kvstore(path=FOLDER.replace("query", "key")), ELSEWHERE),
    "empty path": (kvstore(path=""), ELSEWHERE),
    "no path": (lambda leaves: leaves[Q]["kvstore"].pop("path"), "does not say in which folder it is"),
    "two paths": (spec(path=FOLDER), "does not say in which folder it is"),
    "a number": (kvstore(path=7), "does not say in which folder it is"),
    "http": (kvstore(driver="http"), "asks for the driver 'zarr' on 'http', which is not used"),
    "another driver": (spec(driver="n5"), "asks for the driver 'n5' on 'gfile', which is not used"),
    "address": (spec(kvstore="http://localhost/x/"), MORE),
    "base": (spec(kvstore={"driver": "ocdbt", "base": "file:///etc/"}), MORE),
    "base address": (kvstore(base_url="http://localhost"), MORE),
    "create": (spec(create=True, delete_existing=True), MORE),
    "open": (spec(open=False), MORE),
    "transform": (spec(transform={}), MORE),
    "context": (spec(context={}), MORE),
    "placeholder upwards": (text(f"PLACEHOLDER://../secret/{FOLDER}"), ELSEWHERE),
    "placeholder of a root": (text("PLACEHOLDER:///etc"), ELSEWHERE),
    "text": (text("file:///etc/"), "is the text 'file:///etc/'"),
}


@pytest.mark.parametrize("name", INDEXES)
def test_an_index_cannot_lead_elsewhere(name: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edit, message = INDEXES[name]
    arrays = as_t5x(build(Kind(V11)))
    write_zarr(tmp_path / "secret" / FOLDER, arrays[Q])
    folder = write_t5x(arrays, tmp_path / "source", edit=edit)
    opened = watch(monkeypatch)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert_refused(folder, message, run, tmp_path)
    assert all(path.startswith(f"{folder}/") for path in opened)
    assert before == {path: path.stat().st_mtime_ns for path in before}


def watch(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Paths of all that tensorstore is asked to open."""
    paths: list[str] = []
    real = tensorstore.open

    def open_watched(given: Any, **options: Any) -> Any:
        paths.append(given["kvstore"]["path"])
        return real(given, **options)

    monkeypatch.setattr(tensorstore, "open", open_watched)
    return paths


@pytest.mark.skipif(sys.platform == "win32", reason="needs rights there")
@pytest.mark.parametrize("layout", ["legacy", "zarr", "orbax"])
@pytest.mark.parametrize("what", ["a folder", "a file"])
def test_links_are_not_followed(
    layout: str, what: str, source: Callable[[str], Path], run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = source(layout)
    inner = next(path for path in sorted(folder.iterdir()) if path.is_dir())
    target = inner if what == "a folder" else next(path for path in inner.rglob("*") if path.is_file())
    target.rename(tmp_path / "moved")
    target.symlink_to(tmp_path / "moved")
    opened = watch(monkeypatch)
    assert_refused(folder, "is a link, which is not followed, as it may lead out of the checkpoint", run, tmp_path)
    assert opened == []


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="these kinds of files are of Unix")
def test_a_pipe_is_not_waited_for(source: Callable[[str], Path], run: Run, tmp_path: Path) -> None:
    folder = source("legacy")
    (folder / FOLDER / "0.0").unlink()
    os.mkfifo(folder / FOLDER / "0.0")
    assert_refused(folder, "is no file, which is not followed", run, tmp_path)


@pytest.mark.parametrize("key", ["../secret", "a/../../secret", "/secret"])
def test_tensorstore_itself_refuses_keys_that_lead_out(key: str, tmp_path: Path) -> None:
    """A database names its data files itself."""
    (tmp_path / "secret").write_text("x")
    (tmp_path / "store").mkdir()
    store = tensorstore.KvStore.open({"driver": "file", "path": f"{tmp_path}/store/"}).result()
    with pytest.raises(ValueError, match="Invalid key"):
        store.read(key).result()


# --- packages, changes, and other places


@pytest.mark.parametrize(
    ("package", "layout"), [("tensorstore", "orbax"), ("tensorstore", "legacy"), ("msgpack", "legacy")]
)
def test_a_missing_package_is_named(
    package: str, layout: str, source: Callable[[str], Path], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    result = run("inspect", source(layout))
    if (package, layout) == ("msgpack", "orbax"):  # whose index is JSON
        assert result.status == 0
        return
    assert result.status == 1
    assert ("an Orbax checkpoint" if layout == "orbax" else "a checkpoint of T5X") in result.err
    assert f'{package}, which reads it, is not installed: pip install "t5-experimental[t5x]".' in result.err


@pytest.mark.parametrize("layout", ["legacy", "orbax"])
def test_a_source_that_changes_is_an_error(layout: str, source: Callable[[str], Path], tmp_path: Path) -> None:
    folder = source(layout)

    def touch(_: object) -> None:
        for path in folder.rglob("*"):
            os.utime(path, ns=(1, 1))

    with pytest.raises(ConversionError, match="changed while it was read: run the command again"):
        convert(folder, tmp_path / "out", report=touch)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_another_source_is_found_out(source: Callable[[str], Path], tmp_path: Path) -> None:
    folder = source("legacy")
    convert(folder, tmp_path / "out")
    array = as_t5x(build(Kind(V11)))[Q]
    array[3, 3] += 1
    shutil.rmtree(folder / FOLDER)
    write_zarr(folder / FOLDER, array)
    with pytest.raises(ConversionError, match=rf"first encoder.*q.weight, which differs from {Q}"):
        verify(folder, tmp_path / "out")


def test_a_finished_file_is_kept_unless_the_source_changed(source: Callable[[str], Path], tmp_path: Path) -> None:
    folder = source("legacy")
    reader = inspect(folder).reader
    before = reader.checksums(Q)
    assert inspect(folder).reader.checksums(Q) == before
    os.utime(folder / FOLDER / "0.0", ns=(1, 1))
    assert inspect(folder).reader.checksums(Q) != before


def test_one_array_is_in_memory_at_a_time(tmp_path: Path) -> None:
    """Also of an array that holds all layers: each is read once, though it becomes many tensors."""
    theirs = as_t5x(build(Kind(V11)))
    folder = write_t5x(scanned(theirs), tmp_path / "source")
    found = inspect(folder)
    reads: list[str] = []
    store = found.reader._store  # type: ignore[attr-defined]
    real, held = store.read, []

    def read(name: str) -> np.ndarray:
        reads.append(name)
        held.append(found.reader._held)  # type: ignore[attr-defined]
        return real(name)

    store.read = read
    for entry in found.plan.entries:
        found.reader.read(entry.source.name)
    assert len(reads) == len({*reads}) == sum(name.startswith("target") for name in scanned(theirs))
    assert held == [None] * len(reads)


def test_the_output_is_not_written_into_the_source(source: Callable[[str], Path]) -> None:
    folder = source("legacy")
    with pytest.raises(ConversionError, match="holds the checkpoint itself"):
        convert(folder, folder, overwrite=True)


def test_the_index_alone_is_one_file_of_it(source: Callable[[str], Path], run: Run) -> None:
    result = run("inspect", source("legacy") / "checkpoint")
    assert result.status == 1
    assert "is one file of a checkpoint of T5X: give the folder that it is in" in result.err


def test_a_leaf_that_is_a_list_is_refused(source: Callable[[str], Path], run: Run, tmp_path: Path) -> None:
    folder = source("legacy")
    tree = serialization.msgpack_restore((folder / "checkpoint").read_bytes())
    tree["optimizer"]["target"]["extra"] = [1, 2]
    (folder / "checkpoint").write_bytes(serialization.msgpack_serialize(tree))
    assert_refused(folder, r"optimizer/target/extra is \[1, 2\]", run, tmp_path)
