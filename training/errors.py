# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""What stops a run with a sentence instead of a traceback, and a check that two readers share."""


class TrainingError(Exception):
    """A problem that the user can solve; its message is one sentence or two that say what is wrong and what to do."""


class ProcessError(TrainingError):
    """A problem that this process alone has, so that it has to speak itself."""


def check_unicode(text: str, where: str) -> str:
    """The text, unless it has half of a surrogate pair, which JSON can spell and no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TrainingError(f"{where}: not text in Unicode ({error}); write the character as one.") from error
    return text
