# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""What `convert.py` measures in processes of their own, besides whole commands. Each prints one line of JSON."""

import json
import os
import sys
import time
from contextlib import suppress
from pathlib import Path


def stream(source: str, output: str, dtype: str) -> None:
    """The streaming part of a conversion: all is imported and planned before the clock starts.

    Args:
        source: a checkpoint's folder.
        output: folder to make and write the tensors to; they are on the disk when the clock stops.
        dtype: of the tensors to write.
    """
    from t5_experimental import without_models
    from t5_experimental.convert.output.safetensors_writer import write_tensors
    from t5_experimental.convert.pipeline import inspect

    with without_models():
        found = inspect(source, dtype=dtype)
    Path(output).mkdir()
    start, cpu_start = time.perf_counter(), time.process_time()
    write_tensors(found.plan, found.reader, Path(output))
    figures = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu_start}
    print(json.dumps(figures))


def tensorflow(source: str, mapping: str, output: str) -> None:
    """The road without this package: TensorFlow reads, a stock T5 takes the weights and saves them.

    Args:
        source: a checkpoint's prefix.
        mapping: JSON file with "config", fields of `T5Config`, and "tensors": by the model's names, the variable's name
            and whether to transpose it.
        output: folder for the model.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import torch

    with suppress(ImportError):
        # torch imports it when it is there, and the process aborts if TensorFlow came first.
        import triton  # noqa: F401
    import tensorflow as tf
    from transformers import T5Config, T5ForConditionalGeneration

    fields = json.loads(Path(mapping).read_text(encoding="utf-8"))
    config = T5Config(**fields["config"])
    # T5Config of transformers 5 sets it, regardless of its arguments.
    config.tie_word_embeddings = False
    model = T5ForConditionalGeneration(config)
    # So told, it gives its stacks embeddings of their own, too.
    model.set_input_embeddings(model.shared)
    parameters = dict(model.named_parameters())
    reader = tf.train.load_checkpoint(source)
    with torch.no_grad():
        for name, (variable, transposed) in fields["tensors"].items():
            array = torch.from_numpy(reader.get_tensor(variable))
            parameters.pop(name).copy_(array.T if transposed else array)
    if parameters:
        raise RuntimeError(f"{', '.join(parameters)} got no weight, so the time says nothing.")
    model.save_pretrained(output)
    print(json.dumps({"tensorflow": tf.__version__}))


if __name__ == "__main__":
    {"stream": stream, "tensorflow": tensorflow}[sys.argv[1]](*sys.argv[2:])
