# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Sections of `benchmarks/gpu.py`: a fine-tuning and its resume, and FSDP2 on one device, in processes of their own.

The entry point needs `datasets`. Where it is missing, transformers' own trainer and torch's `fully_shard` are what is
tried.
"""

import importlib.util
import json
import shutil
import socket
import tempfile
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForSeq2SeqLM, PreTrainedTokenizerFast

from .gpu_goldens import convert
from .gpu_processes import Work, in_process
from .gpu_report import Machine, Row, Section


ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "tests" / "data"
MODEL = "t5.1.th.tiny"

STEPS, SAVED = 6, 3
NO_DATASETS = "the entry point needs the package datasets, which is not installed"

# Relative difference of losses: of a resumed run, and of FSDP2, each in float32. The same sums in another order.
LOSS_TOLERANCE = 1e-4
# The same of a resumed run in bfloat16.
BFLOAT16_TOLERANCE = 0.01

# What `accelerate launch --config_file training/configs/fsdp2.yaml` tells its processes.
FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "T5Block",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
}


def has_datasets() -> bool:
    """Whether the entry point can run. If so it is imported here already, which forks have then."""
    if importlib.util.find_spec("datasets") is None:
        return False
    importlib.import_module("t5_experimental.training.finetune")
    return True


def examples() -> list[dict[str, str]]:
    """The restaurants' inputs and targets, as `source` and `target`."""
    return [json.loads(line) for line in (DATA / "restaurants_train.jsonl").read_text().splitlines()]


def model_with_words(folder: Path) -> Path:
    """A converted golden model with a tokenizer of whole words, for which nothing reads sentencepiece files."""
    model = convert(folder, MODEL)
    words = dict.fromkeys(word for row in examples() for text in row.values() for word in text.split())
    ids = {word: number for number, word in enumerate(("<pad>", "</s>", "<unk>", *words))}
    tokenizer = Tokenizer(WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", ids["</s>"])])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(model)
    return model


def alone() -> dict[str, str]:
    """What a launcher tells the only process of a group."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), **ranks}


# What processes of their own do.


def entry_point(flags: list[str], device: str, is_fsdp: bool) -> None:
    """The fine-tuning of `training/finetune.py`."""
    from accelerate.state import AcceleratorState

    from t5_experimental.training import finetune

    AcceleratorState._reset_state(reset_partial_state=True)  # a fork has its parent's
    if is_fsdp and device == "cpu":
        from tests.support.pretended_gpus import pretend_gpus

        pretend_gpus()
    finetune.main(flags)


def stock_trainer(model: Path, output: Path, resumes: bool, device: str, bf16: bool) -> None:
    """transformers' trainer on the restaurants' examples; writes its losses."""
    from accelerate.state import AcceleratorState
    from transformers import AutoTokenizer, DataCollatorForSeq2Seq, Seq2SeqTrainer, Seq2SeqTrainingArguments

    AcceleratorState._reset_state(reset_partial_state=True)
    tokenizer = AutoTokenizer.from_pretrained(model)
    encoded = [
        {"input_ids": tokenizer(row["source"]).input_ids, "labels": tokenizer(row["target"]).input_ids}
        for row in examples()
    ]
    network = AutoModelForSeq2SeqLM.from_pretrained(model, dtype=torch.float32)
    options = Seq2SeqTrainingArguments(
        output_dir=str(output),
        max_steps=STEPS,
        save_steps=SAVED,
        logging_steps=1,
        per_device_train_batch_size=8,
        learning_rate=1e-3,
        bf16=bf16,
        use_cpu=device == "cpu",
        report_to="none",
        disable_tqdm=True,
    )
    collator = DataCollatorForSeq2Seq(tokenizer, model=network)
    trainer = Seq2SeqTrainer(network, options, data_collator=collator, train_dataset=encoded)  # type: ignore[arg-type]
    trainer.train(resume_from_checkpoint=resumes)


def sharded_steps(model: Path, output: Path, device: str) -> None:
    """Losses of steps of a model that torch's FSDP2 shards, and of the same model as it is; as JSON."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    from t5_experimental.stack_t5_experimental import T5Block
    from t5_experimental.training.engines.fsdp2 import share_embedding

    torch.distributed.init_process_group("gloo" if device == "cpu" else "nccl")
    if device != "cpu":
        torch.cuda.set_device(0)
    mesh = init_device_mesh(device, (1,))
    generator = torch.Generator().manual_seed(3)
    inputs = {
        name: torch.randint(3, 1000, (4, length), generator=generator).to(device)
        for name, length in (("input_ids", 24), ("labels", 12))
    }
    found: dict[str, list[float]] = {}
    for name in ("one device", "fsdp2"):
        network = AutoModelForSeq2SeqLM.from_pretrained(model, dtype=torch.float32).to(device)
        network.config.dropout_rate = 0.0
        if name == "fsdp2":
            share_embedding(network)
            blocks = [module for module in network.modules() if isinstance(module, T5Block)]
            for module in (*blocks, network.get_input_embeddings(), network.lm_head, network):
                fully_shard(module, mesh=mesh)
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
        losses = found.setdefault(name, [])
        for _ in range(STEPS):
            loss = network(**inputs, use_cache=False).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    output.write_text(json.dumps(found))


# Sections.


def finetuning(section: Section, machine: Machine) -> None:
    """Runs, and the same runs ended in the middle and resumed: the losses and the final weights must be the same."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = model_with_words(folder)
        for precision in ("float32",) if machine.tiny else ("float32", "bfloat16"):
            section.measure(
                f"transformers' trainer, {precision}", resumed_row, folder, model, False, precision, section, machine
            )
            if has_datasets():
                section.measure(f"finetune, {precision}", resumed_row, folder, model, True, precision, section, machine)
            else:
                section.leave_out(f"finetune, {precision}", NO_DATASETS)


def resumed_row(folder: Path, model: Path, is_ours: bool, precision: str, section: Section, machine: Machine) -> Row:
    """Trains to the end, then once more from the first checkpoint."""
    device, bf16 = machine.device.type, precision == "bfloat16"
    outputs = whole, resumed = [folder / f"{is_ours}-{precision}-{name}" for name in ("whole", "resumed")]
    runs: list[Work]
    if is_ours:
        runs = [(entry_point, (finetune_flags(model, output, device, bf16), device, False)) for output in outputs]
    else:
        runs = [(stock_trainer, (model, output, output == resumed, device, bf16)) for output in outputs]
    runs.insert(1, (keep_first_checkpoint, (whole, resumed)))
    in_process(runs, {}, section.left)
    losses, again = (losses_of(output) for output in outputs)
    row: Row = {
        "first loss": losses[1],
        "last loss": losses[STEPS],
        "resumed loss": again[STEPS],
        "difference": max(abs(again[step] - losses[step]) / losses[step] for step in range(SAVED + 1, STEPS + 1)),
    }
    tolerance = BFLOAT16_TOLERANCE if bf16 else LOSS_TOLERANCE
    if not row["difference"] <= tolerance:
        row["wrong"] = f"the losses of the resumed run differ by {row['difference']:.1e}"
    elif not losses[STEPS] < losses[1]:
        row["wrong"] = "the loss did not fall"
    return row


def keep_first_checkpoint(whole: Path, resumed: Path) -> None:
    """A copy of a run that ended in the middle."""
    resumed.mkdir()
    shutil.copytree(whole / f"checkpoint-{SAVED}", resumed / f"checkpoint-{SAVED}")


def finetune_flags(model: Path, output: Path, device: str, bf16: bool) -> list[str]:
    """The command line of a short fine-tuning; it resumes by itself."""
    options = {
        "model_name_or_path": model,
        "train_file": DATA / "restaurants_train.jsonl",
        "output_dir": output,
        "optimizer_preset": "finetune",
        "max_steps": STEPS,
        "save_steps": SAVED,
        "logging_steps": 1,
        "per_device_train_batch_size": 8,
        "max_source_length": 48,
        "max_target_length": 48,
        "bf16": bf16,
        "use_cpu": device == "cpu",
        "report_to": "none",
        "disable_tqdm": True,
    }
    return [text for name, value in options.items() for text in (f"--{name}", str(value))]


def losses_of(output: Path) -> dict[int, float]:
    """By step."""
    state = json.loads((output / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())
    return {row["step"]: row["loss"] for row in state["log_history"] if "loss" in row}


def fsdp2(section: Section, machine: Machine) -> None:
    """torch's FSDP2 with one process, by itself and through accelerate under the entry point."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = model_with_words(folder)
        section.measure("fully_shard", sharded_row, folder, model, section, machine)
        if has_datasets():
            section.measure("finetune", accelerate_row, folder, model, section, machine)
        else:
            section.leave_out("finetune", NO_DATASETS)


def sharded_row(folder: Path, model: Path, section: Section, machine: Machine) -> Row:
    output = folder / "losses.json"
    in_process([(sharded_steps, (model, output, machine.device.type))], alone(), section.left)
    found = json.loads(output.read_text())
    one, sharded = found["one device"], found["fsdp2"]
    return _compared(one, sharded)


def accelerate_row(folder: Path, model: Path, section: Section, machine: Machine) -> Row:
    device = machine.device.type
    found = []
    for is_fsdp in (False, True):
        output = folder / f"fsdp-{is_fsdp}"
        flags = [*finetune_flags(model, output, device, bf16=False), "--dropout_rate", "0"]
        environment: dict[str, str] = {}
        if is_fsdp:
            environment = {**FSDP2, **alone()}
            if device == "cpu":
                flags += ["--accelerator_config", '{"use_configured_state": true}']
        in_process([(entry_point, (flags, device, is_fsdp))], environment, section.left)
        found.append([loss for _, loss in sorted(losses_of(output).items())])
    return _compared(*found)


def _compared(one: list[float], sharded: list[float]) -> Row:
    row: Row = {
        "last loss": one[-1],
        "last loss, FSDP2": sharded[-1],
        "difference": max(abs(a - b) / a for a, b in zip(one, sharded, strict=True)),
    }
    if not row["difference"] <= LOSS_TOLERANCE:
        row["wrong"] = f"the losses differ by {row['difference']:.1e}"
    return row
