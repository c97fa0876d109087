# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Runs a script that reads its command line from `sys.argv` where a function `main(arguments)` is wanted."""

import importlib
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str]) -> None:
    """Runs the `main` of a module.

    Args:
        arguments: name of the module, and its command line.
    """
    sys.argv = list(arguments)
    importlib.import_module(arguments[0]).main()
