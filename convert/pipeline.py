# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Conversion: inspect, plan, write into a temporary sibling, rename; only then it looks finished."""

import math
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from .arrays.reader import ArraysReader
from .bundle.reader import TensorBundleReader
from .errors import ConversionError
from .mesh.architecture import Shapes, deduce, with_options
from .mesh.gin_syntax import MAX_GIN_BYTES, GinFile, decode
from .mesh.matching import Sorted, sort_names
from .mesh.rules import GLOBAL_STEP
from .mesh.t5x_gin import with_t5x_gin
from .mesh.t5x_names import (
    STEP,
    SortedT5X,
    is_scanned,
    is_unused_slot,
    join_slot,
    sort_t5x,
    split_slot,
    stacked,
    stacked_slots,
)
from .output import resume as finished_files
from .output import safetensors_writer as writer
from .output.beside import reclaimable
from .output.folder import check_output, finished_or_nothing
from .output.format import OutputFormat, check_expressible, write_config, write_tokenizer_files
from .output.options import check_options
from .output.record import read_record, write_record
from .output.stock_source import GENERATION, TOKENIZER_CONFIG, find_stock
from .output.verify import compare
from .plan.optimizer_slots import ParameterState, SlotNames, find_slots, with_optimizer
from .plan.plan import Plan, check_agreement, check_known, check_space, check_weights, make_plan, without_decoder
from .source.checkpoint import Checkpoint, local_copy, resolve
from .source.kinds import ARRAYS, STOCK
from .source.remote import is_remote
from .tensors import CheckpointReader, Variable


if TYPE_CHECKING:
    from t5_experimental.architecture_t5_experimental import T5ExperimentalArchitecture
    from t5_experimental.configuration_t5_experimental import T5ExperimentalConfig
    from t5_experimental.vocabulary import Vocabulary


# What a message says of options that a user has given to `convert`, and not to `verify`.
_OF_OPTIONS = re.compile("--(family|d-kv|feed-forward-proj|encoder-only|format|with-optimizer)")


@dataclass(frozen=True)
class Inspection:
    """What is known about a checkpoint before anything is converted.

    Attributes:
        checkpoint: where it is.
        reader: open for reading its tensors.
        family: one of the four.
        architecture: of our model for what is written.
        dtype: of most weights that are written, which is what the configuration states.
        output: kind of the folder.
        plan: every tensor's way.
        step: training step, if anything tells.
        notes: what was assumed or is set otherwise than in the checkpoint, one sentence each.
        files: content of the files that a folder of transformers has and that are taken over, by name.
    """

    checkpoint: Checkpoint
    reader: CheckpointReader
    family: str
    architecture: "T5ExperimentalArchitecture"
    dtype: str
    output: OutputFormat
    plan: Plan
    step: int | None
    notes: tuple[str, ...]
    files: Mapping[str, bytes] = field(default_factory=dict)

    @cached_property
    def config(self) -> "T5ExperimentalConfig":
        """Configuration of our model; made when it is asked for, because it imports torch and transformers."""
        return self.output.config(self.architecture, self.dtype)


@dataclass(frozen=True)
class Summary:
    """What a conversion did.

    Attributes:
        output: the folder.
        inspection: what was converted.
        tensors: count of the model's tensors.
        parameters: count of numbers in them.
        nbytes: bytes of them.
        seconds: time that it took.
        peak_memory: most bytes of resident memory that the process has had; None where the system does not tell.
    """

    output: Path
    inspection: Inspection
    tensors: int
    parameters: int
    nbytes: int
    seconds: float
    peak_memory: int | None


def open_reader(checkpoint: Checkpoint) -> CheckpointReader:
    """Opens a checkpoint for reading."""
    return TensorBundleReader(checkpoint.prefix, checkpoint.storage)


def inspect(
    source: str | Path | Checkpoint,
    family: str = "auto",
    dtype: str = "source",
    max_shard_size: int = 5 * 10**9,
    d_kv: int | None = None,
    feed_forward_proj: str | None = None,
    encoder_only: bool = False,
    output_format: str = "native",
    optimizer: bool = False,
    cache_dir: str | Path | None = None,
) -> Inspection:
    """Finds out everything about a checkpoint and plans its conversion; reads no weight.

    Args:
        source: a checkpoint's folder or prefix, or a folder of transformers' T5, T5X or Orbax.
        family: "t5.1.1", "t5.1.1.lm100k", "t5.1.th", "t5.1.n4w10", or "auto".
        dtype: dtype to write: "source", "float32", "bfloat16" or "float16".
        max_shard_size: bytes of tensors in one file.
        d_kv: size of one head of plain attention, where neither a gin file nor a bias table tells it.
        feed_forward_proj: activation, where no gin file tells it; if one does, this is used nevertheless.
        encoder_only: plan the encoder alone; the decoder is checked all the same.
        output_format: "native" for our classes, "stock-t5" for those that transformers has.
        optimizer: plan the optimizer's state too, as far as it belongs to parameters that are written.
        cache_dir: folder to keep what comes from a server.

    Raises:
        ConversionError: it cannot be converted.
    """
    from .mesh.family import build_architecture, choose_family
    from .mesh.gin_reader import read_architecture

    options: dict[str, Any] = {
        "family": family,
        "dtype": dtype,
        "max_shard_size": max_shard_size,
        "d_kv": d_kv,
        "feed_forward_proj": feed_forward_proj,
        "encoder_only": encoder_only,
        "output_format": output_format,
        "optimizer": optimizer,
    }
    check_options(options)
    output = OutputFormat(output_format, encoder_only)
    checkpoint = source if isinstance(source, Checkpoint) else resolve(source, cache_dir)
    if checkpoint.kind == STOCK:
        return _inspect_stock(checkpoint, options)
    gin_name = checkpoint.gin_file
    gin = GinFile(decode(checkpoint.gin_bytes(MAX_GIN_BYTES + 1), gin_name), gin_name) if gin_name else None
    is_arrays = checkpoint.kind == ARRAYS
    # The gin file comes first, because it can name the feature to which an unknown variable belongs.
    said = read_architecture(gin) if gin and not is_arrays else None
    reader, names = _open_arrays(checkpoint, optimizer) if is_arrays else _open_mesh(checkpoint)
    variables = reader.variables
    check_known(names, variables)
    check_weights(names, variables)
    shapes = Shapes(variables, names)
    vocab_size = shapes.axes("shared.weight")["vocab_size"]
    if gin and said:
        check_agreement(gin.name, said, shapes)
    deduced = said or deduce(shapes, d_kv)
    if is_arrays:
        deduced = with_t5x_gin(deduced, gin)
    found = with_options(deduced, shapes, d_kv, feed_forward_proj)
    chosen, family_notes = choose_family(family, found, checkpoint.name)
    weights = [variables[match.mesh] for match in names.matches.values()]
    written_dtype = _config_dtype(dtype, weights)
    architecture, own_notes = build_architecture(chosen, found, vocab_size)
    plan = make_plan(variables, names, architecture, dtype, max_shard_size, gin_name)
    slots = _slots(plan, reader, names) if optimizer else None
    if encoder_only:
        plan = without_decoder(plan, max_shard_size)
        architecture, own_notes = build_architecture(chosen, found, vocab_size, encoder_only=True)
    check_expressible(output, architecture)
    step = _step(checkpoint, reader)
    if slots is not None:
        plan = with_optimizer(plan, slots, step)
    notes = (*family_notes, *found.notes, *own_notes, *output.notes(architecture), *_moved(checkpoint))
    return Inspection(checkpoint, reader, chosen, architecture, written_dtype, output, plan, step, notes)


def _open_mesh(checkpoint: Checkpoint) -> tuple[CheckpointReader, Sorted]:
    reader = open_reader(checkpoint)
    return reader, sort_names(reader.variables)


def _open_arrays(checkpoint: Checkpoint, with_slots: bool) -> tuple[CheckpointReader, Sorted]:
    """The reader of a checkpoint of T5X or Orbax, in which every layer has variables of its own."""
    assert checkpoint.arrays is not None
    reader = ArraysReader(checkpoint.arrays)
    slots = stacked_slots(reader.variables) if with_slots else {}
    reader.unstack(stacked(reader.variables))
    reader.unstack(slots, "leave out --with-optimizer")
    names = sort_t5x(reader.variables, reader.is_copy)
    reader.check_complete(match.mesh for match in names.matches.values())
    return reader, names


def _slots(plan: Plan, reader: CheckpointReader, names: Sorted) -> dict[str, ParameterState]:
    """The optimizer's state of every parameter."""
    if not isinstance(names, SortedT5X) or not isinstance(reader, ArraysReader):
        return find_slots(plan, reader.variables)
    said = SlotNames(split_slot, join_slot, True, is_unused_slot, is_scanned)
    found = find_slots(plan, reader.variables, said)
    reader.check_complete(entry.source.name for state in found.values() for entry in state.entries)
    return found


def _inspect_stock(checkpoint: Checkpoint, options: Mapping[str, Any]) -> Inspection:
    """What `inspect` finds in a folder of transformers."""
    found = find_stock(checkpoint, **options)
    check_expressible(found.output, found.architecture)
    return Inspection(
        checkpoint=checkpoint,
        reader=found.reader,
        family=found.family,
        architecture=found.architecture,
        dtype=found.dtype,
        output=found.output,
        plan=found.plan,
        step=None,
        notes=(*found.notes, *found.output.notes(found.architecture)),
        files=found.files,
    )


def _moved(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Names where the bytes come from if that is not where they were asked for."""
    places = checkpoint.storage.moved_to()
    more = f" and {len(places) - 3} more folders" if len(places) > 3 else ""
    return (f"The server redirected to {', '.join(places[:3])}{more}, which the bytes are from.",) if places else ()


def _config_dtype(dtype: str, weights: list[Variable]) -> str:
    """The dtype of most weights, which is what the configuration states."""
    return Counter(variable.dtype for variable in weights).most_common(1)[0][0] if dtype == "source" else dtype


def _step(checkpoint: Checkpoint, reader: CheckpointReader) -> int | None:
    if isinstance(reader, ArraysReader):
        step = reader.number(STEP)
        return checkpoint.named_step if step is None else step
    variable = reader.variables.get(GLOBAL_STEP)
    if variable is None:
        return checkpoint.named_step
    _check_step(variable)
    step = int(reader.read(GLOBAL_STEP).reshape(()))
    if step < 0:
        raise ConversionError(f"{GLOBAL_STEP} is {step}: no training step is negative, so the checkpoint is damaged.")
    return step


def _check_step(variable: Variable) -> None:
    """Raises, before it is read, unless it is one integer: a variable of that name may have any size."""
    if math.prod(variable.shape) != 1 or not variable.dtype.startswith(("int", "uint")):
        raise ConversionError(
            f"{variable.name} is {variable.dtype} of shape {list(variable.shape)}, but a training step is one integer: "
            "the checkpoint is not one that Mesh TensorFlow's saver wrote."
        )


def convert(
    source: str | Path,
    output: str | Path,
    family: str = "auto",
    vocab: str | Path | None = None,
    dtype: str = "source",
    max_shard_size: int = 5 * 10**9,
    overwrite: bool = False,
    d_kv: int | None = None,
    feed_forward_proj: str | None = None,
    encoder_only: bool = False,
    output_format: str = "native",
    optimizer: bool = False,
    verify: bool = False,
    allow_nonfinite: bool = False,
    resume: bool = False,
    cache_dir: str | Path | None = None,
    report: Callable[[Inspection], None] = lambda _: None,
    progress: bool = False,
) -> Summary:
    """Converts a checkpoint into a folder that `from_pretrained` loads.

    Args:
        source: a checkpoint's folder or prefix.
        output: folder to write; it must not exist unless `overwrite`.
        family: see `inspect`.
        vocab: sentencepiece model file, for the tokenizer files.
        dtype: see `inspect`.
        max_shard_size: bytes of tensors in one file.
        overwrite: replace the folder, once the new one is complete.
        d_kv: see `inspect`.
        feed_forward_proj: see `inspect`.
        encoder_only: write the encoder alone, for the EncoderModel classes.
        output_format: see `inspect`.
        optimizer: write the optimizer's state too, see the module `optimizer`.
        verify: read both sides again before the folder takes its name, and compare them bit for bit.
        allow_nonfinite: convert infinities and NaNs, too.
        resume: go on with what a run that ended before its time has left, keeping the files that it finished; and leave
            such files if this one fails.
        cache_dir: see `inspect`.
        report: called with what was found, before anything is written.
        progress: show a progress bar on stderr.

    Raises:
        ConversionError: it cannot be converted; nothing has the output's name then.
    """
    from .output.tokenizer import check_vocabulary

    start = time.monotonic()
    output = Path(output).expanduser()
    checkpoint = resolve(source, cache_dir)
    check_output(output, "converted", checkpoint.storage.local_folder, overwrite)
    if vocab is None:
        vocab = checkpoint.vocabulary
    if vocab is not None and not is_remote(vocab) and not Path(vocab).expanduser().is_file():
        raise ConversionError(f"the vocabulary {vocab} does not exist: give the file sentencepiece.model.")
    options: dict[str, Any] = {
        "family": family,
        "dtype": dtype,
        "max_shard_size": max_shard_size,
        "d_kv": d_kv,
        "feed_forward_proj": feed_forward_proj,
        "encoder_only": encoder_only,
        "output_format": output_format,
        "optimizer": optimizer,
    }
    found = inspect(checkpoint, **options)
    vocabulary = None
    with ExitStack() as borrowed:
        if vocab is not None:
            path = Path(vocab).expanduser()
            if is_remote(vocab):
                cache = Path(cache_dir).expanduser() if cache_dir else None
                path = borrowed.enter_context(local_copy(str(vocab), cache))
            vocabulary = check_vocabulary(path, found.architecture.vocab_size)
        check_space(found.plan.all_nbytes, output, reclaimable(output))
        texts = _make_texts(found, vocabulary, output.name)
        report(found)
        folder = borrowed.enter_context(finished_or_nothing(output, "converted", overwrite, resume))
        with _bar(found, "tensors", progress) as advance:
            checksums = writer.write_tensors(found.plan, found.reader, folder, advance, allow_nonfinite)
        # A later `verify` uses this family, even if the source's folder is renamed.
        recorded = {**options, "family": found.family}
        write_record(found.plan, found.checkpoint.name, found.step, recorded, checksums, folder)
        if verify:
            _check(found, folder, output, progress)
        for name, text in texts.items():
            (folder / name).write_bytes(text)
        (folder / finished_files.FILENAME).unlink()
    return Summary(
        output=output,
        inspection=found,
        tensors=len(found.plan.entries),
        parameters=found.plan.parameter_count,
        nbytes=found.plan.nbytes,
        seconds=time.monotonic() - start,
        peak_memory=_peak_memory(),
    )


def verify(
    source: str | Path, output: str | Path, progress: bool = False, cache_dir: str | Path | None = None
) -> Inspection:
    """Compares a converted folder with its source, bit for bit; the options are those that it was converted with.

    Args:
        source: the checkpoint's folder or prefix.
        output: the converted folder.
        progress: show a progress bar on stderr.
        cache_dir: folder to keep what comes from a server.

    Returns:
        What was compared.

    Raises:
        ConversionError: they differ, or one of the two cannot be read.
    """
    folder = Path(output).expanduser()
    record = read_record(folder)
    try:
        found = inspect(source, **record["options"], cache_dir=cache_dir)
    except ConversionError as error:
        if not _OF_OPTIONS.search(str(error)):
            raise
        raise ConversionError(
            f"{source} does not take the options with which {output} was converted from {record['source']}, so it is "
            "another source: give that one."
        ) from error
    _check(found, folder, folder, progress)
    return found


def _check(found: Inspection, folder: Path, output: Path, progress: bool) -> None:
    with _bar(found, "verified", progress) as advance:
        wrong = compare(found.plan, found.reader, folder, advance)
    if wrong:
        name, what = next(iter(wrong.items()))
        if not name.isprintable() or len(name) > 200:  # it may be the file's
            name = f"{name!r:.200}"
        raise ConversionError(
            f"{len(wrong)} of {len(found.plan.reads)} tensors of {output} are wrong, first {name}, which {what}: "
            "convert again."
        )


@contextmanager
def _bar(found: Inspection, title: str, shown: bool) -> Iterator[Callable[[int], Any]]:
    from tqdm import tqdm

    with tqdm(total=found.plan.all_nbytes, unit="B", unit_scale=True, desc=title, disable=not shown) as bar:
        yield bar.update


def _make_texts(found: Inspection, vocabulary: "Vocabulary | None", title: str) -> dict[str, bytes]:
    """What the output folder holds besides tensors, by its name there; the configuration, without which nothing loads,
    is the last. It is made before a weight is written, because much of it can fail."""
    from .output.model_card import model_card

    taken = _taken_over(found, vocabulary)
    card = model_card(
        title=title,
        family=found.family,
        source=found.checkpoint.name,
        step=found.step,
        config=found.architecture,
        output=found.output,
        plan=found.plan,
        has_tokenizer=vocabulary is not None or TOKENIZER_CONFIG in taken,
        notes=found.notes,
        origin=found.checkpoint.kind,
    )
    try:
        with TemporaryDirectory() as name:
            folder = Path(name)
            if vocabulary is not None:
                write_tokenizer_files(found.output, vocabulary, folder)
            write_config(found.output, found.architecture, found.dtype, folder)
            made = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    except OSError as error:
        raise ConversionError(
            f"temporary files cannot be written ({error.strerror or error}): make room for them, or set TMPDIR to "
            "another folder."
        ) from error
    config = made.pop("config.json")
    return {"README.md": card.encode(), **made, **taken, "config.json": config}


def _taken_over(found: Inspection, vocabulary: "Vocabulary | None") -> dict[str, bytes]:
    """The source's own files for the output; a vocabulary that is given replaces its tokenizer."""
    return {name: data for name, data in found.files.items() if vocabulary is None or name == GENERATION}


def _peak_memory() -> int | None:
    """Bytes; Linux counts in KiB, macOS in bytes, Windows not at all."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
