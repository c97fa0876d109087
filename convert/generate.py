# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""The command `generate`: a text for every line of the input, with the options of transformers' `generate`.

torch, transformers' models and peft are imported when it runs, since the other commands need none of them.
"""

import argparse
import math
import re
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from t5_experimental.garbage import collection_paused
from t5_experimental.model_folders import (
    FolderError,
    check_adapter,
    check_model,
    check_tokenizer,
    is_stock,
    model_and_adapter,
)

from .errors import ConversionError
from .loading import load_model
from .readable import in_a_line, writing


LONGEST = 128
"""Tokens of a text if neither the options nor the model's settings say how long it may be."""

# Options of `generate`: name, type (None for switches), what it does.
OPTIONS: tuple[tuple[str, type | None, str], ...] = (
    ("max_new_tokens", int, f"longest text; default: the model's own setting, or {LONGEST}"),
    ("min_new_tokens", int, "shortest text"),
    ("num_beams", int, "beam search with this number of beams"),
    ("num_return_sequences", int, "texts for each line, one after another"),
    ("do_sample", None, "draw tokens at random"),
    ("temperature", float, "divides the logits before tokens are drawn"),
    ("top_k", int, "draw from this number of tokens"),
    ("top_p", float, "draw from the likeliest tokens that together have this probability"),
    ("min_p", float, "draw from tokens that have this fraction of the likeliest one's probability"),
    ("typical_p", float, "draw from typical tokens that together have this probability"),
    ("repetition_penalty", float, "more than 1: tokens that are there already become less likely"),
    ("no_repeat_ngram_size", int, "no sequence of this number of tokens comes twice"),
    ("length_penalty", float, "more than 0: beam search prefers long texts; less: short ones"),
    ("early_stopping", None, "beam search stops at the first texts that are finished"),
)

_INT32, _TINY = 2**31 - 1, math.ulp(0.0)
# Beyond, logits or the lengths of texts leave the range of float32.
_SCALES, _POWERS = (1e-30, 1e30, "from 1e-30 to 1e30"), (-10, 10, "from -10 to 10")
_FROM_0, _FROM_1 = (f"from {least} to {_INT32}" for least in (0, 1))
# What transformers does not check: the least and the greatest value, and both in words.
_LIMITS: dict[str, tuple[float, float, str]] = {
    **dict.fromkeys(("batch_size", "max_new_tokens", "num_beams", "num_return_sequences"), (1, _INT32, _FROM_1)),
    **dict.fromkeys(("min_new_tokens", "no_repeat_ngram_size", "top_k"), (0, _INT32, _FROM_0)),
    **dict.fromkeys(("temperature", "repetition_penalty"), _SCALES),
    **dict.fromkeys(("top_p", "typical_p"), (_TINY, 1, "more than 0 and at most 1")),
    "min_p": (0, 1, "from 0 to 1"),
    "length_penalty": _POWERS,
    "seed": (-(2**63), 2**64 - 1, "from -2**63 to 2**64 - 1"),
}

# What would steer a terminal, or end a line.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments to its parser."""
    parser.add_argument("folder", metavar="MODEL", help="folder of a model with its tokenizer, or of an adapter")
    parser.add_argument(
        "--prompt", "--adapter", metavar="ADAPTER", help="folder of a tuned prompt or of LoRA adapters (needs peft)"
    )
    for name, kind, text in OPTIONS:
        flag = f"--{name.replace('_', '-')}"
        if kind is None:
            parser.add_argument(flag, action="store_true", default=None, help=text)
        else:
            parser.add_argument(flag, type=kind, metavar="N" if kind is int else "X", help=text)
    parser.add_argument("--seed", type=int, metavar="N", help="of random numbers, for --do-sample")
    parser.add_argument("--source-prefix", default="", metavar="TEXT", help='before every line, as "summarize: "')
    parser.add_argument(
        "--batch-size",
        type=int,
        default=8,
        metavar="N",
        help="lines at a time, unless it answers a terminal; default: 8",
    )
    parser.add_argument("--dtype", choices=("source", "float32", "bfloat16"), default="source", help="default: source")
    parser.add_argument(
        "--weights",
        choices=("source", "int8"),
        default="source",
        help="int8: round weights to 8 bits, which is faster on CPUs and changes some texts; default: source",
    )
    parser.add_argument("--device", metavar="NAME", help="such as cuda:1; default: a GPU if there is one, else cpu")


def as_typed(argv: Sequence[str]) -> list[str]:
    """Arguments in which options are spelled with hyphens: `generate`'s own names have underscores."""
    if not argv or argv[0] != "generate":
        return list(argv)
    spelled = (word.partition("=") for word in argv)
    return ["".join((name.replace("_", "-") if name.startswith("--") else name, *rest)) for name, *rest in spelled]


def generate(arguments: argparse.Namespace, lines: Iterable[str] | None = None, to: TextIO | None = None) -> None:
    """Writes a text for every line.

    Args:
        arguments: of [`add_arguments`].
        lines: the input; standard input by default.
        to: where texts go; standard output by default.

    Raises:
        ConversionError: the model does not load, or options contradict each other. Nothing has been read then.
    """
    lines, to = sys.stdin if lines is None else lines, sys.stdout if to is None else to
    if lines is None or to is None:
        raise ConversionError("The standard input or output is closed: leave both open.")
    _check_limits(vars(arguments))
    if arguments.seed is not None and not arguments.do_sample:
        raise ConversionError("--seed has no effect without --do-sample: give both, or none.")
    with collection_paused():
        writer = _Writer.load(arguments)
    is_interactive = to.isatty() or (hasattr(lines, "isatty") and lines.isatty())
    streams = to.isatty() and writer.can_stream()
    texts = _checked(lines)
    with writer.session():
        while batch := list(islice(texts, 1 if is_interactive else arguments.batch_size)):
            sources = [arguments.source_prefix + text for text in batch]
            if streams:
                writer.stream(sources, to)
            else:
                found = [f"{_on_a_line(text)}\n" for text in writer.write(sources)]
                with writing():
                    to.writelines(found)
                    to.flush()


def _checked(lines: Iterable[str]) -> Iterator[str]:
    """The lines without their ends; refuses what is not UTF-8."""
    try:
        for line in lines:
            line.encode()
            yield line.rstrip("\r\n")
    except UnicodeError as error:
        raise ConversionError(f"The input is not UTF-8 text ({error}): convert it.") from error
    except OSError as error:
        raise ConversionError(
            f"The input cannot be read ({error.strerror or error}): give a file or a pipe."
        ) from error


def _on_a_line(text: str) -> str:
    """A text that cannot steer a terminal, and stays on its line."""
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def _in_a_line(error: Exception) -> str:
    return " ".join(str(error).split())


@dataclass
class _Writer:
    """A model, ready to generate.

    Attributes:
        model: possibly with an adapter.
        tokenizer: of the model.
        settings: transformers' `GenerationConfig`.
    """

    model: Any
    tokenizer: Any
    settings: Any

    @classmethod
    def load(cls, arguments: argparse.Namespace) -> "_Writer":
        folder, adapter = _folders(arguments)
        import torch
        import transformers

        from t5_experimental import register_models

        register_models()
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
        _check_device(device)
        _check_weights(arguments.weights, device)
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
            config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # the libraries raise many types for bad files
            raise ConversionError(f"{folder} does not load: {in_a_line(error)}") from error
        _check_vocabulary(tokenizer, config, folder)
        dtype = "auto" if arguments.dtype == "source" else getattr(torch, arguments.dtype)
        model = load_model(_model_class(config, folder), folder, dtype=dtype)
        settings = _settings(model, adapter)
        if adapter is not None:
            model = _with_adapter(model, adapter, arguments.weights)
        try:
            model = model.to(device).eval()
        except Exception as error:  # of any kind, by the device
            raise ConversionError(f"--device {device} cannot hold the model: {in_a_line(error)}") from error
        if arguments.seed is not None:
            torch.manual_seed(arguments.seed)
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        base.decoding_weights = None if arguments.weights == "source" else arguments.weights
        return cls(model, tokenizer, _settle(settings, vars(arguments)))

    def session(self) -> Any:
        """Lays out the decoder's weights once, for as long as it is open."""
        from t5_experimental import decoding_session

        model = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        return decoding_session(model, model.decoding_weights)

    def can_stream(self) -> bool:
        """Whether tokens are final as soon as they are there."""
        return (self.settings.num_beams or 1) == 1 and (self.settings.num_return_sequences or 1) == 1

    def write(self, sources: Sequence[str], **more: Any) -> list[str]:
        """Texts for the sources; `more` for `generate`."""
        inputs = self.tokenizer(list(sources), padding=True, return_tensors="pt").to(self.model.device)
        options = {name: inputs[name] for name in ("input_ids", "attention_mask")} | more
        try:
            ids = self.model.generate(**options, generation_config=deepcopy(self.settings))
        except RuntimeError as error:  # torch's, for numbers that are none and for memory that there is not
            raise ConversionError(f"The model cannot write with these options: {in_a_line(error)}") from error
        return self.tokenizer.batch_decode(ids, skip_special_tokens=True)

    def stream(self, sources: Sequence[str], to: TextIO) -> None:
        """Writes a text word by word; `sources` has one."""
        from transformers import TextStreamer

        class Streamer(TextStreamer):
            def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
                with writing():
                    to.write(_on_a_line(text) + "\n" * stream_end)
                    to.flush()

        # The first token is the decoder's start token.
        self.write(sources, streamer=Streamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True))


def _model_class(config: Any, folder: str) -> Any:
    """The class that loads a folder: our own for transformers' T5, too, whose layers then decode as fast as ours."""
    import transformers

    from t5_experimental import T5V11ForConditionalGeneration

    try:
        stock = is_stock(config, folder, "use transformers' own generate")
    except FolderError as error:
        raise ConversionError(str(error)) from error
    if not config.is_encoder_decoder:
        raise ConversionError(
            f"{folder} holds an encoder alone, which writes no text: give the folder of a whole model."
        )
    return T5V11ForConditionalGeneration if stock else transformers.AutoModelForSeq2SeqLM


def _check_vocabulary(tokenizer: Any, config: Any, folder: str) -> None:
    rows = getattr(config, "vocab_size", None)
    if isinstance(rows, int) and len(tokenizer) > rows:
        raise ConversionError(
            f"The tokenizer of {folder} has {len(tokenizer)} ids, and the model's embedding {rows} rows: copy both "
            "from the same model."
        )


def _settings(model: Any, adapter: str | None) -> Any:
    """How a model generates; what the folder of an adapter says of its training comes first."""
    from transformers import GenerationConfig

    own = deepcopy(model.generation_config)
    if adapter is None or not (Path(adapter) / "generation_config.json").is_file():
        return own
    try:
        settings = GenerationConfig.from_pretrained(adapter, local_files_only=True)
    except Exception as error:  # of many types, for bad files
        raise ConversionError(f"The generation_config.json of {adapter} does not load: {in_a_line(error)}") from error
    for token in ("decoder_start_token_id", "eos_token_id", "pad_token_id"):
        if getattr(settings, token) is None:
            setattr(settings, token, getattr(own, token))
    return settings


def _with_adapter(model: Any, adapter: str, weights: str) -> Any:
    import peft

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Found missing adapter keys")  # which peft fills with numbers of its own
            model = peft.PeftModel.from_pretrained(model, adapter)
        if weights == "int8" and not model.active_peft_config.is_prompt_learning:
            return model.merge_and_unload()  # adapters beside rounded weights would be called as modules
    except Exception as error:  # of many types, for bad files
        raise ConversionError(f"{adapter} does not load: {in_a_line(error)}") from error
    return model


def _check_device(device: str) -> None:
    import torch

    try:
        kind = torch.device(device).type
    except (RuntimeError, ValueError) as error:
        raise ConversionError(f"--device {device} is none that torch has: name one such as cpu or cuda:1.") from error
    if kind == "meta":
        raise ConversionError(f"--device {device} computes no numbers: name one such as cpu or cuda:1.")


def _check_weights(weights: str, device: str) -> None:
    """Refuses `--weights int8` where it would have no effect."""
    if weights == "source":
        return
    from t5_experimental.kernels_t5_experimental import int8_kernels

    if device != "cpu":
        raise ConversionError(f"--weights {weights} is for CPUs, not for {device}: add --device cpu, or leave it out.")
    if not int8_kernels():
        raise ConversionError(f"--weights {weights}: torch multiplies no int8 weights rightly here; leave it out.")


def _settle(settings: Any, options: Mapping[str, Any]) -> Any:
    """The model's own settings with those of the command line.

    Raises:
        ConversionError: they contradict each other, or one has no effect.
    """
    given = {name: options[name] for name, _, _ in OPTIONS if options[name] is not None}
    if "max_new_tokens" in given:
        settings.max_length = None
    elif settings.max_length is None and settings.max_new_tokens is None:
        settings.max_new_tokens = LONGEST
    _check_lengths(settings, given)
    settings._from_model_config = None
    try:
        settings.update(**given)  # which validates, too
        settings.validate(strict=True)
    except ValueError as error:
        raise ConversionError(f"The options of generate contradict each other: {in_a_line(error)}") from error
    return settings


def _check_lengths(settings: Any, given: Mapping[str, Any]) -> None:
    """Raises if no text is as long as it must be: transformers would leave it short."""
    most = given.get("max_new_tokens", settings.max_new_tokens)
    if most is None:
        most = settings.max_length - 1  # the decoder's start token counts there
    least = given.get("min_new_tokens", settings.min_new_tokens)
    if least is None:
        least = (settings.min_length or 0) - 1
    if least > most:
        raise ConversionError(
            f"The shortest text would have {least} tokens and the longest {most}: change --min-new-tokens or "
            "--max-new-tokens."
        )


def _check_limits(options: Mapping[str, Any]) -> None:
    for name, (least, most, text) in _LIMITS.items():
        if options[name] is not None and not least <= options[name] <= most:
            raise ConversionError(f"--{name.replace('_', '-')} is {options[name]}: it must be {text}.")


def _folders(arguments: argparse.Namespace) -> tuple[str, str | None]:
    """Folders of the model and of the adapter, or None without one; checked."""
    try:
        folder, adapter = model_and_adapter(arguments.folder, arguments.prompt, ("MODEL", "--prompt"))
        check_model(folder)
        check_tokenizer(folder)
        if adapter is not None:
            check_adapter(adapter)
    except FolderError as error:
        raise ConversionError(str(error)) from error
    if adapter is not None:
        try:
            import peft  # noqa: F401
        except ImportError as error:
            raise ConversionError(f'--prompt needs peft: pip install "t5-experimental[peft]" ({error}).') from error
    return folder, adapter
