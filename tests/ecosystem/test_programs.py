# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Programs that people use T5 with, given our folders: they find the right class, and compute what it computes.

Runs in an environment of its own, see `make test-ecosystem`.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForSeq2SeqLM,
    AutoModelForTextEncoding,
    AutoTokenizer,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Tokenizer,
    pipeline,
)

import t5_experimental  # noqa: F401
from t5_experimental.convert import convert


pytestmark = pytest.mark.slow

TESTS = Path(__file__).parents[1]
FAMILIES = ("t5.1.1", "t5.1.th", "t5.1.n4w10")
TEXTS = ["cheap food", "a restaurant by the river"]
REASON = "not a dependency of the tests: run `make test-ecosystem`"


def folder_of(family: str, top: Path, encoder_only: bool) -> Path:
    checkpoint = TESTS / "reference" / "golden" / f"{family}.tiny"
    folder = top / f"{family}-{encoder_only}"
    convert(checkpoint, folder, vocab=TESTS / "data" / "restaurants.model", encoder_only=encoder_only)
    return folder


@pytest.fixture(scope="module", params=FAMILIES)
def encoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of(request.param, tmp_path_factory.mktemp("encoders"), True)


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of(request.param, tmp_path_factory.mktemp("models"), False)


def mean_states(folder: Path) -> torch.Tensor:
    """Mean of the encoder's output over the tokens of each text."""
    inputs = AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = AutoModelForTextEncoding.from_pretrained(folder).eval()(**inputs).last_hidden_state
    mask = inputs["attention_mask"][..., None]
    means: torch.Tensor = (states * mask).sum(1) / mask.sum(1)
    return means


def test_sentence_transformers(encoder: Path, tmp_path: Path) -> None:
    programs = pytest.importorskip("sentence_transformers", reason=REASON)
    from datasets import Dataset
    from sentence_transformers.losses import MultipleNegativesRankingLoss

    embedder = programs.SentenceTransformer(str(encoder), device="cpu")
    assert type(embedder[0].auto_model) is type(AutoModelForTextEncoding.from_pretrained(encoder))
    torch.testing.assert_close(embedder.encode(TEXTS, convert_to_tensor=True), mean_states(encoder))
    before = {name: tensor.clone() for name, tensor in embedder.state_dict().items()}
    trainer = programs.SentenceTransformerTrainer(
        model=embedder,
        args=programs.SentenceTransformerTrainingArguments(
            str(tmp_path / "run"), max_steps=2, per_device_train_batch_size=4, report_to=[], use_cpu=True
        ),
        train_dataset=Dataset.from_dict({"anchor": TEXTS * 4, "positive": ["food", "river"] * 4}),
        loss=MultipleNegativesRankingLoss(embedder),
    )
    trainer.train()
    after = embedder.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before if "SelfAttention.q" in name)
    embedder.eval()
    embedder.save_pretrained(str(tmp_path / "saved"))
    again = programs.SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    torch.testing.assert_close(
        again.encode(TEXTS, convert_to_tensor=True), embedder.encode(TEXTS, convert_to_tensor=True)
    )


def test_lm_eval(model: Path) -> None:
    """Its seq2seq models call `tie_weights()`, after which stock T5 is wrong under transformers 5."""
    pytest.importorskip("lm_eval", reason=REASON)
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    question, answer = "cheap food", "serves food"
    harness = HFLM(pretrained=str(model), backend="seq2seq", device="cpu", batch_size=1)
    (found,) = harness.loglikelihood([Instance("loglikelihood", {}, (question, answer), 0)])
    ours, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(model).eval(), AutoTokenizer.from_pretrained(model)
    inputs = tokenizer(question, return_tensors="pt").input_ids
    labels = tokenizer(answer, add_special_tokens=False, return_tensors="pt").input_ids
    with torch.no_grad():
        expected = -float(ours(input_ids=inputs, labels=labels).loss) * labels.numel()
    assert found[0] == pytest.approx(expected, rel=1e-5)


def test_diffusers(encoder: Path, tmp_path: Path) -> None:
    """A tiny PixArt, whose pictures mean nothing: its text's states are the encoder's, and it is saved and loaded."""
    diffusers = pytest.importorskip("diffusers", reason=REASON)
    torch.manual_seed(0)
    text_encoder = AutoModelForTextEncoding.from_pretrained(encoder)
    transformer = diffusers.PixArtTransformer2DModel(
        sample_size=8,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=3,
        in_channels=4,
        out_channels=8,
        cross_attention_dim=24,
        caption_channels=text_encoder.config.d_model,
    )
    parts = {"vae": diffusers.AutoencoderKL(), "scheduler": diffusers.DDIMScheduler(), "transformer": transformer}
    tokenizer = T5Tokenizer.from_pretrained(encoder)
    made = diffusers.PixArtAlphaPipeline(tokenizer=tokenizer, text_encoder=text_encoder, **parts)
    made.set_progress_bar_config(disable=True)
    states, mask, *_ = made.encode_prompt(TEXTS[0], do_classifier_free_guidance=False)
    inputs = tokenizer(TEXTS[0], return_tensors="pt")
    count = inputs.input_ids.shape[1]
    with torch.no_grad():
        torch.testing.assert_close(states[:, :count], text_encoder(**inputs).last_hidden_state, rtol=1e-4, atol=1e-5)
    assert int(mask.sum()) == count
    size = {"height": 64, "width": 64, "use_resolution_binning": False}
    assert made(TEXTS[0], num_inference_steps=1, output_type="np", **size).images.shape == (1, 64, 64, 3)
    made.save_pretrained(tmp_path)
    again = diffusers.PixArtAlphaPipeline.from_pretrained(tmp_path)
    assert type(again.text_encoder) is type(text_encoder)
    torch.testing.assert_close(again.encode_prompt(TEXTS[0], do_classifier_free_guidance=False)[0], states)


def clip_tokenizer() -> CLIPTokenizer:
    words = {"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2, "a": 3}
    return CLIPTokenizer(vocab=words, merges=[], model_max_length=77)


def clip_config() -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=4,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        projection_dim=16,
        bos_token_id=0,
        eos_token_id=1,
    )


def flux(diffusers: Any, text_encoder: Any, tokenizer: Any) -> Any:
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=text_encoder.config.d_model,
        pooled_projection_dim=16,
        axes_dims_rope=(4, 4, 8),
    )
    return diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=diffusers.AutoencoderKL(latent_channels=1, shift_factor=0.0, scaling_factor=1.0),
        text_encoder=CLIPTextModel(clip_config()),
        tokenizer=clip_tokenizer(),
        text_encoder_2=text_encoder,
        tokenizer_2=tokenizer,
        transformer=transformer,
    )


def stable_diffusion_3(diffusers: Any, text_encoder: Any, tokenizer: Any) -> Any:
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=text_encoder.config.d_model,
        caption_projection_dim=32,
        pooled_projection_dim=32,
        out_channels=4,
    )
    clips = [CLIPTextModelWithProjection(clip_config()) for _ in range(2)]
    return diffusers.StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=diffusers.AutoencoderKL(latent_channels=4, shift_factor=0.0, scaling_factor=1.0),
        text_encoder=clips[0],
        tokenizer=clip_tokenizer(),
        text_encoder_2=clips[1],
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=text_encoder,
        tokenizer_3=tokenizer,
    )


@pytest.mark.parametrize(
    ("build", "number", "before"), [(flux, 2, 0), (stable_diffusion_3, 3, 77)], ids=["Flux", "Stable Diffusion 3"]
)
def test_diffusers_with_clip(encoder: Path, build: Any, number: int, before: int, tmp_path: Path) -> None:
    """Tiny pipelines with CLIP beside T5: in the prompt's states, T5's are the last; they are saved and loaded."""
    diffusers = pytest.importorskip("diffusers", reason=REASON)
    torch.manual_seed(0)
    text_encoder = AutoModelForTextEncoding.from_pretrained(encoder)
    tokenizer = T5Tokenizer.from_pretrained(encoder)
    made = build(diffusers, text_encoder, tokenizer)
    made.set_progress_bar_config(disable=True)
    prompts = [TEXTS[0]] * number
    states = made.encode_prompt(*prompts, max_sequence_length=16)[0]
    inputs = tokenizer(TEXTS[0], padding="max_length", max_length=16, return_tensors="pt")
    with torch.no_grad():  # these pipelines give T5 no mask
        expected = text_encoder(input_ids=inputs.input_ids).last_hidden_state
    torch.testing.assert_close(states[:, before:, : expected.shape[2]], expected, rtol=1e-4, atol=1e-5)
    options = {"height": 16, "width": 16, "num_inference_steps": 1, "output_type": "np", "max_sequence_length": 16}
    assert made(TEXTS[0], **options).images.shape == (1, 16, 16, 3)
    made.save_pretrained(tmp_path)
    again = type(made).from_pretrained(tmp_path)
    assert type(getattr(again, f"text_encoder_{number}")) is type(text_encoder)
    torch.testing.assert_close(again.encode_prompt(*prompts, max_sequence_length=16)[0], states)


def test_trl(model: Path, tmp_path: Path) -> None:
    """ORPO is one of the few trainers of TRL 1 that know encoder-decoders: its probabilities are the model's."""
    pytest.importorskip("trl", reason=REASON)
    from datasets import Dataset
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    ours = AutoModelForSeq2SeqLM.from_pretrained(model, dropout_rate=0.0)
    tokenizer = AutoTokenizer.from_pretrained(model)
    inputs = tokenizer(TEXTS[0], return_tensors="pt").input_ids
    labels = tokenizer("serves food", return_tensors="pt").input_ids
    with torch.no_grad():
        expected = -float(ours.eval()(input_ids=inputs, labels=labels).loss)
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    trainer = ORPOTrainer(
        model=ours,
        args=ORPOConfig(
            str(tmp_path),
            max_steps=1,
            logging_steps=1,
            per_device_train_batch_size=2,
            max_length=32,
            max_completion_length=8,
            report_to=[],
            use_cpu=True,
            bf16=False,
            save_strategy="no",
        ),
        train_dataset=Dataset.from_dict(
            {"prompt": [TEXTS[0]] * 2, "chosen": ["serves food"] * 2, "rejected": ["by the river"] * 2}
        ),
        processing_class=tokenizer,
    )
    trainer.train()
    assert trainer.state.log_history[0]["logps/chosen"] == pytest.approx(expected, rel=1e-4)
    assert any(not torch.equal(before[name], tensor) for name, tensor in ours.state_dict().items())


def test_pipelines_of_transformers(encoder: Path, model: Path) -> None:
    """Of transformers 5's pipelines, those that stock T5 has: it has no text2text-generation any more."""
    features = pipeline("feature-extraction", model=str(encoder), device="cpu")(TEXTS[0])
    inputs = AutoTokenizer.from_pretrained(encoder)(TEXTS[0], return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(torch.tensor(features), AutoModel.from_pretrained(encoder).eval()(**inputs)[0])
    result = pipeline("text-classification", model=str(model), device="cpu")(TEXTS[0])
    assert result[0]["label"] in ("LABEL_0", "LABEL_1")


@pytest.mark.parametrize("tracker", ["tensorboard", "wandb", "mlflow", "trackio"])
def test_trackers(tracker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' trainer hands figures and configuration to them: ours can be written as what they take."""
    monkeypatch.chdir(tmp_path)
    for name, value in {
        "WANDB_MODE": "offline",
        "WANDB_DIR": str(tmp_path),
        "TENSORBOARD_LOGGING_DIR": str(tmp_path / "tensorboard"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'runs.mlflow'}",
        "TRACKIO_DIR": str(tmp_path / "trackio"),
    }.items():
        monkeypatch.setenv(name, value)
    program = pytest.importorskip(tracker, reason=REASON)  # trackio reads its folder's name when it is imported
    from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments

    rows = [{"input_ids": [5, 6, 1], "labels": [7, 8, 1]}] * 4
    arguments = Seq2SeqTrainingArguments(
        str(tmp_path / "run"), max_steps=2, logging_steps=1, report_to=[tracker], use_cpu=True, save_strategy="no"
    )
    ours = AutoModelForSeq2SeqLM.from_pretrained(folder_of("t5.1.th", tmp_path / "model", False))
    Seq2SeqTrainer(model=ours, args=arguments, train_dataset=rows).train()
    if tracker == "wandb":
        program.finish()
    written = {path.name for path in tmp_path.rglob("*")}
    marks = {"tensorboard": "tfevents", "wandb": ".wandb", "mlflow": "runs.mlflow", "trackio": ".db"}
    assert any(marks[tracker] in name for name in written), written
