"""What all fuzzers share: seeds, limits on time and memory, and what counts as a finding.

A fuzzer is a function that makes one input from a `random.Random` and hands it to the code under test. Every seed must
end in success or in one of our own errors, and that error must be one readable line. `make fuzz` runs all fuzzers at
length; `FUZZ_INPUTS` and `FUZZ_FIRST_SEED` choose how many inputs each gets, and where it begins.
"""

import os
import random
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


# Far above what any input needs on a busy machine: only what never ends reaches it.
_SECONDS = 120
_BYTES = 2**30
_LONGEST_MESSAGE = 4000

Fuzz = Callable[..., None]


@pytest.fixture
def fuzz(request: pytest.FixtureRequest) -> Fuzz:
    """Runs `attempt(generator)` for many seeds and fails with the first seed that shows a finding."""

    def run(attempt: Callable[[random.Random], object], *, inputs: int, refusals: tuple[type[Exception], ...]) -> None:
        first = int(os.environ.get("FUZZ_FIRST_SEED", 0))
        inputs = int(os.environ.get("FUZZ_INPUTS", inputs))
        refused = 0
        for seed in range(first, first + inputs):
            refused += _try_seed(attempt, seed, refusals)
        request.node.user_properties.append(("fuzz", (inputs, refused)))

    return run


def _try_seed(attempt: Callable[[random.Random], object], seed: int, refusals: tuple[type[Exception], ...]) -> bool:
    message = None
    try:
        with _limits():
            attempt(random.Random(seed))
    except refusals as error:
        message = str(error)
    except BaseException as error:
        error.add_note(f"found by seed {seed}: FUZZ_FIRST_SEED={seed} FUZZ_INPUTS=1 runs it alone")
        raise
    if message is None:
        return False
    problem = sentence_problem(message)
    assert not problem, f"seed {seed}: the message {problem}: {message[:1000]!r}"
    return True


def sentence_problem(text: str) -> str:
    """What keeps a message from being one readable line, "" for nothing."""
    if not text.strip():
        return "is empty"
    if not all(character.isprintable() for character in text):
        return "has control characters"
    if len(text) > _LONGEST_MESSAGE:
        return f"has {len(text)} characters"
    if not text.endswith((".", "?")):
        return "is no sentence"
    return ""


@contextmanager
def _limits() -> Iterator[None]:
    """No input may run or allocate without bound."""

    def give_up(*_: object) -> None:
        raise TimeoutError(f"this input takes more than {_SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, give_up)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    if sys.platform.startswith("linux"):
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + _BYTES, hard))
    signal.alarm(_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    counts = [
        (report.nodeid, *value)
        for report in terminalreporter.getreports("passed")
        for name, value in report.user_properties
        if name == "fuzz"
    ]
    for name, inputs, refused in counts:
        terminalreporter.write_line(f"{name}: {inputs:,} inputs, {refused:,} refused")
    if counts:
        terminalreporter.write_line(f"fuzzing: {sum(count for _, count, _ in counts):,} inputs in all")
