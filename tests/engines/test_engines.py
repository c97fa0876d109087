# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""An engine that is asked for either runs, or the run ends with a sentence."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DistributedType

from t5_experimental.training import finetune
from t5_experimental.training.engines.engine import (
    CONFIGS,
    Engine,
    check_engine,
    engine_of,
    prepare_engine,
    requested_engine,
)
from t5_experimental.training.engines.parts import optimizer_bytes, parameter_bytes
from t5_experimental.training.errors import TrainingError
from t5_experimental.training.optim.presets import OptimizerChoice


DATA = Path(__file__).parents[1] / "data"


def arguments(**fields: object) -> SimpleNamespace:
    defaults = {"deepspeed": None, "fsdp": None, "use_cpu": False, "ddp_backend": None, "deepspeed_plugin": None}
    return SimpleNamespace(**{**defaults, "optim": "adamw_torch", **fields})


def accelerator(kind: DistributedType, processes: int, **state: object) -> SimpleNamespace:
    state = {"backend": "gloo" if processes > 1 else None, **state}
    return SimpleNamespace(
        distributed_type=kind, num_processes=processes, state=SimpleNamespace(**state), device=torch.device("cpu")
    )


@pytest.mark.parametrize("engine", ["DEEPSPEED", "FSDP"])
def test_engines_are_not_left_out_without_a_word(engine, monkeypatch, tiny_models, tmp_path):
    flags = f"--model_name_or_path {tiny_models['t5_v1_1']} --output_dir {tmp_path / 'output'} --use_cpu"
    finetune.parse(flags.split())
    monkeypatch.setenv(f"ACCELERATE_USE_{engine}", "true")
    with pytest.raises(TrainingError, match=r"turns (DeepSpeed|FSDP) off: leave it out"):
        finetune.parse(flags.split())
    args = arguments()
    assert requested_engine(args) == engine.lower()
    with pytest.raises(TrainingError, match="was asked for, but accelerate runs data parallelism, 2 process"):
        check_engine(Engine(engine.lower(), 2, 2), accelerator(DistributedType.MULTI_CPU, 2))
    monkeypatch.delenv(f"ACCELERATE_USE_{engine}")
    assert requested_engine(args) is None
    assert requested_engine(arguments(deepspeed="zero.json")) == "deepspeed"
    assert requested_engine(arguments(fsdp=True)) == "fsdp"


def test_fsdp_without_an_accelerator_ends_before_anything_is_loaded(monkeypatch, tiny_models, tmp_path, capfd):
    """As the launcher asks for it on a machine without GPUs; in one sentence."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(finetune, "run", lambda options: pytest.fail("the run has begun"))
    files = {"train_file": DATA / "restaurants_train.jsonl", "output_dir": tmp_path / "output"}
    options = {"model_name_or_path": tiny_models["t5_v1_1"], **files}
    words = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    for name, value in {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit, match=r"^finetune: FSDP shards a model across GPUs, and torch finds none here: "):
        finetune.main(words)
    monkeypatch.delenv("ACCELERATE_USE_FSDP")
    with pytest.raises(SystemExit, match="FSDP shards a model across GPUs, and torch finds none here: "):
        finetune.main([*words, "--fsdp", "full_shard"])
    assert not (tmp_path / "output").exists()
    assert "Traceback" not in "".join(capfd.readouterr())


@pytest.mark.slow
def test_the_launcher_asks_for_fsdp_without_an_accelerator(launching, tiny_models, tmp_path):
    script = Path(finetune.__file__)
    options = {"train_file": DATA / "restaurants_train.jsonl", "output_dir": tmp_path / "output"}
    flags = launching.flags(model_name_or_path=tiny_models["t5_v1_1"], optimizer_preset="finetune", **options)
    hidden = {"CUDA_VISIBLE_DEVICES": ""}
    outcome = launching.launch("fsdp2", script, flags, processes=2, environment=hidden)
    assert outcome.returncode != 0
    assert outcome.stderr.count("finetune: FSDP shards a model across GPUs") == 1, outcome.stderr
    assert outcome.stderr.count("Traceback") == 1, outcome.stderr  # the launcher's own
    assert not (tmp_path / "output").exists()


def test_processes_know_of_each_other(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    check_engine(Engine("ddp", 0, 2), accelerator(DistributedType.MULTI_CPU, 2))
    with pytest.raises(TrainingError, match="2 processes were started, but accelerate sees 1: each would train"):
        check_engine(Engine(), accelerator(DistributedType.NO, 1))


def test_processes_without_gpus_talk_over_gloo(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    args = arguments()
    prepare_engine(args)
    assert (args.use_cpu, args.ddp_backend) == (True, None)
    monkeypatch.setenv("LOCAL_RANK", "0")
    prepare_engine(args)
    assert (args.use_cpu, args.ddp_backend) == (True, "gloo")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    args = arguments()
    prepare_engine(args)
    assert (args.use_cpu, args.ddp_backend) == (False, None)


def test_sharding_by_xla_without_it():
    with pytest.raises(TrainingError, match="--xla_spmd needs the package torch_xla"):
        prepare_engine(arguments(), is_spmd=True)
    with pytest.raises(TrainingError, match="leave --fsdp and --fsdp_config out, give --xla_spmd"):
        prepare_engine(arguments(fsdp="full_shard", fsdp_config='{"xla": true, "xla_fsdp_v2": true}'))


def test_optimizers_of_whole_parameters_are_refused_under_zero():
    zero2 = Engine("deepspeed", 2, 2)
    with pytest.raises(TrainingError, match="--optim adafactor takes means over full parameters"):
        zero2.check(OptimizerChoice(None, "adafactor"))
    for preset in ("finetune", "pretrain", "rms_adamw"):
        with pytest.raises(TrainingError, match=f"--optimizer_preset {preset} takes .* ZeRO-2 flattens and shards"):
            zero2.check(OptimizerChoice(preset))
    zero2.check(OptimizerChoice("adamw"))
    zero2.check(OptimizerChoice(None, "adamw_torch"))
    Engine("deepspeed", 0, 2).check(OptimizerChoice("finetune"))
    Engine().check(OptimizerChoice("finetune"))


def test_the_engine_of_a_run(monkeypatch):
    plugin = SimpleNamespace(zero_stage=3, offload_optimizer_device="cpu", offload_param_device="none")
    args = arguments(world_size=8, device=torch.device("cpu"), fsdp_plugin_args=None)
    assert engine_of(args) == Engine("ddp", 0, 8)
    args.world_size = 1
    assert engine_of(args) == Engine()
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert engine_of(args) == Engine("fsdp", 1, 1)
    monkeypatch.setenv("FSDP_VERSION", "2")
    assert engine_of(args) == Engine("fsdp", 2, 1)
    args.fsdp_plugin_args = {"fsdp_version": 1}
    assert engine_of(args) == Engine("fsdp", 1, 1)
    args.deepspeed_plugin, args.world_size = plugin, 8
    assert engine_of(args) == Engine("deepspeed", 3, 8, (("optimizer", "cpu"),))


@pytest.mark.parametrize("name", CONFIGS)
def test_engines_by_their_configuration(name):
    engine = Engine.named(name, 8)
    assert (engine.config, engine.processes) == (name if name != "single" else "ddp", 8)
    assert engine.keeps_parameters_whole == (name in ("single", "ddp", "deepspeed_zero2"))
    assert engine.reads_in_parts == (name == "fsdp2")
    assert (Path(finetune.__file__).parent / "configs" / f"{name}.yaml").is_file()


def test_engines_in_words():
    zero, sharded = Engine("deepspeed", 3, 8, (("optimizer", "cpu"),)), Engine("fsdp", 2, 2)
    eight, two = accelerator(DistributedType.DEEPSPEED, 8), accelerator(DistributedType.FSDP, 2)
    assert zero.describe(eight) == "DeepSpeed ZeRO-3, optimizer on cpu, 8 process(es) on cpu over gloo"
    assert sharded.describe(two) == "FSDP2, 2 process(es) on cpu over gloo"
    assert Engine().describe(accelerator(DistributedType.NO, 1)) == "none, 1 process(es) on cpu"
    spmd = Engine("xla", devices=8)
    assert spmd.describe(accelerator(DistributedType.XLA, 1)) == "XLA, each step on 8 devices, 1 process(es) on cpu"


def test_bytes_are_counted():
    model = torch.nn.Linear(3, 5, bias=False)
    assert parameter_bytes(model) == (60, 60)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    wrapped = SimpleNamespace(state="another", optimizer=SimpleNamespace(optimizer=optimizer))
    assert optimizer_bytes(optimizer) == optimizer_bytes(wrapped) == 2 * 60 + 4
    # As ZeRO-3 leaves it: the parameter is empty, half of it is beside it.
    model.weight.ds_numel, model.weight.ds_tensor = 15, torch.zeros(8)
    model.weight.data = torch.empty(0)
    assert parameter_bytes(model) == (32, 60)
