# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Runs the command as `python -m t5_experimental.convert`."""

import sys

from .cli import main


if __name__ == "__main__":
    sys.exit(main())
