"""Servers that are mute, slow or hostile, and redirects: everything ends, and in a sentence."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from t5_experimental.convert.errors import ConversionError
from t5_experimental.convert.source import patience, transports
from t5_experimental.convert.source.checkpoint import local_copy, resolve
from t5_experimental.convert.source.remote import Patience, RemoteStorage
from t5_experimental.convert.source.transports import Timeouts


SCHEMES = ("http", "gs", "s3")
MIB = 2**20


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_passing_silence_is_survived(
    scheme: str, server: Any, fault: Any, unwearied: Patience, megabytes: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    storage = RemoteStorage(server.address("run", scheme), unwearied, block_bytes=MIB)
    server.faults = [fault("data", "mute", times=2)]
    assert storage.size("data") == len(megabytes)
    assert len(server.requests) > 2
    # The user is told what is waited for.
    notes = capfd.readouterr().err.splitlines()
    assert notes[0].startswith(
        f"Note: {server.address('run', scheme)}: the server sent nothing for 0.3 seconds; asking "
    )
    server.faults = [fault("data", "mute", times=2)]
    assert storage.read("data", 0, MIB) == megabytes[:MIB]
    assert len(server.data("data")) > 2
    assert "sent nothing" in capfd.readouterr().err


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("kind", [503, "drop", "mute"])
def test_patience_ends(
    kind: str | int, scheme: str, server: Any, fault: Any, impatient: Patience, megabytes: bytes
) -> None:
    server.files["run/data"] = megabytes[:1000]
    storage = RemoteStorage(server.address("run", scheme), impatient)
    storage.size("data")
    server.faults = [fault("data", kind, times=99)]
    if kind == "mute":
        storage = with_files_of(storage, RemoteStorage(server.address("run", scheme), soon(impatient)))
    with pytest.raises(ConversionError, match=r"^data in .*/run cannot be read: .* \(4 tries\); try again later\.$"):
        storage.read("data", 0, 1000)
    server.wait_until(lambda: len(server.data("data")) == 4)
    server.faults = []
    assert RemoteStorage(server.address("run", scheme), impatient).read("data", 0, 1000) == megabytes[:1000]


def soon(patience: Patience) -> Patience:
    """For servers that are mute: as nothing comes, it is all the same when that is noticed."""
    return replace(patience, timeouts=Timeouts(connect=300, read=0.3))


def with_files_of(known: RemoteStorage, storage: RemoteStorage) -> RemoteStorage:
    """A storage that knows of its files what another one was told."""
    storage._files, storage._has_answered = known._files, known._has_answered
    return storage


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_server_that_is_mute_from_the_beginning_is_not_asked_often(
    scheme: str, server: Any, fault: Any, impatient: Patience, megabytes: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    server.faults = [fault("data", "mute", times=99)]
    storage = RemoteStorage(server.address("run", scheme), soon(impatient))
    with pytest.raises(
        ConversionError, match=r"cannot be read: the server sent nothing for 0\.3 seconds \(2 tries\); try again later"
    ):
        storage.size("data")
    server.wait_until(lambda: len(server.requests) == 2)
    assert capfd.readouterr().err.count("Note:") == 1


def test_a_mute_server_is_noticed_within_a_minute() -> None:
    patience = Patience()
    longest = patience.timeouts
    assert patience.mute_tries * max(longest.connect, longest.read) + patience.first_pause < 60
    assert longest.head < 60


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_link_of_some_bytes_per_second_ends(
    scheme: str, server: Any, fault: Any, impatient: Patience, megabytes: bytes
) -> None:
    """Thirty seconds pass with everything that comes, and a kilobyte per second is expected over twenty of them."""
    now = itertools.count(0, 30)
    slow = replace(impatient, clock=lambda: float(next(now)))
    storage = RemoteStorage(server.address("run", scheme), slow, block_bytes=MIB)
    storage.size("data")
    server.faults = [fault("data", "drip", times=99)]
    message = r"^data in .* cannot be read: only [123] bytes came in \d+ seconds \(4 tries\); try again later\.$"
    with pytest.raises(ConversionError, match=message):
        storage.read("data", 0, MIB)


def test_the_least_rate() -> None:
    now = iter([0, 10, 20, 39, 41, 60, 65])
    rate = patience.Rate(Patience(least_rate=1000, rate_seconds=20, clock=lambda: float(next(now))))
    rate.check(1)  # too early to tell
    rate.check(19_999)
    rate.check(1)
    rate.check(21_000)
    rate.check(5)
    with pytest.raises(transports.Transient, match="only 10 bytes came in 24 seconds"):
        rate.check(5)


@pytest.fixture
def redirecting(server: Any, fault: Any) -> Callable[[str, str], None]:
    """`redirecting(name, location)`: so the server answers for a file from now on."""

    def redirect(name: str, location: str, status: int = 302) -> None:
        server.faults.append(fault(name, status, times=10**6, headers={"Location": location}))

    return redirect


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_followed_and_told(
    status: int, server: Any, redirecting: Any, impatient: Patience, megabytes: bytes
) -> None:
    server.files["other place/data"] = server.files["run/data"]
    redirecting("run/data", "/bucket/other%20place/data?signature=secret%2Fkey#x", status)
    storage = RemoteStorage(server.address("run"), impatient)
    assert storage.read("data", 5, 100) == megabytes[5:105]
    assert storage.moved_to() == (server.address("other place"),)
    assert RemoteStorage(server.address("other place"), impatient).moved_to() == ()


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("ftp://127.0.0.1/data", "redirects from http:// to ftp://, which is not followed"),
        ("file:///etc/passwd", "redirects to what is no address"),
        ("gs://bucket/data", "redirects from http:// to gs://, which is not followed"),
        ("javascript:alert(1)", "redirects to what is no address"),
        ("", "redirects to what is no address"),
        ("http://[::1/data", "redirects to what is no address"),
        ("http://127.0.0.1:99999999/data", "redirects to what is no address"),
        ("data", "redirects in a circle"),
        ("x" * 5000 + "://a/b", "redirects from http:// to x"),
    ],
)
def test_redirects_that_are_refused_at_once(
    location: str, message: str, server: Any, redirecting: Any, impatient: Patience, megabytes: bytes
) -> None:
    redirecting("run/data", location)
    storage = RemoteStorage(server.address("run"), impatient)
    with pytest.raises(ConversionError, match=message) as caught:
        storage.size("data")
    assert len(server.requests) == 1
    assert len(str(caught.value)) < 300
    assert "\n" not in str(caught.value)


def test_redirects_without_end(server: Any, redirecting: Any, impatient: Patience, megabytes: bytes) -> None:
    redirecting("a/data", "/bucket/b/data")
    redirecting("b/data", "/bucket/a/data")
    with pytest.raises(ConversionError, match="redirects in a circle; check the address"):
        RemoteStorage(server.address("a"), impatient).size("data")
    assert len(server.requests) == 2
    server.requests.clear()
    for k in range(30):
        redirecting(f"r{k}/data", f"/bucket/r{k + 1}/data")
    with pytest.raises(ConversionError, match="redirects 11 times; check the address"):
        RemoteStorage(server.address("r0"), impatient).size("data")
    assert len(server.requests) == 11


def test_encryption_may_be_added_and_not_removed() -> None:
    assert transports._why_not("http://a/b", "https://a/b", {"http://a/b"}) is None
    removed = transports._why_not("https://a/b", "http://a/b", {"https://a/b"})
    assert removed == "the server redirects from https:// to http://, which is not followed"


def test_credentials_stay_with_their_host(server: Any, redirecting: Any, impatient: Patience, megabytes: bytes) -> None:
    storage = RemoteStorage(server.address("run", "gs"), impatient)
    storage._transport._google.credentials.apply = lambda headers: headers.update(Authorization="Bearer secret")
    server.files["other/data"] = megabytes
    redirecting("run/data", f"http://localhost:{server.http.server_address[1]}/bucket/other/data")
    assert storage.size("data") == len(megabytes)
    first, second = server.requests
    assert first.headers["Authorization"] == "Bearer secret"
    assert "Authorization" not in second.headers


HOSTILE = {
    "digits": {"Content-Range": f"bytes 0-0/{'9' * 5000}"},
    "digits of a whole": {"Content-Range": "none", "Content-Length": "9" * 5000},
    "other digits": {"Content-Range": "bytes 0-0/\u0663\u0664".encode().decode("latin-1")},
    "a negative size": {"Content-Range": "bytes 0-0/-5"},
    "no size": {"Content-Range": "bytes 0-0/*"},
    "nothing": {"Content-Range": ""},
    "a huge size": {"Content-Range": f"bytes 0-0/{10**17}"},
    "a long header": {"X-Long": "x" * 100_000},
    "a version that is no text": {"ETag": "\xff\xfe\x80"},
    "a long version": {"ETag": "x" * 7000},
    "another encoding": {"Content-Encoding": "gzip"},
    "waiting": {"Retry-After": "9" * 5000},
}


@pytest.mark.parametrize(
    ("scheme", "status", "cached"),
    [
        *itertools.product(["http"], [200, 206, 416, 503, 302], [False, True]),
        ("gs", 200, False),
        ("gs", 206, False),
        ("s3", 206, False),  # making a client takes long
    ],
)
@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_headers_end_in_a_sentence(
    cached: bool, kind: str, status: int, scheme: str, server: Any, fault: Any, impatient: Patience, tmp_path: Path
) -> None:
    server.files["run/checkpoint"] = b'model_checkpoint_path: "model.ckpt-1"'
    server.faults = [fault("", status, times=10**6, headers=HOSTILE[kind])]
    quick = replace(impatient, tries=2, longest_pause=0.01)
    try:
        found = resolve(server.address("run", scheme), tmp_path / "cache" if cached else None, quick)
        index, storage = f"{found.prefix_name}.index", found.storage
        bytes(storage.read(index, 0, min(storage.size(index), 100)))
    except ConversionError as error:
        said = str(error)
        assert said.endswith(".")
        assert len(said) < 500
        assert said.isprintable()
    with pytest.raises(ConversionError), local_copy(server.address("run/checkpoint", scheme), None, quick):
        raise ConversionError("it is a file like any other")
