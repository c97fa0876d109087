# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Transports for Google Cloud Storage and Amazon S3, on top of gcsfs and s3fs."""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from ..errors import ConversionError
from .storage import FileMissing
from .transports import Answer, Timeouts, Transient, WebTransport, clause, error_of, import_extra, number, silence


_CHUNK_BYTES = 256 * 2**10


class GoogleTransport(WebTransport):
    """A folder in Google Cloud Storage, read anonymously unless this machine has credentials for it."""

    def __init__(self, folder: str, timeouts: Timeouts, label: str) -> None:
        """See `WebTransport`; the folder begins with gs://."""
        super().__init__(folder, timeouts, label)
        # The class by this name in the package itself asks another service first, which needs credentials.
        core = import_extra("gcsfs.core")
        auth = import_extra("google.auth.exceptions")
        # It logs what is reported here.
        logging.getLogger("gcsfs").addHandler(logging.NullHandler())
        token = "google_default" if has_google_credentials() else "anon"
        try:
            self._google = core.GCSFileSystem(
                token=token,
                access="read_only",
                skip_instance_cache=True,
                use_listings_cache=False,
                session_kwargs={"trust_env": True},
            )
        except (auth.GoogleAuthError, OSError, ValueError) as error:
            raise ConversionError(
                f"the credentials of this machine for Google Cloud do not work: {clause(error)}; log in again with "
                "gcloud auth application-default login."
            ) from error
        self._final = (*self._final, auth.GoogleAuthError)
        self.loop = self._google.loop
        self._path = f"{self._folder.netloc}{self._folder.path}".rstrip("/")

    async def names(self) -> list[str] | None:
        """See `Transport.names`."""
        return await _names(self._google, self._path)

    async def _request(self, name: str) -> tuple[Any, str, dict[str, str]]:
        headers: dict[str, str] = {}
        self._google.credentials.apply(headers)
        return await self._google._set_session(), self._google.url(f"{self._path}/{name}"), headers

    def _version(self, headers: Mapping[str, str]) -> str | None:
        return headers.get("x-goog-generation") or super()._version(headers)


class AmazonTransport:
    """A folder in S3 or a store that speaks like it, read anonymously unless this machine has credentials for it."""

    def __init__(self, folder: str, timeouts: Timeouts, label: str) -> None:
        """Opens no connection.

        Args:
            folder: begins with s3://.
            timeouts: see there.
            label: the folder in messages.
        """
        s3fs = import_extra("s3fs")
        exceptions = import_extra("botocore.exceptions")
        aiohttp = import_extra("aiohttp")
        self._label = label
        self._bucket, _, self._key = folder.removeprefix("s3://").strip("/").partition("/")
        self._timeouts = timeouts
        self._silent = (exceptions.ReadTimeoutError, exceptions.ConnectTimeoutError, TimeoutError)
        self._transient = (
            exceptions.HTTPClientError,
            exceptions.IncompleteReadError,
            exceptions.ResponseStreamingError,
            aiohttp.ClientError,
            TimeoutError,
        )
        self._system = s3fs.S3FileSystem(
            anon=not has_amazon_credentials(),
            skip_instance_cache=True,
            use_listings_cache=False,
            # Tries are counted by the caller alone.
            config_kwargs={
                "connect_timeout": timeouts.connect,
                "read_timeout": timeouts.read,
                "retries": {"total_max_attempts": 1},
            },
        )
        self._system.retries = 1
        self.loop = self._system.loop

    @asynccontextmanager
    async def get(self, name: str, start: int, stop: int) -> AsyncIterator[Answer]:
        """See `Transport.get`."""
        place = {"Bucket": self._bucket, "Key": "/".join(filter(None, (self._key, name)))}
        try:
            asked = self._system._call_s3("get_object", **place, Range=f"bytes={start}-{stop - 1}")
            answer = await asyncio.wait_for(asked, self._timeouts.head)
            total = number(answer.get("ContentRange", "").rpartition("/")[2])
            size = int(answer["ContentLength"]) if total is None else total
            body = answer["Body"]
            try:
                yield Answer(size, answer.get("ETag"), _chunks(body))
            finally:
                body.close()
        except (ConversionError, Transient):
            raise
        except Exception as error:  # Both libraries have trees of classes; what the server said is in a field.
            status = _status(error)
            if status == 416:
                raise FileMissing(f"{name} in {self._label} is empty: copy the checkpoint again.") from error
            if status:
                raise error_of(name, self._label, status) from error
            if isinstance(error, self._silent) or isinstance(error.__cause__, self._silent):
                raise silence(self._timeouts) from error
            if isinstance(error, self._transient) or isinstance(error.__cause__, self._transient):
                raise Transient(clause(error)) from error
            raise ConversionError(f"{name} in {self._label} cannot be read: {clause(error)}.") from error

    async def names(self) -> list[str] | None:
        """See `Transport.names`."""
        return await _names(self._system, f"{self._bucket}/{self._key}".rstrip("/"))


async def _names(system: Any, folder: str) -> list[str] | None:
    try:
        found = await system._ls(folder, detail=True)
    except FileNotFoundError:
        return []
    except Exception:  # A list only improves messages; they work without it.
        return None
    return sorted(entry["name"].rpartition("/")[2] for entry in found if entry["type"] == "file")


async def _chunks(body: Any) -> AsyncIterator[bytes]:
    while chunk := await body.read(_CHUNK_BYTES):
        yield chunk


def _status(error: BaseException | None) -> int:
    """Status of HTTP behind an error, or 0; s3fs has botocore's error as the cause of its own."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        error = error.__cause__
    return 0


def has_google_credentials() -> bool:
    """Whether Google's libraries would find credentials in their usual places, without asking a server."""
    if os.environ.get("GOOGLE_APPLICATION_CREDENTIALS"):
        return True
    configured = os.environ.get("CLOUDSDK_CONFIG")
    if configured:
        folder = Path(configured)
    elif os.name == "nt":
        folder = Path(os.environ.get("APPDATA", "")) / "gcloud"
    else:
        folder = Path.home() / ".config" / "gcloud"
    return (folder / "application_default_credentials.json").is_file()


def has_amazon_credentials() -> bool:
    """As `has_google_credentials`; a machine whose role is its only credential sets AWS_PROFILE or the like."""
    variables = (
        "AWS_ACCESS_KEY_ID",
        "AWS_PROFILE",
        "AWS_ROLE_ARN",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    )
    if any(os.environ.get(variable) for variable in variables):
        return True
    shared = os.environ.get("AWS_SHARED_CREDENTIALS_FILE")
    return (Path(shared) if shared else Path.home() / ".aws" / "credentials").is_file()
