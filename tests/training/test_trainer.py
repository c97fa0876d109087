# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""What the trainer counts, watches and builds, in this process."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, ProgressCallback, TrainerControl, TrainerState

from t5_experimental.training import finetune
from t5_experimental.training.errors import TrainingError
from t5_experimental.training.optim.adafactor import Adafactor
from t5_experimental.training.trainer.finetuning import FinetuningTrainer
from t5_experimental.training.trainer.nonfinite import FirstNonFinite, named, non_finite
from t5_experimental.training.trainer.throughput import TokenMeter, TokenProgressCallback, count_tokens


DATA = Path(__file__).parents[1] / "data"
CPU = torch.device("cpu")


@pytest.fixture
def build(tiny_models, tmp_path, monkeypatch) -> Callable[..., FinetuningTrainer]:
    """`build(flags, model_type=...)`: a trainer on the restaurants."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")

    def make(
        flags: str, model_type: str = "t5_v1_1", validation_file: Path = DATA / "restaurants_validation.jsonl"
    ) -> FinetuningTrainer:
        files = f"--model_name_or_path {tiny_models[model_type]} --output_dir {tmp_path / 'output'}"
        data = f"--train_file {DATA / 'restaurants_train.jsonl'} --validation_file {validation_file}"
        more = "--use_cpu --save_strategy no --per_device_train_batch_size 4"
        trainer, _ = finetune.build_trainer(finetune.parse(f"{files} {data} {more} {flags}".split()))
        return trainer

    return make


@pytest.mark.parametrize(
    "flags", ["", "--label_smoothing_factor 0.1", "--predict_with_generate --generation_max_length 8"]
)
def test_evaluation_is_the_mean_over_tokens(flags, build):
    """For any batches: their own means, of unequally many tokens, do not count."""
    losses = []
    for batch_size in (1, 3):
        trainer = build(f"{flags} --per_device_eval_batch_size {batch_size}")
        losses.append(trainer.evaluate(trainer.eval_dataset.select(range(4)))["eval_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    if "smoothing" in flags:
        return
    rows = trainer.eval_dataset.select(range(4))
    tokens, total = 0, 0.0
    for row in rows:
        labels = torch.tensor([row["labels"]])
        loss = trainer.model.eval()(input_ids=torch.tensor([row["input_ids"]]), labels=labels).loss
        tokens, total = tokens + labels.numel(), total + loss.item() * labels.numel()
    assert len({len(row["labels"]) for row in rows}) > 1
    assert losses[0] == pytest.approx(total / tokens, rel=1e-6)


def test_gradients_stop_the_run_by_name(build):
    """A gradient that is infinite in the second step, under a loss that is fine."""
    trainer = build("--max_steps 4 --logging_steps 4 --gradient_accumulation_steps 2")
    weight = trainer.model.decoder.block[1].layer[2].DenseReluDense.wo.weight
    calls = []

    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        calls.append(trainer.state.global_step)
        return gradient * float("inf") if len(calls) == 3 else gradient

    weight.register_hook(spoil)
    expected = "In step 2, the gradients of decoder.block.1.layer.2.DenseReluDense.wo.weight became infinite or NaN"
    with pytest.raises(TrainingError, match=expected):
        trainer.train()
    assert calls[2] == 1  # steps are counted from 1, the trainer has finished one


def test_the_first_bad_step_is_remembered():
    fine, bad = torch.tensor(1.0), torch.tensor(float("nan"))
    watch = FirstNonFinite(["a", "b"], CPU)
    watch.look(1, fine, [fine, None])
    assert watch.all_finite()
    watch.look(2, bad)
    watch.look(2, fine, [fine, bad])
    watch.look(3, bad, [bad, bad])
    assert not watch.all_finite()

    class Alone:
        @staticmethod
        def gather(tensor: torch.Tensor) -> torch.Tensor:
            return tensor

    assert watch.describe(Alone) == "In step 2, the loss and the gradients of b became infinite or NaN"
    assert FirstNonFinite(["a"], CPU).describe(Alone) is None


def test_non_finite_tensors_are_named():
    tensors = [torch.ones(2), None, torch.tensor([1.0, -float("inf")]), torch.ones(0), torch.tensor([float("nan")])]
    bad = non_finite(tensors, CPU)
    assert bad.tolist() == [False, False, True, False, True]
    assert named(list("abcde"), bad) == "c, e"
    assert named(list("abcde"), torch.ones(5, dtype=torch.bool)) == "a, b, c and 2 more of 5"
    assert non_finite([None], CPU).tolist() == [False]


def test_tokens_are_counted_without_padding(monkeypatch):
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    labels = torch.tensor([[5, 1, -100], [1, -100, -100]])
    assert count_tokens({"input_ids": mask, "attention_mask": mask, "labels": labels}) == 6
    assert count_tokens({"input_ids": mask, "segment_ids": mask * 2, "labels": labels}) == 6
    assert count_tokens({"input_ids": mask}) == 6

    clock = iter([0.0, 1.0, 4.0, 5.0, 5.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    meter = TokenMeter(CPU)
    meter.add({"input_ids": mask, "attention_mask": mask})
    with meter.pause():  # from 1 to 4
        pass
    assert meter.read() == (3, 2.0)


def test_speed_is_in_log_and_bar(build, capsys):
    trainer = build("--max_steps 3 --logging_steps 2")
    assert any(type(callback) is TokenProgressCallback for callback in trainer.callback_handler.callbacks)
    assert not any(type(callback) is ProgressCallback for callback in trainer.callback_handler.callbacks)
    metrics = trainer.train().metrics
    (log,) = (entry for entry in trainer.state.log_history if "loss" in entry)
    assert log["tokens_per_second"] > 0
    assert metrics["train_tokens_per_second"] > 0
    shown = capsys.readouterr().err
    assert f"loss={log['loss']:.4g}" in shown
    assert f"tokens/s={log['tokens_per_second']:,.0f}" in shown


def test_each_pass_of_an_evaluation_has_a_bar_of_its_own():
    """Losses and texts come from two passes of unequal length; the bars count examples of all processes."""
    state, control = TrainerState(is_world_process_zero=True), TrainerControl()
    args = SimpleNamespace(eval_batch_size=2, world_size=2)
    callback = TokenProgressCallback()
    seen = []
    passes = (DataLoader([{"input_ids": 0, "labels": 0}] * 9, 2), DataLoader([{"input_ids": 0}] * 5, 2))
    for loader, steps in zip(passes, (3, 2), strict=True):
        for _ in range(steps):
            callback.on_prediction_step(args, state, control, eval_dataloader=loader)
            bar = callback.prediction_bar
            seen.append((bar.desc.split(":")[0], bar.n, bar.total))
    assert bar.unit.strip() == "examples"
    callback.on_evaluate(None, state, control)
    losses, texts = "Computing losses", "Generating"
    assert seen == [(losses, 4, 9), (losses, 8, 9), (losses, 9, 9), (texts, 4, 5), (texts, 5, 5)]
    assert callback.prediction_bar is None


def test_presets_of_optimizers(build, tiny_models):
    rates = {"finetune": 1e-3, "pretrain": 1e-2, "adamw --lr_scheduler_type linear": 0, "adamw": 3e-4}
    for preset, rate in rates.items():
        trainer = build(f"--optimizer_preset {preset} --max_steps 2")
        trainer.train()
        assert isinstance(trainer.optimizer.optimizer, Adafactor) == ("adamw" not in preset)
        assert trainer.lr_scheduler.get_last_lr()[0] == rate
    trainer = build("--optimizer_preset finetune --learning_rate 0.5")
    trainer.create_optimizer()
    assert trainer.optimizer.param_groups[0]["lr"] == 0.5
    trainer = build("--optimizer_preset pretrain --warmup_steps 400")
    trainer.create_optimizer()
    assert trainer.optimizer.param_groups[0]["lr"] == 0.05
    # 10 steps of warm-up to 3e-4, or to what the schedule has left of it.
    expected = {"10": 3e-4, "10 --lr_scheduler_type linear": 3e-4 * 2 / 10, "0.5": 3e-4}
    for flags, rate in expected.items():
        trainer = build(f"--optimizer_preset adamw --warmup_steps {flags}")
        trainer.create_optimizer_and_scheduler(20)
        rates = []
        for _ in range(19):
            trainer.optimizer.step()
            trainer.lr_scheduler.step()
            rates.append(trainer.lr_scheduler.get_last_lr()[0])
        assert (rates[4], rates[9], rates[17]) == pytest.approx((1.5e-4, 3e-4, rate))
    with pytest.raises(TrainingError, match="which holds the optimizer's state"):
        build(f"--optimizer_preset finetune --optimizer_slots {tiny_models['t5_v1_1']}")


@pytest.mark.parametrize(
    ("flags", "betas", "epsilon"),
    [
        ("--optimizer_preset adamw", (0.9, 0.999), 1e-8),
        ("--optimizer_preset adamw --adam_beta1 0.8 --adam_epsilon 1e-7", (0.8, 0.999), 1e-7),
        ("--optimizer_preset rms_adamw", (0.9, 0.999), 1e-6),
        ("--optimizer_preset rms_adamw --adam_beta2 0.99", (0.9, 0.99), 1e-6),
        ("--optimizer_preset rms_adamw --adam_epsilon 1e-5", (0.9, 0.999), 1e-5),
        ("--optim adamw_torch --adam_beta2 0.99", (0.9, 0.99), 1e-8),
    ],
)
def test_moments_are_those_that_were_asked_for(flags, betas, epsilon, build):
    trainer = build(flags)
    trainer.create_optimizer()
    for group in trainer.optimizer.param_groups:
        assert (group["betas"], group["eps"]) == (betas, epsilon)


@pytest.mark.parametrize("model_type", ["t5_v1_1", "t5_lm_adapted", "t5_talking_heads", "t5_first_layers_narrow"])
def test_lora_trains_adapters_that_peft_loads(model_type, build, tiny_models, tmp_path, capsys):
    from peft import PeftModel

    folder, output = tiny_models[model_type], tmp_path / "output"
    flags = f"--model_name_or_path {folder} --output_dir {output} --train_file {DATA / 'restaurants_train.jsonl'}"
    more = "--use_cpu --max_steps 2 --per_device_train_batch_size 4 --lora_rank 2 --save_strategy no"
    finetune.main(f"{flags} {more}".split())
    said = capsys.readouterr().out
    assert " of them trained" in said
    assert (output / "adapter_config.json").is_file()
    assert not (output / "config.json").exists()
    base = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    before = {name: weight.clone() for name, weight in base.state_dict().items()}
    adapted = PeftModel.from_pretrained(base, output).eval()
    kinds = {name.split(".lora_B")[0].rpartition(".")[2] for name, _ in adapted.named_parameters() if "lora_B" in name}
    assert kinds == {"q", "k", "v", "o", "wi_0", "wi_1", "wo"}
    assert all(weight.any() for name, weight in adapted.named_parameters() if "decoder" in name and "lora_B" in name)

    if model_type != "t5_talking_heads":  # what follows is the same for all
        return
    with pytest.raises(SystemExit, match="already holds an adapter"):
        finetune.main(f"{flags} {more}".split())
    merged_folder = tmp_path / "merged"
    flags = flags.replace(str(output), str(merged_folder))
    finetune.main(f"{flags} {more} --merge_lora".split())
    merged = AutoModelForSeq2SeqLM.from_pretrained(merged_folder).eval()
    ids = torch.tensor([[3, 4, 5, 1]])
    with torch.no_grad():
        torch.testing.assert_close(
            merged(input_ids=ids, labels=ids).logits, adapted(input_ids=ids, labels=ids).logits, atol=1e-5, rtol=1e-5
        )
    assert not torch.equal(
        merged.state_dict()["decoder.block.0.layer.0.SelfAttention.q.weight"],
        before["decoder.block.0.layer.0.SelfAttention.q.weight"],
    )


def test_every_input_is_generated_once_and_compared_with_all_references(build, tiny_models, tmp_path, monkeypatch):
    """Three rows of two inputs: what the model makes of the first is one of its two references."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_models["t5_v1_1"])
    model = AutoModelForSeq2SeqLM.from_pretrained(tiny_models["t5_v1_1"]).eval()
    ids = tokenizer("Thai food", return_tensors="pt")
    produced = tokenizer.decode(model.generate(**ids, max_new_tokens=8)[0], skip_special_tokens=True)
    rows = [("Thai food", "x"), ("by the river", "y"), ("Thai food", produced)]
    path = tmp_path / "references.jsonl"
    path.write_text("\n".join(json.dumps({"source": source, "target": target}) for source, target in rows))
    trainer = build("--metric exact_match f1 bleu rouge --generation_max_length 9", validation_file=path)
    metrics = trainer.evaluate()
    assert metrics["eval_exact_match"] == 50
    assert {"eval_f1", "eval_bleu", "eval_rouge1", "eval_rouge2", "eval_rougeLsum", "eval_loss"} <= set(metrics)
    assert [sample.source for sample in trainer.samples["eval"]] == ["Thai food", "by the river"]
    assert trainer.samples["eval"][0].references == ["x", produced]
    assert trainer.samples["eval"][0].prediction == produced


def test_evaluation_computes_own_metrics_and_those_of_classes(build, tmp_path, monkeypatch):
    (tmp_path / "own_metric_of_trainer.py").write_text("def count(p, r):\n    return {'count': len(p) + len(r)}\n")
    monkeypatch.chdir(tmp_path)
    rows = [{"source": f"{number}", "target": label} for number, label in enumerate("abb")]
    (tmp_path / "classes.jsonl").write_text("\n".join(map(json.dumps, rows)))
    flags = "--metric own_metric_of_trainer:count f1_binary --positive_label b --generation_max_length 4"
    best = "--eval_strategy steps --metric_for_best_model"
    trainer = build(f"{flags} {best} count", validation_file=tmp_path / "classes.jsonl")
    metrics = trainer.evaluate()
    assert metrics["eval_count"] == 6
    assert metrics["eval_f1_binary"] == 0
    # It is only known when the function has been called.
    with pytest.raises(TrainingError, match="--metric_for_best_model total is not computed, only loss, f1_binary, c"):
        build(f"{flags} {best} total", validation_file=tmp_path / "classes.jsonl")
    with pytest.raises(TrainingError, match="--positive_label c is no target in the eval data, which has"):
        build(flags.replace("label b", "label c"), validation_file=tmp_path / "classes.jsonl")


@pytest.mark.parametrize(
    ("target", "generated", "expected"),
    [
        ("<extra_id_0> Thai <extra_id_1> park", "<extra_id_0> Thai <extra_id_1> park", True),
        ("<extra_id_0>Thai<extra_id_1> park", "<extra_id_0> Thai <extra_id_1> park", True),
        ("<extra_id_0> Thai <extra_id_1> park", "<extra_id_1> Thai <extra_id_0> park", False),
        ("Thai park", "Thai <extra_id_0> park", True),
    ],
)
def test_special_tokens_that_references_have_count(target, generated, expected, build, tmp_path, monkeypatch):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"source": "area[park]", "target": target}) + "\n")
    trainer = build("--metric exact_match", validation_file=tmp_path / "rows.jsonl")
    ids = torch.tensor([[0, *trainer.processing_class(generated)["input_ids"], 0, 0]])
    step = FinetuningTrainer.prediction_step

    def generate(self, model, inputs, prediction_loss_only, **more):
        return step(self, model, inputs, True, **more) if prediction_loss_only else (None, ids, None)

    monkeypatch.setattr(FinetuningTrainer, "prediction_step", generate)
    for _ in range(2):  # also texts that a run goes on after
        trainer.folder_of_predictions = tmp_path
        assert trainer.evaluate()["eval_exact_match"] == (100 if expected else 0)
    assert "<pad>" not in trainer.samples["eval"][0].prediction
    assert "</s>" not in trainer.samples["eval"][0].prediction


def test_samples_of_a_mixture_are_those_of_its_epochs(tiny_models, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    row = json.dumps({"source": "food[Thai]", "target": "Thai"}) + "\n"
    (tmp_path / "rows.jsonl").write_text(row * 20)
    part = f"train_file: {tmp_path / 'rows.jsonl'}, validation_file: {tmp_path / 'rows.jsonl'}"
    (tmp_path / "mixture.yaml").write_text(f"limit: 4\nentries:\n- {{name: a, {part}}}\n")
    flags = f"--model_name_or_path {tiny_models['t5_v1_1']} --output_dir {tmp_path / 'output'} --use_cpu"
    more = f"--mixture {tmp_path / 'mixture.yaml'} --num_train_epochs 2 --per_device_train_batch_size 2"
    trainer, _ = finetune.build_trainer(finetune.parse(f"{flags} {more} --save_strategy no".split()))
    metrics = trainer.train().metrics
    assert trainer.state.global_step == 4
    assert metrics["train_samples_per_second"] == pytest.approx(2 * metrics["train_steps_per_second"], rel=0.01)
    assert trainer.num_examples(trainer.get_eval_dataloader("a")) == 20
