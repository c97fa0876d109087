# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""The launcher that all tests of engines rely on: outcomes come back whole, and nothing stays behind."""

import signal
from pathlib import Path

import psutil
import pytest


# A rank says hello, and works on with a child process until it is ended, or ends by itself.
SCRIPT = """
import os, signal, subprocess, sys

print("rank", os.environ.get("RANK"), "of", os.environ.get("WORLD_SIZE"), sys.argv[1:], flush=True)
if "--stay" in sys.argv:
    subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    print("ready", os.environ.get("RANK"), flush=True)
    signal.pause()
sys.exit(3 if "--fail" in sys.argv else 0)
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return path


@pytest.mark.parametrize("engine", ["torchrun", "single"])
def test_outcomes_come_back(engine, script, launching):
    processes = 2 if engine == "torchrun" else 1
    good = launching.launch(engine, script, launching.flags(size=0.5), processes=processes)
    assert good.returncode == 0, good.stderr
    ranks = ["rank 0 of 2", "rank 1 of 2"] if engine == "torchrun" else ["rank None of None"]
    assert sorted(good.stdout.splitlines()) == [f"{rank} ['--size', '0.5']" for rank in ranks]
    assert launching.launch(engine, script, ["--fail"], processes=processes).returncode != 0


def test_nothing_stays_behind(script, launching):
    with launching.Run("torchrun", script, ["--stay"]) as run:
        run.wait_for("ready 0")
        run.wait_for("ready 1")
        workers = run.workers()
        assert sorted(workers) == [0, 1]
        family = [process for worker in workers.values() for process in (worker, *worker.children())]
        assert len(family) == 4
        with pytest.raises(AssertionError, match=r"was not printed:\n(?s:.*)ready 0"):
            run.wait_for("never said", timeout=0.1)
        assert run.wait(timeout=0.1).returncode == -signal.SIGKILL
    gone, _ = psutil.wait_procs(family, timeout=600)
    assert len(gone) == 4
