# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Registers the classes with transformers' Auto classes; imports models and losses lazily.

Importing the models takes four seconds and importing the losses three, and the converter needs neither. So:

1. Importing the package registers only the configurations.
2. Creating the first configuration, without which no model can be loaded, imports and registers the models, through
   `BEFORE_FIRST_USE` in configuration_t5_experimental.py.
3. Accessing a model class or a loss as an attribute of the package imports it, through `import_later`.
4. `without_models` disables step 2, for code that only needs configurations.
"""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import transformers

from .configuration_t5_experimental import AUTO_CLASSES, BEFORE_FIRST_USE, CONFIG_CLASSES, model_class_name


MODEL_CLASSES = sorted(
    {model_class_name(config, suffix) for config in CONFIG_CLASSES for suffix in AUTO_CLASSES.values()}
)

_LOSSES = ("chunked_token_losses", "original_loss", "token_losses")

# Public name -> module that defines it.
IMPORTED_LATER = {
    **dict.fromkeys(MODEL_CLASSES, "modeling_t5_experimental"),
    **dict.fromkeys(_LOSSES, "loss_t5_experimental"),
    "decoding_session": "decoding_t5_experimental",
}

_PACKAGE = __name__.rpartition(".")[0]

_describes_only = ContextVar("_describes_only", default=False)


def import_later(name: str) -> Any:
    """`__getattr__` of the package: imports the module that defines a name in `IMPORTED_LATER`, or a module by its
    name.

    Raises:
        AttributeError: the package has no such name.
    """
    if name in IMPORTED_LATER:
        if name not in _LOSSES:
            register_models()
        value = getattr(importlib.import_module(f".{IMPORTED_LATER[name]}", _PACKAGE), name)
        setattr(sys.modules[_PACKAGE], name, value)
        return value
    if name.endswith("_t5_experimental"):
        try:
            return importlib.import_module(f".{name}", _PACKAGE)
        except ModuleNotFoundError:
            pass
    raise AttributeError(f"module {_PACKAGE!r} has no attribute {name!r}")


def register_models() -> None:
    """Registers the models of all families with transformers' Auto classes, once. Keeps model classes that are already
    registered for our configurations."""
    if not BEFORE_FIRST_USE:
        return
    module = importlib.import_module(".modeling_t5_experimental", _PACKAGE)
    for auto, config_class, model_class in module.auto_classes():
        auto_class = getattr(transformers, auto)
        if config_class not in auto_class._model_mapping:
            auto_class.register(config_class, model_class)
    BEFORE_FIRST_USE.clear()


def register_configs() -> None:
    """Registers the configurations with `AutoConfig`, and the models as soon as a configuration is created."""
    for config_class in CONFIG_CLASSES:
        transformers.AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
    BEFORE_FIRST_USE.append(_before_first_use)


@contextmanager
def without_models() -> Iterator[None]:
    """Creates configurations without importing the models, which the next configuration after the block does.

    For programs that only need configurations, such as the converter. Other threads are not affected.
    """
    token = _describes_only.set(True)
    try:
        yield
    finally:
        _describes_only.reset(token)


def _before_first_use() -> None:
    if not _describes_only.get():
        register_models()
