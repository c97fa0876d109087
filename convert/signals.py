# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Signals that end a command."""

import signal


def terminating_signals() -> tuple[int, ...]:
    """Signals besides Ctrl-C that ask this process to end; Windows sends SIGBREAK when its window is closed, too."""
    return (signal.SIGTERM, *([signal.SIGBREAK] if hasattr(signal, "SIGBREAK") else []))
