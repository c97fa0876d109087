# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""What a process says when another has died or hangs, in the words of those who carry messages between them."""

import pytest

from t5_experimental.training.engines.lost_processes import lost_peer


@pytest.mark.parametrize(
    "text",
    [
        "[../third_party/gloo/gloo/transport/tcp/pair.cc:544] Connection closed by peer [127.0.0.1]:2511",
        "[../third_party/gloo/gloo/transport/tcp/pair.cc:552] Read error [127.0.0.1]:2511: Connection reset by peer",
    ],
)
def test_process_that_has_died(text):
    assert "which has died" in str(lost_peer(RuntimeError(text)))


@pytest.mark.parametrize(
    "text",
    [
        "[../third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 5000ms for recv operation to "
        "complete",
        # Of operations that were under way when another one was too late.
        "Application timeout caused pair closure",
        "[Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=3, OpType=ALLREDUCE)",
    ],
)
def test_process_that_hangs(text):
    assert "which hangs" in str(lost_peer(RuntimeError(text)))


@pytest.mark.parametrize("error", [RuntimeError("shape '[2, 3]' is invalid for input of size 5"), ValueError("Timed")])
def test_other_errors_are_left_alone(error):
    assert lost_peer(error) is None
