# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Finding a Mesh TensorFlow checkpoint on disk, and the interface through which its variables are read."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from ..errors import ConversionError
from ..readable import joined
from ..released import is_released, resolve_released
from .remote import is_remote
from .remote_checkpoint import locate
from .storage import Storage


GIN_FILE = "operative_config.gin"

# The file `checkpoint` names some of the last checkpoints, the newest of them at its beginning.
_MOST_STATE_BYTES = 2**20


@dataclass(frozen=True)
class Checkpoint:
    """Where a checkpoint lies.

    Attributes:
        prefix: path that its files begin with, as "folder/model.ckpt-1000000"; on a server the last part of it alone.
        storage: the folder on a server; None for a folder of this disk.
        vocabulary: address of the vocabulary, where the source implies it.
    """

    prefix: Path
    storage: Storage | None = None
    vocabulary: str | None = None

    @property
    def name(self) -> str:
        """Folder and prefix without what is above them: says which checkpoint it is, but not whose disk it was on."""
        if self.storage is not None:
            return f"{self.storage.describe()}/{self.prefix.name}"
        return "/".join(filter(None, (Path(os.path.abspath(self.prefix.parent)).name, self.prefix.name)))

    @property
    def location(self) -> str:
        """Where it is, for the user's own eyes."""
        return str(self.prefix) if self.storage is None else self.name

    @property
    def gin_file(self) -> Path | None:
        """The configuration that the run wrote beside its checkpoints, if it is there; on a server its name alone.

        Raises:
            ConversionError: there is something of that name that is no file.
        """
        path = self.prefix.parent / GIN_FILE
        if self.storage is not None:
            return path if self.storage.exists(GIN_FILE) else None
        if not os.path.lexists(path):
            return None
        if not os.path.isfile(path):
            raise ConversionError(
                f"{path} is not a file, or leads to none: put the run's own file there, or move it away to have the "
                "architecture deduced from the variables."
            )
        return path

    def gin_bytes(self, most: int) -> bytes:
        """Bytes of `gin_file`, at most so many.

        Raises:
            ConversionError: it cannot be read.
        """
        if self.storage is not None:
            return bytes(self.storage.read(GIN_FILE, 0, min(self.storage.size(GIN_FILE), most)))
        return _read(self.prefix.parent / GIN_FILE, most)

    @property
    def named_step(self) -> int | None:
        """Training step in the prefix's name."""
        match = re.search(r"-([0-9]{1,18})\Z", self.prefix.name)
        return int(match[1]) if match else None


def resolve(source: str | Path, cache_dir: str | Path | None = None) -> Checkpoint:
    """Finds the checkpoint that the user means.

    Args:
        source: a folder, where the file `checkpoint` names the newest one, or the prefix or the index of one, as a path
            or an address (gs://, s3://, https://); or the name of a released checkpoint.
        cache_dir: folder to keep what comes from a server.

    Raises:
        ConversionError: there is none, there are several to choose from, or one of its files is missing.
    """
    vocabulary = None
    # A folder of that name on this disk is meant rather than a download of gigabytes.
    if is_released(source) and not os.path.exists(source):
        released = resolve_released(str(source))
        source, vocabulary = released.source, released.vocabulary
    if is_remote(source):
        storage, prefix_name = locate(str(source), Path(cache_dir).expanduser() if cache_dir else None)
        return Checkpoint(Path(prefix_name), storage, vocabulary)
    path = Path(source).expanduser()
    # Not through Path, which raises for names that are too long.
    if os.path.isdir(path):
        prefix = _in_folder(path)
    else:
        prefix = path.with_name(re.sub(r"(?<=.)\.(index|meta|data-\d{5}-of-\d{5})\Z", "", path.name))
        if not os.path.isfile(_index(prefix)):
            if not os.path.isdir(prefix.parent) or not any(prefix.parent.glob(_glob_escape(prefix.name) + ".data-*")):
                raise ConversionError(
                    f"{source} does not exist: give a checkpoint's folder, or a prefix such as DIR/model.ckpt-1000000."
                )
            raise ConversionError(f"{_index(prefix)} is missing: copy it beside the checkpoint's data files.")
    _check_shards(prefix)
    return Checkpoint(prefix)


def _in_folder(folder: Path) -> Path:
    present = sorted(path.name.removesuffix(".index") for path in folder.glob("?*.index"))
    state = folder / "checkpoint"
    if state.is_file():
        return _newest(folder, state, present)
    if not present:
        raise ConversionError(f"{folder} holds no checkpoint: there is no file that ends in .index in it.")
    if len(present) > 1:
        raise ConversionError(
            f"{folder} holds {len(present)} checkpoints and no file `checkpoint` that picks one: give one of the "
            f"prefixes {joined(present)}."
        )
    return folder / present[0]


def _newest(folder: Path, state: Path, present: list[str]) -> Path:
    """The prefix that TensorFlow's `checkpoint` file names, also after the folder was copied from elsewhere."""
    text = _read(state, _MOST_STATE_BYTES).decode("utf-8", errors="replace")
    match = re.search(r'^[ \t]*model_checkpoint_path\s*:\s*"((?:[^"\\]|\\.)*)"', text, re.MULTILINE)
    if not match:
        raise ConversionError(f"{state} names no checkpoint: give the prefix of the one to convert.")
    named = re.sub(r"\\(.)", r"\1", match[1])
    basename = re.split(r"[/\\]", named)[-1]
    # What lies in the folder comes first: an absolute path in the file is where the folder was when it was written.
    for candidate in (folder / basename, folder / named):
        if basename not in ("", ".", "..") and "://" not in str(candidate) and os.path.isfile(_index(candidate)):
            return candidate
    others = f"give the prefix of one that is: {joined(present)}" if present else "no other is there either"
    raise ConversionError(f"{state} names {basename}, whose .index is not in the folder; {others}.")


def _read(path: Path, most: int) -> bytes:
    """The first bytes of a file, all of them unless it has more than it should."""
    try:
        with path.open("rb") as file:
            return file.read(most)
    except OSError as error:
        raise ConversionError(f"{path} cannot be read: {error.strerror}.") from error


def _index(prefix: Path) -> Path:
    return prefix.with_name(prefix.name + ".index")


def _glob_escape(name: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", name)


def _check_shards(prefix: Path) -> None:
    """All data files are there: `-0000k-of-0000n` for every k of an n."""
    found: dict[int, set[int]] = {}
    for path in prefix.parent.glob(_glob_escape(prefix.name) + ".data-*-of-*"):
        match = re.search(r"\.data-(\d{5})-of-(\d{5})\Z", path.name)
        if match:
            found.setdefault(int(match[2]), set()).add(int(match[1]))
    if not found:
        raise ConversionError(
            f"{prefix.name} has an index but no data: copy {prefix.name}.data-00000-of-… into {prefix.parent}."
        )
    if any(shards == set(range(total)) for total, shards in found.items()):
        return
    total, shards = max(found.items())
    missing = [f"{prefix.name}.data-{k:05d}-of-{total:05d}" for k in range(total) if k not in shards]
    raise ConversionError(
        f"{len(missing)} of {total} data files are missing from {prefix.parent}, first {missing[0]}: copy them there."
    )
