# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""The command line of a run, as it was typed: with its launcher, and without what nobody else may see."""

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil


# What a launcher's own command line holds, as the name of a file or after `-m`, and how to call it.
_LAUNCHERS = {
    "accelerate": ("accelerate",),
    "accelerate.commands.launch": ("accelerate", "launch"),
    "torchrun": ("torchrun",),
    "torch.distributed.run": ("torchrun",),
}


def own_command() -> list[str]:
    """Words of the command that started this process, from its launcher on, if it has one that is known."""
    try:
        words = psutil.Process(os.getppid()).cmdline()
    except psutil.Error:
        words = []
    started = _from_launcher(words)
    # How Python was called tells modules from files, which `sys.argv` does not.
    return started or [Path(sys.orig_argv[0]).name, *sys.orig_argv[1:]]


def _from_launcher(words: Sequence[str]) -> list[str]:
    """The command line of a parent process from the launcher's name on; nothing if it is none."""
    # Python itself, and `-m`, may stand before it; whatever comes later are a script's own words.
    for place, word in enumerate(words[:3]):
        name = word if word in _LAUNCHERS else Path(word).name
        if name in _LAUNCHERS:
            return [*_LAUNCHERS[name], *words[place + 1 :]]
    return []


def as_text(words: Sequence[str]) -> str:
    """A command line to show and store: quoted for a shell, without access tokens."""
    shown = []
    for before, word in zip(["", *words], words, strict=False):
        flag, _, value = word.partition("=")
        if flag.startswith("--") and flag.endswith("token") and value:
            word = f"{flag}=..."
        elif before.startswith("--") and before.endswith("token"):
            word = "..."
        shown.append(word)
    return shlex.join(shown)
