# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""The command `t5-experimental`: arguments and printing, nothing else."""

import argparse
import errno
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from t5_experimental import without_models

from .errors import ConversionError, UnknownVariables
from .generate import add_arguments, as_typed, generate
from .mesh.rules import FAMILY_SECTIONS
from .output.format import FORMATS, NATIVE
from .output.options import DTYPES, GGUF_DTYPES, ONNX_DTYPES, OPSET, OPSETS, parse_size
from .readable import OutputError, joined, say, writing
from .signals import terminating_signals


if TYPE_CHECKING:
    from .export import Export
    from .export_onnx import OnnxExport
    from .pipeline import Inspection, Summary


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        argv: arguments without the command's name; those of the process unless given.

    Returns:
        Exit status: 0, 1 if it cannot be done, 130 if interrupted, 141 if the reader of the output is gone, as of a
        program that is ended by SIGPIPE. Wrong usage ends the process with 2.
    """
    arguments = _parser().parse_args(as_typed(sys.argv[1:] if argv is None else argv))
    try:
        # Nothing here builds a model, and their classes take as long to import as all the rest.
        with _terminated_as_interrupted(), without_models():
            _COMMANDS[arguments.command](arguments)
        _flush()
    except BrokenPipeError:
        # `head` or a pager has seen enough.
        _forget_output()
        return 141
    except OutputError as error:
        _forget_output()
        say(f"error: the output cannot be written ({error}): make room for it, or send it elsewhere.", to=sys.stderr)
        return 1
    except ConversionError as error:
        try:
            _flush()
        except (BrokenPipeError, OutputError):
            _forget_output()
        say(f"error: {error}", to=sys.stderr)
        return 1
    except OSError as error:
        # By names that the user gave: `Path.is_file` raises for them.
        if not error.filename or error.errno not in (errno.ENAMETOOLONG, errno.EACCES, errno.EPERM):
            raise
        refusal = ConversionError(
            f"{error.filename!s:.200} cannot be used ({error.strerror}): give another path, or make it accessible."
        )
        say(f"error: {refusal}", to=sys.stderr)
        return 1
    except KeyboardInterrupt as interrupt:
        say(f"{'; '.join(['error: interrupted', *getattr(interrupt, '__notes__', [])])}.", to=sys.stderr)
        return 130
    return 0


def _flush() -> None:
    if sys.stdout is not None:
        with writing():
            sys.stdout.flush()


def _forget_output() -> None:
    """What is still buffered must not be tried once more at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """A terminated run cleans up after itself as an interrupted one does."""

    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    # Python lets only the main thread set handlers; elsewhere the program around us decides.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, interrupt) for number in terminating_signals()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


_GENERATE = (
    "Writes a text for every line of the input, on a line of its own; to a terminal, word by word. Options of "
    "transformers' generate may be spelled with underscores, too."
)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="t5-experimental",
        description="Converts T5 checkpoints of Mesh TensorFlow, transformers and T5X, and generates texts with them.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    convert = commands.add_parser("convert", help="write a folder that from_pretrained loads")
    inspect = commands.add_parser("inspect", help="show family, configuration and variables; writes nothing")
    for command in (convert, inspect):
        command.add_argument(
            "source",
            metavar="SOURCE",
            help="checkpoint folder or prefix, also gs://, s3://, https://; folder of stock T5, T5X, Orbax; released "
            "name; or ORGANIZATION/NAME on the hub",
        )
        if command is convert:
            command.add_argument("output", metavar="OUTPUT", help="folder to write")
        command.add_argument("--family", choices=("auto", *FAMILY_SECTIONS), default="auto", help="default: auto")
        command.add_argument("--d-kv", type=_positive, metavar="N", help="size of one head, if nothing tells it")
        command.add_argument(
            "--feed-forward-proj", metavar="NAME", help="activation such as gated-gelu or relu, if nothing tells it"
        )
        command.add_argument("--encoder-only", action="store_true", help="the encoder alone, as image models use it")
        command.add_argument(
            "--format", choices=FORMATS, default=NATIVE, help="stock-t5: for transformers' own T5; default: native"
        )
        command.add_argument(
            "--with-optimizer", action="store_true", help="also Adafactor's state, in optimizer.safetensors"
        )
        command.add_argument(
            "--dtype", choices=DTYPES, default="source", help="dtype to write; default: the source's own"
        )
    convert.add_argument("--vocab", metavar="FILE", help="sentencepiece.model, or its address; adds the tokenizer")
    convert.add_argument("--max-shard-size", type=_size, default="5GB", metavar="SIZE", help="default: 5GB")
    convert.add_argument("--overwrite", action="store_true", help="replace OUTPUT, once the new folder is complete")
    convert.add_argument(
        "--resume",
        action="store_true",
        help="keep finished files if this run fails; use those that an earlier one left",
    )
    convert.add_argument("--verify", action="store_true", help="read both sides again and compare them bit for bit")
    convert.add_argument("--allow-nonfinite", action="store_true", help="convert infinities and NaNs, too")
    export = commands.add_parser("export", help="write a checkpoint for the original code from a converted folder")
    export.add_argument("folder", metavar="FOLDER", help="converted folder, or one that such a model was saved to")
    export.add_argument("output", metavar="OUTPUT", help="checkpoint folder to write")
    export.add_argument(
        "--dtype",
        choices=("source", "float32", "bfloat16"),
        default="source",
        help="dtype of the variables; default: bfloat16 if all weights are, else float32",
    )
    export.add_argument(
        "--step",
        type=int,
        metavar="N",
        help="training step; default: that of the conversion, or 0 if the folder does not tell it, as after training",
    )
    export.add_argument("--overwrite", action="store_true", help="replace OUTPUT, once the new folder is complete")
    export.add_argument("--allow-nonfinite", action="store_true", help="export infinities and NaNs, too")
    export_gguf = commands.add_parser("export-gguf", help="write a file for llama.cpp from a model's folder")
    export_gguf.add_argument("folder", metavar="FOLDER", help="folder of t5.1.1, lm100k, t5.1.0, mT5 or umT5")
    export_gguf.add_argument("output", metavar="OUTPUT", help="file to write, such as model.gguf")
    export_gguf.add_argument(
        "--dtype",
        choices=GGUF_DTYPES,
        default="float32",
        help="dtype of the matrices; default: float32. With float16 every ffn_down stays float32, with q8_0 every "
        "matrix whose rows are no multiple of 32",
    )
    export_gguf.add_argument("--overwrite", action="store_true", help="replace OUTPUT, once the new file is complete")
    _add_export_onnx(commands)
    convert.add_argument(
        "--push-to-hub", metavar="USER/NAME", help="upload the finished folder to the Hugging Face hub"
    )
    push = commands.add_parser("push", help="upload a converted folder to the Hugging Face hub")
    push.add_argument("folder", metavar="FOLDER", help="converted folder")
    push.add_argument("repository", metavar="USER/NAME", help="repository, which is made unless it is there")
    for command in (convert, push):
        command.add_argument("--private", action="store_true", help="make the new repository a private one")
    verify = commands.add_parser("verify", help="compare a converted folder with its source, bit for bit")
    verify.add_argument("source", metavar="SOURCE", help="checkpoint folder or prefix that was converted")
    verify.add_argument("output", metavar="OUTPUT", help="converted folder")
    for command in (convert, inspect, verify):
        command.add_argument("--cache-dir", metavar="DIR", help="keep what is downloaded, and use it the next time")
    add_arguments(
        commands.add_parser("generate", help="write a text for every line of the input", description=_GENERATE)
    )
    commands.add_parser("presets", help="list the released checkpoints and the disk that they need")
    return parser


def _add_export_onnx(commands: Any) -> None:
    parser = commands.add_parser("export-onnx", help="write ONNX graphs for optimum, transformers.js and ONNX Runtime")
    parser.add_argument("folder", metavar="FOLDER", help="folder of a language model or of an encoder")
    parser.add_argument("output", metavar="OUTPUT", help="folder to write")
    parser.add_argument("--dtype", choices=ONNX_DTYPES, default="float32", help="of the weights; default: float32")
    parser.add_argument("--opset", type=int, choices=OPSETS, default=OPSET, help=f"of the operators; default: {OPSET}")
    parser.add_argument("--unmerged", action="store_true", help="one decoder for the first step and one for the others")
    parser.add_argument("--overwrite", action="store_true", help="replace OUTPUT, once the new folder is complete")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive integer")
    return int(text)


def _size(text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _planning(arguments: argparse.Namespace) -> dict[str, Any]:
    """What decides what is found and planned, which inspecting and converting share."""
    return {
        "family": arguments.family,
        "dtype": arguments.dtype,
        "d_kv": arguments.d_kv,
        "feed_forward_proj": arguments.feed_forward_proj,
        "encoder_only": arguments.encoder_only,
        "output_format": arguments.format,
        "optimizer": arguments.with_optimizer,
        "cache_dir": arguments.cache_dir,
    }


def _inspect(arguments: argparse.Namespace) -> None:
    from .pipeline import inspect

    try:
        found = inspect(arguments.source, **_planning(arguments))
    except UnknownVariables as error:
        say("Unknown variables", *(f"  {line}" for line in error.listed))
        raise
    print_inspection(found)


def print_inspection(found: "Inspection") -> None:
    """Prints what `inspect` says of a checkpoint."""
    _print_findings(found)
    say("", "Configuration")
    for name, value in sorted(found.output.fields(found.architecture, found.dtype).items()):
        say(f"  {name}: {value}")
    _print_table(found)


def _convert(arguments: argparse.Namespace) -> None:
    from .hub import check_repo_id, check_token
    from .pipeline import convert

    if arguments.push_to_hub:
        check_repo_id(arguments.push_to_hub)
        check_token()
    elif arguments.private:
        raise ConversionError("--private says how a new repository is made: add --push-to-hub USER/NAME.")
    summary = convert(
        arguments.source,
        arguments.output,
        vocab=arguments.vocab,
        max_shard_size=arguments.max_shard_size,
        overwrite=arguments.overwrite,
        verify=arguments.verify,
        allow_nonfinite=arguments.allow_nonfinite,
        resume=arguments.resume,
        report=_print_findings,
        progress=True,
        **_planning(arguments),
    )
    _print_summary(summary)
    if arguments.verify:
        _print_verified(summary.inspection)
    if arguments.push_to_hub:
        _push_folder(summary.output, arguments.push_to_hub, arguments.private)


def _push(arguments: argparse.Namespace) -> None:
    _push_folder(arguments.folder, arguments.repository, arguments.private)


def _push_folder(folder: str | Path, repository: str, private: bool) -> None:
    from .hub import push

    say("", f"Uploaded to {push(folder, repository, private)}")


def _verify(arguments: argparse.Namespace) -> None:
    from .pipeline import verify

    _print_verified(verify(arguments.source, arguments.output, progress=True, cache_dir=arguments.cache_dir))


def _export(arguments: argparse.Namespace) -> None:
    from .export import export

    summary = export(
        arguments.folder,
        arguments.output,
        dtype=arguments.dtype,
        step=arguments.step,
        overwrite=arguments.overwrite,
        allow_nonfinite=arguments.allow_nonfinite,
        report=_print_export,
        progress=True,
    )
    say("", f"Written to {summary.prefix} in {summary.seconds:.1f} seconds")


def _print_export(found: "Export") -> None:
    rows = {
        "Family": type(found.config).__name__,
        "Variables": f"{len(found.entries) - found.slots:,} of {found.dtype}",
        "Optimizer": f"{found.slots:,} slots of Adafactor" if found.slots else "none",
        "Step": f"{found.step:,}",
        "Bytes": f"{found.nbytes:,}",
    }
    _print_rows(rows, found.notes)


def _export_gguf(arguments: argparse.Namespace) -> None:
    from .export_gguf import export_gguf

    summary = export_gguf(
        arguments.folder, arguments.output, dtype=arguments.dtype, overwrite=arguments.overwrite, progress=True
    )
    rows = {"Tensors": f"{summary.tensors:,} of {summary.dtype}", "Bytes": f"{summary.nbytes:,}"}
    _print_rows(rows, summary.notes)
    say("", f"Written to {summary.path} in {summary.seconds:.1f} seconds")


def _export_onnx(arguments: argparse.Namespace) -> None:
    from .export_onnx import export_onnx

    summary = export_onnx(
        arguments.folder,
        arguments.output,
        dtype=arguments.dtype,
        opset=arguments.opset,
        unmerged=arguments.unmerged,
        overwrite=arguments.overwrite,
        report=_print_onnx_export,
    )
    say(f"{'Checked:':<12}{summary.checked}")
    say("", f"Written to {summary.output}: {summary.nbytes:,} bytes in {summary.seconds:.1f} seconds")


def _print_onnx_export(found: "OnnxExport") -> None:
    _print_rows({"Model": found.class_name, "Graphs": ", ".join(found.graphs)}, ())


def _presets(_: argparse.Namespace) -> None:
    from .presets_table import presets_table

    say(*presets_table().splitlines())


_COMMANDS = {
    "convert": _convert,
    "inspect": _inspect,
    "export": _export,
    "export-gguf": _export_gguf,
    "export-onnx": _export_onnx,
    "verify": _verify,
    "presets": _presets,
    "push": _push,
    "generate": generate,
}


def _print_findings(found: "Inspection") -> None:
    dtypes = Counter(entry.source.dtype for entry in found.plan.entries)
    cast = sorted({entry.dtype for entry in found.plan.entries if entry.dtype != entry.source.dtype})
    told = found.checkpoint.told_by
    rows = {
        "Source": found.checkpoint.location,
        "Family": f"{found.family} ({found.architecture.class_prefix}Config)",
        "Output": found.output.class_name(found.architecture),
        "Told by": f"{told}, checked against every shape" if told else "the variables' shapes",
        "Step": "unknown" if found.step is None else f"{found.step:,}",
        "Parameters": f"{found.plan.parameter_count:,} in {len(found.plan.entries):,} tensors",
        "Dtype": ", ".join(f"{name} ({count} tensors)" for name, count in dtypes.most_common())
        + (f", written as {joined(cast)}" if cast else ""),
    }
    if found.plan.optimizer is not None:
        rows["Optimizer"] = f"{len(found.plan.optimizer.entries):,} slots of Adafactor"
    _print_rows(rows, found.notes)


def _print_rows(rows: Mapping[str, object], notes: Sequence[str]) -> None:
    for title, text in rows.items():
        say(f"{title + ':':<12}{text}")
    for note in notes:
        say(f"{'Note:':<12}{note}")


def _print_table(found: "Inspection") -> None:
    entries = {entry.name: entry for shard in found.plan.files for entry in shard.entries}
    rows = [("parameter", "shape", "dtype", "variable", "transform")]
    rows += [
        (name, "x".join(map(str, entry.shape)), entry.dtype, entry.source.name, entry.transform)
        for name, entry in entries.items()
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    say("", "Variables")
    for row in rows:
        say(("  " + "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True))).rstrip())
    for text in _left_out(found):
        say(f"  left out: {text}")


def _left_out(found: "Inspection") -> list[str]:
    """Variables that are not written, counted by reason."""
    return [f"{count:,} x {reason}" for reason, count in Counter(found.plan.drops.values()).most_common()]


def _print_verified(found: "Inspection") -> None:
    exact = sum(entry.dtype == entry.source.dtype for entry in found.plan.reads)
    say("", "Verified")
    say(f"  equal bit for bit:            {exact:,} tensors")
    if exact < len(found.plan.reads):
        say(f"  equal to the source as cast:  {len(found.plan.reads) - exact:,} tensors")
    say(f"  bytes:                        {found.plan.all_nbytes:,}")


def _print_summary(summary: "Summary") -> None:
    say("", "Summary")
    rows = {
        "output": summary.output,
        "tensors": f"{summary.tensors:,} in {len(summary.inspection.plan.shards)} file(s)",
        "parameters": f"{summary.parameters:,}",
        "bytes": f"{summary.nbytes:,}",
        "seconds": f"{summary.seconds:.1f}",
        "peak memory": f"{summary.peak_memory / 2**20:,.0f} MiB" if summary.peak_memory else "unknown",
    }
    optimizer = summary.inspection.plan.optimizer
    if optimizer is not None:
        rows["optimizer"] = f"{len(optimizer.entries):,} slots, {optimizer.nbytes:,} bytes in {optimizer.filename}"
    if summary.inspection.plan.drops:
        rows["left out"] = ", ".join(_left_out(summary.inspection))
    for title, text in rows.items():
        say(f"  {title + ':':<14}{text}")
