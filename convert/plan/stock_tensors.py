# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""The plan of a conversion from transformers' T5: what is a copy, what is left out.

Tensors are given by our names, which PyTorch's classes have, too; what a file calls them is in `Variable.name`.
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ..errors import ConversionError, UnknownVariables
from ..mesh.axes import labels_of
from ..mesh.parameters import Parameter, field_name, parameters
from ..mesh.rules import CLASSIFIER, EMBEDDING
from ..tensors import Variable
from .plan import DECODER_DROP, Plan, _with_entries
from .stock_config import Classifier
from .tensors import Entry


if TYPE_CHECKING:
    from t5_experimental.architecture_t5_experimental import T5ExperimentalArchitecture


# Names of the one embedding, of which the first that is stored is read.
EMBEDDINGS = (EMBEDDING.ours, "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")

# What old releases saved and nothing reads -> the reason why it is left out.
_UNUSED = {
    "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight": "bias of encoder-decoder attention, which"
    " T5 does not have",
}

# Beginnings of names that other classes have.
_HEADS = ("transformer.", "classification_head.", "classifier.", "qa_outputs.")

IsCopy = Callable[[str, str], bool]


def embedding_of(variables: Mapping[str, Variable]) -> str:
    """Name under which the embedding is stored."""
    for name in EMBEDDINGS:
        if name in variables:
            return name
    _check_heads(variables)
    raise ConversionError(f"none of {', '.join(EMBEDDINGS)} is stored: a T5 cannot be without an embedding.")


def copies_of_embedding(variables: Mapping[str, Variable], is_copy: IsCopy) -> dict[str, str]:
    """Reasons to leave out the other tensors that are the embedding, by what the file calls them.

    Args:
        variables: all that is stored, by our names.
        is_copy: whether two tensors are equal bit for bit.

    Raises:
        ConversionError: one differs from the others.
    """
    first = variables[embedding_of(variables)].name
    others = [variables[name].name for name in EMBEDDINGS if name in variables and variables[name].name != first]
    for name in others:
        if not is_copy(first, name):
            raise ConversionError(
                f"{name} and {first} differ, but both are the embedding of a T5: the weights are not those of one."
            )
    return dict.fromkeys(others, f"copy of {first}, equal bit for bit")


def classifier_of(variables: Mapping[str, Variable], is_copy: IsCopy) -> Classifier:
    """What is stored of a classifier."""
    if CLASSIFIER.ours not in variables:
        return Classifier.ABSENT
    embedding, classifier = variables[embedding_of(variables)], variables[CLASSIFIER.ours]
    return Classifier.COPY if is_copy(embedding.name, classifier.name) else Classifier.OWN


def is_encoder(variables: Collection[str]) -> bool:
    """Whether there is nothing of a decoder or a classifier, as in a folder of transformers' T5EncoderModel."""
    return not any(
        (name.startswith("decoder.") and name not in EMBEDDINGS) or name == CLASSIFIER.ours for name in variables
    )


def says_encoder(fields: Mapping[str, Any]) -> bool:
    """Whether a config.json is that of an encoder alone."""
    names = fields.get("architectures")
    is_named = isinstance(names, list) and any(isinstance(name, str) and "Encoder" in name for name in names)
    return is_named or fields.get("is_encoder_decoder") is False


def plan_stock(
    variables: Mapping[str, Variable],
    transposed: Collection[str],
    config: "T5ExperimentalArchitecture",
    copies: Mapping[str, str],
    encoder_only: bool,
    place: str,
    dtype: str = "source",
    max_shard_size: int = 5 * 10**9,
) -> Plan:
    """Plans a conversion.

    Args:
        variables: all that is stored, by our names, in the order in which they are to be read.
        transposed: names, in the file, of those that are stored as their transpose.
        config: the architecture of our model.
        copies: see `copies_of_embedding`.
        encoder_only: leave out what belongs to decoder and classifier.
        place: of config.json, for messages.
        dtype: dtype to write, or "source".
        max_shard_size: bytes of tensors in one file.

    Raises:
        ConversionError: a tensor is missing, too many, or of another shape than the configuration says.
    """
    expected = parameters(config)
    embedding = embedding_of(variables)
    stored = {EMBEDDING.ours: variables[embedding], **variables}
    drops = {stored[name].name: reason for name, reason in _UNUSED.items() if name in variables} | dict(copies)
    if encoder_only:
        expected = {name: p for name, p in expected.items() if name.startswith(("shared.", "encoder."))}
        rest = (name for name in variables if name.startswith("decoder.") or name == CLASSIFIER.ours)
        unused = [variables[name].name for name in rest if name != embedding]
        drops |= dict.fromkeys((name for name in unused if name not in drops), DECODER_DROP)
    elif config.tie_word_embeddings and CLASSIFIER.ours in variables:
        drops[variables[CLASSIFIER.ours].name] = f"copy of {variables[embedding].name}, equal bit for bit"
    _check_names(variables, {*expected, embedding}, drops)
    entries = []
    for name, parameter in expected.items():
        if name not in stored:
            raise ConversionError(
                f"{name} of shape {list(parameter.shape)} is missing from the weights, but {place} describes a model "
                "with it: copy all files of the folder."
            )
        entries.append(_entry(parameter, stored[name], stored[name].name in transposed, place, dtype))
    order = {variable.name: k for k, variable in enumerate(variables.values())}
    return _with_entries(Plan((), (), drops, order), entries, max_shard_size)


def _entry(parameter: Parameter, source: Variable, is_transposed: bool, place: str, dtype: str) -> Entry:
    axes = parameter.rule.our_axes
    stored = " ".join(reversed(axes.split())) if is_transposed else axes
    found = source.shape[::-1] if is_transposed else source.shape
    if found != parameter.shape:
        differing = [
            " * ".join(map(field_name, labels_of(axis)))
            for axis, want, have in zip(axes.split(), parameter.shape, found, strict=False)
            if want != have
        ]
        raise ConversionError(
            f"{source.name} has the shape {list(found)}, but {list(parameter.shape)} is expected "
            f"({', '.join(differing) or 'another number of axes'}): {place} contradicts the weights."
        )
    written = source.dtype if dtype == "source" else dtype
    return Entry(parameter.name, source, stored, axes, parameter.sizes, written)


def _check_heads(names: Iterable[str]) -> None:
    head = next((name for name in names if name.startswith(_HEADS)), None)
    if head is not None:
        raise ConversionError(
            f"{head} is stored, which no language model has: only folders of T5ForConditionalGeneration and "
            "T5EncoderModel (and their MT5 and UMT5 namesakes) are converted."
        )


def _check_names(variables: Mapping[str, Variable], known: Collection[str], drops: Collection[str]) -> None:
    by_name = {name: v for name, v in variables.items() if name not in known and v.name not in drops}
    unknown = list(by_name.values())
    if not unknown:
        return
    _check_heads(by_name)
    first, others = unknown[0], f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
    why = "so this is not the model that config.json describes"
    if next(iter(by_name)).endswith("SelfAttention.relative_attention_bias.weight"):
        why = "which has one table of position biases per stack; umT5 has one in every layer, but another model_type"
    elif re.search(r"[./]bias(:0)?\Z", first.name):
        why = "whose layers have no biases: this is another architecture"
    raise UnknownVariables(
        f"{first.name}{others}, of shape {list(first.shape)}, is a tensor that this T5 does not have, {why}.",
        [f"{variable.name} {variable.dtype} {list(variable.shape)}" for variable in unknown],
    )
