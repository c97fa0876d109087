# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Google's experimental T5 checkpoints (t5.1.1, t5.1.1.lm100k, t5.1.th, t5.1.n4w10) for PyTorch and transformers.

Importing the package registers its classes with transformers' Auto classes, so `AutoModelForSeq2SeqLM.from_pretrained`
and its siblings load converted folders.
"""

import transformers

from . import configuration_t5_experimental, modeling_t5_experimental
from .configuration_t5_experimental import *  # noqa: F403 - the module's __all__ is the public list
from .configuration_t5_experimental import CONFIG_CLASSES
from .decoding_t5_experimental import decoding_session
from .loss_t5_experimental import original_loss, token_losses
from .modeling_t5_experimental import *  # noqa: F403
from .modeling_t5_experimental import auto_classes
from .presets import PRESETS, preset_config


__version__ = "0.1.0"


def _register_auto_classes() -> None:
    """Makes transformers' Auto classes know every family; a second import of the package changes nothing."""
    for config_class in CONFIG_CLASSES:
        transformers.AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
    for auto, config_class, model_class in auto_classes():
        getattr(transformers, auto).register(config_class, model_class, exist_ok=True)


_register_auto_classes()

__all__ = [
    "PRESETS",
    "decoding_session",
    "original_loss",
    "preset_config",
    "token_losses",
    *configuration_t5_experimental.__all__,
    *modeling_t5_experimental.__all__,
]
