"""A server on this machine that speaks plain HTTP, Google's and Amazon's protocol, and fails on request."""

import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from t5_experimental.convert.source.remote import Patience
from t5_experimental.convert.source.transports import Timeouts


BUCKET = "bucket"

MINUTES = Timeouts(connect=300, read=300)


@dataclass
class Fault:
    """What goes wrong with the next `times` answers about bytes from `start` on of files whose name ends in `name`.

    `kind` is a status, or "drop" (the connection ends after half of the bytes), "short" (half of the bytes, as if these
    were all), "mute" (nothing until the server ends), "drip" (the head and three bytes, each by itself, and nothing
    more until the server ends), "whole" (the range is ignored), "untagged" (nothing tells the version). `headers` come
    in addition to the usual ones, or in their place.
    """

    name: str
    kind: str | int
    times: int = 1
    start: int = 0
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Request:
    """A request for a file's bytes, and the bytes sent as an answer."""

    name: str
    start: int
    stop: int
    status: int = 0
    sent: int = 0
    headers: dict[str, str] = field(default_factory=dict)


class Server:
    """Attributes: `files` by path in the bucket, `versions` of them, `faults` to come, `requests` so far."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.versions: dict[str, int] = {}
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.lock = threading.Condition(threading.RLock())
        self.ended = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # else a body waits until its head is acknowledged, 40 ms

            def do_GET(self) -> None:
                server.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.005}, daemon=True)
        self.thread.start()

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.http.server_address[1]}"

    def address(self, path: str, scheme: str = "http") -> str:
        return f"{self.origin}/{BUCKET}/{path}" if scheme == "http" else f"{scheme}://{BUCKET}/{path}"

    def put(self, folder: Path, path: str) -> None:
        """Serves the files of a folder."""
        for file in folder.iterdir():
            self.files[f"{path}/{file.name}"] = file.read_bytes()

    def data(self, name: str = "") -> list[Request]:
        """Requests for more than the one byte that asks whether a file is there."""
        with self.lock:
            return [r for r in self.requests if r.name.endswith(name) and r.stop - r.start > 1]

    def wait_until(self, predicate: Callable[[], bool]) -> None:
        """Returns when the record of requests is as wanted; minutes are for machines that stand still."""
        with self.lock:
            assert self.lock.wait_for(predicate, 300), self.requests

    def close(self) -> None:
        self.ended.set()
        self.http.shutdown()
        self.http.server_close()
        self.thread.join(10)

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        parts = urlsplit(handler.path)
        query = parse_qs(parts.query)
        google = re.match(rf"/storage/v1/b/{BUCKET}/o/?\Z", parts.path)
        if google or (parts.path.strip("/") == BUCKET and "list-type" in query):
            self.send_list(handler, query["prefix"][0], bool(google))
            return
        media = re.match(rf"/download/storage/v1/b/{BUCKET}/o/(.+)\Z", parts.path)
        name = unquote(media[1] if media else parts.path.removeprefix(f"/{BUCKET}/"))
        self.send_file(handler, name)

    def send_list(self, handler: BaseHTTPRequestHandler, prefix: str, google: bool) -> None:
        names = [name for name in sorted(self.files) if name.startswith(prefix)]
        if google:
            items = [{"name": name, "size": str(len(self.files[name])), "bucket": BUCKET} for name in names]
            body, kind = json.dumps({"items": items}).encode(), "application/json"
        else:
            rows = "".join(
                f"<Contents><Key>{name}</Key><Size>{len(self.files[name])}</Size></Contents>" for name in names
            )
            head = '<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            body, kind = f"{head}<KeyCount>{len(names)}</KeyCount>{rows}</ListBucketResult>".encode(), "application/xml"
        handler.send_response(200)
        handler.send_header("Content-Type", kind)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    def send_file(self, handler: BaseHTTPRequestHandler, name: str) -> None:
        content = self.files.get(name)
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", handler.headers.get("Range", ""))
        size = len(content) if content is not None else 0
        start, stop = (int(asked[1]), min(int(asked[2]) + 1, size)) if asked else (0, size)
        request = Request(name, start, stop, headers=dict(handler.headers))
        with self.lock:
            self.requests.append(request)
            self.lock.notify_all()
            fault = next((f for f in self.faults if name.endswith(f.name) and start >= f.start and f.times > 0), None)
            fault = fault or Fault("", "")
            fault.times -= 1
        if fault.kind == "mute":
            self.ended.wait()
            handler.close_connection = True
            return
        status = 404 if content is None else 206 if asked else 200
        if isinstance(fault.kind, int):
            status = fault.kind
        elif status == 206 and start >= size:
            status = 416
        elif fault.kind == "whole":
            status, start, stop = 200, 0, size
        request.status = status
        body = content[start:stop] if content is not None and status < 300 else b""
        if fault.kind == "short":
            body = body[: len(body) // 2]
        headers = {"Content-Length": str(len(body))}
        if fault.kind != "untagged":
            version = self.versions.get(name, 1)
            headers |= {"ETag": f'"{version}"', "x-goog-generation": str(version)}
        if status == 206:
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        if status == 416:
            headers["Content-Range"] = f"bytes */{size}"
        handler.send_response(status)
        for key, value in (headers | fault.headers).items():
            handler.send_header(key, value)
        handler.end_headers()
        if fault.kind == "drop":
            body = body[: len(body) // 2]
            handler.close_connection = True
        if fault.kind == "drip":
            for k in range(3):
                handler.wfile.write(body[k : k + 1])
            self.ended.wait()
            handler.close_connection = True
            return
        # Before they are sent: a test that has the bytes may look at once.
        with self.lock:
            request.sent = len(body)
            self.lock.notify_all()
        try:
            handler.wfile.write(body)
            if fault.kind == "drop":
                handler.connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            handler.close_connection = True


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    """The server; gs:// and s3:// addresses lead to it, anonymously, and nothing else is reachable."""
    running = Server()
    for variable in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_ROLE_ARN"):
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.delenv(variable.lower(), raising=False)
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", running.origin)
    monkeypatch.setenv("AWS_ENDPOINT_URL", running.origin)
    elsewhere: list[Any] = []
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1"):
            elsewhere.append(address)
            raise ConnectionRefusedError(f"a test must not connect to {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)
    yield running
    running.close()
    assert not elsewhere


@pytest.fixture
def fault() -> type[Fault]:
    return Fault


@pytest.fixture
def impatient() -> Patience:
    """As many tries as usual, in a fraction of the time."""
    return Patience(tries=4, first_pause=0.01, longest_pause=0.05, timeouts=MINUTES)


@pytest.fixture
def unwearied() -> Patience:
    """Gives up on a silent server soon, and asks it again as often as it takes: however slow the machine is, what it
    answers in the end is read, and what it does not answer is not waited for."""
    often = 10**6
    return Patience(tries=often, mute_tries=often, first_pause=0.01, longest_pause=0.05, timeouts=Timeouts(300, 0.3))


@pytest.fixture
def pseudo_random() -> Callable[[int], bytes]:
    """`pseudo_random(n)`: bytes in which no two places look alike."""
    import numpy as np

    return lambda size: np.random.default_rng(0).integers(0, 256, size, np.uint8).tobytes()


@pytest.fixture
def megabytes(server: Any, pseudo_random: Callable[[int], bytes]) -> bytes:
    """Content of the file run/data: four blocks of 1 MiB, and a bit."""
    server.files["run/data"] = content = pseudo_random(4 * 2**20 + 77)
    return content
