# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Training of the models: entry points that `accelerate launch` starts, and what they are made of."""
