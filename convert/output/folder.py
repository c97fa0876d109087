# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""The output folder takes its name when it is complete: until then it is a hidden sibling, and on error nothing.

Beside what `beside` lists there can be `.OUT.old`: what OUT was, for the moment in which the new folder takes its name.
What has one of these names, or OUT's, and was not made by this program stops it, too.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from t5_experimental import own_folders

from ..errors import ConversionError
from . import crc32c
from .beside import check_places, remove, unfinished, uninterrupted
from .ours import RECORDS, is_ours, why_not_ours
from .paths import check_encodable


def check_output(output: Path, kind: str, source: Path | None, overwrite: bool) -> None:
    """Raises if a folder of this name cannot or must not be written.

    Args:
        output: name of the folder.
        kind: of it, a key of `RECORDS`.
        source: folder of this disk that is read, if any.
        overwrite: replace what has that name.
    """
    check_encodable(output)
    origin = None if source is None else _resolved(source)
    try:
        place = output.resolve()
        if origin is not None and place in (origin, *origin.parents):
            what = "checkpoint" if kind == "converted" else "model"
            raise ConversionError(f"{output} holds the {what} itself: choose another folder for the output.")
        _check_replaceable(output, kind, overwrite)
        check_places(output.absolute())
    except (OSError, RuntimeError) as error:  # RuntimeError: a link that leads back to itself.
        raise ConversionError(f"{output} cannot be written: {getattr(error, 'strerror', None) or error}.") from error


def _resolved(source: Path) -> Path:
    try:
        return source.resolve()
    except (OSError, RuntimeError) as error:  # RuntimeError: a link that leads back to itself.
        raise ConversionError(
            f"{source} cannot be read ({getattr(error, 'strerror', None) or error}): give another path."
        ) from error


@contextmanager
def finished_or_nothing(output: Path, kind: str, overwrite: bool, resume: bool = False) -> Iterator[Path]:
    """A hidden folder beside the output, which takes its name on success and is removed on error or interrupt.

    Args:
        output: name of the folder.
        kind: of it, a key of `RECORDS`; when the folder is complete, the record lists its files and their checksums.
        overwrite: replace what has that name.
        resume: see `unfinished`.

    Raises:
        ConversionError: see `unfinished`.
    """
    output = output.absolute()
    old = _old(output)

    def check() -> None:
        _recover(output, old)
        # Another run may have finished it meanwhile, or the last one was killed while renaming.
        _check_replaceable(output, kind, overwrite)

    with unfinished(output, check, resume) as folder:
        yield folder
        _list_files(folder, RECORDS[kind])
        own_folders.flush(folder)
        with uninterrupted(f"{output} is complete"):
            _replace(folder, output, old, kind, overwrite)


def _check_replaceable(output: Path, kind: str, overwrite: bool) -> None:
    """Raises if the output's name is taken, but for a folder that is to be replaced; an empty one holds nothing."""
    if not own_folders.exists(output):
        return
    if not overwrite:
        raise ConversionError(f"{output} exists: choose another folder, or pass --overwrite to replace it.")
    # A mistyped path must not cost a user's files.
    why = None if _is_empty(output) else why_not_ours(output, [RECORDS[kind]])
    if why is not None:
        raise ConversionError(
            f"{output} is not a folder that was {kind} and nothing else ({why}), so --overwrite does not replace it: "
            "move away what is yours, or choose another folder."
        )
    old = _old(output)
    if own_folders.exists(old) and not own_folders.is_marked(old) and not is_ours(old):
        raise ConversionError(f"{old} is in the way, where {output} goes while it is replaced: remove or rename it.")


def _is_empty(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink() and not any(path.iterdir())


def _old(output: Path) -> Path:
    return output.with_name(f".{output.name}.old")


def _recover(output: Path, old: Path) -> None:
    """Ends a replacement in whose middle a run was killed; a folder that is not one of ours is let be."""
    if own_folders.is_marked(old):  # its removal had begun
        own_folders.remove(old)
    elif own_folders.exists(old) and is_ours(old):
        if not own_folders.exists(output):
            own_folders.rename(old, output)
        elif is_ours(output):
            own_folders.remove(old)


def add_checksums(folder: Path, kind: str, checksums: Mapping[str, int]) -> None:
    """Has the record of a folder that is not complete hold checksums of files, which are not read for them then.

    Args:
        folder: see `finished_or_nothing`.
        kind: see there.
        checksums: CRC-32C by the file's name.
    """
    path = folder / RECORDS[kind]
    fields = _fields(path)
    fields["crc32c"] = {**fields.get("crc32c", {}), **{name: f"{value:08x}" for name, value in checksums.items()}}
    _write_fields(path, fields)


def _list_files(folder: Path, record: str) -> None:
    """Has the record name all files of a complete folder, by which it is known to hold nothing else, and the checksums
    of all but itself, by which they are known to be as they were."""
    fields = _fields(folder / record)
    names = sorted({record, *os.listdir(folder)} - {own_folders.MARK})
    known = fields.get("crc32c", {})
    fields["files"] = names
    fields["crc32c"] = {
        name: known.get(name) or f"{crc32c.of_file(folder / name):08x}" for name in names if name != record
    }
    _write_fields(folder / record, fields)


def _fields(record: Path) -> dict[str, Any]:
    return dict(json.loads(record.read_text(encoding="utf-8"))) if record.exists() else {}


def _write_fields(record: Path, fields: Mapping[str, Any]) -> None:
    draft = record.with_name(f"{record.name}.draft")
    draft.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
    draft.replace(record)


def _replace(folder: Path, output: Path, old: Path, kind: str, overwrite: bool) -> None:
    """Gives the folder the output's name; what had it before goes last."""
    # It may have appeared, or got something of others, while this ran.
    _check_replaceable(output, kind, overwrite)
    own_folders.end(folder)
    if _is_empty(output):
        output.rmdir()
    if not own_folders.exists(output):
        own_folders.rename(folder, output)
        return
    own_folders.rename(output, old)
    try:
        own_folders.rename(folder, output)
    except BaseException:
        own_folders.rename(old, output)
        raise
    remove(old)
