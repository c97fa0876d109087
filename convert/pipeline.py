# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""The road of a conversion: inspect, plan, write into a temporary sibling, rename; only then it looks finished."""

import errno
import secrets
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .architecture import Shapes, deduce, with_options
from .checkpoint import Checkpoint, CheckpointReader, Variable, resolve
from .errors import ConversionError
from .gin_file import GinFile
from .matching import sort_names
from .plan import Plan, check_agreement, check_disk, check_known, make_plan


if TYPE_CHECKING:
    from ..configuration_t5_experimental import T5ExperimentalConfig
    from .tokenizer import Vocabulary


@dataclass(frozen=True)
class Inspection:
    """What is known about a checkpoint before anything is converted.

    Attributes:
        checkpoint: where it lies.
        reader: open for reading its tensors.
        family: one of the four.
        config: configuration of our model for it.
        plan: every tensor's way.
        step: training step, if anything tells.
        notes: what was assumed or is set otherwise than in the checkpoint, one sentence each.
    """

    checkpoint: Checkpoint
    reader: CheckpointReader
    family: str
    config: "T5ExperimentalConfig"
    plan: Plan
    step: int | None
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Summary:
    """What a conversion did.

    Attributes:
        output: the folder.
        inspection: what was converted.
        tensors: count of tensors.
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
    from .tensorflow_reader import TensorFlowReader

    return TensorFlowReader(checkpoint.prefix)


def inspect(
    source: str | Path,
    family: str = "auto",
    dtype: str = "source",
    max_shard_size: int = 5 * 10**9,
    d_kv: int | None = None,
    feed_forward_proj: str | None = None,
) -> Inspection:
    """Finds out everything about a checkpoint and plans its conversion; reads no weight.

    Args:
        source: a checkpoint's folder or prefix.
        family: "t5.1.1", "t5.1.1.lm100k", "t5.1.th", "t5.1.n4w10", or "auto".
        dtype: dtype to write: "source", "float32", "bfloat16" or "float16".
        max_shard_size: bytes of tensors in one file.
        d_kv: size of one head of plain attention, where neither a gin file nor a bias table tells it.
        feed_forward_proj: activation, where no gin file tells it; if one does, this is used nevertheless.

    Raises:
        ConversionError: it cannot be converted.
    """
    from .family import build_config, choose_family
    from .gin_config import read_architecture

    checkpoint = resolve(source)
    reader = open_reader(checkpoint)
    variables = reader.variables
    gin = checkpoint.gin_file
    # The gin file comes first, because it can name the feature to which an unknown variable belongs.
    said = read_architecture(GinFile.load(gin)) if gin else None
    names = sort_names(variables)
    check_known(names, variables)
    shapes = Shapes(variables, names)
    vocab_size = shapes.axes("shared.weight")["vocab_size"]
    if gin and said:
        check_agreement(gin.name, said, shapes)
    architecture = said or deduce(shapes, d_kv)
    architecture = with_options(architecture, shapes, d_kv, feed_forward_proj)
    chosen, family_notes = choose_family(family, architecture, checkpoint)
    weights = [variables[match.mesh] for match in names.matches.values()]
    config, config_notes = build_config(chosen, architecture, vocab_size, _config_dtype(dtype, weights))
    plan = make_plan(variables, names, config, dtype, max_shard_size, gin.name if gin else None)
    notes = (*family_notes, *architecture.notes, *config_notes)
    return Inspection(checkpoint, reader, chosen, config, plan, _step(checkpoint, reader), notes)


def _config_dtype(dtype: str, weights: list[Variable]) -> str:
    """The dtype of most weights, which is what the configuration states."""
    return Counter(variable.dtype for variable in weights).most_common(1)[0][0] if dtype == "source" else dtype


def _step(checkpoint: Checkpoint, reader: CheckpointReader) -> int | None:
    if "global_step" in reader.variables:
        return int(reader.read("global_step"))
    return checkpoint.named_step


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
        report: called with what was found, before anything is written.
        progress: show a progress bar on stderr.

    Raises:
        ConversionError: it cannot be converted; nothing has been written then.
    """
    from .tokenizer import check_vocabulary

    start = time.monotonic()
    output = Path(output).expanduser()
    checkpoint = resolve(source)
    _check_output(output, checkpoint, overwrite)
    if vocab is not None and not Path(vocab).expanduser().is_file():
        raise ConversionError(f"the vocabulary {vocab} does not exist: give the file sentencepiece.model.")
    found = inspect(checkpoint.prefix, family, dtype, max_shard_size, d_kv, feed_forward_proj)
    vocabulary = None
    if vocab is not None:
        vocabulary = check_vocabulary(Path(vocab).expanduser(), found.config.vocab_size)
    check_disk(found.plan, output)
    report(found)
    with _finished_or_nothing(output, overwrite) as folder:
        _write(found, vocabulary, folder, output.name, progress)
    return Summary(
        output=output,
        inspection=found,
        tensors=len(found.plan.entries),
        parameters=found.plan.parameter_count,
        nbytes=found.plan.nbytes,
        seconds=time.monotonic() - start,
        peak_memory=_peak_memory(),
    )


def _write(found: Inspection, vocabulary: "Vocabulary | None", folder: Path, title: str, progress: bool) -> None:
    """Writes everything that the output folder holds."""
    from tqdm import tqdm
    from transformers import GenerationConfig

    from .model_card import model_card
    from .tokenizer import write_tokenizer
    from .writer import write_tensors

    with tqdm(total=found.plan.nbytes, unit="B", unit_scale=True, desc="tensors", disable=not progress) as bar:
        write_tensors(found.plan, found.reader, folder, bar.update)
    config = found.config
    config.save_pretrained(folder)
    generation_config: Any = GenerationConfig  # its constructor has no annotations
    generation_config(
        decoder_start_token_id=config.decoder_start_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
    ).save_pretrained(folder)
    if vocabulary is not None:
        write_tokenizer(vocabulary, folder)
    card = model_card(
        title=title,
        family=found.family,
        source=found.checkpoint.name,
        step=found.step,
        config=config,
        plan=found.plan,
        has_tokenizer=vocabulary is not None,
        notes=found.notes,
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def _check_output(output: Path, checkpoint: Checkpoint, overwrite: bool) -> None:
    source = checkpoint.prefix.parent.resolve()
    if output.resolve() in (source, *source.parents):
        raise ConversionError(f"{output} holds the checkpoint itself: choose another folder for the output.")
    if not output.exists() and not output.is_symlink():
        return
    if not overwrite:
        raise ConversionError(f"{output} exists: choose another folder, or pass --overwrite to replace it.")
    # A mistyped path must not cost anybody's files.
    if not output.is_dir() or output.is_symlink() or (any(output.iterdir()) and not (output / "config.json").is_file()):
        raise ConversionError(
            f"{output} is not a converted folder, so --overwrite does not replace it: remove it yourself."
        )


@contextmanager
def _finished_or_nothing(output: Path, overwrite: bool) -> Iterator[Path]:
    """A temporary folder beside the output, which takes its name on success and is removed on error or interrupt."""
    output = output.absolute()
    token = secrets.token_hex(4)
    folder = output.with_name(f".{output.name}.partial-{token}")
    created = [parent for parent in output.parents if not parent.exists()]
    try:
        try:
            folder.mkdir(parents=True)
            yield folder
            if output.exists() and not overwrite:
                raise ConversionError(f"{output} appeared while this conversion ran: choose another folder.")
            _replace(folder, output, output.with_name(f".{output.name}.old-{token}"))
        except OSError as error:
            raise ConversionError(_os_error(error, output)) from error
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        for parent in created:
            try:
                parent.rmdir()
            except OSError:
                break
        raise


def _replace(folder: Path, output: Path, old: Path) -> None:
    """Gives the folder the output's name; what had it before goes last."""
    if not output.exists():
        folder.rename(output)
        return
    output.rename(old)
    try:
        folder.rename(output)
    except BaseException:
        old.rename(output)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _os_error(error: OSError, output: Path) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk of {output} is full: make room or choose another disk; nothing was left behind."
    return f"{output} cannot be written: {error.strerror or error}."


def _peak_memory() -> int | None:
    """Bytes; Linux counts in KiB, macOS in bytes, Windows not at all."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
