# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Adapters of peft on every family: what is trained, what is saved, and that generation knows them."""

import copy
import sys

import peft
import pytest
import torch
from transformers import AutoModelForSeq2SeqLM

from t5_experimental.training.errors import TrainingError
from t5_experimental.training.models.adapters import LORA_TARGETS, add_prompt, lora_config, lora_targets


ALL_LINEAR = ("k", "o", "q", "v", "wi_0", "wi_1", "wo")


def with_lora(model, targets=LORA_TARGETS):
    """The model with adapters that do something: peft begins with a product of zero."""
    torch.manual_seed(1)
    adapted = peft.get_peft_model(model, lora_config(model, rank=2, targets=targets)).eval()
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return adapted


def one_step(model, batch):
    """Trains one step and returns the names of the parameters that it has changed."""
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.train()(**batch).loss.backward()
    torch.optim.SGD(trained, lr=1.0).step()
    model.eval()
    return {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}


def generate(model, batch, **options):
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    return model.generate(**inputs, max_new_tokens=10, do_sample=False, **options)


@pytest.mark.parametrize("targets", [LORA_TARGETS, ALL_LINEAR])
def test_lora_trains_adapters_alone_and_reloads(targets, config, model, batch, tmp_path):
    plain = copy.deepcopy(model)
    adapted = with_lora(model, targets)
    changed = one_step(adapted, batch)
    layers = [name for name, module in plain.named_modules() if name.rpartition(".")[2] in targets]
    assert changed == {f"base_model.model.{layer}.lora_{matrix}.default.weight" for layer in layers for matrix in "AB"}

    adapted.save_pretrained(tmp_path)
    reloaded = peft.PeftModel.from_pretrained(plain, tmp_path).eval()
    expected = adapted(**batch).logits
    assert torch.equal(reloaded(**batch).logits, expected)
    generated = generate(reloaded, batch)

    merged = reloaded.merge_and_unload()
    assert type(merged) is type(AutoModelForSeq2SeqLM.from_config(config))
    torch.testing.assert_close(merged(**batch).logits, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(generate(merged, batch), generated)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_lora_with_gradient_checkpointing(use_reentrant, model, batch):
    adapted = with_lora(model).train()

    def gradients():
        adapted.zero_grad()
        torch.manual_seed(4)  # of dropout
        adapted(**batch).loss.backward()
        return {name: value.grad.clone() for name, value in adapted.named_parameters() if value.grad is not None}

    expected = gradients()
    adapted.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    if use_reentrant:
        # Such a checkpoint has gradients only where one of its inputs has, and the embedding is frozen.
        adapted.enable_input_require_grads()
    found = gradients()
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], msg=name)


def test_lora_leaves_the_mix_of_heads_alone(make_config):
    assert lora_targets(AutoModelForSeq2SeqLM.from_config(make_config("t5.1.th"))) == ALL_LINEAR


def test_lora_of_a_feed_forward_without_gate(make_config):
    model = AutoModelForSeq2SeqLM.from_config(make_config("t5.1.1", feed_forward_proj="relu"))
    assert lora_targets(model) == ("k", "o", "q", "v", "wi", "wo")


def test_bad_lora_options(make_config, monkeypatch):
    model = AutoModelForSeq2SeqLM.from_config(make_config("t5.1.th"))
    with pytest.raises(TrainingError, match="--lora_rank is 0: it must be at least 1"):
        lora_config(model, rank=0)
    with pytest.raises(
        TrainingError, match="cannot adapt lm_head, wi: the linear layers of this model are k, o, q, v, wi_0"
    ):
        lora_config(model, rank=2, targets=["q", "wi", "lm_head"])
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(TrainingError, match="need the package peft"):
        lora_config(model, rank=2)


@pytest.fixture
def prompted(model):
    """Every architecture with a prompt of five rows."""
    torch.manual_seed(2)
    return add_prompt(model, torch.randn(5, model.config.d_model)).eval()


def test_a_prompt_stands_before_the_embedded_input(prompted, batch):
    model = prompted.get_base_model()
    rows = prompted.get_prompt(batch_size=3)
    assert rows.shape == (3, 5, model.config.d_model)
    mask = torch.cat([torch.ones(3, 5, dtype=torch.long), batch["attention_mask"]], dim=1)
    expected = model(
        inputs_embeds=torch.cat([rows, model.shared(batch["input_ids"])], dim=1),
        attention_mask=mask,
        labels=batch["labels"],
    )
    found = prompted(**batch)
    assert torch.equal(found.logits, expected.logits)
    # The loss of a training step, which holds no logits.
    torch.testing.assert_close(prompted(**batch, skip_logits=True).loss, expected.loss)


def test_positions_count_from_the_prompt(model):
    """A prompt made of embeddings is text: its rows have the positions that tokens there would have."""
    ids = torch.arange(3, 15)[None]
    prompted = add_prompt(model, model.shared.weight[ids[0, :5]]).eval()
    labels = torch.tensor([[7, 8, 1]])
    torch.testing.assert_close(
        prompted(input_ids=ids[:, 5:], labels=labels).logits, model(input_ids=ids, labels=labels).logits
    )


def test_a_prompt_is_all_that_is_trained_and_saved(prompted, batch, tmp_path):
    model = copy.deepcopy(prompted.get_base_model())
    assert one_step(prompted, batch) == {"prompt_encoder.default.embedding.weight"}
    prompted.save_pretrained(tmp_path)
    rows = prompted.get_prompt(batch_size=1)[0]
    reloaded = peft.PeftModel.from_pretrained(model, tmp_path).eval()
    assert torch.equal(reloaded.get_prompt(batch_size=1)[0], rows)
    assert torch.equal(reloaded(**batch).logits, prompted(**batch).logits)


def test_a_prompt_with_gradient_checkpointing(prompted, batch):
    prompted.train()
    gradients = []
    for _ in range(2):
        prompted.zero_grad()
        torch.manual_seed(4)  # of dropout
        prompted(**batch).loss.backward()
        gradients.append(prompted.prompt_encoder["default"].embedding.weight.grad.clone())
        prompted.gradient_checkpointing_enable({"use_reentrant": False})
    torch.testing.assert_close(gradients[0], gradients[1])
    assert gradients[0].abs().max() > 0


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}])
def test_generation_with_a_prompt_does_not_see_padding(options, prompted, batch):
    together = generate(prompted, batch, **options)
    for row, ids, mask in zip(together, batch["input_ids"], batch["attention_mask"], strict=True):
        kept = {"input_ids": ids[None], "attention_mask": mask[None]}
        if mask[-1] == 0:  # padded on the right: without its padding the same text at the same positions
            kept = {name: value[:, : int(mask.sum())] for name, value in kept.items()}
        alone = generate(prompted, kept, **options)[0]
        assert torch.equal(row[: len(alone)], alone)
        assert not row[len(alone) :].any()


def test_generation_with_a_prompt_decodes_fast(prompted, batch, monkeypatch):
    """Token by token as without a prompt: adapters in the encoder leave the decoder as it is."""
    from t5_experimental.decoding_t5_experimental import StepDecoder

    steps = []
    right = StepDecoder.__call__
    monkeypatch.setattr(StepDecoder, "__call__", lambda self, *inputs: steps.append(1) or right(self, *inputs))
    fast = generate(prompted, batch)
    assert len(steps) == fast.shape[1] - 2  # all but the start token and the first one, which the whole model makes
    monkeypatch.setattr("t5_experimental.seq2seq_t5_experimental.next_token_logits", lambda *inputs: None)
    assert torch.equal(generate(prompted, batch), fast)
    assert len(steps) == fast.shape[1] - 2
