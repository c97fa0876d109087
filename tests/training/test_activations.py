# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Counted activations against those that autograd really keeps, on the CPU."""

import contextlib
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForSeq2SeqLM

from t5_experimental import preset_config
from t5_experimental.calls_t5_experimental import OPERATOR_AGNOSTIC
from t5_experimental.training.memory.activations import Step, activation_bytes
from t5_experimental.training.models.adapters import lora_config, lora_targets


FAMILIES = ["t5.1.1.base", "t5.1.th.base", "t5.1.n4w10.base"]
TINY = {"d_model": 64, "d_ff": 160, "d_kv": 16, "num_heads": 4, "vocab_size": 512}


class Held(TorchDispatchMode):
    """Bytes of the storages that operators have made and that are still there, parameters and gradients aside."""

    def __init__(self, parameters: Iterable[torch.Tensor]):
        super().__init__()
        setattr(self, OPERATOR_AGNOSTIC, True)  # else the paths that are measured would stand back for it
        self.bytes = self.most = 0
        tensors = [tensor for weight in parameters for tensor in (weight, weight.grad) if tensor is not None]
        self._known = {tensor.untyped_storage()._cdata for tensor in tensors}

    def __torch_dispatch__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.bytes += size
            self.most = max(self.most, self.bytes)
            weakref.finalize(storage, self._remove, key, size)

    def _remove(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.bytes -= size


def make(preset: str, step: Step, dropout: float, **fields: Any) -> nn.Module:
    layers = {"num_layers": 5 if "n4w10" in preset else 3}
    config = preset_config(preset, dropout_rate=dropout, **TINY, **layers, **fields)
    model = AutoModelForSeq2SeqLM.from_config(config, attn_implementation=step.attention).train()
    if step.trained == "adapters":
        peft = pytest.importorskip("peft")
        model = peft.get_peft_model(model, lora_config(model, step.rank, lora_targets(model), dropout))
    if step.checkpointing != "none":
        keeps = step.checkpointing == "keep_attention"
        model.gradient_checkpointing_enable({"use_reentrant": False, "keep_attention": keeps})
    return model


def measured(model: nn.Module, step: Step) -> tuple[int, int]:
    """Bytes after the forward pass, and the most in the backward pass, where gradients have their place already."""
    ids = torch.randint(3, 500, (step.examples, step.source))
    labels = torch.randint(3, 500, (step.examples, step.target))
    mask = torch.ones_like(ids)
    mask[0, -1] = 0
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    autocast = torch.autocast("cpu", torch.bfloat16) if step.autocast else contextlib.nullcontext()
    with Held(model.parameters()) as held:
        with autocast:
            loss = model(input_ids=ids, attention_mask=mask, labels=labels, skip_logits=True).loss
        kept = held.bytes
        loss.backward()
    copies = 2 * sum(linear.weight.numel() for name, linear in model.named_modules() if is_cast(name, linear))
    return (kept - copies, held.most - copies) if step.autocast else (kept, held.most)


def is_cast(name: str, module: nn.Module) -> bool:
    """Whether autocast keeps a copy of its weight, which is counted elsewhere; the loss casts the classifier itself."""
    return isinstance(module, nn.Linear) and name != "lm_head"


@pytest.mark.parametrize("preset", FAMILIES)
@pytest.mark.parametrize("dropout", [0.1, 0.0])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"autocast": True},
        {"attention": "eager"},
        {"trained": "adapters", "rank": 8},
        {"checkpointing": "full"},
        {"checkpointing": "keep_attention"},
    ],
    ids=["rows", "autocast", "eager", "adapters", "full", "keep_attention"],
)
def test_what_is_kept(preset: str, dropout: float, options: dict[str, Any]) -> None:
    step = Step(4, 256, 192, device="cpu", **options)
    model = make(preset, step, dropout)
    counted = activation_bytes(model.config, step)
    forward, most = measured(model, step)
    assert counted.forward == pytest.approx(forward, rel=0.05)
    if step.checkpointing != "none":
        assert counted.peak == pytest.approx(most, rel=0.1)


@pytest.mark.parametrize(("examples", "source", "target"), [(2, 512, 114), (8, 40, 24), (1, 1024, 16)])
def test_shapes(examples: int, source: int, target: int) -> None:
    step = Step(examples, source, target, device="cpu")
    model = make("t5.1.n4w10.base", step, 0.1)
    assert activation_bytes(model.config, step).forward == pytest.approx(measured(model, step)[0], rel=0.05)


def test_dropout_of_whole_features_remembers_next_to_nothing() -> None:
    step = Step(4, 256, 192, device="cpu")
    model = make("t5.1.1.base", step, 0.1, broadcast_dropout=True)
    assert activation_bytes(model.config, step).forward == pytest.approx(measured(model, step)[0], rel=0.1)


def test_feed_forward_without_a_gate() -> None:
    step = Step(4, 256, 192, device="cpu")
    model = make("t5.1.1.base", step, 0.0, feed_forward_proj="relu")
    assert activation_bytes(model.config, step).forward == pytest.approx(measured(model, step)[0], rel=0.05)
