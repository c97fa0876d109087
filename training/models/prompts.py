# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Soft prompts: initial values, and the prompts that Google released.

Sources: https://arxiv.org/abs/2104.08691, and the configurations of google-research/prompt-tuning.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerBase

from t5_experimental.configuration_t5_experimental import T5ExperimentalConfig
from t5_experimental.model_folders import ADAPTER_WEIGHTS

from ..errors import TrainingError, in_a_line, shown
from ..interruption import held_back
from ..permissions import share_as_usual
from .adapters import prompt_config


COMMON_TOKENS = 5000
"""Sentencepiece's unigram vocabularies are sorted by likelihood: these first tokens are the common ones."""

RANDOM_RANGE = 0.5


def random_rows(length: int, width: int, generator: torch.Generator) -> torch.Tensor:
    """Rows `(length, width)`, uniform from -0.5 to 0.5, as in the paper.

    The released code has `uniform(scale=0.5)`, which is 0 to 0.5 in jax.
    """
    return torch.empty(length, width).uniform_(-RANDOM_RANGE, RANDOM_RANGE, generator=generator)


def vocabulary_rows(
    embedding: torch.Tensor, tokenizer: PreTrainedTokenizerBase, length: int, generator: torch.Generator
) -> torch.Tensor:
    """Embedding rows of common tokens, drawn without replacement if there are enough of them.

    Args:
        embedding: `(vocabulary, d_model)`.
        tokenizer: has the special tokens, which are not drawn; the original, which draws from the first ids, may draw
            three of them.
        length: of the prompt.
        generator: of the draw.

    Returns:
        `(length, d_model)`.
    """
    special = set(tokenizer.all_special_ids)
    common = torch.tensor([index for index in range(len(tokenizer)) if index not in special][:COMMON_TOKENS])
    if length > len(common):
        drawn = torch.randint(len(common), (length,), generator=generator)
    else:
        drawn = torch.randperm(len(common), generator=generator)[:length]
    return embedding[common[drawn]].float()


def label_rows(embedding: torch.Tensor, tokenizer: PreTrainedTokenizerBase, labels: Sequence[str]) -> torch.Tensor:
    """One row per label: the embedding of its token, or the mean of its tokens' embeddings.

    Args:
        embedding: `(vocabulary, d_model)`.
        tokenizer: of the model.
        labels: the possible targets, such as `["positive", "negative"]`.

    Returns:
        `(labels, d_model)`.

    Raises:
        TrainingError: a label is empty, or has unknown tokens.
    """
    rows = []
    for label in labels:
        ids = tokenizer(label, add_special_tokens=False)["input_ids"]
        if not ids:
            raise TrainingError("--class_labels has an empty label: separate the labels by single commas.")
        if tokenizer.unk_token_id in ids:
            raise TrainingError(
                f"--class_labels: the tokenizer does not know all of {label!r}; give labels that it can encode."
            )
        rows.append(embedding[ids].float().mean(0))
    return torch.stack(rows)


def initial_rows(
    kind: str,
    labels: Sequence[str],
    embedding: torch.Tensor,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    generator: torch.Generator,
) -> torch.Tensor:
    """Initial values of a prompt, `(length, d_model)`, in float32.

    Args:
        kind: `"vocab"`, `"random"`, or `"labels"`, which fills the remaining rows from the vocabulary.
        labels: for `"labels"`.
        embedding: `(vocabulary, d_model)`.
        tokenizer: of the model.
        length: of the prompt.
        generator: of all draws.

    Raises:
        TrainingError: see [`label_rows`]; or there are more labels than rows.
    """
    if kind == "random":
        return random_rows(length, embedding.shape[1], generator)
    rows = vocabulary_rows(embedding, tokenizer, length, generator)
    if kind == "labels":
        if len(labels) > length:
            raise TrainingError(
                f"--class_labels has {len(labels)} labels for a prompt of {length} rows: raise --prompt_length."
            )
        rows[: len(labels)] = label_rows(embedding, tokenizer, labels)
    return rows


def prompt_to_tune(path: Path, config: T5ExperimentalConfig) -> torch.Tensor:
    """A prompt `(length, d_model)` in float32 to start from, of a numpy file or of the folder of an adapter.

    Raises:
        TrainingError: as for [`read_prompt`], or the folder holds no prompt of the model's width.
    """
    if not path.is_dir():
        return read_prompt(path, config, "--prompt_init")
    try:
        tensors = load_file(path / ADAPTER_WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise TrainingError(
            f"--prompt_init {path} has no {ADAPTER_WEIGHTS} that can be read ({in_a_line(error)}): give the folder of "
            "a prompt."
        ) from error
    rows = tensors.get("prompt_embeddings")
    if len(tensors) > 1 or rows is None or rows.ndim != 2 or rows.shape[1] != config.d_model:
        shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
        raise TrainingError(
            f"--prompt_init {path} holds {shown(shapes)}, which is no prompt of width {config.d_model}: give the "
            "folder of one for this model."
        )
    return rows.float()


def read_prompt(path: Path, config: T5ExperimentalConfig, option: str = "--import_prompt") -> torch.Tensor:
    """Reads a prompt `(length, d_model)` in float32 from a numpy file.

    Args:
        path: the file; its header is checked against the file's size, and pickled objects are refused.
        config: of the model that the prompt is for.
        option: that names it, for messages.

    Raises:
        TrainingError: it cannot be read, is not a float32 matrix of the model's width, or is not finite.
    """
    what = f"{option} {path}"
    try:
        rows = np.lib.format.open_memmap(path, mode="r")
    except OSError as error:
        raise TrainingError(f"{what} cannot be read ({error.strerror}): give the path of an .npy file.") from error
    except Exception as error:  # numpy evaluates the header, and a damaged one raises many types
        raise TrainingError(
            f"{what} is not a numpy file of numbers ({in_a_line(error)}): export the prompt again."
        ) from error
    if (more := path.stat().st_size - rows.offset - rows.nbytes) > 0:
        raise TrainingError(
            f"{what} has {more} bytes after the prompt, which may be another one: export it to a file of its own."
        )
    if rows.dtype != np.float32:
        raise TrainingError(f"{what} holds {rows.dtype}, not float32: convert it with numpy's astype.")
    if rows.ndim != 2 or len(rows) == 0:
        raise TrainingError(f"{what} has the shape {rows.shape}: a prompt is a matrix, one row for each position.")
    if rows.shape[1] != config.d_model:
        raise TrainingError(
            f"{what} has rows of {rows.shape[1]} numbers, but the model's width is {config.d_model}: choose the model "
            "that the prompt was trained with."
        )
    # Not through the map: the kernel kills a process that touches the missing part of a truncated file.
    numbers = np.fromfile(path, np.float32, rows.size, offset=rows.offset)
    if len(numbers) < rows.size:
        raise TrainingError(f"{what} was truncated while it was read: try again when nothing writes to it.")
    prompt = torch.from_numpy(numbers.reshape(rows.shape, order="F" if rows.flags.fnc else "C"))
    if not torch.isfinite(prompt).all():
        raise TrainingError(f"{what} has numbers that are infinite or NaN: export the prompt again.")
    return prompt


def save_prompt(rows: torch.Tensor, model_folder: str, config: T5ExperimentalConfig, folder: Path) -> None:
    """Writes a prompt as an adapter that `PeftModel.from_pretrained` loads; the model itself is not needed.

    The files are written to a temporary folder and moved at the end, `adapter_config.json` last: without it, nothing
    loads the folder.

    Args:
        rows: `(length, d_model)`.
        model_folder: of the model that the prompt is for, recorded for loading the adapter.
        config: of that model.
        folder: to write to; created if it does not exist.
    """
    adapter = prompt_config(*rows.shape)
    adapter.base_model_name_or_path = model_folder
    adapter.num_layers, adapter.num_attention_heads = config.num_layers, config.num_heads
    adapter.inference_mode = True
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder, prefix="unfinished-") as aside:
        save_file({"prompt_embeddings": rows.contiguous()}, Path(aside) / "adapter_model.safetensors")
        adapter.save_pretrained(aside)
        share_as_usual(Path(aside))
        with held_back():
            for name in ("adapter_model.safetensors", "adapter_config.json"):
                os.replace(Path(aside) / name, folder / name)
