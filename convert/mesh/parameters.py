# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Every parameter of a model with its shape on both sides, from its configuration and the name rules alone."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from t5_experimental.original import shape_of

from .rules import CLASSIFIER, EMBEDDING, FINAL_NORM, SECTIONS, Rule
from .scopes import SUBLAYERS


if TYPE_CHECKING:
    from t5_experimental.architecture_t5_experimental import LayerSpec, T5ExperimentalArchitecture


# Labels of the name rules that the configuration calls otherwise.
_FIELDS = {"buckets": "relative_attention_num_buckets"}


@dataclass(frozen=True)
class Parameter:
    """One parameter of a model.

    Attributes:
        name: our name.
        rule: the rule that maps it.
        section: section of the rule.
        sizes: size of every label in the rule's axes.
    """

    name: str
    rule: Rule
    section: str
    sizes: dict[str, int]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape in our model."""
        return shape_of(self.rule.our_axes, self.sizes)

    @property
    def mesh_shape(self) -> tuple[int, ...]:
        """Shape that the original writes."""
        forms = self.rule.mesh_axes
        # In plain attention, the original gives the bias of a single head no axis for it.
        single = self.section == "multi_head" and self.rule.needs == "bias" and self.sizes["num_heads"] == 1
        return shape_of(forms[-1] if single else forms[0], self.sizes)


def field_name(label: str) -> str:
    """Configuration field behind a label of the rules' axes, for messages."""
    return _FIELDS.get(label, label)


def layer_sizes(spec: "LayerSpec") -> dict[str, int]:
    """Sizes of the labels that differ from layer to layer."""
    numbers = {name: size for name, size in vars(spec).items() if isinstance(size, int)}
    return {**numbers, "d_kv": spec.d_k}


def parameters(config: "T5ExperimentalArchitecture") -> dict[str, Parameter]:
    """All parameters by name, in the order of the model: embedding, encoder, decoder, classifier."""
    return {parameter.name: parameter for parameter in _walk(config)}


def _walk(config: "T5ExperimentalArchitecture") -> Iterator[Parameter]:
    sizes = {
        "vocab_size": config.vocab_size,
        "d_model": config.d_model,
        "buckets": config.relative_attention_num_buckets,
    }
    yield Parameter(EMBEDDING.ours, EMBEDDING, "common", sizes)
    for stack in SUBLAYERS:
        holders = config.bias_holders(stack)
        for i, spec in enumerate(config.layer_specs(stack)):
            has = {"", "gated" if config.is_gated_act else "ungated"}
            if holders[i] == i:
                has.add("bias")
            for section, rule, j in _layer_rules(stack, spec.attention_type):
                if rule.needs in has:
                    name = rule.ours.format(stack=stack, i=i, j=j)
                    yield Parameter(name, rule, section, {**sizes, **layer_sizes(spec)})
        yield Parameter(FINAL_NORM.ours.format(stack=stack), FINAL_NORM, "common", sizes)
    if not config.tie_word_embeddings:
        yield Parameter(CLASSIFIER.ours, CLASSIFIER, "common", sizes)


def _layer_rules(stack: str, attention_type: str) -> Iterator[tuple[str, Rule, int]]:
    """Rules of one layer with their section and sublayer; the attention types are named as their sections are."""
    for j, sublayer in enumerate(SUBLAYERS[stack]):
        for section in ("common", attention_type):
            for rule in SECTIONS[section]:
                if rule.place in (sublayer, "sublayer") and stack in rule.stacks():
                    yield section, rule, j
