# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Runs under the rules of Windows, which are pretended; see `tests/support/windows_rules.py`."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from t5_experimental.training import finetune, interruption
from t5_experimental.training.trainer import saving
from tests.support.windows_rules import SIGBREAK, windows_rules


DATA = Path(__file__).parents[1] / "data"


@pytest.fixture(autouse=True)
def _windows() -> Iterator[None]:
    with windows_rules():
        yield


def run(model: Path, output: Path, **options: object) -> None:
    given = {
        "model_name_or_path": model,
        "train_file": DATA / "restaurants_train.jsonl",
        "output_dir": output,
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
        "per_device_train_batch_size": 4,
        "save_steps": 1,
        "save_total_limit": 1,
        "optimizer_preset": "adamw",
        **options,
    }
    finetune.main([word for name, value in given.items() for word in (f"--{name}", str(value))])


def test_a_run_keeps_its_newest_checkpoint_finishes_and_goes_on(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    output = tmp_path / "output"
    for steps in (1, 2):
        run(tiny_models["t5_v1_1"], output, max_steps=steps)
        names = {path.name for path in output.iterdir()}
        assert f"checkpoint-{steps}" in names
        assert f"checkpoint-{steps - 1}" not in names
        assert json.loads((output / "trainer_state.json").read_text(encoding="utf-8"))["global_step"] == steps
        assert not {name for name in names if "unfinished" in name or "replaced" in name}


def test_ctrl_break_ends_a_run_with_one_sentence(
    tiny_models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(interruption._NAMES, int(SIGBREAK), "Ctrl-Break (SIGBREAK)")
    monkeypatch.setattr(saving, "share_as_usual", lambda _: signal.raise_signal(SIGBREAK))
    with pytest.raises(SystemExit) as ended:
        run(tiny_models["t5_v1_1"], tmp_path / "output", max_steps=1)
    assert ended.value.code == 128 + SIGBREAK
    assert "Ended by Ctrl-Break (SIGBREAK)" in capsys.readouterr().err
