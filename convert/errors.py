# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""The one exception that a user of the converter meets."""

from .readable import message as one_line


class ConversionError(Exception):
    """A conversion cannot be done; the message is one sentence that says what is wrong and what to do about it.

    What it quotes from files is made readable here: control characters are escaped, and what is too long is cut.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class UnknownVariables(ConversionError):
    """A checkpoint has variables that no rule is for.

    Attributes:
        listed: one line on each.
    """

    def __init__(self, message: str, listed: list[str]) -> None:
        super().__init__(message)
        self.listed = listed
