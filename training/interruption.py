# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Ctrl-C, and SIGTERM as schedulers send it: the run ends at once, with a sentence on where the same command goes on.

A signal becomes an exception wherever the main thread is. What must not be left half done holds it back for a moment,
see [`held_back`]; all else that is written is written aside, and removed when the exception passes by. Of several
processes, which mostly are all told to end, one speaks.
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


_NAMES = {signal.SIGINT: "Ctrl-C (SIGINT)", signal.SIGTERM: "SIGTERM"}
_SPOKEN = "t5_experimental/spoken"


class Interrupted(KeyboardInterrupt):
    """A signal has told this process to end. Libraries let it through as they let Ctrl-C through."""


class _Signals:
    """What has arrived in this process."""

    def __init__(self) -> None:
        self.received: int | None = None
        self.held_back = 0
        self._process = 0  # that watches; 0 for none
        self._before: dict[int, Any] = {}

    def watch(self) -> None:
        """From now on, signals end the run; in another thread than the main one, nothing changes."""
        if threading.current_thread() is not threading.main_thread():
            return
        self.received, self.held_back, self._process = None, 0, os.getpid()
        # What is ignored stays so, as for programs that nohup or a shell's background has started.
        self._before = {
            number: signal.signal(number, self._arrive)
            for number in _NAMES
            if signal.getsignal(number) is not signal.SIG_IGN
        }

    def leave(self) -> None:
        """Signals do again what they did before."""
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
        """Processes that prepare data are forked from this one, and end with it; Ctrl-C reaches them, too."""
        if number == signal.SIGTERM:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def check(self) -> None:
        """Raises if a signal has arrived, even if its exception was lost on its way."""
        if self.received is not None and not self.held_back and os.getpid() == self._process:
            self._end_children()
            raise Interrupted(self.received)

    def _end_children(self) -> None:
        """Ends the processes that prepare data before they lose the other end of their pipes and say so."""
        if children := [child for child in multiprocessing.active_children() if child.daemon]:
            # torch would raise an error of its own for each of them, in the middle of what is cleaned up.
            if os.name != "nt":
                self._before.setdefault(signal.SIGCHLD, signal.signal(signal.SIGCHLD, signal.SIG_DFL))
            for child in children:
                child.kill()
            for child in children:
                child.join()


_SIGNALS = _Signals()


@contextmanager
def watched() -> Iterator[None]:
    """Signals that tell this process to end raise [`Interrupted`] inside."""
    _SIGNALS.watch()
    try:
        yield
    finally:
        _SIGNALS.leave()


def received() -> int | None:
    """The number of the signal that has told the run to end, if one has."""
    return _SIGNALS.received


def check() -> None:
    """Ends the run if a signal has arrived; for places that a run comes by again and again.

    Raises:
        Interrupted: it has. The exception of the signal itself is lost where Python or a library swallows exceptions.
    """
    _SIGNALS.check()


@contextmanager
def held_back() -> Iterator[None]:
    """A signal that arrives inside takes effect at the end; for what is quick and must be done as a whole."""
    _SIGNALS.held_back += 1
    try:
        yield
    finally:
        _SIGNALS.held_back -= 1
    _SIGNALS.check()


# Of several processes, one speaks.


def _store() -> Any:
    """Where the processes of a run meet, if they have met; it outlives each of them where a launcher holds it."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return None
    return torch.distributed.distributed_c10d._get_default_store()


def _key() -> str:
    return f"{_SPOKEN}/{os.environ.get('GROUP_RANK', '0')}"


def claim_word() -> bool:
    """Whether no other process of this machine has ended this run with a word on why; from now on, one has."""
    try:
        if (store := _store()) is not None:
            return store.add(_key(), 1) == 1
    except RuntimeError:  # it was in the process that has ended
        return False
    return int(os.environ.get("LOCAL_RANK", "0")) == 0


def peer_was_interrupted() -> bool:
    """Whether another process has said that it was told to end, which is why it does not answer."""
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
    """Ends the process as a shell says of signals, with a sentence from one process.

    Args:
        name: of the program.
        number: of the signal.
        then: where the same command goes on, as a sentence.
    """
    _tell_peers()
    if claim_word():
        # The bar of the trainer may stand in this line.
        print(f"\n{name}: Ended by {_NAMES[signal.Signals(number)]}. {then}", file=sys.stderr, flush=True)
    leave(128 + number)


def leave(status: int) -> NoReturn:
    """Ends the process; one of several does so without the interpreter's own end, which would wait for the others."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and "LOCAL_RANK" in os.environ:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
