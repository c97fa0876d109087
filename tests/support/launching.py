# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Starts a script or module on several processes under an engine, for tests and benchmarks; no process outlives it."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import psutil


REPOSITORY = Path(__file__).parents[2]
CONFIGS = REPOSITORY / "training" / "configs"

# Seconds after which what has not ended is taken for what never will, on a machine however busy.
LIMIT = 1800.0

TORCHRUN = "torchrun"
"""Name of what is no engine: processes that find each other, and nothing else."""


def launcher_command(engine: str, processes: int) -> list[str]:
    """What stands before the script.

    Args:
        engine: name of a file in `training/configs`, or [`TORCHRUN`].
        processes: how many to start.
    """
    if engine == TORCHRUN:
        return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / f"{engine}.yaml")]
    # Port 0 is any that is free: runs at the same time do not meet.
    return [*launch, "--num_processes", str(processes), "--main_process_port", "0"]


class Run:
    """A script that runs on several processes; as a context, it ends them all.

    Args:
        engine: see [`launcher_command`].
        script: path of a script, or name of a module of this repository, such as "tests.support.engine_worker".
        arguments: of the script.
        processes: how many.
        environment: variables besides those of this process.
    """

    def __init__(
        self,
        engine: str,
        script: str | Path,
        arguments: Sequence[object] = (),
        *,
        processes: int = 2,
        environment: Mapping[str, str] | None = None,
    ):
        self._script = str(script)
        is_module = not self._script.endswith(".py")
        program = ["-m", self._script] if is_module else [self._script]
        self.command = [*launcher_command(engine, processes), *program, *map(str, arguments)]
        # Files, since no reader empties pipes while the processes run.
        self._folder = tempfile.TemporaryDirectory()
        self._outputs = [Path(self._folder.name) / name for name in ("stdout", "stderr")]
        quiet = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        with self._outputs[0].open("w") as stdout, self._outputs[1].open("w") as stderr:
            self.launcher = subprocess.Popen(
                self.command,
                env={**os.environ, **quiet, **(environment or {})},
                cwd=REPOSITORY if is_module else None,
                stdout=stdout,
                stderr=stderr,
            )

    def __enter__(self) -> "Run":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()
        self._folder.cleanup()

    def workers(self) -> dict[int, psutil.Process]:
        """Processes that run the script, by rank; those that do not yet, or no longer, are missing."""
        found = {}
        for process in self._descendants(recursive=False):
            try:
                if self._script in process.cmdline():
                    found[int(process.environ().get("RANK", 0))] = process
            except psutil.Error:  # it has ended meanwhile
                continue
        return found

    def _descendants(self, recursive: bool) -> list[psutil.Process]:
        try:
            return psutil.Process(self.launcher.pid).children(recursive)
        except psutil.NoSuchProcess:
            return []

    def read(self) -> tuple[str, str]:
        """What the processes have printed and complained so far."""
        stdout, stderr = (path.read_text(errors="replace") for path in self._outputs)
        return stdout, stderr

    def wait_for(self, text: str, timeout: float = LIMIT) -> None:
        """Waits until the processes have printed or complained this; fails if they end before, or take longer."""
        end = time.monotonic() + timeout
        while not any(text in output for output in self.read()):
            if self.launcher.poll() is not None or time.monotonic() > end:
                raise AssertionError(f"{text!r} was not printed:\n" + "\n".join(self.read()))
            time.sleep(0.05)

    def wait(self, timeout: float = LIMIT) -> subprocess.CompletedProcess[str]:
        """The outcome. If it takes longer, all processes are ended and the return code is that of the signal."""
        try:
            self.launcher.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
        return subprocess.CompletedProcess(self.command, self.launcher.returncode, *self.read())

    def kill(self) -> None:
        """Ends the launcher and all that it has started, at once and without warning."""
        # The launcher gives each worker a session of its own, and starts new ones as long as it runs.
        if self.launcher.poll() is None:
            self.launcher.send_signal(signal.SIGSTOP)
        family = self._descendants(recursive=True)
        self.launcher.kill()
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.launcher.wait()


def launch(
    engine: str,
    script: str | Path,
    arguments: Sequence[object] = (),
    *,
    processes: int = 2,
    environment: Mapping[str, str] | None = None,
    timeout: float = LIMIT,
) -> subprocess.CompletedProcess[str]:
    """Runs a script to its end, see [`Run`]."""
    with Run(engine, script, arguments, processes=processes, environment=environment) as run:
        return run.wait(timeout)


def flags(**options: object) -> list[str]:
    """Options of a command line: `learning_rate=0.1` is `--learning_rate 0.1`."""
    return [text for name, value in options.items() for text in (f"--{name}", str(value))]
