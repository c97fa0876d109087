"""Fixtures that several test folders use: tiny models of every family, and the reference data of the original code."""

import contextlib
import gc
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch


os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Without it, kernels are chosen by their times, and equal runs may differ in their last digits.
os.environ.setdefault("T5_EXPERIMENTAL_CPU_KERNELS", "bfloat16-onednn,float32-onednn,int8-fbgemm,int8-onednn")
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton and kernels are imported
with contextlib.suppress(ImportError):
    # It comes with torch's CUDA builds; the process aborts if TensorFlow, which some tests use, is imported before it.
    import triton  # noqa: F401

import transformers

import t5_experimental
from t5_experimental import T5ExperimentalConfig
from tests.support.forking import ForkServer


with contextlib.suppress(ImportError):
    # On a busy machine everything takes long.
    import hypothesis

    hypothesis.settings.register_profile(
        "patient", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
    )
    hypothesis.settings.load_profile("patient")

gc.disable()  # until all tests are collected: what is imported stays, and looking at it took a quarter of that time
torch.set_num_threads(1)  # tests run in several processes
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As in the background of a script; programs that tests start would inherit it, and Ctrl-C is tested.
    signal.signal(signal.SIGINT, signal.default_int_handler)

REFERENCE = Path(__file__).parent / "reference"


def pytest_collection_finish() -> None:
    """Trainers collect garbage several times in a run; what was imported until now need not be looked at each time."""
    _freeze()
    gc.set_threshold(20_000, 20, 20)
    gc.enable()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Nor what the tests of a file have imported and keep."""
    if nextitem is None or nextitem.path != item.path:
        _freeze()


def _freeze() -> None:
    gc.collect()
    gc.freeze()


TINY = {"vocab_size": 1152, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_heads": 4, "num_layers": 2}


@pytest.fixture(autouse=True)
def _verbosity() -> Iterator[None]:
    """Programs that a test runs in its own process may silence transformers, whose trainer then shows no bar."""
    before = transformers.logging.get_verbosity()
    yield
    transformers.logging.set_verbosity(before)


def tiny_config(name: str, **overrides: object) -> T5ExperimentalConfig:
    """A configuration of a few thousand parameters: one per family, and others that its checkpoints lack."""
    if name == "t5.1.1":
        return t5_experimental.T5V11Config(**{**TINY, **overrides})
    if name == "t5.1.1.lm100k":
        return t5_experimental.T5LMAdaptedConfig(**{**TINY, **overrides})
    if name == "t5.1.th":
        uneven = {"num_key_heads": 2, "num_value_heads": 3, "d_k": 8, "d_v": 6}
        return t5_experimental.T5TalkingHeadsConfig(**{**TINY, **uneven, **overrides})
    if name == "t5.1.n4w10":
        # Four narrow layers, as the family has by itself, would take as long as all other architectures together.
        narrow = {"num_heads": 2, "d_ff": 32}
        layers = {"encoder": [narrow, {}, {}], "decoder": [narrow, narrow, {}]}
        few = {} if "num_layers" in overrides else {"num_layers": 3, "layer_overrides": layers}
        return t5_experimental.T5FirstLayersNarrowConfig(**{**TINY, **few, **overrides})
    if name == "umt5":
        return t5_experimental.T5V11Config(**{**TINY, "relative_attention_type": "bias", **overrides})
    assert name == "mixed", name
    layers = {
        "encoder": [{"num_heads": 2, "d_ff": 32}, {"attention_type": "multi_head"}, {"num_key_heads": 3, "d_v": 4}],
        "decoder": [{"num_heads": 2}, {"attention_type": "multi_head", "num_heads": 6}, {}],
    }
    return t5_experimental.T5TalkingHeadsConfig(**{**TINY, "num_layers": 3, "layer_overrides": layers, **overrides})


FAMILIES = ("t5.1.1", "t5.1.1.lm100k", "t5.1.th", "t5.1.n4w10")
# lm100k is t5.1.1 under another name, which tests of names and folders ask for themselves.
ARCHITECTURES = ("t5.1.1", "t5.1.th", "t5.1.n4w10", "mixed", "umt5")


@pytest.fixture
def compile_backend() -> str:
    """For `torch.compile`: Inductor compiles each kernel for seconds, so it has its turn in `make test-inductor`."""
    return os.environ.get("COMPILE_BACKEND", "aot_eager")


@pytest.fixture
def make_config() -> Callable[..., T5ExperimentalConfig]:
    """`make_config(name, **overrides)`, see `tiny_config`."""
    return tiny_config


@pytest.fixture
def architectures() -> tuple[str, ...]:
    """Names for `make_config`: the families, a mix that no released checkpoint has, and umT5."""
    return (*FAMILIES, "mixed", "umt5")


@pytest.fixture(params=ARCHITECTURES)
def config(request: pytest.FixtureRequest) -> T5ExperimentalConfig:
    """Every tiny architecture in turn."""
    return tiny_config(request.param)


@pytest.fixture
def model(config: T5ExperimentalConfig) -> torch.nn.Module:
    """A language model of every tiny architecture in turn, with fixed random weights, in evaluation mode."""
    from transformers import AutoModelForSeq2SeqLM

    torch.manual_seed(0)
    return AutoModelForSeq2SeqLM.from_config(config).eval()


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    """Three examples: full, padded on the right, padded on the left; every one ends with the end-of-sequence token."""
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.randint(3, 1000, (3, 13), generator=generator)
    attention_mask = torch.ones_like(input_ids)
    attention_mask[1, 9:] = 0
    attention_mask[2, :4] = 0
    input_ids[0, -1] = input_ids[1, 8] = input_ids[2, -1] = 1
    labels = torch.randint(3, 1000, (3, 7), generator=generator)
    labels[:, -1] = 1
    return {"input_ids": input_ids * attention_mask, "attention_mask": attention_mask, "labels": labels}


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Callable[..., Path]:
    """`once(name, make)`: a folder that `make(folder)` fills, in the first of the workers of the tests that asks for
    it; the others wait for it."""
    from filelock import FileLock

    own = tmp_path_factory.getbasetemp()
    root = (own.parent if hasattr(request.config, "workerinput") else own) / "once"
    root.mkdir(exist_ok=True)

    def make_once(name: str, make: Callable[[Path], object]) -> Path:
        folder, done = root / name, root / f"{name}.done"
        with FileLock(root / f"{name}.lock"):
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)  # another worker failed with it
                folder.mkdir()
                make(folder)
                done.touch()
        return folder

    return make_once


@pytest.fixture(scope="session")
def fork_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    """Starts entry points of training in forked processes; one at a time."""
    with ForkServer(tmp_path_factory.mktemp("forked")) as server:
        yield server


@pytest.fixture(scope="session")
def reference() -> Path:
    """The folder of what the original code left behind: checkpoints with golden outputs, and shapes."""
    return REFERENCE


@pytest.fixture(scope="session")
def golden() -> Callable[[str], dict[str, np.ndarray]]:
    """`golden(name)`: the arrays that the original code wrote beside checkpoint `name`."""

    def load(name: str) -> dict[str, np.ndarray]:
        with np.load(REFERENCE / "golden" / name / "golden.npz") as arrays:
            return dict(arrays)

    return load


@pytest.fixture(scope="session")
def golden_without_inputs() -> Callable[[str], dict[str, np.ndarray]]:
    """`golden_without_inputs(name)`: what the original makes of checkpoint `name` where some examples have no inputs;
    `scores` are log-probabilities of the targets."""

    def load(name: str) -> dict[str, np.ndarray]:
        with np.load(REFERENCE / "golden" / "no_inputs.npz") as arrays:
            return {key.removeprefix(f"{name}/"): arrays[key] for key in arrays if key.startswith(f"{name}/")}

    return load


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`converted(name)`: folder that the `t5-experimental` command made of golden checkpoint `name`."""
    from t5_experimental.convert.cli import main

    root = tmp_path_factory.mktemp("converted")

    def convert(name: str) -> Path:
        output = root / name
        if not output.exists():
            assert main(["convert", str(REFERENCE / "golden" / name), str(output)]) == 0
        return output

    return convert


@pytest.fixture(scope="session")
def with_slots(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`with_slots(name)`: a golden checkpoint converted with its optimizer."""
    from t5_experimental.convert.cli import main

    root = tmp_path_factory.mktemp("with-slots")

    def convert(name: str) -> Path:
        output = root / name
        if not output.exists():
            assert main(["convert", str(REFERENCE / "golden" / name), str(output), "--with-optimizer"]) == 0
        return output

    return convert


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folder of a random tiny model for each family, with the restaurants' tokenizer, by `model_type`."""
    root = tmp_path_factory.mktemp("models")
    return {model_type: _make_tiny_model(root / model_type, model_type) for model_type in _CONFIGS}


_CONFIGS = {
    config_class.model_type: config_class
    for config_class in (
        t5_experimental.T5V11Config,
        t5_experimental.T5LMAdaptedConfig,
        t5_experimental.T5TalkingHeadsConfig,
        t5_experimental.T5FirstLayersNarrowConfig,
    )
}


def _make_tiny_model(folder: Path, model_type: str) -> Path:
    from transformers import AutoModelForSeq2SeqLM

    narrow = {"layer_overrides": {key: [{"num_heads": 2, "d_ff": 32}, {}] for key in ("encoder", "decoder")}}
    config = _CONFIGS[model_type](**TINY, **(narrow if model_type == "t5_first_layers_narrow" else {}))
    torch.manual_seed(0)
    AutoModelForSeq2SeqLM.from_config(config).save_pretrained(folder)
    shutil.copyfile(REFERENCE.parent / "data" / "restaurants.model", folder / "spiece.model")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5Tokenizer", "extra_ids": 100}))
    return folder
