# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""`--with-optimizer` of a checkpoint of T5X: from the file, a step is that of T5X's Adafactor."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file
from transformers import AutoModelForSeq2SeqLM

from t5_experimental.convert import ConversionError, convert, inspect, verify
from t5_experimental.training.optim.presets import build_optimizer, load_slots
from tests.support.stock_folders import V11, Kind, build
from tests.support.t5x_folders import Arrays, as_t5x, write_orbax, write_t5x


Run = Callable[..., Any]

# Kernels of the sample are factored from this size on, as T5X does from 128 on.
SMALLEST = 16
STEPS = Path(__file__).parents[1] / "reference" / "t5x_steps.npz"
Q = "encoder/layers_0/attention/query/kernel"


def factored_dims(shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """d1 and d0 of t5x/adafactor.py: for two dimensions by size, for three by the logical axes of the kernel."""
    if len(shape) == 3:
        return ((0,), (1, 2)) if shape[1] < shape[0] else ((2,), (0, 1))
    order = np.argsort(shape)
    return ((int(order[-2]),), (int(order[-1]),)) if len(shape) > 1 and shape[order[-2]] >= SMALLEST else None


def with_state(arrays: Arrays, momentum: bool = False) -> Arrays:
    generator, state = np.random.default_rng(1), {}
    for name, array in arrays.items():
        if not name.startswith("target/"):
            continue
        dims, empty = factored_dims(array.shape), np.zeros(1, np.float32)
        slots = {"v_row": empty, "v_col": empty, "v": empty, "m": empty}
        if dims is None:
            slots["v"] = generator.random(array.shape, np.float32)
        else:
            slots["v_row"] = generator.random(tuple(np.delete(array.shape, dims[1])), np.float32)
            slots["v_col"] = generator.random(tuple(np.delete(array.shape, dims[0])), np.float32)
        if momentum:
            slots["m"] = generator.random(array.shape, np.float32)
        where = name.replace("target/", "state/param_states/")
        state |= {f"{where}/{kind}": slot for kind, slot in slots.items()}
    return {**arrays, **state}


def update_of_t5x(gradient: np.ndarray, v_row: np.ndarray, v_col: np.ndarray, decay: float) -> np.ndarray:
    """As `apply_param_gradient` of t5x/adafactor.py scales a gradient."""
    d1, d0 = factored_dims(gradient.shape)  # type: ignore[misc]
    square = gradient * gradient + 1e-30
    v_row = decay * v_row + (1 - decay) * square.mean(d0)
    v_col = decay * v_col + (1 - decay) * square.mean(d1)
    reduced = tuple(len([e for e in range(d) if e not in d0]) for d in d1)
    row = (v_row / v_row.mean(reduced, keepdims=True)) ** -0.5
    return gradient * np.expand_dims(row, d0) * np.expand_dims(v_col**-0.5, d1)


def update_of_file(gradient: np.ndarray, vr: np.ndarray, vc: np.ndarray, d0: int, d1: int, decay: float) -> np.ndarray:
    """As t5_experimental/original.py says that the file is used."""
    square = gradient * gradient + 1e-30
    row = decay * np.expand_dims(vr, d0) + (1 - decay) * square.mean(d0, keepdims=True)
    column = decay * np.expand_dims(vc, d1) + (1 - decay) * square.mean(d1, keepdims=True)
    return gradient * (row / row.mean(d1, keepdims=True)) ** -0.5 * column**-0.5


@pytest.mark.parametrize("write", [write_t5x, write_orbax])
@pytest.mark.parametrize("heads", [None, 4])
def test_a_step_from_the_file_is_that_of_t5x(heads: int | None, write: Any, tmp_path: Path) -> None:
    arrays = with_state(as_t5x(build(Kind(V11)), heads=heads))
    write(arrays, tmp_path / "source", step=9)
    summary = convert(tmp_path / "source", tmp_path / "out", optimizer=True, verify=True)
    path = tmp_path / "out" / "optimizer.safetensors"
    slots = load_file(path)
    with safe_open(path, "np") as file:
        header = file.metadata()
    assert header["step"] == "9"
    factored, generator, decay, checked = json.loads(header["factored"]), np.random.default_rng(2), 0.7, 0
    for entry in summary.inspection.plan.entries:
        theirs = entry.source.name.replace("target/", "state/param_states/")
        if entry.name not in factored:
            np.testing.assert_array_equal(slots[f"{entry.name}.v"], entry.to_ours(arrays[f"{theirs}/v"]))
            continue
        gradient = generator.standard_normal(entry.source.shape).astype(np.float32)
        expected = update_of_t5x(gradient, arrays[f"{theirs}/v_row"], arrays[f"{theirs}/v_col"], decay)
        said = factored[entry.name]
        ours = entry.to_ours(gradient).reshape(said["shape"])
        vr, vc = slots[f"{entry.name}.vr"], slots[f"{entry.name}.vc"]
        update = update_of_file(ours, vr, vc, said["d0"], said["d1"], decay).reshape(entry.shape)
        np.testing.assert_allclose(update, entry.to_ours(expected), rtol=1e-5)
        checked += 1
    assert checked > 20
    assert len(slots) == 2 * checked + len(summary.inspection.plan.entries) - checked
    verify(tmp_path / "source", tmp_path / "out")


def test_momentum_comes_along(run: Run, tmp_path: Path) -> None:
    arrays = with_state(as_t5x(build(Kind(V11))), momentum=True)
    write_t5x(arrays, tmp_path / "source")
    result = run("inspect", tmp_path / "source", "--with-optimizer")
    assert result.status == 0
    assert "slots of Adafactor" in result.out
    assert f"state/param_states/{Q}/m" in result.out
    convert(tmp_path / "source", tmp_path / "out", optimizer=True)
    slots = load_file(tmp_path / "out" / "optimizer.safetensors")
    expected = arrays[f"state/param_states/{Q}/m"].T
    np.testing.assert_array_equal(slots["encoder.block.0.layer.0.SelfAttention.q.weight.m"], expected)


STATE = f"state/param_states/{Q}"
EDITS: dict[str, tuple[Callable[[Arrays], object], str]] = {
    "missing": (lambda a: a.pop(f"{STATE}/v_col"), f"{STATE}/v_col is missing from the checkpoint, so the state of"),
    "both": (lambda a: a.update({f"{STATE}/v": np.ones((32, 32))}), f"has both {STATE}/v and {STATE}/v_row"),
    "wrong shape": (
        lambda a: a.update({f"{STATE}/v_row": np.ones(33, np.float32)}),
        rf"{STATE}/v_row has the shape \[33\], but \[32\] is expected",
    ),
    "another optimizer": (
        lambda a: a.update({f"{STATE}/mu": np.ones(2)}),
        f"{STATE}/mu is no slot of Adafactor, the on",
    ),
    "of nothing": (
        lambda a: a.update({"state/param_states/extra/v": np.ones(2)}),
        "state/param_states/extra/v is a slot of target/extra, which is not in the checkpoint",
    ),
    "none at all": (
        lambda a: [a.pop(name) for name in [*a] if name.startswith("state/")],
        "the checkpoint has no slots of Adafactor",
    ),
}


@pytest.mark.parametrize("name", EDITS)
def test_states_that_cannot_be_resumed_are_refused(name: str, tmp_path: Path) -> None:
    edit, message = EDITS[name]
    arrays = with_state(as_t5x(build(Kind(V11))))
    edit(arrays)
    write_t5x(arrays, tmp_path / "source", inline=lambda name: True)
    with pytest.raises(ConversionError, match=message):
        convert(tmp_path / "source", tmp_path / "out", optimizer=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]
    assert convert(tmp_path / "source", tmp_path / "out").inspection.plan.optimizer is None


def test_a_part_of_a_slot_that_is_missing(tmp_path: Path) -> None:
    write_t5x(with_state(as_t5x(build(Kind(V11)))), tmp_path / "source")
    (tmp_path / "source" / f"{STATE.replace('/', '.')}.v_row" / "1").unlink()
    inspect(tmp_path / "source")
    with pytest.raises(ConversionError, match="has 1 of the 2 files that its numbers are in"):
        inspect(tmp_path / "source", optimizer=True)


def golden_steps(layout: str) -> tuple[Arrays, dict[str, Any]]:
    """Arrays of a checkpoint that T5X's own optimizer has trained, and everything about its next step."""
    with np.load(STEPS) as file:
        found = {name.removeprefix(f"{layout}/"): file[name] for name in file if name.startswith(f"{layout}/")}
        more = {name: file[name][()] for name in ("step", "learning_rate")}
    stored = {name: array for name, array in found.items() if name.startswith(("target/", "state/"))}
    return stored, {**found, **more}


def error_of_the_next_step(arrays: Arrays, golden: dict[str, Any], write: Any, folder: Path) -> float:
    """The largest relative difference to T5X in what a step changes of a parameter."""
    write(arrays, folder / "source", step=int(golden["step"]))
    summary = convert(folder / "source", folder / "out", optimizer=True, verify=True)
    verify(folder / "source", folder / "out")
    model = AutoModelForSeq2SeqLM.from_pretrained(folder / "out")
    optimizer, _ = build_optimizer("finetune", model, learning_rate=float(golden["learning_rate"]))
    load_slots(optimizer, model, folder / "out")
    parameters = dict(model.named_parameters())
    expected: dict[str, torch.Tensor] = {}
    for entry in summary.inspection.plan.entries:
        name, _, layer = entry.source.name.removeprefix("target/").partition("[:, ")
        gradient, after = (golden[f"{kind}/{name}"] for kind in ("gradient", "after"))
        if layer:
            gradient, after = (array[:, int(layer.removesuffix("]"))] for array in (gradient, after))
        parameter = parameters[entry.name]
        parameter.grad = torch.from_numpy(entry.to_ours(gradient).reshape(parameter.shape).copy())
        change = torch.from_numpy(entry.to_ours(after).reshape(parameter.shape).copy()) - parameter.detach()
        expected[entry.name] = change
    assert expected.keys() == parameters.keys()
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    optimizer.step()
    errors = (
        (parameters[name].detach() - before[name] - change).norm() / change.norm() for name, change in expected.items()
    )
    return float(max(errors))


@pytest.mark.parametrize("write", [write_t5x, write_orbax])
@pytest.mark.parametrize("layout", ["layers", "scanned"])
def test_the_next_step_is_that_of_t5x_itself(layout: str, write: Any, tmp_path: Path) -> None:
    assert error_of_the_next_step(*golden_steps(layout), write, tmp_path) < 1e-5


Q_OF_ALL = "state/param_states/encoder/encoder/attention/query/kernel"
WO_OF_ALL = "state/param_states/decoder/decoder/mlp/wo/kernel"


@pytest.mark.parametrize("slot", [f"{Q_OF_ALL}/v_row", f"{Q_OF_ALL}/v_col", f"{WO_OF_ALL}/v_row", f"{WO_OF_ALL}/v_col"])
def test_slots_of_other_layers_are_noticed(slot: str, tmp_path: Path) -> None:
    """Or the comparison would tell nothing of the axis of the layers."""
    arrays, golden = golden_steps("scanned")
    is_first = slot in (f"{Q_OF_ALL}/v_col", f"{WO_OF_ALL}/v_row")
    arrays[slot] = np.flip(arrays[slot], 0 if is_first else 1).copy()
    assert error_of_the_next_step(arrays, golden, write_t5x, tmp_path) > 0.05


SCANNED_EDITS: dict[str, tuple[Callable[[Arrays], object], str]] = {
    "missing": (lambda a: a.pop(f"{Q_OF_ALL}/v_col"), f"{Q_OF_ALL}/v_col is missing from the checkpoint, so the state"),
    "another layer": (
        lambda a: a.update({f"{Q_OF_ALL}/v_row": np.ones((12, 3), np.float32)}),
        rf"{Q_OF_ALL}/v_row\[:, 2\] is a slot of target/.*/kernel\[:, 2\], which is not in the checkpoint",
    ),
    "a layer less": (
        lambda a: a.update({f"{Q_OF_ALL}/v_row": np.ones((12, 1), np.float32)}),
        f"{Q_OF_ALL}/v_row is missing from the checkpoint",
    ),
    "no layers": (
        lambda a: a.update({f"{Q_OF_ALL}/v_row": np.ones(12, np.float32)}),
        rf"{Q_OF_ALL}/v_row has the shape \[12\], but its axis 1 should be that of the layers: leave out --with-opt",
    ),
    "wrong shape": (
        lambda a: a.update({f"{Q_OF_ALL}/v_row": np.ones((13, 2), np.float32)}),
        rf"{Q_OF_ALL}/v_row\[:, 0\] has the shape \[13\], but \[12\] is expected",
    ),
    "named as a layer": (
        lambda a: a.update({f"{Q_OF_ALL}/v_row[:, 1]": np.ones(12, np.float32)}),
        rf"{Q_OF_ALL}/v_row\[:, 1\] is an array and a layer of {Q_OF_ALL}/v_row",
    ),
    "named as a layer by another axis": (
        lambda a: a.update({f"{Q_OF_ALL}/v_row[1]": np.ones(12, np.float32)}),
        rf"{Q_OF_ALL}/v_row\[:, 1\] and {Q_OF_ALL}/v_row\[1\] are the same slot|"
        rf"{Q_OF_ALL}/v_row\[1\] and {Q_OF_ALL}/v_row\[:, 1\] are the same slot",
    ),
    "a factored table": (
        lambda a: [
            a.pop(f"{TABLE_OF_ALL}/v"),
            a.update({f"{TABLE_OF_ALL}/v_row": np.ones((2, 2), np.float32)}),
            a.update({f"{TABLE_OF_ALL}/v_col": np.ones((2, 32), np.float32)}),
        ],
        "has the slots of a factored state, but T5X factors kernels alone",
    ),
    "of copies": (
        lambda a: a.update(
            {"target/encoder/encoder/relpos_bias/rel_embedding": np.ones((2, 2, 32), np.float32)}
            | {"target/decoder/decoder/relpos_bias/rel_embedding": np.ones((2, 3, 32), np.float32)}
        ),
        r"is a slot of target/\S+rel_embedding\[:, 1\], which is left out \(copy of .*, equal bit for bit\)",
    ),
}
TABLE_OF_ALL = "state/param_states/encoder/encoder/relpos_bias/rel_embedding"


@pytest.mark.parametrize("name", SCANNED_EDITS)
def test_states_of_scanned_layers_that_cannot_be_resumed_are_refused(name: str, tmp_path: Path) -> None:
    edit, message = SCANNED_EDITS[name]
    arrays, _ = golden_steps("scanned")
    edit(arrays)
    write_t5x(arrays, tmp_path / "source")
    with pytest.raises(ConversionError, match=message):
        convert(tmp_path / "source", tmp_path / "out", optimizer=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]
    assert convert(tmp_path / "source", tmp_path / "out").inspection.plan.optimizer is None
