# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Python's garbage collector while a command imports libraries.

Half a million objects come into being then, hardly one of them garbage, and looking at them again and again takes a
fifth to a third of the time. Only commands call this: in a process that is not ours, the switch is not ours either.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


_is_paused = False


def pause_collection() -> None:
    """Collects no garbage until [`resume_collection`], unless it is off anyway."""
    global _is_paused
    _is_paused = _is_paused or gc.isenabled()
    gc.disable()


def resume_collection() -> None:
    """Collects garbage again if it was paused; what is there by now stays, and is not looked at again."""
    global _is_paused
    if _is_paused:
        gc.freeze()
        gc.enable()
    _is_paused = False


@contextmanager
def collection_paused() -> Iterator[None]:
    """Both, around a block."""
    pause_collection()
    try:
        yield
    finally:
        resume_collection()
