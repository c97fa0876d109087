"""The Triton kernels are compared with the exact path before their first use, and stay off where they are wrong."""

from pathlib import Path

import pytest
import torch
from transformers.dynamic_module_utils import get_relative_import_files

from t5_experimental import attention_check_t5_experimental as attention_check
from t5_experimental import blockwise_attention_t5_experimental as blockwise
from t5_experimental import self_check_t5_experimental as self_check
from t5_experimental.blockwise_attention_t5_experimental import kernels_are_right
from t5_experimental.visibility_t5_experimental import Visibility


pytest.importorskip(
    "triton", minversion="3.7", reason="Triton is only made for Linux, and older ones do not compile the kernels"
)

from t5_experimental import attention_triton_t5_experimental as kernels
from t5_experimental import triton_kernels_t5_experimental as parts


DEVICE = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
SIZES = (3, 4, 5, 6, 7)


@pytest.fixture(autouse=True)
def warnings(monkeypatch):
    """What is warned about; no check was made before the test."""
    seen = []
    monkeypatch.setattr(self_check, "_verdicts", {})
    monkeypatch.setattr(self_check.logger, "warning", seen.append)
    return seen


@pytest.fixture
def small(monkeypatch):
    """A smaller problem, as the interpreter is slow."""
    for name, length in {"_QUERIES": 5, "_KEYS": 18, "_PADDING": 3}.items():
        monkeypatch.setattr(attention_check, name, length)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_kernels_pass(dtype, warnings):
    assert kernels_are_right(SIZES, dtype, DEVICE)
    assert warnings == []


def raises(*unused):
    raise RuntimeError("out of resource: shared memory")


def changed(name, change, module=kernels):
    """A pass, or a part of the kernels, whose result is changed."""
    original = getattr(module, name)
    return {(module, name): lambda *inputs, **more: change(original(*inputs, **more))}


def with_other_sizes(name, **sizes):
    """A part of the kernels, compiled for other problems than they have."""
    original = getattr(parts, name)
    return {(parts, name): lambda *inputs: original(*inputs[:-1], inputs[-1]._replace(**sizes))}


def one_gradient_is_zero(index):
    return lambda grads: (*grads[:index], torch.zeros_like(grads[index]), *grads[index + 1 :])


BROKEN = {
    "raise": ({(kernels, "forward"): raises}, "they raise RuntimeError (out of resource: shared memory)"),
    "raise in the backward pass": ({(kernels, "backward"): raises}, "they raise RuntimeError"),
    "a small error in the output": (changed("forward", lambda x: x + 0.05), "their output differs"),
    "NaN in one element": (changed("forward", lambda x: x.index_fill(0, torch.tensor(0), torch.nan)), "their output"),
    "a gradient is missing": (changed("backward", one_gradient_is_zero(3)), "their logits_projection differs by 1,"),
    "a bias gradient is missing": (changed("backward", one_gradient_is_zero(5)), "their diagonals differs by 1,"),
    "padding is seen": (with_other_sizes("_visible", HAS_MASK=False), "their output differs"),
    "later keys are seen": (with_other_sizes("_visible", CAUSAL=False), "their output differs"),
    "no bias": (with_other_sizes("_biased_logits", HAS_BIAS=False), "their output differs"),
    "gradients of the softmax": (changed("_biased_gradients", lambda x: x * 1.1, parts), "their query differs by 0.1,"),
    "weights of the second mix": (
        changed("_weights_projection", lambda x: x * 0.9, parts),
        "their output differs by 0.1,",
    ),
    "one kernel of the backward pass": (
        changed("_key_logit_gradients", lambda x: x * 0.9, parts),
        "their query differs by 0.1,",
    ),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_broken_kernels_fail(broken, monkeypatch, small, warnings):
    replacements, reason = BROKEN[broken]
    for (module, name), replacement in replacements.items():
        monkeypatch.setattr(module, name, replacement)
    assert not kernels_are_right(SIZES, torch.float16, DEVICE)
    (warning,) = warnings
    assert warning.startswith("Triton kernels of talking-heads attention are off in this process (")
    assert "torch.float16, AttentionSizes(key_heads=3, heads=4, value_heads=5, key_size=6, value_size=7))" in warning
    if DEVICE.type == "cpu":  # the compiler may refuse parts that are not compiled
        assert reason in warning


def attention(dtype=torch.bfloat16, sizes=SIZES, **options):
    """Output and gradient of the query of a small problem."""
    inputs = attention_check._random_inputs(attention_check.AttentionSizes(*sizes), dtype)
    *states, grad_output = (tensor.to(DEVICE) for tensor in inputs)
    states[0].requires_grad_()
    visible = Visibility(states[0].shape[2], states[1].shape[2])
    output = blockwise.blockwise_attention(*states, visible, **options)
    (gradient,) = torch.autograd.grad(output, states[0], grad_output)
    return output.detach(), gradient


@pytest.fixture
def calls(monkeypatch, small):
    """Calls of the kernels, which take all problems."""
    seen = []
    for name in ("forward", "backward"):
        original = getattr(kernels, name)
        monkeypatch.setattr(kernels, name, lambda *x, name=name, original=original: seen.append(name) or original(*x))
    monkeypatch.setattr(blockwise, "uses_triton", lambda *unused: True)
    return seen


def test_right_kernels_are_checked_once_and_used(calls):
    for _ in range(2):
        attention()
    assert calls == ["forward", "backward"] * 3
    attention(torch.float16)
    assert calls == ["forward", "backward"] * 5


def test_the_exact_path_computes_instead_of_wrong_kernels(calls, monkeypatch, warnings):
    (wrong,) = changed("backward", lambda grads: tuple(x * 1.1 for x in grads)).values()
    monkeypatch.setattr(kernels, "backward", wrong)
    exact = attention(rows=16)
    for _ in range(2):
        assert all(map(torch.equal, attention(), exact))
    assert calls == ["forward", "backward"]
    assert len(warnings) == 1
    # What is wrong in one dtype may be right in another: that is a check of its own, and here a second warning.
    attention(torch.float16)
    assert calls == ["forward", "backward"] * 2
    assert len(warnings) == 2


def test_forced_kernels_are_not_checked(calls, monkeypatch):
    monkeypatch.setattr(blockwise, "_UNCHECKED", True)
    attention()
    assert calls == ["forward", "backward"]
    assert self_check.verdicts() == {}


@pytest.mark.parametrize("broken", [False, True])
def test_the_compiler_takes_the_verdict(broken, calls, monkeypatch):
    """Checked while it traces, without a break of the graph."""
    if broken:
        monkeypatch.setattr(kernels, "forward", raises)
    expected = attention(rows=16 if broken else blockwise.USE_TRITON)
    calls.clear()
    torch._dynamo.reset()
    inputs = attention_check._random_inputs(attention_check.AttentionSizes(*SIZES), torch.bfloat16)
    *states, _ = (tensor.to(DEVICE) for tensor in inputs)
    visible = Visibility(states[0].shape[2], states[1].shape[2])
    compiled = torch.compile(blockwise.blockwise_attention, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        assert torch.equal(compiled(*states, visible), expected[0])
    assert calls == ([] if broken else ["forward", "backward", "forward", "forward"])
    assert len(self_check.verdicts()) == 1


def test_the_check_travels_with_the_model():
    modeling = Path(blockwise.__file__).with_name("modeling_t5_experimental.py")
    names = {Path(file).name for file in get_relative_import_files(modeling)}
    assert {"attention_check_t5_experimental.py", "self_check_t5_experimental.py"} <= names
