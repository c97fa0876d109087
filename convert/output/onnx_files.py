# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""What lies beside ONNX graphs: configuration, tokenizer and card, as those want them that load the graphs.

These know no model of ours, and some are of transformers 4: `config.json` says T5, whose fields they read to make a
cache and to choose a tokenizer, and the true configuration is in it under a key of its own.
"""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..readable import markdown
from .format import STOCK, OutputFormat
from .json_files import read_json


OWN_KEY = "t5_experimental"

_COPIED = ("tokenizer.json", "spiece.model", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja")
_TOKENIZER_CONFIG = "tokenizer_config.json"

_CARD = """---
library_name: {library}
tags:
- onnx
- t5
- {model_type}
---

# {title}

{class_name} in ONNX, opset {opset}, {dtype}. Batch and lengths may have any size.

| file | inputs | outputs |
|---|---|---|
{rows}

## The architecture

`config.json` says `"model_type": "t5"`, because programs for ONNX look for a model that they know. The model is one of
type `{model_type}`: its own configuration is in `config.json`, too, under `{own_key}`. The graphs compute
this model, and there are no weights here for a `T5ForConditionalGeneration`.

## How to run it

{loading}

{checked}
"""

_LOAD_SEQ2SEQ = """```python
from optimum.onnxruntime import ORTModelForSeq2SeqLM

model = ORTModelForSeq2SeqLM.from_pretrained("path/to/this/folder"{arguments})
```

On GPUs pass `use_io_binding=False`, too: without it, optimum takes all layers for equally wide, and
`d_model / num_heads` for the size of a head.

{other_loader}"""

_JAVASCRIPT = """In transformers.js, whose default is a folder `onnx` within this one:

```javascript
const model = await AutoModelForSeq2SeqLM.from_pretrained("path/to/this/folder", {{ subfolder: "", dtype: "fp32" }});
```

`decoder_model_merged.onnx` computes both steps: the first one with `use_cache_branch` false, where `past_key_values`
are not read and may be of any size, and all others with `use_cache_branch` true. Then `present.N.encoder` are empty:
keep those of the first step."""

_UNMERGED = """`decoder_model.onnx` computes the first step, `decoder_with_past_model.onnx` all others, with the keys
and values of the encoder that the first one returned."""

_LOAD_ENCODER = """```python
from optimum.onnxruntime import ORTModelForFeatureExtraction

model = ORTModelForFeatureExtraction.from_pretrained("path/to/this/folder")
```"""


def write_config(config: Any, folder: Path, dtype: str, encoder_only: bool) -> None:
    """Writes `config.json`.

    Args:
        config: of our model.
        folder: where to.
        dtype: of the graphs.
        encoder_only: there is no decoder.
    """
    fields = OutputFormat(STOCK, encoder_only).fields(config, dtype)
    widths = {name: getattr(config, name) for name in ("num_heads", "d_ff", "d_kv")}
    own = {name: value for name, value in config.to_dict().items() if name not in ("auto_map", "architectures")}
    _write_json({**fields, **widths, OWN_KEY: own}, folder / "config.json")


def copy_tokenizer(source: Path, folder: Path) -> bool:
    """Copies the tokenizer, in a form that transformers 4 and transformers.js read, too.

    Returns:
        Whether there is one.
    """
    for name in _COPIED:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    if (source / _TOKENIZER_CONFIG).is_file():
        fields = read_json(source / _TOKENIZER_CONFIG)
        # What transformers 5 calls these.
        if fields.get("tokenizer_class") == "TokenizersBackend":
            fields["tokenizer_class"] = "PreTrainedTokenizerFast"
        if isinstance(fields.get("extra_special_tokens"), list):
            fields["additional_special_tokens"] = fields.pop("extra_special_tokens")
        _write_json(fields, folder / _TOKENIZER_CONFIG)
    return any((folder / name).exists() for name in ("tokenizer.json", "spiece.model"))


def write_card(
    folder: Path,
    title: str,
    class_name: str,
    model_type: str,
    graphs: Iterable[str],
    dtype: str,
    opset: int,
    checked: str,
) -> None:
    """Writes `README.md`.

    Args:
        folder: where to.
        title: name of the folder.
        class_name: of our model.
        model_type: of our model.
        graphs: their names.
        dtype: of the graphs.
        opset: of the graphs.
        checked: what is known of their outputs.
    """
    names = tuple(graphs)
    encoder_only, is_merged = len(names) == 1, "decoder_model_merged" in names
    text = _CARD.format(
        library="transformers" if encoder_only else "transformers.js" if is_merged else "optimum",
        title=markdown(title),
        class_name=class_name,
        model_type=model_type,
        opset=opset,
        dtype=dtype,
        own_key=OWN_KEY,
        rows="\n".join(_ROWS[name] for name in names),
        loading=_loading(encoder_only, is_merged),
        checked=checked,
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


_ROWS = {
    "model": "| `model.onnx` | `input_ids`, `attention_mask` | `last_hidden_state` |",
    "encoder_model": "| `encoder_model.onnx` | `input_ids`, `attention_mask` | `last_hidden_state` |",
    "decoder_model": "| `decoder_model.onnx` | `input_ids`, `encoder_hidden_states`, `encoder_attention_mask` | "
    "`logits`, `present.N.{decoder,encoder}.{key,value}` |",
    "decoder_with_past_model": "| `decoder_with_past_model.onnx` | `input_ids`, `encoder_attention_mask`, "
    "`past_key_values.N.{decoder,encoder}.{key,value}` | `logits`, `present.N.decoder.{key,value}` |",
    "decoder_model_merged": "| `decoder_model_merged.onnx` | `input_ids`, `encoder_hidden_states`, "
    "`encoder_attention_mask`, `past_key_values.N.{decoder,encoder}.{key,value}`, `use_cache_branch` | `logits`, "
    "`present.N.{decoder,encoder}.{key,value}` |",
}


def _loading(encoder_only: bool, is_merged: bool) -> str:
    if encoder_only:
        return _LOAD_ENCODER
    return _LOAD_SEQ2SEQ.format(
        arguments="" if is_merged else ", use_merged=False",
        other_loader=_JAVASCRIPT.format() if is_merged else _UNMERGED,
    )


def _write_json(fields: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(fields, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
