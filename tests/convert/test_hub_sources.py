# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Repositories of the Hugging Face hub as sources, from a hub of our own on this machine, through huggingface_hub."""

import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from transformers import AutoModelForSeq2SeqLM

from t5_experimental.convert import convert, inspect
from t5_experimental.convert.source.hub_folder import is_hub_name
from tests.support.stock_folders import assert_same_model


Run = Callable[..., Any]
Sample = Callable[[str], tuple[Path, Any]]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """What a hub has, and was asked for.

    Attributes:
        repositories: folder by name.
        refusals: status and code of the error by name.
        sent: names of the files that were downloaded.
        address: of the hub, as a URL.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Path] = {}
        self.refusals: dict[str, tuple[int, str]] = {}
        self.sent: list[str] = []
        self.address = ""

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and content of the answer to a request."""
        is_api = path.startswith("/api/models/")
        parts = path.removeprefix("/api/models/").lstrip("/").split("/")
        name, rest = "/".join(parts[:2]), parts[2:]
        if name in self.refusals:
            status, code = self.refusals[name]
            return status, {"X-Error-Code": code}, b"{}"
        if name not in self.repositories:
            return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
        if len(rest) > 1 and rest[1] not in ("main", COMMIT):
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        folder = self.repositories[name]
        files = sorted(file.name for file in folder.iterdir())
        if is_api and rest[:1] == ["tree"]:
            rows = [
                {"type": "file", "path": file, "size": (folder / file).stat().st_size, "oid": file} for file in files
            ]
            return 200, {}, json.dumps(rows).encode()
        if is_api:
            siblings = [{"rfilename": file} for file in files]
            return 200, {}, json.dumps({"id": name, "sha": COMMIT, "siblings": siblings}).encode()
        data = (folder / rest[-1]).read_bytes()
        return 200, {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha1(data).hexdigest()}"'}, data


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub, which huggingface_hub takes for the real one, and a cache of its own."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            status, headers, data = found.answer(path)
            if self.command == "GET" and status == 200 and not path.startswith("/api/"):
                found.sent.append(path.rpartition("/")[2])
            self.send_response(status)
            for name, value in {
                "Content-Type": "application/json",
                **headers,
                "Content-Length": str(len(data)),
            }.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found = Hub()
    threading.Thread(target=server.serve_forever, args=(0.005,), daemon=True).start()
    address = found.address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    monkeypatch.setattr(
        huggingface_hub.constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        address + "/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    yield found
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("name", ["google/t5-v1_1-base", "google/t5-base-lm-adapt@main"])
def test_a_repository_is_converted(name: str, hub: Hub, stock_sample: Sample, tmp_path: Path, run: Run) -> None:
    folder, theirs = stock_sample("t5-v1_1")
    hub.repositories[name.partition("@")[0]] = folder
    result = run("convert", name, "out", "--verify")
    assert result.status == 0, result.err
    assert_same_model(AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out"), theirs)
    assert f"folder of transformers `{name}`" in (tmp_path / "out" / "README.md").read_text()
    assert inspect(name).family == ("t5.1.1.lm100k" if "lm-adapt" in name else "t5.1.1")
    assert sorted(set(hub.sent)) == sorted(hub.sent)  # once, and then from the cache
    assert run("verify", name, "out").status == 0


@pytest.mark.parametrize("ending", ["", ", shards"])
def test_one_form_of_the_weights_is_downloaded(ending: str, hub: Hub, stock_sample: Sample, tmp_path: Path) -> None:
    folder = tmp_path / "repository"
    folder.mkdir()
    for name in ("t5-v1_1, bin in shards", "t5-v1_1, bin", f"t5-v1_1{ending}"):
        for path in stock_sample(name)[0].iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
    for name in ("tf_model.h5", "flax_model.msgpack", "rust_model.ot", "model.onnx", "notes.md"):
        (folder / name).write_bytes(b"large")
    hub.repositories["me/t5"] = folder
    convert("me/t5", tmp_path / "out", cache_dir=tmp_path / "kept")
    shards = {f"model-0000{shard}-of-00003.safetensors" for shard in (1, 2, 3)}
    wanted = shards if ending else {"model.safetensors"}
    assert {name for name in hub.sent if not name.endswith(".json")} == wanted
    assert not (tmp_path / "hub").exists()
    assert (tmp_path / "kept" / "models--me--t5").is_dir()


@pytest.mark.parametrize("how", ["told", "refused"])
def test_without_a_connection_the_cache_is_enough(
    how: str, hub: Hub, stock_sample: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    hub.repositories["me/t5"] = stock_sample("t5-v1_1")[0]
    convert("me/t5", tmp_path / "first")
    if how == "told":
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    else:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            closed = f"http://127.0.0.1:{free.getsockname()[1]}"
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", closed)
    convert("me/t5", tmp_path / "second")
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("first", "second")]
    assert weights[0] == weights[1]
    result = run("convert", "me/other", "out")
    assert result.status == 1
    assert "me/other is not on this disk, and the Hugging Face hub cannot be reached" in result.err


REFUSALS = {
    "me/unknown": (None, "me/unknown is neither a file or folder here nor a repository of the Hugging Face hub that"),
    "me/t5@v2": (None, "me/t5 has no branch, tag or commit v2: give one that it has."),
    "me/gated": ((403, "GatedRepo"), "me/gated is given to users who have accepted its terms: do so on its page"),
    "me/broken": ((500, ""), "the Hugging Face hub does not give me/broken"),
    "me/data": (None, "me/data is a repository of the Hugging Face hub without a model of transformers"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(name: str, hub: Hub, stock_sample: Sample, tmp_path: Path, run: Run) -> None:
    refusal, message = REFUSALS[name]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.json").write_text("{}")
    hub.repositories |= {"me/t5": stock_sample("t5-v1_1")[0], "me/data": tmp_path / "data"}
    if refusal:
        hub.refusals[name] = refusal
    result = run("convert", name, "out")
    assert result.status == 1
    assert message in result.err
    assert "Traceback" not in result.err
    assert not (tmp_path / "out").exists()


def test_what_is_a_path_is_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for path in ("runs/model.ckpt-1000", "/a/b", "./a/b", "../a", "a", "a/b/c", "gs://a/b", "a/b ", "~/b"):
        assert not is_hub_name(path)
    for path in ("a/b--c", "a/b..c", "a/b.", "a-/b", "a/b-"):
        assert not is_hub_name(path)
        result = run("inspect", path)
        assert (result.status, "does not exist: give a checkpoint's folder" in result.err) == (1, True)
    assert is_hub_name("google/t5-v1_1-base")
    assert "runs/model.ckpt-1000 does not exist" in run("inspect", "runs/model.ckpt-1000").err


def test_folders_that_hf_download_wrote_are_sources(hub: Hub, stock_sample: Sample, tmp_path: Path) -> None:
    """They hold a folder `.cache` of huggingface_hub's."""
    folder, stock = stock_sample("t5-v1_1")
    hub.repositories["google/t5"] = folder
    subprocess.run(
        [sys.executable, "-m", "huggingface_hub.cli.hf", "download", "google/t5", "--local-dir", "local"],
        env={**os.environ, "HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home")},
        check=True,
        capture_output=True,
    )
    assert (tmp_path / "local" / ".cache").is_dir()
    cached = huggingface_hub.snapshot_download("google/t5")  # a folder of links
    assert (Path(cached) / "model.safetensors").is_symlink()
    for name, source in (("first", tmp_path / "local"), ("second", Path(cached))):
        convert(source, tmp_path / name)
        assert_same_model(AutoModelForSeq2SeqLM.from_pretrained(tmp_path / name), stock)
