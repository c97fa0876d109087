"""What the README shows, run: its shell and Python blocks in order, in a copy of what a clone has."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", (ROOT / "README.md").read_text(), flags=re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_blocks_run_in_order(tmp_path):
    shutil.copytree(ROOT / "tests" / "reference" / "golden", tmp_path / "tests" / "reference" / "golden")
    shutil.copytree(ROOT / "tests" / "data", tmp_path / "tests" / "data")
    shutil.copytree(ROOT / "training", tmp_path / "training")
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "ACCELERATE_USE_CPU": "true",
        "HF_HUB_OFFLINE": "1",
    }
    ran = []
    python_so_far = ""
    for language, block in BLOCKS:
        if language == "python":  # later blocks use the names of earlier ones
            python_so_far += block
            command = [sys.executable, "-c", python_so_far]
        elif language == "bash":
            command = ["bash", "-euo", "pipefail", "-c", block]
        else:
            continue
        result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, f"{block}\n{result.stdout}\n{result.stderr}"
        ran.append(language)
    assert ran == ["bash", "python", "python", "bash", "bash", "bash", "python"]
    for folder, name in {"finetuned": "model", "adapted": "model", "prompt": "adapter_model"}.items():
        assert (tmp_path / folder / f"{name}.safetensors").is_file()


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = [line.split()[1] for language, block in BLOCKS if language == "console" for line in block.splitlines()]
    assert targets == ["demo", "test"]
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_table_names_the_registered_families():
    import t5_experimental

    text = (ROOT / "README.md").read_text()
    for config_class in t5_experimental.configuration_t5_experimental.CONFIG_CLASSES:
        prefix = config_class.__name__.removesuffix("Config")
        assert f"`{prefix}…` | `{config_class.model_type}` |" in text
