# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""How bytes of a file come from a web server: one request, no second try. `object_stores` has Google's and Amazon's.

fsspec's file systems know the addresses, the credentials and the sessions; the answers are checked here, because
whether a server sent what was asked for, and of which version of the file, is in headers that fsspec does not show.
"""

import asyncio
import importlib
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol
from urllib.parse import quote, urldefrag, urljoin, urlsplit, urlunsplit

from ..errors import ConversionError
from .storage import FileMissing


_CHUNK_BYTES = 256 * 2**10

_MAX_REDIRECTS = 10

_CLAUSE_LENGTH = 200


class Transient(Exception):
    """A request failed in a way that the next one may not.

    Attributes:
        retry_after: seconds that the server asks to wait, or 0.
        waited: seconds in which nothing came, or too little, or 0.
    """

    def __init__(self, reason: str, retry_after: float = 0, waited: float = 0) -> None:
        super().__init__(reason)
        self.retry_after = retry_after
        self.waited = waited


class Forbidden(ConversionError):
    """The server knows the answer, but not for us."""


@dataclass(frozen=True)
class Timeouts:
    """Seconds to wait for a connection, and for the next bytes on one; for the head of an answer, both together."""

    connect: float = 20
    read: float = 20

    @property
    def head(self) -> float:
        """Seconds from asking to the first byte of a file."""
        return self.connect + self.read


@dataclass(frozen=True)
class Answer:
    """What a server sends.

    Attributes:
        size: bytes of the whole file.
        version: what changes whenever the file does, if the server tells.
        chunks: the bytes asked for, in order; there may be too few of them.
        address: where the server has redirected to, or nothing.
    """

    size: int
    version: str | None
    chunks: AsyncIterator[bytes]
    address: str = ""


class Transport(Protocol):
    """One folder on a server. All errors are `Transient` or `ConversionError`."""

    loop: Any

    def get(self, name: str, start: int, stop: int) -> AbstractAsyncContextManager[Answer]:
        """Asks for the bytes from `start` up to, but not with, `stop`, which is greater."""

    async def names(self) -> list[str] | None:
        """Names of the files in the folder; None if they cannot be listed."""


class WebTransport:
    """A folder on a web server, which has to answer range requests."""

    def __init__(self, folder: str, timeouts: Timeouts, label: str) -> None:
        """Opens no connection.

        Args:
            folder: address; what follows a question mark is sent with every request.
            timeouts: see there.
            label: the folder in messages.
        """
        aiohttp = import_extra("aiohttp")
        http = import_extra("fsspec.implementations.http")
        self._folder = urlsplit(folder)
        self._label = label
        self._errors: tuple[type[BaseException], ...] = (aiohttp.ClientError, asyncio.TimeoutError, OSError)
        self._final: tuple[type[BaseException], ...] = (aiohttp.InvalidURL, aiohttp.ClientConnectorCertificateError)
        self._timeouts = timeouts
        self._timeout = aiohttp.ClientTimeout(
            total=None, connect=timeouts.connect, sock_connect=timeouts.connect, sock_read=timeouts.read
        )
        # Proxies are where every other program on the machine has them from.
        self._system = http.HTTPFileSystem(
            skip_instance_cache=True, use_listings_cache=False, client_kwargs={"trust_env": True}
        )
        self.loop = self._system.loop

    @asynccontextmanager
    async def get(self, name: str, start: int, stop: int) -> AsyncIterator[Answer]:
        """See `Transport.get`."""
        try:
            session, url, headers = await self._request(name)
            # A compressed answer has other bytes at other places.
            headers |= {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
            response, address = await asyncio.wait_for(self._follow(name, session, url, headers), self._timeouts.head)
            async with response:
                yield replace(self._answer(name, response, start), address=address)
        except self._final as error:
            raise ConversionError(f"{name} in {self._label} cannot be read: {clause(error)}.") from error
        except TimeoutError as error:
            raise silence(self._timeouts) from error
        except self._errors as error:
            raise Transient(clause(error)) from error

    async def _follow(self, name: str, session: Any, url: str, headers: dict[str, str]) -> tuple[Any, str]:
        """The answer to a request, or to that to which the server redirects, and then its address; nothing is sent to a
        place that a redirect must not lead to."""
        seen = {url}
        while True:
            # Encoded already: encoding a signed address once more would make its signature wrong.
            address = import_extra("yarl").URL(url, encoded=True)
            response = await session.get(address, headers=headers, timeout=self._timeout, allow_redirects=False)
            if response.status not in (301, 302, 303, 307, 308):
                return response, url if len(seen) > 1 else ""
            response.close()
            target = _redirected(url, response.headers.get("Location", ""))
            why = _why_not(url, target, seen)
            if why:
                raise ConversionError(f"{name} in {self._label} cannot be read: {why}; check the address.")
            if urlsplit(target)[:2] != urlsplit(url)[:2]:  # Another host must not get to know our credentials.
                headers = {key: value for key, value in headers.items() if key.lower() != "authorization"}
            url = target
            seen.add(url)

    async def names(self) -> list[str] | None:
        """See `Transport.names`."""
        return None

    async def _request(self, name: str) -> tuple[Any, str, dict[str, str]]:
        """Session, address and headers of a request for a file."""
        path = f"{self._folder.path.rstrip('/')}/{quote(name)}"
        url = urlunsplit(self._folder._replace(path=path, fragment=""))
        return await self._system.set_session(), url, {}

    def _version(self, headers: Mapping[str, str]) -> str | None:
        """What the headers of an answer say about the file's version."""
        return headers.get("ETag") or headers.get("Last-Modified")

    def _answer(self, name: str, response: Any, start: int) -> Answer:
        headers = response.headers
        if response.status not in (200, 206, 416):
            raise error_of(name, self._label, response.status, headers.get("Retry-After", ""))
        total = number(headers.get("Content-Range", "").rpartition("/")[2])
        if response.status == 416:
            # Of an empty file there is no first byte, which is no reason to complain.
            return Answer(total or 0, self._version(headers), _nothing())
        chunks = response.content.iter_chunked(_CHUNK_BYTES)
        if response.status == 206 and total is not None:
            if not headers["Content-Range"].replace("=", " ").startswith(f"bytes {start}-"):
                raise Transient("it sent other bytes than it was asked for")
            return Answer(total, self._version(headers), chunks)
        if response.status == 206 or start:
            raise ConversionError(
                f"{name} in {self._label} cannot be read in parts, because the server does not answer range requests: "
                "copy the folder here first."
            )
        # The whole file: fine if it is asked for from the first byte on; the rest of it is not waited for.
        length = number(headers.get("Content-Length", ""))
        if length is None:
            raise ConversionError(f"{name} in {self._label} has no known size: copy the folder here first.")
        return Answer(length, self._version(headers), chunks)


def error_of(name: str, label: str, status: int, retry_after: str = "") -> Exception:
    """The error that a status stands for.

    Args:
        name: file.
        label: folder.
        status: of HTTP.
        retry_after: header of the answer.
    """
    if status in (404, 410):
        return FileMissing(f"{name} is missing from {label}: check the address (the server says {status}).")
    if status in (401, 403, 407):
        return Forbidden(
            f"{label} does not let us read {name} (the server says {status}): check the address, and that this "
            "machine has credentials for it."
        )
    if status in (408, 425, 429) or status >= 500:
        return Transient(f"the server says {status}", number(retry_after) or 0)
    return ConversionError(f"{name} in {label} cannot be read: the server says {status}; check the address.")


def import_extra(module: str) -> Any:
    """Imports a module that only the extra `remote` brings.

    Raises:
        ConversionError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ConversionError(
            f'{package}, which reads checkpoints from servers, is not installed: pip install "t5-experimental[remote]".'
        ) from error


def clause(error: BaseException) -> str:
    """An error in a few words, without the addresses that some have in them, nor anything of length that a server
    sent."""
    text = str(error).strip().splitlines()
    is_short = text and "://" not in text[0] and len(text[0]) <= _CLAUSE_LENGTH and text[0].isprintable()
    return text[0].rstrip(".") if is_short else type(error).__name__


def number(text: str) -> int | None:
    """A count in a header; None if it is none, or more than any file has."""
    return int(text) if re.fullmatch("[0-9]{1,18}", text) else None


def silence(timeouts: Timeouts) -> Transient:
    """The error of a server that sends nothing."""
    return Transient(f"the server sent nothing for {timeouts.read:g} seconds", waited=timeouts.read)


def _redirected(url: str, location: str) -> str:
    """Where a redirect leads; nothing if that is no address."""
    try:
        target = urldefrag(urljoin(url, location)).url if location.isprintable() else ""
        parts = urlsplit(target)
        return target if location and parts.hostname is not None and parts.port != 0 else ""
    except ValueError:
        return ""


def _why_not(url: str, target: str, seen: set[str]) -> str | None:
    """Why a redirect is not followed."""
    if not target:
        return "the server redirects to what is no address"
    before, after = urlsplit(url).scheme, urlsplit(target).scheme
    # Only the encryption of what was not encrypted may be added.
    if after != before and (before, after) != ("http", "https"):
        return f"the server redirects from {before}:// to {after[:20]}://, which is not followed"
    if target in seen:
        return "the server redirects in a circle"
    return f"the server redirects {len(seen)} times" if len(seen) > _MAX_REDIRECTS else None


async def _nothing() -> AsyncIterator[bytes]:
    return
    yield b""
