# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Which optimizers an engine that cuts parameters up leaves right, as said before training; the rest of sharding.py is
run by tests/engines."""

from types import SimpleNamespace

import pytest
from accelerate.utils import DistributedType

from t5_experimental.training.engines.fsdp2 import check_optimizer_under_fsdp
from t5_experimental.training.errors import TrainingError
from t5_experimental.training.optim.presets import PRESETS


ENGINES = {
    "FSDP of the first kind": SimpleNamespace(distributed_type=DistributedType.FSDP, is_fsdp2=False),
    "FSDP": SimpleNamespace(distributed_type=DistributedType.FSDP, is_fsdp2=True),
    "one process": SimpleNamespace(distributed_type=DistributedType.NO, is_fsdp2=False),
}
NEEDS_WHOLE = [*((preset, "adafactor") for preset in PRESETS if preset != "adamw"), (None, "adafactor")]


@pytest.mark.parametrize(("preset", "optim"), NEEDS_WHOLE)
def test_flat_pieces_have_no_rows(preset, optim):
    engine = "FSDP of the first kind"
    chosen = f"--optimizer_preset {preset}" if preset else f"--optim {optim}"
    with pytest.raises(TrainingError, match=f"{engine} cuts .* {chosen} takes .* choose --optimizer_preset adamw"):
        check_optimizer_under_fsdp(preset, optim, ENGINES[engine])


def test_transformers_adafactor_does_not_know_distributed_rows():
    with pytest.raises(TrainingError, match=r"--optim adafactor .the default.* choose --optimizer_preset finetune"):
        check_optimizer_under_fsdp(None, "adafactor", ENGINES["FSDP"])
    for preset in PRESETS:
        check_optimizer_under_fsdp(preset, "adafactor", ENGINES["FSDP"])


@pytest.mark.parametrize("engine", ENGINES)
def test_adamw_is_right_everywhere(engine):
    check_optimizer_under_fsdp("adamw", "adafactor", ENGINES[engine])
    check_optimizer_under_fsdp(None, "adamw_torch", ENGINES[engine])


def test_all_is_right_for_whole_parameters():
    for preset, optim in NEEDS_WHOLE:
        check_optimizer_under_fsdp(preset, optim, ENGINES["one process"])
