"""Adapters of peft on the embedding: new tokens, whole copies, LoRA; they hold for both stacks, and for a classifier
that is the embedding."""

import copy

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, T5Config, T5ForConditionalGeneration

import t5_experimental
from t5_experimental import decoding_session


peft = pytest.importorskip("peft")

TOKENS = [5, 1100, 1101]
KINDS = {
    "list": {"trainable_token_indices": TOKENS},
    "dict": {"trainable_token_indices": {"shared": TOKENS}},
    "copy": {"modules_to_save": ["shared"]},
    "lora": {"target_modules": ["q", "shared"], "init_lora_weights": False},
}


def adapt(model, kind):
    torch.manual_seed(5)
    options = {"target_modules": ["q"], "r": 2, "task_type": "SEQ_2_SEQ_LM", **KINDS[kind]}
    adapted = peft.get_peft_model(model, peft.LoraConfig(**options)).eval()
    with torch.no_grad():
        for parameter in embedding_parameters(adapted).values():
            parameter.add_(torch.randn_like(parameter))
    return adapted


def embedding_parameters(adapted):
    """What is trained of the embedding."""
    parameters = {n: p for n, p in adapted.named_parameters() if p.requires_grad and ".q." not in n}
    assert parameters
    return parameters


@pytest.fixture
def batch(batch):
    """With new tokens on both sides, padding on both sides, and positions without labels."""
    batch["input_ids"][:, 6] = 1100
    batch["labels"][:, 2] = 1101
    batch["labels"][1, 4:] = -100
    return batch


@pytest.fixture(params=[False, True], ids=["untied", "tied"])
def model(request, config):
    torch.manual_seed(0)
    return AutoModelForSeq2SeqLM.from_config(type(config)(**{**config.to_dict(), **tie(request.param)})).eval()


def tie(is_tied):
    return {"tie_word_embeddings": is_tied, "scale_decoder_outputs": is_tied}


def generate(model, batch):
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    return model.generate(**inputs, max_new_tokens=5, min_new_tokens=5, num_beams=2)


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapted_embedding_trains_merges_and_comes_back(model, batch, kind, tmp_path):
    base = copy.deepcopy(model)
    without = model(**batch).logits
    adapted = adapt(model, kind)
    outputs = adapted(**batch)
    outputs.loss.backward()
    assert not torch.allclose(outputs.logits, without, atol=1e-3)
    for name, parameter in embedding_parameters(adapted).items():
        assert parameter.grad.abs().max() > 0, name
    with decoding_session(adapted.base_model.model):
        generated = generate(adapted, batch)

    adapted.save_pretrained(tmp_path / "adapter")
    loaded = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    torch.testing.assert_close(loaded(**batch).logits, outputs.logits)
    with loaded.disable_adapter():
        torch.testing.assert_close(loaded(**batch).logits, without)

    merged = adapted.merge_and_unload()
    assert type(merged.shared) is torch.nn.Embedding
    assert merged.encoder.embed_tokens.weight is merged.decoder.embed_tokens.weight is merged.shared.weight
    assert (merged.lm_head.weight is merged.shared.weight) == merged.config.tie_word_embeddings
    torch.testing.assert_close(merged(**batch).logits, outputs.logits, rtol=1e-4, atol=1e-4)
    assert torch.equal(generate(merged, batch), generated)

    merged.save_pretrained(tmp_path / "merged")
    again, info = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    torch.testing.assert_close(again(**batch).logits, outputs.logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_both_stacks_read_the_adapted_embedding(make_config, kind, stack):
    """Each called alone, as `generate` calls the encoder."""
    torch.manual_seed(0)
    model = AutoModelForSeq2SeqLM.from_config(make_config("t5.1.1"))
    adapted = adapt(model, kind)
    ids = torch.tensor([[5, 1100, 1101]])
    states = getattr(model, stack)(input_ids=ids).last_hidden_state
    embedded = getattr(model, stack)(inputs_embeds=adapted.get_input_embeddings()(ids)).last_hidden_state
    torch.testing.assert_close(states, embedded)
    with adapted.disable_adapter():
        assert not torch.allclose(getattr(model, stack)(input_ids=ids).last_hidden_state, states, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_without_logits_trains_the_same(model, batch, kind):
    adapted = adapt(model, kind)
    found = []
    for skip_logits in (False, True):
        adapted.zero_grad()
        loss = adapted(**batch, skip_logits=skip_logits).loss
        loss.backward()
        found.append([loss, *(p.grad.clone() for p in embedding_parameters(adapted).values())])
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["list", "dict"])
def test_rows_get_the_gradients_that_the_whole_embedding_gets(model, batch, kind):
    full = copy.deepcopy(model)
    adapted = adapt(model, kind)
    (delta,) = embedding_parameters(adapted).values()
    with torch.no_grad():
        full.shared.weight[TOKENS] = delta
    full(**batch).loss.backward()
    adapted(**batch).loss.backward()
    torch.testing.assert_close(delta.grad, full.shared.weight.grad[TOKENS], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["list", "dict"])
def test_rows_train_as_those_of_transformers_t5(make_config, batch, kind):
    """Whose classifier is the embedding."""
    torch.manual_seed(0)
    ours = AutoModelForSeq2SeqLM.from_config(make_config("t5.1.1", dropout_rate=0.0, **tie(True))).eval()
    names = ("vocab_size", "d_model", "d_kv", "d_ff", "num_heads", "num_layers", "dropout_rate")
    stock_config = T5Config(**{name: getattr(ours.config, name) for name in names}, feed_forward_proj="gated-gelu")
    stock_config.decoder_start_token_id = 0
    theirs = T5ForConditionalGeneration(stock_config).eval()
    theirs.load_state_dict(ours.state_dict())
    deltas, losses = [], []
    for model in (ours, theirs):
        adapted = adapt(model, kind)
        optimizer = torch.optim.SGD(adapted.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            loss = adapted(**batch).loss
            loss.backward()
            optimizer.step()
        losses.append(loss)
        deltas.append(torch.cat([p.detach() for p in embedding_parameters(adapted).values()]))
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(deltas[0], deltas[1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["list", "copy", "lora"])
@pytest.mark.parametrize(
    "suffix", ["EncoderModel", "Model", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering"]
)
def test_other_models_read_the_adapted_embedding(make_config, batch, suffix, kind):
    model = getattr(t5_experimental, f"T5V11{suffix}")(make_config("t5.1.1")).eval()
    options = {"target_modules": ["q"], "r": 2, **KINDS[kind]}
    adapted = peft.get_peft_model(model, peft.LoraConfig(**options)).eval()
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    if suffix == "Model":
        inputs["decoder_input_ids"] = batch["input_ids"]
    outputs = adapted(**inputs)
    next(iter(outputs.values())).float().square().sum().backward()
    for name, parameter in embedding_parameters(adapted).items():
        if "classifier" not in name and "qa_outputs" not in name:
            assert parameter.grad.abs().max() > 0, name


def test_two_kinds_of_tokens_are_told_apart(make_config, batch):
    """A second adapter with other tokens, and switching between the two."""
    torch.manual_seed(0)
    model = AutoModelForSeq2SeqLM.from_config(make_config("t5.1.1")).eval()
    adapted = adapt(model, "list")
    first = adapted(**batch).logits
    adapted.add_adapter("other", peft.LoraConfig(target_modules=["q"], r=2, trainable_token_indices=[1101]))
    adapted.set_adapter("other")
    other = adapted(**batch).logits
    assert not torch.allclose(first, other, atol=1e-3)
    adapted.set_adapter("default")
    torch.testing.assert_close(adapted(**batch).logits, first)
