# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Finding the checkpoint that the user means: Mesh TensorFlow's on a disk or a server, or a folder of transformers, T5X
or Orbax."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import unquote, urlsplit, urlunsplit

from ..errors import ConversionError
from ..readable import joined
from ..released import is_released, resolve_released
from .array_folders import ArrayFolder, find_arrays
from .download_cache import CachedStorage
from .hub_folder import download, is_hub_name
from .kinds import ARRAYS, CONFIG, MESH, STOCK, check_far, check_file, check_index, recognize
from .patience import Patience
from .remote import RemoteStorage, is_remote, label
from .storage import LocalStorage, Storage


GIN_FILE = "operative_config.gin"
T5X_GIN_FILE = "config.gin"

_SUFFIX = re.compile(r"(?<=.)\.(index|meta|data-\d{5}-of-\d{5})\Z")
_MAX_COPY_BYTES = 2**26

# The file `checkpoint` names some of the last checkpoints, the newest of them at its beginning.
_MOST_STATE_BYTES = 2**20


@dataclass(frozen=True)
class Checkpoint:
    """Where a checkpoint is.

    Attributes:
        storage: the folder.
        prefix_name: what the names of its files begin with, as "model.ckpt-1000000"; empty for a folder of
            transformers.
        vocabulary: URL of the vocabulary, where the source implies it.
        kind: `MESH`, `STOCK` for a folder of transformers, or `ARRAYS` for one of T5X or Orbax.
        arrays: the last of these.
    """

    storage: Storage
    prefix_name: str
    vocabulary: str | None = None
    kind: str = MESH
    arrays: ArrayFolder | None = None

    @property
    def prefix(self) -> Path:
        """Path that its files begin with; on a server the last part of it alone."""
        return (self.storage.local_folder or Path()) / self.prefix_name

    @property
    def name(self) -> str:
        """Folder and prefix without what is above them: says which checkpoint it is, but not whose disk it was on."""
        if self.arrays is not None:
            return self.arrays.name
        return "/".join(filter(None, (self.storage.describe(), self.prefix_name)))

    @property
    def location(self) -> str:
        """Where it is, for the user's own eyes."""
        return self.storage.place(self.prefix_name)

    @property
    def gin_file(self) -> str | None:
        """Name of the configuration that the run wrote beside its checkpoints; None if it is not there.

        Raises:
            ConversionError: something else has this name.
        """
        if self.kind == STOCK:  # its config.json tells more
            return None
        if self.arrays is not None:
            return T5X_GIN_FILE if (self.arrays.run / T5X_GIN_FILE).is_file() else None
        if self.storage.exists(GIN_FILE):
            return GIN_FILE
        if self.storage.local_folder and os.path.lexists(self.storage.place(GIN_FILE)):
            raise ConversionError(
                f"{self.storage.place(GIN_FILE)} is not a file, or leads to none: put the run's own file there, or "
                "move it away to have the architecture deduced from the variables."
            )
        return None

    @property
    def told_by(self) -> str | None:
        """Name of the file that describes the model; None if the variables' shapes have to. Raises as `gin_file`."""
        return CONFIG if self.kind == STOCK else self.gin_file

    def gin_bytes(self, most: int) -> bytes:
        """The first bytes of `gin_file`, at most `most`.

        Raises:
            ConversionError: it cannot be read.
        """
        if self.arrays is not None:
            return LocalStorage(self.arrays.run).head(T5X_GIN_FILE, most)
        return self.storage.head(GIN_FILE, most)

    @property
    def named_step(self) -> int | None:
        """Training step in the prefix's name."""
        if self.arrays is not None:
            return self.arrays.step
        match = re.search(r"-([0-9]{1,18})\Z", self.prefix_name)
        return int(match[1]) if match else None


def open_storage(folder: str | Path, cache_dir: Path | None = None, patience: Patience | None = None) -> Storage:
    """A folder on this disk or on a server.

    Args:
        folder: path or URL.
        cache_dir: folder to keep the files of a server in that are read; without it, bytes come as they are used and
            are not kept.
        patience: for failures of a server.

    Raises:
        ConversionError: the URL is not one that can be read, or a package is missing.
    """
    if not is_remote(folder):
        return LocalStorage(Path(folder))
    remote = RemoteStorage(str(folder), patience)
    return CachedStorage(remote, cache_dir) if cache_dir is not None else remote


def resolve(source: str | Path, cache_dir: str | Path | None = None, patience: Patience | None = None) -> Checkpoint:
    """Finds the checkpoint that the user means.

    Most servers cannot list a folder, so that files are asked for by their names.

    Args:
        source: a folder, where the file `checkpoint` names the newest one, or the prefix or one of the files of one, as
            a path or a URL (gs://, s3://, https://); a folder of transformers, T5X or Orbax, as a path; a repository of
            the Hugging Face hub, as ORGANIZATION/NAME; or a released checkpoint's name.
        cache_dir: see `open_storage`.
        patience: see `open_storage`.

    Raises:
        ConversionError: there is none, there are several to choose from, or one of its files is missing.
    """
    vocabulary = None
    # A folder of that name on this disk is meant rather than a download of gigabytes.
    if is_released(source) and not os.path.exists(source):
        released = resolve_released(str(source))
        source, vocabulary = released.source, released.vocabulary
    cache = Path(cache_dir).expanduser() if cache_dir else None
    if is_hub_name(source):
        return _in_repository(str(source), cache)
    for folder, prefix in _guesses(source):
        storage = open_storage(folder, cache, patience)
        kind = recognize(storage) if prefix is None else None
        if kind == STOCK:
            return Checkpoint(storage, "", kind=kind)
        if kind == ARRAYS:
            arrays = find_arrays(Path(folder))
            assert arrays is not None
            return Checkpoint(LocalStorage(arrays.folder), "", kind=kind, arrays=arrays)
        found = _in_folder(storage) if prefix is None else (storage, prefix) if _has_index(storage, prefix) else None
        if found is not None:
            _check_shards(*found)
            return Checkpoint(*found, vocabulary)
    if is_remote(source):
        check_far(open_storage(str(source), cache, patience))
    elif os.path.isfile(Path(source).expanduser()):
        check_file(Path(source).expanduser())
    raise ConversionError(_why_nothing(source))


def _in_repository(source: str, cache_dir: Path | None) -> Checkpoint:
    storage = download(source, cache_dir)
    if recognize(storage) != STOCK:
        raise ConversionError(
            f"{source} is a repository of the Hugging Face hub without a model of transformers: give one of a T5, or "
            "download it and give the folder of the checkpoint in it."
        )
    return Checkpoint(storage, "", kind=STOCK)


def split_url(url: str) -> tuple[str, str]:
    """URL of the folder that a file or folder is in, and the name of it; a query stays with the folder."""
    parts = urlsplit(url)
    folder, _, name = parts.path.rstrip("/").rpartition("/")
    return urlunsplit(parts._replace(path=folder)), unquote(name)


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


def _guesses(source: str | Path) -> list[tuple[str | Path, str | None]]:
    """Folders, and for each a prefix in it or None for the newest, in the order in which the user may mean them."""
    if not is_remote(source):
        path = Path(source).expanduser()
        # Not the method of Path, which raises for names that are too long.
        return [(path, None)] if os.path.isdir(path) else [(path.parent, _SUFFIX.sub("", path.name))]
    parent, last = split_url(str(source))
    prefix = _SUFFIX.sub("", last)
    if not prefix:
        return [(str(source), None)]
    if prefix != last:
        return [(parent, prefix)]
    # The first guess is nearly always right, so that hardly anything is asked for that does not exist.
    guesses: list[tuple[str | Path, str | None]] = [(str(source), None), (parent, prefix)]
    return guesses[::-1] if re.search(r"\.ckpt(-\d+)?\Z", last) else guesses


def _why_nothing(source: str | Path) -> str:
    way_out = "give a checkpoint's folder, or a prefix such as DIR/model.ckpt-1000000."
    if is_remote(source):
        return f"{label(str(source))} holds no checkpoint, neither a file `checkpoint` nor an index: {way_out}"
    path = Path(source).expanduser()
    if os.path.isdir(path):
        return f"{source} holds no checkpoint, neither a file `checkpoint` nor an index: {way_out}"
    prefix = _SUFFIX.sub("", path.name)
    names = LocalStorage(path.parent).list() or [] if os.path.isdir(path.parent) else []
    if any(name.startswith(f"{prefix}.data-") for name in names):
        return f"{path.parent / prefix}.index is missing: copy it beside the checkpoint's data files."
    return f"{source} does not exist: {way_out}"


def _has_index(storage: Storage, prefix: str) -> bool:
    return storage.exists(f"{prefix}.index")


def _in_folder(storage: Storage) -> tuple[Storage, str] | None:
    """The checkpoint in a folder, newest if the run said so; None if it looks as if it were no checkpoint's folder."""
    if storage.exists("checkpoint"):
        return _newest(storage)
    present = _present(storage)
    if len(present) > 1:
        raise ConversionError(
            f"{storage.place()} holds {len(present)} checkpoints and no file `checkpoint` that picks one: give one of "
            f"the prefixes {joined(present)}."
        )
    return (storage, present[0]) if present else None


def _newest(storage: Storage) -> tuple[Storage, str]:
    """What TensorFlow's `checkpoint` file names, also after the folder was copied from elsewhere."""
    state = storage.place("checkpoint")
    text = storage.head("checkpoint", _MOST_STATE_BYTES).decode("utf-8", errors="replace")
    match = re.search(r'^[ \t]*model_checkpoint_path\s*:\s*"((?:[^"\\]|\\.)*)"', text, re.MULTILINE)
    if not match:
        check_index(storage)
        raise ConversionError(f"{state} names no checkpoint: give the prefix of the one to convert.")
    named = re.sub(r"\\(.)", r"\1", match[1])
    prefix = re.split(r"[/\\]", named)[-1]
    if prefix not in ("", ".", ".."):
        # What is in the folder comes first: an absolute path is where the folder was when the file was written.
        if _has_index(storage, prefix):
            return storage, prefix
        if storage.local_folder is not None and "://" not in named:
            elsewhere = LocalStorage((storage.local_folder / named).parent)
            if _has_index(elsewhere, prefix):
                return elsewhere, prefix
    present = _present(storage)
    others = f"give the prefix of one that is: {joined(present)}" if present else "give the prefix of another"
    raise ConversionError(f"{state} names {prefix}, whose .index is not in the folder; {others}.")


def _present(storage: Storage) -> list[str]:
    """Prefixes in a folder, as far as that can be told."""
    return [name.removesuffix(".index") for name in storage.list() or [] if re.fullmatch(r".+\.index", name)]


def _check_shards(storage: Storage, prefix: str) -> None:
    """All data files are there: `-0000k-of-0000n` for every k of an n. On a server, their reader finds what is not."""
    if storage.local_folder is None:
        return
    found: dict[int, set[int]] = {}
    for name in storage.list() or []:
        match = re.fullmatch(r"\.data-(\d{5})-of-(\d{5})", name.removeprefix(prefix))
        if match and name.startswith(prefix):
            found.setdefault(int(match[2]), set()).add(int(match[1]))
    if not found:
        raise ConversionError(
            f"{prefix} has an index but no data: copy {prefix}.data-00000-of-… into {storage.place()}."
        )
    if any(shards == set(range(total)) for total, shards in found.items()):
        return
    total, shards = max(found.items())
    missing = [f"{prefix}.data-{k:05d}-of-{total:05d}" for k in range(total) if k not in shards]
    raise ConversionError(
        f"{len(missing)} of {total} data files are missing from {storage.place()}, first {missing[0]}: copy them there."
    )
