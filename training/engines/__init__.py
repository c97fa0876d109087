# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Engines that run training on several processes."""
