# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""FSDP2 on two processes, wrapped by accelerate as on GPUs (see fsdp2_on_cpu.py), beside one process:
every family, and a model with one matrix for embeddings and classifier whose Adafactor is factored."""

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from t5_experimental import T5V11Config
from tests.support.forking import ForkServer
from tests.support.launching import flags


pytestmark = pytest.mark.slow

SCRIPT = "tests.engines.fsdp2_on_cpu"
DATA = Path(__file__).parents[1] / "data"
STEPS, SAVED = 8, 4
MAX_LENGTH = 8

# By name of the model: options, and what the launcher's configuration sets otherwise.
RUNS: dict[str, tuple[dict[str, object], dict[str, str]]] = {
    "t5_v1_1": ({"optimizer_preset": "finetune"}, {}),
    "t5_lm_adapted": ({"optimizer_preset": "rms_adamw"}, {"FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT"}),
    "t5_talking_heads": (
        {"optimizer_preset": "pretrain", "gradient_accumulation_steps": 2},
        {"FSDP_ACTIVATION_CHECKPOINTING": "true"},
    ),
    "t5_first_layers_narrow": (
        {
            "optimizer_preset": "adamw",
            "gradient_checkpointing": True,
            "gradient_checkpointing_kwargs": '{"keep_attention": true}',
        },
        {"FSDP_CPU_RAM_EFFICIENT_LOADING": "false"},
    ),
    "tied": ({"optimizer_preset": "finetune"}, {}),
}
RESUMED = ("t5_lm_adapted", "tied")


@pytest.fixture(scope="module")
def folder(tiny_models: dict[str, Path], fork_server: ForkServer, once: Callable[..., Path]) -> Path:
    """Where all runs write to: their models are in `two` and `one`, their reports beside."""
    return once("fsdp2", lambda folder: run_all(write_models(tiny_models, folder), folder, fork_server))


def write_models(tiny_models: dict[str, Path], folder: Path) -> dict[str, Path]:
    config = T5V11Config(
        vocab_size=1152, d_model=128, d_kv=32, d_ff=160, num_heads=4, num_layers=1, tie_word_embeddings=True
    )
    torch.manual_seed(0)
    AutoModelForSeq2SeqLM.from_config(config).save_pretrained(folder / "tied")
    for name in ("spiece.model", "tokenizer_config.json"):
        shutil.copyfile(tiny_models["t5_v1_1"] / name, folder / "tied" / name)
    return {**tiny_models, "tied": folder / "tied"}


@pytest.fixture(scope="module")
def reports(folder: Path) -> dict[str, Any]:
    """`two`: reports by rank and run; `one`: the same of one process with batches as large as the two have together."""
    found = {name: json.loads((folder / f"{name}.reports.json").read_text()) for name in ("two", "one")}
    return {**found, "one": found["one"][0]}


def run_all(models: dict[str, Path], folder: Path, fork_server: ForkServer) -> None:
    with (DATA / "restaurants_validation.jsonl").open() as lines:
        (folder / "validation.jsonl").write_text("".join(itertools.islice(lines, 9)))
    common = {
        "train_file": DATA / "restaurants_train.jsonl",
        "validation_file": folder / "validation.jsonl",
        "use_cpu": True,
        "accelerator_config": '{"use_configured_state": true}',
        "disable_tqdm": True,
        "report_to": "none",
        "dropout_rate": 0,
        "logging_steps": 1,
        "metric": "exact_match",
        "per_device_eval_batch_size": 4,
        "generation_max_length": MAX_LENGTH,
        "max_grad_norm": 0.5,
    }
    for processes, name in ((2, "two"), (1, "one")):
        runs: dict[str, Any] = {}

        def add(
            run: str,
            model: str,
            *,
            environment: dict[str, str],
            processes: int = processes,
            name: str = name,
            runs: dict[str, Any] = runs,
            **options: object,
        ) -> None:
            options = {"max_steps": STEPS, "save_steps": SAVED, **common, **options}
            options |= {"model_name_or_path": models[model], "output_dir": folder / name / run}
            options |= {"per_device_train_batch_size": 8 // processes}
            runs[run] = {"flags": flags(**options), "environment": environment}

        for model, (options, environment) in RUNS.items():
            add(model, model, environment=environment, **options)
        if processes > 1:
            for model in RESUMED:
                options, environment = RUNS[model]
                checkpoint = folder / name / model / f"checkpoint-{SAVED}"
                add(f"{model} resumed", model, environment=environment, resume_from_checkpoint=checkpoint, **options)
            add("refused", "t5_v1_1", environment={})
        (folder / f"{name}.json").write_text(json.dumps(runs))
        engine = "fsdp2" if processes > 1 else "single"
        files = [folder / f"{name}.json", folder / f"{name}.reports.json"]
        run = fork_server.start(SCRIPT, files, engine, processes)
        assert not any(run.wait()), run.read()


@pytest.mark.parametrize("run", RUNS)
def test_training_is_that_of_one_process(run: str, reports: dict[str, Any]) -> None:
    one, ranks = reports["one"][run], [rank[run] for rank in reports["two"]]
    assert one["type"] == "NO"
    assert not one["empty_at_first"]
    assert one["distributed"] == one["distributed_states"] == 0
    for rank in ranks:
        assert rank["empty_at_first"]
        assert (rank["type"], rank["is_fsdp2"], rank["class"]) == ("FSDP", True, f"FSDP{one['class']}")
        wrapped = rank["fsdp_modules"]
        assert wrapped.count("FSDPT5Block") == one["blocks"]
        assert wrapped.count("FSDPEmbedding") == wrapped.count("FSDPLinear") == 1
        assert ("FSDPCheckpointWrapper" in wrapped) == (run == "t5_talking_heads")
        assert rank["distributed"] == rank["parameters"] == one["parameters"]
        assert rank["distributed_states"] == rank["states"] == one["states"] >= one["parameters"]
    held = [rank["parameters_bytes_per_rank"] for rank in ranks]
    assert sum(held) == one["parameters_bytes_per_rank"]
    assert max(held) < 0.55 * sum(held)
    ours = ranks[0]
    assert len(ours["losses"]) == STEPS
    # Targets are of unequal length, so a mean of the processes' means would be another loss.
    assert ours["losses"] == pytest.approx(one["losses"], abs=1e-4)
    assert ours["norms"] == pytest.approx(one["norms"], abs=1e-4)
    assert min(ours["norms"]) > 0.5  # all gradients are clipped
    assert one["losses"][0] - one["losses"][-1] > 0.2
    assert ours["evaluation"] == pytest.approx(one["evaluation"], abs=1e-4)
    assert ours["predictions"] == one["predictions"]


@pytest.mark.parametrize("run", RUNS)
def test_the_saved_model_is_that_of_one_process(
    run: str, reports: dict[str, Any], folder: Path, batch: dict[str, torch.Tensor], check_permissions: Any
) -> None:
    check_permissions(folder / "two" / run)  # checkpoints in parts among them
    ours, one = (AutoModelForSeq2SeqLM.from_pretrained(folder / name / run).eval() for name in ("two", "one"))
    with torch.no_grad():
        torch.testing.assert_close(ours(**batch).logits, one(**batch).logits, atol=1e-4, rtol=0)
    settings = [json.loads((folder / name / run / "generation_config.json").read_text()) for name in ("two", "one")]
    assert settings[0] == settings[1]
    assert len(settings[0]) == 8  # what a model without settings has, and max_length
    assert settings[0]["max_length"] == MAX_LENGTH
    tokenizer = AutoTokenizer.from_pretrained(folder / "two" / run)
    lines = map(json.loads, (folder / "validation.jsonl").read_text().splitlines())
    sources = list(dict.fromkeys(line["source"] for line in lines))[: len(reports["one"][run]["predictions"])]
    ids = ours.generate(**tokenizer(sources, return_tensors="pt", padding=True), max_length=MAX_LENGTH)
    assert tokenizer.batch_decode(ids, skip_special_tokens=True) == reports["two"][0][run]["predictions"]


@pytest.mark.parametrize("run", RESUMED)
def test_a_resumed_run_equals_one_without_a_break(run: str, reports: dict[str, Any], folder: Path) -> None:
    """From checkpoints in parts, and in one piece with factored states."""
    whole, resumed = reports["two"][0][run], reports["two"][0][f"{run} resumed"]
    assert resumed["steps"] == STEPS - SAVED
    assert resumed["losses"] == whole["losses"]
    assert resumed["norms"] == whole["norms"]
    weights = [
        AutoModelForSeq2SeqLM.from_pretrained(folder / "two" / name).state_dict() for name in (run, f"{run} resumed")
    ]
    for name, weight in weights[0].items():
        assert torch.equal(weight, weights[1][name]), name


def test_the_default_optimizer_is_refused(reports: dict[str, Any]) -> None:
    for rank in reports["two"]:
        assert "steps" not in rank["refused"]
        assert "--optim adafactor" in rank["refused"]["refused"]
        assert "choose --optimizer_preset finetune" in rank["refused"]["refused"]


def test_adapters_prompts_and_pre_training_equal_one_process(
    trained_alone: Path, engines: ModuleType, check_generation_config: Any, fork_server: ForkServer
) -> None:
    cells = [cell for cell in engines.QUICK_CELLS if cell.entry_point != "finetune" or cell.name == "LoRA"]
    engines.train("fsdp2", cells, trained_alone, steps=engines.QUICK_STEPS, fork_server=fork_server)
    for cell in cells:
        row = engines.compare(trained_alone, "fsdp2", cell, steps=engines.QUICK_STEPS)
        assert row["engine_seen"].startswith("FSDP2, 2 process(es) on")
    check_generation_config(trained_alone / "fsdp2", cells)
