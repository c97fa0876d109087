# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""The command that a run shows is the one that was typed, its launcher included."""

import json
import subprocess
import sys

import pytest

from t5_experimental.training.cli.own_command import _from_launcher, as_text


@pytest.mark.parametrize(
    ("parent", "expected"),
    [
        (["python", "/env/bin/accelerate", "launch", "a.py", "--x", "1"], ["accelerate", "launch", "a.py", "--x", "1"]),
        (["python", "-m", "accelerate.commands.launch", "a.py"], ["accelerate", "launch", "a.py"]),
        (["/env/bin/torchrun", "--nproc-per-node", "2", "a.py"], ["torchrun", "--nproc-per-node", "2", "a.py"]),
        (["python", "-m", "torch.distributed.run", "a.py"], ["torchrun", "a.py"]),
        (["bash", "run.sh", "with", "accelerate"], []),
        ([], []),
    ],
)
def test_launchers_are_known(parent, expected):
    assert _from_launcher(parent) == expected


def test_tokens_are_left_out_and_words_quoted():
    words = ["a.py", "--prefix", "a b", "--hub_token", "hf_1", "--hub_token=hf_2"]
    assert as_text(words) == "a.py --prefix 'a b' --hub_token ... --hub_token=..."


def shown_by(*command, cwd):
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=True)
    return json.loads(result.stdout.splitlines()[-1])


def test_the_command_is_the_one_that_was_typed(tmp_path):
    code = "import json\nfrom t5_experimental.training.cli import own_command as module\n"
    code += "print(json.dumps(module.own_command()))"
    (tmp_path / "script.py").write_text(code)
    assert shown_by(sys.executable, "script.py", "--x", cwd=tmp_path)[1:] == ["script.py", "--x"]
    assert shown_by(sys.executable, "-m", "script", "--x", cwd=tmp_path)[1:] == ["-m", "script", "--x"]
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "--cpu"]
    shown = shown_by(*launch, "script.py", "--x", cwd=tmp_path)
    assert shown == ["accelerate", "launch", "--num_processes", "1", "--cpu", "script.py", "--x"]
