# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Greedy search on a folder of ONNX graphs, by ONNX Runtime and numpy alone, as a program without torch would do it."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime


class OnnxModel:
    """A language model in ONNX, with its decoder in one file or in two.

    Args:
        folder: that `t5-experimental export-onnx` wrote.
    """

    def __init__(self, folder: Path) -> None:
        self.encoder = _session(folder / "encoder_model.onnx")
        self.is_merged = (folder / "decoder_model_merged.onnx").exists()
        names = ["decoder_model_merged"] if self.is_merged else ["decoder_model", "decoder_with_past_model"]
        self.decoders = [_session(folder / f"{name}.onnx") for name in names]

    def encode(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """`(b, m)` and `(b, m)` -> `(b, m, d_model)`."""
        return self.encoder.run(["last_hidden_state"], {"input_ids": ids, "attention_mask": mask})[0]

    def step(
        self, tokens: np.ndarray, states: np.ndarray, mask: np.ndarray, cache: dict[str, np.ndarray]
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Logits of new tokens `(b, n)`, and the cache for the next ones; the first cache is empty."""
        session = self.decoders[-1 if cache else 0]
        given = {"input_ids": tokens, "encoder_hidden_states": states, "encoder_attention_mask": mask, **cache}
        given["use_cache_branch"] = np.array([bool(cache)])
        # What loaders give that know one head count and size for all layers, and not the right one.
        nothing = np.zeros((len(tokens), 7, 0, 9), states.dtype)
        feeds = {wanted.name: given.get(wanted.name, nothing) for wanted in session.get_inputs()}
        found = dict(zip([x.name for x in session.get_outputs()], session.run(None, feeds), strict=True))
        logits = found.pop("logits")
        # The encoder's part of the cache is computed once.
        found = {name.replace("present", "past_key_values"): array for name, array in found.items()}
        if cache:
            assert all(array.size == 0 for name, array in found.items() if ".encoder." in name)
            found |= {name: array for name, array in cache.items() if ".encoder." in name}
        return logits, found

    def greedy(self, ids: np.ndarray, mask: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens `(b, 1 + steps)`, which begin with the start token, and logits `(b, steps, vocab)`; texts that have
        ended go on with padding."""
        states, cache = self.encode(ids, mask), {}
        tokens, logits = [np.zeros((len(ids), 1), np.int64)], []
        ended = np.zeros((len(ids), 1), bool)
        for _ in range(steps):
            new, cache = self.step(tokens[-1], states, mask, cache)
            logits.append(new)
            tokens.append(np.where(ended, 0, new.argmax(-1)))
            ended |= tokens[-1] == 1
        return np.concatenate(tokens, 1), np.concatenate(logits, 1)


def _session(path: Path) -> Any:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
