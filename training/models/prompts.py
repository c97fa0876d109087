# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Soft prompts: what they begin with, what they are tuned with, and those that Google released.

Sources: https://arxiv.org/abs/2104.08691, and the configurations of google-research/prompt-tuning.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerBase

from t5_experimental.configuration_t5_experimental import T5ExperimentalConfig

from ..errors import TrainingError, in_a_line
from ..interruption import held_back
from ..permissions import share_as_usual
from .adapters import prompt_config


COMMON_TOKENS = 5000
"""A vocabulary of sentencepiece's unigram kind is sorted by likelihood: these many at its front are the common ones."""

RANDOM_RANGE = 0.5


def random_rows(length: int, width: int, generator: torch.Generator) -> torch.Tensor:
    """Rows `(length, width)`, uniform from -0.5 to 0.5, as in the paper.

    The released code says `uniform(scale=0.5)` for it, which jax takes for numbers from 0 to 0.5.
    """
    return torch.empty(length, width).uniform_(-RANDOM_RANGE, RANDOM_RANGE, generator=generator)


def vocabulary_rows(
    embedding: torch.Tensor, tokenizer: PreTrainedTokenizerBase, length: int, generator: torch.Generator
) -> torch.Tensor:
    """Rows of the embedding of common tokens, drawn without replacement as long as there are enough of them.

    Args:
        embedding: `(vocabulary, d_model)`.
        tokenizer: tells the special tokens, which are not drawn; the original, which draws from the first ids, may
            take three of them.
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
    """A row for each label: its token's, or the mean of its tokens'.

    Args:
        embedding: `(vocabulary, d_model)`.
        tokenizer: of the model.
        labels: what the targets are, as `["positive", "negative"]`.

    Returns:
        `(labels, d_model)`.

    Raises:
        TrainingError: a label is empty, or the tokenizer does not know all of it.
    """
    rows = []
    for label in labels:
        ids = tokenizer(label, add_special_tokens=False)["input_ids"]
        if not ids:
            raise TrainingError("--class_labels has an empty label: separate the labels by single commas.")
        if tokenizer.unk_token_id in ids:
            raise TrainingError(
                f"--class_labels: the tokenizer does not know all of {label!r}; give labels that it can write."
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
    """What a prompt begins with, `(length, d_model)`, in float32.

    Args:
        kind: `"vocab"`, `"random"`, or `"labels"`, which fills the rows after the labels' own from the vocabulary.
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


def read_prompt(path: Path, config: T5ExperimentalConfig) -> torch.Tensor:
    """A prompt from a numpy file, `(length, d_model)`, in float32 as it stands there.

    Args:
        path: the file; its header is believed only as far as the file's size bears it out, and objects are refused.
        config: of the model that the prompt is for.

    Raises:
        TrainingError: it cannot be read, is not a matrix of float32 of the model's width, or is not finite.
    """
    said = f"--import_prompt {path}"
    try:
        rows = np.lib.format.open_memmap(path, mode="r")
    except OSError as error:
        raise TrainingError(f"{said} cannot be read ({error.strerror}): give the path of an .npy file.") from error
    except Exception as error:  # numpy evaluates the header, and a damaged one ends in errors of all kinds
        raise TrainingError(
            f"{said} is not a numpy file of numbers ({in_a_line(error)}): export the prompt once more."
        ) from error
    if (more := path.stat().st_size - rows.offset - rows.nbytes) > 0:
        raise TrainingError(
            f"{said} has {more} bytes behind the prompt, which may be another one: export it into a file of its own."
        )
    if rows.dtype != np.float32:
        raise TrainingError(f"{said} holds {rows.dtype}, not float32: convert it with numpy's astype.")
    if rows.ndim != 2 or len(rows) == 0:
        raise TrainingError(f"{said} has the shape {rows.shape}: a prompt is a matrix, one row for each position.")
    if rows.shape[1] != config.d_model:
        raise TrainingError(
            f"{said} has rows of {rows.shape[1]} numbers, but the model's width is {config.d_model}: choose the model "
            "that the prompt was trained with."
        )
    # Not through the map, as the system ends a process that touches what a file has lost meanwhile.
    numbers = np.fromfile(path, np.float32, rows.size, offset=rows.offset)
    if len(numbers) < rows.size:
        raise TrainingError(f"{said} became shorter while it was read: try again when nothing writes to it.")
    prompt = torch.from_numpy(numbers.reshape(rows.shape, order="F" if rows.flags.fnc else "C"))
    if not torch.isfinite(prompt).all():
        raise TrainingError(f"{said} has numbers that are infinite or NaN: export the prompt once more.")
    return prompt


def save_prompt(rows: torch.Tensor, model_folder: str, config: T5ExperimentalConfig, folder: Path) -> None:
    """Writes a prompt as an adapter that `PeftModel.from_pretrained` loads; the model itself is not needed.

    The files are written aside and moved when all are there, `adapter_config.json` last: without it, nothing loads the
    folder.

    Args:
        rows: `(length, d_model)`.
        model_folder: of the model that the prompt is for, recorded for those who load the adapter.
        config: of that model.
        folder: to be written, made unless it is there.
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
