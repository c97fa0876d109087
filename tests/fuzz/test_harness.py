"""The fuzzers' harness finds what it is there for: other exceptions, endless and hungry inputs, unreadable messages."""

import random
import signal
from collections.abc import Callable

import pytest


class Refusal(Exception):
    pass


@pytest.fixture(autouse=True)
def _inputs_as_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FUZZ_INPUTS", raising=False)
    monkeypatch.delenv("FUZZ_FIRST_SEED", raising=False)


def raise_of(kind: type[BaseException], text: str) -> Callable[[random.Random], None]:
    def attempt(generator: random.Random) -> None:
        raise kind(text)

    return attempt


def test_own_refusals_pass(fuzz: Callable[..., None]) -> None:
    fuzz(raise_of(Refusal, "The file is damaged; copy it again."), inputs=3, refusals=(Refusal,))


@pytest.mark.parametrize("text", ["", "a\x1b[31mb.", "two\nlines.", "no end", "x" * 5000 + "."])
def test_unreadable_messages_are_findings(fuzz: Callable[..., None], text: str) -> None:
    with pytest.raises(AssertionError, match="seed"):
        fuzz(raise_of(Refusal, text), inputs=3, refusals=(Refusal,))


def test_other_exceptions_are_findings(fuzz: Callable[..., None]) -> None:
    with pytest.raises(KeyError) as caught:
        fuzz(raise_of(KeyError, "x"), inputs=3, refusals=(Refusal,))
    assert "found by seed" in caught.value.__notes__[0]


def test_hungry_inputs_are_findings(fuzz: Callable[..., None]) -> None:
    with pytest.raises(MemoryError):
        fuzz(lambda generator: bytes(2**31), inputs=1, refusals=(Refusal,))


def test_endless_inputs_are_findings(fuzz: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    alarm = signal.alarm
    monkeypatch.setattr(signal, "alarm", lambda seconds: alarm(bool(seconds)))  # the limit, shortened to a second

    def loop(generator: random.Random) -> None:
        while True:
            pass

    with pytest.raises(TimeoutError):
        fuzz(loop, inputs=1, refusals=(Refusal,))
