"""Whole conversions from a server, through the command: the same folder as from disk, and no needless reads."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from t5_experimental.convert import released
from t5_experimental.convert.bundle.reader import TensorBundleReader
from t5_experimental.convert.readable import markdown
from t5_experimental.convert.source.checkpoint import resolve


Run = Callable[..., Any]


@pytest.mark.parametrize("scheme", ["http", "gs", "s3"])
def test_the_same_folder_from_everywhere(
    scheme: str, server: Any, converted: Callable[[str], Path], reference: Path, run: Run, tmp_path: Path
) -> None:
    server.put(reference / "golden" / "t5.1.th.tiny", "runs/t5.1.th.tiny")
    address = server.address("runs/t5.1.th.tiny", scheme)
    result = run("convert", address, tmp_path / "out")
    assert result.status == 0, result.err
    assert f"Source:     {address}/model.ckpt-" in result.out
    here = converted("t5.1.th.tiny")
    for name in ("model.safetensors", "config.json", "generation_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (here / name).read_bytes()
    assert f"`{address}/model.ckpt-" in (tmp_path / "out" / "README.md").read_text()


def test_nothing_is_downloaded_twice_with_a_cache(server: Any, reference: Path, run: Run, tmp_path: Path) -> None:
    server.put(reference / "golden" / "t5.1.1.tiny", "run")
    for output in ("first", "second"):
        server.requests.clear()
        result = run("convert", server.address("run"), tmp_path / output, "--cache-dir", tmp_path / "cache")
        assert result.status == 0, result.err
    assert server.data() == []
    first, second = (tmp_path / name / "model.safetensors" for name in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()


def test_slots_are_not_downloaded(server: Any, write_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    arrays = {}
    for layer in range(4):
        name = f"encoder/block_{layer:03d}/kernel"
        arrays[name] = random.normal(size=(256, 1024)).astype(np.float32)
        arrays[f"{name}_slot_v"] = random.normal(size=(256, 1024)).astype(np.float32)
    server.put(write_checkpoint(tmp_path / "written", arrays), "run")
    checkpoint = resolve(server.address("run", "gs"))
    reader = TensorBundleReader(checkpoint.prefix, checkpoint.storage)
    weights = [name for name in reader.variables if "_slot_" not in name]
    reader.expect(weights)
    for name in weights:
        assert np.array_equal(reader.read(name), arrays[name])
    assert sum(r.sent for r in server.data(".data-00000-of-00001")) == 4 * 2**20
    assert len(server.data(".data-00000-of-00001")) == 4


def test_a_damaged_tensor_is_named(server: Any, reference: Path, run: Run, tmp_path: Path) -> None:
    server.put(reference / "golden" / "t5.1.1.tiny", "run")
    name = next(name for name in server.files if ".data-" in name)
    content = bytearray(server.files[name])
    content[len(content) // 2] ^= 1
    server.files[name] = bytes(content)
    result = run("convert", server.address("run"), tmp_path / "out", "--with-optimizer")
    assert result.status == 1
    assert "fails its checksum" in result.err
    assert not (tmp_path / "out").exists()


def test_a_server_that_says_no(server: Any, fault: Any, reference: Path, run: Run, tmp_path: Path) -> None:
    server.put(reference / "golden" / "t5.1.1.tiny", "run")
    server.faults = [fault(".data-00000-of-00001", 403, times=99)]
    result = run("convert", server.address("run?token=secret"), tmp_path / "out")
    assert result.status == 1
    assert result.err.startswith("error: http://127.0.0.1")
    assert result.err.count("\n") == 1
    assert "secret" not in result.err
    assert not (tmp_path / "out").exists()


def test_released_names(
    server: Any, reference: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(released, "BUCKET", "gs://bucket")
    monkeypatch.setattr(released, "VOCABULARY", "gs://bucket/vocabs/sentencepiece.model")
    server.put(reference / "golden" / "t5.1.th.tiny", "pretrained_models/t5.1.th.base")
    server.files["vocabs/sentencepiece.model"] = (reference.parent / "data" / "restaurants.model").read_bytes()
    result = run("convert", "t5.1.th.base", tmp_path / "out")
    assert result.status == 0, result.err
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    listed = run("presets")
    assert listed.status == 0
    assert listed.out.startswith("name ")


def test_a_redirect_is_named_in_the_card(server: Any, fault: Any, reference: Path, run: Run, tmp_path: Path) -> None:
    folder = reference / "golden" / "t5.1.1.tiny"
    server.put(folder, "moved/here")
    for path in folder.iterdir():
        location = {"Location": f"/bucket/moved/here/{path.name}?signature=secret"}
        server.faults.append(fault(f"run/{path.name}", 302, times=10**6, headers=location))
    result = run("convert", server.address("run"), tmp_path / "out")
    assert result.status == 0, result.err
    note = f"The server redirected to {server.address('moved/here')}, which the bytes are from."
    assert note in result.out
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"- {markdown(note)}" in card
    assert "secret" not in card
    assert f"`{server.address('run')}/model.ckpt-800`" in card
