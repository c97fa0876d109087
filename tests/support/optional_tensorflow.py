# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""TensorFlow, which judges our reader and writer of its checkpoints, where it has a release."""

import importlib
import os
import sys
from typing import Any

import pytest


def import_tensorflow() -> Any:
    """TensorFlow. Where it has no release, the test is skipped; elsewhere a missing one is an error."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # its C++ side reads it when it is loaded
    try:
        return importlib.import_module("tensorflow")
    except ImportError:
        if sys.version_info < (3, 14):
            raise
    pytest.skip("TensorFlow has no release for Python 3.14")
