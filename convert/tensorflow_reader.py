# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Reading a checkpoint through TensorFlow."""

import importlib.util
import os
from pathlib import Path
from typing import Any

import numpy as np

from .checkpoint import Variable
from .errors import ConversionError


class TensorFlowReader:
    """`CheckpointReader` on top of `tf.train.load_checkpoint`.

    Attributes:
        variables: all variables, sorted by name, which is the order in which TensorFlow's saver writes them.
    """

    def __init__(self, prefix: Path) -> None:
        """Opens a checkpoint.

        Args:
            prefix: path without ".index".

        Raises:
            ConversionError: TensorFlow is not installed, or cannot read the index.
        """
        self._prefix = prefix
        tensorflow = _import_tensorflow()
        try:
            self._reader = tensorflow.train.load_checkpoint(str(prefix))
            shapes = self._reader.get_variable_to_shape_map()
            dtypes = self._reader.get_variable_to_dtype_map()
        except Exception as error:  # TensorFlow raises its own classes, RuntimeError and ValueError for a bad file.
            raise ConversionError(f"{prefix}.index is not a readable checkpoint: {_first_line(error)}.") from error
        self.variables = {name: Variable(name, tuple(shapes[name]), dtypes[name].name) for name in sorted(shapes)}

    def read(self, name: str) -> np.ndarray:
        """See `CheckpointReader.read`."""
        try:
            return np.asarray(self._reader.get_tensor(name))
        except Exception as error:  # as above; a truncated data file shows up here.
            raise ConversionError(
                f"{name} cannot be read from {self._prefix.name}: {_first_line(error)}; copy the checkpoint again."
            ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _import_tensorflow() -> Any:
    # Read by TensorFlow's C++ side when it is loaded; its start-up messages say nothing about the conversion.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    if importlib.util.find_spec("triton") is not None:
        # Both bring an LLVM; the process aborts when Triton's is loaded second.
        import triton  # noqa: F401
    try:
        import tensorflow
    except ImportError as error:
        raise ConversionError(
            "TensorFlow, which reads the checkpoint, is not installed: pip install 't5-experimental[convert]'."
        ) from error
    return tensorflow
