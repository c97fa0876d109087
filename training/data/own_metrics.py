# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Metrics that users write: `--metric my_module:function`.

The function gets the predictions, a list of texts, and the references, a list of lists of texts, and returns a
dictionary of numbers by name.
"""

import importlib
import re
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path
from typing import Any

from ..errors import TrainingError, in_a_line, shown


References = Sequence[Sequence[str]]

_NAME = re.compile(r"([A-Za-z_][\w.]*):([A-Za-z_]\w*)")


def is_own(name: str) -> bool:
    """Whether a metric's name is that of a function in a module."""
    return _NAME.fullmatch(name) is not None


def load_own(name: str) -> Callable[[Sequence[str], References], Any]:
    """The function of a metric `my_module:function`. The module may be a file in the working directory, as for `python
    -m`, however the run was started.

    Raises:
        TrainingError: there is no such module or function, or importing the module fails.
    """
    module, _, function = name.partition(":")
    try:
        found = getattr(_import(module), function, None)
    except Exception as error:  # the module's own code may raise anything
        raise TrainingError(
            f"--metric {name}: the module {module} does not load ({type(error).__name__}: {in_a_line(error)}): give a "
            "module in the working directory, or an installed one."
        ) from error
    if not callable(found):
        raise TrainingError(f"--metric {name}: the module {module} has no function {function}; name one that it has.")
    return found


def _import(name: str) -> Any:
    """Imports a module, first from the working directory: launchers put the entry point's folder in its place."""
    top = name.partition(".")[0]
    if top not in sys.modules and (spec := PathFinder.find_spec(top, [str(Path.cwd()), *sys.path])) is not None:
        sys.modules[top] = module = module_from_spec(spec)
        try:
            if spec.loader is not None:  # folders without __init__.py have none
                spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[top]
            raise
    return importlib.import_module(name)


def figures_of_own(name: str, predictions: Sequence[str], references: References) -> dict[str, float]:
    """The figures of one's own function.

    Raises:
        TrainingError: it raises an error, or returns something else than a dictionary of numbers.
    """
    function = load_own(name)
    try:
        figures = function(list(predictions), [list(texts) for texts in references])
    except Exception as error:
        raise TrainingError(
            f"--metric {name} raised {type(error).__name__} ({in_a_line(error)}) for {len(predictions):,} predictions: "
            "correct the function."
        ) from error
    if not isinstance(figures, dict) or not figures or not all(map(_is_figure, figures.items())):
        raise TrainingError(f"--metric {name} returned {shown(figures)}: return a dictionary of numbers by name.")
    return {figure: float(value) for figure, value in figures.items()}


def _is_figure(item: tuple[Any, Any]) -> bool:
    name, value = item
    if not isinstance(name, str) or not name or isinstance(value, bool) or not hasattr(value, "__float__"):
        return False
    try:
        float(value)
    except Exception:  # of an array of several numbers
        return False
    return True
