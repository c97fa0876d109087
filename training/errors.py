# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""What stops a run with a sentence instead of a traceback."""


class TrainingError(Exception):
    """A problem that the user can solve; its message is one sentence or two that say what is wrong and what to do."""
