# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Whether a fast operator may be trusted on this machine: compared with the exact path on a small problem, once.

Some operators cannot be tested on every device that runs them: our Triton kernels, and operators of torch that are not
public and may change or disappear. Before the first use, ask [`passes_check`] and take the exact path if it says no:

    def packed_linear_is_right(dtype: torch.dtype) -> bool:
        generator = torch.Generator().manual_seed(0)  # of its own: the state of the user's generators stays
        states, weight = (torch.randn(shape, generator=generator).to(dtype) for shape in ((5, 48), (32, 48)))
        return passes_check(
            ("oneDNN's packed linear layers", dtype),
            lambda: {"output": multiply(states, pack(weight, 5))},
            lambda: {"output": states.double() @ weight.double().t()},
            tolerance=1e-5,
        )

Each key is checked once in a process. To ask from code that `torch.compile` may trace, mark the function that calls
`passes_check` with [`asked_while_compiling`].
"""

import threading
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

import torch
from transformers.utils import logging


logger = logging.get_logger(__name__)

Compute = Callable[[], Mapping[str, torch.Tensor]]
"""Computes the tensors to compare, by name."""

_Function = TypeVar("_Function", bound=Callable[..., bool])

_verdicts: dict[tuple[Hashable, ...], str | None] = {}
_lock = threading.Lock()
_here = threading.local()


def passes_check(key: tuple[Hashable, ...], candidate: Compute, reference: Compute, tolerance: float) -> bool:
    """Whether an operator computes what its reference computes; checked at the first call with this key.

    If it does not, a warning says why, once. The check runs in a thread of its own, so that no mode of the caller
    changes it and it changes none: autocast, gradients, inference mode, checkpointing, operator counters, tracing.
    Gradients are recorded there, to compare those as well. During a check, another check is not made: the answer is no,
    as it is while a CUDA graph is captured, when nothing may be computed or waited for. Such answers are not kept.

    Args:
        key: name of the operator, in the plural and as a warning begins, then what its correctness depends on: device,
            dtype, sizes.
        candidate: computes with the operator. It must not draw random numbers from the default generators, and names
            the device of every tensor.
        reference: computes the same exactly, in any floating-point dtype.
        tolerance: largest norm of a tensor's error, relative to the norm of the reference.
    """
    if key not in _verdicts:
        if getattr(_here, "is_checking", False) or _is_capturing():
            return False
        with _lock:
            if key not in _verdicts:
                _verdicts[key] = why = _in_own_thread(candidate, reference, tolerance)
                if why is not None:
                    logger.warning(_warning(key, why))
    return _verdicts[key] is None


def _warning(key: tuple[Hashable, ...], why: str) -> str:
    name, *where = map(str, key)
    place = f" ({', '.join(where)})" if where else ""
    return f"{name} are off in this process{place}, and the exact path computes instead: {why}."


def verdicts() -> dict[tuple[Hashable, ...], str | None]:
    """The checks so far: None if passed, else the reason as a clause; by key."""
    return dict(_verdicts)


def asked_while_compiling(function: _Function) -> _Function:
    """Marks a function of constants, such as devices, dtypes and integers, that calls [`passes_check`]: the compiler
    then calls it while it traces, and takes the answer for a constant.

    This is `torch.compiler.assume_constant_result`, without the seconds that importing the compiler takes.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def _is_capturing() -> bool:
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def _in_own_thread(candidate: Compute, reference: Compute, tolerance: float) -> str | None:
    """[`_why_wrong`], run in a thread without any of the caller's modes."""
    found: list[str | None] = []

    def check() -> None:
        _here.is_checking = True
        found.append(_why_wrong(candidate, reference, tolerance))

    thread = threading.Thread(target=check, name="t5_experimental self-check", daemon=True)
    thread.start()
    thread.join()
    return found[0] if found else "their check was interrupted"


def _why_wrong(candidate: Compute, reference: Compute, tolerance: float) -> str | None:
    """Why a candidate fails, as a clause; None if it passes."""
    try:
        results, expected = candidate(), reference()
        if results.keys() != expected.keys():
            return f"they compute {', '.join(results)} instead of {', '.join(expected)}"
        for name, right in expected.items():
            if results[name].shape != right.shape:
                return f"their {name} has shape {tuple(results[name].shape)} instead of {tuple(right.shape)}"
            right = right.detach().double()
            error, norm = float((results[name].detach().double() - right).norm()), float(right.norm())
            if not error <= tolerance * norm:  # also if it is NaN
                return f"their {name} differs by {error / norm if norm else error:.2g}, more than {tolerance:.2g}"
    except Exception as problem:  # a compiler or a driver may raise anything
        lines = str(problem).strip().splitlines()
        return f"they raise {type(problem).__name__}" + (f" ({lines[0].strip().rstrip('.')})" if lines else "")
    return None
