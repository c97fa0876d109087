"""Losses against plain formulas, and the conventions of trainers."""

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM
from transformers.utils import find_labels

from t5_experimental import chunked_token_losses, loss_t5_experimental, original_loss, token_losses
from t5_experimental.loss_t5_experimental import cross_entropy_loss


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
def test_token_losses_equal_the_definition(z_loss, label_smoothing):
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 3, 7, dtype=torch.float64) * 3, torch.randint(0, 7, (2, 3))
    expected = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), label_smoothing=label_smoothing, reduction="none"
    ).view(2, 3)
    expected = expected + z_loss * logits.exp().sum(-1).log() ** 2
    torch.testing.assert_close(
        token_losses(logits, labels, z_loss, label_smoothing).double(), expected, rtol=1e-5, atol=1e-6
    )


def test_the_originals_denominator_counts_padding():
    torch.manual_seed(0)
    logits = torch.randn(2, 4, 7)
    targets = torch.tensor([[3, 4, 0, 0], [2, 5, 6, -100]])
    losses = token_losses(logits, targets.clamp(min=0), z_loss=1e-4)
    expected = losses[targets > 0].sum()
    torch.testing.assert_close(original_loss(logits, targets), expected / 8)
    torch.testing.assert_close(original_loss(logits, targets, loss_denominator=2.0), expected / 2)


def test_cross_entropy_ignores_and_divides():
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 3, 7), torch.tensor([[1, 2, -100], [3, -100, -100]])
    expected = torch.nn.functional.cross_entropy(logits.view(-1, 7), labels.view(-1))
    torch.testing.assert_close(cross_entropy_loss(logits, labels), expected)
    torch.testing.assert_close(cross_entropy_loss(logits, labels, 6), expected / 2)
    torch.testing.assert_close(cross_entropy_loss(logits, labels, torch.tensor(6)), expected / 2)
    assert cross_entropy_loss(logits, torch.full((2, 3), -100)) == 0


def test_parts_of_a_batch_add_up_to_the_whole(make_config, batch):
    """What a trainer does that accumulates gradients: parts divided by the number of tokens of the whole step."""
    torch.manual_seed(0)
    model = AutoModelForSeq2SeqLM.from_config(make_config("t5.1.1")).eval()
    batch["labels"][1, 3:] = -100
    whole = model(**batch).loss
    count = (batch["labels"] != -100).sum()
    parts = [model(**{k: v[i : i + 1] for k, v in batch.items()}, num_items_in_batch=count).loss for i in range(3)]
    torch.testing.assert_close(sum(parts), whole)


@pytest.fixture
def small_chunks(monkeypatch):
    """Five tokens at a time, so that a few tokens make several chunks, the last one smaller."""
    monkeypatch.setattr(loss_t5_experimental, "_CHUNK", 5)


def hidden_weight_labels(dtype=torch.float64, vocab_size=11):
    """`(3, 4, 6)`, `(vocab_size, 6)`, `(3, 4)` with two labels that do not count."""
    torch.manual_seed(0)
    hidden = torch.randn(3, 4, 6, dtype=dtype, requires_grad=True)
    weight = torch.randn(vocab_size, 6, dtype=dtype, requires_grad=True)
    labels = torch.randint(0, vocab_size, (3, 4))
    labels[0, 3] = labels[2, 1] = -100
    return hidden, weight, labels


@pytest.mark.parametrize("device_path", ["cpu", "others"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
def test_chunked_losses_and_gradients_equal_the_plain_form(
    z_loss, label_smoothing, device_path, small_chunks, monkeypatch
):
    hidden, weight, labels = hidden_weight_labels()
    grad_losses = torch.randn(3, 4, dtype=torch.float64)
    plain = token_losses(hidden @ weight.t(), labels.clamp(min=0), z_loss, label_smoothing) * (labels >= 0)
    expected = torch.autograd.grad(plain, (hidden, weight), grad_losses)
    if device_path == "others":
        monkeypatch.setattr(loss_t5_experimental, "may_read_values", lambda values, wait: False)
    chunked = chunked_token_losses(hidden, weight, labels, z_loss, label_smoothing)
    torch.testing.assert_close(chunked, plain, rtol=1e-12, atol=1e-12)
    for gradient, wanted in zip(torch.autograd.grad(chunked, (hidden, weight), grad_losses), expected, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-10, atol=1e-10)


def test_chunked_losses_pass_gradcheck(small_chunks):
    hidden, weight, labels = hidden_weight_labels()
    assert torch.autograd.gradcheck(lambda h, w: chunked_token_losses(h, w, labels, 1e-2, 0.1), (hidden, weight))


def test_chunked_losses_have_first_derivatives_only(small_chunks):
    hidden, weight, labels = hidden_weight_labels()
    weights = torch.ones(3, 4, dtype=torch.float64, requires_grad=True)
    loss = (chunked_token_losses(hidden, weight, labels) * weights).sum()
    (gradient,) = torch.autograd.grad(loss, weight, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize(("trained", "frozen"), [(0, 1), (1, 0)])
def test_chunked_losses_leave_out_gradients_that_are_not_needed(trained, frozen, small_chunks):
    """A frozen classifier (adapters), or frozen states (a classifier trained alone)."""
    *tensors, labels = hidden_weight_labels()
    expected = torch.autograd.grad(chunked_token_losses(*tensors, labels).sum(), tensors[trained])
    tensors[frozen].requires_grad_(False)
    loss = chunked_token_losses(*tensors, labels).sum()
    loss.backward()
    assert tensors[frozen].grad is None
    torch.testing.assert_close(tensors[trained].grad, expected[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
def test_chunked_losses_in_half_precision_are_as_exact_as_the_plain_form(dtype, autocast, small_chunks):
    """Both are compared with float64: statistics in the half type would be off a hundred times as far."""
    wide = hidden_weight_labels(vocab_size=300)
    labels = wide[2]
    held = torch.float32 if autocast else dtype
    # The same numbers for everybody: those that the half type can hold.
    exact = [tensor.detach().to(dtype).double().requires_grad_() for tensor in wide[:2]]
    half = [tensor.detach().to(held).requires_grad_() for tensor in exact]
    with torch.autocast("cpu", dtype=dtype, enabled=autocast):
        losses = chunked_token_losses(*half, labels, 1e-4)
    assert losses.dtype == torch.float32
    wanted = chunked_token_losses(*exact, labels, 1e-4)
    tolerance = 8 * torch.finfo(dtype).eps
    torch.testing.assert_close(losses.double(), wanted, rtol=tolerance, atol=tolerance)
    losses.mean().backward()
    wanted.mean().backward()
    for tensor, reference in zip(half, exact, strict=True):
        assert tensor.grad.dtype == held
        torch.testing.assert_close(tensor.grad.double(), reference.grad, rtol=0.05, atol=tolerance / 10)


def test_chunked_losses_keep_no_logits(small_chunks):
    """For the backward pass, and while it runs: of all tensors, none is larger than a chunk's logits."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(64, 2, requires_grad=True), torch.randn(1000, 2, requires_grad=True)
    labels = torch.randint(0, 1000, (64,))
    sizes = []
    with LargestTensor(sizes), torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, noop):
        chunked_token_losses(hidden, weight, labels, 1e-4, 0.1).sum().backward()
    assert max(sizes) == 5 * 1000
    sizes.clear()
    with LargestTensor(sizes):
        token_losses(hidden @ weight.t(), labels).sum().backward()
    assert max(sizes) == 64 * 1000


def noop(tensor):
    return tensor


class LargestTensor(torch.utils._python_dispatch.TorchDispatchMode):
    """Writes down the sizes of all tensors that operators return."""

    def __init__(self, sizes):
        super().__init__()
        self.sizes = sizes

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        if isinstance(result, torch.Tensor):
            self.sizes.append(result.numel())
        return result


@pytest.mark.parametrize("options", [{}, {"z_loss": 1e-2}, {"smoothing": 0.1, "z_loss": 1e-2}])
def test_skip_logits_gives_the_same_loss_and_gradients(model, batch, options, small_chunks):
    batch["labels"][1, 2:5] = -100  # a gap: what has no label behind it is not computed, and draws no dropout
    model.train()
    results = []
    for skip_logits in (False, True):
        model.zero_grad()
        torch.manual_seed(1)
        outputs = model(**batch, **options, skip_logits=skip_logits)
        assert (outputs.logits is None) == skip_logits
        outputs.loss.backward()
        results.append((outputs.loss, {name: p.grad.clone() for name, p in model.named_parameters()}))
    (plain, plain_gradients), (chunked, gradients) = results
    torch.testing.assert_close(chunked, plain, rtol=1e-6, atol=0)
    torch.testing.assert_close(gradients, plain_gradients, rtol=1e-4, atol=1e-6)


def test_skip_logits_with_a_shared_classifier(make_config, batch, small_chunks):
    """Embedding and classifier both add to one gradient."""
    torch.manual_seed(0)
    config = make_config("t5.1.1", tie_word_embeddings=True, scale_decoder_outputs=True)
    model = AutoModelForSeq2SeqLM.from_config(config).eval()
    gradients = []
    for skip_logits in (False, True):
        model.zero_grad()
        model(**batch, skip_logits=skip_logits).loss.backward()
        gradients.append(model.shared.weight.grad.clone())
    assert model.lm_head.weight is model.shared.weight
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-6)


def test_skip_logits_divides_and_accumulates_as_the_trainer_asks(make_config, batch, small_chunks):
    torch.manual_seed(0)
    model = AutoModelForSeq2SeqLM.from_config(make_config("t5.1.1")).eval()
    batch["labels"][1, 3:] = -100
    model(**batch).loss.backward()
    expected = model.lm_head.weight.grad.clone()
    model.zero_grad()
    count = (batch["labels"] != -100).sum()
    for i in range(3):
        part = {name: values[i : i + 1] for name, values in batch.items()}
        model(**part, num_items_in_batch=count, skip_logits=True).loss.backward()
    torch.testing.assert_close(model.lm_head.weight.grad, expected, rtol=1e-4, atol=1e-7)
    batch["labels"][:] = -100
    assert model(**batch, skip_logits=True).loss == 0


def test_the_originals_denominator_without_logits(make_config, batch, small_chunks):
    torch.manual_seed(0)
    model = AutoModelForSeq2SeqLM.from_config(make_config("t5.1.1")).eval()
    batch["labels"][1, 3:] = -100
    expected = original_loss(model(**batch).logits, batch["labels"])
    options = {"z_loss": 1e-4, "num_items_in_batch": batch["labels"].numel(), "skip_logits": True}
    torch.testing.assert_close(model(**batch, **options).loss, expected)


def test_skip_logits_calls_a_classifier_that_is_more_than_its_weight(make_config, batch):
    """Adapters, quantisers and engines replace the classifier or watch its call."""
    torch.manual_seed(0)
    model = AutoModelForSeq2SeqLM.from_config(make_config("t5.1.1")).eval()
    calls = []
    handle = model.lm_head.register_forward_pre_hook(lambda *_: calls.append("hook"))
    expected = model(**batch).loss
    outputs = model(**batch, skip_logits=True)
    assert len(calls) == 2
    assert outputs.logits is None
    torch.testing.assert_close(outputs.loss, expected)
    handle.remove()
    original = model.lm_head.forward
    model.lm_head.forward = lambda states: 2 * original(states)  # how accelerate wraps modules
    torch.testing.assert_close(model(**batch, skip_logits=True).loss, model(**batch).loss)
    del model.lm_head.forward
    model.lm_head = torch.nn.Sequential(model.lm_head)
    torch.testing.assert_close(model(**batch, skip_logits=True).loss, expected)
    assert len(calls) == 2


def test_skip_logits_needs_labels(make_config, batch):
    model = AutoModelForSeq2SeqLM.from_config(make_config("t5.1.1"))
    batch["decoder_input_ids"] = batch.pop("labels")
    with pytest.raises(ValueError, match="needs `labels`"):
        model(**batch, skip_logits=True)


def test_skip_logits_in_a_compiled_model(make_config, batch, small_chunks):
    torch.manual_seed(0)
    model = AutoModelForSeq2SeqLM.from_config(make_config("t5.1.1")).eval()
    expected = model(**batch).loss
    compiled = torch.compile(model, backend="aot_eager")
    loss = compiled(**batch, skip_logits=True).loss
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in model.parameters())


def test_a_trainer_finds_one_column_of_labels(model):
    """It looks for arguments with "label" in their names, and evaluates nothing unless all of them are given."""
    assert find_labels(type(model)) == ["labels"]
