# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""What a run says about itself: start lines, report, model card."""
