# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""For scripts that tests run in a new interpreter."""

QUICKLY = "import gc; gc.disable()\n"
"""Before a script that imports libraries: looking for garbage takes a fifth of that time."""
