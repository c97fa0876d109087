# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""A GGUF file for llama.cpp from a folder of a model whose layers are all alike (t5.1.1, lm100k, t5.1.0, mT5, umT5).

Names and fields are those that llama.cpp reads (its source, src/models/t5.cpp), the format is written by the package
`gguf`. What llama.cpp does not do and the model does, is done here or refused: it scales no output before the
classifier, has gated GELU and ReLU alone, and its last bucket of positions begins at 128.
"""

import os
import stat
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import ConversionError
from .mesh.parameters import Parameter, parameters
from .output.beside import check_places, reclaimable
from .output.json_files import read_json
from .output.model_folder import read_config, sort_tensors
from .output.one_file import finished_file
from .output.options import GGUF_DTYPES
from .output.paths import check_encodable
from .output.safetensors_reader import SafetensorsReader, weight_files
from .output.unigram import Unigram, read_unigram
from .plan.plan import check_space
from .plan.stock_tensors import is_encoder, says_encoder
from .readable import shown


if TYPE_CHECKING:
    import gguf

    from t5_experimental.configuration_t5_experimental import T5ExperimentalConfig


_TYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "q8_0": "Q8_0"}

# Positions that a program takes for the longest text; the relative biases know no such limit.
_CONTEXT = 512
_MAX_DISTANCE = 128

_EMBEDDING, _CLASSIFIER = "shared.weight", "lm_head.weight"
# What llama.cpp computes in float32: norms and biases; and in float16 what T5 overflows in.
_IN_FLOAT32 = (".layer_norm.weight", "_layer_norm.weight", "relative_attention_bias.weight")
_NOT_IN_FLOAT16 = ".DenseReluDense.wo.weight"


@dataclass(frozen=True)
class _Tensor:
    """One tensor of the file.

    Attributes:
        name: in the file.
        source: in the folder.
        shape: as stored, rows first.
        kind: of the numbers, of `gguf.GGMLQuantizationType`.
        scale: factor, which llama.cpp would have to apply.
    """

    name: str
    source: str
    shape: tuple[int, ...]
    kind: "gguf.GGMLQuantizationType"
    scale: float = 1.0

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        import gguf

        block, size = gguf.GGML_QUANT_SIZES[self.kind]
        return int(np.prod(self.shape)) // block * size


@dataclass(frozen=True)
class GgufSummary:
    """What an export did.

    Attributes:
        path: of the file.
        tensors: their number.
        nbytes: bytes of the file.
        dtype: of the matrices.
        notes: what a user may wonder about, one sentence each.
        seconds: time that it took.
    """

    path: Path
    tensors: int
    nbytes: int
    dtype: str
    notes: tuple[str, ...]
    seconds: float


def export_gguf(
    folder: str | Path, output: str | Path, dtype: str = "float32", overwrite: bool = False, progress: bool = False
) -> GgufSummary:
    """Writes a GGUF file that llama.cpp loads.

    Args:
        folder: of a model, or of an encoder alone.
        output: file to write; it must not exist unless `overwrite`.
        dtype: of the matrices; norms and biases stay float32, and so do the second matrix of a feed-forward if the
            others are float16, in which T5 overflows, and for q8_0 matrices whose rows are no multiple of its block.
        overwrite: replace the output, once the new one is complete.
        progress: show a progress bar on stderr.

    Raises:
        ConversionError: it cannot be exported; nothing has been written then.
    """
    from tqdm import tqdm

    start = time.monotonic()
    folder, output = Path(folder).expanduser(), Path(output).expanduser()
    if dtype not in GGUF_DTYPES:
        raise ConversionError(f"the dtype {dtype!r} is none of {', '.join(GGUF_DTYPES)}.")
    gguf = _import_gguf()
    config = read_config(folder)
    _check_output(output, overwrite)
    check_places(output.absolute())
    reader = SafetensorsReader(weight_files(folder))
    if is_encoder(reader.variables):
        if not says_encoder(read_json(folder / "config.json")):
            raise ConversionError(
                f"{folder} has no tensor of a decoder, and its config.json does not say that it is an encoder alone: "
                "save the whole model, or its encoder."
            )
        config.is_encoder_decoder = False
    _check_expressible(folder, config)
    wanted = parameters(config)
    if not config.is_encoder_decoder:
        wanted = {name: parameter for name, parameter in wanted.items() if name.startswith(("shared.", "encoder."))}
    sort_tensors(folder, reader.variables, wanted, config.tie_word_embeddings)
    vocabulary = read_unigram(folder)
    _check_ids(folder, config, vocabulary)
    tensors = _tensors(config, wanted, gguf.GGMLQuantizationType[_TYPES[dtype]])
    check_space(sum(tensor.nbytes for tensor in tensors), output, reclaimable(output))
    notes = (*_notes(config, vocabulary), *_left_in_float32(tensors, dtype))
    file_type = "ALL_F32" if dtype == "float32" else f"MOSTLY_{_TYPES[dtype]}"
    architecture = "t5" if config.is_encoder_decoder else "t5encoder"
    with (
        finished_file(output, lambda: _check_output(output, overwrite)) as partial,
        closing(gguf.GGUFWriter(partial, architecture)) as writer,
    ):
        _add_fields(writer, config, folder.resolve().name, gguf.LlamaFileType[file_type].value)
        _add_vocabulary(writer, config, vocabulary)
        for tensor in tensors:
            block, size = gguf.GGML_QUANT_SIZES[tensor.kind]
            stored = (*tensor.shape[:-1], tensor.shape[-1] // block * size)
            writer.add_tensor_info(tensor.name, stored, np.dtype(np.uint8), tensor.nbytes, tensor.kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        with tqdm(total=len(tensors), desc="tensors", disable=not progress) as bar:
            for tensor in tensors:
                writer.write_tensor_data(_numbers(reader, tensor))
                bar.update()
    return GgufSummary(output, len(tensors), output.stat().st_size, dtype, notes, time.monotonic() - start)


def _import_gguf() -> Any:
    try:
        import gguf
    except ImportError as error:
        raise ConversionError(
            "GGUF files are written with the package gguf, which is not here: pip install 't5-experimental[gguf]'."
        ) from error
    return gguf


def _check_expressible(folder: Path, config: "T5ExperimentalConfig") -> None:
    stacks = ("encoder", "decoder") if config.is_encoder_decoder else ("encoder",)
    specs = {spec for stack in stacks for spec in config.layer_specs(stack)}
    reasons = {
        "it has talking-heads attention, which llama.cpp does not have": any(
            spec.attention_type != "multi_head" for spec in specs
        ),
        "its layers differ in width, where those of llama.cpp's T5 are all alike": len(specs) > 1,
        f"its feed_forward_proj is {config.feed_forward_proj}, where llama.cpp has gated-gelu and relu": (
            config.feed_forward_proj not in ("gated-gelu", "gated-gelu_new", "gated-gelu_pytorch_tanh", "relu")
        ),
        f"its decoder has {config.num_decoder_layers} layers and its encoder {config.num_layers}, and llama.cpp fails "
        "to load more in the decoder": config.is_encoder_decoder
        and (config.num_decoder_layers or 0) > config.num_layers,
        f"its relative_attention_max_distance is {config.relative_attention_max_distance}, where llama.cpp has "
        f"{_MAX_DISTANCE}": config.relative_attention_max_distance != _MAX_DISTANCE,
    }
    for reason, holds in reasons.items():
        if holds:
            raise ConversionError(f"{folder} cannot become a GGUF file: {reason}.")


def _check_output(output: Path, overwrite: bool) -> None:
    check_encodable(output)
    if output.is_dir():
        raise ConversionError(f"{output} is a folder: name the file to write, such as {output / 'model.gguf'}.")
    if not os.path.lexists(output):
        return
    if not overwrite:
        raise ConversionError(f"{output} exists: choose another name, or pass --overwrite to replace it.")
    # What is no file is never opened: a pipe waits for who writes to it.
    if not stat.S_ISREG(output.lstat().st_mode) or not _is_gguf(output):
        raise ConversionError(f"{output} is no GGUF file, and is not replaced: choose another name.")


def _is_gguf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) in (b"GGUF", b"")


def _check_ids(folder: Path, config: "T5ExperimentalConfig", vocabulary: Unigram | None) -> None:
    """Raises for a token that has no row: the file's tables have one for each row of the embedding."""
    ids = {f"{name} of its config.json": [getattr(config, name)] for name in ("pad_token_id", "decoder_start_token_id")}
    ids = {name: value for name, value in ids.items() if value != [None]}
    ids["eos_token_id of its config.json"] = [_eos(config)]
    if vocabulary is not None:
        ids["unk_id of its tokenizer"] = [vocabulary.unknown]
        ids["a special token of its tokenizer"] = sorted(vocabulary.special)
    rows = range(config.vocab_size)
    for name, value in ids.items():
        wrong = [token for token in value if type(token) is not int or token not in rows]
        if wrong:
            raise ConversionError(
                f"{folder} cannot become a GGUF file: {name} is {shown(wrong[0])}, and ids are from 0 to {rows[-1]}."
            )


def _tensors(
    config: "T5ExperimentalConfig", wanted: dict[str, Parameter], kind: "gguf.GGMLQuantizationType"
) -> list[_Tensor]:
    """All tensors, in the order of the model."""
    import gguf

    architecture = gguf.MODEL_ARCH.T5 if config.is_encoder_decoder else gguf.MODEL_ARCH.T5ENCODER
    depth = max(config.num_layers, config.num_decoder_layers or 0)
    names = gguf.get_tensor_name_map(architecture, depth)
    tensors = []
    for name, parameter in wanted.items():
        theirs = names.get_name(name, try_suffixes=(".weight",))
        assert theirs is not None, name
        tensors.append(_Tensor(theirs, name, parameter.shape, _kind_of(name, parameter.shape, kind)))
    if not (config.is_encoder_decoder and config.scale_decoder_outputs):
        return tensors
    source = _EMBEDDING if config.tie_word_embeddings else _CLASSIFIER
    shape = wanted[source].shape
    scaled = _Tensor("output.weight", source, shape, _kind_of(source, shape, kind), config.d_model**-0.5)
    return [tensor for tensor in tensors if tensor.name != scaled.name] + [scaled]


def _kind_of(name: str, shape: tuple[int, ...], kind: "gguf.GGMLQuantizationType") -> "gguf.GGMLQuantizationType":
    import gguf

    is_plain = len(shape) < 2 or name.endswith(_IN_FLOAT32)
    overflows = kind == gguf.GGMLQuantizationType.F16 and name.endswith(_NOT_IN_FLOAT16)
    # Whole blocks of a row share a scale.
    is_broken = bool(shape[-1] % gguf.GGML_QUANT_SIZES[kind][0])
    return gguf.GGMLQuantizationType.F32 if is_plain or overflows or is_broken else kind


def _numbers(reader: SafetensorsReader, tensor: _Tensor) -> np.ndarray:
    """uint8, what is stored of a tensor."""
    import gguf

    with np.errstate(over="ignore"):
        numbers = reader.read(tensor.source).astype(np.float32).reshape(tensor.shape) * np.float32(tensor.scale)
        if not np.isfinite(numbers).all():
            raise ConversionError(f"{tensor.source} has infinities or NaNs: no program computes with them.")
        stored = gguf.quants.quantize(numbers, tensor.kind)
        if tensor.kind == gguf.GGMLQuantizationType.F16 and not np.isfinite(stored).all():
            raise ConversionError(
                f"{tensor.source} has numbers beyond float16's largest, 65504: pass --dtype float32 or bfloat16."
            )
    return np.ascontiguousarray(stored).view(np.uint8)


def _add_fields(writer: "gguf.GGUFWriter", config: "T5ExperimentalConfig", name: str, file_type: int) -> None:
    spec = config.layer_specs("encoder")[0]
    writer.add_name(name)
    writer.add_file_type(file_type)
    writer.add_context_length(_CONTEXT)
    writer.add_embedding_length(config.d_model)
    writer.add_feed_forward_length(spec.d_ff)
    writer.add_block_count(config.num_layers)
    writer.add_head_count(spec.num_heads)
    writer.add_key_length(spec.d_k)
    writer.add_value_length(spec.d_v)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)
    writer.add_layer_norm_rms_eps(config.layer_norm_epsilon)
    writer.add_relative_attn_buckets_count(config.relative_attention_num_buckets)
    writer.add_vocab_size(config.vocab_size)
    if config.is_encoder_decoder:
        assert config.num_decoder_layers is not None
        writer.add_decoder_block_count(config.num_decoder_layers)
        if config.decoder_start_token_id is not None:
            writer.add_decoder_start_token_id(config.decoder_start_token_id)


def _add_vocabulary(writer: "gguf.GGUFWriter", config: "T5ExperimentalConfig", vocabulary: Unigram | None) -> None:
    import gguf

    if vocabulary is None:
        writer.add_tokenizer_model("no_vocab")
        return
    types = gguf.TokenType
    rows: list[tuple[str, float, gguf.TokenType]] = [
        (f"[PAD{row}]", -10000.0, types.UNUSED) for row in range(config.vocab_size)
    ]
    pieces = list(vocabulary.pieces[: config.vocab_size])
    rows[: len(pieces)] = [(piece, score, types.NORMAL) for piece, score in pieces]
    for token, text in vocabulary.added.items():
        if token < len(rows):
            rows[token] = (text, -1000.0, types.USER_DEFINED)
    for token in vocabulary.special:
        rows[token] = (rows[token][0], 0.0, types.CONTROL)
    assert vocabulary.unknown is not None  # `_check_ids`
    rows[vocabulary.unknown] = (rows[vocabulary.unknown][0], 0.0, types.UNKNOWN)
    writer.add_tokenizer_model("t5")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([text for text, _, _ in rows])
    writer.add_token_scores([score for _, score, _ in rows])
    writer.add_token_types([kind for _, _, kind in rows])
    writer.add_add_space_prefix(vocabulary.begins_with_space)
    writer.add_remove_extra_whitespaces(vocabulary.joins_spaces)
    if vocabulary.charsmap:
        writer.add_precompiled_charsmap(vocabulary.charsmap)
    writer.add_eos_token_id(_eos(config))
    writer.add_pad_token_id(config.pad_token_id or 0)
    writer.add_unk_token_id(vocabulary.unknown)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(True)


def _left_in_float32(tensors: list[_Tensor], dtype: str) -> tuple[str, ...]:
    """A note on matrices that are not of the dtype that was asked for; the tables of biases count as biases."""
    import gguf

    matrices = [tensor for tensor in tensors if len(tensor.shape) > 1 and not tensor.source.endswith(_IN_FLOAT32)]
    kind = gguf.GGMLQuantizationType[_TYPES[dtype]]
    left = sum(tensor.kind != kind for tensor in matrices)
    if not left:
        return ()
    block = gguf.GGML_QUANT_SIZES[kind][0]
    why = "the ffn_down, where T5 overflows in float16"
    if block > 1:
        why = f"their rows are no multiple of {block}, the block of {dtype}"
    return (f"{left:,} of {len(matrices):,} matrices stay float32: {why}.",)


def _eos(config: "T5ExperimentalConfig") -> Any:
    """The id that ends a text, of which a file has one; None if there is none."""
    eos = config.eos_token_id
    return next(iter(eos), None) if isinstance(eos, list) else 1 if eos is None else eos


def _notes(config: "T5ExperimentalConfig", vocabulary: Unigram | None) -> tuple[str, ...]:
    notes = []
    if vocabulary is None:
        notes.append("The folder has no tokenizer, and so the file has none: programs must be given token ids.")
    elif beyond := sorted(token for token in vocabulary.added if token >= config.vocab_size):
        notes.append(f"{len(beyond):,} added tokens have no row in the embedding, and are left out.")
    if config.is_encoder_decoder and config.scale_decoder_outputs:
        notes.append("The classifier is stored multiplied by d_model ** -0.5, as llama.cpp does not scale its input.")
    return tuple(notes)
