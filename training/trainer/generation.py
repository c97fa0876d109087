# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Generation settings of a run, which become the defaults of the saved model: the model's own, with what the run
overrides."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

from transformers import PreTrainedModel, Seq2SeqTrainer, Seq2SeqTrainingArguments

from ..errors import TrainingError, in_a_line


_SPECIAL_TOKENS = ("decoder_start_token_id", "eos_token_id", "pad_token_id")


def settle_generation(model: PreTrainedModel, args: Seq2SeqTrainingArguments, longest: int) -> None:
    """Sets the model's generation defaults, for evaluation and for the saved model.

    Args:
        model: of the run, without adapters.
        args: of the run. `--generation_config` replaces the model's own settings here; transformers would set it on the
            adapter wrapper, where the model does not see it.
        longest: target, in tokens: the maximum length unless `--generation_max_length` or `--generation_config` sets
            one. In the settings, the decoder's start token counts, too.

    Raises:
        TrainingError: the settings do not load, or contradict each other; transformers would only notice on saving.
    """
    config: Any = model.generation_config
    if args.generation_config is not None:
        given = _load(args.generation_config)
        for name in _SPECIAL_TOKENS:
            if getattr(given, name) is None:
                setattr(given, name, getattr(config, name))
        config, args.generation_config = given, None
        has_length = given.max_length is not None or given.max_new_tokens is not None
    else:
        has_length = False  # the model's own length is for its previous training
    if args.generation_max_length is None and not has_length:
        args.generation_max_length = longest + 1
    if args.generation_max_length is not None:
        config.max_length, config.max_new_tokens = args.generation_max_length, None
    if args.generation_num_beams is not None:
        config.num_beams = args.generation_num_beams
    config._from_model_config = None  # no longer derived from it
    try:
        config.validate(strict=True)
    except ValueError as error:
        raise TrainingError(
            f"The generation settings contradict each other ({in_a_line(error)}): change generation_config.json in the "
            "model's folder, --generation_config, or the options of this run."
        ) from error
    model.generation_config = config


def _load(name: Any) -> Any:
    try:
        return Seq2SeqTrainer.load_generation_config(name)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise TrainingError(
            f"--generation_config {name} does not load ({in_a_line(error)}): give a generation_config.json, or the "
            "folder of one."
        ) from error


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
