# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Data workers that are not forked, as on Python 3.14, macOS and Windows: what they get is pickled for each of them."""

import json
import multiprocessing
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from t5_experimental.training import evaluate, finetune, pretrain
from t5_experimental.training.evaluation import build_evaluator


DATA = Path(__file__).parents[1] / "data"
PAIRS = DATA / "restaurants_train.jsonl"
OBJECTIVES = ("span_corruption", "prefix_lm", "lm", "iid_denoising", "deshuffling", "ul2")


def flags(**options: object) -> list[str]:
    common = {"use_cpu": True, "disable_tqdm": True, "report_to": "none"}
    return [word for name, value in {**common, **options}.items() for word in (f"--{name}", str(value))]


@pytest.fixture(autouse=True)
def _private_cache(monkeypatch, tmp_path):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    rows = [json.loads(line)["target"] for line in PAIRS.read_text().splitlines()]
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    return path


def first_batch(loader: DataLoader, model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Checks that a worker that is not forked can be given what it needs, and no weights."""
    pickled = pickle.dumps((loader.dataset, loader.collate_fn, loader.worker_init_fn))
    embedding = model.get_input_embeddings().weight.detach().numpy()
    assert embedding.tobytes()[:64] not in pickled
    indices = next(iter(loader.batch_sampler))
    return loader.collate_fn([loader.dataset[index] for index in indices])


@pytest.mark.parametrize("more", [{}, {"pack": True}, {"mixture": True}])
def test_fine_tuning(more, tiny_models, tmp_path):
    options = {"train_file": PAIRS, "model_name_or_path": tiny_models["t5_v1_1"], "output_dir": tmp_path / "output"}
    if "mixture" in more:
        (tmp_path / "mixture.yaml").write_text(f"entries: [{{name: a, train_file: {PAIRS}}}]\n")
        options = {**options, "mixture": tmp_path / "mixture.yaml"}
        del options["train_file"]
    elif "pack" in more:
        options = {**options, **more, "max_source_length": 64, "max_target_length": 64}
    trainer, _ = finetune.build_trainer(finetune.parse(flags(**options, dataloader_num_workers=1)))
    batch = first_batch(trainer.get_train_dataloader(), trainer.model)
    expected = trainer.model.prepare_decoder_input_ids_from_labels(batch["labels"], batch.get("decoder_segment_ids"))
    if "decoder_input_ids" in batch:
        assert torch.equal(batch["decoder_input_ids"], expected)
    assert ("decoder_input_ids" in batch) != ("segment_ids" in batch)


def test_evaluation(tiny_models, tmp_path):
    options = {"validation_file": PAIRS, "model_name_or_path": tiny_models["t5_v1_1"], "output_dir": tmp_path}
    trainer, _ = build_evaluator(evaluate.parse(flags(**options, dataloader_num_workers=1)))
    batch = first_batch(trainer.get_eval_dataloader(), trainer.model)
    assert torch.equal(batch["decoder_input_ids"], trainer.model.prepare_decoder_input_ids_from_labels(batch["labels"]))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_pretraining(objective, text, tiny_models, tmp_path):
    options = {"train_file": text, "model_name_or_path": tiny_models["t5_v1_1"], "output_dir": tmp_path / "output"}
    if objective != "lm":  # which has no inputs
        options["max_source_length"] = 512 if objective == "ul2" else 48
    more = {"objective": objective, "dataloader_num_workers": 1, "max_steps": 1}
    trainer = pretrain.build_trainer(pretrain.parse(flags(**options, **more)))
    stream = trainer.get_train_dataloader().stream
    next(iter(stream))  # which fills its caches
    assert len(pickle.dumps(stream)) < 2 * len(pickle.dumps(trainer.processing_class))  # which is most of it


@pytest.fixture
def spawning() -> Iterator[None]:
    multiprocessing.set_start_method("spawn", force=True)
    yield
    multiprocessing.set_start_method(None, force=True)


@pytest.mark.slow
@pytest.mark.usefixtures("spawning")
def test_a_run_whose_worker_is_not_forked(text, tiny_models, tmp_path):
    losses = []
    for workers in (0, 1):
        output = tmp_path / str(workers)
        options = {"train_file": text, "model_name_or_path": tiny_models["t5_v1_1"], "output_dir": output}
        steps = {"max_source_length": 48, "max_steps": 2, "logging_steps": 1, "dropout_rate": 0.1}
        pretrain.main(flags(**options, **steps, dataloader_num_workers=workers))
        lines = (output / "history.jsonl").read_text().splitlines()
        losses.append([entry["loss"] for entry in map(json.loads, lines) if "loss" in entry])
    assert losses[0] == losses[1]
    assert len(losses[0]) == 2
