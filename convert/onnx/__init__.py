# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""ONNX graphs of a model: what is traced, one file of the two decoder graphs, and the comparison with torch."""
