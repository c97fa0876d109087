# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Folders of arrays that T5X and Orbax write: their index, and their arrays through tensorstore; knows nothing about
T5."""
