"""An operator is compared with its reference once, leaves no trace, and is off with one warning if it is wrong."""

import threading

import pytest
import torch
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from t5_experimental import self_check_t5_experimental as self_check
from t5_experimental.self_check_t5_experimental import asked_while_compiling, passes_check, verdicts


WEIGHTS = torch.tensor([[1.0, 2.0], [3.0, 4.0]])


@pytest.fixture(autouse=True)
def warnings(monkeypatch):
    """What is warned about; no check was made before the test."""
    seen = []
    monkeypatch.setattr(self_check, "_verdicts", {})
    monkeypatch.setattr(self_check.logger, "warning", seen.append)
    return seen


class Operator:
    """Doubles; counts its calls, and adds an error."""

    def __init__(self, error=0.0):
        self.error, self.calls = error, 0

    def __call__(self):
        self.calls += 1
        return {"output": WEIGHTS * 2 + self.error, "gradient of the weights": torch.full_like(WEIGHTS, 2.0)}


def ask(operator, *key, tolerance=1e-6):
    return passes_check(("doubles", *key), operator, Operator(), tolerance)


def test_each_key_is_checked_once(warnings):
    right = Operator()
    assert [ask(right, torch.float32), ask(right, torch.float32), ask(right, torch.bfloat16)] == [True] * 3
    assert right.calls == 2
    wrong = Operator(0.1)
    assert [ask(wrong, "cuda:0"), ask(wrong, "cuda:0"), ask(wrong, "cuda:1")] == [False] * 3
    assert wrong.calls == 2
    # 0.1 in each of four numbers, of a norm of twice the square root of 30.
    reason = "their output differs by 0.018, more than 1e-06"
    assert warnings == [
        f"doubles are off in this process ({device}), and the exact path computes instead: {reason}."
        for device in ("cuda:0", "cuda:1")
    ]
    assert verdicts() == {
        ("doubles", torch.float32): None,
        ("doubles", torch.bfloat16): None,
        ("doubles", "cuda:0"): reason,
        ("doubles", "cuda:1"): reason,
    }


def fail():
    raise RuntimeError("no kernel image is available.\nSecond line")


OUTPUT = {"output": WEIGHTS * 2}
GRADIENT = {"gradient of the weights": torch.full_like(WEIGHTS, 2.0)}
WRONG = {
    "they raise RuntimeError (no kernel image is available)": fail,
    "they raise AttributeError ('_OpNamespace' 'mkldnn' object has no attribute 'gone')": lambda: torch.ops.mkldnn.gone(
        WEIGHTS
    ),
    "they compute output instead of output, gradient of the weights": lambda: OUTPUT,
    "their output has shape (4,) instead of (2, 2)": lambda: {"output": WEIGHTS.flatten() * 2, **GRADIENT},
    "their output differs by nan, more than 0.1": lambda: {"output": WEIGHTS * torch.nan, **GRADIENT},
    "their gradient of the weights differs by 0.5, more than 0.1": lambda: {
        **OUTPUT,
        "gradient of the weights": torch.full_like(WEIGHTS, 1.0),
    },
}


@pytest.mark.parametrize("reason", WRONG)
def test_the_warning_says_what_is_wrong(reason, warnings):
    assert not ask(WRONG[reason], reason, tolerance=0.1)
    assert verdicts() == {("doubles", reason): reason}
    assert len(warnings) == 1


def test_differences_up_to_the_tolerance_pass():
    assert ask(Operator(0.1), 1, tolerance=0.02)
    assert not ask(Operator(0.1), 2, tolerance=0.017)


def test_a_reference_of_zeros_is_to_be_met_exactly():
    zeros = {"output": torch.zeros(2)}
    assert passes_check(("zeros",), lambda: zeros, lambda: zeros, 1e-3)
    assert not passes_check(("ones",), lambda: {"output": torch.full((2,), 1e-9)}, lambda: zeros, 1e-3)


def square(seen):
    """A product and its gradient, computed by autograd; notes how torch is set."""
    seen.append((torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")))
    weights = WEIGHTS.clone().requires_grad_()
    output = weights @ weights
    (gradient,) = torch.autograd.grad(output.sum(), weights)
    return {"output": output, "gradient": gradient}


def ask_for_squares(seen):
    return passes_check(("squares",), lambda: square(seen), lambda: square([]), 0.0)


@pytest.mark.parametrize(
    "mode",
    [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16), lambda: torch.device("meta")],
)
def test_modes_of_the_caller_neither_matter_nor_change(mode):
    seen, now = [], (torch.is_grad_enabled, torch.is_inference_mode_enabled, lambda: torch.is_autocast_enabled("cpu"))
    with mode():
        before = [ask() for ask in now]
        random = torch.random.get_rng_state()
        assert ask_for_squares(seen)
        assert [ask() for ask in now] == before
        assert torch.equal(torch.random.get_rng_state(), random)
    assert seen == [(True, False, False)]


def test_counters_do_not_count_it():
    with FlopCounterMode(display=False) as counter:
        assert ask_for_squares([])
    assert counter.get_total_flops() == 0


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpointed_pass_saves_the_same_in_its_second_run(reentrant):
    """The check is made in the first run alone."""
    seen = []

    def block(weights):
        return weights @ weights if ask_for_squares(seen) else weights * torch.nan

    weights = WEIGHTS.clone().requires_grad_()
    checkpoint(block, weights, use_reentrant=reentrant).sum().backward()
    assert torch.equal(weights.grad, square([])["gradient"])
    assert len(seen) == 1


def test_a_check_within_a_check_is_answered_no():
    answers = []

    def candidate():
        answers.extend([ask(Operator(), "outer"), ask(Operator(), "inner")])
        return Operator()()

    assert ask(candidate, "outer")
    assert answers == [False, False]
    assert ask(Operator(), "inner")


def test_threads_wait_for_one_check():
    started, may_end = threading.Event(), threading.Event()
    calls, answers = [], []

    def slow():
        calls.append(1)
        started.set()
        assert may_end.wait(300)
        return Operator()()

    threads = [threading.Thread(target=lambda: answers.append(ask(slow, "slow"))) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert started.wait(300)
    assert answers == []
    may_end.set()
    for thread in threads:
        thread.join(300)
    assert answers == [True] * 3
    assert len(calls) == 1


def test_nothing_is_decided_while_a_graph_is_captured(monkeypatch, warnings):
    right = Operator()
    with monkeypatch.context() as capture:
        capture.setattr(torch.cuda, "is_initialized", lambda: True)
        capture.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        assert not ask(right)
        assert (right.calls, verdicts(), warnings) == (0, {}, [])
    assert ask(right)


@asked_while_compiling
def doubles_are_right(dtype):
    return passes_check(("doubles", dtype), _compiled, Operator(), 1e-6)


_compiled = Operator()


@pytest.mark.parametrize("error", [0.0, 0.1])
def test_the_compiler_asks_while_it_traces(error, monkeypatch):
    """The graph is not broken, and has the answer's path alone."""
    monkeypatch.setattr(_compiled, "error", error)
    monkeypatch.setattr(_compiled, "calls", 0)

    @torch.compile(fullgraph=True, backend="eager")
    def double(states):
        return states * 2 if doubles_are_right(states.dtype) else states + states + 1

    torch._dynamo.reset()
    expected = WEIGHTS * 2 + (1 if error else 0)
    assert torch.equal(double(WEIGHTS), expected)
    assert torch.equal(double(WEIGHTS), expected)
    assert _compiled.calls == 1
