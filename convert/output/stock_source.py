# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""A folder of transformers' T5 as a source: its weights, what its configuration means, and which files are taken over
as they are."""

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t5_experimental.architecture_t5_experimental import T5ExperimentalArchitecture

from ..errors import ConversionError
from ..plan.plan import Plan
from ..plan.stock_config import Classifier, check_type, read_model
from ..plan.stock_tensors import classifier_of, copies_of_embedding, is_encoder, plan_stock, says_encoder
from ..readable import joined
from ..source.checkpoint import Checkpoint
from ..source.kinds import CONFIG, STOCK_WEIGHTS
from ..tensors import Variable
from .flax_reader import FlaxReader
from .format import OutputFormat
from .json_files import parse_json, read_json
from .safetensors_reader import SafetensorsReader, files_of
from .tf2_reader import Tf2Reader
from .torch_reader import TorchReader


GENERATION = "generation_config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
_TOKENIZER_FILES = (
    "tokenizer.json",
    "spiece.model",
    TOKENIZER_CONFIG,
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
_OBJECTS = (GENERATION, TOKENIZER_CONFIG)
_MOST_BYTES = 2**27

# Classes that transformers 5 does not have any more -> the one that it has for their files.
_RENAMED = {"MT5Tokenizer": "T5Tokenizer", "MT5TokenizerFast": "T5Tokenizer"}

# Never missed: other forms of the weights and of the card, and what git keeps.
_NOT_MISSED = re.compile(r"\.git.*|README\.md|.*\.(msgpack|h5|safetensors|bin|index\.json|ot|gguf|onnx)")


@dataclass(frozen=True)
class StockSource:
    """What is found in a folder of transformers.

    Attributes:
        reader: open for reading its tensors.
        family: "t5.1.1" or "t5.1.1.lm100k".
        architecture: of our model that is written.
        dtype: of most of its weights.
        output: kind of the folder that is written; the encoder alone if there is no more.
        plan: every tensor's way.
        files: content of the files that are taken over, by name.
        notes: one sentence each.
    """

    reader: SafetensorsReader
    family: str
    architecture: T5ExperimentalArchitecture
    dtype: str
    output: OutputFormat
    plan: Plan
    files: Mapping[str, bytes]
    notes: tuple[str, ...]


def find_stock(
    checkpoint: Checkpoint,
    family: str = "auto",
    dtype: str = "source",
    max_shard_size: int = 5 * 10**9,
    d_kv: int | None = None,
    feed_forward_proj: str | None = None,
    encoder_only: bool = False,
    output_format: str = "native",
    optimizer: bool = False,
) -> StockSource:
    """Finds out everything about a folder of transformers and plans its conversion; of the weights, it reads only what
    is stored twice.

    Args:
        checkpoint: of the kind `STOCK`.
        family: see `pipeline.inspect`, as for all that follows.

    Raises:
        ConversionError: it cannot be converted.
    """
    folder = Path(checkpoint.location)
    place = str(folder / CONFIG)
    fields = _read_fields(folder / CONFIG)
    check_type(fields, place)
    if optimizer:
        raise ConversionError(f"{folder} has no optimizer's state that could be written: leave out --with-optimizer.")
    reader = open_weights(folder)
    variables = _by_our_names(reader)
    is_alone = is_encoder(variables)
    output = OutputFormat(output_format, encoder_only or is_alone)
    copies = copies_of_embedding(variables, reader.is_copy)
    stored = Classifier.ABSENT if output.encoder_only else classifier_of(variables, reader.is_copy)
    common = Counter(variable.dtype for variable in variables.values()).most_common(1)[0][0]
    written_dtype = common if dtype == "source" else dtype
    model = read_model(
        fields,
        place,
        checkpoint.name,
        stored,
        written_dtype,
        family=family,
        d_kv=d_kv,
        feed_forward_proj=feed_forward_proj,
        encoder_only=output.encoder_only,
    )
    built = model.architecture
    plan = plan_stock(variables, reader.transposed, built, copies, output.encoder_only, place, dtype, max_shard_size)
    if is_alone and not encoder_only and not says_encoder(fields):
        raise ConversionError(
            f"{folder} has no tensor of a decoder, and its {CONFIG} does not say that it is an encoder alone: copy all "
            "of its weights and their index, or pass --encoder-only."
        )
    files, file_notes = _taken_over(folder, output)
    notes = [*model.notes, *file_notes, *_unread_shards(folder)]
    if is_alone and not encoder_only:
        notes.append("The folder holds an encoder alone, and so does what is written.")
    if isinstance(reader, TorchReader) and reader.loaded:
        notes.append(f"{joined(reader.loaded)}: PyTorch before 1.6 wrote it, so that all of it is held in memory.")
    return StockSource(reader, model.family, built, written_dtype, output, plan, files, tuple(notes))


def open_weights(folder: Path) -> SafetensorsReader:
    """The weights of a folder, in the first form that is there, as transformers has it.

    Raises:
        ConversionError: a file is missing or damaged, or a package that reads it is.
    """
    readers = dict(zip(STOCK_WEIGHTS, (SafetensorsReader, TorchReader, FlaxReader, Tf2Reader), strict=True))
    for name, reader in readers.items():
        if files := files_of(folder, name):
            return reader(files)
    raise ConversionError(f"{folder} has no weights any more: copy all of its files again.")


def _unread_shards(folder: Path) -> list[str]:
    """A note on shards of the form of weights that is read which no index names."""
    name = next(name for name in STOCK_WEIGHTS if files_of(folder, name))
    read, (stem, _, ending) = {path.name for path in files_of(folder, name)}, name.partition(".")
    shard = re.compile(rf"{stem}-\d+-of-\d+\.{ending}")
    others = sorted(path.name for path in folder.iterdir() if shard.fullmatch(path.name) and path.name not in read)
    return [f"Not read, as the index does not name them: {joined(others)}."] if others else []


def _by_our_names(reader: SafetensorsReader) -> dict[str, Variable]:
    """All that is stored, by our names. Raises if two tensors are one parameter."""
    found: dict[str, Variable] = {}
    for name, variable in reader.variables.items():
        ours = reader.our_name(name)
        if ours in found:
            raise ConversionError(
                f"{found[ours].name} and {name} are both {ours}: the weights are not those of one T5."
            )
        found[ours] = variable
    return found


def _read_fields(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except (OSError, ValueError) as error:
        raise ConversionError(f"{path} cannot be read ({error}): copy it again.") from error


def _taken_over(folder: Path, output: OutputFormat) -> tuple[dict[str, bytes], list[str]]:
    """Content of the files that stay as they are, and notes on those that do not or are left out."""
    wanted = [*(() if output.encoder_only else (GENERATION,)), *_TOKENIZER_FILES]
    files = {name: _content(folder / name) for name in wanted if (folder / name).exists()}
    notes = _adapt_tokenizer(files, folder)
    read = {CONFIG, GENERATION, *_TOKENIZER_FILES}
    others = sorted(path.name for path in folder.iterdir() if path.name not in read)
    others = [name for name in others if not _NOT_MISSED.fullmatch(name)]
    if others:
        notes.append(f"Not taken over from the folder: {joined(others)}.")
    return files, notes


def _content(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise OSError("it is not a file")
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            raise ValueError(f"it has more than {_MOST_BYTES:,} bytes")
        if path.name in _OBJECTS:
            parse_json(data)
        return data
    except (OSError, ValueError) as error:
        raise ConversionError(f"{path} cannot be read ({error}): copy it again, or move it away.") from error


def _adapt_tokenizer(files: dict[str, bytes], folder: Path) -> list[str]:
    """Names the class of the tokenizer where the model's type, which is another now, would have told it."""
    present = [name for name in _TOKENIZER_FILES if name in files]
    if not present:
        return []
    fields = parse_json(files.get(TOKENIZER_CONFIG, b"{}"))
    if "auto_map" in fields:
        for name in present:
            del files[name]
        return [f"The tokenizer is not taken over: it has code of its own ({TOKENIZER_CONFIG}, auto_map)."]
    named = fields.get("tokenizer_class")
    needed = _RENAMED.get(named, named) if isinstance(named, str) else "T5Tokenizer"
    if needed == named:
        return []
    files[TOKENIZER_CONFIG] = (json.dumps({**fields, "tokenizer_class": needed}, indent=2) + "\n").encode()
    instead = f"instead of {named}" if named else "as none was named"
    return [f"{TOKENIZER_CONFIG} names the class {needed}, {instead}."]
