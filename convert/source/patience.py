# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""How much a server may fail: tries, pauses between them, and how little may come in how much time."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from .transports import Timeouts, Transient


@dataclass(frozen=True)
class Patience:
    """How much a server may fail.

    The pause before the k-th new try is `first_pause` * 2^k seconds, at most `longest_pause`, and between half and all
    of it by chance, so that many clients do not come back at the same moment.

    Attributes:
        tries: requests in a row that may fail before it is an error.
        mute_tries: of a server that nothing has come from yet, requests in a row to which nothing comes, either.
        first_pause: seconds.
        longest_pause: seconds, also where the server asks for more.
        timeouts: of a single request.
        least_rate: bytes per second below which a connection is as good as none.
        rate_seconds: over which that is measured.
        clock: seconds, from any moment on.
    """

    tries: int = 7
    mute_tries: int = 2
    first_pause: float = 0.5
    longest_pause: float = 30
    timeouts: Timeouts = field(default_factory=Timeouts)
    least_rate: float = 1024
    rate_seconds: float = 20
    clock: Callable[[], float] = time.monotonic

    def pause(self, failures: int, retry_after: float) -> float:
        """Seconds to wait after this count of failures in a row, at least 1."""
        pause = min(self.first_pause * 2.0 ** (failures - 1), self.longest_pause) * random.uniform(0.5, 1)
        return max(pause, min(retry_after, self.longest_pause))


class Rate:
    """Ends a connection on which too little comes.

    Args:
        patience: says what is too little.
    """

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._since = patience.clock()
        self._bytes = 0

    def check(self, count: int) -> None:
        """Takes note of bytes that came.

        Raises:
            Transient: they were too few for the time that it took.
        """
        self._bytes += count
        now = self._patience.clock()
        seconds = now - self._since
        if seconds < self._patience.rate_seconds:
            return
        if self._bytes < seconds * self._patience.least_rate:
            reason = f"only {self._bytes} bytes came in {seconds:.0f} seconds"
            raise Transient(reason, waited=seconds)
        self._since, self._bytes = now, 0
