# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Which optimizers an engine that cuts parameters up leaves right, as said before training; the rest of sharding.py is
run by tests/engines."""

import pytest

from t5_experimental.training.engines.engine import CONFIGS, Engine
from t5_experimental.training.errors import TrainingError
from t5_experimental.training.optim.presets import PRESETS, OptimizerChoice
from t5_experimental.training.trainer.finetuning_arguments import FinetuningArguments
from t5_experimental.training.trainer.prompt_arguments import PromptTrainingArguments


FSDP1, FSDP2 = Engine("fsdp", 1, 2), Engine("fsdp", 2, 2)
NEEDS_WHOLE = [
    *(OptimizerChoice(preset) for preset in PRESETS if preset != "adamw"),
    OptimizerChoice(None, "adafactor", knows_shards=False),
]


@pytest.mark.parametrize("chosen", NEEDS_WHOLE, ids=lambda chosen: chosen.option)
def test_flat_pieces_have_no_rows(chosen):
    assert not FSDP1.allows(chosen)
    message = f"FSDP1 flattens and shards .* {chosen.option} takes .* choose --optimizer_preset adamw"
    with pytest.raises(TrainingError, match=message):
        FSDP1.check(chosen)


def test_transformers_adafactor_does_not_know_distributed_rows():
    with pytest.raises(TrainingError, match=r"--optim adafactor .the default.* choose --optimizer_preset finetune"):
        FSDP2.check(NEEDS_WHOLE[-1])
    for preset in PRESETS:
        FSDP2.check(OptimizerChoice(preset))


def test_options_know_whose_adafactor_it_is(tmp_path):
    for kind, knows in ((FinetuningArguments, False), (PromptTrainingArguments, True)):
        chosen = kind(output_dir=str(tmp_path)).chosen_optimizer()
        assert (chosen.option, chosen.takes_means, chosen.knows_shards) == ("--optim adafactor", True, knows)
        assert FSDP2.allows(chosen) is knows
        assert not FSDP1.allows(chosen)


@pytest.mark.parametrize("name", CONFIGS)
def test_adamw_is_right_everywhere(name):
    for engine in (Engine.named(name, 2), FSDP1):
        engine.check(OptimizerChoice("adamw"))
        engine.check(OptimizerChoice(None, "adamw_torch"))


@pytest.mark.parametrize("name", ["single", "ddp"])
def test_all_is_right_for_whole_parameters(name):
    for chosen in NEEDS_WHOLE:
        Engine.named(name, 2).check(chosen)
