# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Which arrays a checkpoint of T5X or Orbax is said to consist of, by the file that indexes it.

T5X: a file `checkpoint` of flax's MessagePack, whose leaves are small arrays themselves, or say in which folder a zarr
array is: as a specification of tensorstore, of which nothing but the folder's name counts, or as a placeholder. Orbax:
`_METADATA`, JSON with the names of all leaves. Sources: t5x/checkpoints.py, orbax-checkpoint's documentation.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ConversionError
from ..readable import shown
from ..source.array_folders import INDEX, ArrayFolder
from ..source.local_files import LocalFiles
from ..source.msgpack_tree import StoredArray, leaves, read_tree


_PLACEHOLDER = "PLACEHOLDER://"
_ROOTS = ("optimizer", "_optimizer")
_MOST_BYTES = 2**25

# What T5X writes into a specification; anything else could change what is opened.
_SPEC = {"driver", "dtype", "kvstore", "path", "metadata"}
_KVSTORE = {"driver", "path", "bucket"}
_KVSTORES = ("file", "gfile", "gcs")

# In `_METADATA`, what leaves are that have no array.
_NO_ARRAYS = ("None", "Dict", "List", "NamedTuple", "string")


def read_index(place: ArrayFolder, files: LocalFiles, names: Mapping[str, object]) -> dict[str, Any]:
    """Every leaf by its path, as "target/encoder/encoder_norm/scale": a `StoredArray`, the name of an array in the
    folder, or a number.

    Args:
        place: the checkpoint.
        files: to read with.
        names: arrays of the folder.

    Raises:
        ConversionError: the index is damaged, names an array that is not there, or leads out of the folder.
    """
    path = place.folder / INDEX
    found = _read_t5x(path, files, place.what) if path.is_file() else _read_orbax(place.folder / "_METADATA", names)
    indexed = {leaf for leaf in found.values() if isinstance(leaf, str)}
    for name, leaf in found.items():
        if isinstance(leaf, str) and leaf not in names:
            raise ConversionError(
                f"{name} is said to be in {leaf}, which is missing from {place.folder}: copy all of the folder again."
            )
    for name in names:
        if name not in indexed:
            found[name.replace(".", "/")] = name
    return found


def _read_t5x(path: Path, files: LocalFiles, what: str) -> dict[str, Any]:
    try:
        tree = read_tree(path, files, "t5x", what)
        found: dict[str, Any] = {}
        for parts, leaf in leaves(_without_specs(tree, ())):
            inner = parts[1:] if parts[0] in _ROOTS else parts
            if isinstance(leaf, str):
                if leaf not in (".".join(parts), ".".join(inner)):
                    raise ValueError(f"{'/'.join(parts)} is said to be in {leaf!r:.200}, another place than its own")
            elif isinstance(leaf, dict) or leaf is None or parts == ("version",):
                continue
            elif not isinstance(leaf, StoredArray | int | float):
                raise ValueError(f"{'/'.join(parts)} is {shown(leaf)}")
            found["/".join(inner)] = leaf
        return found
    except (OSError, ValueError) as error:
        raise ConversionError(f"{path} is no complete index of T5X ({error}): copy it again.") from error


def _without_specs(tree: Mapping[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    """The tree with the name of the folder in place of every specification and placeholder."""
    result: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict) and {"driver", "kvstore"} <= value.keys():
            result[name] = _folder_of(value, "/".join((*path, name)))
        elif isinstance(value, dict):
            result[name] = _without_specs(value, (*path, name))
        elif isinstance(value, str):
            if not value.startswith(_PLACEHOLDER):
                raise ValueError(f"{'/'.join((*path, name))} is the text {value!r:.80}")
            result[name] = value.removeprefix(_PLACEHOLDER)
        else:
            result[name] = value
    return result


def _folder_of(spec: Mapping[str, Any], name: str) -> str:
    """Name of the folder in a specification that says no more than T5X's own."""
    kvstore = spec["kvstore"]
    if not isinstance(kvstore, dict) or not (set(spec) <= _SPEC and set(kvstore) <= _KVSTORE):
        raise ValueError(f"{name} has a specification with more than T5X writes, which is not followed")
    if spec["driver"] != "zarr" or kvstore.get("driver") not in _KVSTORES:
        raise ValueError(
            f"{name} asks for the driver {shown(spec['driver'])} on {shown(kvstore.get('driver'))}, which is not used"
        )
    given = [place for place in (spec.get("path"), kvstore.get("path")) if place is not None]
    if len(given) != 1 or not isinstance(given[0], str):
        raise ValueError(f"{name} does not say in which folder it is")
    return given[0].removesuffix("/")


def _read_orbax(path: Path, names: Mapping[str, object]) -> dict[str, Any]:
    """Leaves of `_METADATA`; all arrays of the folder if it has no such file, as of old."""
    if not path.is_file():
        return {}
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
        table = json.loads(data) if len(data) <= _MOST_BYTES else None
        rows = table.get("tree_metadata") if isinstance(table, dict) else None
        if not isinstance(rows, dict):
            raise ValueError("it has no table tree_metadata")
        found: dict[str, Any] = {}
        for row in rows.values():
            parts = tuple(str(key["key"]) for key in row["key_metadata"])
            kind = row["value_metadata"]["value_type"]
            if kind not in _NO_ARRAYS or ".".join(parts) in names:
                found["/".join(parts)] = ".".join(parts)
        return found
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConversionError(f"{path} is no complete index of Orbax ({error}): copy it again.") from error
