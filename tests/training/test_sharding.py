# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Which optimizers an engine that cuts parameters up leaves right, as said before training; the rest of sharding.py is
run by tests/engines."""

from types import SimpleNamespace

import pytest
from accelerate.utils import DistributedType

from t5_experimental.training.errors import TrainingError
from t5_experimental.training.optimizers import PRESETS
from t5_experimental.training.sharding import check_optimizer


ENGINES = {
    "DeepSpeed": SimpleNamespace(distributed_type=DistributedType.DEEPSPEED, is_fsdp2=False),
    "FSDP of the first kind": SimpleNamespace(distributed_type=DistributedType.FSDP, is_fsdp2=False),
    "FSDP": SimpleNamespace(distributed_type=DistributedType.FSDP, is_fsdp2=True),
    "one process": SimpleNamespace(distributed_type=DistributedType.NO, is_fsdp2=False),
}
NEEDS_WHOLE = [*((preset, "adafactor") for preset in PRESETS if preset != "adamw"), (None, "adafactor")]


@pytest.mark.parametrize(("preset", "optim"), NEEDS_WHOLE)
@pytest.mark.parametrize("engine", ["DeepSpeed", "FSDP of the first kind"])
def test_flat_pieces_have_no_rows(engine, preset, optim):
    chosen = f"--optimizer_preset {preset}" if preset else f"--optim {optim}"
    with pytest.raises(TrainingError, match=f"{engine} cuts .* {chosen} takes .* choose --optimizer_preset adamw"):
        check_optimizer(preset, optim, ENGINES[engine])


def test_transformers_adafactor_does_not_know_distributed_rows():
    with pytest.raises(TrainingError, match=r"--optim adafactor .the default.* choose --optimizer_preset finetune"):
        check_optimizer(None, "adafactor", ENGINES["FSDP"])
    for preset in PRESETS:
        check_optimizer(preset, "adafactor", ENGINES["FSDP"])


@pytest.mark.parametrize("engine", ENGINES)
def test_adamw_is_right_everywhere(engine):
    check_optimizer("adamw", "adafactor", ENGINES[engine])
    check_optimizer(None, "adamw_torch", ENGINES[engine])


def test_all_is_right_for_whole_parameters():
    for preset, optim in NEEDS_WHOLE:
        check_optimizer(preset, optim, ENGINES["one process"])
