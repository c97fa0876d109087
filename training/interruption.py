# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Ctrl-C and SIGTERM, as schedulers send it: the run ends at once and says where the same command resumes.

A signal raises an exception in the main thread. Code that must not be interrupted delays it for a moment, see
[`held_back`]; everything else writes to a temporary folder, which is removed when the exception passes. Usually all
processes of a run receive the signal; only one of them reports it.
"""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

import torch


_NAMES = {int(signal.SIGINT): "Ctrl-C (SIGINT)", int(signal.SIGTERM): "SIGTERM"}
if hasattr(signal, "SIGBREAK"):  # Windows: also sent when the window is closed
    _NAMES[int(signal.SIGBREAK)] = "Ctrl-Break (SIGBREAK)"
_SPOKEN = "t5_experimental/spoken"


class Interrupted(KeyboardInterrupt):
    """A signal has told this process to end. Libraries let it pass like Ctrl-C."""


class _Signals:
    """Signals that this process has received."""

    def __init__(self) -> None:
        self.received: int | None = None
        self.held_back = 0
        self._process = 0  # the process that handles signals; 0 for none
        self._before: dict[int, Any] = {}

    def watch(self) -> None:
        """Makes signals end the run; has no effect outside the main thread."""
        if threading.current_thread() is not threading.main_thread():
            return
        self.received, self.held_back, self._process = None, 0, os.getpid()
        # Ignored signals stay ignored, as for programs that nohup or a shell's background has started.
        self._before = {
            number: signal.signal(number, self._arrive)
            for number in _NAMES
            if signal.getsignal(number) is not signal.SIG_IGN
        }

    def leave(self) -> None:
        """Restores the previous handlers."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before, self._process = {}, 0

    def _arrive(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            self._arrive_in_a_child(number)
            return
        self.received = number
        self.check()

    def _arrive_in_a_child(self, number: int) -> None:
        """Data workers are forked from this process and end with it; they receive Ctrl-C, too."""
        if number == signal.SIGTERM:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def check(self) -> None:
        """Raises if a signal has arrived, even if its own exception was lost."""
        if self.received is not None and not self.held_back and os.getpid() == self._process:
            self._end_children()
            raise Interrupted(self.received)

    def _end_children(self) -> None:
        """Ends data workers before they notice broken pipes and report them."""
        if children := [child for child in multiprocessing.active_children() if child.daemon]:
            # torch would raise an error for each of them in the middle of the cleanup.
            if hasattr(signal, "SIGCHLD"):  # Windows has none
                self._before.setdefault(signal.SIGCHLD, signal.signal(signal.SIGCHLD, signal.SIG_DFL))
            for child in children:
                child.kill()
            for child in children:
                child.join()


_SIGNALS = _Signals()


@contextmanager
def watched() -> Iterator[None]:
    """Inside, signals that tell this process to end raise [`Interrupted`]."""
    _SIGNALS.watch()
    try:
        yield
    finally:
        _SIGNALS.leave()


def received() -> int | None:
    """The number of the signal that has told the run to end; None for none."""
    return _SIGNALS.received


def check() -> None:
    """Ends the run if a signal has arrived; for places that a run passes often.

    Raises:
        Interrupted: it has. The signal's own exception is lost where Python or a library swallows exceptions.
    """
    _SIGNALS.check()


@contextmanager
def held_back() -> Iterator[None]:
    """Delays a signal that arrives inside to the end; for quick operations that must not be interrupted."""
    _SIGNALS.held_back += 1
    try:
        yield
    finally:
        _SIGNALS.held_back -= 1
    _SIGNALS.check()


# One of several processes reports.


def _store() -> Any:
    """The store of the process group, or None without a group; where a launcher holds it, it outlives the processes."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return None
    return torch.distributed.distributed_c10d._get_default_store()


def _key() -> str:
    return f"{_SPOKEN}/{os.environ.get('GROUP_RANK', '0')}"


def claim_word() -> bool:
    """Whether this process is the first of this machine to report the end of the run; marks it as reported."""
    try:
        if (store := _store()) is not None:
            return store.add(_key(), 1) == 1
    except RuntimeError:  # the store was in a process that has ended
        return False
    return int(os.environ.get("LOCAL_RANK", "0")) == 0


def peer_was_interrupted() -> bool:
    """Whether another process has recorded that a signal ended it, which is why it does not answer."""
    try:
        store = _store()
        return store is not None and store.add(f"{_key()}/signal", 0) > 0
    except RuntimeError:
        return False


def _tell_peers() -> None:
    try:
        if (store := _store()) is not None:
            store.add(f"{_key()}/signal", 1)
    except RuntimeError:
        return


# The end.


def end(name: str, number: int, then: str) -> NoReturn:
    """Ends the process with the exit status of a signal, and a sentence from one process.

    Args:
        name: of the program.
        number: of the signal.
        then: where the same command resumes, as a sentence.
    """
    _tell_peers()
    if claim_word():
        # The progress bar may be on this line.
        print(f"\n{name}: Ended by {_NAMES[signal.Signals(number)]}. {then}", file=sys.stderr, flush=True)
    leave(128 + number)


def leave(status: int) -> NoReturn:
    """Ends the process. One of several exits without interpreter shutdown, which would wait for the others."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and "LOCAL_RANK" in os.environ:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
