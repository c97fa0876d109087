# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Permissions of the files that a run writes: those of any new file."""

import stat
from pathlib import Path


def share_as_usual(folder: Path) -> None:
    """Sets the permissions of a folder's safetensors files to those of any new file there: safetensors makes its files
    readable for their owner alone and ignores the umask."""
    sample = folder / ".permissions"
    sample.touch()
    usual = stat.S_IMODE(sample.stat().st_mode)
    sample.unlink()
    for path in folder.rglob("*.safetensors"):
        path.chmod(usual)
