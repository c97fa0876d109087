# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Finding a checkpoint on a server. Most cannot list a folder, so what is needed is asked for by its name."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import unquote, urlsplit, urlunsplit

from ..errors import ConversionError
from .download_cache import CachedStorage
from .remote import Patience, RemoteStorage, label
from .storage import Storage


_SUFFIX = re.compile(r"\.(index|meta|data-\d{5}-of-\d{5})\Z")

_MAX_COPY_BYTES = 2**26


def open_storage(folder: str, cache_dir: Path | None = None, patience: Patience | None = None) -> Storage:
    """A folder on a server.

    Args:
        folder: address.
        cache_dir: folder to keep the files in that are read; without it, bytes come as they are used and are not kept.
        patience: for failures.

    Raises:
        ConversionError: the address is none, or a package is missing.
    """
    remote = RemoteStorage(folder, patience)
    return CachedStorage(remote, cache_dir) if cache_dir is not None else remote


def locate(source: str, cache_dir: Path | None = None, patience: Patience | None = None) -> tuple[Storage, str]:
    """Finds the checkpoint that the user means.

    Args:
        source: address of a folder, where the file `checkpoint` names the newest one, or of the prefix, the index or a
            data file of one.
        cache_dir: see `open_storage`.
        patience: see `open_storage`.

    Returns:
        The folder, and the prefix that the checkpoint's files begin with.

    Raises:
        ConversionError: there is none, there are several to choose from, or the server cannot be read.
    """
    parent, last = split_url(source)
    prefix = _SUFFIX.sub("", last)
    # Both guesses are right nearly always, so that nearly always nothing is asked for that does not exist.
    looks_like_prefix = prefix != last or re.search(r"\.ckpt(-\d+)?\Z", last) is not None
    for as_prefix in (looks_like_prefix, not looks_like_prefix):
        if as_prefix and prefix:
            storage = open_storage(parent, cache_dir, patience)
            if storage.exists(f"{prefix}.index"):
                return storage, prefix
        elif not as_prefix and prefix == last:
            storage = open_storage(source, cache_dir, patience)
            found = _in_folder(storage)
            if found is not None:
                return storage, found
    raise ConversionError(
        f"{label(source)} holds no checkpoint: there is neither a file `checkpoint` in it nor an index of that name. "
        "Give a checkpoint's folder, or a prefix such as …/model.ckpt-1000000."
    )


@contextmanager
def local_copy(url: str, cache_dir: Path | None = None, patience: Patience | None = None) -> Iterator[Path]:
    """A small file of a server, such as a vocabulary, as a path that is valid inside of the `with`."""
    parent, name = split_url(url)
    with TemporaryDirectory() as folder:
        storage = open_storage(parent, cache_dir, patience)
        size = storage.size(name)
        if size > _MAX_COPY_BYTES:
            raise ConversionError(f"{label(url)} has {size} bytes, so it is not the small file that it should be.")
        path = Path(folder) / Path(name).name
        path.write_bytes(storage.read(name, 0, size))
        yield path


def newest(text: str) -> str | None:
    """Basename of the prefix that a `checkpoint` file names; None if it names none."""
    match = re.search(r'^[ \t]*model_checkpoint_path\s*:\s*"((?:[^"\\]|\\.)*)"', text, re.MULTILINE)
    return re.split(r"[/\\]", re.sub(r"\\(.)", r"\1", match[1]))[-1] or None if match else None


def split_url(url: str) -> tuple[str, str]:
    """Address of the folder that a file or folder is in, and the name of it; a query stays with the address."""
    parts = urlsplit(url)
    folder, _, name = parts.path.rstrip("/").rpartition("/")
    return urlunsplit(parts._replace(path=folder)), unquote(name)


def _in_folder(storage: Storage) -> str | None:
    """The prefix in a folder; None if it looks as if it were no checkpoint's folder."""
    if storage.exists("checkpoint"):
        found = newest(storage.text("checkpoint"))
        if found is None:
            raise ConversionError(
                f"the file `checkpoint` in {storage.describe()} names no checkpoint: give the prefix of the one to "
                "convert."
            )
        if not storage.exists(f"{found}.index"):
            raise ConversionError(
                f"the file `checkpoint` in {storage.describe()} names {found}, whose .index is not in the folder; give "
                "the prefix of one that is."
            )
        return found
    present = [name.removesuffix(".index") for name in storage.list() or [] if name.endswith(".index")]
    if len(present) > 1:
        raise ConversionError(
            f"{storage.describe()} holds {len(present)} checkpoints and no file `checkpoint` that picks one: give one "
            f"of the prefixes {', '.join(present)}."
        )
    return present[0] if present else None
