# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Where bytes are: local files, servers, object stores, the cache of downloads; which checkpoint is meant."""
