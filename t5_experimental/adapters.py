# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""peft chooses the layers of an adapter by the type of the model: for ours, those that it chooses in stock T5."""

import importlib
from collections.abc import MutableMapping
from typing import Any


PEFT_TABLES = "peft.utils.constants"
_STOCK = "t5"


def add_to_peft(model_types: list[str]) -> None:
    """Adds types of models to every table of peft's that has stock T5; entries that are there stay.

    Args:
        model_types: of our configurations.
    """
    for name, table in vars(importlib.import_module(PEFT_TABLES)).items():
        if name.startswith("TRANSFORMERS_MODELS_TO_") and isinstance(table, MutableMapping) and _STOCK in table:
            entries: MutableMapping[str, Any] = table
            for model_type in model_types:
                entries.setdefault(model_type, entries[_STOCK])
