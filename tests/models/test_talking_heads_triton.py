"""The Triton kernels of talking-heads attention: equal to all pairs at once; on a GPU, or else in Triton's interpreter.

The interpreter shows that the formulas are right, and the compiler, which needs no GPU either, that they are kernels.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM
from transformers.dynamic_module_utils import get_imports, get_relative_import_files

from t5_experimental import attention_t5_experimental, blockwise_attention_t5_experimental
from t5_experimental.attention_t5_experimental import dense_bias
from t5_experimental.blockwise_attention_t5_experimental import USE_TRITON, blockwise_attention, uses_triton
from t5_experimental.visibility_t5_experimental import Visibility, masked_bias
from tests.support.quick_imports import QUICKLY


pytest.importorskip(
    "triton", minversion="3.7", reason="Triton is only made for Linux, and older ones do not compile the kernels"
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NAMES = ("query", "key", "value", "logits_projection", "weights_projection", "diagonals")


def make_inputs(visible, batch=2, heads=(3, 4, 5), sizes=(6, 7), with_diagonals=True):
    """In float64; neither head counts nor sizes or lengths fill a tile."""
    (key_heads, softmax_heads, value_heads), (key_size, value_size) = heads, sizes
    n, m = visible.query_length, visible.key_length
    shapes = [
        (batch, key_heads, n, key_size),
        (batch, key_heads, m, key_size),
        (batch, value_heads, m, value_size),
        (key_heads, softmax_heads),
        (softmax_heads, value_heads),
        (softmax_heads, n + m - 1),
    ]
    generator = torch.Generator().manual_seed(n * m)
    scales = (0.6, 0.6, 0.6, 1 / key_heads**0.5, 0.6, 0.6)
    inputs = [
        (torch.randn(shape, generator=generator, dtype=torch.float64) * scale).to(DEVICE)
        for shape, scale in zip(shapes, scales, strict=True)
    ]
    return inputs if with_diagonals else [*inputs[:5], None]


def eager(query, key, value, logits_projection, weights_projection, diagonals, visible, kept=1.0):
    """The formula; `kept` `(b, hv, n, m)` is what dropout multiplies by."""
    logits = torch.einsum("bkim,bkjm,kh->bhij", query, key, logits_projection)
    if diagonals is not None:
        logits = logits + dense_bias(diagonals, visible)
    elif (mask := visible.all_rows(query.device)) is not None:
        logits = logits + masked_bias(torch.zeros((), dtype=query.dtype, device=query.device), mask)
    return torch.einsum("bhij,hc->bcij", logits.softmax(-1), weights_projection) * kept @ value


def triton_kernels(*inputs):
    return blockwise_attention(*inputs, rows=USE_TRITON)


def with_gradients(function, inputs, visible, *arguments, dtype=torch.float64):
    """Output and gradients of all inputs, by name, from inputs rounded to `dtype`."""
    inputs = [None if tensor is None else tensor.to(dtype).requires_grad_() for tensor in inputs]
    output = function(*inputs, visible, *arguments)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    given = {name: tensor for name, tensor in zip(NAMES, inputs, strict=True) if tensor is not None}
    gradients = torch.autograd.grad(output, list(given.values()), weights.to(output.dtype).to(DEVICE))
    results = {"output": output.detach(), **dict(zip(given, gradients, strict=True))}
    assert all(result.dtype == dtype for result in results.values())
    return results


def largest_error(results, expected):
    """Relative to the norm of what was expected."""
    assert results.keys() == expected.keys()
    return max(float((results[name] - expected[name]).norm() / expected[name].norm()) for name in expected)


def padding(m, batch=2):
    mask = torch.ones(batch, 1, 1, m, dtype=torch.bool, device=DEVICE)
    mask[0, ..., m - 6 :] = mask[-1, ..., :2] = False
    return mask


def segments(length, batch=2):
    return (torch.arange(length, device=DEVICE)[None].expand(batch, -1) + 3) // 9


def pairs(n, m, heads):
    """Nothing in row 3 of the first example is visible."""
    mask = torch.rand(2, heads, n, m, generator=torch.Generator().manual_seed(5)) > 0.4
    mask[0, :, 3] = False
    return mask.to(DEVICE)


def nothing_in_the_first(m):
    mask = padding(m)
    mask[0] = False
    return mask


CASES = {
    "all, one tile": (Visibility(16, 16), {}),
    "padding": (Visibility(19, 35, padding(35)), {}),
    "cross attention": (Visibility(5, 35, padding(35)), {"with_diagonals": False}),
    "packed, causal": (Visibility(33, 33, None, segments(33, 1), segments(33, 1), 0, True), {"batch": 1}),
    "packed, padded, more queries": (Visibility(34, 7, padding(7), segments(34), segments(7)), {}),
    "left padding, causal, with a past": (Visibility(4, 21, padding(21).flip(-1), None, None, 17, True), {}),
    "past in a tensor": (Visibility(3, 23, None, None, None, torch.tensor(7, device=DEVICE), True), {}),
    "pairs of each head, hidden row": (Visibility(9, 20, pairs(9, 20, 4)), {}),
    "pairs, causal, packed": (Visibility(9, 20, pairs(9, 20, 1), segments(9), segments(20), 2, True), {}),
    "hidden example": (Visibility(6, 18, nothing_in_the_first(18)), {}),
    "hidden example without bias": (Visibility(6, 18, nothing_in_the_first(18)), {"with_diagonals": False}),
    "many heads, large sizes": (Visibility(18, 17), {"batch": 1, "heads": (18, 2, 20), "sizes": (50, 40)}),
    "one head": (Visibility(7, 17), {"heads": (1, 1, 1), "sizes": (1, 1)}),
}


@pytest.mark.parametrize("name", CASES)
def test_output_and_gradients_equal_eager(name):
    visible, arguments = CASES[name]
    inputs = make_inputs(visible, **arguments)
    results = with_gradients(triton_kernels, inputs, visible, dtype=torch.float32)
    assert largest_error(results, with_gradients(eager, inputs, visible)) < 3e-6


def test_the_default_dtype_does_not_matter():
    """transformers sets it while it loads a model, and users may."""
    visible = CASES["padding"][0]
    inputs = make_inputs(visible)
    expected = with_gradients(eager, inputs, visible)
    torch.set_default_dtype(torch.bfloat16)
    try:
        results = with_gradients(triton_kernels, inputs, visible, dtype=torch.float32)
    finally:
        torch.set_default_dtype(torch.float32)
    assert largest_error(results, expected) < 3e-6


def weights_mixed_the_other_way_round(*inputs):
    *others, weights_projection, diagonals, visible = inputs
    return eager(*others, weights_projection.t(), diagonals, visible)


def logits_mixed_the_other_way_round(*inputs):
    query, key, value, logits_projection, *others = inputs
    return eager(query, key, value, logits_projection.t(), *others)


def bias_the_other_way_round(*inputs):
    *others, diagonals, visible = inputs
    return eager(*others, diagonals.flip(1), visible)


def online_softmax_after_the_mix(query, key, value, logits_projection, weights_projection, diagonals, visible):
    """Divides what the second mix returned by its own sums, as a kernel does that normalises at the end."""
    logits = torch.einsum("bkim,bkjm,kh->bhij", query, key, logits_projection) + dense_bias(diagonals, visible)
    talked = torch.einsum("bhij,hc->bcij", logits.exp(), weights_projection)
    return talked / talked.sum(-1, keepdim=True) @ value


WRONG = [
    weights_mixed_the_other_way_round,
    logits_mixed_the_other_way_round,
    bias_the_other_way_round,
    online_softmax_after_the_mix,
]


def test_wrong_formulas_fail_the_comparison():
    """The check above discriminates."""
    visible = Visibility(5, 18)
    inputs = make_inputs(visible, heads=(4, 4, 4))
    results = with_gradients(triton_kernels, inputs, visible, dtype=torch.float32)
    for wrong in WRONG:
        assert largest_error(results, with_gradients(wrong, inputs, visible)) > 1e-2, wrong


def kept_by_dropout(batch, heads, n, m, dropout, seed):
    """What the weights of each value head are multiplied by: equal weights, times the unit matrix for values."""
    query, key = (torch.zeros(batch, 1, length, 1, device=DEVICE) for length in (n, m))
    value = torch.eye(m, device=DEVICE).expand(batch, heads, m, m)
    ones = torch.ones(1, 1, device=DEVICE)
    torch.manual_seed(seed)
    return triton_kernels(query, key, value, ones, ones.expand(1, heads), None, Visibility(n, m), dropout) * m


def test_dropout_is_the_same_in_both_passes_and_follows_the_seed():
    visible = Visibility(18, 21, causal=True, past_length=3)
    inputs = make_inputs(visible)
    kept = kept_by_dropout(2, 5, 18, 21, 0.3, seed=3)
    torch.manual_seed(3)
    results = with_gradients(triton_kernels, inputs, visible, 0.3, dtype=torch.float32)
    assert largest_error(results, with_gradients(eager, inputs, visible, kept.double())) < 3e-6
    other = kept_by_dropout(2, 5, 18, 21, 0.3, seed=4)
    assert largest_error(results, with_gradients(eager, inputs, visible, other.double())) > 1e-2


def test_dropout_drops_weights_one_by_one():
    kept = kept_by_dropout(2, 2, 64, 64, 0.25, seed=0)
    assert torch.unique(kept.double().round(decimals=5)).tolist() == pytest.approx([0, 1 / 0.75], rel=1e-5)
    share = (kept > 0).double()
    error = (0.25 * 0.75) ** 0.5
    assert abs(share.mean() - 0.75) < 5 * error / share.numel() ** 0.5
    for axis in range(4):  # no draw is shared along examples, heads, queries or keys
        assert abs(share.mean(axis).std() - error / share.shape[axis] ** 0.5) < 0.2 * error / share.shape[axis] ** 0.5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_exact_as_eager(dtype):
    """At most twice the error of the same formula in the same dtype, output and gradients."""
    visible = Visibility(20, 33, causal=True, past_length=13)
    inputs = make_inputs(visible)
    exact = with_gradients(eager, inputs, visible)
    results, rounded = (with_gradients(function, inputs, visible, dtype=dtype) for function in (triton_kernels, eager))
    for name, expected in exact.items():
        error, eager_error = ((x[name].double() - expected).norm() for x in (results, rounded))
        assert error <= 2 * eager_error, name


def test_hidden_rows_stay_finite_in_half_precision():
    visible, arguments = CASES["pairs of each head, hidden row"]
    results = with_gradients(triton_kernels, make_inputs(visible, **arguments), visible, dtype=torch.float16)
    assert all(tensor.isfinite().all() for tensor in results.values())


@pytest.mark.parametrize("without_inputs", [[], [1]])
def test_a_model_equals_its_eager_version(without_inputs, make_config, batch, monkeypatch):
    """Loss and the gradient of every parameter, transposed views and shared bias tables among them."""
    batch["attention_mask"][without_inputs] = 0
    monkeypatch.setattr(attention_t5_experimental, "_MIN_QUERIES", 1)
    monkeypatch.setattr(attention_t5_experimental, "_MIN_PAIRS", 1)
    calls = []
    monkeypatch.setattr(
        attention_t5_experimental, "blockwise_attention", lambda *x: calls.append(x) or triton_kernels(*x)
    )
    torch.manual_seed(0)
    model = AutoModelForSeq2SeqLM.from_config(make_config("t5.1.th")).to(DEVICE).eval()
    results = []
    for implementation in ("sdpa", "eager"):
        model.set_attn_implementation(implementation)
        model.zero_grad()
        output = model(**{name: tensor.to(DEVICE) for name, tensor in batch.items()})
        output.loss.backward()
        results.append(
            {"logits": output.logits.detach()} | {name: x.grad.clone() for name, x in model.named_parameters()}
        )
    assert len(calls) == 6
    assert largest_error(*results) < 1e-4


def test_which_problems_they_take(monkeypatch):
    """Half precision, up to 32 heads, on GPUs from Ampere on, where Triton is installed and not turned off."""
    half, gpu = torch.bfloat16, torch.device("cuda")
    properties = SimpleNamespace(major=8)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(blockwise_attention_t5_experimental, "_HAS_TRITON", True)
    assert uses_triton(32, half, gpu)
    assert uses_triton(1, torch.float16, gpu)
    assert not uses_triton(33, half, gpu)
    assert not uses_triton(32, torch.float32, gpu)
    assert not uses_triton(32, half, torch.device("cpu"))
    properties.major = 7
    assert not uses_triton(32, half, gpu)
    properties.major = 9
    monkeypatch.setattr(blockwise_attention_t5_experimental, "_HAS_TRITON", False)
    assert not uses_triton(32, half, gpu)


def run_python(code, **environment):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **environment}
    result = subprocess.run(
        [sys.executable, "-c", QUICKLY + code], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_they_are_imported_when_used_and_the_environment_turns_them_off():
    code = """
import os, sys
import torch, transformers.modeling_utils
for value in ("1", "0", "force"):
    if not os.fork():
        os.environ["T5_EXPERIMENTAL_TRITON"] = value
        from t5_experimental import blockwise_attention_t5_experimental as module
        print(value, module._HAS_TRITON, module._UNCHECKED, "attention_triton" in str(sys.modules), flush=True)
        os._exit(0)
    assert os.wait()[1] == 0
"""
    expected = ["1 True False False", "0 False False False", "force True True False"]
    assert run_python(code).splitlines() == expected


def test_the_kernels_travel_without_asking_for_triton():
    """A folder with code has them, and loads where there is no Triton."""
    modeling = Path(blockwise_attention_t5_experimental.__file__).with_name("modeling_t5_experimental.py")
    files = {Path(x).name: x for x in get_relative_import_files(modeling) if "triton" in Path(x).name}
    assert set(files) == {"attention_triton_t5_experimental.py", "triton_kernels_t5_experimental.py"}
    assert all("triton" not in get_imports(file) for file in files.values())


# Triton's compiler asks a driver for what it shall compile for; the kernels are compiled and not run.
COMPILE = """
import json
import torch, triton
from triton.backends.compiler import GPUTarget
from t5_experimental import attention_triton_t5_experimental as kernels
from t5_experimental.visibility_t5_experimental import Visibility
from t5_experimental.blockwise_attention_t5_experimental import _problem

class Driver:
    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        return GPUTarget("cuda", 80, 32)

triton.runtime.driver.set_active(Driver())
shared = {}

class Compiler(kernels._Launcher):
    def _launch(self, kernel, grid, *arguments):
        compiled = kernel.warmup(self.inputs, *arguments, s=self.sizes, grid=grid, **kernels._OPTIONS)
        shared[kernel.fn.__name__] = compiled.metadata.shared

kernels._Launcher = Compiler
n, m, heads, size = 20, 30, 24, 32
states = [torch.zeros(2, heads, length, size, dtype=torch.bfloat16) for length in (n, m, m)]
mixes = [torch.zeros(heads, heads, dtype=torch.bfloat16)] * 2
segments = [torch.zeros(2, length, dtype=torch.int64) for length in (n, m)]
mask = torch.ones(2, heads, n, m, dtype=torch.bool)
seed, past_length, diagonals = torch.tensor(2**60), torch.tensor(0), torch.zeros(heads, n + m - 1)
problem = _problem((*states, *mixes, diagonals, mask, *segments, past_length, True, 0.1, seed, 0))
kernels.forward(problem)
kernels.backward(problem, states[0])
print(json.dumps(shared))
"""


@pytest.mark.slow
def test_they_compile_and_fit_into_shared_memory(tmp_path):
    """For Ampere, with the heads of t5.1.th.base; devices of compute capability 8.6 and 12.0 have 99 KiB."""
    shared = json.loads(run_python(COMPILE, TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path)).splitlines()[-1])
    assert len(shared) == 6
    assert max(shared.values()) <= 99 * 1024
