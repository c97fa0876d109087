# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Processes of a run that wait for each other: for how long, and what to say when one died or hangs."""

import os
from datetime import timedelta

import torch

from ..errors import ProcessError


# Messages of gloo, nccl and the store; all are raised as RuntimeError.
_GONE = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Connection refused")
# gloo closes a connection after one operation timed out, and gives that reason for all later operations.
_LATE = (
    "Timed out waiting",
    "Application timeout caused pair closure",
    "Watchdog caught collective operation timeout",
    "Timeout waiting for key",
    "wait timeout after",
)


def join_on_cpu(backend: str | None, timeout: timedelta) -> None:
    """Joins the process group on CPUs. Transformers would, too, but without --ddp_timeout: processes would wait half an
    hour for each other."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.distributed.is_initialized():
        torch.distributed.init_process_group(backend or "gloo", timeout=timeout)


def lost_peer(error: BaseException) -> ProcessError | None:
    """The message for an error that only says that other processes did not answer; None for any other error."""
    if not (isinstance(error, RuntimeError) and torch.distributed.is_available()):
        return None
    text, me = str(error), f"Process {os.environ.get('RANK', '0')}"
    again = "then run the same command again, which resumes from the last checkpoint."
    if any(sign in text for sign in _GONE):
        return ProcessError(
            f"{me} lost the connection to another process of this run, which has died: see what that one printed, or "
            f"whether the system killed it for lack of memory, {again}"
        )
    if any(sign in text for sign in _LATE):
        return ProcessError(
            f"{me} timed out waiting for another process of this run, which hangs: find it (a machine that does not "
            "answer, a file that cannot be read), or raise --ddp_timeout if it is only slow; "
            f"{again}"
        )
    return None
