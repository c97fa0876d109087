"""What training relies on: initial values, dropout, gradient checkpointing, adapters."""

import json

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM

import t5_experimental


def gradients(model, batch):
    model.zero_grad()
    torch.manual_seed(4)
    model(**batch).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("broadcast_dropout", [True, False])
@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_gradient_checkpointing_gives_equal_gradients(config, batch, implementation, use_reentrant, broadcast_dropout):
    """With dropout: the second pass must draw the same masks."""
    config.broadcast_dropout = broadcast_dropout
    torch.manual_seed(0)
    model = AutoModelForSeq2SeqLM.from_config(config, attn_implementation=implementation).train()
    expected = gradients(model, batch)
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    if use_reentrant:
        model.enable_input_require_grads()
    for name, gradient in gradients(model, batch).items():
        torch.testing.assert_close(gradient, expected[name], msg=name)
    assert all(gradient.abs().max() > 0 for gradient in expected.values())


def test_gradient_checkpointing_gives_up_the_cache(model, batch):
    model.train().gradient_checkpointing_enable()
    assert model(**batch, use_cache=True).past_key_values is None
    assert model.eval()(**batch, use_cache=True).past_key_values is not None


def test_labels_need_no_cache(model, batch):
    assert model(**batch).past_key_values is None
    batch["decoder_input_ids"] = batch.pop("labels")
    assert model(**batch).past_key_values is not None


def test_sdpa_and_eager_have_equal_gradients(config, batch):
    per_implementation = []
    for implementation in ("eager", "sdpa"):
        torch.manual_seed(0)
        model = AutoModelForSeq2SeqLM.from_config(config, attn_implementation=implementation).eval()
        per_implementation.append(gradients(model, batch))
    for name, gradient in per_implementation[0].items():
        torch.testing.assert_close(gradient, per_implementation[1][name], rtol=1e-3, atol=1e-6, msg=name)


def test_dropout_acts_in_training_alone(config, batch):
    config.dropout_rate = 0.3
    torch.manual_seed(0)
    model = AutoModelForSeq2SeqLM.from_config(config)
    losses = [model.train()(**batch).loss for _ in range(2)]
    assert losses[0] != losses[1]
    assert model.eval()(**batch).loss == model(**batch).loss


@pytest.mark.parametrize("skip_logits", [True, False])
@pytest.mark.parametrize("checkpointing", [True, False])
def test_autocast_gives_the_gradients_of_float32_nearly(model, batch, checkpointing, skip_logits):
    """Weights and gradients stay in float32; bfloat16 has 8 significant bits, and errors add up over the layers."""
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "weight_dropout"):
            module.dropout = 0.0
    expected = gradients(model, batch)
    if checkpointing:
        model.gradient_checkpointing_enable()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = gradients(model, {**batch, "skip_logits": skip_logits})
    for name, gradient in found.items():
        assert gradient.dtype == torch.float32
        assert (gradient - expected[name]).norm() < 0.05 * expected[name].norm(), name
    assert any(not torch.equal(gradient, expected[name]) for name, gradient in found.items())


# The original's kinds of variables, as tests/reference/make_initializers.py calls them -> our module's name.
KINDS = {
    "embedding": "shared",
    "rms_scale": "layer_norm",
    "feed_forward_wi": "wi",
    "feed_forward_wi_0": "wi_0",
    "feed_forward_wi_1": "wi_1",
    "feed_forward_wo": "wo",
    "attention_q": "q",
    "attention_k": "k",
    "attention_v": "v",
    "attention_o": "o",
    "talking_heads_q": "q",
    "talking_heads_k": "k",
    "talking_heads_v": "v",
    "talking_heads_y": "o",
    "talking_heads_logits": "logits_projection",
    "talking_heads_weights": "weights_projection",
    "relative_attention_bias": "relative_attention_bias",
    "classifier": "lm_head",
}


@pytest.mark.parametrize("name", ["t5.1.1.base", "t5.1.th.base", "t5.1.0.small"])
def test_initial_values_are_distributed_as_the_originals(name, reference):
    """Spread, extremes and shape of every kind of parameter, pooled over seeds, against the original's own draws."""
    recorded = json.loads((reference / "golden" / "initializers.json").read_text())[name]
    sizes = recorded["sizes"]
    config = config_of(name, sizes)
    pooled: dict[str, list[torch.Tensor]] = {}
    for seed in range(8):
        torch.manual_seed(seed)
        model = AutoModelForSeq2SeqLM.from_config(config)
        for parameter_name, parameter in model.named_parameters():
            pooled.setdefault(parameter_name.split(".")[-2], []).append(parameter.detach().flatten())
    checked = 0
    for kind, expected in recorded["kinds"].items():
        values = torch.cat(pooled[KINDS[kind]]).double()
        if expected["distribution"] == "constant":
            assert values.eq(1).all()
        else:
            # Four standard errors of a standard deviation, of both samples.
            tolerance = 4 * (1 / values.numel() + 1 / expected["count"]) ** 0.5
            assert values.std() == pytest.approx(expected["std"], rel=tolerance), kind
            if expected["distribution"] != "normal":  # bounded: the extremes are where the original's are
                assert values.abs().max() <= expected["max_abs_over_requested"] * expected["requested_std"] * 1.01
                assert values.abs().max() >= max(-expected["min"], expected["max"]) * 0.9, kind
            else:
                assert values.abs().max() > 3 * values.std(), kind
        checked += 1
    assert checked == len(recorded["kinds"]) >= 9


def config_of(name, sizes):
    """The sizes in the original's record -> our configuration."""
    fields = {"vocab_size": sizes["vocab"], **{field: sizes[field] for field in ("d_model", "d_ff", "num_layers")}}
    if name == "t5.1.th.base":
        return t5_experimental.T5TalkingHeadsConfig(
            **fields,
            num_heads=sizes["heads"],
            num_key_heads=sizes["key_heads"],
            num_value_heads=sizes["value_heads"],
            d_k=sizes["key_size"],
            d_v=sizes["value_size"],
        )
    if name == "t5.1.0.small":
        fields |= {"feed_forward_proj": "relu", "tie_word_embeddings": True}
    return t5_experimental.T5V11Config(**fields, num_heads=sizes["num_heads"], d_kv=sizes["d_kv"])


def test_lora_targets_the_usual_names(model, batch):
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(
        model, peft.LoraConfig(task_type="SEQ_2_SEQ_LM", r=2, target_modules=["q", "v", "wo", "wi_0"])
    )
    torch.testing.assert_close(adapted(**batch).logits, model(**batch).logits)
    adapted(**batch).loss.backward()
    trained = {name for name, parameter in adapted.named_parameters() if parameter.grad is not None}
    assert trained
    assert all("lora_" in name for name in trained)
    assert any("EncDecAttention.v" in name for name in trained)


@pytest.mark.parametrize(
    ("task_type", "suffix"),
    [("SEQ_CLS", "ForSequenceClassification"), ("TOKEN_CLS", "ForTokenClassification")],
)
def test_lora_on_the_task_heads(config, batch, task_type, suffix):
    peft = pytest.importorskip("peft")
    model = getattr(t5_experimental, type(config).__name__.removesuffix("Config") + suffix)(config)
    adapted = peft.get_peft_model(model, peft.LoraConfig(task_type=task_type, r=2, target_modules=["q", "v"]))
    labels = torch.tensor([0, 1, 1]) if task_type == "SEQ_CLS" else torch.zeros(3, 13, dtype=torch.long)
    adapted(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss.backward()
    trained = {name for name, parameter in adapted.named_parameters() if parameter.grad is not None}
    assert any("lora_" in name for name in trained)
    assert not any("wi_0" in name for name in trained)


def test_prompt_tuning_finds_the_embedding_and_generates(model, batch):
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(model, peft.PromptTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=4))
    adapted(**batch).loss.backward()
    trained = {name: parameter for name, parameter in adapted.named_parameters() if parameter.grad is not None}
    assert all("prompt_encoder" in name for name in trained)
    assert adapted.word_embeddings.weight.shape == model.shared.weight.shape
    generated = adapted.generate(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], max_new_tokens=4)
    assert generated.shape[0] == 3
