# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""The Auto classes find every model, though the models are imported only when they are needed."""

import json
import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from transformers import AutoModelForSeq2SeqLM

import t5_experimental
from t5_experimental import configuration_t5_experimental as configurations
from t5_experimental import registration
from tests.support.quick_imports import QUICKLY


# Every way to a model begins in one of these; each in a process of its own, as only the first counts. They are forked
# from one that has imported what transformers itself has of models.
WAYS = {
    "a folder": "AutoModelForSeq2SeqLM.from_pretrained(sys.argv[1])",
    "a configuration of the package": "AutoModelForSeq2SeqLM.from_config(t5_experimental.T5V11Config(**TINY))",
    "a configuration of its module": "AutoModelForSeq2SeqLM.from_config("
    "importlib.import_module('t5_experimental.configuration_t5_experimental').T5V11Config(**TINY))",
    "a configuration by model type": "AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model('t5_v1_1', **TINY))",
    "a class of the package": "t5_experimental.T5V11ForConditionalGeneration(t5_experimental.T5V11Config(**TINY))",
    "a class of its module": "t5_experimental.modeling_t5_experimental.T5V11ForConditionalGeneration("
    "t5_experimental.T5V11Config(**TINY))",
    "what a converter left": "(without(), AutoModelForSeq2SeqLM.from_pretrained(sys.argv[1]))[1]",
}

SCRIPT = """
import importlib, os, sys
import transformers.generation, transformers.modeling_utils
from transformers import AutoConfig, AutoModelForSeq2SeqLM
TINY = dict(vocab_size=16, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)

def without():
    with t5_experimental.without_models():
        t5_experimental.T5V11Config(**TINY)

for way in sys.argv[2:]:
    if not os.fork():
        import t5_experimental
        assert "t5_experimental.modeling_t5_experimental" not in sys.modules
        model = eval(way)
        print(type(model).__module__, type(model).__name__, flush=True)
        os._exit(0)
    assert os.wait()[1] == 0, way
"""


def in_a_process(script: str, *arguments: object) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", QUICKLY + script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_way_to_a_model(tmp_path: Path) -> None:
    tiny = t5_experimental.T5V11Config(vocab_size=16, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    t5_experimental.T5V11ForConditionalGeneration(tiny).save_pretrained(tmp_path)
    printed = in_a_process(SCRIPT, tmp_path, *WAYS.values()).splitlines()
    assert printed == ["t5_experimental.modeling_t5_experimental T5V11ForConditionalGeneration"] * len(WAYS)


def test_a_configuration_that_another_process_sent() -> None:
    tiny = t5_experimental.T5V11Config(vocab_size=16, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        model = pool.submit(AutoModelForSeq2SeqLM.from_config, tiny).result()
    assert type(model) is t5_experimental.T5V11ForConditionalGeneration


def test_what_somebody_else_registers_stays() -> None:
    script = """
import t5_experimental
from t5_experimental.seq2seq_t5_experimental import T5ExperimentalModel
from transformers import AutoModel, AutoModelForTextEncoding
from t5_experimental import T5V11Config

class Mine(T5ExperimentalModel):
    config_class = T5V11Config

TINY = dict(vocab_size=16, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
AutoModel.register(T5V11Config, Mine)
print(type(AutoModel.from_config(T5V11Config(**TINY))).__name__)
AutoModelForTextEncoding.register(T5V11Config, Mine, exist_ok=True)
t5_experimental.T5TalkingHeadsModel, t5_experimental.decoding_session, t5_experimental.register_models()
print(type(AutoModelForTextEncoding.from_config(T5V11Config(**TINY))).__name__)
"""
    assert in_a_process(script).split() == ["Mine", "Mine"]


def test_other_threads_have_models_while_one_only_describes() -> None:
    script = """
import threading
import t5_experimental
from transformers import AutoModel
TINY = dict(vocab_size=16, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
build = lambda: print(type(AutoModel.from_config(t5_experimental.T5V11Config(**TINY))).__name__)
with t5_experimental.without_models():
    t5_experimental.T5V11Config(**TINY)
    thread = threading.Thread(target=build)
    thread.start()
    thread.join()
print(t5_experimental.attention_t5_experimental.__name__, hasattr(t5_experimental, "nothing_t5_experimental"))
"""
    printed = in_a_process(script).split()
    assert printed == ["T5V11Model", "t5_experimental.attention_t5_experimental", "False"]


def test_describing_models_imports_none() -> None:
    """The converter's command starts in half of the time and in two thirds of the memory."""
    script = """
import sys
from t5_experimental import preset_config, without_models
with without_models():
    for name in ("t5.1.1.xxl", "t5.1.th.large", "t5.1.n4w10.base"):
        preset_config(name).layer_specs("decoder")
print(*(name in sys.modules for name in ("transformers.modeling_utils", "transformers.activations")))
"""
    assert in_a_process(script).split() == ["False", "False"]


HEAVY = (
    "torch._dynamo",
    "torch._inductor",
    "sympy",
    "tensorflow",
    "jax",
    "sklearn",
    "scipy",
    "pandas",
    "datasets",
    "peft",
)
MODELS = ("transformers.modeling_utils", "transformers.activations", "transformers.generation.utils", "safetensors")

# What the command loads, printed after each line of arguments: what one has loaded, the next ones have, too.
COMMANDS = """
import contextlib, io, json, sys
from t5_experimental.convert.cli import main

for command in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            status = main(command)
        except SystemExit as end:
            status = end.code
    heavy = ("numpy", "torch", "transformers", "huggingface_hub", "requests", "fsspec", *json.loads(sys.argv[2]))
    print(status, *(name for name in heavy if name in sys.modules), sep=",")
"""


def test_the_import_loads_next_to_nothing() -> None:
    """And a configuration torch, the parts of transformers that it needs, and one module of ours."""
    script = """
import sys
import t5_experimental, t5_experimental.training, t5_experimental.convert.cli
from t5_experimental import LayerSpec, PRESETS
from t5_experimental.presets import preset_architecture
for name in PRESETS:
    preset_architecture(name).layer_specs("decoder")
assert not {"torch", "transformers", "numpy"} & set(sys.modules), sys.modules
before = set(sys.modules)
import torch
with_torch = set(sys.modules)
from t5_experimental import preset_config
t5_experimental.T5V11Config
print(*sorted(name for name in set(sys.modules) - before if name.startswith("t5_experimental")))
print(*sorted(set(sys.modules) - with_torch))
from transformers import T5ForConditionalGeneration
with_theirs = set(sys.modules)
from t5_experimental import T5V11ForConditionalGeneration
print(*sorted(name for name in set(sys.modules) - with_theirs if not name.startswith("t5_experimental.")))
"""
    ours, for_configs, for_models = (set(line.split()) for line in in_a_process(script).splitlines())
    assert ours == {"t5_experimental.configuration_t5_experimental"}
    assert not for_configs & {*HEAVY, *MODELS}
    # To transformers' own T5, ours add next to nothing.
    assert for_models <= {"torch.utils.flop_counter", "torch.utils.module_tracker"}


def test_commands_start_without_torch(tmp_path: Path) -> None:
    """Nor does the conversion of a checkpoint need more than numpy; guarded here because time cannot be."""
    golden = Path(__file__).parents[1] / "reference" / "golden"
    commands = [
        ["--help"],
        ["convert", "--help"],
        ["presets"],
        ["convert", "somewhere", "somewhere else", "--dtyp"],
        ["inspect", golden / "t5.1.1.tiny"],
        ["convert", golden / "t5.1.th.tiny", tmp_path / "native", "--verify"],
        ["convert", golden / "t5.1.1.tiny", tmp_path / "stock", "--format", "stock-t5", "--dtype", "bfloat16"],
        ["verify", golden / "t5.1.th.tiny", tmp_path / "native"],
        ["convert", tmp_path / "stock", tmp_path / "again", "--verify"],
        ["verify", tmp_path / "stock", tmp_path / "again"],
    ]
    lines = in_a_process(COMMANDS, json.dumps(commands, default=str), json.dumps(HEAVY)).splitlines()
    assert lines[:4] == ["0", "0", "0,numpy", "2,numpy"]
    assert lines[4:] == ["0,numpy"] * 4 + ["0,numpy,huggingface_hub"] * 2


def test_the_package_is_imported_before_transformers(tmp_path: Path) -> None:
    """Each way is the first to import one of the tables of configurations."""
    tiny = t5_experimental.T5V11Config(vocab_size=16, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    tiny.save_pretrained(tmp_path)
    script = """
import importlib, os, sys
import torch, transformers.configuration_utils
import t5_experimental
module = "t5_experimental.configuration_t5_experimental"
TINY = dict(vocab_size=16, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
assert not {module, "transformers.models.auto.configuration_auto"} & set(sys.modules)
for way in sys.argv[2:]:
    if not os.fork():
        print(type(eval(way)).__name__, flush=True)
        os._exit(0)
    assert os.wait()[1] == 0, way
"""
    ways = {
        "transformers.AutoConfig.from_pretrained(sys.argv[1])": "T5V11Config",
        "transformers.AutoModel.from_config(importlib.import_module(module).T5V11Config(**TINY))": "T5V11Model",
        "transformers.AutoModelForSeq2SeqLM.from_config(t5_experimental.T5LMAdaptedConfig(**TINY))": (
            "T5LMAdaptedForConditionalGeneration"
        ),
    }
    assert in_a_process(script, tmp_path, *ways).split() == list(ways.values())


def test_names_of_classes_are_those_of_the_tables() -> None:
    classes = {
        configurations.model_class_name(config, suffix)
        for config in configurations.CONFIG_CLASSES
        for suffix in configurations.AUTO_CLASSES.values()
    }
    assert sorted(classes) == registration.MODEL_CLASSES
    assert sorted(registration.CONFIG_NAMES) == sorted(configurations.__all__)


def test_public_names() -> None:
    for name in t5_experimental.__all__:
        assert getattr(t5_experimental, name) is not None
    assert set(t5_experimental.__all__) <= set(dir(t5_experimental))
    assert not hasattr(t5_experimental, "T5V11ForNothing")
