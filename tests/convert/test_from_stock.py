# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Folders of transformers' T5 as a source: every kind that the hub has gives the logits that transformers computes
where it is right."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForSeq2SeqLM

import t5_experimental
from t5_experimental.convert import convert, verify
from tests.support.stock_folders import FRAMEWORK_KINDS, KINDS, assert_same_model


@pytest.mark.parametrize("name", {**KINDS, **FRAMEWORK_KINDS})
def test_logits_are_those_of_transformers(
    name: str, stock_sample: Callable[[str], tuple[Path, Any]], tmp_path: Path
) -> None:
    folder, theirs = stock_sample(name)
    kind = {**KINDS, **FRAMEWORK_KINDS}[name]
    summary = convert(folder, tmp_path / "out", verify=True)
    ours, info = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert type(ours) is t5_experimental.T5V11ForConditionalGeneration
    assert not any(info.values())
    assert ours.config.tie_word_embeddings is ours.config.scale_decoder_outputs is kind.is_tied
    assert len(summary.inspection.plan.drops) == kind.left_out
    assert_same_model(ours, theirs)
    assert verify(folder, tmp_path / "out").plan.nbytes == summary.nbytes


@pytest.mark.parametrize("name", KINDS)
def test_our_class_loads_a_stock_folder_exactly_and_without_a_notice(
    name: str, stock_sample: Callable[[str], tuple[Path, Any]], complaints: list[str]
) -> None:
    folder, theirs = stock_sample(name)
    ours, info = t5_experimental.T5V11ForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert_same_model(ours, theirs)
    assert complaints == []
