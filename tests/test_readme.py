# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""README.md and docs/, run: shell, terminal and Python blocks in order, each document in a copy of what a clone has.

Blocks of these languages run: `bash`; `python`, whose names later blocks of the document see; and `console`. There,
lines that begin with "$ " are commands, what follows is their output, "..." stands for any lines, and `>>>` lines after
"$ python" are a session. `text` is for what cannot run everywhere.
"""

import doctest
import glob
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.forking import ForkServer


ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
IN_A_CLONE = ("tests/reference/golden", "tests/data", "tests/check_golden.py", "training")
# What the blocks of a document must leave behind.
WRITTEN = {
    "README.md": ("t5.1.th.tiny/config.json", "exported/checkpoint", "finetuned/model.safetensors"),
    "convert.md": ("t5.1.th.tiny/conversion.json", "exported/checkpoint", "stock/model.safetensors"),
    "train.md": (
        "finetuned/predictions_eval.jsonl",
        "finetuned/report.html",
        "adapted/model.safetensors",
        "prompt/adapter_model.safetensors",
    ),
}
ENTRY_POINT = re.compile(r"(?:python -m t5_experimental\.training\.(\w+)|accelerate launch training/(\w+)\.py) ")
# What differs between machines and runs.
UNSTABLE = (r"(?<=seconds:)\s+[\d.]+", r"(?<=peak memory:)\s+\d+ MiB", r"\d\.\d+e[+-]\d\d")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and the line that the text begins on."""

    language: str
    text: str
    line: int


def blocks_of(document: Path) -> list[Block]:
    text = document.read_text(encoding="utf-8")
    found = re.finditer(r"^```(\w+)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return [Block(match[1], match[2], text.count("\n", 0, match.start(2)) + 1) for match in found]


def commands_of(console: str) -> Iterator[tuple[str, str]]:
    """The commands of a terminal session, each with the output that it shows."""
    assert console.startswith("$ "), console
    for part in re.split(r"^\$ ", console, flags=re.MULTILINE)[1:]:
        command = re.match(r"(?:.*\\\n)*.*", part)[0]
        yield command, part[len(command) + 1 :]


def shows(expected: str, printed: str) -> bool:
    """Whether a program printed what a document shows, lines "..." and unstable numbers aside."""
    for pattern in UNSTABLE:
        expected, printed = re.sub(pattern, "#", expected), re.sub(pattern, "#", printed)
    lines = ["(?:.*\n)*" if line == "..." else re.escape(line) + "\n" for line in expected.splitlines()]
    return re.fullmatch("".join(lines), "".join(f"{line.rstrip()}\n" for line in printed.splitlines())) is not None


class Reader:
    """Does what a document says, in a folder of its own.

    Args:
        document: path of the Markdown file.
        folder: an empty one, with links to what a clone has.
        fork_server: returns what forks processes of training.
    """

    def __init__(self, document: Path, folder: Path, fork_server: Callable[[], ForkServer]):
        self.document = document
        self.folder = folder
        self.fork_server = fork_server
        self.namespace: dict[str, Any] = {"__name__": "__main__"}
        self.environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "ACCELERATE_USE_CPU": "true",
            "HF_HUB_OFFLINE": "1",
        }

    def follow(self, block: Block) -> None:
        if block.language == "python":
            source = "\n" * (block.line - 1) + block.text  # so that errors name the document's line
            exec(compile(source, str(self.document), "exec"), self.namespace)
        elif block.language == "bash":
            self.commands(block.text)
        elif block.language == "console":
            for command, expected in commands_of(block.text):
                if command == "python":
                    self.session(expected, block.line)
                else:
                    printed = self.shell(command)
                    assert shows(expected, printed), f"{self.document.name}: {command} printed\n{printed}"

    def commands(self, text: str) -> None:
        """Runs commands; those of the converter in this process, where its imports take no time."""
        commands = text.replace("\\\n", "").splitlines()
        if not all(command.startswith("t5-experimental ") for command in commands):
            self.shell(text)
            return
        from t5_experimental.convert.cli import main

        for command in commands:
            arguments = shlex.split(command, comments=True)[1:]
            assert main(arguments) == 0, command

    def shell(self, text: str) -> str:
        """Runs commands as a user does, and returns what they print. A command that is an entry point of training alone
        is forked from a process where its imports take no time; the README's goes through the launcher."""
        alone = text.replace("\\\n", "").strip()
        found = ENTRY_POINT.match(alone)
        if found and self.document.name != "README.md" and not re.search(r"[\n|]", alone):
            arguments = (given for word in shlex.split(alone[found.end() :]) for given in self.matching(word))
            return self.fork(found[1] or found[2], [*arguments])
        command = ["bash", "-euo", "pipefail", "-c", text]
        result = subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, text=True)
        assert result.returncode == 0, f"{text}\n{result.stdout}\n{result.stderr}"
        if self.document.name == "README.md":  # whose first run should not begin with what the launcher was not told
            assert "values were not passed to `accelerate launch`" not in result.stderr
        return result.stdout

    def matching(self, word: str) -> list[str]:
        """What the shell makes of a word: names of files for a pattern."""
        return sorted(glob.glob(word, root_dir=self.folder)) or [word]

    def fork(self, entry: str, arguments: list[str]) -> str:
        here = f"import os; os.chdir({str(self.folder)!r}); os.environ['ACCELERATE_USE_CPU'] = 'true'"
        run = self.fork_server().start(entry, arguments, "single", 1, here)
        codes, (stdout, stderr) = run.wait(), run.printed()
        assert codes == [0], f"{entry} {shlex.join(arguments)}\n{stdout}\n{stderr}"
        return stdout

    def session(self, text: str, line: int) -> None:
        test = doctest.DocTestParser().get_doctest(text, self.namespace, "session", str(self.document), line)
        result = doctest.DocTestRunner().run(test, clear_globs=False)
        assert result.attempted
        assert not result.failed
        self.namespace = test.globs


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What documents use of a clone."""
    folder = tmp_path_factory.mktemp("clone")
    for name in IN_A_CLONE:
        source, target = ROOT / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(source, target)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_blocks_run_in_order(
    document: Path, clone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    for path in clone.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    reader = Reader(document, tmp_path, lambda: request.getfixturevalue("fork_server"))
    for block in blocks_of(document):
        reader.follow(block)
    for name in WRITTEN.get(document.name, ()):
        assert (tmp_path / name).is_file(), name


def test_every_block_has_a_language_that_is_known() -> None:
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        blocks = blocks_of(document)
        assert {block.language for block in blocks} <= {"bash", "python", "console", "text"}, document.name
        assert len(re.findall(r"^```", text, flags=re.MULTILINE)) == 2 * len(blocks), document.name


def test_shown_output_is_compared() -> None:
    shown = "tensors:  64\n...\nseconds: 0.8\n"
    assert shows(shown, "tensors:  64\nbytes: 3\nmore\nseconds: 17.25\n")
    assert not shows(shown, "tensors:  65\nbytes: 3\nseconds: 0.8\n")
    assert not shows(shown, "tensors:  64\nbytes: 3\nseconds: 0.8\nwarning\n")
    assert list(commands_of("$ one\n1\n$ two \\\n  more\n2\n$ three\n")) == [
        ("one", "1\n"),
        ("two \\\n  more", "2\n"),
        ("three", ""),
    ]
