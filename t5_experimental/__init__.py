# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Google's experimental T5 checkpoints (t5.1.1, t5.1.1.lm100k, t5.1.th, t5.1.n4w10) for PyTorch and transformers.

Importing the package registers its classes with transformers' Auto classes, so `AutoModelForSeq2SeqLM.from_pretrained`
and its siblings load converted folders. The model classes, whose import takes longer than all the rest, are imported
and registered when the first configuration object is made, without which no Auto class finds them, or when one of them
is asked for by name.
"""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import transformers

from . import configuration_t5_experimental
from .configuration_t5_experimental import *  # noqa: F403 - the module's __all__ is the public list
from .configuration_t5_experimental import AUTO_CLASSES, BEFORE_FIRST_USE, CONFIG_CLASSES, model_class_name
from .loss_t5_experimental import chunked_token_losses, original_loss, token_losses
from .presets import PRESETS, preset_config


if TYPE_CHECKING:
    from .decoding_t5_experimental import decoding_session
    from .modeling_t5_experimental import *  # noqa: F403


__version__ = "0.2.0"

_MODEL_CLASSES = sorted(
    {model_class_name(config, suffix) for config in CONFIG_CLASSES for suffix in AUTO_CLASSES.values()}
)

_IMPORTED_LATER = {
    **dict.fromkeys(_MODEL_CLASSES, "modeling_t5_experimental"),
    "decoding_session": "decoding_t5_experimental",
}

__all__ = [
    "PRESETS",
    "chunked_token_losses",
    "decoding_session",
    "original_loss",
    "preset_config",
    "token_losses",
    *configuration_t5_experimental.__all__,
    *_MODEL_CLASSES,
]


def __getattr__(name: str) -> Any:
    """Imports the models when the first of them is asked for, and any module of the package."""
    if name in _IMPORTED_LATER:
        register_models()
        value = getattr(importlib.import_module(f".{_IMPORTED_LATER[name]}", __name__), name)
        globals()[name] = value
        return value
    if name.endswith("_t5_experimental"):
        try:
            return importlib.import_module(f".{name}", __name__)
        except ModuleNotFoundError:
            pass
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def register_models() -> None:
    """Makes transformers' Auto classes know the models of every family, once; what somebody else has registered for one
    of the configurations stays."""
    if not BEFORE_FIRST_USE:
        return
    module = importlib.import_module(".modeling_t5_experimental", __name__)
    for auto, config_class, model_class in module.auto_classes():
        auto_class = getattr(transformers, auto)
        if config_class not in auto_class._model_mapping:
            auto_class.register(config_class, model_class)
    BEFORE_FIRST_USE.clear()


_describes_only = ContextVar("_describes_only", default=False)


@contextmanager
def without_models() -> Iterator[None]:
    """Makes configurations cheap in here: the models stay unregistered, if they are so yet, until the next one after.

    For programs that only describe models, as the converter does. Other threads are not concerned.
    """
    token = _describes_only.set(True)
    try:
        yield
    finally:
        _describes_only.reset(token)


def _before_first_use() -> None:
    if not _describes_only.get():
        register_models()


for _config_class in CONFIG_CLASSES:
    transformers.AutoConfig.register(_config_class.model_type, _config_class, exist_ok=True)
BEFORE_FIRST_USE.append(_before_first_use)
