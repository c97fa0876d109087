# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""How texts are generated in a run, which is also what its saved model does by default: the model's own settings, and
what the run knows better."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

from transformers import PreTrainedModel, Seq2SeqTrainer, Seq2SeqTrainingArguments

from ..errors import TrainingError, in_a_line


_SPECIAL_TOKENS = ("decoder_start_token_id", "eos_token_id", "pad_token_id")


def settle_generation(model: PreTrainedModel, args: Seq2SeqTrainingArguments, longest: int) -> None:
    """Makes what a run knows the default of its model: texts are evaluated with it, and it is saved.

    Args:
        model: of the run, without adapters.
        args: of the run. What `--generation_config` names takes the place of the model's own settings here, since
            transformers would set it on the outside of adapters, where the model does not see it.
        longest: target, in tokens: how long texts get unless `--generation_max_length` or `--generation_config` says
            so. In the settings the decoder's start token counts, too.

    Raises:
        TrainingError: the settings do not load, or contradict each other; transformers would find that out when it
            saves them.
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
        has_length = False  # that of the model is for what it was trained on before
    if args.generation_max_length is None and not has_length:
        args.generation_max_length = longest + 1
    if args.generation_max_length is not None:
        config.max_length, config.max_new_tokens = args.generation_max_length, None
    if args.generation_num_beams is not None:
        config.num_beams = args.generation_num_beams
    config._from_model_config = None  # it says more now
    try:
        config.validate(strict=True)
    except ValueError as error:
        raise TrainingError(
            f"The settings of generation contradict each other ({in_a_line(error)}): change generation_config.json "
            "in the model's folder, --generation_config, or the options of this run."
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
    """Keeps a model's settings of generation as they are: transformers' trainer spells out every default there once it
    has generated, and with them a limit of 20 tokens."""
    config = model.generation_config
    model.generation_config = deepcopy(config)
    try:
        yield
    finally:
        model.generation_config = config
