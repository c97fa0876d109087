# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""The README.md of a converted folder."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from ..plan.plan import Plan
from ..readable import markdown, markdown_code
from ..source.kinds import ARRAYS, MESH, STOCK
from .format import OutputFormat


if TYPE_CHECKING:
    from t5_experimental.architecture_t5_experimental import T5ExperimentalArchitecture


_ABOUT: Mapping[str, str] = {
    "t5.1.1": "T5 version 1.1, pre-trained on C4 only",
    "t5.1.1.lm100k": "T5 version 1.1, trained for 100,000 more steps on a language-modelling objective",
    "t5.1.th": "T5 version 1.1 with talking-heads attention (https://arxiv.org/abs/2003.02436)",
    "t5.1.n4w10": "T5 version 1.1 whose first layers are narrower than the others",
}

_ABOUT_OTHERS: Mapping[str, str] = {
    STOCK: "A T5 of transformers, converted",
    ARRAYS: "A T5 of T5X, converted",
}
_SOURCES: Mapping[str, str] = {
    MESH: "Mesh TensorFlow checkpoint",
    STOCK: "folder of transformers",
    ARRAYS: "checkpoint of T5X or Orbax",
}

_TEMPLATE = """---
{license}library_name: transformers
tags:
- t5
- {family}
{model_type}{origin}---

# {title}

{about}.

| | |
|---|---|
| family | {family} |
| source | {kind} {source} |
| training step | {step} |
| parameters | {parameters:,} |
| d_model | {d_model:,} |
| class | `{class_name}` |
| layers ({stacks}) | {layers} |
| heads | {heads} |
| d_ff | {d_ff} |
| vocabulary rows | {vocab_size:,} |
| classifier | {classifier} |
| feed-forward | {feed_forward} |
| dtype | {dtype} |
| tensors | {gigabytes:.3f} GB in {files} |

## How to load it

{loading}

{other_files}

## Notes

{notes}
"""

_LOAD_NATIVE = """With the package `t5_experimental` installed:

```python
import t5_experimental  # registers the architecture with the Auto classes
from transformers import {auto_class}

model = {auto_class}.from_pretrained("path/to/this/folder")
```

Without it, with the modelling code in this folder:

```python
from transformers import {auto_class}

model = {auto_class}.from_pretrained("path/to/this/folder", trust_remote_code=True)
```"""

_LOAD_STOCK = """It is a T5 as transformers has it, and needs no other package:

```python
from transformers import {class_name}

model = {class_name}.from_pretrained("path/to/this/folder")
```"""

_OPTIMIZER = """`optimizer.safetensors` holds Adafactor's state ({slots:,} tensors, {gigabytes:.3f} GB), named after the
parameters. Its header says which step it is of and which axes are factored."""

# `AutoTokenizer` would ask whether to run the code of the folder, which it does not need.
_TOKENIZER = """The tokenizer is in this folder too: `T5Tokenizer.from_pretrained("path/to/this/folder")`. Its ids are
those of the sentencepiece model; `<extra_id_0>` is the highest."""
_STOCK_TOKENIZER = """The source's tokenizer is in this folder, too: after `import t5_experimental`,
`AutoTokenizer.from_pretrained("path/to/this/folder")`."""
_STOCK_IN_STOCK_TOKENIZER = """The source's tokenizer is in this folder, too:
`AutoTokenizer.from_pretrained("path/to/this/folder")`."""
_NO_TOKENIZER = "This folder has no tokenizer: convert with `--vocab sentencepiece.model` to add it."


def model_card(
    title: str,
    family: str,
    source: str,
    step: int | None,
    config: "T5ExperimentalArchitecture",
    output: OutputFormat,
    plan: Plan,
    has_tokenizer: bool,
    notes: tuple[str, ...],
    origin: str = MESH,
) -> str:
    """Text of the card.

    Args:
        title: name of the output folder.
        family: one of the four.
        source: the checkpoint's folder and prefix, without what is above them on a disk.
        step: training step, if anything tells.
        config: the architecture of what was written.
        output: kind of the folder.
        plan: what was written.
        has_tokenizer: whether tokenizer files are in the folder.
        notes: what was assumed or set otherwise than in the checkpoint.
        origin: what the source is, `MESH`, or a kind of which nothing tells training and license.
    """
    specs = {stack: config.layer_specs(stack) for stack in output.stacks}
    dtypes = Counter(entry.dtype for entry in plan.entries)
    released = "The released checkpoints of this family have seen raw text only: fine-tune them before use on a task."
    about = _ABOUT[family]
    if origin != MESH:
        about = _ABOUT_OTHERS[origin]
        released = "License, training and limits are those of the source: see its own card."
    all_notes = (*notes, released)
    return _TEMPLATE.format(
        title=markdown(title),
        license="license: apache-2.0\n" if origin == MESH else "",
        origin="- mesh-tensorflow\n" if origin == MESH else "",
        kind=_SOURCES[origin],
        about=about + (": the encoder alone" if output.encoder_only else ""),
        family=family,
        model_type="" if output.is_stock else f"- {config.model_type}\n",
        class_name=output.class_name(config),
        loading=_loading(config, output),
        source=markdown_code(source),
        step="unknown" if step is None else f"{step:,}",
        parameters=plan.parameter_count,
        d_model=config.d_model,
        stacks=", ".join(specs),
        layers=", ".join(str(len(layers)) for layers in specs.values()),
        heads=_distinct(str(spec.num_heads) for stack in specs.values() for spec in stack),
        d_ff=_distinct(f"{spec.d_ff:,}" for stack in specs.values() for spec in stack),
        vocab_size=config.vocab_size,
        classifier=_classifier(config, output),
        feed_forward=config.feed_forward_proj,
        dtype=", ".join(name for name, _ in dtypes.most_common()),
        gigabytes=plan.nbytes / 1e9,
        files="one file" if len(plan.shards) == 1 else f"{len(plan.shards)} files",
        other_files="\n\n".join([*_optimizer(plan), _tokenizer(has_tokenizer, origin == STOCK, output)]),
        notes="\n".join(f"- {markdown(note)}" for note in all_notes),
    )


def _loading(config: "T5ExperimentalArchitecture", output: OutputFormat) -> str:
    if output.is_stock:
        return _LOAD_STOCK.format(class_name=output.class_name(config))
    return _LOAD_NATIVE.format(
        auto_class="AutoModelForTextEncoding" if output.encoder_only else "AutoModelForSeq2SeqLM"
    )


def _tokenizer(is_there: bool, is_from_stock: bool, output: OutputFormat) -> str:
    if not is_there:
        return _NO_TOKENIZER
    if not is_from_stock:
        return _TOKENIZER
    return _STOCK_IN_STOCK_TOKENIZER if output.is_stock else _STOCK_TOKENIZER


def _optimizer(plan: Plan) -> list[str]:
    if plan.optimizer is None:
        return []
    return [_OPTIMIZER.format(slots=len(plan.optimizer.entries), gigabytes=plan.optimizer.nbytes / 1e9)]


def _classifier(config: "T5ExperimentalArchitecture", output: OutputFormat) -> str:
    if output.encoder_only:
        return "none"
    return "the embedding matrix" if config.tie_word_embeddings else "a separate matrix"


def _distinct(values: Iterable[str]) -> str:
    return ", then ".join(dict.fromkeys(values))
