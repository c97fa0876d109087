# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Adafactor against the original's own next step and its formulas; the presets, their states and their schedules."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from transformers import AutoModelForSeq2SeqLM, get_constant_schedule_with_warmup

from t5_experimental import original_loss
from t5_experimental.training.errors import TrainingError
from t5_experimental.training.optim.adafactor import Adafactor, Axes, original_axes
from t5_experimental.training.optim.presets import PRESETS, build_optimizer, load_slots
from t5_experimental.training.optim.rms_adamw import RMSScaledAdamW
from t5_experimental.training.trainer.arguments import T5TrainingArguments
from t5_experimental.training.trainer.trainer import T5Trainer


GOLDEN = (
    "t5.1.0.tiny",
    "t5.1.1.tiny",
    "t5.1.1.tiny-bfloat16",
    "t5.1.1.tiny-legacy",
    "t5.1.1.tiny-biases",
    "t5.1.1.tiny-long",
    "t5.1.1.tiny-packed",
    "t5.1.mixed.tiny",
    "t5.1.n4w10.tiny",
    "t5.1.th.tiny",
    "t5.1.th.tiny-uneven",
)
# With which the golden data was made.
LEARNING_RATE = 0.03

Arrays = dict[str, np.ndarray]


def inputs_of(arrays: Arrays) -> dict[str, torch.Tensor]:
    inputs, labels = (torch.from_numpy(arrays[key]).long() for key in ("inputs", "targets"))
    if "inputs_segmentation" not in arrays:
        return {"input_ids": inputs, "attention_mask": (inputs > 0).long(), "labels": labels}
    segments, target_segments = (torch.from_numpy(arrays[f"{side}_segmentation"]) for side in ("inputs", "targets"))
    return {"input_ids": inputs, "segment_ids": segments, "labels": labels, "decoder_segment_ids": target_segments}


def loss_after_step(folder: Path, arrays: Arrays, spoil: Callable[[Adafactor], None] | None = None) -> float:
    model = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32).eval()
    optimizer, schedule = build_optimizer("finetune", model, learning_rate=LEARNING_RATE)
    load_slots(optimizer, model, folder)
    if spoil is not None:
        spoil(optimizer)
    inputs = inputs_of(arrays)
    original_loss(model(**inputs).logits, inputs["labels"]).backward()
    optimizer.step()
    schedule.step()
    assert optimizer.param_groups[0]["lr"] == LEARNING_RATE
    with torch.no_grad():
        return float(original_loss(model(**inputs).logits, inputs["labels"]))


@pytest.mark.parametrize("name", GOLDEN)
def test_the_originals_next_step(
    name: str, with_slots: Callable[[str], Path], golden: Callable[[str], Arrays], record_property: Callable[..., None]
) -> None:
    arrays = golden(name)
    error = loss_after_step(with_slots(name), arrays) / float(arrays["loss_after_step"]) - 1
    record_property("loss_after_step_error", error)
    print(f"{name}: relative difference of the loss after a step {abs(error):.1e}")
    assert abs(error) < 1e-5


@pytest.mark.parametrize("name", ["t5.1.1.tiny", "t5.1.th.tiny", "t5.1.n4w10.tiny", "t5.1.1.tiny-packed"])
def test_the_originals_next_step_where_examples_have_no_inputs(
    name: str, with_slots: Callable[[str], Path], golden_without_inputs: Callable[[str], Arrays]
) -> None:
    arrays = golden_without_inputs(name)
    error = loss_after_step(with_slots(name), arrays) / float(arrays["loss_after_step"]) - 1
    print(f"{name}: relative difference of the loss after a step {abs(error):.1e}")
    assert abs(error) < 1e-5


def test_loading_an_empty_state_keeps_the_slots(
    with_slots: Callable[[str], Path], golden: Callable[[str], Arrays]
) -> None:
    """As accelerate does with every new optimizer."""

    def reload(optimizer: Adafactor) -> None:
        optimizer.load_state_dict(optimizer.state_dict())
        assert optimizer.first_states

    arrays = golden("t5.1.1.tiny")
    loss = loss_after_step(with_slots("t5.1.1.tiny"), arrays, reload)
    assert loss == pytest.approx(float(arrays["loss_after_step"]), rel=1e-5)


def first_states(optimizer: Adafactor) -> list[tuple[torch.Tensor, dict[str, torch.Tensor]]]:
    """Every parameter with the state that the checkpoint gives it."""
    parameters = optimizer.param_groups[0]["params"]
    return [(parameters[place], state) for place, state in optimizer.first_states.items()]


def exchange_rows_and_columns(optimizer: Adafactor) -> None:
    """Of square kernels, so that no shape gives it away."""
    for parameter, state in first_states(optimizer):
        if "vr" in state and len(set(parameter.shape)) == 1:
            state["vr"], state["vc"] = state["vc"].t(), state["vr"].t()


def take_means_over_the_other_axes(optimizer: Adafactor) -> None:
    for parameter, state in first_states(optimizer):
        if "vr" in state and len(set(parameter.shape)) == 1:
            state["vr"], state["vc"] = state["vr"].t(), state["vc"].t()


def forget_the_slots(optimizer: Adafactor) -> None:
    optimizer.first_states.clear()


def count_from_zero(optimizer: Adafactor) -> None:
    for _, state in first_states(optimizer):
        state["step"].zero_()


def factor_nothing(optimizer: Adafactor) -> None:
    """The means, spread over the shape of the parameter."""
    for parameter, state in first_states(optimizer):
        if "vr" in state:
            vr, vc = state.pop("vr"), state.pop("vc")
            state["v"] = (vr * vc / vr.mean()).view_as(parameter).clone()


def setting(**settings: Any) -> Callable[[Adafactor], None]:
    return lambda optimizer: optimizer.param_groups[0].update(settings)


MISTAKES = {
    "rows and columns": exchange_rows_and_columns,
    "axes": take_means_over_the_other_axes,
    "no slots": forget_the_slots,
    "step": count_from_zero,
    "nothing factored": factor_nothing,
    "exponent": setting(decay_exponent=0.7),
    "no parameter scale": setting(scale_parameter=False),
    "learning rate": setting(lr=LEARNING_RATE * 1.01),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gives_another_loss(
    mistake: str, with_slots: Callable[[str], Path], golden: Callable[[str], Arrays]
) -> None:
    """Several times as far off as the test above tolerates."""
    arrays = golden("t5.1.1.tiny")
    loss = loss_after_step(with_slots("t5.1.1.tiny"), arrays, MISTAKES[mistake])
    assert np.isfinite(loss)
    assert loss != pytest.approx(float(arrays["loss_after_step"]), rel=5e-5)


def adafactor_of_mesh(variable: np.ndarray, gradients: list[np.ndarray], min_dim: int, learning_rate: float) -> Any:
    """The original's formulas in its own layout, in float64, from fresh slots."""
    order = sorted(range(variable.ndim), key=lambda k: -variable.shape[k])[:2]
    factored = len(order) == 2 and variable.shape[order[1]] >= min_dim
    slots: list[Any] = [0.0, 0.0]
    for step, gradient in enumerate(gradients):
        decay = 1 - (step + 1) ** -0.8
        squares = gradient.astype(np.float64) ** 2 + 1e-30
        if factored:
            slots = [decay * slot + (1 - decay) * squares.mean(axis) for slot, axis in zip(slots, order, strict=True)]
            vr, vc = (np.expand_dims(slot, axis) for slot, axis in zip(slots, order, strict=True))
            update = gradient / np.sqrt(vr / vr.mean(order[1], keepdims=True)) / np.sqrt(vc)
        else:
            slots[0] = decay * slots[0] + (1 - decay) * squares
            update = gradient / np.sqrt(slots[0])
        update = update / max(1.0, np.sqrt((update**2).mean()))
        variable = variable - learning_rate * max(1e-3, np.sqrt((variable**2).mean())) * update
    return variable


# Ending of our name -> the axes that our parameter is viewed with, and the original's order of them.
LAYOUTS = {
    "shared.weight": ("vocab d_model", "vocab d_model"),
    "lm_head.weight": ("vocab d_model", "d_model vocab"),
    "layer_norm.weight": ("d_model", "d_model"),
    "relative_attention_bias.weight": ("buckets heads", "heads buckets"),
    "DenseReluDense.wi_0.weight": ("d_ff d_model", "d_model d_ff"),
    "DenseReluDense.wi_1.weight": ("d_ff d_model", "d_model d_ff"),
    "DenseReluDense.wo.weight": ("d_model d_ff", "d_ff d_model"),
    "Attention.q.weight": ("key_heads d_k d_model", "d_model key_heads d_k"),
    "Attention.k.weight": ("key_heads d_k d_model", "d_model key_heads d_k"),
    "Attention.v.weight": ("value_heads d_v d_model", "d_model value_heads d_v"),
    "Attention.o.weight": ("d_model value_heads d_v", "value_heads d_v d_model"),
    "logits_projection.weight": ("key_heads heads", "key_heads heads"),
    "weights_projection.weight": ("heads value_heads", "heads value_heads"),
}
PLAIN = {
    "Attention.q.weight": ("heads*d_kv d_model", "d_model heads*d_kv"),
    "Attention.k.weight": ("heads*d_kv d_model", "d_model heads*d_kv"),
    "Attention.v.weight": ("heads*d_kv d_model", "d_model heads*d_kv"),
    "Attention.o.weight": ("d_model heads*d_kv", "heads*d_kv d_model"),
}


def to_mesh(array: np.ndarray, layout: tuple[str, str], sizes: dict[str, int]) -> np.ndarray:
    ours, mesh = (text.split() for text in layout)
    return array.reshape([sizes[axis] for axis in ours]).transpose([ours.index(axis) for axis in mesh])


@pytest.mark.parametrize("kind", ["talking heads", "plain"])
def test_fresh_states_follow_the_originals_variables(
    kind: str, make_config: Callable[..., Any], batch: dict[str, torch.Tensor]
) -> None:
    """Three steps with gradients of the model. Talking heads: kernels are factored over heads or over their size, which
    are merged here."""
    # Three equal dimensions for queries and keys: the original's order chooses two of them.
    widths = {"num_key_heads": 32, "d_k": 32, "num_heads": 17, "num_value_heads": 6, "d_v": 24}
    config = make_config("t5.1.th", **widths) if kind == "talking heads" else make_config("t5.1.1")
    spec = config.layer_specs("encoder")[0]
    sizes = {"vocab": 1152, "d_model": 32, "buckets": 32, "d_ff": 64, "heads": spec.num_heads, "heads*d_kv": 32}
    sizes |= {"key_heads": 32, "d_k": 32, "value_heads": 6, "d_v": 24}
    torch.manual_seed(0)
    model = AutoModelForSeq2SeqLM.from_config(config).eval()
    optimizer = Adafactor(model.parameters(), 0.03, original_axes(model), min_dim_size_to_factor=20)
    before = {name: parameter.detach().numpy().copy() for name, parameter in model.named_parameters()}
    gradients: dict[str, list[np.ndarray]] = {name: [] for name in before}
    for step in range(3):
        optimizer.zero_grad()
        model(**{**batch, "labels": batch["labels"].roll(step)}).loss.backward()
        for name, parameter in model.named_parameters():
            gradients[name].append(parameter.grad.numpy().copy())
        optimizer.step()
    layouts = LAYOUTS | (PLAIN if kind == "plain" else {})
    merged_wrongly = set()
    for name, parameter in model.named_parameters():
        (layout,) = (layout for ending, layout in layouts.items() if name.endswith(ending))
        expected, *turned = (to_mesh(array, layout, sizes) for array in (before[name], *gradients[name]))
        expected = adafactor_of_mesh(expected, turned, 20, 0.03)
        found = to_mesh(parameter.detach().numpy(), layout, sizes)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6, err_msg=name)
        as_it_is = adafactor_of_mesh(before[name], gradients[name], 20, 0.03)
        if not np.allclose(parameter.detach().numpy(), as_it_is, rtol=1e-4, atol=1e-5):
            merged_wrongly.add(name.split(".")[-2])
    assert merged_wrongly == ({"q", "k", "v", "o"} if kind == "talking heads" else set())


def test_what_is_factored(make_config: Callable[..., Any]) -> None:
    """Released widths of th.base: the second largest dimension of its attention's kernels is below 128."""
    sizes = {"d_model": 768, "d_ff": 2048, "num_layers": 1, "vocab_size": 128, "num_heads": 24, "d_kv": 32}
    even = dict.fromkeys(("num_key_heads", "num_value_heads", "d_k", "d_v"))
    for name, expected in (("t5.1.th", {"shared", "wi_0", "wi_1", "wo", "lm_head"}), ("t5.1.1", None)):
        with torch.device("meta"):
            config = make_config(name, **sizes, **(even if name == "t5.1.th" else {}))
            model = AutoModelForSeq2SeqLM.from_config(config)
        optimizer, _ = build_optimizer("pretrain", model)
        states = {
            parameter_name: optimizer.fresh_state(parameter, optimizer.param_groups[0], place)
            for place, (parameter_name, parameter) in enumerate(model.named_parameters())
        }
        factored = {parameter_name.split(".")[-2] for parameter_name, state in states.items() if "vr" in state}
        assert factored == (expected or {"shared", "wi_0", "wi_1", "wo", "lm_head", "q", "k", "v", "o"})
        # [d_model, d_ff] in the original: vr lacks d_ff, the larger one, which comes first here.
        assert states["encoder.block.0.layer.1.DenseReluDense.wi_0.weight"]["vr"].shape == (1, 768)


def test_the_first_of_equal_dimensions_is_the_larger() -> None:
    parameter = torch.nn.Parameter(torch.ones(4, 4, 4))
    for order, expected in (((0, 1, 2), [(1, 4, 4), (4, 1, 4)]), ((2, 0, 1), [(4, 4, 1), (1, 4, 4)])):
        optimizer = Adafactor([parameter], axes={parameter: Axes((4, 4, 4), order)}, min_dim_size_to_factor=4)
        state = optimizer.fresh_state(parameter, optimizer.param_groups[0], 0)
        assert [state[kind].shape for kind in ("vr", "vc")] == expected


def trained_model(preset: str, folder: Path, dtype: torch.dtype, arrays: Arrays, steps: int) -> Any:
    model = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=dtype).eval()
    optimizer, schedule = build_optimizer(preset, model, learning_rate=0.01, warmup_steps=2)
    schedule = schedule or get_constant_schedule_with_warmup(optimizer, 2)
    take_steps(model, optimizer, schedule, arrays, steps)
    return model, optimizer, schedule


def take_steps(model: Any, optimizer: Any, schedule: Any, arrays: Arrays, steps: int) -> None:
    inputs = inputs_of(arrays)
    for _ in range(steps):
        optimizer.zero_grad()
        original_loss(model(**inputs).logits, inputs["labels"]).backward()
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("preset", PRESETS)
def test_going_on_from_a_saved_state_changes_nothing(
    preset: str, dtype: torch.dtype, with_slots: Callable[[str], Path], golden: Callable[[str], Arrays]
) -> None:
    """Through a file that is loaded without pickle's powers; states stay in float32 beside parameters in bfloat16."""
    folder, arrays = with_slots("t5.1.th.tiny"), golden("t5.1.th.tiny")
    model, optimizer, schedule = trained_model(preset, folder, dtype, arrays, 2)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    file = io.BytesIO()
    torch.save([optimizer.state_dict(), schedule.state_dict()], file)
    take_steps(model, optimizer, schedule, arrays, 2)
    other, other_optimizer, other_schedule = trained_model(preset, folder, dtype, arrays, 0)
    other.load_state_dict(weights)
    file.seek(0)
    states = torch.load(file, weights_only=True)
    other_optimizer.load_state_dict(states[0])
    other_schedule.load_state_dict(states[1])
    if preset != "adamw":  # torch's keeps its state in the dtype of the parameters
        tensors = [tensor for state in other_optimizer.state.values() for tensor in state.values()]
        assert {tensor.dtype for tensor in tensors} == {torch.float32}
    take_steps(other, other_optimizer, other_schedule, arrays, 2)
    for name, parameter in other.named_parameters():
        assert torch.equal(parameter, model.state_dict()[name]), name


@pytest.mark.parametrize("preset", PRESETS)
def test_the_trainer_goes_on_from_its_checkpoint(
    preset: str, with_slots: Callable[[str], Path], golden: Callable[[str], Arrays], tmp_path: Path
) -> None:
    """Optimizer by name, with the original's slots where it has them; four steps, or two and two."""
    folder, inputs = with_slots("t5.1.1.tiny"), inputs_of(golden("t5.1.1.tiny"))
    examples = [{name: values[k] for name, values in inputs.items()} for k in range(len(inputs["labels"]))]

    def train(output: str, checkpoint: Path | None = None) -> tuple[list[float], dict[str, torch.Tensor]]:
        arguments = T5TrainingArguments(
            output_dir=str(tmp_path / output),
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
            logging_steps=1,
            save_steps=2,
            max_steps=4,
            per_device_train_batch_size=len(examples),
            optimizer_preset=preset,
            optimizer_slots=str(folder) if preset in ("finetune", "pretrain") else None,
            warmup_steps=3,
        )
        model = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32, dropout_rate=0.0)
        trainer = T5Trainer(model=model, args=arguments, train_dataset=examples)
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
        return rates, model.state_dict()

    rates, weights = train("whole")
    resumed_rates, resumed = train("resumed", tmp_path / "whole" / "checkpoint-2")
    assert resumed_rates == rates
    assert len(rates) == 4
    if preset == "pretrain":
        with safe_open(folder / "optimizer.safetensors", "pt") as file:
            assert rates[0] == pytest.approx(int(file.metadata()["step"]) ** -0.5)
    for name, weight in resumed.items():
        assert torch.equal(weight, weights[name]), name


def test_bfloat16_parameters_take_the_steps_of_float32_and_are_rounded() -> None:
    torch.manual_seed(0)
    values, gradient = torch.randn(2, 200, 150, dtype=torch.bfloat16)
    parameters = [torch.nn.Parameter(values.clone()), torch.nn.Parameter(values.float())]
    for parameter in parameters:
        parameter.grad = gradient.to(parameter.dtype)
        Adafactor([parameter], 0.03).step()
    assert torch.equal(parameters[0], parameters[1].bfloat16())


def test_rms_scaled_adamw_equals_its_definition() -> None:
    torch.manual_seed(0)
    values = {"large": torch.randn(5, 3), "tiny": torch.randn(4) * 1e-5}
    parameters = {name: torch.nn.Parameter(value.clone()) for name, value in values.items()}
    optimizer = RMSScaledAdamW(list(parameters.values()), lr=0.02, weight_decay=0.1)
    moments = {name: [np.zeros(value.shape), np.zeros(value.shape)] for name, value in values.items()}
    expected = {name: value.double().numpy() for name, value in values.items()}
    for step in range(1, 4):
        for name, parameter in parameters.items():
            gradient = torch.randn_like(parameter)
            parameter.grad = gradient
            first, second = moments[name]
            moments[name] = [0.9 * first + 0.1 * gradient.numpy(), 0.999 * second + 0.001 * gradient.numpy() ** 2]
            scale = max(1e-3, np.sqrt((expected[name] ** 2).mean()))
            rate = 0.02 * scale * np.sqrt(1 - 0.999**step) / (1 - 0.9**step)
            change = rate * moments[name][0] / (np.sqrt(moments[name][1]) + 1e-6)
            expected[name] = (expected[name] - change) * (1 - 0.02 * 0.1)
        optimizer.step()
    for name, parameter in parameters.items():
        np.testing.assert_allclose(parameter.detach().numpy(), expected[name], rtol=1e-5, atol=1e-9)


def rates(preset: str, model: torch.nn.Module, steps: tuple[int, ...], **options: Any) -> list[float]:
    optimizer, schedule = build_optimizer(preset, model, **options)
    found = []
    for step in range(max(steps) + 1):
        if step in steps:
            found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_schedules(with_slots: Callable[[str], Path]) -> None:
    model = torch.nn.Linear(2, 2)
    assert rates("finetune", model, (0, 5)) == [1e-3, 1e-3]
    assert rates("finetune", model, (0, 5, 10, 11), warmup_steps=10) == pytest.approx([0, 5e-4, 1e-3, 1e-3])
    assert rates("pretrain", model, (0, 5)) == pytest.approx([0.01, 0.01])
    assert rates("pretrain", model, (0, 4, 16), warmup_steps=4) == pytest.approx([0.5, 0.5, 0.25])
    assert rates("pretrain", model, (4, 16), warmup_steps=4, learning_rate=0.1) == pytest.approx([0.1, 0.05])
    _, schedule = build_optimizer("pretrain", model)
    assert [schedule.lr_lambdas[0](n) * 0.01 for n in (9_999, 40_000, 10**6)] == pytest.approx([0.01, 0.005, 1e-3])
    for preset, rate in (("adamw", 3e-4), ("rms_adamw", 2e-2)):
        optimizer, schedule = build_optimizer(preset, model)
        assert schedule is None
        assert optimizer.param_groups[0]["lr"] == rate
        assert build_optimizer(preset, model, warmup_steps=2)[1] is None  # the caller's


def test_the_schedule_goes_on_at_the_checkpoints_step(with_slots: Callable[[str], Path]) -> None:
    folder = with_slots("t5.1.1.tiny")
    model = AutoModelForSeq2SeqLM.from_pretrained(folder)
    with safe_open(folder / "optimizer.safetensors", "pt") as file:
        step = int(file.metadata()["step"])
    assert step > 100
    first = rates("pretrain", model, (0, 1), warmup_steps=100, slots=folder)
    assert first == pytest.approx([step**-0.5, (step + 1) ** -0.5])


def test_frozen_parameters_and_those_without_gradient(
    make_config: Callable[..., Any], batch: dict[str, torch.Tensor], with_slots: Callable[[str], Path]
) -> None:
    """Adapters on a frozen model have states of their own; nothing else changes or has any."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    for preset in PRESETS:
        model = AutoModelForSeq2SeqLM.from_config(make_config("t5.1.th"))
        never_used = torch.nn.Parameter(torch.ones(3))
        model.encoder.register_parameter("never_used", never_used)
        adapted = peft.get_peft_model(
            model, peft.LoraConfig(task_type="SEQ_2_SEQ_LM", r=2, target_modules=["q", "o"], init_lora_weights=False)
        )
        never_used.requires_grad_(True)
        before = {name: parameter.detach().clone() for name, parameter in adapted.named_parameters()}
        optimizer, _ = build_optimizer(preset, adapted)
        adapted(**batch).loss.backward()
        optimizer.step()
        for name, parameter in adapted.named_parameters():
            assert torch.equal(parameter, before[name]) == ("lora_" not in name), name
            assert (parameter in optimizer.state) == ("lora_" in name), name
    # The file of the whole model has no state of adapters.
    with pytest.raises(TrainingError, match="no state for any trained parameter"):
        build_optimizer("finetune", adapted, slots=with_slots("t5.1.th.tiny"))


def test_tied_weights_are_updated_once(with_slots: Callable[[str], Path]) -> None:
    model = AutoModelForSeq2SeqLM.from_pretrained(with_slots("t5.1.0.tiny"))
    for preset in PRESETS:
        optimizer, _ = build_optimizer(preset, model)
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        assert len(parameters) == len({id(parameter) for parameter in parameters})
        assert sum(parameter is model.shared.weight for parameter in parameters) == 1
        assert model.lm_head.weight is model.shared.weight


def test_the_scales_of_norms_do_not_decay(make_config: Callable[..., Any]) -> None:
    model = AutoModelForSeq2SeqLM.from_config(make_config("t5.1.1"))
    for preset in ("adamw", "rms_adamw"):
        optimizer, _ = build_optimizer(preset, model, weight_decay=0.1)
        decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
        for name, parameter in model.named_parameters():
            assert decays[id(parameter)] == (0.0 if "layer_norm" in name else 0.1), name


def test_wrong_options(with_slots: Callable[[str], Path], tmp_path: Path) -> None:
    folder = with_slots("t5.1.1.tiny")
    model = AutoModelForSeq2SeqLM.from_pretrained(folder)
    with pytest.raises(TrainingError, match="--optimizer_preset sgd does not exist: choose one of finetune"):
        build_optimizer("sgd", model)
    with pytest.raises(TrainingError, match=r"--weight_decay 0\.1 is not for Adafactor"):
        build_optimizer("finetune", model, weight_decay=0.1)
    with pytest.raises(TrainingError, match="slots of a checkpoint are Adafactor's"):
        build_optimizer("adamw", model, slots=folder)
    with pytest.raises(TrainingError, match="convert the checkpoint with --with-optimizer"):
        build_optimizer("finetune", model, slots=tmp_path)
    with torch.no_grad():
        model.resize_token_embeddings(1200)
    with pytest.raises(TrainingError, match="or was resized"):
        build_optimizer("finetune", model, slots=folder)


@pytest.fixture
def one_process(tmp_path: Path) -> Any:
    torch.distributed.init_process_group("gloo", f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1)
    yield torch.distributed.init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("build_first", [True, False])
@pytest.mark.parametrize("preset", PRESETS)
def test_rows_of_fsdp_are_as_good_as_whole_parameters(preset: str, build_first: bool, one_process: Any) -> None:
    """tests/engines does this on several processes."""
    from torch.distributed.fsdp import fully_shard

    torch.manual_seed(0)
    models = [torch.nn.Linear(150, 140) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    optimizers = [build_optimizer(preset, model)[0] for model in models]
    fully_shard(models[1], mesh=one_process)
    assert isinstance(models[1].weight, DTensor)
    if not build_first:
        optimizers[1], _ = build_optimizer(preset, models[1])
    optimizers[1].param_groups[0]["params"] = list(models[1].parameters())  # as accelerate does
    inputs = torch.randn(3, 150)
    for model, optimizer in zip(models, optimizers, strict=True):
        for _ in range(2):
            optimizer.zero_grad()
            model(inputs).square().mean().backward()
            optimizer.step()
    for whole, part in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(part.full_tensor(), whole)


@pytest.mark.parametrize("preset", ["finetune", "rms_adamw"])
def test_columns_in_parts_are_refused(preset: str, one_process: Any) -> None:
    """Tensor parallelism spreads these."""
    model = torch.nn.Linear(4, 4)
    model.weight = torch.nn.Parameter(distribute_tensor(model.weight.detach(), one_process, [Shard(1)]))
    with pytest.raises(TrainingError, match=r"flattened and sharded the parameters.*--optimizer_preset adamw"):
        build_optimizer(preset, model)


@pytest.mark.parametrize("mark", ["ds_id", "_fsdp_flattened", None])
def test_parts_of_other_engines_are_refused(mark: str | None) -> None:
    """ZeRO-3 and FSDP1 mark what they cut; ZeRO-1 and 2 put flat tensors in the optimizer's groups."""
    model = torch.nn.Linear(4, 4)
    if mark is not None:
        setattr(model.weight, mark, True)
        with pytest.raises(TrainingError, match="flattened and sharded the parameters"):
            build_optimizer("finetune", model)
        return
    optimizer, _ = build_optimizer("finetune", model)
    flat = torch.nn.Parameter(torch.ones(20))
    flat.grad = torch.ones(20)
    optimizer.param_groups[0]["params"] = [flat]
    with pytest.raises(TrainingError, match="flattened and sharded the parameters"):
        optimizer.step()
