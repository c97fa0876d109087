# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Fixtures of the converter's tests: checkpoints in memory and on disk, and the command."""

import json
import logging
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import google_crc32c
import numpy as np
import pytest

from t5_experimental.convert.cli import main
from t5_experimental.convert.tensors import ArrayMatrix, Variable
from tests.support.optional_tensorflow import import_tensorflow
from tests.support.quick_imports import QUICKLY


class MemoryReader:
    """A `CheckpointReader` over a dictionary; remembers the order in which it was read."""

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        self.arrays = dict(arrays)
        self.variables = {name: Variable(name, a.shape, a.dtype.name) for name, a in self.arrays.items()}
        self.reads: list[str] = []

    def checksums(self, name: str) -> tuple[int, ...]:
        return (google_crc32c.value(self.arrays[name].tobytes()),)

    def expect(self, names: Iterable[str]) -> None:
        self.expected = list(names)

    def read(self, name: str) -> np.ndarray:
        self.reads.append(name)
        return self.arrays[name]

    def blocks(
        self, name: str, max_bytes: int, memory: Callable[[int], np.ndarray] | None = None
    ) -> Iterator[np.ndarray]:
        array = self.read(name)
        data = np.frombuffer(array.tobytes(), np.uint8)
        step = max(1, max_bytes // array.itemsize) * array.itemsize
        for start in range(0, data.nbytes, step):
            block = data[start : start + step]
            if memory is not None:
                block = memory(len(block))
                block[...] = data[start : start + step]
            yield block

    def open_matrix(self, name: str, rows: int) -> ArrayMatrix:
        return ArrayMatrix(self.read(name).reshape(rows, -1))

    def check(self, name: str) -> None:
        """Never damaged."""


@pytest.fixture
def memory_reader() -> type[MemoryReader]:
    return MemoryReader


class TensorFlowReader:
    """TensorFlow's own reader, as a `CheckpointReader`: the judge of ours.

    Attributes:
        variables: all variables, sorted by name.
    """

    def __init__(self, prefix: Path) -> None:
        self._reader = import_tensorflow().train.load_checkpoint(str(prefix))
        shapes = self._reader.get_variable_to_shape_map()
        dtypes = self._reader.get_variable_to_dtype_map()
        self.variables = {name: Variable(name, tuple(shapes[name]), dtypes[name].name) for name in sorted(shapes)}

    def read(self, name: str) -> np.ndarray:
        return np.asarray(self._reader.get_tensor(name))


@pytest.fixture(scope="session")
def tensorflow_reader() -> type[TensorFlowReader]:
    return TensorFlowReader


@pytest.fixture
def golden_copy(reference: Path, tmp_path: Path) -> Callable[..., Path]:
    """`golden_copy(name, gin=True)`: a copy of a genuine checkpoint's folder, to be spoiled."""

    def copy(name: str, gin: bool = True) -> Path:
        folder = tmp_path / "source" / name
        shutil.copytree(reference / "golden" / name, folder)
        if not gin:
            (folder / "operative_config.gin").unlink()
        return folder

    return copy


@pytest.fixture(scope="session")
def read_checkpoint() -> Callable[[Path], dict[str, np.ndarray]]:
    """`read_checkpoint(folder)`: all variables of a checkpoint, through TensorFlow."""

    def read(folder: Path) -> dict[str, np.ndarray]:
        from t5_experimental.convert.source.checkpoint import resolve

        reader = TensorFlowReader(resolve(folder).prefix)
        return {name: reader.read(name) for name in reader.variables}

    return read


@pytest.fixture(scope="session")
def write_checkpoint() -> Callable[..., Path]:
    """`write_checkpoint(folder, arrays, prefix="model.ckpt-7")`: a checkpoint written by TensorFlow's own saver."""

    def write(folder: Path, arrays: Mapping[str, np.ndarray], prefix: str = "model.ckpt-7") -> Path:
        tf = import_tensorflow()
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("model.ckpt*"):
            old.unlink()
        names = sorted(arrays)
        tensors = [tf.constant(arrays[name]) for name in names]
        tf.raw_ops.SaveV2(
            prefix=str(folder / prefix), tensor_names=names, shape_and_slices=[""] * len(names), tensors=tensors
        )
        (folder / "checkpoint").write_text(f'model_checkpoint_path: "{prefix}"\n')
        return folder

    return write


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., SimpleNamespace]:
    """`run("inspect", source, ...)`: the command's exit status, output and errors."""

    def call(*arguments: object) -> SimpleNamespace:
        capsys.readouterr()  # what came before, such as a bar of transformers
        status = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return SimpleNamespace(status=status, out=captured.out, err=captured.err)

    return call


@pytest.fixture
def complaints(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What transformers and Python warn of during a test."""
    said: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    def show(message: Warning | str, *_: object, **__: object) -> None:
        said.append(str(message))

    logger = logging.getLogger("transformers")
    listener = Listener(logging.WARNING)
    monkeypatch.setattr(logger, "handlers", [*logger.handlers, listener])
    monkeypatch.setattr(warnings, "showwarning", show)
    return said


@pytest.fixture(scope="session")
def stock_sample(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Any]]:
    """`stock_sample(name)`: a folder of one of the kinds, and transformers' model of it."""
    from tests.support.stock_folders import FRAMEWORK_KINDS, KINDS, build, write

    root, made, kinds = tmp_path_factory.mktemp("stock"), {}, {**KINDS, **FRAMEWORK_KINDS}

    def make(name: str) -> tuple[Path, Any]:
        if name not in made:
            model = build(kinds[name])
            write(root / name, model, kinds[name])
            made[name] = model
        return root / name, made[name]

    return make


@pytest.fixture
def spoiled_stock(stock_sample: Callable[[str], tuple[Path, Any]], tmp_path: Path) -> Callable[..., Path]:
    """`spoiled_stock(name, **fields)`: a copy of a sample with other fields in its config.json."""

    def make(name: str = "t5-v1_1", **fields: Any) -> Path:
        folder = tmp_path / "source"
        shutil.copytree(stock_sample(name)[0], folder)
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
        return folder

    return make


WITHOUT_PACKAGE = """
import importlib.abc, sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "t5_experimental":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
"""


@pytest.fixture(scope="session")
def run_without_package(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """`run_without_package(script, *arguments)`: what a process printed, errors too, that cannot import the package."""

    def call(script: str, *arguments: object) -> str:
        folder = tmp_path_factory.mktemp("without-package")
        environment = {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(folder / "modules"), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, "-c", QUICKLY + WITHOUT_PACKAGE + script, *map(str, arguments)],
            cwd=folder,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
        )
        printed = done.stdout + done.stderr
        assert done.returncode == 0, printed
        return printed

    return call
