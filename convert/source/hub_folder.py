# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""A repository of the Hugging Face hub as a folder of this disk: what a conversion reads of it is downloaded into the
hub's own cache, one form of the weights alone, with the hub's own library."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from ..errors import ConversionError
from .kinds import CONFIG, STOCK_WEIGHTS
from .storage import LocalStorage


# ORGANIZATION/NAME, and a branch, a tag or a commit.
_NAME = re.compile(r"([A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(?:@([\w./-]{1,250}))?")

# All beside the weights: configurations and tokenizers.
_SMALL = ("*.json", "*.model", "merges.txt", "*.jinja")


class HubFolder(LocalStorage):
    """A downloaded repository.

    Attributes:
        repository: its name, with the revision if one was asked for.
    """

    def __init__(self, folder: Path, repository: str) -> None:
        super().__init__(folder)
        self.repository = repository

    def describe(self) -> str:
        """See `Storage.describe`."""
        return self.repository


def is_hub_name(source: str | Path) -> bool:
    """Whether a source can only be meant as the name of a repository: a path whose folder exists is one."""
    text = str(source)
    match = _NAME.fullmatch(text)
    # What the hub allows in no name is a path: two dots or hyphens in a row, and either of them at an end.
    if match is None or re.search(r"\.\.|--|[.-](/|\Z)", match[1]):
        return False
    return not os.path.lexists(text) and not os.path.isdir(os.path.dirname(text))


def download(source: str, cache_dir: Path | None = None) -> HubFolder:
    """Downloads a repository, or takes what an earlier download has left in the cache.

    Args:
        source: name of the repository, see `is_hub_name`.
        cache_dir: the hub's cache; its usual one unless given.

    Raises:
        ConversionError: there is none of this name, or none for this user, or the hub cannot be reached.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    match = _NAME.fullmatch(source)
    assert match is not None
    name, revision = match.groups()
    try:
        try:
            files = [file.rfilename for file in HfApi().model_info(name, revision=revision).siblings or []]
        except GatedRepoError as error:
            raise ConversionError(
                f"{name} is given to users who have accepted its terms: do so on its page, and run `hf auth login`."
            ) from error
        except RepositoryNotFoundError as error:
            raise ConversionError(
                f"{source} is neither a file or folder here nor a repository of the Hugging Face hub that this user "
                "may see: correct the name, or run `hf auth login`."
            ) from error
        except RevisionNotFoundError as error:
            raise ConversionError(f"{name} has no branch, tag or commit {revision}: give one that it has.") from error
        patterns = [*_SMALL, *_weights(files)]
        folder = snapshot_download(name, revision=revision, cache_dir=cache_dir, allow_patterns=patterns)
    except ConversionError:
        raise
    except Exception as error:
        # The classes of a failed connection differ among the library's versions.
        if isinstance(error, HfHubHTTPError) or not (isinstance(error, OSError) or _is_of_connection(error)):
            raise ConversionError(
                f"the Hugging Face hub does not give {source} ({_words(error)}): try again."
            ) from error
        folder = _cached(name, revision, cache_dir, error)
    return HubFolder(Path(folder), source)


def _cached(name: str, revision: str | None, cache_dir: Path | None, reason: Exception) -> str:
    """The folder that an earlier download has left; an incomplete one has no weights or not all, which its reader
    says."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return str(snapshot_download(name, revision=revision, cache_dir=cache_dir, local_files_only=True))
    except LocalEntryNotFoundError as error:
        raise ConversionError(
            f"{name} is not on this disk, and the Hugging Face hub cannot be reached ({_words(reason)}): give a folder "
            "that exists, or try again with a connection."
        ) from error


def _weights(files: Iterable[str]) -> list[str]:
    """Patterns of the first form of weights that is there, as transformers prefers them."""
    present = set(files)
    for name in STOCK_WEIGHTS:
        stem, suffix = name.rsplit(".", 1)
        if name in present:
            return [name]
        if f"{name}.index.json" in present:
            return [f"{stem}-*-of-*.{suffix}"]
    if CONFIG in present:
        return []
    # Something else, which is called by its name: small files tell.
    return ["*.index", "checkpoint"]


def _is_of_connection(error: Exception) -> bool:
    # By their beginning: releases of huggingface_hub use httpx, httpx2 or requests.
    return type(error).__module__.startswith(("httpx", "requests", "huggingface_hub"))


def _words(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:200]
