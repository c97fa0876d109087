# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""The one exception that a user of the converter meets."""


class ConversionError(Exception):
    """A conversion cannot be done; the message is one sentence that says what is wrong and what to do about it."""


class UnknownVariables(ConversionError):
    """A checkpoint has variables that no rule is for.

    Attributes:
        listed: one line on each.
    """

    def __init__(self, message: str, listed: list[str]) -> None:
        super().__init__(message)
        self.listed = listed
