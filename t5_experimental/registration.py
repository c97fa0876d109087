# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Registers the classes with transformers' Auto classes, and imports everything else of the package when it is used.

torch and transformers take three seconds to import, the models four more and the losses three, and a command that
prints its help, or converts a checkpoint, needs none of them. So:

1. Importing the package imports neither. Transformers' table of configurations and ours are registered with each other
   as soon as either of them is imported (at once, if it already is), through a finder in `sys.meta_path`.
2. Creating the first configuration, without which no model can be loaded, imports and registers the models, through
   `BEFORE_FIRST_USE` in configuration_t5_experimental.py.
   Their fields alone, architecture_t5_experimental.py, import neither.
3. Accessing a public name of the package imports the module that defines it, through `import_later`.
4. peft's tables learn our types of models when they are imported (adapters.py).
5. `without_models` disables step 2, for code that only needs configurations.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from .adapters import PEFT_TABLES, add_to_peft
from .architecture_t5_experimental import FAMILIES


_PACKAGE = __name__.rpartition(".")[0]
_CONFIGURATIONS = f"{_PACKAGE}.configuration_t5_experimental"
_AUTO_CONFIG = "transformers.models.auto.configuration_auto"

_FAMILIES = ("T5V11", "T5LMAdapted", "T5TalkingHeads", "T5FirstLayersNarrow")
_KINDS = (
    "EncoderModel",
    "ForConditionalGeneration",
    "ForQuestionAnswering",
    "ForSequenceClassification",
    "ForTokenClassification",
    "Model",
)
CONFIG_NAMES = (*(f"{family}Config" for family in _FAMILIES), "LayerSpec", "T5ExperimentalConfig")
MODEL_CLASSES = sorted(f"{family}{kind}" for family in _FAMILIES for kind in _KINDS)

_LOSSES = ("chunked_token_losses", "original_loss", "token_losses")

# Public name -> module that defines it.
IMPORTED_LATER = {
    **dict.fromkeys(CONFIG_NAMES, "configuration_t5_experimental"),
    "LayerSpec": "architecture_t5_experimental",
    **dict.fromkeys(("PRESETS", "preset_config"), "presets"),
    **dict.fromkeys(MODEL_CLASSES, "modeling_t5_experimental"),
    **dict.fromkeys(_LOSSES, "loss_t5_experimental"),
    "decoding_session": "decoding_t5_experimental",
}

_describes_only = ContextVar("_describes_only", default=False)


def import_later(name: str) -> Any:
    """`__getattr__` of the package: imports the module that defines a name in `IMPORTED_LATER`, or a module by its
    name.

    Raises:
        AttributeError: the package has no such name.
    """
    if name in IMPORTED_LATER:
        if name in MODEL_CLASSES or name == "decoding_session":
            register_models()
        value = getattr(importlib.import_module(f".{IMPORTED_LATER[name]}", _PACKAGE), name)
        setattr(sys.modules[_PACKAGE], name, value)
        return value
    if name.endswith("_t5_experimental") or name == "presets":
        try:
            return importlib.import_module(f".{name}", _PACKAGE)
        except ModuleNotFoundError as error:
            if error.name != f"{_PACKAGE}.{name}":
                raise
    raise AttributeError(f"module {_PACKAGE!r} has no attribute {name!r}")


def register_models() -> None:
    """Registers the models of all families with transformers' Auto classes, once. Keeps model classes that are already
    registered for our configurations."""
    import transformers

    configurations = importlib.import_module(_CONFIGURATIONS)
    if not configurations.BEFORE_FIRST_USE:
        return
    module = importlib.import_module(".modeling_t5_experimental", _PACKAGE)
    for auto, config_class, model_class in module.auto_classes():
        auto_class = getattr(transformers, auto)
        if config_class not in auto_class._model_mapping:
            auto_class.register(config_class, _choices(module, model_class) if auto == "AutoModel" else model_class)
    configurations.BEFORE_FIRST_USE.clear()


def _choices(module: ModuleType, model_class: type) -> tuple[type, ...]:
    """Of several classes transformers takes the one that `architectures` in config.json names, or else the first: a
    folder with an encoder alone must not become a model with a random decoder."""
    return model_class, getattr(module, f"{model_class.__name__.removesuffix('Model')}EncoderModel")


def register_configs() -> None:
    """Registers the configurations with `AutoConfig`, and the models as soon as a configuration is created: now if
    transformers' table of configurations is imported, else when it or ours is. Likewise with peft's tables."""
    _after_import((_AUTO_CONFIG, _CONFIGURATIONS), _register_now)
    _after_import((PEFT_TABLES,), _register_with_peft)


def _register_now() -> None:
    configurations = importlib.import_module(_CONFIGURATIONS)
    auto_config = importlib.import_module(_AUTO_CONFIG).AutoConfig
    for config_class in configurations.CONFIG_CLASSES:
        auto_config.register(config_class.model_type, config_class, exist_ok=True)
    configurations.BEFORE_FIRST_USE.append(_before_first_use)


def _register_with_peft() -> None:
    add_to_peft([family.model_type for family in FAMILIES])


def _after_import(names: tuple[str, ...], action: Callable[[], None]) -> None:
    """Calls a function now if the first of some modules is imported, else as soon as one of them is."""
    if names[0] in sys.modules:
        action()
    else:
        sys.meta_path.insert(0, _Finder(names, action))


class _Finder(MetaPathFinder):
    """Leaves it to the other finders to find the modules, and calls a function when the first one has been executed."""

    def __init__(self, names: tuple[str, ...], action: Callable[[], None]) -> None:
        self._names = names
        self._action = action

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self._names or self not in sys.meta_path:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            try:
                execute(module)
            except BaseException:
                _after_import(self._names, self._action)  # with the next attempt
                raise
            self._action()

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


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
