# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Uploading a converted folder to the Hugging Face hub."""

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from t5_experimental.original import SLOTS_FILE

from .errors import ConversionError
from .output.json_files import read_json
from .output.model_folder import slots_are_stale
from .output.record import read_record
from .output.safetensors_reader import SafetensorsReader, weight_files


def check_repo_id(repo_id: str) -> None:
    """Raises unless it can be the name of a repository; asks no server.

    Args:
        repo_id: as "user/name".
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo_id)
        valid = "/" in repo_id
    except HFValidationError:
        valid = False
    if not valid:
        raise ConversionError(
            f"{repo_id!r} is no name of a repository: write it as USER/NAME, of letters, digits and single '-', '_' or "
            "'.' between them, 96 at most."
        )


def check_token() -> None:
    """Raises if this machine has no token of the hub."""
    from huggingface_hub import get_token

    if not get_token():
        raise ConversionError(
            "there is no token of the Hugging Face hub: run `hf auth login`, or set HF_TOKEN to one that may write."
        )


def push(folder: str | Path, repo_id: str, private: bool = False) -> str:
    """Uploads a converted folder, into a repository that is made unless it is there.

    Args:
        folder: one that the converter wrote.
        repo_id: as "user/name".
        private: make the repository one that only its owner sees; one that is there stays as it is.

    Returns:
        The repository's address.

    Raises:
        ConversionError: the folder is none of the converter's or is not complete, or the hub cannot be reached or
            refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    check_repo_id(repo_id)
    folder = Path(folder).expanduser()
    check_complete(folder)
    check_token()
    api = HfApi()
    again = _again(folder, repo_id, private)
    try:
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        # The name may have been completed or corrected by the hub.
        api.upload_folder(repo_id=url.repo_id, folder_path=folder, commit_message="Converted by t5_experimental")
    except HfHubHTTPError as error:
        raise ConversionError(f"the hub refused {repo_id}: {_status(error)}; {again}") from error
    except KeyboardInterrupt as interrupt:
        interrupt.add_note(again.removesuffix("."))
        raise
    except Exception as error:
        # The classes of a failed connection differ among the library's versions.
        if not isinstance(error, OSError) and not type(error).__module__.startswith("httpx"):
            raise
        raise ConversionError(f"{repo_id} could not be reached ({error}); {again}") from error
    return str(url)


def check_complete(folder: Path) -> None:
    """All that loading takes is there, files of tensors are as long as their headers say, and names can be sent."""
    record = read_record(folder)
    files = {row["file"] for row in record["tensors"].values()}
    try:
        code = _code_files(read_json(folder / "config.json"))
    except FileNotFoundError as error:
        raise ConversionError(f"{folder} has no config.json: convert again.") from error
    except (OSError, ValueError) as error:
        raise ConversionError(f"{folder} does not say what belongs to it ({error}): convert again.") from error
    for filename in sorted(code | files):
        if not (folder / filename).is_file():
            raise ConversionError(f"{folder} has no {filename}: convert again.")
    for path in folder.rglob("*"):
        try:
            str(path.relative_to(folder)).encode()
        except UnicodeEncodeError as error:
            raise ConversionError(f"the name {path.name!r:.300} in {folder} is not UTF-8: rename that file.") from error
    optimizer = folder / SLOTS_FILE
    SafetensorsReader([*weight_files(folder), *([optimizer] if optimizer.is_file() else [])])
    if slots_are_stale(folder, record):
        raise ConversionError(
            f"{folder} has the {SLOTS_FILE} of weights that have changed since: move it away to upload the model alone."
        )


def _code_files(config: Mapping[str, Any]) -> set[str]:
    """Names of the files that `trust_remote_code` loads; raises a ValueError if there cannot be such."""
    names = config.get("auto_map", {})
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise ValueError("the auto_map of its config.json is none")
    for name in names.values():
        if not re.fullmatch(r"[A-Za-z0-9_]{1,200}\.[A-Za-z0-9_]{1,200}", name):
            raise ValueError(f"{name!r:.80} is no name of a file in its folder, and of a class in it")
    return {f"{name.partition('.')[0]}.py" for name in names.values()}


def _status(error: Exception) -> str:
    """The hub's own words, which name the cause; the first line, as the others repeat the request."""
    response = getattr(error, "response", None)
    words = getattr(error, "server_message", None) or next(iter(str(error).splitlines()), "no reason given")
    return f"{response.status_code}, {words}" if response is not None else str(words)


def _again(folder: Path, repo_id: str, private: bool) -> str:
    command = ["t5-experimental", "push", str(folder), repo_id, *(["--private"] if private else [])]
    return f"the folder is kept, so try again with `{shlex.join(command)}`."
