# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Configurations of the fifteen released checkpoints, as differences from the base size of their family."""

from typing import TYPE_CHECKING, Any

from .architecture_t5_experimental import (
    T5ExperimentalArchitecture,
    T5FirstLayersNarrowArchitecture,
    T5LMAdaptedArchitecture,
    T5TalkingHeadsArchitecture,
    T5V11Architecture,
)


if TYPE_CHECKING:
    from .configuration_t5_experimental import T5ExperimentalConfig


# Sizes of both t5.1.1 and t5.1.1.lm100k. Source: the gin files of the `t5` package, version 0.9.4.
_T5_1_1_SIZES: dict[str, dict[str, Any]] = {
    "small": {"d_model": 512, "num_layers": 8, "num_heads": 6, "d_ff": 1024},
    "base": {},
    "large": {"d_model": 1024, "num_layers": 24, "num_heads": 16, "d_ff": 2816},
    "xl": {"d_model": 2048, "num_layers": 24, "num_heads": 32, "d_ff": 5120},
    "xxl": {"d_model": 4096, "num_layers": 24, "num_heads": 64, "d_ff": 10240},
}

_FAMILIES: dict[str, tuple[type[T5ExperimentalArchitecture], dict[str, dict[str, Any]]]] = {
    "t5.1.1": (T5V11Architecture, _T5_1_1_SIZES),
    "t5.1.1.lm100k": (T5LMAdaptedArchitecture, _T5_1_1_SIZES),
    "t5.1.th": (
        T5TalkingHeadsArchitecture,
        {"base": {}, "large": {"d_model": 1024, "num_layers": 24, "num_heads": 32, "d_ff": 2816}},
    ),
    "t5.1.n4w10": (
        T5FirstLayersNarrowArchitecture,
        {
            "base": {},
            "large": {"d_model": 1024, "num_heads": 32, "d_ff": 5120},
            "xl": {"d_model": 2048, "num_heads": 64, "d_ff": 10240},
        },
    ),
}

PRESETS: tuple[str, ...] = tuple(f"{family}.{size}" for family, (_, sizes) in _FAMILIES.items() for size in sizes)
"""Names of the fifteen released checkpoints, by family, from small to large."""


def preset_architecture(name: str) -> T5ExperimentalArchitecture:
    """Architecture of a released checkpoint, for which neither torch nor transformers is imported.

    Args:
        name: one of [`PRESETS`], such as "t5.1.th.base".

    Raises:
        ValueError: there is no released checkpoint of that name.
    """
    family, sizes = _preset(name)
    return family(**sizes)


def preset_config(name: str, **overrides: Any) -> "T5ExperimentalConfig":
    """Configuration of a released checkpoint.

    Args:
        name: one of [`PRESETS`], such as "t5.1.th.base".
        overrides: other values of configuration fields, such as `dropout_rate=0.0`.

    Raises:
        ValueError: there is no released checkpoint of that name.
    """
    family, sizes = _preset(name)
    from . import configuration_t5_experimental as configurations

    return getattr(configurations, f"{family.class_prefix}Config")(**{**sizes, **overrides})


def _preset(name: str) -> tuple[type[T5ExperimentalArchitecture], dict[str, Any]]:
    family, _, size = name.rpartition(".")
    architecture, sizes = _FAMILIES.get(family, (None, {}))
    if architecture is None or size not in sizes:
        raise ValueError(f"{name!r} is not a released checkpoint; these are: {', '.join(PRESETS)}.")
    return architecture, sizes[size]
