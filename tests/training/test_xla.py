# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""What training on XLA devices takes, tried on the CPU; tests/xla has whole runs."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from transformers import AutoModelForSeq2SeqLM

from t5_experimental.training.engines import hooks, xla
from t5_experimental.training.engines.hooks import NEVER, XLAHooks, hooks_for
from t5_experimental.training.engines.xla import FixedShapes, as_input, generate_greedily
from t5_experimental.training.errors import TrainingError
from t5_experimental.training.trainer.nonfinite import FirstNonFinite
from t5_experimental.visibility_t5_experimental import Visibility


CONFIGS = Path(xla.__file__).parents[1] / "configs"


def test_batches_are_filled_up_and_fillings_count_nowhere(model):
    def collate(rows: list) -> dict:
        ids, labels = torch.full((len(rows), 5), 7), torch.full((len(rows), 3), 9)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels, "more": None}

    lengths = {"input_ids": 8, "attention_mask": 8, "labels": 6}
    plain = collate([1, 2])
    batch = FixedShapes(collate, 4, lengths, pad_token_id=3)([1, 2])
    assert batch.pop("more") is plain.pop("more") is None
    assert {name: tuple(values.shape) for name, values in batch.items()} == {
        "input_ids": (4, 8),
        "attention_mask": (4, 8),
        "labels": (4, 6),
    }
    assert batch["input_ids"][0].tolist() == [7] * 5 + [3] * 3
    assert batch["input_ids"][3].tolist() == [3] * 8
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).loss, model(**plain).loss, atol=1e-6, rtol=1e-6)


def test_texts_are_those_of_greedy_search(model, batch, monkeypatch):
    marks = []
    monkeypatch.setattr(xla, "mark_step", lambda: marks.append(len(marks)))
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    expected = model.generate(**inputs, max_length=40)
    # A token that comes early ends texts there.
    for end in (1, int(expected[1, 6])):
        marks.clear()
        expected = model.generate(**inputs, max_length=40, eos_token_id=end)
        texts = model.generate(**inputs, max_length=40, eos_token_id=end, custom_generate=generate_greedily)
        assert texts.shape == (3, 40)
        assert torch.equal(texts[:, : expected.shape[1]], expected)
        assert (texts[:, expected.shape[1] :] == 0).all()
        assert len(marks) >= expected.shape[1] - 1


def test_generation_stops_when_all_texts_have_ended(model, batch, monkeypatch):
    marks = []
    monkeypatch.setattr(xla, "mark_step", lambda: marks.append(None))
    everything = list(range(model.config.vocab_size))
    model.generate(batch["input_ids"], max_length=60, eos_token_id=everything, custom_generate=generate_greedily)
    assert len(marks) == 16


@pytest.mark.parametrize("name", ["t5.1.1", "t5.1.th"])
def test_no_attention_by_rows_on_xla(name, make_config):
    """Its operators are none of XLA's, and its views cannot be."""
    attention = AutoModelForSeq2SeqLM.from_config(make_config(name)).encoder.block[0].layer[0].SelfAttention
    diagonals, visible = torch.zeros(4, 511, requires_grad=True), Visibility(256, 256)
    taken = {
        kind: attention.uses_blocks(
            SimpleNamespace(device=torch.device(kind)) if kind == "xla" else torch.zeros(1), diagonals, visible, False
        )
        for kind in ("cpu", "xla")
    }
    assert taken == {"cpu": True, "xla": False}


def test_the_number_of_a_step_is_no_scalar_of_its_program(monkeypatch):
    """XLA makes equal scalars one input: step 8 would be the 8 of a constant, and another program."""
    monkeypatch.setattr("t5_experimental.training.engines.xla.is_xla", lambda device: True)
    made = []
    right = torch.tensor

    def tensor(data: object, **options: object) -> torch.Tensor:
        made.append(data)
        return right(data, **options)

    watch = FirstNonFinite(["a"], torch.device("cpu"))
    monkeypatch.setattr(torch, "tensor", tensor)
    assert as_input(8, torch.device("cpu")) == 8
    watch.look(9, torch.zeros(()))
    assert made == [[8], [9]]


class Log(list):
    """What the hooks call of XLA, in order."""

    def shard_rows(self, values: torch.Tensor) -> None:
        self.append(tuple(values.shape))

    def get_rng_state(self) -> int:
        self.append("saved")
        return 7

    def set_rng_state(self, state: int) -> None:
        self.append(f"restored {state}")


@pytest.mark.parametrize("devices", [1, 2])
def test_hooks_of_xla(devices, monkeypatch):
    log = Log()
    monkeypatch.setattr(hooks, "spmd_devices", lambda: devices)
    monkeypatch.setattr(hooks, "shard_rows", log.shard_rows)
    core = ModuleType("torch_xla.core")
    core.xla_model = log
    for name, module in {"torch_xla": ModuleType("torch_xla"), "torch_xla.core": core}.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(sys.modules, "torch_xla.core.xla_model", log)
    found = hooks_for(torch.device("xla"))
    assert isinstance(found, XLAHooks)
    callbacks = [type(callback).__name__ for callback in found.callbacks()]
    assert callbacks == (["ShardCallback"] if devices > 1 else []) + ["StepBoundaries"]
    batch = {"input_ids": torch.zeros(4, 8), "count": torch.zeros(()), "skip_logits": True}
    assert found.prepare_inputs(batch) is batch
    found.restore_random_state()
    found.save_random_state()
    found.restore_random_state()
    found.restore_random_state()  # only the step after a checkpoint returns to its state
    assert log == [*([(4, 8)] if devices > 1 else []), "saved", "restored 7"]
    assert found.steps_between_checks(1) == NEVER
    assert found.adamw == {"fused": False, "capturable": True}
    collate = found.prepare_collator(
        lambda rows: {"labels": torch.ones(1, 2)}, 2, {"labels": 3}, SimpleNamespace(pad_token_id=0)
    )
    assert collate([])["labels"].tolist() == [[1, 1, -100], [-100, -100, -100]]
    found.check_search(None)
    found.check_search(1)
    with pytest.raises(TrainingError, match="--generation_num_beams 4 does not work through torch_xla"):
        found.check_search(4)


def test_other_devices_need_nothing():
    found, batch = hooks_for(torch.device("cpu")), {"input_ids": torch.zeros(4, 8)}
    assert found.prepare_inputs(batch) is batch
    assert found.callbacks() == []
    assert found.prepare_collator(list, 2, {}, None) is list
    assert found.adamw == {"fused": True}
    found.check_search(4)


def test_accelerate_reads_the_configuration():
    config = load_config_from_file(str(CONFIGS / "xla_tpu.yaml"))
    assert config.distributed_type == "XLA"
    assert config.num_processes == 8
    assert config.mixed_precision == "no"
