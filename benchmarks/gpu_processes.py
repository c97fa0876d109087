# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Processes that `benchmarks/gpu.py` starts: what fails or hangs in them ends nothing else."""

import multiprocessing
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


LEAST_SECONDS = 20.0
"""That a process has, however little of its section is left: its imports take a part of them."""

Work = tuple[Callable[..., None], tuple[Any, ...]]
"""A function of this module, and its arguments."""


def in_process(works: list[Work], environment: dict[str, str], left: float) -> None:
    """Calls functions, one after the other, in a process of its own.

    Args:
        works: what to call.
        environment: variables besides those of this process.
        left: seconds after which the process is ended, but at least [`LEAST_SECONDS`].

    Raises:
        RuntimeError: it failed, with the last lines that it printed, or took longer.
    """
    at_once([works], environment, left)


def at_once(jobs: list[list[Work]], environment: dict[str, str], left: float) -> None:
    """[`in_process`] for several processes at the same time; raises the first error when all have ended."""
    # CUDA cannot be used in a fork; on the CPU a fork saves the imports.
    context = multiprocessing.get_context("spawn" if torch.cuda.is_available() else "fork")
    end = time.monotonic() + max(LEAST_SECONDS, left)
    errors = []
    with tempfile.TemporaryDirectory() as folder:
        logs = [Path(folder) / f"log-{number}" for number in range(len(jobs))]
        processes: list[Any] = [
            context.Process(target=_call, args=(works, environment, log)) for works, log in zip(jobs, logs, strict=True)
        ]
        for process in processes:
            process.start()
        for process, log in zip(processes, logs, strict=True):
            process.join(max(0.0, end - time.monotonic()))
            if is_late := process.is_alive():
                process.kill()
                process.join()
            if is_late or process.exitcode != 0:
                ended = "was ended, as its time was over" if is_late else f"ended with {process.exitcode}"
                printed = log.read_text(errors="replace").strip() if log.exists() else ""
                last = printed.splitlines()[-1] if printed else "it printed nothing"
                errors.append(f"The process {ended}: {last}\n{printed[-4000:]}")
    if errors:
        raise RuntimeError("\n\n".join(errors))


def _call(works: list[Work], environment: dict[str, str], log: Path) -> None:
    os.environ.update(environment)
    with log.open("w") as output:
        for descriptor in (1, 2):
            os.dup2(output.fileno(), descriptor)
    # A parent in which output is captured has other objects here.
    sys.stdout, sys.stderr = (os.fdopen(descriptor, "w", closefd=False) for descriptor in (1, 2))
    code = 0
    try:
        for work, arguments in works:
            work(*arguments)
    except SystemExit as end:
        print(end.code, file=sys.stderr)
        code = 1 if end.code else 0
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # process groups that were never used may wait for each other
