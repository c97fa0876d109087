# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""`--with-optimizer`: every slot lands where it belongs, and the original's next step can be done from the files."""

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM

from t5_experimental import original_loss
from t5_experimental.convert.mesh.matching import mesh_name, sort_names
from t5_experimental.convert.mesh.parameters import parameters
from t5_experimental.convert.mesh.scopes import Layout
from t5_experimental.convert.plan.optimizer_slots import find_slots, with_optimizer
from t5_experimental.convert.plan.plan import make_plan


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
KERNEL = "encoder/block_001/layer_001/DenseReluDense/wo/kernel"

Arrays = dict[str, np.ndarray]
Run = Callable[..., Any]


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return dict(file.metadata())


def is_turned(variable: str) -> bool:
    """Whether our parameter has the output axis first where Mesh has it last, said once more by hand."""
    return bool(
        re.search(r"Attention/([qkvo]|[qkvy]/kernel)(/kernel)?$", variable)
        or re.search(r"(wi|wi_0|wi_1|wo|decoder/logits)/kernel$|relative_attention_bias$", variable)
    )


def ours(variable: str, array: np.ndarray) -> np.ndarray:
    if not is_turned(variable):
        return array
    if array.ndim == 3:
        inward = re.search(r"/[qkv](/kernel)?$", variable)
        array = array.reshape(len(array), -1) if inward else array.reshape(-1, array.shape[-1])
    return array.T


@pytest.mark.parametrize("name", GOLDEN)
def test_every_slot_lands_exactly(
    name: str, with_slots: Callable[[str], Path], reference: Path, read_checkpoint: Callable[[Path], Arrays]
) -> None:
    variables = read_checkpoint(reference / "golden" / name)
    names = {match.mesh: ours for ours, match in sort_names(variables).matches.items()}
    tensors = load_file(with_slots(name) / "optimizer.safetensors")
    metadata = metadata_of(with_slots(name) / "optimizer.safetensors")
    factored = json.loads(metadata.pop("factored"))
    assert metadata == {"format": "pt", "optimizer": "adafactor", "step": str(variables["global_step"])}
    slots = {variable: array for variable, array in variables.items() if "_slot_" in variable}
    assert len(tensors) == len(slots) > len(names)
    for slot, array in slots.items():
        variable, _, kind = slot.partition("_slot_")
        tensor = tensors[f"{names[variable]}.{kind}"]
        assert tensor.dtype == torch.float32
        expected = array if kind in ("vr", "vc") else ours(variable, array)
        np.testing.assert_array_equal(tensor.numpy(), expected, err_msg=slot)
        assert (names[variable] in factored) == (kind in ("vr", "vc"))
        if kind == "vr":
            shape = variables[variable].shape
            assert len(shape) == 2
            largest = int(shape[1] > shape[0])  # the first of two that are equal
            axes = [1 - largest, largest] if is_turned(variable) else [largest, 1 - largest]
            assert factored[names[variable]] == {
                "shape": list(ours(variable, variables[variable]).shape),
                "d0": axes[0],
                "d1": axes[1],
            }


def test_talking_heads_kernels_have_slots_of_full_size(with_slots: Callable[[str], Path]) -> None:
    tensors = load_file(with_slots("t5.1.th.tiny-uneven") / "optimizer.safetensors")
    names = [name for name in tensors if name.startswith("decoder.block.0.layer.1.EncDecAttention.")]
    assert {name.rpartition(".")[2] for name in names} == {"v"}
    assert len(names) == 6
    assert tensors["decoder.block.0.layer.1.EncDecAttention.v.weight.v"].shape == (3 * 6, 32)


def mesh_slots(variable: np.ndarray, gradient: np.ndarray, min_dim: int) -> Arrays:
    """Slots after the first step of Adafactor (decay 0) as the original makes them, by ending."""
    squared = gradient.astype(np.float64) ** 2
    order = sorted(range(squared.ndim), key=lambda k: -squared.shape[k])[:2]
    if squared.ndim < 2 or squared.shape[order[1]] < min_dim:
        return {"_slot_v": squared.astype(np.float32), "_slot_m": gradient}
    rows, columns = (squared.mean(k).astype(np.float32) for k in order)
    return {"_slot_vr": rows, "_slot_vc": columns, "_slot_m": gradient}


@pytest.mark.parametrize("heads_apart", [False, True], ids=["2-D", "3-D"])
@pytest.mark.parametrize("name", ["t5.1.1", "t5.1.th", "mixed"])
def test_the_header_tells_what_was_averaged(
    name: str, heads_apart: bool, make_config: Callable[..., Any], memory_reader: type, tmp_path: Path
) -> None:
    """Means over the axes that the header names are the slots, also of 3-D kernels that are factored in one head's."""
    from t5_experimental.convert.output import safetensors_writer as writer

    generator = np.random.default_rng(0)
    arrays, gradients = {}, {}
    # A head's size of 48 is above 32, the model's width; of 8, heads are the second largest dimension.
    overrides = {"d_kv": 48} if name == "t5.1.1" else {"d_k": 48, "num_key_heads": 20}
    config = make_config(name, **overrides)
    for our_name, parameter in parameters(config).items():
        variable = mesh_name(our_name, parameter.section, Layout())
        shape = parameter.mesh_shape
        if heads_apart and re.search(r"(SelfAttention|EncDecAttention)/[qkv]$", variable):
            shape = (shape[0], shape[1] // parameter.sizes["d_kv"], parameter.sizes["d_kv"])
        elif heads_apart and variable.endswith("Attention/o"):
            shape = (shape[0] // parameter.sizes["d_kv"], parameter.sizes["d_kv"], shape[1])
        gradients[our_name] = generator.standard_normal(shape, np.float32)
        arrays[variable] = np.zeros(shape, np.float32)
        arrays |= {
            variable + ending: slot for ending, slot in mesh_slots(arrays[variable], gradients[our_name], 16).items()
        }
    reader = memory_reader(arrays)
    plan = make_plan(reader.variables, sort_names(reader.variables), config)
    plan = with_optimizer(plan, find_slots(plan, reader.variables), 0)
    writer.write_tensors(plan, reader, tmp_path)
    assert not plan.drops
    assert not (tmp_path / "model.safetensors.index.json").exists()
    slots = load_file(tmp_path / "optimizer.safetensors")
    factored = json.loads(metadata_of(tmp_path / "optimizer.safetensors")["factored"])
    split = 0
    for entry in plan.entries:
        gradient = torch.from_numpy(entry.to_ours(gradients[entry.name]).copy())
        torch.testing.assert_close(slots.pop(f"{entry.name}.m"), gradient, rtol=0, atol=0)
        if entry.name not in factored:
            torch.testing.assert_close(slots.pop(f"{entry.name}.v"), gradient.square())
            continue
        axes = factored[entry.name]
        split += len(axes["shape"]) == 3
        squared = gradient.view(axes["shape"]).square()
        torch.testing.assert_close(slots.pop(f"{entry.name}.vr"), squared.mean(axes["d0"]))
        torch.testing.assert_close(slots.pop(f"{entry.name}.vc"), squared.mean(axes["d1"]))
    assert not slots
    # Talking heads keep heads and their size apart anyhow.
    assert (split > 0) == (heads_apart or name != "t5.1.1")


def adafactor_step(model: torch.nn.Module, folder: Path, learning_rate: float = 0.03) -> None:
    """One step of the original's Adafactor from the state in the folder; formulas as in mesh_tensorflow/optimize.py."""
    state = load_file(folder / "optimizer.safetensors")
    metadata = metadata_of(folder / "optimizer.safetensors")
    factored = json.loads(metadata["factored"])
    decay = 1 - (int(metadata["step"]) + 1) ** -0.8
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        squared = parameter.grad.square() + 1e-30
        if name in factored:
            shape, d0, d1 = (factored[name][key] for key in ("shape", "d0", "d1"))
            squared, gradient = squared.view(shape), parameter.grad.view(shape)
            means = {}
            for kind, axis in (("vr", d0), ("vc", d1)):
                mean = decay * state[f"{name}.{kind}"] + (1 - decay) * squared.mean(axis)
                means[kind] = mean.unsqueeze(axis)
            long_term = means["vr"].mean(d1, keepdim=True)
            update = gradient * (means["vr"] / long_term).rsqrt() * means["vc"].rsqrt()
        else:
            update = parameter.grad * (decay * state[f"{name}.v"] + (1 - decay) * squared).rsqrt()
        update = update.view_as(parameter) / update.square().mean().sqrt().clamp(min=1)
        scale = learning_rate * parameter.data.square().mean().sqrt().clamp(min=1e-3)
        parameter.data -= scale * update


def inputs_of(arrays: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    inputs, labels = (torch.from_numpy(arrays[key]).long() for key in ("inputs", "targets"))
    if "inputs_segmentation" not in arrays:
        return {"input_ids": inputs, "attention_mask": (inputs > 0).long(), "labels": labels}
    segments = {side: torch.from_numpy(arrays[f"{side}_segmentation"]) for side in ("inputs", "targets")}
    return {
        "input_ids": inputs,
        "segment_ids": segments["inputs"],
        "labels": labels,
        "decoder_segment_ids": segments["targets"],
    }


def loss_after_step(folder: Path, arrays: Mapping[str, np.ndarray], state: Path | None = None) -> float:
    model = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32).eval()
    inputs = inputs_of(arrays)
    original_loss(model(**inputs).logits, inputs["labels"]).backward()
    adafactor_step(model, state or folder)
    with torch.no_grad():
        return float(original_loss(model(**inputs).logits, inputs["labels"]))


@pytest.mark.parametrize("name", GOLDEN)
def test_the_originals_next_step(name: str, with_slots: Callable[[str], Path], golden: Callable[..., Arrays]) -> None:
    """Model and state from our files, one step on the golden batch: the loss is the one that the original had then."""
    arrays = golden(name)
    expected = float(arrays["loss_after_step"])
    loss = loss_after_step(with_slots(name), arrays)
    print(f"{name}: relative difference of the loss after a step {abs(loss / expected - 1):.2e}")
    assert loss == pytest.approx(expected, rel=1e-5)
    assert expected != pytest.approx(float(arrays["loss"]), rel=1e-3)


@pytest.mark.parametrize("mistake", ["axes exchanged", "step forgotten", "slots of zero"])
def test_a_wrong_state_gives_another_loss(
    mistake: str, with_slots: Callable[[str], Path], golden: Callable[..., Arrays], tmp_path: Path
) -> None:
    """The test above would notice: the kernels of attention are square here, so that no shape gives it away."""
    from safetensors.torch import save_file

    arrays = golden("t5.1.1.tiny")
    source = with_slots("t5.1.1.tiny") / "optimizer.safetensors"
    tensors, metadata = load_file(source), metadata_of(source)
    if mistake == "axes exchanged":
        for name, axes in json.loads(metadata["factored"]).items():
            if axes["shape"][0] == axes["shape"][1]:
                first, second = f"{name}.vr", f"{name}.vc"
                tensors[first], tensors[second] = tensors[second], tensors[first]
    elif mistake == "step forgotten":
        metadata["step"] = "0"
    else:
        tensors = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    save_file(tensors, tmp_path / "optimizer.safetensors", metadata)
    loss = loss_after_step(with_slots("t5.1.1.tiny"), arrays, tmp_path)
    assert math.isfinite(loss)
    assert loss != pytest.approx(float(arrays["loss_after_step"]), rel=1e-4)


def test_casts_and_shards_leave_the_state_alone(
    reference: Path, run: Run, with_slots: Callable[[str], Path], tmp_path: Path
) -> None:
    options = ("--with-optimizer", "--dtype", "bfloat16", "--max-shard-size", "50KB")
    result = run("convert", reference / "golden" / "t5.1.1.tiny", tmp_path / "out", *options)
    assert result.status == 0, result.err
    name = "optimizer.safetensors"
    assert (tmp_path / "out" / name).read_bytes() == (with_slots("t5.1.1.tiny") / name).read_bytes()
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert name not in index["weight_map"].values()
    assert AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out").dtype == torch.bfloat16
    assert "90 slots, 22,784 bytes in optimizer.safetensors" in result.out
    assert "optimizer slot" not in result.out
    assert "`optimizer.safetensors` holds Adafactor's state (90 tensors" in (tmp_path / "out" / "README.md").read_text()


def test_the_encoders_state_alone(reference: Path, run: Run, with_slots: Callable[[str], Path], tmp_path: Path) -> None:
    source = reference / "golden" / "t5.1.n4w10.tiny"
    assert run("convert", source, tmp_path / "out", "--with-optimizer", "--encoder-only").status == 0
    whole = load_file(with_slots("t5.1.n4w10.tiny") / "optimizer.safetensors")
    state = load_file(tmp_path / "out" / "optimizer.safetensors")
    assert set(state) == {name for name in whole if name.startswith(("shared.", "encoder."))}
    assert all(torch.equal(tensor, whole[name]) for name, tensor in state.items())
    factored = json.loads(metadata_of(tmp_path / "out" / "optimizer.safetensors")["factored"])
    assert set(factored) == {name.removesuffix(".vr") for name in state if name.endswith(".vr")}


def test_inspect_shows_the_slots(reference: Path, run: Run) -> None:
    result = run("inspect", reference / "golden" / "t5.1.1.tiny", "--with-optimizer")
    assert "Optimizer:  90 slots of Adafactor" in result.out
    assert re.search(r"shared\.weight\.vr +32 +float32 +shared/embedding_slot_vr +copy", result.out)
    assert "optimizer slot" not in result.out


def dropped(*names: str) -> Callable[[Arrays], None]:
    def spoil(arrays: Arrays) -> None:
        for name in names:
            del arrays[name]

    return spoil


def no_slots(arrays: Arrays) -> None:
    dropped(*(name for name in arrays if "_slot_" in name))(arrays)


def set_to(name: str, array: np.ndarray) -> Callable[[Arrays], None]:
    return lambda arrays: arrays.update({name: array})


def factored_vector(arrays: Arrays) -> None:
    del arrays["decoder/rms_norm/scale_slot_v"]
    for kind in ("vr", "vc"):
        arrays[f"decoder/rms_norm/scale_slot_{kind}"] = np.zeros((), np.float32)


BROKEN_SLOTS = {
    "vr without vc": (dropped(f"{KERNEL}_slot_vc"), f"{KERNEL}_slot_vc is missing"),
    "vc without vr": (dropped(f"{KERNEL}_slot_vr"), f"{KERNEL}_slot_vr is missing"),
    "neither": (dropped(f"{KERNEL}_slot_vr", f"{KERNEL}_slot_vc"), f"{KERNEL}_slot_v is missing"),
    "no v": (dropped("decoder/rms_norm/scale_slot_v"), "decoder/rms_norm/scale_slot_v is missing"),
    "both kinds": (set_to(f"{KERNEL}_slot_v", np.zeros((64, 32), np.float32)), "has both _slot_v and _slot_vr"),
    "none at all": (no_slots, "has no slots of Adafactor"),
    "exchanged": (
        lambda arrays: arrays.update(
            {f"{KERNEL}_slot_vr": arrays[f"{KERNEL}_slot_vc"], f"{KERNEL}_slot_vc": arrays[f"{KERNEL}_slot_vr"]}
        ),
        rf"{KERNEL}_slot_vr has the shape \[64\], but \[32\] is expected",
    ),
    "wrong shape": (
        set_to("decoder/rms_norm/scale_slot_v", np.zeros(31, np.float32)),
        r"decoder/rms_norm/scale_slot_v has the shape \[31\], but \[32\] is expected",
    ),
    "wrong dtype": (
        set_to("decoder/rms_norm/scale_slot_v", np.zeros(32, np.int32)),
        "decoder/rms_norm/scale_slot_v has the dtype int32",
    ),
    "factored vector": (
        factored_vector,
        "only two dimensions can be factored",
    ),
    "of another spelling": (
        set_to("decoder/final_layer_norm/scale_slot_v", np.zeros(32, np.float32)),
        "decoder/final_layer_norm/scale_slot_v is a slot of decoder/final_layer_norm/scale, which is not in",
    ),
}


@pytest.mark.parametrize("options", [(), ("--encoder-only",)], ids=["whole", "encoder"])
@pytest.mark.parametrize("case", BROKEN_SLOTS)
def test_broken_slots(
    case: str,
    options: tuple[str, ...],
    golden_copy: Callable[..., Path],
    read_checkpoint: Callable[..., Arrays],
    write_checkpoint: Callable[..., Path],
    run: Run,
    tmp_path: Path,
) -> None:
    spoil, message = BROKEN_SLOTS[case]
    source = golden_copy("t5.1.1.tiny")
    arrays = read_checkpoint(source)
    spoil(arrays)
    write_checkpoint(source, arrays)
    result = run("convert", source, tmp_path / "out", "--with-optimizer", *options)
    assert result.status == 1
    assert re.search(message, result.err), result.err
    assert result.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    # Those who do not ask for the optimizer do not meet its troubles.
    assert run("convert", source, tmp_path / "out", *options).status == 0


def test_no_step(
    golden_copy: Callable[..., Path],
    read_checkpoint: Callable[..., Arrays],
    write_checkpoint: Callable[..., Path],
    run: Run,
    tmp_path: Path,
) -> None:
    source = golden_copy("t5.1.1.tiny")
    arrays = read_checkpoint(source)
    del arrays["global_step"]
    write_checkpoint(source, arrays, "model.ckpt")
    result = run("convert", source, tmp_path / "out", "--with-optimizer")
    assert result.status == 1
    assert "neither global_step nor a step in its name" in result.err
    write_checkpoint(source, arrays, "model.ckpt-800")
    assert run("convert", source, tmp_path / "out", "--with-optimizer").status == 0
    assert metadata_of(tmp_path / "out" / "optimizer.safetensors")["step"] == "800"
