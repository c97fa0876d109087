# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Uploading, to a hub of our own on this machine that speaks the hub's protocol, through huggingface_hub itself."""

import base64
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from t5_experimental.convert.errors import ConversionError
from t5_experimental.convert.hub import check_repo_id


Run = Callable[..., Any]


class Hub:
    """What a hub got to know.

    Attributes:
        address: of the server.
        repositories: by name, what it was created with.
        files: content by repository and path.
        tokens: what callers identified themselves with.
        refusal: status and words of the answer to everything, instead of what was asked for.
    """

    def __init__(self, port: int) -> None:
        self.address = f"http://127.0.0.1:{port}"
        self.repositories: dict[str, dict[str, Any]] = {}
        self.files: dict[tuple[str, str], bytes] = {}
        self.tokens: set[str] = set()
        self.refusal: tuple[int, str] | None = None

    def answer(self, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        """Status and content of the answer to a request."""
        if self.refusal:
            return self.refusal[0], {"error": self.refusal[1]}
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization', 'me')}/{asked['name']}"
            url = {"url": f"{self.address}/{name}", "name": name}
            if name in self.repositories:
                return 409, {"error": "You already created this model repo", **url}
            self.repositories[name] = asked
            return 200, url
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        kind, _, rest = path.removeprefix("/api/models/").rpartition("/main")[0].rpartition("/")[::-1]
        if kind == "preupload":
            files = [{"path": file["path"], "uploadMode": "regular"} for file in json.loads(body)["files"]]
            return 200, {"files": [{**file, "shouldIgnore": False} for file in files]}
        assert kind == "commit", path
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                self.files[rest, line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        return 200, {"commitUrl": f"{self.address}/{rest}/commit/1", "commitOid": "1", "success": True}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub, which huggingface_hub takes for the real one, and a token for it."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            found.tokens.add(self.headers["Authorization"])
            body = self.rfile.read(int(self.headers["Content-Length"] or 0))
            status, content = found.answer(self.path.partition("?")[0], body)
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.send_header("X-Error-Message", content.get("error", ""))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found = Hub(server.server_port)
    threading.Thread(target=server.serve_forever, args=(0.005,), daemon=True).start()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", found.address)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    yield found
    server.shutdown()
    server.server_close()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_folder_is_uploaded(hub: Hub, converted: Callable[[str], Path], run: Run) -> None:
    folder = converted("t5.1.th.tiny-uneven")
    result = run("push", folder, "me/t5", "--private")
    assert result.status == 0, result.err
    assert f"Uploaded to {hub.address}/me/t5\n" in result.out
    assert hub.repositories["me/t5"]["visibility"] == "private"
    assert {path: data for (_, path), data in hub.files.items()} == contents(folder)
    assert {name for name, _ in hub.files} == {"me/t5"}
    assert hub.tokens == {"Bearer hf_test"}
    # Once more: the repository is there already.
    hub.files.clear()
    assert run("push", folder, "me/t5").status == 0
    assert len(hub.files) == len(contents(folder))


def test_converting_and_uploading(hub: Hub, reference: Path, run: Run, tmp_path: Path) -> None:
    source = reference / "golden" / "t5.1.1.tiny-legacy"
    result = run("convert", source, tmp_path / "out", "--push-to-hub", "me/t5")
    assert result.status == 0, result.err
    assert hub.repositories["me/t5"].get("visibility") != "private"
    assert {path: data for (_, path), data in hub.files.items()} == contents(tmp_path / "out")


def test_a_refusal_keeps_the_folder(hub: Hub, reference: Path, run: Run, tmp_path: Path) -> None:
    hub.refusal = (403, "You have no right to write to this namespace")
    source, output = reference / "golden" / "t5.1.1.tiny-legacy", tmp_path / "out"
    result = run("convert", source, output, "--push-to-hub", "google/t5", "--private")
    assert result.status == 1
    (error,) = [line for line in result.err.splitlines() if line.startswith("error: ")]
    assert error.startswith("error: the hub refused google/t5: 403, ")
    assert "no right to write to this namespace" in error
    assert error.endswith(f"the folder is kept, so try again with `t5-experimental push {output} google/t5 --private`.")
    assert (output / "model.safetensors").is_file()
    hub.refusal = None
    assert run("push", output, "google/t5").status == 0


def test_no_network(hub: Hub, converted: Callable[[str], Path], run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = converted("t5.1.1.tiny-legacy")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    for offline in (False, True):
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
        result = run("push", folder, "me/t5")
        assert result.status == 1
        assert "error: me/t5 could not be reached (" in result.err
        assert f"try again with `t5-experimental push {folder} me/t5`" in result.err


def test_without_a_token_nothing_is_converted(
    hub: Hub, reference: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    result = run("convert", reference / "golden" / "t5.1.1.tiny", tmp_path / "out", "--push-to-hub", "me/t5")
    assert result.status == 1
    assert result.err.startswith("error: there is no token of the Hugging Face hub: run `hf auth login`")
    assert os.listdir(tmp_path) == []


def test_a_bad_name_is_refused_before_converting(hub: Hub, reference: Path, run: Run, tmp_path: Path) -> None:
    result = run("convert", reference / "golden" / "t5.1.1.tiny", tmp_path / "out", "--push-to-hub", "only-a-name")
    assert result.status == 1
    assert "'only-a-name' is no name of a repository: write it as USER/NAME" in result.err
    assert os.listdir(tmp_path) == []
    result = run("convert", reference / "golden" / "t5.1.1.tiny", tmp_path / "out", "--private")
    assert "add --push-to-hub USER/NAME" in result.err


GOOD_NAMES = ["a/b", "me/t5.1.1-base", "A_b/c__d"]
NAMES = [
    *GOOD_NAMES, "a/b/c", "a", "/a", "a/", "a//b", "a b/c", "a/b.git", "a/-b", "a/b-", "a/.b",
    "a/b.", "a/b..c", "a/b--c", "ä/b", "a/b\n", "https://huggingface.co/a/b", "a/" + "b" * 97, "..", "../a",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_names(name: str) -> None:
    if name in GOOD_NAMES:
        check_repo_id(name)
    else:
        with pytest.raises(ConversionError, match="is no name of a repository"):
            check_repo_id(name)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda f: (f / "conversion.json").unlink(),
            r"has no conversion\.json: give a folder that the converter wrote",
        ),
        (lambda f: (f / "config.json").unlink(), r"has no config\.json"),
        (lambda f: (f / "model.safetensors").unlink(), r"has no model\.safetensors"),
        (lambda f: os.truncate(f / "model.safetensors", 5000), "is no complete safetensors file"),
        (lambda f: (f / "optimizer.safetensors").write_bytes(b"12345678"), "is no complete safetensors file"),
        (lambda f: (f / "modeling_t5_experimental.py").unlink(), r"has no modeling_t5_experimental\.py: convert again"),
        (lambda f: (f / "conversion.json").write_text('{"options": {}}'), "it names no source"),
        (lambda f: (f / "config.json").write_text('{"auto_map": 1}'), "does not say what belongs to it"),
        (shutil.rmtree, r"has no conversion\.json: give a folder that the converter wrote"),
    ],
)
def test_incomplete_folders(
    spoil: Callable[[Path], Any], message: str, hub: Hub, converted: Callable[[str], Path], run: Run, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(converted("t5.1.1.tiny-legacy"), tmp_path / "folder"))
    spoil(folder)
    result = run("push", folder, "me/t5")
    assert result.status == 1
    assert pytest.raises(ConversionError, match=message).matches(ConversionError(result.err)), result.err
    assert not hub.repositories
