# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Runs entry points of training in processes that are forked from one which has imported everything already.

That makes a start a matter of a second instead of ten, so that a test can afford to kill a run a dozen times. What is
forked finds its fellows, computes and dies as processes of a launcher do. As a launcher would, their parent ends all of
them when one has failed.
"""

import gc
import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from itertools import chain
from pathlib import Path
from types import ModuleType, TracebackType


_FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "T5Block",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
}

# What `accelerate launch` tells its processes under the files in `training/configs`.
ENGINES: dict[str, dict[str, str]] = {
    "single": {},
    "ddp": {},
    "fsdp2": _FSDP2,
    "fsdp2_in_parts": {**_FSDP2, "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT"},
    "deepspeed_zero2": {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"},
    "deepspeed_zero3": {
        "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3",
        "ACCELERATE_DEEPSPEED_ZERO3_INIT": "true",
        "ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL": "true",
    },
}

# Seconds that processes have to say something after the first one has failed.
GRACE = 1.0
# Seconds after which a run is taken for one that hangs, and ended.
LIMIT = 1800.0


class ForkedRun:
    """The processes of a run.

    Attributes:
        pids: by rank.
    """

    def __init__(self, server: "ForkServer", pids: list[int], logs: list[tuple[Path, Path]]):
        self._server, self._logs, self.pids = server, logs, pids

    def kill(self, ranks: Sequence[int], number: int = signal.SIGKILL) -> None:
        """Sends processes a signal; those that have ended do not mind."""
        for rank in ranks:
            with suppress(ProcessLookupError):
                os.kill(self.pids[rank], number)

    def wait(self) -> list[int]:
        """Return codes by rank, when all have ended; that of a signal is its negative number."""
        return self._server.answer()["codes"]

    def printed(self, rank: int = 0) -> tuple[str, str]:
        """stdout and stderr of a process so far."""
        stdout, stderr = (path.read_text(errors="replace") for path in self._logs[rank])
        return stdout, stderr

    def read(self, rank: int = 0) -> str:
        """All that a process has printed so far, stderr last."""
        return "".join(self.printed(rank))


class ForkServer:
    """The process that all others are forked from; as a context, it ends with them.

    Args:
        folder: for what they print, and what `datasets` caches.
        more: modules that it imports besides the entry points.
    """

    def __init__(self, folder: Path, more: Sequence[str] = ()):
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._count = folder, 0
        environment = {
            "DS_ACCELERATOR": "cpu",
            "HF_DATASETS_CACHE": str(folder / "datasets"),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.forking", *more],
            cwd=Path(__file__).parents[2],
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> "ForkServer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def start(
        self,
        entry: str,
        arguments: Sequence[object],
        engine: str,
        processes: int,
        hook: str = "",
        grace: float = GRACE,
    ) -> ForkedRun:
        """Starts a run.

        Args:
            entry: name of a module of `t5_experimental.training`, or full name of another one with such a `main`.
            arguments: its command line.
            engine: of [`ENGINES`].
            processes: how many.
            hook: Python code that each of them executes before, with `RANK` as its number.
            grace: seconds that processes have to end after the first one has failed; those that are stopped have none
                when all others have ended.
        """
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        environments = []
        for rank in range(processes):
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
            together = {**meeting, **{name: str(value) for name, value in place.items()}} if engine != "single" else {}
            environments.append({**ENGINES[engine], **together})
        self._count += 1
        names = [f"run-{self._count}-{rank}" for rank in range(processes)]
        logs = [(self._folder / f"{name}.stdout", self._folder / f"{name}.stderr") for name in names]
        for path in chain.from_iterable(logs):
            path.touch()  # the processes take a moment to come to it
        order = {
            "entry": entry,
            "arguments": [str(argument) for argument in arguments],
            "environments": environments,
            "hook": hook,
            "logs": [[str(stdout), str(stderr)] for stdout, stderr in logs],
            "grace": grace,
        }
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return ForkedRun(self, self.answer()["pids"], logs)

    def answer(self) -> dict:
        """The next line that the process says."""
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())


# What happens in the process itself.


def main(more: Sequence[str]) -> None:
    """Follows orders, line by line."""
    gc.disable()  # imports leave nothing to collect
    for name in ("evaluate", "finetune", "pretrain", "prompt_tune", *more):
        _module(name)
    with suppress(ImportError):  # accelerate imports it in every run, if it is installed
        import_module("deepspeed")
    gc.collect()
    gc.freeze()  # so that collections in the forked processes neither look at nor copy what is imported
    gc.enable()
    for line in sys.stdin:
        order = json.loads(line)
        pids = []
        for rank, (environment, log) in enumerate(zip(order["environments"], order["logs"], strict=True)):
            pid = os.fork()
            if pid == 0:
                _run(order["entry"], order["arguments"], environment, log, order["hook"], rank)
            pids.append(pid)
        print(json.dumps({"pids": pids}), flush=True)
        print(json.dumps({"codes": _wait(pids, order["grace"])}), flush=True)


def _module(name: str) -> ModuleType:
    return import_module(name if "." in name else f"t5_experimental.training.{name}")


def _run(
    entry: str, arguments: list[str], environment: Mapping[str, str], log: list[str], hook: str, rank: int
) -> None:
    os.environ.update(environment)
    for descriptor, path in enumerate(log, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    code = 0
    try:
        if "ACCELERATE_USE_FSDP" in environment:
            from .pretended_gpus import pretend_gpus

            pretend_gpus()
        exec(hook, {"RANK": rank})
        _module(entry).main(arguments)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _wait(pids: list[int], grace: float) -> list[int]:
    """Return codes when all have ended; when one has failed or all take too long, it ends them, at last by force."""
    codes: dict[int, int] = {}
    stopped: set[int] = set()
    failed_at, give_up_at = None, time.monotonic() + LIMIT
    sent = []
    while len(codes) < len(pids):
        for pid in set(pids) - set(codes):
            ended, status = os.waitpid(pid, os.WNOHANG | os.WUNTRACED)
            if ended and os.WIFSTOPPED(status):
                stopped.add(pid)
            elif ended:
                codes[pid] = os.waitstatus_to_exitcode(status)
        if codes and stopped == set(pids) - set(codes):
            for pid in stopped:
                os.kill(pid, signal.SIGKILL)
        if failed_at is None and (any(codes.values()) or time.monotonic() > give_up_at):
            failed_at = time.monotonic()
        for number, seconds in ((signal.SIGTERM, grace), (signal.SIGKILL, 5 * grace)):
            if failed_at is not None and number not in sent and time.monotonic() > failed_at + seconds:
                sent.append(number)
                for pid in set(pids) - set(codes):
                    os.kill(pid, number)
        time.sleep(0.01)
    return [codes[pid] for pid in pids]


if __name__ == "__main__":
    main(sys.argv[1:])
