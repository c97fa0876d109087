# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Generation settings of a run, which become the defaults of the saved model: the model's own, with what the run
overrides. Also the order in which texts are generated, and how likely they are."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, Seq2SeqTrainer, Seq2SeqTrainingArguments
from transformers.utils import GENERATION_CONFIG_NAME

from t5_experimental.loss_t5_experimental import IGNORE_INDEX, token_losses

from ..errors import TrainingError, in_a_line


# Logits that exist at once when texts are scored: 1 GB in float32.
_MOST_LOGITS = 2**28

_SPECIAL_TOKENS = ("decoder_start_token_id", "eos_token_id", "pad_token_id")


def settle_generation(
    model: PreTrainedModel,
    args: Seq2SeqTrainingArguments,
    longest: int,
    keep_length: bool = False,
    adapter: str | None = None,
) -> None:
    """Sets the model's generation defaults, for evaluation and for the saved model.

    Args:
        model: of the run, without adapters.
        args: of the run. `--generation_config` replaces the model's own settings here; transformers would set it on the
            adapter wrapper, where the model does not see it.
        longest: target, in tokens: the maximum length unless `--generation_max_length` or `--generation_config` sets
            one. In the settings, the decoder's start token counts, too.
        keep_length: the model's own maximum length, if it has one, comes before `longest`. It is for what the model was
            trained on before.
        adapter: folder of one for the model. The settings of its training, if it has them, come before the model's.

    Raises:
        TrainingError: the settings do not load, or contradict each other; transformers would only notice on saving.
    """
    config: Any = model.generation_config
    if adapter is not None and (Path(adapter) / GENERATION_CONFIG_NAME).is_file():
        config = _load(adapter, config, f"The {GENERATION_CONFIG_NAME} of {adapter}")
    if args.generation_config is not None:
        given = _load(args.generation_config, config, f"--generation_config {args.generation_config}")
        config, args.generation_config = given, None
        has_length = given.max_length is not None or given.max_new_tokens is not None
    else:
        has_length = keep_length and (config.max_length is not None or config.max_new_tokens is not None)
    if args.generation_max_length is None and not has_length:
        args.generation_max_length = longest + 1
    if args.generation_max_length is not None:
        config.max_length, config.max_new_tokens = args.generation_max_length, None
    elif config.max_length is not None and config.max_length < 2 and config.max_new_tokens is None:
        raise TrainingError(
            f"The generation settings have max_length {config.max_length}, which the decoder's start token fills: give "
            "--generation_max_length."
        )
    if args.generation_num_beams is not None:
        config.num_beams = args.generation_num_beams
    if (config.num_return_sequences or 1) != 1:
        raise TrainingError(
            f"The generation settings ask for {config.num_return_sequences} texts of each input, and an evaluation "
            "compares one: set num_return_sequences to 1 in generation_config.json of the model's folder, or in "
            "--generation_config."
        )
    config._from_model_config = None  # no longer derived from it
    try:
        config.validate(strict=True)
    except ValueError as error:
        raise TrainingError(
            f"The generation settings contradict each other ({in_a_line(error)}): change generation_config.json in the "
            "model's folder, --generation_config, or the options of this run."
        ) from error
    model.generation_config = config


def _load(name: Any, model_settings: Any, what: str) -> Any:
    """Settings of a file or folder, with the special tokens of the model's where they have none."""
    try:
        settings = Seq2SeqTrainer.load_generation_config(name)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise TrainingError(
            f"{what} does not load ({in_a_line(error)}): give a generation_config.json, or the folder of one."
        ) from error
    for token in _SPECIAL_TOKENS:
        if getattr(settings, token) is None:
            setattr(settings, token, getattr(model_settings, token))
    return settings


@contextmanager
def keeping_generation(model: Any) -> Iterator[None]:
    """Preserves a model's generation settings: transformers' trainer fills in every default once it has generated,
    among them a limit of 20 tokens."""
    config = model.generation_config
    model.generation_config = deepcopy(config)
    try:
        yield
    finally:
        model.generation_config = config


def by_length(lengths: Sequence[int], window: int) -> list[int]:
    """The order of rows of these lengths: the longest first within every window of this number of rows."""
    order: list[int] = []
    for begin in range(0, len(lengths), window):
        rows = range(begin, min(begin + window, len(lengths)))
        order += sorted(rows, key=lambda row: -lengths[row])
    return order


@torch.no_grad()
def sequence_scores(
    model: Any, inputs: Mapping[str, torch.Tensor], ids: torch.Tensor, generation_config: Any
) -> torch.Tensor:
    """Log-probabilities of generated texts: sums over their tokens, with the one that ends them, in float32.

    Other than what `generate` returns, they are comparable between ways of searching: its scores are those after
    temperature and penalties, and divided by a power of the length for beams.

    Args:
        model: encoder-decoder, possibly with adapters.
        inputs: the encoder's `input_ids` and `attention_mask`, `(batch, source)`.
        ids: `(batch, length)`, as `generate` returns them: the start token first, anything after the end.
        generation_config: has the tokens that end a text.

    Returns:
        `(batch,)`.
    """
    targets = ids[:, 1:]
    ends = torch.isin(targets, torch.as_tensor(generation_config.eos_token_id, device=ids.device))
    after = (ends.cumsum(1) - ends.int()) > 0
    labels = targets.masked_fill(after, IGNORE_INDEX)
    encoder = {name: inputs[name] for name in ("input_ids", "attention_mask") if inputs.get(name) is not None}
    # The number of parts is the same on all processes: engines that shard weights need equally many forward passes.
    rows = max(_MOST_LOGITS // (labels.shape[1] * model.config.vocab_size), 1)
    if ids.device.type != "xla":  # where every length needs a program of its own
        labels = labels[:, : int((~after).sum(1).max())]
    scores = []
    for begin in range(0, len(ids), rows):
        part = slice(begin, begin + rows)
        logits = model(**{name: values[part] for name, values in encoder.items()}, labels=labels[part]).logits
        losses = token_losses(logits, labels[part].clamp(min=0))
        scores.append(-losses.masked_fill(labels[part] == IGNORE_INDEX, 0).sum(1))
    return torch.cat(scores)
