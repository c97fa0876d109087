"""Every released size on the meta device: names, shapes and totals are the original's, one to one."""

import json

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM

from t5_experimental import PRESETS, preset_config


def architecture(preset: str) -> str:
    """The shapes file of a preset: LM-adapted checkpoints are t5.1.1's."""
    return preset.replace(".lm100k", "")


@pytest.mark.parametrize("preset", PRESETS)
def test_parameter_count_is_the_originals(preset, reference):
    shapes = json.loads((reference / "shapes" / f"{architecture(preset)}.shapes.json").read_text())
    with torch.device("meta"):
        model = AutoModelForSeq2SeqLM.from_config(preset_config(preset))
    assert model.num_parameters() == shapes["total_parameters"]
    # The original has one variable for each of our parameters.
    assert len(list(model.parameters())) == len(shapes["variables"])


def test_bias_tables_sit_where_the_original_has_them():
    with torch.device("meta"):
        model = AutoModelForSeq2SeqLM.from_config(preset_config("t5.1.n4w10.base"))
    tables = {name: tuple(p.shape) for name, p in model.named_parameters() if "relative_attention_bias" in name}
    suffix = "layer.0.SelfAttention.relative_attention_bias.weight"
    assert tables == {
        f"{stack}.block.{layer}.{suffix}": (32, heads)
        for stack in ("encoder", "decoder")
        for layer, heads in ((0, 6), (4, 12))
    }
