# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Who may read what a run writes: those who may read any new file there."""

import stat
from pathlib import Path


def share_as_usual(folder: Path) -> None:
    """Lets those read the files of a folder who may read any new file there: safetensors writes its own for their owner
    alone and does not ask the umask."""
    sample = folder / ".permissions"
    sample.touch()
    usual = stat.S_IMODE(sample.stat().st_mode)
    sample.unlink()
    for path in folder.rglob("*.safetensors"):
        path.chmod(usual)
