# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Training: entry points for `accelerate launch`, and their parts."""
