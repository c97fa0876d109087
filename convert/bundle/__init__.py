# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""TensorFlow's checkpoint files, read and written; knows nothing of T5."""
