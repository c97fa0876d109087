# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Google's experimental T5 checkpoints (t5.1.1, t5.1.1.lm100k, t5.1.th, t5.1.n4w10) for PyTorch and transformers.

Importing the package registers its classes with transformers' Auto classes, so `AutoModelForSeq2SeqLM.from_pretrained`
and the like load converted folders. registration.py says what is imported when.
"""

from typing import TYPE_CHECKING

from .registration import CONFIG_NAMES, MODEL_CLASSES, register_configs, register_models, without_models
from .registration import import_later as __getattr__  # noqa: F401 - Python calls it


if TYPE_CHECKING:
    from . import configuration_t5_experimental  # noqa: F401
    from .configuration_t5_experimental import *  # noqa: F403
    from .decoding_t5_experimental import decoding_session
    from .loss_t5_experimental import chunked_token_losses, original_loss, token_losses
    from .modeling_t5_experimental import *  # noqa: F403
    from .presets import PRESETS, preset_config


__version__ = "0.2.0"

__all__ = [
    "PRESETS",
    "chunked_token_losses",
    "decoding_session",
    "original_loss",
    "preset_config",
    "register_models",
    "token_losses",
    "without_models",
    *CONFIG_NAMES,
    *MODEL_CLASSES,
]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register_configs()
