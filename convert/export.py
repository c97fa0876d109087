# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Conversion backwards: from a converted folder to a checkpoint that the original Mesh code restores.

The checkpoint's variables follow from the configuration. Their conversion is planned as ever, by the same rules; then
the two sides of every tensor are exchanged, and what would have been written is what must be in the folder.
"""

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from t5_experimental.original import SLOTS_FILE

from .bundle.writer import BundleWriter, write_state_file
from .errors import ConversionError
from .mesh.gin_writer import can_be_written, check_expressible, natural_layout, operative_config
from .mesh.matching import mesh_name, sort_names
from .mesh.parameters import Parameter, parameters
from .mesh.rules import GLOBAL_STEP
from .mesh.scopes import Layout
from .output import crc32c
from .output.beside import reclaimable
from .output.blocks import Transfer
from .output.folder import add_checksums, check_output, finished_or_nothing
from .output.model_folder import WITHOUT_SLOTS, read_config, slots_are_stale, sort_tensors
from .output.record import RECORD_FILENAME, load_record
from .output.safetensors_reader import SafetensorsReader, weight_files
from .plan.optimizer_slots import find_slots, slot_variables, with_optimizer
from .plan.plan import check_space, make_plan
from .plan.tensors import Entry
from .source.checkpoint import GIN_FILE
from .tensors import Variable


if TYPE_CHECKING:
    from t5_experimental.configuration_t5_experimental import T5ExperimentalConfig


DTYPES = ("source", "float32", "bfloat16")

_STEP_BYTES = np.int64().nbytes


@dataclass(frozen=True)
class Export:
    """What an export writes.

    Attributes:
        config: of the folder.
        reader: of the folder's tensors.
        entries: the variables to write, save for the step, in their order in the file; `source` is the folder's tensor.
        layout: numbering and style of the variables' names.
        dtype: of the model's variables.
        step: training step.
        slots: count of the optimizer's slots among the entries.
        notes: what a user may wonder about, one sentence each.
    """

    config: "T5ExperimentalConfig"
    reader: SafetensorsReader
    entries: tuple[Entry, ...]
    layout: Layout
    dtype: str
    step: int
    slots: int
    notes: tuple[str, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the checkpoint's data file."""
        return sum(entry.nbytes for entry in self.entries) + _STEP_BYTES


@dataclass(frozen=True)
class ExportSummary:
    """What an export did.

    Attributes:
        prefix: of the checkpoint.
        export: what was written.
        seconds: time that it took.
    """

    prefix: Path
    export: Export
    seconds: float


def plan_export(folder: str | Path, dtype: str = "source", step: int | None = None) -> Export:
    """Finds out what exporting a folder will write; reads no weight.

    Args:
        folder: a folder that the converter wrote, or that a model of ours or a stock T5 was saved to.
        dtype: dtype of the variables, "float32" or "bfloat16"; "source" keeps a folder of bfloat16 as it is and makes
            any other float32, as the original has no other dtypes.
        step: training step; unless given that of the optimizer's state or of `conversion.json`, or else 0, which a
            note says.

    Raises:
        ConversionError: it cannot be exported.
    """
    folder = Path(folder).expanduser()
    config = read_config(folder)
    try:
        check_expressible(config)
    except ConversionError as error:
        raise ConversionError(f"{folder} cannot be exported: {error}") from error
    if dtype not in DTYPES:
        raise ConversionError(f"the dtype {dtype!r} is none that the original restores: use {', '.join(DTYPES)}.")
    optimizer, record = folder / SLOTS_FILE, _read_record(folder)
    stale = slots_are_stale(folder, record)
    reader = SafetensorsReader([*weight_files(folder), *([optimizer] if optimizer.is_file() and not stale else [])])
    wanted = parameters(config)
    slots = sort_tensors(folder, reader.variables, wanted, config.tie_word_embeddings)
    if dtype == "source":
        dtype = "bfloat16" if {reader.variables[name].dtype for name in wanted} == {"bfloat16"} else "float32"
    layout, notes = _layout(config, wanted, record.get("tensors", {}))
    stored = reader.metadata.get("step", record.get("step"))
    if step is None and stored is None:
        notes += ("The folder does not tell its training step, so that it is 0: --step N names it.",)
    step = _checked_step(folder, 0 if stored is None else stored, step)
    if stale:
        notes += (f"{SLOTS_FILE} is left out: the weights have changed since it was written, see --step, too.",)
    variables = {
        name: Variable(mesh_name(name, parameter.section, layout), parameter.mesh_shape, dtype)
        for name, parameter in wanted.items()
    }
    present = list(variables.values())
    for name, kinds in slots.items():
        present += slot_variables(variables[name], kinds, "float32")
    by_name = {variable.name: variable for variable in present}
    plan = make_plan(by_name, sort_names(by_name), config)
    if slots:
        plan = with_optimizer(plan, find_slots(plan, by_name), step)
        assert plan.optimizer is not None
        if not _same_json(plan.optimizer.metadata["factored"], reader.metadata.get("factored", "")):
            raise ConversionError(f"the header of {optimizer} does not fit the model: {WITHOUT_SLOTS}.")
    entries = [_exchanged(folder, entry, reader.variables) for shard in plan.files for entry in shard.entries]
    entries.sort(key=lambda entry: entry.name.encode())
    return Export(config, reader, tuple(entries), layout, dtype, step, sum(map(len, slots.values())), notes)


def export(
    folder: str | Path,
    output: str | Path,
    dtype: str = "source",
    step: int | None = None,
    overwrite: bool = False,
    allow_nonfinite: bool = False,
    report: Callable[[Export], None] = lambda _: None,
    progress: bool = False,
) -> ExportSummary:
    """Writes a checkpoint that the original Mesh code restores, with its `operative_config.gin`.

    Args:
        folder: see `plan_export`.
        output: folder to write; it must not exist unless `overwrite`.
        dtype: see `plan_export`.
        step: see `plan_export`.
        overwrite: replace the output, once the new one is complete.
        allow_nonfinite: export infinities and NaNs, too.
        report: called with what was found, before anything is written.
        progress: show a progress bar on stderr.

    Raises:
        ConversionError: it cannot be exported; nothing has been written then.
    """
    from tqdm import tqdm

    start = time.monotonic()
    output = Path(output).expanduser()
    check_output(output, "exported", Path(folder).expanduser(), overwrite)
    found = plan_export(folder, dtype, step)
    check_space(found.nbytes, output, reclaimable(output))
    text = operative_config(found.config, found.layout, found.dtype)  # fails before anything is written, if it does
    report(found)
    name = f"model.ckpt-{found.step}"
    with finished_or_nothing(output, "exported", overwrite) as partial:
        with tqdm(total=found.nbytes, unit="B", unit_scale=True, desc="variables", disable=not progress) as bar:
            checksums = _write(found, partial / name, allow_nonfinite, bar.update)
        add_checksums(partial, "exported", checksums)
        (partial / GIN_FILE).write_text(text, encoding="utf-8")
        write_state_file(partial / name)
    return ExportSummary(output / name, found, time.monotonic() - start)


def _write(found: Export, prefix: Path, allow_nonfinite: bool, advance: Callable[[int], Any]) -> dict[str, int]:
    """Writes data file and index; returns the data file's checksum by its name."""
    step = Variable(GLOBAL_STEP, (), "int64")
    variables = [Variable(entry.name, entry.shape, entry.dtype) for entry in found.entries]
    # In the order of the names, as the original's saver writes them.
    with BundleWriter(prefix, [sorted([*variables, step], key=lambda variable: variable.name.encode())]) as writer:
        writer.write(GLOBAL_STEP, [np.int64(found.step).tobytes()])
        advance(_STEP_BYTES)
        transfer = Transfer(found.reader, allow_nonfinite)
        for entry in found.entries:
            writer.write(entry.name, _blocks(transfer, entry, advance))
    return {filename: crc32c.joined(parts) for filename, parts in writer.parts.items()}


def _blocks(transfer: Transfer, entry: Entry, advance: Callable[[int], Any]) -> Iterator[memoryview]:
    for block in transfer.blocks(entry):
        yield block.data
        advance(block.nbytes)


def _exchanged(folder: Path, entry: Entry, tensors: Mapping[str, Variable]) -> Entry:
    """The way back of a planned tensor: read as ours, written as Mesh's."""
    source = tensors[entry.name]
    if source.shape != entry.shape:
        raise ConversionError(
            f"{entry.name} of {folder} has the shape {list(source.shape)}, but {list(entry.shape)} is expected: "
            f"{WITHOUT_SLOTS}."
        )
    return Entry(entry.source.name, source, entry.our_axes, entry.mesh_axes, entry.sizes, entry.source.dtype)


def _same_json(text: str, other: str) -> bool:
    try:
        return bool(json.loads(text) == json.loads(other))
    except ValueError:
        return False


def _checked_step(folder: Path, stored: Any, given: int | None) -> int:
    step = stored if given is None else given
    number = int(step) if isinstance(step, str) and re.fullmatch("[0-9]{1,19}", step) else step
    if type(number) is int and 0 <= number < 2**63:
        return number
    if given is not None:
        raise ConversionError(f"--step is {given}: it must be from 0 to 2**63 - 1.")
    raise ConversionError(f"{folder} says that the step is {step!r:.80}: pass --step N with N from 0 on.")


def _read_record(folder: Path) -> dict[str, Any]:
    """`conversion.json`, where a folder still has it."""
    try:
        return load_record(folder)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConversionError(
            f"{folder / RECORD_FILENAME} cannot be read ({error}): remove it, and the variables get today's names."
        ) from error


def _layout(
    config: "T5ExperimentalConfig", wanted: Mapping[str, Parameter], record: Mapping[str, Any]
) -> tuple[Layout, tuple[str, ...]]:
    """The style of names that the converted checkpoint had, where the original can still write it; and notes."""
    natural = natural_layout(config)
    if not record:
        return natural, ()
    try:
        names = {name: record[name]["source"] for name in wanted}
        layout = Layout.of(names.values())
        same = all(mesh_name(name, p.section, layout) == names[name] for name, p in wanted.items())
    except KeyError:
        same = False
    if same and can_be_written(layout, config):
        return layout, ()
    return natural, ("Variables have today's names: those of the converted checkpoint do not fit this model.",)
