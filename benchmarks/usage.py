# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Time, processor time and peak memory of a command.

Linux counts the memory that a process had before it became another program into the peak of that program. So a small
process, this file as a program, stands between a benchmark, which has large libraries in memory, and the command.
"""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Usage:
    """What a command took.

    Attributes:
        seconds: from its start to its end.
        cpu_seconds: of all its threads, in the system too.
        peak_bytes: most resident memory at a time.
        printed: on its standard output.
    """

    seconds: float
    cpu_seconds: float
    peak_bytes: int
    printed: str


def measure(command: list[str]) -> Usage:
    """Runs a command.

    Raises:
        RuntimeError: it failed.
    """
    done = subprocess.run([sys.executable, __file__, *command], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr[-2000:]}")
    printed, _, figures = done.stdout.rstrip("\n").rpartition("\n")
    return Usage(**json.loads(figures), printed=printed)


def main() -> int:
    """Runs the arguments as a command and prints, as the last line, what it took."""
    start = time.perf_counter()
    process = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ)
    _, status, usage = os.wait4(process, 0)
    figures = {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        # Linux counts in KiB, macOS in bytes.
        "peak_bytes": usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
    }
    print("\n" + json.dumps(figures))
    return 1 if status else 0


if __name__ == "__main__":
    sys.exit(main())
