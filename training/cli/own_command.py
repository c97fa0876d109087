# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""The command line of a run as typed, including its launcher, but without secrets."""

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil


# Launchers by file name or module, and how to call them.
_LAUNCHERS = {
    "accelerate": ("accelerate",),
    "accelerate.commands.launch": ("accelerate", "launch"),
    "torchrun": ("torchrun",),
    "torch.distributed.run": ("torchrun",),
}


def own_command() -> list[str]:
    """Words of the command that started this process, starting with its launcher if it is a known one."""
    try:
        words = psutil.Process(os.getppid()).cmdline()
    except psutil.Error:
        words = []
    started = _from_launcher(words)
    # The original arguments distinguish modules from files, which `sys.argv` does not.
    return started or [Path(sys.orig_argv[0]).name, *sys.orig_argv[1:]]


def _from_launcher(words: Sequence[str]) -> list[str]:
    """The command line of a parent process from the launcher's name on; empty if it is not a launcher."""
    # Python itself and `-m` may come before it; later words are arguments of a script.
    for place, word in enumerate(words[:3]):
        name = word if word in _LAUNCHERS else Path(word).name
        if name in _LAUNCHERS:
            return [*_LAUNCHERS[name], *words[place + 1 :]]
    return []


def as_text(words: Sequence[str]) -> str:
    """A command line to show and store: quoted for a shell, with access tokens removed."""
    shown = []
    for before, word in zip(["", *words], words, strict=False):
        flag, _, value = word.partition("=")
        if flag.startswith("--") and flag.endswith("token") and value:
            word = f"{flag}=..."
        elif before.startswith("--") and before.endswith("token"):
            word = "..."
        shown.append(word)
    return shlex.join(shown)
