# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""The complete plan of a conversion: where every tensor comes from and where it goes. All that can fail fails here."""

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from t5_experimental.original import shape_of

from ..errors import ConversionError, UnknownVariables
from ..mesh.architecture import Architecture, Shapes
from ..mesh.axes import fits
from ..mesh.matching import Sorted
from ..mesh.parameters import Parameter, field_name, parameters
from ..mesh.rules import EMBEDDING
from ..mesh.scopes import SUBLAYERS
from ..tensors import SAFETENSORS_DTYPES, Variable
from .tensors import Entry, Shard, model_shards


if TYPE_CHECKING:
    from t5_experimental.architecture_t5_experimental import T5ExperimentalArchitecture


DECODER_DROP = "decoder variable (encoder only)"


@dataclass(frozen=True)
class Plan:
    """Everything that a conversion will write.

    Attributes:
        entries: the model's tensors, in the order in which the source is read.
        shards: the same tensors, by output file; a file is complete before the next one begins.
        drops: reason by name of a variable that is left out.
        optimizer: file of the optimizer's state, if it is written.
        order: place of every variable in the order of reading.
    """

    entries: tuple[Entry, ...]
    shards: tuple[Shard, ...]
    drops: Mapping[str, str]
    order: Mapping[str, int]
    optimizer: Shard | None = None

    @property
    def parameter_count(self) -> int:
        """Count of numbers in the model."""
        return sum(entry.size for entry in self.entries)

    @property
    def nbytes(self) -> int:
        """Bytes of the model's tensors in the output."""
        return sum(entry.nbytes for entry in self.entries)

    @property
    def files(self) -> tuple[Shard, ...]:
        """All safetensors files, the optimizer's included."""
        return self.shards if self.optimizer is None else (*self.shards, self.optimizer)

    @property
    def all_nbytes(self) -> int:
        """Bytes of the tensors in all files."""
        return sum(shard.nbytes for shard in self.files)

    @property
    def reads(self) -> tuple[Entry, ...]:
        """Tensors of all files in the order of reading: file by file, each in the order of the source."""
        return tuple(entry for shard in self.files for entry in self.in_source_order(shard.entries))

    def in_source_order(self, entries: Iterable[Entry]) -> tuple[Entry, ...]:
        """Sorts tensors as the source holds them."""
        return tuple(sorted(entries, key=lambda entry: self.order[entry.source.name]))


def check_known(names: Sorted, variables: Mapping[str, Variable]) -> None:
    """Raises if there is a variable that no rule is for."""
    if names.unknown:
        first = variables[names.unknown[0]]
        others = f" (and {len(names.unknown) - 1} more)" if len(names.unknown) > 1 else ""
        raise UnknownVariables(
            f"{first.name}{others}, of shape {list(first.shape)}, is a variable that no rule is for: none of the "
            "families has it, so this is not a checkpoint of one of them.",
            [f"{name} {variables[name].dtype} {list(variables[name].shape)}" for name in names.unknown],
        )


def check_weights(names: Sorted, variables: Mapping[str, Variable]) -> None:
    """Raises if a variable that becomes a parameter has no numbers, or none that weights are."""
    for match in names.matches.values():
        variable = variables[match.mesh]
        _check_dtype(variable)
        # Of the vocabulary, padding and the end of a text are the least.
        if match.rule is EMBEDDING and variable.shape[:1] == (1,):
            raise ConversionError(f"{variable.name} has one row, but a vocabulary has two or more: it is damaged.")
        if 0 in variable.shape:
            raise ConversionError(
                f"{variable.name} has the shape {list(variable.shape)}, so that it holds no number at all: the "
                "checkpoint is not one of a model."
            )


def _check_dtype(variable: Variable) -> None:
    if variable.dtype not in SAFETENSORS_DTYPES:
        raise ConversionError(
            f"{variable.name} has the dtype {variable.dtype}, but weights are {', '.join(SAFETENSORS_DTYPES)}: this "
            "checkpoint cannot be converted."
        )


def check_agreement(gin: str, said: Architecture, shapes: Shapes) -> None:
    """Raises if a gin file and the variables differ in what is there at all; sizes are compared by `make_plan`."""
    for stack in SUBLAYERS:
        count, expected = shapes.layer_count(stack), len(said.layers[stack])
        if count != expected:
            raise ConversionError(
                f"{gin} contradicts the tensors: it gives the {stack} {expected} layers (make_layer_stack), but the "
                f"checkpoint has variables of {count}."
            )
        for i, spec in enumerate(said.layers[stack]):
            section = shapes.attention_section(stack, i)
            if section != spec.attention_type:
                raise ConversionError(
                    f"{gin} contradicts the tensors: it says {spec.attention_type} for layer {i} of the {stack} "
                    f"(make_layer_stack.layers), but its variables are those of {section}."
                )
    if said.tied != ("lm_head.weight" not in shapes):
        raise ConversionError(
            f"{gin} contradicts the tensors: it sets shared_embedding_and_softmax_weights = {said.tied}, but the "
            f"checkpoint {'has' if said.tied else 'lacks'} decoder/logits/kernel."
        )
    if shapes.gated != said.feed_forward_proj.startswith("gated-"):
        raise ConversionError(
            f"{gin} contradicts the tensors: its DenseReluDense.activation is {said.feed_forward_proj}, but the "
            f"checkpoint's feed-forward is {'gated' if shapes.gated else 'not gated'}."
        )


def make_plan(
    variables: Mapping[str, Variable],
    names: Sorted,
    config: "T5ExperimentalArchitecture",
    dtype: str = "source",
    max_shard_size: int = 5 * 10**9,
    gin: str | None = None,
) -> Plan:
    """Plans a conversion.

    Args:
        variables: the checkpoint's, in the order in which they are to be read.
        names: what the rules say about them.
        config: architecture of our model.
        dtype: dtype to write, or "source" to keep every variable's own.
        max_shard_size: bytes of tensors in one file, unless a single tensor is larger.
        gin: name of the gin file that the configuration comes from, for messages.

    Raises:
        ConversionError: a variable is missing, too many, of the wrong shape, or of a dtype that weights do not have.
    """
    expected = parameters(config)
    for name, parameter in expected.items():
        if name not in names.matches:
            mesh = names.stored_name(name, parameter.section)
            raise ConversionError(
                f"{mesh} is missing from the checkpoint: {name} of shape {list(parameter.shape)} cannot be filled."
            )
    for name, match in names.matches.items():
        if name not in expected:
            raise ConversionError(
                f"{match.mesh} is a variable too many: the model that {gin or 'the other variables'} describe"
                f"{'s' if gin else ''} has no {name}."
            )
    entries = {
        name: _entry(parameter, variables[names.matches[name].mesh], dtype, gin) for name, parameter in expected.items()
    }
    plan = Plan((), (), names.drops, {name: k for k, name in enumerate(variables)})
    return _with_entries(plan, entries.values(), max_shard_size)


def _with_entries(plan: Plan, entries: Iterable[Entry], max_shard_size: int) -> Plan:
    """The plan with these tensors, and the files of the model that they are put into."""
    ordered = plan.in_source_order(entries)
    return replace(plan, entries=ordered, shards=model_shards(ordered, max_shard_size))


def _entry(parameter: Parameter, source: Variable, dtype: str, gin: str | None) -> Entry:
    _check_dtype(source)
    rule = parameter.rule
    for form in rule.mesh_axes:
        if source.shape == shape_of(form, parameter.sizes) and fits(form, rule.our_axes, parameter.sizes):
            written = source.dtype if dtype == "source" else dtype
            return Entry(parameter.name, source, form, rule.our_axes, parameter.sizes, written)
    raise ConversionError(_wrong_shape(parameter, source, gin))


def _wrong_shape(parameter: Parameter, source: Variable, gin: str | None) -> str:
    """One sentence on a shape, with the configuration fields of the axes that differ."""
    form = next(
        (f for f in parameter.rule.mesh_axes if len(f.split()) == len(source.shape)), parameter.rule.mesh_axes[0]
    )
    wanted = shape_of(form, parameter.sizes)
    message = f"{source.name} has the shape {list(source.shape)}, but {list(wanted)} is expected"
    if len(wanted) == len(source.shape):
        pairs = zip(form.split(), wanted, source.shape, strict=True)
        axes = [" * ".join(map(field_name, axis.split("*"))) for axis, want, have in pairs if want != have]
        message += f" ({', '.join(axes)})"
    if gin:
        return f"{message}: {gin} contradicts the tensors."
    return f"{message} from the other variables: the checkpoint is not one of a single model."


def without_decoder(plan: Plan, max_shard_size: int = 5 * 10**9) -> Plan:
    """The plan of the encoder alone; the decoder, which has been checked like the rest, is left out.

    Args:
        plan: of the whole model.
        max_shard_size: bytes of tensors in one file.
    """

    def stays(entry: Entry) -> bool:
        return entry.name.startswith(("shared.", "encoder."))

    kept = [entry for entry in plan.entries if stays(entry)]
    decoder = {entry.source.name: DECODER_DROP for entry in plan.entries if not stays(entry)}
    return _with_entries(replace(plan, drops={**plan.drops, **decoder}), kept, max_shard_size)


def check_space(nbytes: int, output: Path, present: int = 0) -> None:
    """Raises if the bytes do not fit on the output's disk; a margin is left for the other files.

    Args:
        nbytes: what is written.
        output: where to.
        present: bytes that are there already and need not be free.
    """
    folder = output.absolute().parent
    while not folder.exists():
        folder = folder.parent
    needed = nbytes + 16 * 2**20
    free = shutil.disk_usage(folder).free + present
    if free < needed:
        raise ConversionError(
            f"{needed / 1e9:.2f} GB are needed for {output.name}, but the disk of {folder} has {free / 1e9:.2f} GB "
            "free: make room or choose another disk."
        )
